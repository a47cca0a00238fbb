"""The tables and figures of docs/comparison.md that are about pictures.

A figure over seeds is their mean, with half the range between the lowest and the
highest. Seeds are those of sampling, of one training.
"""

from collections.abc import Iterator
from functools import cache
from statistics import median
from time import perf_counter

import torch

from comparison.data import Pictures, pictures
from comparison.figures import (
    DOCS,
    over,
    picture_film_sheets,
    plot_mosaics,
    plot_picture_rows,
    save_gif,
    save_png,
    show,
    show_rows,
    spread,
)
from comparison.measures import frechet, principal
from comparison.methods import Method, draw_noise, seeded, timed
from comparison.picture_methods import (
    DDIM_50,
    KEPT_ALPHAS,
    draw_fresh,
    further,
    picture_film_states,
    picture_measures,
    picture_table,
)
from comparison.predictors import Predictor, from_velocity
from comparison.processes import Process, cosine, linear, respaced
from comparison.samplers import ddim, ddpm, inpaint, last, slerp
from comparison.training import fit, load, save

SAMPLES, FEW = 300, 100
MEASURES = ["frechet", "to training", "to fresh", "nearer"]
DIGITS = (2, 2, 2, 0)


@cache
def law() -> Pictures:
    """Return the pictures of homer.png."""
    return pictures()


@cache
def network(name: str) -> Predictor:
    """Return the predictor of a recipe, its weights from their file or trained once."""
    return from_velocity(load(name, law()) or fit(name, law()))


def unet(seeds: int) -> None:
    """Train the U-Net that the command uses, and write its weights."""
    began = perf_counter()
    save("unet", fit("unet", law()), law())
    print(f"unet: {perf_counter() - began:.0f} s of training")


def methods_table(seeds: int) -> None:
    """The command's table, and docs/pictures.png."""
    runs = []
    for seed in range(seeds):
        pairs = list(picture_table(law(), None, SAMPLES, seed, network("unet")))
        runs.append([row for row, _ in pairs])
        if seed == 0:
            save_png(plot_picture_rows(pairs, law()), DOCS / "pictures.png")
    show_rows(runs, DIGITS)


def faces(seeds: int) -> None:
    """docs/pictures.gif: faces out of noise."""
    states = picture_film_states(law(), SAMPLES, 0, network("unet"))
    save_gif(picture_film_sheets(states), DOCS / "pictures.gif")


def survey(seeds: int) -> None:
    """The survey's tables 1 and 2, and what it could not compare, from 100 samples."""
    extra = {method.name: method for method in further()}

    def four(schedule: str, process: Process) -> list[Method]:
        return [
            Method(
                name=f"{sampler.__name__}-{schedule}",
                steps=f"{kept}",
                process=respaced(process, kept),
                sampler=sampler,
                clip=sampler is ddpm,
            )
            for sampler in (ddpm, ddim)
            for kept in (1000, 50)
        ]

    ways = {
        "unet-linear": [*four("linear", linear()), KEPT_ALPHAS],
        "unet-cosine": four("cosine", cosine()),
        "unet": [DDIM_50, extra["langevin"], extra["ve-pc"]],
    }

    def rows() -> Iterator[list[str]]:
        floor = (draw_fresh(law(), FEW, seed) for seed in range(seeds))
        cells = spread((picture_measures(x, law()) for x in floor), DIGITS)
        yield ["fresh", "-", "-", *cells, "-"]
        for recipe, methods in ways.items():
            for method in methods:
                runs = [
                    timed(method, law(), FEW, seed, network(recipe))
                    for seed in range(seeds)
                ]
                cells = spread((picture_measures(x, law()) for x, *_ in runs), DIGITS)
                seconds = f"{median(took for *_, took in runs):.0f}"
                yield [method.name, recipe, method.steps, *cells, seconds]

    show(["method", "network", "steps", *MEASURES, "seconds"], rows())


def counts(seeds: int) -> None:
    """Frechet's distance of n fresh pictures to their own law; ten draws for each n."""
    features = {count: principal(law().reference, count) for count in (16, 128, 1024)}

    def rows() -> Iterator[list[str]]:
        for n in (50, 100, 300, 1000, 2000):
            drawn = [draw_fresh(law(), n, seed) for seed in range(10)]
            cells = []
            for axes in features.values():
                reference = law().reference @ axes
                cells.append(over((frechet(x @ axes, reference) for x in drawn), 2))
            yield [f"{n:,}", *cells]

    show(["samples", *(f"frechet, {count} components" for count in features)], rows())


def retrieval(seeds: int) -> None:
    """docs/nearest.png: samples, and below each the five nearest pictures trained on."""
    drawn, *_ = timed(DDIM_50, law(), 10, 0, network("unet"))
    nearest = torch.cdist(drawn, law().data).topk(5, largest=False).indices
    rows = [drawn, *(law().data[index] for index in nearest.T)]
    title = "drawn by DDIM 50, and below each sample its five nearest"
    save_png(plot_mosaics({title: torch.cat(rows)}, 10), DOCS / "nearest.png")


def walk(seeds: int) -> None:
    """docs/walk.png: DDIM from along arcs, each from one noise to another."""
    x_T = draw_noise(law(), 8, seeded(law(), 5))
    arcs = [
        slerp(x_T[k : k + 1], x_T[k + 1 : k + 2], share)
        for k in range(0, 8, 2)
        for share in torch.linspace(0, 1, 12)
    ]
    ends = last(ddim(network("unet"), DDIM_50.process, torch.cat(arcs)))
    title = "DDIM 50 along four arcs, each from one noise to another"
    save_png(plot_mosaics({title: ends}, 12), DOCS / "walk.png")


def inpainting(seeds: int) -> None:
    """docs/inpainting.png: half of a face is given, and the rest drawn several ways."""
    faces, ways, side = law().fresh[:4], 9, law().side
    column = torch.arange(side**2) % side
    halves = {"left": column < side // 2, "right": column >= side // 2}
    process, parts = respaced(cosine(), 250), {}
    for name, given in halves.items():
        known, generator = faces.repeat_interleave(ways, dim=0), seeded(law(), 0)
        x_T = draw_noise(law(), len(known), generator)
        drawn = last(
            inpaint(network("unet"), process, x_T, known, given, generator=generator)
        )
        shown = torch.where(given, faces, 0.5)[:, None]
        row = torch.cat([faces[:, None], shown, drawn.view(4, ways, -1)], dim=1)
        title = f"a face, its {name} half, and nine ways to complete it"
        parts[title] = row.flatten(0, 1)
    save_png(plot_mosaics(parts, 2 + ways), DOCS / "inpainting.png")


def steps(seeds: int) -> None:
    """docs/steps.png: DDPM with all steps, with 50 in the library's way, and mended."""
    ways = {
        "DDPM, 1000 steps": Method("", "", linear(), ddpm, clip=True),
        "50 steps, each level's own alpha": KEPT_ALPHAS,
        "50 steps, respaced": Method("", "", respaced(linear(), 50), ddpm, clip=True),
    }
    parts = {
        title: timed(method, law(), 14, 0, network("unet"))[0]
        for title, method in ways.items()
    }
    save_png(plot_mosaics(parts, 14), DOCS / "steps.png")


PICTURE_TABLES = {
    "unet": unet,
    "pictures": methods_table,
    "faces": faces,
    "survey": survey,
    "counts": counts,
    "retrieval": retrieval,
    "walk": walk,
    "inpainting": inpainting,
    "steps": steps,
}
