"""The models of the field on laws made of one drawing: `python -m comparison LAW`."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and "ipykernel" not in sys.modules:
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's `!` command inherits

import torch

from comparison.figures import film_sheets, plot_rows, save_gif, save_png
from comparison.laws import HOMER, LAWS, Pictures, Points
from comparison.methods import METHODS, chosen
from comparison.rows import BOUNDS, Row, cells, columns, film, show, table
from comparison.training import RECIPES, fit, load
from main import check_output, command, number


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison as the command line asks: table, figure, film.

    Bad input ends with status 2 and one line on standard error, before any work.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    names = [*BOUNDS, *dict.fromkeys(method.name for method in METHODS[args.law])]
    for name in args.methods or ():
        if name not in names:
            parser.error(f"--methods of {args.law}: {', '.join(names)}; got {name}")
    png, gif = (args.output / f"{args.law}.{kind}" for kind in ("png", "gif"))
    fitting = {"steps": args.train_steps, "seed": args.seed if args.train else 0}
    try:
        check_output(png, ".png", args.image)
        check_output(gif, ".gif", args.image)
        with warnings.catch_warnings(record=True, action="always") as notes:
            law = LAWS[args.law](args.image, args.device, fit=args.fit)
        methods = chosen(law, args.methods, args.own)
        filmed = [m for m in chosen(law, own=args.own) if m.filmed and args.film]
        learned = [m for m in methods + filmed if "learned" in m.predictors]
        networks = dict.fromkeys(sorted(method.own for method in learned))
        if not args.train:
            networks = {name: load(name, law, **fitting) for name in networks}
    except ValueError as error:
        parser.error(str(error))
    for note in [*(note.message for note in notes), *law.notes]:
        print(f"comparison: note: {note}", file=sys.stderr)
    for name in networks:
        networks[name] = networks[name] or fit(name, law, **fitting)

    bounds = [name for name in BOUNDS if name in (args.methods or BOUNDS)]
    samples = args.samples or law.samples
    options = args.seed, networks.get
    rows: list[Row] = []

    def printed():
        for row in table(law, methods, samples, *options, bounds):
            rows.append(row)
            yield cells([row], law)

    show(columns(law), printed())
    save_png(plot_rows(rows, law), png)
    if args.film:
        states = film(law, filmed, samples, *options)
        save_gif(film_sheets(states, law, colours=args.colours), gif)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m comparison",
        usage=argparse.SUPPRESS,  # which every error would repeat
        description="Samplers of the field on laws made of one drawing, with the exact "
        "score and with a network. Prints a table and writes a figure of the samples.",
        epilog="points: each point of the drawing is a datum. On drawing: share of the "
        "samples within 1 px of a point. Covered: share of the points with a sample within "
        "1 px. Sliced: Wasserstein distance over 32 directions, px. Frechet: of the "
        "coordinates, px^2. pictures: the drawing in a random pose is a datum, 32 x 32 "
        "greys from -1 to 1. Off pose: what no pose explains of a sample, root mean square, "
        "the median of the first 100. Spread: total variance, of the law's. Kernel: energy "
        "distance, of all pixels. Frechet: of the first 16 principal components. Nearer: "
        "share of the samples that are nearer to a picture trained on than to any of as "
        "many others: half is right, all is copying. Each has its floor, draws from the "
        "law, and its ceiling, noise.",
    )

    def flag(name: str, meaning: str, **options: object) -> None:
        parser.add_argument(name, help=meaning, **options)

    def switch(name: str, meaning: str) -> None:
        parser.add_argument(name, action="store_true", help=meaning)

    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    flag("law", "what a datum is: points or pictures", choices=LAWS, metavar="LAW")
    known = dict.fromkeys(m.name for methods in METHODS.values() for m in methods)
    rows = f"rows to make (default: all that are not slow), of {', '.join(known)}"
    flag("--methods", rows, nargs="+", metavar="NAME")
    switch("--own", "give each method a network of its own, of points its paper's")
    flag("--image", "picture to learn (default: %(default)s)", type=Path, default=HOMER)
    switch("--fit", "find the drawing, dark or light, and crop to it")
    default = f"{Points.samples} points, {Pictures.samples} pictures"
    samples = number(int, 2, 100_000)
    flag("--samples", f"what to draw for each row (default: {default})", type=samples)
    brief, whole = RECIPES["pictures"].steps, RECIPES["pictures"].committed
    anew = f"train anew, for pictures {brief:,} steps, not the {whole:,} of the weights"
    switch("--train", f"{anew} at hand")
    steps = number(int, 1, 1_000_000)
    flag("--train-steps", "steps of a training (default: its recipe's)", type=steps)
    seed = {"type": number(int, 0, 2**32 - 1), "default": 0}
    flag("--seed", "of sampling, with --train of training too (default: 0)", **seed)
    flag("--device", "where to compute", choices=devices, default=devices[0])
    where = {"type": Path, "default": Path(".")}
    flag("--output", "folder to write the figures to (default: %(default)s)", **where)
    switch("--film", "write a film of some methods too")
    switch("--colours", "in the film, colour points by the angle at which they end")
    return parser


if __name__ == "__main__":
    command("comparison", main, "lower --samples, or take --device cpu")
