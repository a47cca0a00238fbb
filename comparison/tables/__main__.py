"""Print the tables of docs/comparison.md: `python -m comparison.tables [NAME]`."""

import argparse
import os
import sys

if __name__ == "__main__" and "ipykernel" not in sys.modules:
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's `!` command inherits

from comparison.rows import show
from comparison.tables import TABLES, pictures, points, weights  # noqa: F401
from main import command, number


def main() -> None:
    """Print the tables that the command line asks for, as Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m comparison.tables",
        description="Print a table of docs/comparison.md, or all but the trainings.",
    )
    parser.add_argument("name", nargs="?", choices=TABLES, metavar="NAME")
    seeds = {"type": number(int, 1, 100), "default": 3}
    parser.add_argument("--seeds", help="seeds of each figure (default: 3)", **seeds)
    args = parser.parse_args()
    for name, table in TABLES.items():
        if args.name == name or (args.name is None and not table.training):
            print(f"{name}: {table.rows.__doc__}\n", flush=True)
            show(table.columns, table.rows(args.seeds))
            print()


if __name__ == "__main__":
    command("comparison.tables", main, "lower --seeds")
