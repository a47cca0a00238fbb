"""Laws made of the drawing: its points in the plane, and pictures of it in random poses.

A law has data to train on, (n, D), float32, and all else by which everything above it
serves any law: its `box`, between whose corners all data lie; `draw(count, seed)`, new
data of it; `measure(samples)`, how far samples, (m, D), are from it, in the order of
`measures`, the names of the columns and their digits; `samples`, what a row of its table
draws, and `filmed`, what its film shows; its `name`, and `picture`, which tells it from a
law of the same name.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from comparison.measures import frechet, nearest, principal, share_near, sliced
from utils import IMG_SIZE, ImageFile, image_to_vector, read_square

HOMER = Path(__file__).resolve().parents[1] / "homer.png"


# Points


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
    name, samples, filmed = "points", 2000, 2000
    measures = MappingProxyType(
        {"on drawing": 1, "covered": 1, "sliced": 2, "frechet": 2}
    )

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """The corners of the smallest rectangle that all points lie in, (2,)."""
        return self.data.aminmax(dim=0)

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw points, each as likely as another."""
        like = {"generator": seeded(self, seed), "device": self.data.device}
        return self.data[torch.randint(len(self.data), (count,), **like)]

    def measure(self, samples: Tensor) -> tuple[float, ...]:
        """Return on drawing and covered, in per cent, sliced in px and frechet in px^2."""
        # A network that was hardly trained may explode.
        if not samples.isfinite().all():
            return 0.0, 0.0, math.nan, math.nan
        x, data = samples / self.pixel, self.data / self.pixel
        # Neighbours on the grid are 1 px apart: rounding must not decide.
        within = 1.001
        shares = share_near(x, data, within), share_near(data, x, within)
        return *(100 * share for share in shares), sliced(x, data), frechet(x, data)


def points(
    image: ImageFile = HOMER, device: torch.device | str = "cpu", *, fit: bool = False
) -> Points:
    """Return the points of a picture that `image_to_vector` finds. Raises as that does."""
    cloud = image_to_vector(image, fit=fit).view(-1, 2)
    centre = cloud.mean(dim=0)
    scale = (cloud - centre).square().mean().sqrt().item()
    pixel = 6 / IMG_SIZE / scale
    data = ((cloud - centre) / scale).to(device)
    picture = hashlib.sha256(cloud.numpy().tobytes()).hexdigest()
    return Points(data, pixel, centre, scale, picture)


# Pictures

CANVAS, DARK = 600, 50
"""Side in pixels of the square that a drawing is thickened on, and its lightest ink."""
FINER = 8
"""A pose is drawn this many times finer than its picture, and averaged."""


class Pictures(NamedTuple):
    """Pictures of a drawing in random poses: one law, drawn from three times.

    All are (n, side^2), row by row from the top: +1 is paper, -1 ink. data is trained on;
    fresh tells copying from learning; reference is what the mean and the covariance of
    samples are compared with, on its principal components, `axes`, (side^2, 16).
    drawing: what is posed, (F, F), from 0, paper, to 1, ink. picture: the SHA-256 of it
    and of n.
    """

    data: Tensor
    fresh: Tensor
    reference: Tensor
    axes: Tensor
    drawing: Tensor
    side: int
    picture: str
    name, samples, filmed = "pictures", 300, 32
    measures = MappingProxyType(
        {"frechet": 2, "to training": 2, "to fresh": 2, "nearer": 0}
    )

    @property
    def box(self) -> tuple[float, float]:
        """Ink and paper, between which all greys lie."""
        return -1.0, 1.0

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw pictures by other seeds than those of the law's own."""
        generator = torch.Generator().manual_seed(1000 + seed)
        return posed(self.drawing, random_poses(count, generator))

    def measure(self, samples: Tensor) -> tuple[float, ...]:
        """Return frechet, to training, to fresh, and nearer.

        frechet: d^2, (39), to the reference pictures, on their first 16 principal
        components. to training, to fresh: the median distance to the nearest picture
        trained on, and to the nearest of as many fresh ones. nearer: the per cent of the
        samples that are nearer to one trained on; a copier has 100, the law itself 50.
        """
        # A network that was hardly trained may explode.
        if not samples.isfinite().all():
            return (math.nan,) * 4
        to_training, _ = nearest(samples, self.data)
        to_fresh, _ = nearest(samples, self.fresh)
        return (
            frechet(samples @ self.axes, self.reference @ self.axes),
            to_training.median().item(),
            to_fresh.median().item(),
            100 * (to_training < to_fresh).double().mean().item(),
        )


def pictures(
    image: ImageFile = HOMER,
    device: torch.device | str = "cpu",
    *,
    fit: bool = False,
    side: int = 32,
    count: int = 2000,
) -> Pictures:
    """Return pictures of a drawing in random poses.

    Its ink is what is as dark as grey 50 on a square of 600 pixels a side, found first
    if `fit`, as `image_to_vector` does it. Strokes are thickened by 7 pixels each way,
    as they must be to be seen at a side of 32. Raises ValueError if the image cannot be
    read as a picture, or nothing is dark; a UserWarning says what `fit` did.
    """
    grey, done = read_square(image, CANVAS, DARK, fit)
    if fit:
        warnings.warn(f"fit: {done}", stacklevel=2)
    ink = grey.point([255 * (v <= DARK) for v in range(256)])
    if not ink.getbbox():
        darkest = grey.getextrema()[0]
        message = f"no pixel is as dark as {DARK} (the darkest is {darkest}: try --fit)"
        raise ValueError(f"{image!s:.200}: {message}")
    thick = ink.filter(ImageFilter.MaxFilter(15))
    small = thick.resize((FINER * side, FINER * side), Image.Resampling.BOX)
    drawing = torch.from_numpy(np.asarray(small) / np.float32(255))
    told_by = drawing.numpy().tobytes() + f"{count}".encode()
    digest = hashlib.sha256(told_by).hexdigest()
    drawing = drawing.to(device)
    data, fresh, reference = (
        posed(drawing, random_poses(count, torch.Generator().manual_seed(seed)))
        for seed in range(3)
    )
    axes = principal(reference)
    return Pictures(data, fresh, reference, axes, drawing, side, digest)


def random_poses(count: int, generator: torch.Generator) -> Tensor:
    """Draw poses: affine maps of the drawing about its centre, (count, 2, 3), on the CPU.

    In this order: mirrored in half the cases, sheared by N(0, 0.08^2), scaled by
    exp(N(0, 0.12^2)) / 1.25, turned by N(0, (12 degrees)^2), and shifted each way by
    N(0, (1/24 of the side)^2). Units are half sides.
    """
    z = torch.randn(5, count, generator=generator)
    mirror = 1 - 2 * torch.randint(2, (count,), generator=generator)
    shear, size, angle = 0.08 * z[0], (0.12 * z[1]).exp() / 1.25, z[2] * torch.pi / 15
    cos, sin = size * angle.cos(), size * angle.sin()
    shift = z[3:] / 12
    x = torch.stack([mirror * cos, shear * cos - sin, shift[0]], dim=1)
    y = torch.stack([mirror * sin, shear * sin + cos, shift[1]], dim=1)
    return torch.stack([x, y], dim=1)


def posed(drawing: Tensor, poses: Tensor) -> Tensor:
    """Return pictures of a drawing, (F, F), in these poses, (n, 2, 3): (n, (F/8)^2).

    A pose maps where ink is in the drawing to where it is in the picture; where nothing
    comes from, there is paper.
    """
    last_row = torch.tensor([0.0, 0.0, 1.0]).expand(len(poses), 1, 3)
    back = torch.cat([poses, last_row], dim=1).inverse()[:, :2].to(drawing)
    parts = []
    for chunk in back.split(16):
        size = (len(chunk), 1, *drawing.shape)
        grid = affine_grid(chunk, size, align_corners=False)
        ink = grid_sample(drawing.expand(size), grid, align_corners=False)
        parts.append(1 - 2 * avg_pool2d(ink, FINER).flatten(1))
    return torch.cat(parts)


Law = Points | Pictures
LAWS: dict[str, Callable[..., Law]] = {"points": points, "pictures": pictures}


def seeded(law: Law, seed: int) -> torch.Generator:
    """Return a generator on the law's device."""
    return torch.Generator(law.data.device).manual_seed(seed)
