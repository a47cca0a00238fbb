"""The tables about points. Seeds are those of training and of sampling."""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from comparison.dataset import draw_noise, measured, seeded
from comparison.denoisers import (
    HYBRID,
    Exact,
    best_variance,
    learned_variance,
)
from comparison.levels import geometric, linear, respaced
from comparison.measures import share_near
from comparison.methods import chosen
from comparison.networks import PointNetwork
from comparison.objectives import (
    bound_terms,
    denoising,
    score_matching,
    uniform_level,
)
from comparison.rows import columns, digits, names, over, over_runs
from comparison.samplers import ddpm
from comparison.tables import Rows, dataset, drawn_by, network, over_seeds, tabled
from comparison.training import RECIPES, fit, train

DATA = dataset("points")
SAMPLES = DATA.samples
DIGITS = digits(DATA)


def _noise(seed: int, count: int = SAMPLES) -> Tensor:
    return draw_noise(DATA, count, seeded(DATA, seed))


@tabled("2,000 draws from", *names(DATA))
def references(seeds: int) -> Rows:
    """Ten draws of fresh data, of noise, and of what the Frechet distance cannot tell."""
    factor = torch.linalg.cholesky(DATA.data.T.cov())
    draws: dict[str, Callable[[int], Tensor]] = {
        "fresh data": partial(DATA.draw, SAMPLES),
        "noise": _noise,
        "N(its mean, its covariance)": lambda seed: _noise(seed) @ factor.T,
    }
    for name, draw in draws.items():
        runs = (measured(DATA, draw(seed)) for seed in range(10))
        yield [name, *over_runs(runs, DIGITS)]


@tabled(*columns(DATA))
def points(seeds: int) -> Rows:
    """The command's table: all methods, two networks for all."""
    yield from over_seeds(DATA, chosen(DATA), seeds)


@tabled(*columns(DATA))
def own(seeds: int) -> Rows:
    """The survey's tables 1 and 2: each method with the network that its paper trains."""
    wanted = ["ddpm-linear", "ddpm-cosine", "ddim-linear", "ddim-cosine"]
    wanted += ["langevin", "langevin-denoised", "ve-pc", "vp-em", "heun"]
    wanted += ["edm", "rectified-flow"]
    yield from over_seeds(DATA, chosen(DATA, wanted, own=True), seeds, ("fresh data",))


@tabled("denoiser", "variance", *names(DATA), "bound, t = 2..50, nats/dim")
def covariance(seeds: int) -> Rows:
    """Learned covariance, (20): DDPM 50 with each variance, and the bound's terms, (16)."""
    levels = respaced(linear(), 50)

    def run(kind: str, name: str, seed: int) -> list[float]:
        if kind == "exact":
            denoiser = Exact(DATA.data)
            own_variance = best_variance(denoiser)
        else:
            trained = network("points", seed, "hybrid")
            denoiser = HYBRID.denoiser(trained)
            own_variance = learned_variance(trained, levels)
        variance = {"beta": "beta", "beta~": "posterior"}.get(name, own_variance)
        terms = bound_terms(denoiser, levels, DATA.data, variance, seeded(DATA, seed))
        drawn = drawn_by(ddpm, denoiser, levels, seed, variance=variance)
        return [*measured(DATA, drawn), terms.sum().item()]

    for kind, own_name in (("exact", "the best"), ("learned", "learned")):
        for name in ("beta", "beta~", own_name):
            runs = (run(kind, name, seed) for seed in range(seeds))
            yield [kind, name, *over_runs(runs, (*DIGITS, 3))]


@tabled("within half a pixel", "coverage of seen points", "of unseen", "precision")
def half(seeds: int) -> Rows:
    """Trained on every second point: what is covered of those seen and of the others."""
    seen, unseen = DATA.data[::2], DATA.data[1::2]
    part = DATA._replace(data=seen)

    def blurred_points(seed: int) -> Tensor:
        generator = seeded(DATA, seed)
        index = torch.randint(len(seen), (SAMPLES,), generator=generator)
        return seen[index] + 0.3 * DATA.pixel * draw_noise(DATA, SAMPLES, generator)

    def network_draws(seed: int) -> Tensor:
        denoiser = RECIPES["points"].target.denoiser(fit("points", part, seed=seed))
        return drawn_by(ddpm, denoiser, linear(), seed)

    ways = {
        "network": network_draws,
        "exact score of the seen": partial(drawn_by, ddpm, Exact(seen), linear()),
        "the seen, blurred by 0.3 px": blurred_points,
        "fresh data": partial(DATA.draw, SAMPLES),
    }
    for name, way in ways.items():
        runs = []
        for drawn in map(way, range(seeds)):
            pairs = ((seen, drawn), (unseen, drawn), (drawn, DATA.data))
            runs.append([100 * share_near(*pair, DATA.pixel / 2) for pair in pairs])
        yield [name, *over_runs(runs, (1, 1, 1))]


@tabled("objective", "error, share of the score's square", "loss at the end", "seconds")
def matching(seeds: int) -> Rows:
    """Score matching three ways at one level, sigma = 0.3, and where it has no minimum."""
    sigma = 0.3
    exact = Exact(DATA.data)
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
            loss = train(trained, objective, DATA.data, steps=2000, seed=seed)
            seconds.append(perf_counter() - began)
            x = DATA.data.repeat(10, 1)
            x = x + sigma * _noise(seed, len(x))
            level = x.new_tensor(sigma)
            true = (x - exact(x, level)) / level
            with torch.no_grad():
                off = (trained(x, level) - true).square().mean()
            errors.append((off / true.square().mean()).item())
            losses.append(loss[-300:].mean().item())
        yield [name, over(errors, 3), over(losses, 2), f"{min(seconds):.0f}"]
