"""The rows of a table: a method run with a denoiser, timed and measured; and the table."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from comparison import denoisers
from comparison.dataset import REFERENCES, DataSet, Method, Row, draw_noise, seeded
from comparison.pictures import pictures
from comparison.points import points
from comparison.samplers import last
from comparison.training import RECIPES

Networks = Callable[[str], nn.Module]  # by the names of recipes
DATASETS: dict[str, Callable[..., Any]] = {"points": points, "pictures": pictures}


def measured(dataset: DataSet, samples: Tensor) -> tuple[float, ...]:
    """Return the measures of samples; all NaN if a network exploded."""
    if not samples.isfinite().all():
        return (math.nan,) * len(dataset.measures)
    return tuple(measure.of(dataset, samples) for measure in dataset.measures)


def chosen(dataset: DataSet, names: Collection[str] | None = None) -> list[Method]:
    """Return a data set's methods of these names, or without names all that are not slow;
    each with the data set's network, but those that learn the variance with their own.
    """
    return [
        method if method.learns_variance else method._replace(own=dataset.name)
        for method in dataset.methods
        if (method.name in names if names else not method.slow)
    ]


class Counted:
    """A denoiser or a network that counts its calls."""

    def __init__(self, denoiser: denoisers.Denoiser) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(y, sigma)


def states(
    method: Method, dataset: DataSet, samples: int, seed: int, networks: Networks | None
) -> tuple[Counted, Iterator[Tensor]]:
    """Return what is evaluated, counted, and the states y, (samples, D) each; networks is
    None for the exact denoiser.
    """
    generator, options = seeded(dataset, seed), {}
    if networks:
        counted = network = Counted(networks(method.own))
        denoiser = RECIPES[method.own].target.denoiser(network)
        if method.clip:
            denoiser = denoisers.clipped(denoiser, *method.clip)
        variance = partial(denoisers.learned_variance, network, method.levels)
    else:
        network = denoisers.Exact(dataset.data)
        counted = denoiser = Counted(network)
        variance = partial(denoisers.best_variance, network)
    if method.learns_variance:
        options["variance"] = variance()
    y = draw_noise(dataset, samples, generator)
    y, options["generator"] = method.levels[0].item() * y, generator
    return counted, method.sampler(denoiser, method.levels, y, **options)


def run(
    method: Method, dataset: DataSet, samples: int, seed: int, networks: Networks | None
) -> Row:
    """Return a method's row: what it draws, timed and measured. As `states`."""
    counted, path = states(method, dataset, samples, seed, networks)
    began = perf_counter()  # a network may have been trained for it
    drawn = last(path)
    if drawn.is_cuda:  # which still computes
        torch.cuda.synchronize()
    seconds = perf_counter() - began
    kind = "network, clipped" if method.clip else "network"
    words = method.name, kind if networks else "exact", method.steps
    return Row(*words, counted.calls, measured(dataset, drawn), seconds, drawn)


def table(
    dataset: DataSet,
    methods: Iterable[Method],
    samples: int,
    seed: int,
    networks: Networks,
    references: Iterable[str] = REFERENCES,
) -> Iterator[Row]:
    """Yield the rows of the references and of the methods, all from the same seed, so that
    rows can be compared more finely than their spread over seeds says.
    """
    for name in references:
        drawn = REFERENCES[name](dataset, samples, seed)
        yield Row(name, "-", "-", 0, measured(dataset, drawn), 0.0, drawn)
    for method in methods:
        for kind in method.denoisers:
            known = networks if kind == "network" else None
            yield run(method, dataset, samples, seed, known)


def show(rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, its columns first, each row as soon as it is there."""
    for k, row in enumerate(rows):
        rule = "" if k else "\n|" + "---|" * len(row)
        print(f"| {' | '.join(map(str, row))} |{rule}", flush=True)


def over(values: Iterable[float], digits: int) -> str:
    """Return the mean of values and, of several, their sample standard deviation."""
    x = torch.tensor([*values], dtype=torch.float64)  # which may be NaN or infinite
    form = f".{digits}f" if x.mean() < 1e6 else ".0e"
    return f"{x.mean():{form}}" + (f" ± {x.std():{form}}" if len(x) > 1 else "")


def over_runs(runs: Iterable[Iterable[float]], digits: Iterable[int]) -> list[str]:
    """Return each column of runs, the measures for instance, `over` the runs."""
    return [over(values, d) for values, d in zip(zip(*runs), digits)]


def columns(dataset: Any) -> list[str]:
    """Return the columns of the table of methods."""
    names = [measure.name for measure in dataset.measures]
    return ["method", "denoiser", "steps", "evaluations", *names, "seconds"]


def cells(same: Sequence[Row], dataset: DataSet) -> list[object]:
    """Return the cells of one method's rows over seeds; of the seconds the median."""
    seconds = median(row.seconds for row in same)
    digits = (measure.digits for measure in dataset.measures)
    measures = over_runs((row.measures for row in same), digits)
    return [*same[0][:4], *measures, f"{seconds:.1f}"]
