"""The rows of the points' table: each method is a process, a sampler and a start.

A method runs with the exact score of the data, which shows what the sampler loses, and
with a network that was trained on them, which shows what learning loses.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from comparison.data import Pictures, Points
from comparison.measures import frechet, share_near, sliced
from comparison.predictors import (
    Exact,
    Predictor,
    best_variance,
    clipped,
    from_hybrid,
    learned_variance,
)
from comparison.processes import (
    Process,
    cosine,
    geometric,
    kept_rows,
    linear,
    respaced,
    ve_sde,
    vp_sde,
)
from comparison.samplers import (
    ddim,
    ddpm,
    euler_maruyama,
    langevin,
    last,
    predictor_corrector,
    probability_flow,
)

# The methods


class Method(NamedTuple):
    """A way back: a row of the table for each predictor.

    own: the network that its paper trains, of `RECIPES` (for the flow, that of the VP
    SDE). box: it starts uniform in a box of half-side noise_T, not from N(0, noise_T^2
    I). clip: a network's estimate of x_0 is kept in the law's box. learns_variance: its
    variance is the predictor's own.
    """

    name: str
    steps: str
    process: Process
    sampler: Callable[..., Iterator[Tensor]]
    own: str = "simple"
    box: bool = False
    clip: bool = False
    learns_variance: bool = False

    def network(self, own: bool) -> str:
        """Return the name of the network to take, of `RECIPES`."""
        return self.own if own or self.learns_variance else "simple"

    def kind(self, network: Predictor | None) -> str:
        """Return what its predictor is called in a table; network: None for the exact."""
        if network is None:
            return "exact"
        return "learned, clipped" if self.clip else "learned"


def methods() -> list[Method]:
    """Return all methods, in the order of the table."""
    ddpm_posterior = partial(ddpm, variance="posterior")
    ddpm_kept_alphas = partial(ddpm, rows=kept_rows(1000, 50).tolist())

    def spaced(kept: int) -> Process:
        return respaced(linear(), kept)

    cosine_options = {"own": "cosine", "clip": True}
    langevin_options = {"own": "geometric", "box": True}
    denoised = partial(langevin, denoise=True)
    return [
        Method("ddpm-linear", "1000", linear(), ddpm),
        Method("ddpm-linear", "50", spaced(50), ddpm),
        Method("ddpm-posterior", "50", spaced(50), ddpm_posterior),
        Method("ddpm-learned", "50", spaced(50), ddpm, "hybrid", learns_variance=True),
        Method("ddpm-kept-alphas", "50", linear(), ddpm_kept_alphas),
        Method("ddpm-cosine", "1000", cosine(), ddpm, **cosine_options),
        Method("ddpm-cosine", "50", respaced(cosine(), 50), ddpm, **cosine_options),
        Method("ddim-linear", "1000", linear(), ddim),
        Method("ddim-linear", "50", spaced(50), ddim),
        Method("ddim-linear", "20", spaced(20), ddim),
        Method("ddim-linear", "10", spaced(10), ddim),
        Method("ddim-cosine", "50", respaced(cosine(), 50), ddim, **cosine_options),
        Method("langevin", "10 x 100", geometric(), langevin, **langevin_options),
        Method(
            "langevin-denoised", "10 x 100", geometric(), denoised, **langevin_options
        ),
        Method("ve-pc", "200", ve_sde(), predictor_corrector, "ve"),
        Method("vp-em", "1000", vp_sde(), euler_maruyama, "vp"),
        Method("flow", "18", linear(), probability_flow, "vp"),
    ]


FILMED = [
    ("ddpm-linear", "1000"),
    ("ddim-linear", "50"),
    ("langevin", "10 x 100"),
    ("ve-pc", "200"),
]
NAMES = ["noise", "floor", *dict.fromkeys(method.name for method in methods())]


class Counted:
    """A predictor that counts its calls."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.calls = predictor, 0

    def __call__(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        self.calls += 1
        return self.predictor(x_t, signal, noise)


def seeded(law: Points | Pictures, seed: int) -> torch.Generator:
    """Return a generator on the law's device."""
    return torch.Generator(law.data.device).manual_seed(seed)


def draw_noise(
    law: Points | Pictures, samples: int, generator: torch.Generator
) -> Tensor:
    """Draw from N(0, I), the ceiling of every measure, and most samplers' start."""
    like = {"generator": generator, "device": law.data.device}
    return torch.randn(samples, law.data.shape[1], **like)


def draw_box(
    law: Points | Pictures, samples: int, generator: torch.Generator
) -> Tensor:
    """Draw uniformly from [-1, 1]^D."""
    like = {"generator": generator, "device": law.data.device}
    return 2 * torch.rand(samples, law.data.shape[1], **like) - 1


def draw_floor(law: Points, samples: int, generator: torch.Generator) -> Tensor:
    """Draw from the law itself, the floor of every measure."""
    like = {"generator": generator, "device": law.data.device}
    return law.data[torch.randint(len(law.data), (samples,), **like)]


def states(
    method: Method,
    law: Points | Pictures,
    samples: int,
    seed: int,
    network: Predictor | None = None,
) -> tuple[Counted, Iterator[Tensor]]:
    """Return the predictor and the states, (samples, D) each, of a method.

    network: None for the exact predictor.
    """
    options = {"generator": seeded(law, seed)}
    predictor = Exact(law.data) if network is None else network
    if method.clip and network:
        predictor = clipped(predictor, *law.box)
    if method.learns_variance and network:
        options["variance"] = learned_variance(network, method.process)
        predictor = from_hybrid(network)
    elif method.learns_variance:
        options["variance"] = best_variance(predictor, method.process)
    draw = draw_box if method.box else draw_noise
    x_T = method.process.noise[-1].item() * draw(law, samples, options["generator"])
    counted = Counted(predictor)
    return counted, method.sampler(counted, method.process, x_T, **options)


def timed(
    method: Method,
    law: Points | Pictures,
    samples: int,
    seed: int,
    network: Predictor | None = None,
) -> tuple[Tensor, int, float]:
    """Return what a method draws, (samples, D), its predictor's calls, and seconds."""
    began = perf_counter()
    predictor, path = states(method, law, samples, seed, network)
    drawn = last(path)
    if drawn.is_cuda:  # which still computes
        torch.cuda.synchronize()
    return drawn, predictor.calls, perf_counter() - began


def film_states(
    law: Points,
    samples: int,
    seed: int,
    network_of: Callable[[str], Predictor],
    own: bool = False,
) -> dict[str, Tensor]:
    """Return all states, (states, samples, 2), of the methods of `FILMED`, learned."""
    paths = {}
    for method in methods():
        if (method.name, method.steps) in FILMED:
            network = network_of(method.network(own))
            _, path = states(method, law, samples, seed, network)
            paths[method.name] = torch.stack([*path])
    return paths


# The table


class Row(NamedTuple):
    """A row of the table: shares in per cent, distances in pixels and their squares."""

    method: str
    predictor: str
    steps: str
    evaluations: int
    on_drawing: float
    covered: float
    sliced: float
    frechet: float
    seconds: float

    def __str__(self) -> str:
        *words, evaluations, on_drawing, covered, area, frechet_px2, seconds = self
        cells = [*words, f"{evaluations}", f"{on_drawing:.1f}", f"{covered:.1f}"]
        cells += [f"{area:.2f}", f"{frechet_px2:.2f}", f"{seconds:.1f}"]
        return line(cells)


def line(cells: Iterable[object]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(fields: Sequence[str]) -> str:
    """Return the head of a Markdown table, from the fields of its rows."""
    return f"{line(fields).replace('_', ' ')}\n|{'---|' * len(fields)}"


def measures(samples: Tensor, law: Points) -> tuple[float, float, float, float]:
    """Return on drawing and covered, in per cent, sliced in px and frechet in px^2."""
    if not samples.isfinite().all():  # a network that was hardly trained may explode
        return 0.0, 0.0, math.nan, math.nan
    samples, data = samples / law.pixel, law.data / law.pixel
    within = 1.001  # neighbours on the grid are 1 px apart: rounding must not decide
    shares = share_near(samples, data, within), share_near(data, samples, within)
    return *(100 * s for s in shares), sliced(samples, data), frechet(samples, data)


def table(
    law: Points,
    names: Sequence[str],
    samples: int,
    seed: int,
    network_of: Callable[[str], Predictor],
    own: bool = False,
) -> Iterator[tuple[Row, Tensor]]:
    """Yield each row and its samples, (samples, 2).

    network_of: returns the network of a name of `RECIPES`. own: take the network that a
    method's paper trains; else one of L_simple on `linear`, which the level serves for
    the other processes too, as far as their levels are among linear's (cosine goes
    beyond). Every row starts from the same seed, so that rows can be compared more finely
    than their spread over seeds says.
    """
    for name, draw in (("noise", draw_noise), ("floor", draw_floor)):
        if name in names:
            drawn = draw(law, samples, seeded(law, seed))
            yield Row(name, "-", "-", 0, *measures(drawn, law), 0.0), drawn
    for method in methods():
        for kind in ("exact", "learned") if method.name in names else ():
            network = network_of(method.network(own)) if kind == "learned" else None
            drawn, calls, seconds = timed(method, law, samples, seed, network)
            columns = method.name, method.kind(network), method.steps, calls
            yield Row(*columns, *measures(drawn, law), seconds), drawn


def grouped(pairs: Iterable[tuple[Row, Tensor]]) -> list[list[tuple[str, Tensor]]]:
    """Return titled clouds in columns: the two of a method, and those of the bounds."""
    columns = {}
    for row, drawn in pairs:
        if row.steps == "-":
            columns.setdefault("bounds", []).append((row.method, drawn))
        else:
            title = f"{row.method} {row.steps}\n{row.predictor}"
            columns.setdefault((row.method, row.steps), []).append((title, drawn))
    return [*columns.values()]
