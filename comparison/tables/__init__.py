"""Every table of docs/comparison.md: `python -m comparison.tables [NAME]`.

A table is a function of the number of seeds that yields its rows. A figure over seeds is
their mean ± their sample standard deviation; seconds have none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from comparison.dataset import DataSet, seeded
from comparison.denoisers import Denoiser
from comparison.methods import Method
from comparison.rows import DATASETS, REFERENCES, Networks, cells, start, table
from comparison.samplers import last
from comparison.training import fit, load

Rows = Iterator[Sequence[object]]


class Table(NamedTuple):
    """A table's columns and rows; it is made without being named unless it is a training."""

    columns: Sequence[str]
    rows: Callable[[int], Rows]
    training: bool


TABLES: dict[str, Table] = {}


def tabled(*columns: str, training: bool = False) -> Callable:
    """Return a decorator that enters a function among the tables, by its name."""

    def enter(rows: Callable[[int], Rows]) -> Callable[[int], Rows]:
        TABLES[rows.__name__] = Table(columns, rows, training)
        return rows

    return enter


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
    references: Sequence[str] = REFERENCES,
    networks: Networks | None = None,
    samples: int | None = None,
) -> Rows:
    """Yield the rows of references and methods over seeds.

    networks: None for those of a training by each seed. samples: of a row, None for the
    data set's.
    """
    for some, those in (([], references), *(([method], ()) for method in methods)):
        runs = []
        for seed in range(seeds):
            known = networks or partial(network, of.name, seed)
            runs.append(table(of, some, samples or of.samples, seed, known, those))
        for same in zip(*runs):
            yield cells(same, of)


def drawn_by(
    sampler: Callable[..., Iterator[Tensor]],
    denoiser: Denoiser,
    levels: Tensor,
    seed: int,
    **options: Any,
) -> Tensor:
    """Return points that a sampler draws, and where it starts, by one seed."""
    points = dataset("points")
    options["generator"] = seeded(points, seed)
    y = start(levels, points, points.samples, options["generator"])
    return last(sampler(denoiser, levels, y, **options))
