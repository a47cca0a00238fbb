"""The tables about pictures. Seeds are those of sampling, of one training."""

from collections import defaultdict
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.special import ndtr

from comparison import samplers
from comparison.dataset import Method, draw_noise, seeded
from comparison.denoisers import Exact
from comparison.figures import plot_lines, save_png
from comparison.levels import LINEAR, respaced
from comparison.measures import frechet, nearest, principal
from comparison.pictures import CUT_COSINE, GREYS, METHODS, random_poses
from comparison.posterior import posterior_variance
from comparison.rows import chosen, measured, over, over_runs, run
from comparison.samplers import normal_like
from comparison.tables import DOCS, Rows, dataset, network, over_seeds, tabled
from comparison.training import RECIPES

# A row draws MANY, of which FITTED are held against their nearest poses; the survey FEW.
MANY, FITTED, FEW = 2000, 300, 100
KNOWN = {(m.name, m.steps): m._replace(denoisers=("network",)) for m in METHODS}
DDIM = [KNOWN["ddim-cosine", steps] for steps in ("50", "10")]


def _drawn(method: Method, count: int, seed: int) -> Tensor:
    known = partial(network, "pictures", 0)
    return run(method, dataset("pictures"), count, seed, known).samples


@tabled
def pictures(seeds: int) -> Rows:
    """The command's table."""
    faces = replace(dataset("pictures"), fitted=FITTED, samples=MANY)
    known = partial(network, "pictures", 0)
    yield from over_seeds(faces, chosen(faces), seeds, networks=known)


@tabled
def survey(seeds: int) -> Rows:
    """The survey's tables 1 and 2, and what it could not compare, from 100 samples; networks
    have the shorter training; those of starred rows have the command's recipe.
    """

    def networks(name: str) -> nn.Module:
        return network("pictures", 0, name, RECIPES[name].steps)

    methods, schedules = [], {"linear": LINEAR, "cosine": CUT_COSINE}
    for schedule, short, name in product(schedules, (False, True), ("ddpm", "ddim")):
        row = respaced(schedules[schedule], 50) if short else schedules[schedule]
        words = f"{name}-{schedule}", f"{len(row) - 1}", row, getattr(samplers, name)
        clip = GREYS if name == "ddpm" else None
        methods.append(Method(*words, f"pictures-{schedule}", clip=clip))
    methods.append(KNOWN["ddpm-stale-alphas", "50"]._replace(own="pictures-linear"))
    for method in (DDIM[0], KNOWN["langevin", "10 x 100"], KNOWN["ve-pc", "200"]):
        methods.append(method._replace(name=f"{method.name}*"))
    faces = replace(dataset("pictures"), samples=FEW)
    yield from over_seeds(faces, methods, seeds, ["fresh data"], networks)


@tabled
def counts(seeds: int) -> Rows:
    """Frechet distance of fresh pictures and of a network's to the data; ten draws each."""
    components, faces = (16, 128, 1024), dataset("pictures")
    yield ["pictures", *(f"frechet, {count} components" for count in components)]

    draws = {f"{n:,} fresh": partial(faces.draw, n) for n in (50, 100, 300, 1000, 2000)}
    draws |= {f"{FEW} by DDIM {m.steps}": partial(_drawn, m, FEW) for m in DDIM}
    axes = [principal(faces.reference, count) for count in components]
    for name, draw in draws.items():
        ten = [draw(seed) for seed in range(10)]
        distances = ([frechet(x @ a, faces.reference @ a) for x in ten] for a in axes)
        yield [name, *(over(values, 2) for values in distances)]


@tabled
def poses(seeds: int) -> Rows:
    """Copies: how far fitted poses are from the nearest training and the nearest fresh one;
    and the parts of the variance ratio. Writes docs/copies.png.
    """
    faces, among = dataset("pictures"), ("training", "fresh")
    names = (f"within 0.05 of {these}, %" for these in among)
    yield ["pictures", *names, "variance of drawings", "gain", "remainder", "ink"]
    apart = torch.tensor([10.0, 1, 1, 1, 1, 1])  # no pose is near a mirrored one
    total, rows, lines = faces.reference.var(dim=0).sum(), defaultdict(list), {}
    grid = torch.arange(0, 2, 0.05, dtype=torch.float64)

    def drawn_as(name: str, x: Tensor) -> Tensor:
        own = torch.cat([faces.fit_poses(some)[0] for some in x.split(100)])
        pairs = ((apart * own, apart * known) for known in faces.poses[:2])
        distances = torch.stack([nearest(*pair)[0] for pair in pairs])
        within = (distances[..., None] <= grid).double().mean(dim=1)
        lines.setdefault(name, dict(zip(among, within)))
        drawn = faces.at(own)
        of_x, of_drawn = (z - z.mean(dim=0) for z in (x, drawn))
        gain = (of_x * of_drawn).sum() / of_drawn.square().sum()
        spread = drawn.var(dim=0), (x - gain * drawn).var(dim=0)
        variance, remainder = (z.sum() / total for z in spread)
        near, ink = 100 * within[:, 1], (1 - x).sum() / (1 - drawn).sum()
        rows[name].append([*map(float, (*near, variance, gain, remainder, ink))])
        return drawn

    for seed in range(seeds):
        drawn_as("fresh data", faces.draw(MANY, seed))
        for method in (DDIM[0], KNOWN["heun", "18"]):
            x = _drawn(method, MANY, seed)
            residual = x - drawn_as(f"{method.name} {method.steps}", x)
        drawn_as("training, with heun's residuals", faces.data[:MANY] + residual)
    for name, runs in rows.items():
        yield [name, *over_runs(runs, (1, 1, 3, 3, 3, 3))]
    axes = {"xlabel": "distance to the nearest pose", "ylabel": "share of pictures"}
    save_png(plot_lines(grid.tolist(), lines, **axes), DOCS / "copies.png")


@tabled
def errors(seeds: int) -> Rows:
    """Mean squared errors on fresh pictures by sigma: of the exact denoiser of the training
    data, of the network, and the least, of 100 pictures. Writes docs/errors.png.
    """
    faces, trained = dataset("pictures"), network("pictures", 0, "pictures")
    learned, copier = RECIPES["pictures"].target.denoiser(trained), Exact(faces.data)
    names = ["exact denoiser", "network", "network, training pictures", "best possible"]
    yield ["sigma", *names, "effective draws"]
    asked = (copier, faces.fresh), (learned, faces.fresh), (learned, faces.data)

    def run(sigma: float, seed: int) -> list[float]:
        generator = seeded(faces, seed)
        noise = sigma * normal_like(faces.fresh, generator)
        off = (of(x + noise, noise.new_tensor(sigma)) - x for of, x in asked)
        pairs = zip(faces.poses[1][:FEW], faces.fresh + noise)
        some = [posterior_variance(faces.at, *pair, sigma, generator) for pair in pairs]
        least, draws = torch.tensor(some).unbind(dim=1)
        values = [z.square().mean() for z in off] + [least.mean(), draws.median()]
        return [*map(float, values)]

    sigmas, lines = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0), []
    for sigma in sigmas:
        runs = [run(sigma, seed) for seed in range(seeds)]
        yield [sigma, *over_runs(runs, (5, 5, 5, 5, 0))]
        lines.append(torch.tensor(runs).mean(dim=0)[:4].tolist())
    panels = {"mean squared error on fresh pictures": dict(zip(names, zip(*lines)))}
    axes = {"xlabel": "sigma", "xscale": "log", "yscale": "log"}
    save_png(plot_lines(sigmas, panels, **axes), DOCS / "errors.png")


@tabled
def degradation(seeds: int) -> Rows:
    """Fresh pictures spoilt in five ways: by how many standard deviations of ten draws of
    fresh pictures each measure moves. Writes docs/degradation.png.
    """
    faces = replace(dataset("pictures"), fitted=FEW)
    names = [measure.name for measure in faces.measures]
    yield ["pictures", "strength", *names]
    fresh = torch.tensor([measured(faces, faces.draw(MANY, k)) for k in range(10)])
    mean, deviation = fresh.mean(dim=0), fresh.std(dim=0)
    side, blur = faces.side, nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    numbers, strengths = torch.tensor([0.0, 1, 1, 1, 1, 1]), (0.0, 0.05, 0.1, 0.2, 0.4)
    spoilt: dict[str, Any] = {
        "grey noise": lambda x, s, noise, *_: x + s / 2 * noise,
        "blur": lambda x, s, *_: x.lerp(blur(x.view(-1, 1, side, side)).view_as(x), s),
        "paler ink": lambda x, s, *_: x + s * (1 - x),
        "narrower poses": lambda x, s, _, own: faces.at(own * (1 - s * numbers)),
        "copies": lambda x, s, z, _: faces.data[: len(x)].where(ndtr(z[:, :1]) < s, x),
    }

    bases, panels = [], {}
    for seed in range(seeds):
        own = random_poses(MANY, seeded(faces, 2000 + seed))
        noise = draw_noise(faces, MANY, seeded(faces, seed))
        bases.append((faces.at(own), noise, own))
    for name in spoilt:
        lines = []
        for s in strengths:
            drawn = (spoilt[name](x, s, noise, own) for x, noise, own in bases)
            values = torch.tensor([measured(faces, x) for x in drawn])
            moved = (values - mean) / deviation
            yield [name, s, *over_runs(moved.tolist(), [1] * len(names))]
            lines.append(moved.mean(dim=0).tolist())
        panels[name] = dict(zip(names, zip(*lines)))
    axes = {"xlabel": "strength", "ylabel": "change, in deviations", "yscale": "symlog"}
    save_png(plot_lines(strengths, panels, **axes), DOCS / "degradation.png")
