"""The tables about points. Seeds are those of training and of sampling."""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from comparison.laws import seeded
from comparison.measures import share_near
from comparison.methods import chosen
from comparison.networks import PointNetwork
from comparison.objectives import denoising, score_matching, uniform_level
from comparison.predictors import (
    Exact,
    best_variance,
    bound_terms,
    from_hybrid,
    learned_variance,
)
from comparison.processes import geometric, linear, respaced
from comparison.rows import columns, draw_noise, over, spread
from comparison.samplers import ddpm
from comparison.tables import Rows, drawn_by, law, network, over_seeds, tabled
from comparison.training import RECIPES, fit, train

LAW = law("points")
SAMPLES = LAW.samples
DIGITS = tuple(LAW.measures.values())


def _noise(seed: int, count: int = SAMPLES) -> Tensor:
    return draw_noise(LAW, count, seeded(LAW, seed))


@tabled("2,000 draws from", *LAW.measures)
def floor(seeds: int) -> Rows:
    """Ten draws of the floor, of the ceiling, and of what Frechet's distance cannot tell."""
    factor = torch.linalg.cholesky(LAW.data.T.cov())
    draws: dict[str, Callable[[int], Tensor]] = {
        "the law (floor)": partial(LAW.draw, SAMPLES),
        "noise (ceiling)": _noise,
        "N(its mean, its covariance)": lambda seed: _noise(seed) @ factor.T,
    }
    for name, draw in draws.items():
        runs = (LAW.measure(draw(seed)) for seed in range(10))
        yield [name, *spread(runs, DIGITS)]


@tabled(*columns(LAW))
def points(seeds: int) -> Rows:
    """The command's table: all methods, two networks for all."""
    yield from over_seeds(LAW, chosen(LAW), seeds)


@tabled(*columns(LAW))
def own(seeds: int) -> Rows:
    """The survey's tables 1 and 2: each method with the network that its paper trains."""
    names = ["ddpm-linear", "ddpm-cosine", "ddim-linear", "ddim-cosine"]
    names += ["langevin", "langevin-denoised", "ve-pc", "vp-em", "flow"]
    names += ["edm", "rectified-flow"]
    yield from over_seeds(LAW, chosen(LAW, names, own=True), seeds, ("floor",))


@tabled("predictor", "variance", *LAW.measures, "bound, t = 2..50, nats/dim")
def covariance(seeds: int) -> Rows:
    """Learned covariance, (20): DDPM 50 with each variance, and the bound's terms, (16)."""
    process = respaced(linear(), 50)

    def run(kind: str, name: str, seed: int) -> list[float]:
        if kind == "exact":
            predictor = Exact(LAW.data)
            own_variance = best_variance(predictor, process)
        else:
            trained = network("points", seed, "hybrid")
            predictor = from_hybrid(trained)
            own_variance = learned_variance(trained, process)
        variance = {"beta": "beta", "beta~": "posterior"}.get(name, own_variance)
        terms = bound_terms(predictor, process, LAW.data, variance, seeded(LAW, seed))
        drawn = drawn_by(ddpm, predictor, process, seed, variance=variance)
        return [*LAW.measure(drawn), terms.sum().item()]

    for kind, own_name in (("exact", "the best"), ("learned", "learned")):
        for name in ("beta", "beta~", own_name):
            runs = (run(kind, name, seed) for seed in range(seeds))
            yield [kind, name, *spread(runs, (*DIGITS, 3))]


@tabled("within half a pixel", "seen points covered", "unseen", "on drawing")
def half(seeds: int) -> Rows:
    """Trained on every second point: what is covered of those seen and of the others."""
    seen, unseen = LAW.data[::2], LAW.data[1::2]
    part = LAW._replace(data=seen)

    def blurred_points(seed: int) -> Tensor:
        generator = seeded(LAW, seed)
        index = torch.randint(len(seen), (SAMPLES,), generator=generator)
        return seen[index] + 0.3 * LAW.pixel * draw_noise(LAW, SAMPLES, generator)

    def network_draws(seed: int) -> Tensor:
        predictor = RECIPES["points"].predictor(fit("points", part, seed=seed))
        return drawn_by(ddpm, predictor, linear(), seed)

    ways = {
        "network": network_draws,
        "exact score of the seen": partial(drawn_by, ddpm, Exact(seen), linear()),
        "the seen, blurred by 0.3 px": blurred_points,
        "the law (floor)": partial(LAW.draw, SAMPLES),
    }
    for name, way in ways.items():
        runs = []
        for drawn in map(way, range(seeds)):
            pairs = ((seen, drawn), (unseen, drawn), (drawn, LAW.data))
            runs.append([100 * share_near(*pair, LAW.pixel / 2) for pair in pairs])
        yield [name, *spread(runs, (1, 1, 1))]


@tabled("objective", "error, share of the score's square", "loss at the end", "seconds")
def matching(seeds: int) -> Rows:
    """Score matching three ways at one level, sigma = 0.3, and where it has no minimum."""
    sigma = 0.3
    exact = Exact(LAW.data)
    ways = {
        "denoising, (32)": denoising(uniform_level(geometric(1, sigma, sigma))),
        "exact trace, (41)": score_matching(sigma, blur=sigma),
        "sliced, (42)": score_matching(sigma, blur=sigma, sliced=True),
        "exact trace, on the points themselves": score_matching(sigma, blur=0),
    }
    for name, objective in ways.items():
        errors, losses, seconds = [], [], []
        for seed in range(seeds):
            trained = PointNetwork(seed=seed)
            began = perf_counter()
            loss = train(trained, objective, LAW.data, steps=2000, seed=seed)
            seconds.append(perf_counter() - began)
            x = LAW.data.repeat(10, 1)
            x = x + sigma * _noise(seed, len(x))
            one, noise = x.new_ones(()), x.new_tensor(sigma)
            true = exact(x, one, noise)
            with torch.no_grad():
                off = (trained(x, one, noise) - true).square().mean()
            errors.append((off / true.square().mean()).item())
            losses.append(loss[-300:].mean().item())
        yield [name, over(errors, 3), over(losses, 2), f"{min(seconds):.0f}"]
