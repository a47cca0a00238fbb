"""Picture, points, vector: the way into the experiment, and the way back.

A picture's dark pixels are points in the plane; their coordinates, interleaved, are the
one vector x_0 = [x0, y0, x1, y1, ...] that the diffusion works on.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

IMG_SIZE = 150
"""Side in pixels of the square that a picture is resized to. Not given in the source:
150 is the value for which the scaling x / 25 - 3 spans 6 units."""

ImageFile = str | os.PathLike[str] | BinaryIO


def scatter_pixels(
    img_file: ImageFile, image_size: int = IMG_SIZE, threshold: int = 50
) -> tuple[list[int], list[int]]:
    """Return the dark pixels of a picture as points: two lists (xs, ys), in pixels.

    The picture is laid on white where it is transparent, turned to grey (0 black, 255
    white), and resized to image_size x image_size, centred on white if it is not square.
    A pixel is dark if its grey is at most `threshold`; it becomes the point
    (column, image_size - row), so y points up. Columns are the outer order, rows, from
    the top, the inner.

    img_file: a path, or a binary file, of any format that Pillow reads; the first frame
    of an animation. Raises ValueError if it cannot be read as a picture.
    """
    try:
        with Image.open(img_file) as image:
            grey = _grey(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise almost anything on bad data
        raise ValueError(f"{img_file} cannot be read as a picture: {error}") from error
    grey = ImageOps.pad(grey, (image_size, image_size), color=255)
    columns, rows = np.nonzero(np.asarray(grey).T <= threshold)
    return columns.tolist(), (image_size - rows).tolist()


def _grey(image: Image.Image) -> Image.Image:
    """Return a picture in 8-bit grey, on white."""
    if image.mode in ("I", "F"):
        raise ValueError("its greys have no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # which Pillow would clip to 8 bits, not scale
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L")


def pack_data(x: Iterable[float], y: Iterable[float]) -> list[float]:
    """Interleave coordinates: [x0, y0, x1, y1, ...]. ValueError if lengths differ."""
    pairs = zip(_as_list(x), _as_list(y), strict=True)
    return [coordinate for point in pairs for coordinate in point]


def unpack_1d_data(
    v: Sequence[float] | np.ndarray | torch.Tensor,
) -> tuple[list[float], list[float]]:
    """Undo `pack_data`: return the lists (x, y) of [x0, y0, x1, y1, ...].

    v: a sequence, array or tensor of one dimension and even length, else ValueError.
    """
    if np.ndim(v) != 1 or len(v) % 2:
        raise ValueError(f"v must be one row of even length, got {np.shape(v)}")
    v = _as_list(v)
    return v[0::2], v[1::2]


def _as_list(values: Iterable[float]) -> list[float]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def image_to_vector(
    img_file: ImageFile,
    image_size: int = IMG_SIZE,
    threshold: int = 50,
    max_points: int = 2500,
) -> torch.Tensor:
    """Turn a picture into the vector x_0: float32, shape (2N,), [x0, y0, x1, y1, ...].

    The N points are those of `scatter_pixels`, scaled as published: with pixels counted
    on a grid of 150, x / 25 - 3 and y / 25 - 2, hence x in [-3, 3) and y in (-2, 4] for
    every image_size. Of more than `max_points` points, that many are kept, evenly spaced
    in their order, with a UserWarning: the network's memory grows with their square.

    Raises as `scatter_pixels` does, and ValueError if fewer than 2 pixels are dark.
    """
    points = np.array(scatter_pixels(img_file, image_size, threshold)).T
    if len(points) < 2:
        raise ValueError(
            f"{img_file}: {len(points)} pixels are as dark as threshold {threshold} "
            "(0 is black, 255 white), and a cloud needs 2: raise --threshold"
        )
    if len(points) > max_points:
        warnings.warn(
            f"{len(points)} dark pixels, thinned evenly to max_points = {max_points}",
            stacklevel=2,
        )
        points = points[np.linspace(0, len(points) - 1, max_points).round().astype(int)]
    scaled = points * (IMG_SIZE / image_size) / 25 - [3, 2]
    return torch.tensor(pack_data(*scaled.T), dtype=torch.float32)
