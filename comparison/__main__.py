"""The models of the field on the points of a drawing: `python -m comparison points`."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from comparison.data import HOMER, points
from comparison.figures import save_clouds, save_film
from comparison.methods import FILMED, HEAD, NAMES, film_states, grouped, methods, table
from comparison.training import STEPS, fit, load
from main import _number


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison as the command line asks: table, figure, film.

    Bad input ends with status 2 and one line on standard error, before any work.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    written = [args.output / name for name in ("points.png", "points.gif")]
    if args.image.resolve() in [path.resolve() for path in written]:
        parser.error(f"--output would overwrite --image {args.image}")
    wanted = [method for method in methods() if method.name in args.methods]
    filmed = [m for m in methods() if (m.name, m.steps) in FILMED] if args.film else []
    names = {m.network(args.own) for m in wanted + filmed}
    fitting = {"steps": args.train_steps, "seed": args.seed if args.train else 0}
    try:
        with warnings.catch_warnings(record=True, action="always") as notes:
            law = points(args.image, args.device, fit=args.fit)
        networks = {} if args.train else {n: load(n, law, **fitting) for n in names}
    except ValueError as error:
        parser.error(str(error))
    for note in notes:
        print(f"comparison: note: {note.message}", file=sys.stderr)
    for name in sorted(names):
        networks[name] = networks.get(name) or fit(name, law, **fitting)

    print(HEAD)
    pairs = []
    for row, drawn in table(
        law, args.methods, args.samples, args.seed, networks.get, args.own
    ):
        print(row, flush=True)
        pairs.append((row, drawn))
    save_clouds(grouped(pairs), law, written[0])
    if args.film:
        paths = film_states(law, args.samples, args.seed, networks.get, args.own)
        save_film(paths, law, written[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m comparison",
        usage=argparse.SUPPRESS,  # which every error would repeat
        description="Samplers of the field on laws made of one drawing, with the exact "
        "score and with a network. Prints a table and writes points.png.",
        epilog="On drawing: share of the samples within 1 px of a point. Covered: share of "
        "the points with a sample within 1 px. Sliced: Wasserstein distance over 32 "
        "directions, px. Frechet: of the coordinates, px^2. Each has its floor, draws from "
        "the points, and its ceiling, noise.",
    )

    def flag(name: str, default: object, kind: object, meaning: str) -> None:
        meaning += f" (default: {default})"
        parser.add_argument(name, default=default, type=kind, help=meaning)

    def switch(name: str, meaning: str) -> None:
        parser.add_argument(name, action="store_true", help=meaning)

    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("law", choices=["points"], help="what a datum is")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        metavar="NAME",
        help=f"of {', '.join(NAMES)} (default: all)",
    )
    flag("--image", HOMER, Path, "picture whose points to learn")
    switch("--fit", "find the drawing: turn light on dark round, stretch greys, crop")
    flag("--samples", 2000, _number(int, 2, 100_000), "points to draw for each row")
    switch("--own", "give each method the network that its paper trains")
    switch("--train", "train anew, where weights are at hand too")
    flag("--train-steps", STEPS, _number(int, 1, 1_000_000), "steps of a training")
    flag("--seed", 0, _number(int, 0, 2**32 - 1), "seed of everything random")
    parser.add_argument(
        "--device", choices=devices, default=devices[0], help="where to compute"
    )
    flag("--output", Path("."), _folder, "folder to write the figures to")
    switch("--film", "write points.gif too: four samplers side by side")
    return parser


def _folder(text: str) -> Path:
    """Read the name of a folder that can be written to."""
    if not (os.path.isdir(text) and os.access(text, os.W_OK)):
        raise argparse.ArgumentTypeError(f"{text} is no folder that can be written to")
    return Path(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"comparison: error: {error}")
