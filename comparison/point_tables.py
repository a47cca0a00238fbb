"""The tables and figures of docs/comparison.md that are about points.

A figure over seeds is their mean, with half the range between the lowest and the
highest.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor

from comparison.data import points
from comparison.figures import (
    DOCS,
    film_sheets,
    over,
    plot_clouds,
    plot_field,
    plot_half,
    plot_mixture,
    plot_paths,
    save_gif,
    save_png,
    show,
    show_rows,
    spread,
)
from comparison.measures import bound_terms, frechet, share_near
from comparison.methods import (
    NAMES,
    draw_floor,
    draw_noise,
    film_states,
    grouped,
    measures,
    seeded,
    table,
)
from comparison.networks import PointNetwork
from comparison.predictors import (
    Exact,
    Predictor,
    best_variance,
    blurred,
    clipped,
    from_hybrid,
    learned_variance,
)
from comparison.processes import Process, geometric, kept_rows, linear, respaced
from comparison.samplers import (
    ddim,
    ddim_encode,
    ddpm,
    langevin,
    last,
    normal_like,
    probability_flow,
    slerp,
)
from comparison.training import (
    STEPS,
    denoising,
    fit,
    load,
    save,
    score_matching,
    train,
    uniform_level,
)
from diffusion import posterior_mean_variance

LAW = points()
SAMPLES = 2000
MEASURES = ["on drawing", "covered", "sliced", "frechet"]


@cache
def network(name: str, seed: int = 0) -> PointNetwork:
    """Return the network of a recipe and a seed, from its file or trained once."""
    return load(name, LAW, seed=seed) or fit(name, LAW, seed=seed)


def drawn_by(
    sampler: Callable[..., Iterator[Tensor]],
    predictor: Predictor,
    process: Process,
    seed: int,
    **options: object,
) -> Tensor:
    """Return what a sampler draws from N(0, I), both by one seed."""
    options["generator"] = seeded(LAW, seed)
    x_T = draw_noise(LAW, SAMPLES, options["generator"])
    return last(sampler(predictor, process, x_T, **options))


def show_measures(
    head: list[str], ways: dict[tuple[str, ...], Callable[[int], Tensor]], seeds: int
) -> None:
    """Print the measures of what each way draws, called with a seed, over seeds."""

    def rows() -> Iterator[list[str]]:
        for names, way in ways.items():
            runs = (measures(way(seed), LAW) for seed in range(seeds))
            yield [*names, *spread(runs)]

    show(head + MEASURES, rows())


# The tables


def weights(seeds: int) -> None:
    """Train the networks that the command uses on points, and write their weights."""
    for name in ("simple", "hybrid"):
        began = perf_counter()
        save(name, fit(name, LAW), LAW)
        print(f"{name}: {perf_counter() - began:.0f} s of training")


def floor(seeds: int) -> None:
    """Ten draws of 2,000 points from the law itself, and from N(0, I)."""

    def rows() -> Iterator[list[str]]:
        for name, draw in (
            ("the law (floor)", draw_floor),
            ("noise (ceiling)", draw_noise),
        ):
            runs = zip(
                *(measures(draw(LAW, SAMPLES, seeded(LAW, k)), LAW) for k in range(10))
            )
            cells = [
                f"{sum(v) / len(v):.{d}f} ({min(v):.{d}f} to {max(v):.{d}f})"
                for v, d in zip(runs, (1, 1, 2, 2))
            ]
            yield [name, *cells]

    show(["2,000 draws from", *MEASURES], rows())


def _methods(names: list[str], seeds: int, own: bool, figure: str = "") -> None:
    """Print the rows of methods over seeds of training and of sampling."""
    runs = []
    for seed in range(seeds):
        pairs = list(table(LAW, names, SAMPLES, seed, partial(network, seed=seed), own))
        runs.append([row for row, _ in pairs])
        if figure and seed == 0:
            save_png(plot_clouds(grouped(pairs), LAW), DOCS / figure)

    show_rows(runs)


def methods_table(seeds: int) -> None:
    """All methods, two networks for all: the command's table, over seeds."""
    _methods(NAMES, seeds, own=False, figure="points.png")


def own(seeds: int) -> None:
    """The survey's tables 1 and 2: each method with the network that its paper trains."""
    names = ["floor", "ddpm-linear", "ddpm-cosine", "ddim-linear", "ddim-cosine"]
    names += ["langevin", "langevin-denoised", "ve-pc", "vp-em", "flow"]
    _methods(names, seeds, own=True)


def film(seeds: int) -> None:
    """docs/points.gif: four samplers side by side, with the network."""
    paths = film_states(LAW, SAMPLES, 0, network)
    save_gif(film_sheets(paths, LAW), DOCS / "points.gif")


def low(seeds: int) -> None:
    """Small t drawn more often: DDPM 1000, networks of as many and half as many steps."""

    def way(name: str, steps: int, seed: int) -> Tensor:
        return drawn_by(ddpm, fit(name, LAW, steps=steps, seed=seed), linear(), seed)

    draws = {"t uniform": "simple", "t = T u^2": "low"}
    ways = {
        (draw, f"{steps:,}"): partial(way, name, steps)
        for draw, name in draws.items()
        for steps in (STEPS // 2, STEPS)
    }
    ways["VE SDE, s uniform", f"{STEPS:,}"] = partial(way, "ve", STEPS)
    show_measures(["L_simple with", "training steps"], ways, seeds)


def covariance(seeds: int) -> None:
    """Learned covariance, (20): DDPM 50 with each variance, and the bound's terms, (16)."""
    process = respaced(linear(), 50)

    def run(kind: str, name: str, seed: int) -> list[float]:
        if kind == "exact":
            predictor = Exact(LAW.data)
            own_variance = best_variance(predictor, process)
        else:
            trained = network("hybrid", seed)
            predictor = from_hybrid(trained)
            own_variance = learned_variance(trained, process)
        variance = {"beta": "beta", "beta~": "posterior"}.get(name, own_variance)
        terms = bound_terms(predictor, process, LAW.data, variance, seeded(LAW, seed))
        drawn = drawn_by(ddpm, predictor, process, seed, variance=variance)
        return [*measures(drawn, LAW), terms.sum().item()]

    def rows() -> Iterator[list[str]]:
        for kind, own_name in (("exact", "the best"), ("learned", "learned")):
            for name in ("beta", "beta~", own_name):
                runs = [run(kind, name, seed) for seed in range(seeds)]
                yield [kind, name, *spread(runs, (1, 1, 2, 2, 3))]

    show(["predictor", "variance", *MEASURES, "bound, t = 2..50, nats/dim"], rows())


def errata(seeds: int) -> None:
    """What goes wrong with a step, each beside the right one, by both predictors."""
    full, spaced = linear(), respaced(linear(), 50)
    posterior = partial(ddpm, variance="posterior")
    kept_alphas = partial(ddpm, rows=kept_rows(1000, 50).tolist())
    samplers = {
        "DDPM 50, respaced, beta": (ddpm, spaced),
        "DDPM 50, respaced, beta~": (posterior, spaced),
        "DDPM 50, each level's own alpha": (kept_alphas, full),
        "DDPM 1000, beta~": (posterior, full),
        "DDPM 1000, beta~, (9) as printed": (_misprinted, full),
        "DDPM 1000, beta~, x_0 clamped to [0, 1]": (_clamped, full),
        "DDIM 10": (ddim, respaced(full, 10)),
        "DDIM 10, strides of 111, looks back 100": (_looks_back, full),
    }
    ways = {
        (name, kind): partial(drawn_by, sampler, predictor, process)
        for kind, predictor in (
            ("exact", Exact(LAW.data)),
            ("learned", network("simple")),
        )
        for name, (sampler, process) in samplers.items()
    }
    show_measures(["sampler", "predictor"], ways, seeds)


@torch.no_grad()
def _misprinted(
    predictor: Predictor, process: Process, x_T: Tensor, *, generator: torch.Generator
) -> Iterator[Tensor]:
    """DDPM with beta~, the mean by (9) as printed: alpha_{t-1} for abar_{t-1}."""
    yield x_T
    alphas, alpha_bars = process.schedule()
    x = x_T
    for t in reversed(range(process.steps)):
        signal, noise = process.at(t, x)
        x_start = (x - noise * predictor(x, signal, noise)) / signal
        if t:
            x_start = x_start * (alphas[t - 1] / alpha_bars[t - 1]).sqrt().to(x)
        mean, variance = posterior_mean_variance(x_start, x, t, alphas, alpha_bars)
        x = mean + variance.sqrt() * normal_like(x, generator)
        yield x


def _clamped(
    predictor: Predictor, process: Process, x_T: Tensor, **options: object
) -> Iterator[Tensor]:
    """DDPM with beta~, x_0 kept in the unit square, as if it were a picture's greys."""
    unit = clipped(predictor, LAW.data.new_zeros(2), LAW.data.new_ones(2))
    return ddpm(unit, process, x_T, variance="posterior", **options)


def _looks_back(
    predictor: Predictor, process: Process, x_T: Tensor, **options: object
) -> Iterator[Tensor]:
    """DDIM 10 whose steps are 111 levels apart, yet lead to the level 100 below."""
    yield x_T
    x = x_T
    for t in reversed(kept_rows(process.steps, 10).tolist()):
        pair = process.rows(torch.tensor([t - 100, t] if t else [t]))
        x = next(islice(ddim(predictor, pair, x), 1, None))
        yield x


def width(seeds: int) -> None:
    """How wide what the exact score draws is, and how far it is from the points."""
    full, spaced = linear(), respaced(linear(), 50)
    samplers = {
        "DDPM 1000": (ddpm, full),
        "DDPM 50, beta~": (partial(ddpm, variance="posterior"), spaced),
        "flow 18": (probability_flow, full),
        "DDIM 10": (ddim, respaced(full, 10)),
        "DDIM 10, strides of 111, looks back 100": (_looks_back, full),
    }

    def run(name: str, seed: int) -> tuple[float, float]:
        sampler, process = samplers[name]
        drawn = drawn_by(sampler, Exact(LAW.data), process, seed)
        nearest = torch.cdist(drawn, LAW.data).amin(dim=1).median() / LAW.pixel
        return drawn.square().mean().sqrt().item(), nearest.item()

    def rows() -> Iterator[list[str]]:
        for name in samplers:
            yield [name, *spread((run(name, seed) for seed in range(seeds)), (3, 2))]

    head = [
        "sampler",
        "root mean square (the law: 1)",
        "median px to the nearest point",
    ]
    show(head, rows())


def blind(seeds: int) -> None:
    """Frechet's distance: what it does not see, and how it falls with the samples."""
    mean, factor = LAW.data.mean(dim=0), torch.linalg.cholesky(LAW.data.T.cov())

    def drawing(seed: int, n: int = SAMPLES) -> Tensor:
        return draw_floor(LAW, n, seeded(LAW, seed))

    def gaussian(seed: int) -> Tensor:
        return mean + draw_noise(LAW, SAMPLES, seeded(LAW, seed)) @ factor.T

    show_measures(
        ["2,000 draws from"],
        {
            ("the drawing",): drawing,
            ("N(its mean, its covariance)",): gaussian,
        },
        10,
    )
    waves = PointNetwork().waves[:, ::2]

    def features(x: Tensor) -> Tensor:
        return torch.cat([(x @ waves).sin(), (x @ waves).cos()], dim=1)

    def rows() -> Iterator[list[str]]:
        for n in (50, 100, 300, 1000, 3000, 10_000):
            twice = [
                (drawing(2 * seed, n), drawing(2 * seed + 1, n)) for seed in range(10)
            ]
            px = [frechet(a / LAW.pixel, b / LAW.pixel) for a, b in twice]
            many = [frechet(features(a), features(b)) for a, b in twice]
            yield [f"{n:,}", over(px, 2), over(many, 3)]

    wide = f"{features(LAW.data).shape[1]} Fourier features"
    show(["samples", "frechet, coordinates (px^2)", f"frechet, {wide}"], rows())


def mixture(seeds: int) -> None:
    """The survey's figure 25: 1/5 N((-5,-5), I) + 4/5 N((5,5), I) from its exact score."""
    centres = torch.tensor([[-5.0, -5.0]] + 4 * [[5.0, 5.0]])
    score = blurred(Exact(centres), 1.0)
    levels = geometric(10, 10.0, 0.1)
    one_level = levels.rows(torch.tensor([0]))

    def draw(process: Process, steps: int, rate: float, seed: int) -> Tensor:
        generator = seeded(LAW, seed)
        x = 16 * torch.rand(SAMPLES, 2, generator=generator) - 8
        options = {"steps": steps, "rate": rate, "generator": generator}
        return last(langevin(score, process, x, **options))

    def law(seed: int) -> Tensor:
        generator = seeded(LAW, seed)
        index = torch.randint(len(centres), (SAMPLES,), generator=generator)
        return centres[index] + draw_noise(LAW, SAMPLES, generator)

    # A rate of 20 on the smallest level, 0.1, makes steps of a = 0.2, as long as those of
    # the annealed dynamics at sigma = 1, the width of the law.
    ways = {
        "the law": law,
        "Langevin, 1,000 steps": partial(draw, one_level, 1000, 20.0),
        "annealed, 10 x 100 steps": partial(draw, levels, 100, 0.2),
        "annealed, 10 x 1,000 steps": partial(draw, levels, 1000, 0.2),
    }
    clouds = {}

    def rows() -> Iterator[list[str]]:
        for name, way in ways.items():
            drawn = [way(seed) for seed in range(seeds)]
            clouds[name] = drawn[0]
            shares = [(x.sum(dim=1) < 0).double().mean().item() for x in drawn]
            yield [name, over(shares, 3)]

    show(["drawn by", "share of the smaller law (0.2)"], rows())
    save_png(plot_mixture(clouds), DOCS / "mixture.png")


def field(seeds: int) -> None:
    """docs/score.png: the score at four noise levels, exact and learned."""
    predictors = {"exact": Exact(LAW.data), "learned": network("simple")}
    save_png(plot_field(predictors, LAW), DOCS / "score.png")


def paths(seeds: int) -> None:
    """docs/paths.png: ways back by DDPM and the probability flow, and interpolation."""
    exact, process, generator = Exact(LAW.data), respaced(linear(), 200), seeded(LAW, 3)
    x_T = draw_noise(LAW, 5, generator)
    ways = {
        "DDPM, 200 steps": ddpm(exact, process, x_T, generator=generator),
        "DDIM, 200 steps: the probability flow": ddim(exact, process, x_T),
    }
    states = {name: torch.stack([*way]) for name, way in ways.items()}
    encoded = last(ddim_encode(exact, process, LAW.data[[0, -1]]))
    arc = [slerp(*encoded.split(1), share) for share in torch.linspace(0, 1, 100)]
    ends = last(ddim(exact, process, torch.cat(arc)))
    save_png(plot_paths(states, ends, LAW), DOCS / "paths.png")


def half(seeds: int) -> None:
    """Trained on every second point: what is covered of those seen and of the others."""
    seen, unseen = LAW.data[::2], LAW.data[1::2]

    def blurred_points(seed: int) -> Tensor:
        generator = seeded(LAW, seed)
        drawn = draw_floor(LAW._replace(data=seen), SAMPLES, generator)
        return drawn + 0.3 * LAW.pixel * draw_noise(LAW, SAMPLES, generator)

    def network_draws(seed: int) -> Tensor:
        trained = fit("low", LAW._replace(data=seen), seed=seed)
        return drawn_by(ddpm, trained, linear(), seed)

    ways = {
        "network": network_draws,
        "exact score of the seen": partial(drawn_by, ddpm, Exact(seen), linear()),
        "the seen, blurred by 0.3 px": blurred_points,
    }
    clouds = {}

    def rows() -> Iterator[list[str]]:
        for name, way in ways.items():
            runs = []
            for seed in range(seeds):
                drawn = way(seed)
                clouds.setdefault(name, drawn)
                pairs = ((seen, drawn), (unseen, drawn), (drawn, LAW.data))
                runs.append([100 * share_near(*pair, LAW.pixel / 2) for pair in pairs])
            yield [name, *spread(runs, (1, 1, 1))]

    covered = ["seen points covered", "unseen points covered", "on drawing"]
    show(["within half a pixel", *covered], rows())
    save_png(plot_half(seen, unseen, clouds, LAW), DOCS / "half.png")


def matching(seeds: int) -> None:
    """Score matching three ways at one level, sigma = 0.3, and where it has no minimum."""
    sigma = 0.3
    level = geometric(1, sigma, sigma)
    exact = Exact(LAW.data)
    ways = {
        "denoising, (32)": denoising(uniform_level(level)),
        "exact trace, (41)": score_matching(sigma, blur=sigma),
        "sliced, (42)": score_matching(sigma, blur=sigma, sliced=True),
        "exact trace, on the points themselves": score_matching(sigma, blur=0),
    }

    def rows() -> Iterator[list[str]]:
        for name, objective in ways.items():
            errors, losses, seconds = [], [], []
            for seed in range(seeds):
                trained = PointNetwork(seed=seed)
                began = perf_counter()
                loss = train(trained, objective, LAW.data, steps=2000, seed=seed)
                seconds.append(perf_counter() - began)
                x = LAW.data.repeat(10, 1)
                x = x + sigma * draw_noise(LAW, len(x), seeded(LAW, seed))
                one, noise = x.new_ones(()), x.new_tensor(sigma)
                true = exact(x, one, noise)
                with torch.no_grad():
                    off = (trained(x, one, noise) - true).square().mean()
                errors.append((off / true.square().mean()).item())
                losses.append(loss[-300:].mean().item())
            yield [name, over(errors, 3), over(losses, 2), f"{min(seconds):.0f}"]

    head = ["objective", "error, share of the score's square", "loss at the end"]
    show([*head, "seconds"], rows())


def encoding(seeds: int) -> None:
    """DDIM forward from the points and back: how far they come back from where they were."""

    def rows() -> Iterator[list[str]]:
        for steps in (20, 50, 200, 1000):
            process = respaced(linear(), steps)
            errors = []
            for predictor in (Exact(LAW.data), network("simple")):
                x_T = last(ddim_encode(predictor, process, LAW.data))
                back = last(ddim(predictor, process, x_T))
                errors.append((back - LAW.data).norm(dim=1).median() / LAW.pixel)
            yield [steps, *(f"{error:.2f}" for error in errors)]

    show(["steps", "exact: median error, px", "learned"], rows())


POINT_TABLES = {
    "weights": weights,
    "floor": floor,
    "points": methods_table,
    "film": film,
    "own": own,
    "low": low,
    "covariance": covariance,
    "errata": errata,
    "width": width,
    "blind": blind,
    "mixture": mixture,
    "field": field,
    "paths": paths,
    "half": half,
    "matching": matching,
    "encoding": encoding,
}
