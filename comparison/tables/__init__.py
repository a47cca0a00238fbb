"""Every table of docs/comparison.md: `python -m comparison.tables [NAME]`.

A table is a function of the number of seeds (some take ten draws, or one training, whatever
it is) that yields its columns, then its rows. A figure over seeds is their mean ± their
sample standard deviation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from comparison.dataset import REFERENCES, DataSet, Method
from comparison.rows import DATASETS, Networks, cells, columns, table
from comparison.training import fit, load

DOCS = Path(__file__).parents[2] / "docs"
Rows = Iterator[Sequence[object]]
TABLES: dict[str, Callable[[int], Rows]] = {}


def tabled(rows: Callable[[int], Rows]) -> Callable[[int], Rows]:
    """Enter a function among the tables, by its name."""
    TABLES[rows.__name__] = rows
    return rows


@cache
def dataset(name: str) -> Any:
    """Return a data set of homer.png."""
    return DATASETS[name]()


@cache
def network(data: str, seed: int, name: str, steps: int | None = None) -> nn.Module:
    """Return the network of a recipe and a seed, from its file or trained once."""
    those, options = dataset(data), {"steps": steps, "seed": seed}
    return load(name, those, **options) or fit(name, those, **options)


def over_seeds(
    of: DataSet,
    methods: Iterable[Method],
    seeds: int,
    references: Sequence[str] = [*REFERENCES],
    networks: Networks | None = None,
) -> Rows:
    """Yield the columns, and the rows of references and methods over seeds; networks is
    None for those of a training by each seed.
    """
    yield columns(of)
    runs = []
    for seed in range(seeds):
        known = networks or partial(network, of.name, seed)
        runs.append(table(of, methods, of.samples, seed, known, references))
    yield from (cells(same, of) for same in zip(*runs))
