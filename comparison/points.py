"""The points of the drawing as a data set: each of them is a training example."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from comparison import levels, samplers
from comparison.dataset import Measure, Method, Row, draw_copies
from comparison.denoisers import posterior
from comparison.figures import cloud_sheets, hues, plot_clouds
from comparison.levels import COSINE, LINEAR, respaced
from comparison.measures import frechet, share_near, sliced
from utils import IMG_SIZE, ImageFile, image_to_vector

HOMER = Path(__file__).resolve().parents[1] / "homer.png"


def _covered(samples: Tensor, data: Tensor) -> float:
    return share_near(data, samples)


def _px(of: Callable[[Tensor, Tensor], float]) -> Callable[["Points", Tensor], float]:
    return lambda points, x: of(x / points.pixel, points.data / points.pixel)


MEASURES: tuple[Measure, ...] = (
    Measure("precision", 1, _px(share_near), "within 1 px, %, higher is better"),
    Measure("coverage", 1, _px(_covered), "data within 1 px, %, higher is better"),
    Measure("sliced W1", 2, _px(sliced), "over 32 directions, px, lower is better"),
    Measure("frechet", 2, _px(frechet), "of the coordinates, px^2, lower is better"),
)
ENDS = LINEAR[0].item(), LINEAR[-2].item()
_posterior = partial(samplers.ddpm, variance=posterior)
_denoised = partial(samplers.langevin, denoise=True)
_predictor, _corrected, _twice_corrected = (
    partial(samplers.predictor_corrector, corrections=count) for count in range(3)
)
_filmed = partial(Method, filmed=True)
_learning = partial(Method, own="hybrid", learns_variance=True)
_annealed = partial(Method, levels=levels.geometric(), own="geometric")
METHODS: tuple[Method, ...] = (
    _filmed("ddpm-linear", "1000", LINEAR, samplers.ddpm, "simple"),
    Method("ddpm-linear", "50", respaced(LINEAR, 50), samplers.ddpm, "simple"),
    Method("ddpm-posterior", "50", respaced(LINEAR, 50), _posterior),
    _learning("ddpm-learned", "50", respaced(LINEAR, 50), samplers.ddpm),
    Method("ddpm-stale-alphas", "50", LINEAR, samplers.ddpm_stale_alphas),
    Method("ddpm-cosine", "1000", COSINE, samplers.ddpm, "cosine"),
    Method("ddpm-cosine", "50", respaced(COSINE, 50), samplers.ddpm, "cosine"),
    Method("ddim-linear", "1000", LINEAR, samplers.ddim, "simple"),
    _filmed("ddim-linear", "50", respaced(LINEAR, 50), samplers.ddim, "simple"),
    Method("ddim-linear", "10", respaced(LINEAR, 10), samplers.ddim, "simple"),
    Method("ddim-cosine", "50", respaced(COSINE, 50), samplers.ddim, "cosine"),
    Method("ddim-karras", "50", levels.karras(*ENDS, 50), samplers.ddim),
    Method("ddim-karras", "10", levels.karras(*ENDS, 10), samplers.ddim),
    _annealed("langevin", "10 x 100", sampler=samplers.langevin, filmed=True),
    _annealed("langevin-denoised", "10 x 100", sampler=_denoised),
    Method("ve-p", "400", levels.geometric(400, 50.0), _predictor, "ve"),
    Method("ve-pc", "200", levels.geometric(200, 50.0), _corrected, "ve", filmed=True),
    Method("ve-pcc", "133", levels.geometric(133, 50.0), _twice_corrected, "ve"),
    Method("vp-em", "1000", levels.vp_sde(), samplers.euler_maruyama, "vp"),
    Method("heun", "18", levels.karras(*ENDS), samplers.heun, "vp"),
    Method("edm", "18", levels.karras(80.0, 0.002), samplers.heun, "edm"),
    # On straight levels Euler's steps are DDIM's.
    Method("rectified-flow", "10", levels.straight(10), samplers.ddim, "rectified"),
    Method("rectified-flow", "100", levels.straight(100), samplers.ddim, "rectified"),
)


@dataclass
class Points:
    """The points of a drawing, (n, 2), of mean 0; the variance of all coordinates is 1.

    pixel: what a pixel of the grid of 150 measures in these units. In `main.py`'s units, a
    point is centre + scale x; picture is the SHA-256 of all.
    """

    data: Tensor
    pixel: float
    centre: Tensor
    scale: float
    picture: str
    name, samples, filmed = "points", 2000, 2000
    measures, methods = MEASURES, METHODS

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw points, each as likely as another."""
        return draw_copies(self, count, seed)

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

    def sheets(self, shown: Sequence[dict[str, Tensor]]) -> list[Image.Image]:
        """Draw clouds side by side, a point coloured by the angle at which it ends."""
        frames = [{k: self.in_main_units(x) for k, x in xs.items()} for xs in shown]
        return cloud_sheets(frames, [*map(hues, shown[-1].values())])

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
