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
from PIL import Image, ImageFilter, ImageOps

IMG_SIZE = 150
"""Side in pixels of the square that a picture is resized to. Not given in the source:
150 is the value for which the scaling x / 25 - 3 spans 6 units."""

ImageFile = str | os.PathLike[str] | BinaryIO | Image.Image


def scatter_pixels(
    img_file: ImageFile, image_size: int = IMG_SIZE, threshold: int = 50
) -> tuple[list[int], list[int]]:
    """Return the dark pixels of a picture as points: two lists (xs, ys), in pixels.

    The picture is laid on white where it is transparent, turned to grey (0 black, 255
    white), and resized to image_size x image_size, centred on white if it is not square.
    A pixel is dark if its grey is at most `threshold`; it becomes the point
    (column, image_size - row), so y points up. Columns are the outer order, rows, from
    the top, the inner.

    img_file: a path or a binary file of any format that Pillow reads, or a Pillow image;
    the first frame of an animation. Raises ValueError if it cannot be read as a picture.
    """
    grey = _square(_read(img_file), image_size)
    columns, rows = np.nonzero(np.asarray(grey).T <= threshold)
    return columns.tolist(), (image_size - rows).tolist()


def _read(img_file: ImageFile) -> Image.Image:
    """Return a picture, upright, in 8 bits: RGBA if it may be transparent, else grey."""
    theirs = isinstance(img_file, Image.Image)
    try:
        with img_file.copy() if theirs else Image.open(img_file) as image:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise ValueError("its greys have no known range: save it with 8 or 16 bits")
        if image.mode.startswith("I;16"):
            greys = np.asarray(image)  # which Pillow would clip to 8 bits, not scale
            clear = greys == image.info.get("transparency", -1)
            image = Image.fromarray((np.where(clear, 65535, greys) // 257).astype("u1"))
        return image.convert("RGBA" if image.has_transparency_data else "L")
    except Exception as error:  # decoders raise almost anything on bad data
        message = f"{img_file!s:.200} cannot be read as a picture: {error!s:.200}"
        raise ValueError(message) from error


def _grey(image: Image.Image, ground: str = "white") -> Image.Image:
    """Return a picture in grey, laid on a ground where it is transparent."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("L")


def _square(image: Image.Image, image_size: int) -> Image.Image:
    return ImageOps.pad(_grey(image), (image_size, image_size), color=255)


def _fit(
    image: Image.Image, image_size: int, threshold: int
) -> tuple[Image.Image, str]:
    """Return a drawing's ink, black on a white square, and what was done to find it."""
    grey = _grey(image)
    if len({*grey.getextrema()}) == 1:  # as white ink on a transparent ground gives
        grey = _grey(image, "black")
    darkest, lightest = grey.getextrema()
    if darkest == lightest:
        raise ValueError(f"nothing is drawn: every pixel is of grey {darkest}")
    pixels = np.asarray(grey)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = max(np.median(pixels), np.median(rim))  # dark if both of them are
    ink = max(darkest, lightest, key=lambda v: abs(v - ground))
    halfway = (ground + ink) / 2
    grey = grey.point(lambda v: 255 * (v - halfway) / (ground - halfway))
    is_ink = [255 * (v <= threshold) for v in range(256)]
    drawing = grey.crop(grey.point(is_ink).getbbox())
    done = "light on dark turned round, " if ink > ground else ""
    done += f"greys of {darkest} to {lightest} stretched, cropped from "
    done += "{} x {} to {} x {} pixels".format(*grey.size, *drawing.size)
    drawing = ImageOps.expand(drawing, max(drawing.size) // 20, 255)
    side = (image_size, image_size)
    if max(drawing.size) < image_size:
        drawing = ImageOps.contain(drawing, side)
    # A thin line fills little of a pixel, but more than half of what its neighbours fill.
    filled = ImageOps.pad(drawing.point(is_ink), side, Image.Resampling.BOX)
    most = np.asarray(filled.filter(ImageFilter.MaxFilter(3)))
    light = np.asarray(filled) <= most // 2
    return Image.fromarray(255 * light.astype("u1")), done


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
    fit: bool = False,
) -> torch.Tensor:
    """Turn a picture into the vector x_0: float32, shape (2N,), [x0, y0, x1, y1, ...].

    The N points are those of `scatter_pixels`, scaled as published: with pixels counted
    on a grid of 150, x / 25 - 3 and y / 25 - 2, hence x in [-3, 3) and y in (-2, 4] for
    every image_size. Of more than `max_points` points, that many are kept, evenly spaced
    in their order: the published network's memory grows with their square.

    fit: find the drawing first. Light on dark is turned round; greys are stretched, so
    that the ground's is 255 and half-way to the ink's 0; the picture is cropped to its
    ink, and thin lines survive the shrinking. A UserWarning says what was done; without
    `fit`, one names few points (under 1 % of the pixels) and many (half, `max_points`).

    Raises as `scatter_pixels` does, and ValueError if fewer than 2 pixels are dark.
    """
    image = _read(img_file)
    if fit:
        image, done = _fit(image, image_size, threshold)
    grey = _square(image, image_size)
    points = np.array(scatter_pixels(grey, image_size, threshold)).T
    count, pixels = len(points), image_size**2
    few, many = count < pixels / 100, count > min(pixels / 2, max_points)
    if fit:
        tip = ", which is few: crop to the drawing, or raise --threshold" if few else ""
        found = f"fit: {done}: {count} points{tip}"
    else:
        found = f"{count} of {pixels} pixels are as dark as threshold {threshold} "
        found += f"(the darkest is {grey.getextrema()[0]}: try --fit)"
    if count < 2:
        raise ValueError(f"{img_file!s:.200}: {found}, and a cloud needs 2")
    if count > max_points:
        found += f", thinned evenly to max_points = {max_points}"
        points = points[np.linspace(0, count - 1, max_points).round().astype(int)]
    if fit or few or many:
        warnings.warn(found, stacklevel=2)
    scaled = points * (IMG_SIZE / image_size) / 25 - [3, 2]
    return torch.tensor(pack_data(*scaled.T), dtype=torch.float32)
