"""The models of the field on data made of one drawing: `python -m comparison DATA`."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

if __name__ == "__main__" and "ipykernel" not in sys.modules:
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's `!` command inherits

import torch

from comparison.dataset import Row
from comparison.figures import frames, save_gif, save_png
from comparison.methods import chosen
from comparison.points import HOMER
from comparison.rows import DATASETS, REFERENCES, cells, columns, film, show, table
from comparison.training import RECIPES, fit, load
from main import check_output, command, number

# What a data set has before its picture is read.
KINDS = {name: get_type_hints(make)["return"] for name, make in DATASETS.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison as the command line asks: table, figure, film.

    Bad input ends with status 2 and one line on standard error, before any work.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    known = KINDS[args.data].methods
    names = [*REFERENCES, *dict.fromkeys(method.name for method in known)]
    for name in args.methods or ():
        if name not in names:
            parser.error(f"--methods of {args.data}: {', '.join(names)}; got {name}")
    png, gif = (args.output / f"{args.data}.{kind}" for kind in ("png", "gif"))
    fitting = {"steps": args.train_steps, "seed": args.seed if args.train else 0}
    try:
        check_output(png, ".png", args.image)
        check_output(gif, ".gif", args.image)
        with warnings.catch_warnings(record=True, action="always") as notes:
            dataset = DATASETS[args.data](args.image, args.device, fit=args.fit)
        methods = chosen(dataset, args.methods, args.own)
        filmed = [m for m in chosen(dataset, own=args.own) if m.filmed and args.film]
        learned = [m for m in methods + filmed if "learned" in m.denoisers]
        networks: dict[str, Any] = dict.fromkeys(sorted(m.own for m in learned))
        if not args.train:
            networks = {name: load(name, dataset, **fitting) for name in networks}
    except ValueError as error:
        parser.error(str(error))
    for note in [*(note.message for note in notes), *dataset.notes]:
        print(f"comparison: note: {note}", file=sys.stderr)
    for name in networks:
        networks[name] = networks[name] or fit(name, dataset, **fitting)

    shown = args.methods or REFERENCES
    references = [name for name in REFERENCES if name in shown]
    samples = args.samples or dataset.samples
    options = args.seed, networks.__getitem__
    rows: list[Row] = []

    def printed():
        for row in table(dataset, methods, samples, *options, references):
            rows.append(row)
            yield cells([row], dataset)

    show(columns(dataset), printed())
    save_png(dataset.plot(rows), png)
    if args.film:
        states = film(dataset, filmed, samples, *options)
        save_gif(dataset.sheets(frames(states), args.colours), gif)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m comparison",
        usage=argparse.SUPPRESS,  # which every error would repeat
        description="Samplers of the field on data made of one drawing, with the exact "
        "denoiser and with a network. Prints a table and writes a figure of the samples.",
        epilog=" ".join(
            f"{name}: {m.name}: {m.meaning}."
            for name, kind in KINDS.items()
            for m in kind.measures
        ),
    )

    def flag(name: str, meaning: str, **options: Any) -> None:
        parser.add_argument(name, help=meaning, **options)

    def switch(name: str, meaning: str) -> None:
        parser.add_argument(name, action="store_true", help=meaning)

    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    meaning = "what a training example is: points (each point) or pictures"
    flag("data", meaning, choices=DATASETS, metavar="DATA")
    known = dict.fromkeys(m.name for kind in KINDS.values() for m in kind.methods)
    rows = f"rows to make (default: all that are not slow), of {', '.join(known)}"
    flag("--methods", rows, nargs="+", metavar="NAME")
    switch("--own", "give each method a network of its own, of points its paper's")
    flag("--image", "picture to learn (default: %(default)s)", type=Path, default=HOMER)
    switch("--fit", "find the drawing, dark or light, and crop to it")
    default = ", ".join(f"{kind.samples} {name}" for name, kind in KINDS.items())
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
