"""Print the tables of docs/comparison.md: `python -m comparison.tables [NAME]`."""

import argparse
from inspect import cleandoc

from comparison.rows import show
from comparison.tables import TABLES, pictures, points, trainings  # noqa: F401
from main import command, number


def main() -> None:
    """Print the tables that the command line asks for, as Markdown."""
    told = {name: f"{name}: {cleandoc(TABLES[name].__doc__ or '')}" for name in TABLES}
    slow = [name for name in TABLES if TABLES[name].__module__ == trainings.__name__]
    parser = argparse.ArgumentParser(
        prog="python -m comparison.tables",
        description="Print tables of docs/comparison.md as Markdown.",
        epilog="\n\n".join(told.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    meaning = f"one of those below (default: all but {', '.join(slow)})"
    parser.add_argument("name", nargs="?", choices=TABLES, metavar="NAME", help=meaning)
    seeds = {"type": number(int, 1, 100), "default": 3}
    parser.add_argument("--seeds", help="seeds per row (default: 3)", **seeds)
    args = parser.parse_args()
    for name in [args.name] if args.name else [x for x in TABLES if x not in slow]:
        print(f"\n{told[name]}\n", flush=True)
        show(TABLES[name](args.seeds))


if __name__ == "__main__":
    command("comparison.tables", main, "lower --seeds")
