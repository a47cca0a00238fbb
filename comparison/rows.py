"""The rows of a table: a method run with a predictor, timed and measured; and the table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from comparison.laws import Law, seeded
from comparison.methods import Method
from comparison.predictors import (
    Exact,
    Predictor,
    best_variance,
    clipped,
    learned_variance,
)
from comparison.processes import Process
from comparison.samplers import last
from comparison.training import RECIPES

# What returns the network of a recipe of this name.
Networks = Callable[[str], nn.Module]
# The ceiling and the floor of every measure, as rows.
BOUNDS = ("noise", "floor")


class Row(NamedTuple):
    """A row of the table, and the samples that were measured, (n, D)."""

    method: str
    predictor: str
    steps: str
    evaluations: int
    measures: tuple[float, ...]
    seconds: float
    samples: Tensor


class Counted:
    """A predictor or a network that counts its calls."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.calls = predictor, 0

    def __call__(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        self.calls += 1
        return self.predictor(x_t, signal, noise)


def draw_noise(law: Law, samples: int, generator: torch.Generator) -> Tensor:
    """Draw from N(0, I), the ceiling of every measure."""
    like = {"generator": generator, "device": law.data.device}
    return torch.randn(samples, law.data.shape[1], **like)


def start(
    process: Process,
    law: Law,
    samples: int,
    generator: torch.Generator,
    box: bool = False,
) -> Tensor:
    """Draw what a process ends at: N(0, noise_T^2 I), or uniformly from a box."""
    if box:
        like = {"generator": generator, "device": law.data.device}
        x_T = 2 * torch.rand(samples, law.data.shape[1], **like) - 1
    else:
        x_T = draw_noise(law, samples, generator)
    return process.noise[-1].item() * x_T


def states(
    method: Method, law: Law, samples: int, seed: int, networks: Networks | None
) -> tuple[Counted, Iterator[Tensor]]:
    """Return what is evaluated, counted, and the states, (samples, D) each, of a method.

    networks: None for the exact predictor.
    """
    options = {"generator": seeded(law, seed)}
    if networks:
        counted = network = Counted(networks(method.own))
        learned = learned_variance
        predictor = RECIPES[method.own].predictor(network)
        predictor = clipped(predictor, *law.box) if method.clip else predictor
    else:
        network, learned = Exact(law.data), best_variance
        counted = predictor = Counted(network)
    if method.learns_variance:
        options["variance"] = learned(network, method.process)
    x_T = start(method.process, law, samples, options["generator"], method.box)
    return counted, method.sampler(predictor, method.process, x_T, **options)


def run(
    method: Method, law: Law, samples: int, seed: int, networks: Networks | None
) -> Row:
    """Return a method's row: what it draws, timed and measured. As `states`."""
    counted, path = states(method, law, samples, seed, networks)
    began = perf_counter()  # a network may have been trained for it
    drawn = last(path)
    if drawn.is_cuda:  # which still computes
        torch.cuda.synchronize()
    seconds = perf_counter() - began
    kind = "learned, clipped" if method.clip else "learned"
    words = method.name, kind if networks else "exact", method.steps
    return Row(*words, counted.calls, law.measure(drawn), seconds, drawn)


def table(
    law: Law,
    methods: Sequence[Method],
    samples: int,
    seed: int,
    networks: Networks,
    bounds: Iterable[str] = BOUNDS,
) -> Iterator[Row]:
    """Yield the rows of the bounds, ceiling and floor, and of the methods.

    Slow methods draw a third as many samples, which their rows say, and those of bounds
    of their own. Every row starts from the same seed, so that rows can be compared more
    finely than their spread over seeds says.
    """
    fewer = max(2, samples // 3)
    counts = {samples, fewer} if any(m.slow for m in methods) else {samples}
    for name in bounds:
        for count in sorted(counts, reverse=True):
            if name == "noise":
                drawn = draw_noise(law, count, seeded(law, seed))
            else:
                drawn = law.draw(count, seed)
            titled = name if count == samples else f"{name} ({count})"
            yield Row(titled, "-", "-", 0, law.measure(drawn), 0.0, drawn)
    for method in methods:
        for kind in method.predictors:
            count = fewer if method.slow else samples
            known = networks if kind == "learned" else None
            row = run(method, law, count, seed, known)
            yield row._replace(method=f"{row.method} ({count})") if method.slow else row


def film(
    law: Law, methods: Iterable[Method], samples: int, seed: int, networks: Networks
) -> dict[str, Tensor]:
    """Return all states, (states, n, D), of each method by its name."""
    paths = {}
    for method in methods:
        _, path = states(method, law, min(samples, law.filmed), seed, networks)
        paths[method.name] = torch.stack([*path])
    return paths


# What is printed


def show(fields: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    for cells in chain([fields, ["---"] * len(fields)], rows):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def over(values: Iterable[float], digits: int) -> str:
    """Return the mean of values, and half of what lies between lowest and highest."""
    values = list(values)
    mean, half = sum(values) / len(values), (max(values) - min(values)) / 2
    digits = f".{digits}f" if mean < 1e6 else ".0e"
    return f"{mean:{digits}}" + f" ± {half:{digits}}" * (len(values) > 1)


def spread(runs: Iterable[Iterable[float]], digits: Iterable[int]) -> list[str]:
    """Return each column of runs, the measures for instance, `over` the runs."""
    return [over(values, d) for values, d in zip(zip(*runs), digits)]


def columns(law: Law) -> list[str]:
    """Return the columns of the table of methods."""
    return ["method", "predictor", "steps", "evaluations", *law.measures, "seconds"]


def cells(same: Sequence[Row], law: Law) -> list[object]:
    """Return the cells of one method's rows over seeds; of the seconds the median."""
    seconds = median(row.seconds for row in same)
    measured = spread((row.measures for row in same), law.measures.values())
    return [*same[0][:4], *measured, f"{seconds:.1f}"]
