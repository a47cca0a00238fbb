"""Print the tables of docs/comparison.md: `python -m comparison.tables [NAME]`."""

import argparse
from inspect import cleandoc

from comparison.rows import show
from comparison.tables import TABLES, pictures, points, trainings  # noqa: F401
from main import command, number


def main() -> None:
    """Print the tables that the command line asks for, as Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m comparison.tables",
        description="Print a table of docs/comparison.md as Markdown.",
    )
    names = f"{', '.join(TABLES)} (default: all but those that train for long)"
    parser.add_argument("name", nargs="?", choices=TABLES, metavar="NAME", help=names)
    seeds = {"type": number(int, 1, 100), "default": 3}
    parser.add_argument("--seeds", help="seeds of each row (default: 3)", **seeds)
    args = parser.parse_args()
    for name, rows in TABLES.items():
        quick = rows.__module__ != trainings.__name__
        if name == args.name or (quick and not args.name):
            print(f"{name}: {cleandoc(rows.__doc__ or name)}\n", flush=True)
            show(rows(args.seeds))
            print()


if __name__ == "__main__":
    command("comparison.tables", main, "lower --seeds")
