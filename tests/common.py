"""What several tests use: pictures, films, numbers, a tiny experiment."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils import IMG_SIZE

ROOT = Path(__file__).parents[1]
HOMER = ROOT / "homer.png"
TINY = "--image-size=24 --threshold=200 --epochs=2 --steps-per-epoch=5 --dpi=40"
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
cuda = pytest.param("cuda", marks=no_cuda)


def seeded_by(number):
    return torch.Generator().manual_seed(number)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded_by(seed))


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
