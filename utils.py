"""Picture to points to vector, and vector to points.

The dark pixels of a picture are points in the plane. Their coordinates, interleaved as
[x, y, x, y, ...], are the one vector x_0 that the diffusion works on.
"""

import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

IMG_SIZE = 150
"""Side in pixels, as in T. Lira's code; the publication prints none, and uses 200."""

ImageFile = str | os.PathLike[str] | BinaryIO | Image.Image
Drawing = tuple[Image.Image, str]  # and what `fit` did
Vector = TypeVar("Vector", list[float], np.ndarray, torch.Tensor)


def read_square(
    img_file: ImageFile, image_size: int, threshold: int, fit: bool = False
) -> Drawing:
    """Return a picture as a square of greys, 0 to 255 (white), and what `fit` did.

    The picture (the first frame of an animation) is turned as its EXIF says, laid on
    white where it is transparent, and padded with white. `fit` finds the drawing first:
    it maps the background to 255 and halfway to the ink to 0, drops specks, crops to
    greys of at most `threshold`, and redraws these in black, thin lines kept.
    Raises ValueError, naming img_file, if it is unreadable or, with `fit`, blank.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # mostly about metadata
            image = _read(img_file)
    except Exception as error:  # decoders raise almost anything on bad data
        reason = f"{str(error) or type(error).__name__:.200}"
        raise ValueError(f"{img_file!s:.200} cannot be read: {reason}") from error
    if not fit:
        return ImageOps.pad(_grey(image, "white"), (image_size,) * 2, color=255), ""
    for ground in ("white", "black"):  # where white ink would not show
        if found := _fit(_grey(image, ground), image_size, threshold):
            return found
    raise ValueError(f"{img_file!s:.200} is blank or has only specks")


def _read(img_file: ImageFile) -> Image.Image:
    """Return a picture, upright, in 8 bits: RGBA if it may be transparent, else RGB."""
    source = img_file if isinstance(img_file, Image.Image) else Image.open(img_file)
    with source.copy() if source is img_file else source as image:
        image.load()
        with suppress(Exception):  # damaged metadata count as none
            ImageOps.exif_transpose(image, in_place=True)
    # Greys up to 65,535: Pillow would clip them at 255, not scale them.
    if image.mode.startswith("I;16") or (image.mode, source.format) == ("I", "PPM"):
        greys = np.asarray(image)
        clear = greys == image.info.get("transparency", -1)
        image = Image.fromarray((np.where(clear, 65535, greys) // 257).astype("u1"))
    if image.mode in ("I", "F"):
        raise ValueError("its greys have no known range: save it with 8 or 16 bits")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _grey(image: Image.Image, ground: str) -> Image.Image:
    """Return a picture in grey, over `ground` where it is transparent."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("L")


def _contrast(pixels: np.ndarray) -> tuple[float, float]:
    """Return the greys of background and ink, robust to a few odd pixels."""
    rim = np.append(pixels[[0, -1]], pixels[:, [0, -1]])
    ground = max(np.median(pixels), np.median(rim))  # dark only if both medians are
    apart = (pixels - ground).ravel()
    noise = min(6 * np.quantile(abs(apart), 0.25), abs(apart).max() / 2)
    sign = 1 if apart[abs(apart) > noise].sum() > 0 else -1
    away = np.sort(sign * apart[sign * apart >= noise])[::-1]
    between = (away - noise).cumsum() ** 2 / np.arange(1, len(away) + 1)  # Otsu's
    return ground, ground + sign * away[between.argmax() // 4]


def _fit(grey: Image.Image, size: int, threshold: int) -> Drawing | None:
    """Return the drawing, found as `read_square` says, or None if there is no ink."""
    side = max(grey.size)
    if np.ptp(np.quantile(np.asarray(grey), [0.25, 0.75])) > 1:  # a noisy background
        grey = grey.filter(ImageFilter.BoxBlur(side // 1200))
    ground, ink = _contrast(pixels := np.asarray(grey, dtype=float))
    share = (pixels - ground) / (ink - ground or 1)  # of the way to the ink
    is_ink = np.interp(share, [0, 0.5], [255, 0]) <= threshold
    # A speck has less ink around it than the end of a line one pixel wide.
    for reach in (side // 50, side // 100, side // 200):
        sums = np.pad(is_ink, ((reach + 1, reach),) * 2)
        for _ in range(2):
            sums = ((up := sums.cumsum(0))[2 * reach + 1 :] - up[: -2 * reach - 1]).T
        is_ink &= sums > reach
    filled = Image.fromarray(is_ink)
    if not (box := filled.getbbox()):
        return None
    filled = filled.crop(box).convert("L")
    whole, small = filled.size == grey.size, min(filled.size)
    if np.asarray(filled).mean() > 204 and small > side / 4 + 2 and not whole:
        sheet = ImageOps.crop(grey.crop(box), small // 50 + 1)
        drawn = np.ptp(_contrast(np.asarray(sheet))) > abs(ink - ground) / 4
        if drawn and (found := _fit(sheet, size, threshold)):
            return found[0], f"on a sheet, {found[1]}"
    kind = "light" if ink > ground else "dark"
    done = f"{kind} ink (grey {ink:.0f} on {ground:.0f}), "
    done += "cropped from {} x {} to {} x {} pixels".format(*grey.size, *filled.size)
    filled = ImageOps.expand(filled, max(filled.size) // 20)
    part, least = 0.5, 0  # of the fullest neighbour: thin lines fill little of a pixel
    if max(filled.size) < size:  # but much, blurred, if they are enlarged
        filled, part, least = ImageOps.contain(filled, (size, size)), 0.8, 64
    filled = ImageOps.pad(filled, (size, size), Image.Resampling.BOX)
    most = np.asarray(filled.filter(ImageFilter.MaxFilter(3)))
    light = np.asarray(filled) <= np.maximum(part * most, least)
    return Image.fromarray(255 * light.astype("u1")), done


def _dark_pixels(grey: Image.Image, threshold: int) -> np.ndarray:
    columns, rows = np.nonzero(np.asarray(grey).T <= threshold)
    return np.stack([columns, grey.height - rows], axis=1)  # (N, 2)


def scatter_pixels(
    img_file: ImageFile, image_size: int = IMG_SIZE, threshold: int = 50
) -> tuple[list[int], list[int]]:
    """Return the pixels whose grey is at most `threshold` as (xs, ys), in pixels.

    x is the column and y is image_size - row; column by column, each from the top.
    """
    grey, _ = read_square(img_file, image_size, threshold)
    xs, ys = _dark_pixels(grey, threshold).T.tolist()
    return xs, ys


def pack_data(x: Iterable[float], y: Iterable[float]) -> list[float]:
    """Return [x, y, x, y, ...]. Raises ValueError if the lengths differ."""
    return [c for point in zip(x, y, strict=True) for c in point]


def unpack_1d_data(v: Vector) -> tuple[Vector, Vector]:
    """Undo `pack_data`: return (x, y) of [x, y, x, y, ...], (2N,)."""
    return v[0::2], v[1::2]


def image_to_vector(
    img_file: ImageFile,
    image_size: int = IMG_SIZE,
    threshold: int = 50,
    max_points: int = 2500,
    fit: bool = False,
) -> torch.Tensor:
    """Return a picture as x_0, interleaved as by `pack_data`: (2N,), float32.

    The N points are the dark pixels of `read_square`, scaled to a grid of 150 and then
    as published, x / 25 - 3 and y / 25 - 2: x in [-3, 3) and y in (-2, 4]. If there are
    more than `max_points`, that many are kept, even in the plane (Roberts's R2 dither).
    A warning says what `fit` did, or that points are few (under 1 % of the pixels) or
    many (over half, or `max_points`). Raises ValueError also for fewer than 2 points.
    """
    grey, done = read_square(img_file, image_size, threshold, fit)
    points = _dark_pixels(grey, threshold)
    count, pixels = len(points), image_size**2
    few, many = count < pixels / 100, count > min(pixels / 2, max_points)
    if fit:
        found = f"fit: {done}: {count} points"
        found += ", too few: crop to the drawing, or raise --threshold" * few
        found += ", many: if the background is ink, crop it" * (count > pixels / 8)
    else:
        found = f"{count} of {pixels} pixels are no lighter than threshold {threshold} "
        found += f"(the darkest is {np.asarray(grey).min()}: try --fit)"
    if count > max_points:
        found += f", thinned evenly to max_points = {max_points}"
        order = np.argsort(points @ [0.7548776662, 0.5698402910] % 1, kind="stable")
        points = points[np.sort(order[:max_points])]
    if len(points) < 2:
        raise ValueError(f"{img_file!s:.200}: {found}; at least 2 are needed")
    if fit or few or many:
        warnings.warn(found, stacklevel=2)
    x, y = (points * (IMG_SIZE / image_size) / 25 - [3, 2]).T
    return torch.tensor(pack_data(x, y), dtype=torch.float32)
