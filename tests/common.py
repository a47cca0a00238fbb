"""What several tests use: a tiny experiment, pictures, films."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion import PredictStart, noise_schedule
from utils import IMG_SIZE

ROOT = Path(__file__).parents[1]
HOMER = ROOT / "homer.png"
TINY = "--image-size=24 --threshold=200 --epochs=2 --steps-per-epoch=5 --dpi=40"
SCHEDULE = noise_schedule(8, 0.02, 0.5)
X_START = torch.tensor([-1.0, 0.5, 0.0, 2.0, 1.0, -1.0, 2.0, 1.0])


def seeded_by(number):
    return torch.Generator().manual_seed(number)


def by_hand(alphas, t):
    """alpha_t, abar_t and abar_{t-1} from a product over plain numbers."""
    numbers = alphas.tolist()
    return numbers[t], math.prod(numbers[: t + 1]), math.prod(numbers[:t])


def exact_denoiser(x_start, schedule=SCHEDULE):
    return PredictStart(lambda x_t, t: x_start, *schedule)


def film(path):
    """Return the frames of a GIF, as arrays, and their durations in milliseconds."""
    with Image.open(path) as gif:
        frames, durations = [], []
        for k in range(gif.n_frames):
            gif.seek(k)
            frames.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
    return frames, durations


def white(side=IMG_SIZE):
    return np.full((side, side), 255)


def picture(grey):
    """A PNG file, in memory, of an array of greys."""
    return saved(Image.fromarray(np.asarray(grey, dtype=np.uint8)), "png")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def drawing(kind):
    """homer.png in another format or mode."""
    with Image.open(HOMER) as image:
        grey = image.convert("L")
    ink = 255 - np.asarray(grey)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise, to stand upright
    clear = np.zeros((600, 600, 4), dtype=np.uint8)  # black, opaque where there is ink
    clear[..., 3] = ink
    match kind:
        case "1-bit" | "palette" | "RGB" | "RGBA":
            mode = {"1-bit": "1", "palette": "P"}.get(kind, kind)
            return saved(grey.convert(mode), "png")
        case "16-bit":
            greys = np.asarray(grey).astype(np.uint16) * 257
            return saved(Image.fromarray(greys), "png")
        case "transparent 16-bit":  # black, which is clear, but for the ink
            greys = np.where(ink < 128, 0, 257).astype(np.uint16)
            return saved(Image.fromarray(greys), "png", transparency=0)
        case "transparent":
            return saved(Image.fromarray(clear), "png")
        case "grey and alpha":
            return saved(Image.fromarray(clear).convert("LA"), "png")
        case "transparent palette":
            image = Image.fromarray((ink < 128).astype(np.uint8)).convert("P")
            image.putpalette([0, 0, 0, 90, 0, 0])
            return saved(image, "gif", transparency=1)
        case "EXIF":
            on_its_side = grey.transpose(Image.Transpose.ROTATE_90)
            return saved(on_its_side, "jpeg", exif=turned)
        case "animation":
            return saved(grey, "gif", save_all=True, append_images=[grey.rotate(90)])
        case "JPEG CMYK":
            return saved(grey.convert("RGB").convert("CMYK"), "jpeg")
        case _:
            return saved(grey.convert("RGB"), kind)
