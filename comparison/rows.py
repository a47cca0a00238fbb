"""The rows of a table: a method run with a denoiser, timed and measured; and the table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from comparison.dataset import DataSet, Row, draw_noise, measured, seeded
from comparison.denoisers import (
    Denoiser,
    Exact,
    best_variance,
    clipped,
    learned_variance,
)
from comparison.levels import unit
from comparison.methods import Method
from comparison.pictures import pictures
from comparison.points import points
from comparison.samplers import last
from comparison.training import RECIPES

# What returns the network of a recipe of this name.
Networks = Callable[[str], nn.Module]
# The references of every measure, as rows.
REFERENCES = ("noise", "fresh data")
DATASETS: dict[str, Callable[..., Any]] = {"points": points, "pictures": pictures}


class Counted:
    """A denoiser or a network that counts its calls."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(y, sigma)


def start(
    levels: Tensor,
    dataset: DataSet,
    samples: int,
    generator: torch.Generator,
    box: bool = False,
) -> Tensor:
    """Draw from N(0, levels[0]^2 I), or uniformly from a box of that half-side."""
    if box:
        like = {"generator": generator, "device": dataset.data.device}
        noise = 2 * torch.rand(samples, dataset.data.shape[1], **like) - 1
    else:
        noise = draw_noise(dataset, samples, generator)
    return levels[0].item() * noise


def states(
    method: Method, dataset: DataSet, samples: int, seed: int, networks: Networks | None
) -> tuple[Counted, Iterator[Tensor]]:
    """Return what is evaluated, counted, and the states y, (samples, D) each.

    networks: None for the exact denoiser.
    """
    options: dict[str, Any] = {"generator": seeded(dataset, seed)}
    if networks:
        counted = network = Counted(networks(method.own))
        denoiser = RECIPES[method.own].target.denoiser(network)
        denoiser = clipped(denoiser, *dataset.box) if method.clip else denoiser
        variance = partial(learned_variance, network, method.levels)
    else:
        network = Exact(dataset.data)
        counted = denoiser = Counted(network)
        variance = partial(best_variance, network)
    if method.learns_variance:
        options["variance"] = variance()
    y = start(method.levels, dataset, samples, options["generator"], method.box)
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
    kind = "learned, clipped" if method.clip else "learned"
    words = method.name, kind if networks else "exact", method.steps
    return Row(*words, counted.calls, measured(dataset, drawn), seconds, drawn)


def table(
    dataset: DataSet,
    methods: Sequence[Method],
    samples: int,
    seed: int,
    networks: Networks,
    references: Iterable[str] = REFERENCES,
) -> Iterator[Row]:
    """Yield the rows of the references and of the methods.

    Slow methods draw a third as many samples, which their rows say, and have references of
    their own. Every row starts from the same seed, so that rows can be compared more
    finely than their spread over seeds says.
    """
    fewer = max(2, samples // 3)
    counts = {samples, fewer} if any(m.slow for m in methods) else {samples}
    for name in references:
        for count in sorted(counts, reverse=True):
            if name == "noise":
                drawn = draw_noise(dataset, count, seeded(dataset, seed))
            else:
                drawn = dataset.draw(count, seed)
            titled = name if count == samples else f"{name} ({count})"
            yield Row(titled, "-", "-", 0, measured(dataset, drawn), 0.0, drawn)
    for method in methods:
        for kind in method.denoisers:
            count = fewer if method.slow else samples
            known = networks if kind == "learned" else None
            row = run(method, dataset, count, seed, known)
            yield row._replace(method=f"{row.method} ({count})") if method.slow else row


def film(
    dataset: DataSet,
    methods: Iterable[Method],
    samples: int,
    seed: int,
    networks: Networks,
) -> dict[str, Tensor]:
    """Return all states of each method by its name, (states, n, D), as `unit` has them."""
    paths = {}
    for method in methods:
        _, path = states(method, dataset, min(samples, dataset.filmed), seed, networks)
        sigmas = method.levels_of_states()
        paths[method.name] = torch.stack([unit(y, s) for y, s in zip(path, sigmas)])
    return paths


# What is printed


def show(fields: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    for cells in chain([fields, ["---"] * len(fields)], rows):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def over(values: Iterable[float], digits: int) -> str:
    """Return the mean of values and, of several, their sample standard deviation."""
    x = torch.tensor([*values], dtype=torch.float64)  # which may be NaN or infinite
    form = f".{digits}f" if x.mean() < 1e6 else ".0e"
    return f"{x.mean():{form}}" + (f" ± {x.std():{form}}" if len(x) > 1 else "")


def over_runs(runs: Iterable[Iterable[float]], digits: Iterable[int]) -> list[str]:
    """Return each column of runs, the measures for instance, `over` the runs."""
    return [over(values, d) for values, d in zip(zip(*runs), digits)]


def names(dataset: Any) -> list[str]:
    """Return the names of a data set's measures."""
    return [measure.name for measure in dataset.measures]


def digits(dataset: Any) -> list[int]:
    """Return the digits of a data set's measures."""
    return [measure.digits for measure in dataset.measures]


def columns(dataset: Any) -> list[str]:
    """Return the columns of the table of methods."""
    return ["method", "denoiser", "steps", "evaluations", *names(dataset), "seconds"]


def cells(same: Sequence[Row], dataset: DataSet) -> list[object]:
    """Return the cells of one method's rows over seeds; of the seconds the median."""
    seconds = median(row.seconds for row in same)
    measures = over_runs((row.measures for row in same), digits(dataset))
    return [*same[0][:4], *measures, f"{seconds:.1f}"]
