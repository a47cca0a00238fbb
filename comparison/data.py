"""Laws made of the drawing: each of its points as a datum in the plane."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from utils import IMG_SIZE, ImageFile, image_to_vector

HOMER = Path(__file__).resolve().parents[1] / "homer.png"


class Points(NamedTuple):
    """The points of a drawing, normalised, and what leads back to `main.py`'s units.

    data: (n, 2), float32, of mean 0; the variance of all coordinates together is 1.
    pixel: what a pixel of the grid of 150 measures in these units. In main's units, a
    point is centre + scale x. picture: the SHA-256 of the points in main's units.
    """

    data: Tensor
    pixel: float
    centre: Tensor
    scale: float
    picture: str


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
