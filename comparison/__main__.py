"""Diffusion models on data made of one drawing: `python -m comparison DATA`."""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

if __name__ == "__main__" and "ipykernel" not in sys.modules:
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's `!` command inherits

import torch

from comparison import rows
from comparison.dataset import REFERENCES, Row
from comparison.figures import frames, save_gif, save_png
from comparison.points import HOMER
from comparison.rows import DATASETS
from comparison.training import fit, load
from main import check_output, command, number

# What a data set has before its picture is read.
KINDS = {name: get_type_hints(make)["return"] for name, make in DATASETS.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison as the command line asks: table, figure, film."""
    parser = _parser()
    args = parser.parse_args(argv)
    names = [*REFERENCES, *dict.fromkeys(m.name for m in KINDS[args.data].methods)]
    if unknown := {*(args.methods or ())} - {*names}:
        parser.error(f"no method {unknown.pop()}; choose from {', '.join(names)}")
    png, gif = (args.output / f"{args.data}.{kind}" for kind in ("png", "gif"))
    fitting = {"steps": args.train_steps, "seed": args.seed if args.train else 0}
    try:
        check_output(png, ".png", args.image)
        check_output(gif, ".gif", args.image)
        with warnings.catch_warnings(record=True, action="always") as notes:
            dataset = DATASETS[args.data](args.image, args.device, fit=args.fit)
        methods = rows.chosen(dataset, args.methods)
        filmed = [m for m in rows.chosen(dataset) if m.filmed and args.film]
        learned = [m for m in methods + filmed if "network" in m.denoisers]
        networks: dict[str, Any] = dict.fromkeys(sorted(m.own for m in learned))
        if not args.train:
            networks = {name: load(name, dataset, **fitting) for name in networks}
    except ValueError as error:
        parser.error(str(error))
    for note in notes:
        print(f"comparison: note: {note.message}", file=sys.stderr)
    for name in networks:
        networks[name] = networks[name] or fit(name, dataset, **fitting)

    references = [name for name in REFERENCES if name in (args.methods or REFERENCES)]
    options = args.samples or dataset.samples, args.seed, networks.__getitem__
    made: list[Row] = []

    def printed() -> Iterator[Sequence[object]]:
        yield rows.columns(dataset)
        for row in rows.table(dataset, methods, *options, references):
            made.append(row)
            yield rows.cells([row], dataset)

    rows.show(printed())
    save_png(dataset.plot(made), png)
    if args.film:
        options = min(options[0], dataset.filmed), *options[1:]
        paths = {m.name: [*rows.states(m, dataset, *options)[1]] for m in filmed}
        save_gif(dataset.sheets(frames(paths)), gif)


def _parser() -> argparse.ArgumentParser:
    told = {k: [f"{m.name} ({m.meaning})" for m in KINDS[k].measures] for k in KINDS}
    parser = argparse.ArgumentParser(
        prog="python -m comparison",
        usage=argparse.SUPPRESS,  # which every error would repeat
        description="Compare samplers on data made of one drawing, with the exact denoiser "
        "and with a network. Prints a table of measures and writes a figure of samples.",
        epilog=" ".join(f"Measures of {k}: {', '.join(told[k])}." for k in told),
    )

    def flag(name: str, meaning: str, default: object = None, **how: Any) -> None:
        meaning += "" if default is None else " (default: %(default)s)"
        parser.add_argument(name, help=meaning, default=default, **how)

    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    known = dict.fromkeys(m.name for kind in KINDS.values() for m in kind.methods)
    counts = ", ".join(f"{kind.samples} {name}" for name, kind in KINDS.items())
    samples, steps = number(int, 2, 100_000), number(int, 1, 1_000_000)
    switch: dict[str, Any] = {"action": "store_true"}
    meaning = "points of the drawing, or pictures of it in random poses"
    flag("data", meaning, choices=DATASETS, metavar="DATA")
    meaning = f"methods to run (default: all but the slow ones), of {', '.join(known)}"
    flag("--methods", meaning, nargs="+", metavar="NAME")
    flag("--image", "the drawing", HOMER, type=Path)
    flag("--fit", "find the drawing, dark or light, and crop to it", **switch)
    flag("--samples", f"samples per row (default: {counts})", type=samples)
    meaning = "train networks (for pictures: fewer steps than the committed one)"
    flag("--train", meaning, **switch)
    flag("--train-steps", "training steps (default: those of the recipe)", type=steps)
    meaning = "seed of sampling and, with --train, of training"
    flag("--seed", meaning, 0, type=number(int, 0, 2**32 - 1))
    flag("--device", "where to compute", devices[0], choices=devices)
    flag("--output", "folder to write the figures to", Path("."), type=Path)
    flag("--film", "also write a film, points coloured by where they end", **switch)
    return parser


if __name__ == "__main__":
    command("comparison", main, "lower --samples, or use --device cpu")
