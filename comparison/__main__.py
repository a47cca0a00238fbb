"""The models of the field on laws made of one drawing: `python -m comparison LAW`."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # whatever backend a notebook's shell asks for
    os.environ["MPLBACKEND"] = "agg"

import torch
from torch import Tensor, nn

from comparison.data import HOMER, Pictures, Points, pictures, points
from comparison.figures import (
    film_sheets,
    picture_film_sheets,
    plot_clouds,
    plot_picture_rows,
    save_gif,
    save_png,
)
from comparison.methods import (
    FILMED,
    NAMES,
    Row,
    film_states,
    grouped,
    head,
    methods,
    table,
)
from comparison.picture_methods import (
    PICTURE_NAMES,
    PictureRow,
    picture_film_states,
    picture_table,
)
from comparison.predictors import from_velocity
from comparison.training import PICTURE_STEPS, STEPS, fit, load
from main import check_output, command, number


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison as the command line asks: table, figure, film.

    Bad input ends with status 2 and one line on standard error, before any work.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    png, gif = (args.output / f"{args.law}.{kind}" for kind in ("png", "gif"))
    try:
        check_output(png, ".png", args.image)
        check_output(gif, ".gif", args.image)
    except ValueError as error:
        parser.error(str(error))
    if args.law == "points":
        wanted = [m for m in methods() if m.name in args.methods]
        filmed = [m for m in methods() if args.film and (m.name, m.steps) in FILMED]
        needed = {m.network(args.own) for m in wanted + filmed}
        law, networks = _prepare(parser, args, points, needed)
        options = args.samples, args.seed, networks.get, args.own
        pairs = _printed(Row._fields, table(law, args.methods, *options))
        save_png(plot_clouds(grouped(pairs), law), png)
        if args.film:
            save_gif(film_sheets(film_states(law, *options), law), gif)
    else:
        names = PICTURE_NAMES if args.full else args.methods
        learned = args.film or not {"noise", "fresh"}.issuperset(names or PICTURE_NAMES)
        make = partial(pictures, side=args.side)
        law, networks = _prepare(parser, args, make, {"unet"} if learned else set())
        options = args.samples, args.seed, from_velocity(networks.get("unet"))
        pairs = _printed(PictureRow._fields, picture_table(law, names, *options))
        save_png(plot_picture_rows(pairs, law), png)
        if args.film:
            save_gif(picture_film_sheets(picture_film_states(law, *options)), gif)


def _prepare(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    law_of: Callable[..., Points | Pictures],
    needed: set[str],
) -> tuple[Points | Pictures, dict[str, nn.Module]]:
    """Return the law and the networks needed, from their files or trained."""
    fitting = {"steps": args.train_steps, "seed": args.seed if args.train else 0}
    try:
        with warnings.catch_warnings(record=True, action="always") as notes:
            law = law_of(args.image, args.device, fit=args.fit)
        networks = {} if args.train else {n: load(n, law, **fitting) for n in needed}
    except ValueError as error:
        parser.error(str(error))
    for note in notes:
        print(f"comparison: note: {note.message}", file=sys.stderr)
    for name in sorted(needed):
        networks[name] = networks.get(name) or fit(name, law, **fitting)
    return law, networks


def _printed(
    fields: Sequence[str], rows: Iterator[tuple[Row | PictureRow, Tensor]]
) -> list[tuple[Row | PictureRow, Tensor]]:
    """Print a table, each row as soon as it is there; return the rows and the samples."""
    print(head(fields))
    pairs = []
    for row, drawn in rows:
        print(row, flush=True)
        pairs.append((row, drawn))
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m comparison",
        usage=argparse.SUPPRESS,  # which every error would repeat
        description="Samplers of the field on laws made of one drawing, with the exact "
        "score and with a network. Prints a table and writes a figure of the samples.",
    )
    laws = parser.add_subparsers(
        dest="law",
        required=True,
        metavar="LAW",
        prog=parser.prog,
        help="what a datum is",
    )
    points_flags = laws.add_parser(
        "points",
        help="one point, in the plane",
        usage=argparse.SUPPRESS,
        description="The points of the drawing. Writes points.png.",
        epilog="On drawing: share of the samples within 1 px of a point. Covered: share of "
        "the points with a sample within 1 px. Sliced: Wasserstein distance over 32 "
        "directions, px. Frechet: of the coordinates, px^2. Each has its floor, draws from "
        "the points, and its ceiling, noise.",
    )
    picture_flags = laws.add_parser(
        "pictures",
        help="the drawing in a random pose, 1,024 greys",
        usage=argparse.SUPPRESS,
        description="Pictures of the drawing in random poses. Writes pictures.png: of each "
        "row some samples, and below each the nearest picture trained on.",
        epilog="Frechet: of the first 16 principal components. To training, to fresh: "
        "median distance to the nearest of the pictures trained on, and of as many others. "
        "Nearer: share of the samples that are nearer to one trained on: half is right, "
        "all is copying. The methods that --full adds draw a third as many samples.",
    )
    _flags(
        points_flags,
        names=NAMES,
        chosen=NAMES,
        samples=2000,
        most=100_000,
        steps=STEPS,
        film="points.gif: four samplers",
    )
    _flags(
        picture_flags,
        names=PICTURE_NAMES,
        chosen=None,
        samples=300,
        most=2000,
        steps=PICTURE_STEPS,
        film="pictures.gif: faces out of noise",
    )
    own = "give each method the network that its paper trains"
    points_flags.add_argument("--own", action="store_true", help=own)
    full = "all methods, the slow ones too, whatever --methods says"
    picture_flags.add_argument("--full", action="store_true", help=full)
    side = {"type": int, "choices": [16, 32, 64], "default": 32}
    picture_flags.add_argument("--side", help="of a picture (default: 32)", **side)
    return parser


def _flags(
    parser: argparse.ArgumentParser,
    *,
    names: list[str],
    chosen: list[str] | None,
    samples: int,
    most: int,
    steps: int,
    film: str,
) -> None:
    """Add the flags that both laws have."""

    def flag(name: str, default: object, kind: object, meaning: str) -> None:
        meaning += " (default: %(default)s)"
        parser.add_argument(name, default=default, type=kind, help=meaning)

    def switch(name: str, meaning: str) -> None:
        parser.add_argument(name, action="store_true", help=meaning)

    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=names,
        default=chosen,
        metavar="NAME",
        help=f"of {', '.join(names)} (default: {'all' if chosen else 'the quick ones'})",
    )
    flag("--image", HOMER, Path, "picture to learn")
    switch("--fit", "find the drawing: turn light on dark round, stretch greys, crop")
    flag("--samples", samples, number(int, 2, most), "what to draw for each row")
    switch("--train", "train anew, where weights are at hand too")
    flag("--train-steps", steps, number(int, 1, 1_000_000), "steps of a training")
    seed = number(int, 0, 2**32 - 1)
    flag("--seed", 0, seed, "seed of sampling, with --train of training too")
    parser.add_argument(
        "--device", choices=devices, default=devices[0], help="where to compute"
    )
    flag("--output", Path("."), Path, "folder to write the figures to")
    switch("--film", f"write {film} too")


if __name__ == "__main__":
    command("comparison", main, "lower --samples, or take --device cpu")
