"""Picture, points, vector: the way into the experiment, and the way back.

A picture's dark pixels are points in the plane; their coordinates, interleaved, are the
one vector x_0 = [x0, y0, x1, y1, ...] that the diffusion works on.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

IMG_SIZE = 150
"""Side in pixels of the square that a picture is resized to: x / 25 - 3 then spans 6 units.
The publication does not give its own; its author's code has 200, T. Lira's, before it, 150."""

ImageFile = str | os.PathLike[str] | BinaryIO | Image.Image


def read_square(
    img_file: ImageFile, image_size: int, threshold: int, fit: bool = False
) -> tuple[Image.Image, str]:
    """Return a picture as a square in grey, 0 black to 255 white, and what `fit` did.

    It is turned upright, laid on white where it is transparent, and resized to image_size
    x image_size, centred on white if it is not square.

    img_file: a path or a binary file of any format that Pillow reads, or a Pillow image;
    of an animation, the first frame. fit: find the drawing first. Light on dark is turned
    round; greys are stretched, so that the ground's is 255 and half-way to the ink's 0;
    the picture is cropped to its ink, greys of at most `threshold`, and thin lines survive
    the shrinking. Raises ValueError, which names img_file, if there is no picture in it,
    or if `fit` finds nothing drawn.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of metadata
            image = _read(img_file)
    except Exception as error:  # decoders raise almost anything on bad data
        message = f"{img_file!s:.200} cannot be read as a picture: {error!s:.200}"
        raise ValueError(message) from error
    side = (image_size, image_size)
    grey = _laid_on(image, "white")
    if not fit:
        return ImageOps.pad(grey, side, color=255), ""
    if len({*grey.getextrema()}) == 1:  # as white ink on a transparent ground gives
        grey = _laid_on(image, "black")
    darkest, lightest = grey.getextrema()
    if darkest == lightest:
        raise ValueError(f"{img_file!s:.200}: nothing is drawn: all is grey {darkest}")
    stretched, done = _stretched(grey)
    is_ink = [255 * (v <= threshold) for v in range(256)]
    drawing = stretched.crop(stretched.point(is_ink).getbbox())
    done += ", cropped from {} x {} to {} x {} pixels".format(*grey.size, *drawing.size)
    drawing = ImageOps.expand(drawing, max(drawing.size) // 20, 255)
    if max(drawing.size) < image_size:
        drawing = ImageOps.contain(drawing, side)
    return _shrunk(drawing.point(is_ink), side), done


def _read(img_file: ImageFile) -> Image.Image:
    """Return a picture, upright, in 8 bits: RGBA if it may be transparent, else RGB."""
    theirs = isinstance(img_file, Image.Image)
    with img_file.copy() if theirs else Image.open(img_file) as image:
        kind = img_file.format if theirs else image.format
        image.load()
        with suppress(Exception):  # what cannot be parsed is as if it were not there
            ImageOps.exif_transpose(image, in_place=True)
    # Greys up to 65,535, which Pillow would clip to 8 bits, not scale.
    if image.mode.startswith("I;16") or (image.mode, kind) == ("I", "PPM"):
        greys = np.asarray(image)
        clear = greys == image.info.get("transparency", -1)
        image = Image.fromarray((np.where(clear, 65535, greys) // 257).astype("u1"))
    if image.mode in ("I", "F"):
        raise ValueError("its greys have no known range: save it with 8 or 16 bits")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _laid_on(image: Image.Image, ground: str) -> Image.Image:
    """Return a picture in grey, laid on a ground where it is transparent."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("L")


def _stretched(grey: Image.Image) -> tuple[Image.Image, str]:
    """Return a drawing whose ground is 255 and half-way to its ink 0, and what was done."""
    darkest, lightest = grey.getextrema()
    pixels = np.asarray(grey)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = max(np.median(pixels), np.median(rim))  # dark if both of them are
    ink = max(darkest, lightest, key=lambda v: abs(v - ground))
    halfway = (ground + ink) / 2
    done = "light on dark turned round, " if ink > ground else ""
    done += f"greys of {darkest} to {lightest} stretched"
    return grey.point(lambda v: 255 * (v - halfway) / (ground - halfway)), done


def _shrunk(ink: Image.Image, side: tuple[int, int]) -> Image.Image:
    """Return white ink on black as black on a white square, with thin lines kept."""
    # A thin line fills little of a pixel, but more than half of what its neighbours fill.
    filled = ImageOps.pad(ink, side, Image.Resampling.BOX)
    most = np.asarray(filled.filter(ImageFilter.MaxFilter(3)))
    light = np.asarray(filled) <= most // 2
    return Image.fromarray(255 * light.astype("u1"))


def scatter_pixels(
    img_file: ImageFile, image_size: int = IMG_SIZE, threshold: int = 50
) -> tuple[list[int], list[int]]:
    """Return the dark pixels of a picture as points: two lists (xs, ys), in pixels.

    A pixel of `read_square` is dark if its grey is at most `threshold`; it becomes the
    point (column, image_size - row), y up, columns outer and rows, from the top, inner.
    """
    grey, _ = read_square(img_file, image_size, threshold)
    return tuple(_dark(grey, threshold).T.tolist())


def _dark(grey: Image.Image, threshold: int) -> np.ndarray:
    """Return the dark pixels as points, (N, 2)."""
    columns, rows = np.nonzero(np.asarray(grey).T <= threshold)
    return np.stack([columns, grey.height - rows], axis=1)


def pack_data(x: Iterable[float], y: Iterable[float]) -> list[float]:
    """Interleave coordinates: [x0, y0, x1, y1, ...]. ValueError if lengths differ."""
    return [c for point in zip(_as_list(x), _as_list(y), strict=True) for c in point]


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
    fit: bool = False,
) -> torch.Tensor:
    """Turn a picture into x_0 = [x0, y0, x1, y1, ...]: (2N,), float32, on the CPU.

    The N points are the dark pixels of `read_square`, scaled as published: on a grid of
    150, x / 25 - 3 and y / 25 - 2, hence x in [-3, 3) and y in (-2, 4] for every
    image_size. Of more than `max_points`, that many are kept, evenly spaced in their
    order: the published network's memory grows with their square.

    A UserWarning says what `fit` did, and, without it, if points are few (under 1 % of
    the pixels) or many (half, `max_points`). Raises ValueError as `read_square` does, and
    if there are fewer than 2.
    """
    grey, done = read_square(img_file, image_size, threshold, fit)
    points = _dark(grey, threshold)
    count, pixels = len(points), image_size**2
    few, many = count < pixels / 100, count > min(pixels / 2, max_points)
    if fit:
        tip = ", which is few: crop to the drawing, or raise --threshold" if few else ""
        found = f"fit: {done}: {count} points{tip}"
    else:
        found = f"{count} of {pixels} pixels are as dark as threshold {threshold} "
        found += f"(the darkest is {grey.getextrema()[0]}: try --fit)"
    if count > max_points:
        found += f", thinned evenly to max_points = {max_points}"
        points = points[np.linspace(0, count - 1, max_points).round().astype(int)]
    if len(points) < 2:
        raise ValueError(f"{img_file!s:.200}: {found}, and a cloud needs 2")
    if fit or few or many:
        warnings.warn(found, stacklevel=2)
    x, y = (points * (IMG_SIZE / image_size) / 25 - [3, 2]).T
    return torch.tensor(pack_data(x, y), dtype=torch.float32, device="cpu")
