"""Every table and figure of docs/comparison.md: `python -m comparison.tables [NAME]`.

Without a name it makes all but `weights` and `unet`, which train what
comparison/weights/ holds.
Figures go to docs/, tables are printed as Markdown.
"""

import argparse
import os

if __name__ == "__main__":  # whatever backend a notebook's shell asks for
    os.environ["MPLBACKEND"] = "agg"

from comparison.picture_tables import PICTURE_TABLES
from comparison.point_tables import POINT_TABLES
from main import command, number

TABLES = POINT_TABLES | PICTURE_TABLES
TRAININGS = ("weights", "unet")


def main() -> None:
    """Make the tables that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m comparison.tables", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "name", nargs="?", choices=TABLES, help="all but trainings if left out"
    )
    seeds = {"type": number(int, 1, 100), "default": 3}
    parser.add_argument("--seeds", help="seeds of each figure (default: 3)", **seeds)
    args = parser.parse_args()
    for name, make in TABLES.items():
        if args.name == name or (args.name is None and name not in TRAININGS):
            print(f"{name}: {make.__doc__}\n", flush=True)
            make(args.seeds)


if __name__ == "__main__":
    command("comparison.tables", main, "lower --seeds")
