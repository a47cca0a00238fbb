"""What several tests use: a tiny experiment, pictures, films."""

import inspect
import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from comparison.laws import pictures, points
from diffusion import PredictStart, noise_schedule
from utils import IMG_SIZE

ROOT = Path(__file__).parents[1]
HOMER = ROOT / "homer.png"
TINY = "--image-size=24 --threshold=200 --epochs=2 --steps-per-epoch=5 --dpi=40"
SCHEDULE = noise_schedule(8, 0.02, 0.5)
DDPM_BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
X_START = torch.tensor([-1.0, 0.5, 0.0, 2.0, 1.0, -1.0, 2.0, 1.0])


@cache
def law(name):
    """A law of homer.png, drawn once for all tests; of pictures a few are fitted."""
    return pictures()._replace(fitted=12) if name == "pictures" else points()


@cache
def tiny(name):
    """A law of a few data."""
    if name == "pictures":
        return pictures(side=16, count=20)
    return law(name)._replace(data=law(name).data[::100])


def seeded_by(number):
    return torch.Generator().manual_seed(number)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded_by(seed))


def wavy(x_t, signal, noise):
    """A predictor of nothing in particular."""
    return signal * x_t.sin() + 0.3 * noise * x_t.flip(1)


def wavy_and_v(x_t, signal, noise):
    return torch.cat([wavy(x_t, signal, noise), 0.5 + x_t.cos()], dim=1)


def exact_denoiser(x_start, schedule=SCHEDULE):
    return PredictStart(lambda x_t, t: x_start, *schedule)


def recorded(monkeypatch, module, *names):
    """What functions of a module are given, and what they return, in their last calls."""
    given, returned = {}, {}

    def record(name, function):
        def recording(*args, **kwargs):
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            given[name] = bound.arguments
            returned[name] = function(*args, **kwargs)
            return returned[name]

        monkeypatch.setattr(module, name, recording)

    for name in names:
        record(name, getattr(module, name))
    return given, returned


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
