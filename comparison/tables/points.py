"""The tables about points. Seeds are those of training and of sampling."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from comparison import denoisers, levels, objectives, samplers
from comparison.dataset import draw_noise, measured, seeded
from comparison.denoisers import Denoiser
from comparison.measures import share_near
from comparison.rows import chosen, over_runs
from comparison.tables import Rows, dataset, network, over_seeds, tabled
from comparison.training import RECIPES, fit, train

DATA = dataset("points")
SAMPLES = DATA.samples
NAMES, DIGITS = zip(*((measure.name, measure.digits) for measure in DATA.measures))


def _noise(seed: int, count: int) -> Tensor:
    return draw_noise(DATA, count, seeded(DATA, seed))


def _drawn(denoiser: Denoiser, sigmas: Tensor, seed: int, **how: Any) -> Tensor:
    how["generator"] = seeded(DATA, seed)
    y = sigmas[0].item() * draw_noise(DATA, SAMPLES, how["generator"])
    return samplers.last(samplers.ddpm(denoiser, sigmas, y, **how))


@tabled
def references(seeds: int) -> Rows:
    """Ten draws of fresh data, of noise, and of what the Frechet distance cannot tell."""
    yield ["2,000 draws from", *NAMES]
    factor = torch.linalg.cholesky(DATA.data.T.cov())
    draws: dict[str, Callable[[int], Tensor]] = {
        "fresh data": partial(DATA.draw, SAMPLES),
        "noise": partial(_noise, count=SAMPLES),
        "N(its mean, its covariance)": lambda seed: _noise(seed, SAMPLES) @ factor.T,
    }
    for name, draw in draws.items():
        runs = (measured(DATA, draw(seed)) for seed in range(10))
        yield [name, *over_runs(runs, DIGITS)]


@tabled
def points(seeds: int) -> Rows:
    """The command's table: all methods, two networks for all."""
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
    sigmas, exact = levels.respaced(levels.linear(), 50), denoisers.Exact(DATA.data)

    def run(kind: str, name: str, seed: int) -> list[float]:
        if kind == "exact":
            denoiser, own_variance = exact, denoisers.best_variance(exact)
        else:
            trained = network("points", seed, "hybrid")
            denoiser = denoisers.HYBRID.denoiser(trained)
            own_variance = denoisers.learned_variance(trained, sigmas)
        variance = {"beta": "beta", "beta~": "posterior"}.get(name, own_variance)
        of = denoiser, sigmas, DATA.data, variance, seeded(DATA, seed)
        terms = objectives.bound_terms(*of)
        drawn = _drawn(denoiser, sigmas, seed, variance=variance)
        return [*measured(DATA, drawn), terms.sum().item()]

    for kind, own_name in (("exact", "the best"), ("learned", "learned")):
        for name in ("beta", "beta~", own_name):
            runs = (run(kind, name, seed) for seed in range(seeds))
            yield [kind, name, *over_runs(runs, (*DIGITS, 3))]


@tabled
def half(seeds: int) -> Rows:
    """Trained on every second point: what is covered of those seen and of the others."""
    yield "within half a pixel", "coverage of seen points", "of unseen", "precision"
    seen, unseen = DATA.data[::2], DATA.data[1::2]
    part, line = replace(DATA, data=seen), levels.linear()

    def blurred(seed: int) -> Tensor:
        noise = 0.3 * DATA.pixel * _noise(1000 + seed, SAMPLES)
        return part.draw(SAMPLES, seed) + noise

    def learned(seed: int) -> Tensor:
        trained = fit("points", part, seed=seed)
        return _drawn(RECIPES["points"].target.denoiser(trained), line, seed)

    draws: dict[str, Callable[[int], Tensor]] = {
        "network": learned,
        "exact score of the seen": partial(_drawn, denoisers.Exact(seen), line),
        "the seen, blurred by 0.3 px": blurred,
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
            x, level = x + sigma * _noise(seed, len(x)), x.new_tensor(sigma)
            true = (x - exact(x, level)) / level
            with torch.no_grad():
                off = (trained(x, level) - true).square().mean() / true.square().mean()
            runs.append((off.item(), loss[-300:].mean().item(), seconds))
        yield [name, *over_runs(runs, (3, 2, 0))]
