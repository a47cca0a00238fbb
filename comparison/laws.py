"""Laws made of the drawing: its points in the plane, and pictures of it in random poses.

A law has data to train on, (n, D), float32, and all else by which everything above it
serves any law: its `box`, between whose corners all data lie; `draw(count, seed)`, new
data of it; `measure(samples)`, how far samples, (m, D), are from it, in the order of
`measures`, the names of the columns and their digits; `samples`, what a row of its table
draws, and `filmed`, what its film shows; `notes` on its measures; its `name`, and
`picture`, which tells it from a law of the same name.
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

from comparison.measures import (
    energy,
    frechet,
    nearest,
    principal,
    share_near,
    sliced,
    total_variance,
)
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
    name, samples, filmed, notes = "points", 2000, 2000, ()
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
    fresh tells copying from learning; reference is what samples are compared with, their
    mean and covariance on its principal components, `axes`, (side^2, 16); poses: its own,
    (n, 6). drawing: what is posed, (F, F), from 0, paper, to 1, ink. picture: the SHA-256
    of it and of n. fitted: how many samples `measure` fits.
    """

    data: Tensor
    fresh: Tensor
    reference: Tensor
    axes: Tensor
    poses: Tensor
    drawing: Tensor
    side: int
    picture: str
    fitted: int = 100
    name, samples, filmed = "pictures", 300, 32
    measures = MappingProxyType(
        {"off pose": 3, "spread": 2, "kernel": 3, "frechet": 2, "nearer": 0}
    )

    @property
    def box(self) -> tuple[float, float]:
        """Ink and paper, between which all greys lie."""
        return -1.0, 1.0

    @property
    def notes(self) -> tuple[str]:
        """How many samples are fitted."""
        return (f"off pose is of the first {self.fitted} samples of a row",)

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw pictures by other seeds than those of the law's own."""
        generator = torch.Generator().manual_seed(1000 + int(seed))
        return posed(self.drawing, affine(random_poses(count, generator)))

    def measure(self, samples: Tensor) -> tuple[float, ...]:
        """Return off pose, spread, kernel, frechet, and nearer.

        off pose: the median of what no pose explains of the first `fitted` samples. spread:
        the total variance over that of the reference pictures. kernel: the energy distance
        to these. frechet: d^2, (39), to these, on their first 16 principal components.
        nearer: the per cent of the samples that are nearer to a picture trained on than to
        any of as many fresh ones; a copier has 100, the law itself 50.
        """
        # A network that was hardly trained may explode.
        if not samples.isfinite().all():
            return (math.nan,) * 5
        _, off_pose = self.fit_poses(samples[: self.fitted])
        to_training, _ = nearest(samples, self.data)
        to_fresh, _ = nearest(samples, self.fresh)
        return (
            off_pose.median().item(),
            total_variance(samples) / total_variance(self.reference),
            energy(samples, self.reference),
            frechet(samples @ self.axes, self.reference @ self.axes),
            100 * (to_training < to_fresh).double().mean().item(),
        )

    def fit_poses(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pose nearest to each of m samples, (m, 6), and what it leaves, (m,):
        the root mean square, over pixels, of the sample less the drawing in that pose.

        60 steps of Adam's on the five numbers start from the poses of the four reference
        pictures that are nearest; after 20 the best goes on. All is drawn half as fine.
        """
        drawing, finer = avg_pool2d(self.drawing[None], 2)[0], FINER // 2
        _, index = torch.cdist(samples, self.reference).topk(4, largest=False)
        poses = self.poses[index.cpu()]

        def unexplained(poses: Tensor) -> Tensor:
            drawn = posed(drawing, affine(poses.flatten(0, 1)), finer)
            drawn = drawn.view(*poses.shape[:2], -1)
            return (drawn - samples[:, None]).square().mean(dim=2).cpu()

        for rates in torch.linspace(0.1, 0, 60).split([20, 40]):
            mirror, numbers = poses[..., :1], poses[..., 1:].requires_grad_()
            optimizer = torch.optim.Adam([numbers])
            for rate in rates.tolist():
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                unexplained(torch.cat([mirror, numbers], dim=2)).sum().backward()
                optimizer.step()
            poses = torch.cat([mirror, numbers.detach()], dim=2)
            left, best = unexplained(poses).min(dim=1)
            poses = poses[range(len(poses)), best][:, None]
        return poses[:, 0], left.sqrt()


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
    generators = (torch.Generator().manual_seed(seed) for seed in range(3))
    poses = [random_poses(count, generator) for generator in generators]
    data, fresh, reference = (posed(drawing, affine(some)) for some in poses)
    axes = principal(reference)
    return Pictures(data, fresh, reference, axes, poses[2], drawing, side, digest)


def random_poses(count: int, generator: torch.Generator) -> Tensor:
    """Draw poses, (count, 6), on the CPU: -1 if mirrored, as half are, or else 1, and five
    numbers of N(0, 1), for the shear, the size, the turn, and the shift each way.
    """
    numbers = torch.randn(5, count, generator=generator)
    mirror = 1 - 2 * torch.randint(2, (1, count), generator=generator)
    return torch.cat([mirror, numbers]).T


def affine(poses: Tensor) -> Tensor:
    """Return poses, (n, 6), as maps of the drawing about its centre, (n, 2, 3).

    In this order: mirrored, sheared by N(0, 0.08^2), scaled by exp(N(0, 0.12^2)) / 1.25,
    turned by N(0, (12 degrees)^2), and shifted each way by N(0, (1/24 of the side)^2).
    Units are half sides.
    """
    mirror, *z = poses.T
    shear, size, angle = 0.08 * z[0], (0.12 * z[1]).exp() / 1.25, z[2] * torch.pi / 15
    cos, sin = size * angle.cos(), size * angle.sin()
    x = torch.stack([mirror * cos, shear * cos - sin, z[3] / 12], dim=1)
    y = torch.stack([mirror * sin, shear * sin + cos, z[4] / 12], dim=1)
    return torch.stack([x, y], dim=1)


def posed(drawing: Tensor, maps: Tensor, finer: int = FINER) -> Tensor:
    """Return pictures of a drawing, (F, F), by maps, (n, 2, 3): (n, (F / finer)^2).

    A map leads from where ink is in the drawing to where it is in the picture; where
    nothing comes from, there is paper. Differentiable in the maps.
    """
    last_row = torch.tensor([0.0, 0.0, 1.0]).expand(len(maps), 1, 3)
    back = torch.cat([maps, last_row], dim=1).inverse()[:, :2].to(drawing)
    parts = []
    for chunk in back.split(16):
        size = (len(chunk), 1, *drawing.shape)
        grid = affine_grid(chunk, size, align_corners=False)
        ink = grid_sample(drawing.expand(size), grid, align_corners=False)
        parts.append(1 - 2 * avg_pool2d(ink, finer).flatten(1))
    return torch.cat(parts)


Law = Points | Pictures
LAWS: dict[str, Callable[..., Law]] = {"points": points, "pictures": pictures}


def seeded(law: Law, seed: int) -> torch.Generator:
    """Return a generator on the law's device."""
    return torch.Generator(law.data.device).manual_seed(int(seed))
