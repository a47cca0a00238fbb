"""The rows of the pictures' table: the same samplers, with the U-Net."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from comparison.data import Pictures, posed, random_poses
from comparison.measures import frechet, nearest
from comparison.methods import Method, draw_noise, line, seeded, states, timed
from comparison.predictors import Predictor
from comparison.processes import (
    cosine,
    geometric,
    kept_rows,
    linear,
    respaced,
    ve_sde,
)
from comparison.samplers import (
    ddim,
    ddpm,
    langevin,
    predictor_corrector,
    probability_flow,
)

DDIM_50 = Method("ddim-cosine", "50", respaced(cosine(), 50), ddim)
KEPT_ALPHAS = Method(
    name="ddpm-kept-alphas",
    steps="50",
    process=linear(),
    sampler=partial(ddpm, rows=kept_rows(1000, 50).tolist()),
    clip=True,
)


def quick() -> list[tuple[Method, str]]:
    """Return the methods of the default table, with their predictors."""
    return [
        (DDIM_50, "learned"),
        (Method("ddim-cosine", "10", respaced(cosine(), 10), ddim), "learned"),
        (
            Method("ddpm-cosine", "250", respaced(cosine(), 250), ddpm, clip=True),
            "learned",
        ),
        (Method("flow", "18", linear(), probability_flow), "learned"),
        (DDIM_50, "exact"),
    ]


def further() -> list[Method]:
    """Return the other methods, mostly slow, which draw a third as many samples."""
    return [
        Method("ddpm-linear", "1000", linear(), ddpm, clip=True),
        KEPT_ALPHAS,
        Method("ddpm-cosine", "1000", cosine(), ddpm, clip=True),
        Method("ddim-linear", "50", respaced(linear(), 50), ddim),
        Method("langevin", "10 x 100", geometric(), langevin, box=True),
        Method("ve-pc", "200", ve_sde(), predictor_corrector),
    ]


PICTURE_NAMES = [
    *("noise", "fresh"),
    *dict.fromkeys(method.name for method in [m for m, _ in quick()] + further()),
]


class PictureRow(NamedTuple):
    """A row of the table: distances are Euclidean, nearer is in per cent."""

    method: str
    predictor: str
    steps: str
    evaluations: int
    frechet: float
    to_training: float
    to_fresh: float
    nearer: float
    seconds: float

    def __str__(self) -> str:
        *words, evaluations, frechet_, to_training, to_fresh, nearer, seconds = self
        cells = [*words, f"{evaluations}", f"{frechet_:.2f}", f"{to_training:.2f}"]
        cells += [f"{to_fresh:.2f}", f"{nearer:.0f}", f"{seconds:.1f}"]
        return line(cells)


def draw_fresh(law: Pictures, samples: int, seed: int) -> Tensor:
    """Draw from the law itself, the floor of every measure, by other seeds than its own."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return posed(law.drawing, random_poses(samples, generator))


def picture_measures(
    samples: Tensor, law: Pictures
) -> tuple[float, float, float, float]:
    """Return frechet, to training, to fresh, and nearer.

    frechet: d^2, (39), to the reference pictures, on their first 16 principal
    components. to training, to fresh: the median distance to the nearest picture trained
    on, and to the nearest of as many fresh ones. nearer: the per cent of the samples
    that are nearer to one trained on; a copier has 100, the law itself 50.
    """
    if not samples.isfinite().all():  # a network that was hardly trained may explode
        return math.nan, math.nan, math.nan, math.nan
    to_training, _ = nearest(samples, law.data)
    to_fresh, _ = nearest(samples, law.fresh)
    return (
        frechet(samples @ law.axes, law.reference @ law.axes),
        to_training.median().item(),
        to_fresh.median().item(),
        100 * (to_training < to_fresh).double().mean().item(),
    )


def picture_table(
    law: Pictures,
    names: Sequence[str] | None,
    samples: int,
    seed: int,
    network: Predictor,
) -> Iterator[tuple[PictureRow, Tensor]]:
    """Yield each row and its samples, (samples, side^2).

    names: of `PICTURE_NAMES`; None for the methods of `quick` alone. Of the further methods a
    third as many samples are drawn, which the row says, as does that of their own floor. Every
    row starts from the same seed, so that rows can be compared more finely than their spread
    over seeds says.
    """
    chosen = [(method, kind, samples) for method, kind in quick()]
    if names is not None:
        chosen += [(method, "learned", max(2, samples // 3)) for method in further()]
        chosen = [row for row in chosen if row[0].name in names]
    counts = sorted({samples, *(count for *_, count in chosen)}, reverse=True)

    def titled(name: str, count: int) -> str:
        return name if count == samples else f"{name} ({count})"

    bounds = {
        "noise": lambda count: draw_noise(law, count, seeded(law, seed)),
        "fresh": lambda count: draw_fresh(law, count, seed),
    }
    for name, draw in bounds.items():
        for count in counts if names is None or name in names else ():
            drawn, columns = draw(count), (titled(name, count), "-", "-", 0)
            yield PictureRow(*columns, *picture_measures(drawn, law), 0.0), drawn
    for method, kind, count in chosen:
        predictor = network if kind == "learned" else None
        drawn, calls, seconds = timed(method, law, count, seed, predictor)
        words = titled(method.name, count), method.kind(predictor), method.steps
        yield PictureRow(*words, calls, *picture_measures(drawn, law), seconds), drawn


def picture_film_states(
    law: Pictures, samples: int, seed: int, network: Predictor
) -> Tensor:
    """Return all states, (51, n, side^2), of DDIM 50; n is `samples`, at most 32."""
    _, path = states(DDIM_50, law, min(samples, 32), seed, network)
    return torch.stack([*path])
