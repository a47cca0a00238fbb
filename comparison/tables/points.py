"""The tables about points. Seeds are those of training and of sampling."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from comparison import denoisers, levels, objectives, samplers
from comparison.dataset import draw_noise, seeded
from comparison.denoisers import Denoiser
from comparison.figures import plot_clouds, save_png
from comparison.levels import LINEAR
from comparison.measures import share_near
from comparison.points import ENDS
from comparison.rows import chosen, measured, over_runs
from comparison.samplers import normal_like
from comparison.tables import DOCS, Rows, dataset, network, over_seeds, tabled
from comparison.training import RECIPES, fit, train

DATA = dataset("points")
SAMPLES = DATA.samples
NAMES, DIGITS = zip(*((measure.name, measure.digits) for measure in DATA.measures))


def _drawn(
    denoiser: Denoiser,
    sigmas: Tensor,
    seed: int,
    sampler: Callable[..., Iterator[Tensor]] = samplers.ddpm,
    **how: Any,
) -> Tensor:
    how["generator"] = seeded(DATA, seed)
    y = sigmas[0].item() * draw_noise(DATA, SAMPLES, how["generator"])
    return samplers.last(sampler(denoiser, sigmas, y, **how))


@tabled
def points(seeds: int) -> Rows:
    """The command's table: all methods. One network; a learned variance has its own."""
    yield from over_seeds(DATA, chosen(DATA), seeds)


@tabled
def own(seeds: int) -> Rows:
    """The survey's tables 1 and 2: each method with the network that its paper trains."""
    methods = [m for m in DATA.methods if m.own and not m.learns_variance]
    yield from over_seeds(DATA, methods, seeds, ["fresh data"])


@tabled
def covariance(seeds: int) -> Rows:
    """Learned covariance, (20): DDPM 50 with each variance, and the bound's terms, (16)."""
    yield ["denoiser", "variance", *NAMES, "bound, t = 2..50, nats/dim"]
    sigmas, exact = levels.respaced(LINEAR, 50), denoisers.Exact(DATA.data)

    def run(kind: str, name: str, seed: int) -> list[float]:
        denoiser, variance = exact, denoisers.best_variance(exact)
        if kind == "network":
            trained = network("points", seed, "hybrid")
            denoiser = denoisers.HYBRID.denoiser(trained)
            variance = denoisers.learned_variance(trained, sigmas)
        known = {"beta": denoisers.beta, "posterior": denoisers.posterior}
        variance = known.get(name, variance)
        of = denoiser, sigmas, DATA.data, variance, seeded(DATA, seed)
        drawn = _drawn(denoiser, sigmas, seed, variance=variance)
        return [*measured(DATA, drawn), objectives.bound_terms(*of).sum().item()]

    for row in product(("exact", "network"), ("beta", "posterior", "its own")):
        runs = (run(*row, seed) for seed in range(seeds))
        yield [*row, *over_runs(runs, (*DIGITS, 3))]


@tabled
def half(seeds: int) -> Rows:
    """Trained on every second point: what is covered of those seen and of the others."""
    yield "within half a pixel", "coverage, seen", "coverage, unseen", "precision"
    seen, unseen = DATA.data[::2], DATA.data[1::2]
    part = replace(DATA, data=seen)

    def blurred(seed: int) -> Tensor:
        noise = draw_noise(DATA, SAMPLES, seeded(DATA, 1000 + seed))
        return part.draw(SAMPLES, seed) + 0.3 * DATA.pixel * noise

    def learned(seed: int) -> Tensor:
        trained = fit("points", part, seed=seed)
        return _drawn(RECIPES["points"].target.denoiser(trained), LINEAR, seed)

    draws: dict[str, Callable[[int], Tensor]] = {
        "network": learned,
        "exact denoiser, seen points": partial(_drawn, denoisers.Exact(seen), LINEAR),
        "control: seen points with noise of 0.3 px": blurred,
        "fresh data": partial(DATA.draw, SAMPLES),
    }
    for name, draw in draws.items():
        runs = []
        for drawn in map(draw, range(seeds)):
            pairs = ((seen, drawn), (unseen, drawn), (drawn, DATA.data))
            runs.append([share_near(*pair, DATA.pixel / 2) for pair in pairs])
        yield [name, *over_runs(runs, (1, 1, 1))]


@tabled
def matching(seeds: int) -> Rows:
    """Score matching three ways at one level, sigma = 0.3, and where it has no minimum."""
    yield "objective", "error, share of the score's square", "last loss", "seconds"
    sigma, exact = 0.3, denoisers.Exact(DATA.data)
    trace = partial(objectives.score_matching, sigma)
    ways = {
        "denoising, (32), as L_simple": objectives.simple(lambda u: 0 * u + sigma),
        "exact trace, (41)": trace(blur=sigma),
        "sliced, (42)": trace(blur=sigma, sliced=True),
        "exact trace, on the points themselves": trace(blur=0),
    }
    for name, objective in ways.items():
        runs = []
        for seed in range(seeds):
            trained, began = RECIPES["simple"].untrained(seed), perf_counter()
            loss = train(trained, objective, DATA.data, steps=2000, seed=seed)
            seconds = perf_counter() - began
            x = DATA.data.repeat(10, 1)
            x = x + sigma * normal_like(x, seeded(DATA, seed))
            level = x.new_tensor(sigma)
            true = (x - exact(x, level)) / level
            with torch.no_grad():
                off = (trained(x, level) - true).square().mean() / true.square().mean()
            runs.append((off.item(), loss[-300:].mean().item(), seconds))
        yield [name, *over_runs(runs, (3, 2, 0))]


@tabled
def guidance(seeds: int) -> Rows:
    """Exact guidance by w to the points on the right, which are the target for every w."""
    yield ["method", "steps", "w", *NAMES]
    part = replace(DATA, data=DATA.data[DATA.data[:, 0] > 0.5])
    of_all, of_part = denoisers.Exact(DATA.data), denoisers.Exact(part.data)
    methods = {
        "heun 40": (levels.karras(*ENDS, 40), samplers.heun),
        "heun 300": (levels.karras(*ENDS, 300), samplers.heun),
        "ddpm-linear 1000": (LINEAR, samplers.ddpm),
        "langevin 10x100": (levels.geometric(), samplers.langevin),
        "langevin 10x400": (levels.geometric(), partial(samplers.langevin, steps=400)),
    }
    columns = [[("the points on the right", part.in_main_units(part.data))]]
    for name, (sigmas, sampler) in methods.items():
        columns.append([])
        for w in (0, 1, 3):

            def guided(y: Tensor, sigma: Tensor, w: int = w) -> Tensor:
                x_start = of_part(y, sigma)
                return x_start + w * (x_start - of_all(y, sigma))

            draws = [_drawn(guided, sigmas, seed, sampler) for seed in range(seeds)]
            columns[-1].append((f"{name}\nw = {w}", part.in_main_units(draws[0])))
            runs = (measured(part, drawn) for drawn in draws)
            yield [*name.split(), f"{w}", *over_runs(runs, DIGITS)]
    save_png(plot_clouds(columns), DOCS / "guidance.png")
