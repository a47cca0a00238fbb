"""The points of the drawing as a data set: each of them is a training example."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from comparison.dataset import Measure, Row, seeded
from comparison.figures import cloud_sheets, plot_clouds
from comparison.levels import (
    cosine,
    geometric,
    karras,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
)
from comparison.measures import frechet, share_near, sliced
from comparison.methods import Method
from comparison.samplers import (
    ddim,
    ddpm,
    ddpm_stale_alphas,
    euler_maruyama,
    heun,
    langevin,
    predictor_corrector,
)
from utils import IMG_SIZE, ImageFile, image_to_vector

HOMER = Path(__file__).resolve().parents[1] / "homer.png"
WITHIN = 1.001
"""Near, in px. Neighbours on the grid are 1 px apart: rounding must not decide."""


def _px(points: "Points", x: Tensor) -> Tensor:
    return x / points.pixel


MEASURES: tuple[Measure, ...] = (
    Measure(
        "precision",
        1,
        lambda p, x: 100 * share_near(_px(p, x), _px(p, p.data), WITHIN),
        "share of samples within 1 px of a point, %, higher is better",
    ),
    Measure(
        "coverage",
        1,
        lambda p, x: 100 * share_near(_px(p, p.data), _px(p, x), WITHIN),
        "share of points with a sample within 1 px, %, higher is better",
    ),
    Measure(
        "sliced W1",
        2,
        lambda p, x: sliced(_px(p, x), _px(p, p.data)),
        "Wasserstein-1 distance over 32 directions, px, lower is better",
    ),
    Measure(
        "frechet",
        2,
        lambda p, x: frechet(_px(p, x), _px(p, p.data)),
        "Frechet distance squared of the coordinates, px^2, lower is better",
    ),
)


def _methods() -> list[Method]:
    line, arc = linear(), cosine()
    ends = line[0].item(), line[-2].item()
    ddpm_posterior = partial(ddpm, variance="posterior")
    denoised = partial(langevin, denoise=True)
    learning = {"own": "hybrid", "learns_variance": True}
    annealed = {"own": "geometric", "box": True, "states": 100}
    return [
        Method("ddpm-linear", "1000", line, ddpm, "simple", filmed=True),
        Method("ddpm-linear", "50", respaced(line, 50), ddpm, "simple"),
        Method("ddpm-posterior", "50", respaced(line, 50), ddpm_posterior, "simple"),
        Method("ddpm-learned", "50", respaced(line, 50), ddpm, **learning),
        Method("ddpm-stale-alphas", "50", line, ddpm_stale_alphas, "simple"),
        Method("ddpm-cosine", "1000", arc, ddpm, "cosine"),
        Method("ddpm-cosine", "50", respaced(arc, 50), ddpm, "cosine"),
        Method("ddim-linear", "1000", line, ddim, "simple"),
        Method("ddim-linear", "50", respaced(line, 50), ddim, "simple", filmed=True),
        Method("ddim-linear", "20", respaced(line, 20), ddim, "simple"),
        Method("ddim-linear", "10", respaced(line, 10), ddim, "simple"),
        Method("ddim-cosine", "50", respaced(arc, 50), ddim, "cosine"),
        Method("ddim-karras", "50", karras(*ends, 50), ddim, "vp"),
        Method("ddim-karras", "10", karras(*ends, 10), ddim, "vp"),
        Method("langevin", "10 x 100", geometric(), langevin, **annealed, filmed=True),
        Method("langevin-denoised", "10 x 100", geometric(), denoised, **annealed),
        Method("ve-pc", "200", ve_sde(), predictor_corrector, "ve", filmed=True),
        Method("vp-em", "1000", vp_sde(), euler_maruyama, "vp"),
        Method("heun", "18", karras(*ends), heun, "vp"),
        Method("heun", "40", karras(*ends, 40), heun, "vp"),
        Method("edm", "18", karras(80.0, 0.002), heun, "edm"),
        # On straight levels Euler's steps are DDIM's.
        Method("rectified-flow", "1", straight(1), ddim, "rectified"),
        Method("rectified-flow", "10", straight(10), ddim, "rectified"),
        Method("rectified-flow", "100", straight(100), ddim, "rectified"),
    ]


class Points(NamedTuple):
    """The points of a drawing, normalised, and what leads back to `main.py`'s units.

    data: (n, 2), of mean 0; the variance of all coordinates together is 1. pixel: what a
    pixel of the grid of 150 measures in these units. In main's units, a point is centre
    + scale x. picture: the SHA-256 of the points in main's units.
    """

    data: Tensor
    pixel: float
    centre: Tensor
    scale: float
    picture: str
    name, samples, filmed, notes = "points", 2000, 2000, ()
    measures, methods = MEASURES, tuple(_methods())

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """The corners of the smallest rectangle that all points lie in, (2,)."""
        return self.data.aminmax(dim=0)

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw points, each as likely as another."""
        like = {"generator": seeded(self, seed), "device": self.data.device}
        return self.data[torch.randint(len(self.data), (count,), **like)]

    def plot(self, rows: Sequence[Row]) -> Figure:
        """Draw in a column the clouds of a method, and those of the references."""
        columns = {}
        for row in rows:
            known = row.steps == "-"
            title = row.method if known else f"{row.method} {row.steps}\n{row.denoiser}"
            key = "references" if known else (row.method, row.steps)
            cloud = self.in_main_units(row.samples)
            columns.setdefault(key, []).append((title, cloud))
        return plot_clouds([*columns.values()])

    def sheets(
        self, shown: Sequence[dict[str, Tensor]], colours: bool
    ) -> list[Image.Image]:
        """Draw clouds side by side, one of more than unit variance reduced to it."""
        frames = [
            {
                title: self.in_main_units(x / x.std().clamp(min=1))
                for title, x in clouds.items()
            }
            for clouds in shown
        ]
        return cloud_sheets(frames, [*shown[-1].values()] if colours else None)

    def in_main_units(self, x: Tensor) -> Tensor:
        """Return normalised points, (..., 2), where `main.py` draws them."""
        return self.centre + self.scale * x.cpu()


def points(
    image: ImageFile = HOMER, device: torch.device | str = "cpu", *, fit: bool = False
) -> Points:
    """Return the points of a picture, as `image_to_vector` finds them; raises as that."""
    cloud = image_to_vector(image, fit=fit).view(-1, 2)
    centre = cloud.mean(dim=0)
    scale = (cloud - centre).square().mean().sqrt().item()
    pixel = 6 / IMG_SIZE / scale
    data = ((cloud - centre) / scale).to(device)
    picture = hashlib.sha256(cloud.numpy().tobytes()).hexdigest()
    return Points(data, pixel, centre, scale, picture)
