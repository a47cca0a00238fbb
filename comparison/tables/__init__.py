"""Every table of docs/comparison.md: `python -m comparison.tables [NAME]`.

A table is a function of the number of seeds that yields its rows. A figure over seeds is
their mean, with half the range between the lowest and the highest; seconds have none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

from torch import Tensor, nn

from comparison.laws import LAWS, Law, seeded
from comparison.methods import Method
from comparison.predictors import Predictor
from comparison.processes import Process
from comparison.rows import BOUNDS, Networks, cells, start, table
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
def law(name: str) -> Law:
    """Return a law of homer.png."""
    return LAWS[name]()


@cache
def network(law_name: str, seed: int, name: str, steps: int | None = None) -> nn.Module:
    """Return the network of a recipe and a seed, from its file or trained once."""
    those, options = law(law_name), {"steps": steps, "seed": seed}
    return load(name, those, **options) or fit(name, those, **options)


def over_seeds(
    of: Law,
    methods: Iterable[Method],
    seeds: int,
    bounds: Sequence[str] = BOUNDS,
    networks: Networks | None = None,
    samples: int | None = None,
) -> Rows:
    """Yield the rows of bounds and methods over seeds.

    networks: None for those of a training by each seed. samples: of a row, None for the
    law's.
    """
    for some, those in (([], bounds), *(([method], ()) for method in methods)):
        runs = []
        for seed in range(seeds):
            known = networks or partial(network, of.name, seed)
            runs.append(table(of, some, samples or of.samples, seed, known, those))
        for same in zip(*runs):
            yield cells(same, of)


def drawn_by(
    sampler: Callable[..., Iterator[Tensor]],
    predictor: Predictor,
    process: Process,
    seed: int,
    **options: object,
) -> Tensor:
    """Return points that a sampler draws, and where it starts, by one seed."""
    points = law("points")
    options["generator"] = seeded(points, seed)
    x_T = start(process, points, points.samples, options["generator"])
    return last(sampler(predictor, process, x_T, **options))
