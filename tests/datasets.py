"""What several tests of the comparison use: its data sets, and denoisers."""

from dataclasses import replace
from functools import cache

import torch

from comparison.pictures import pictures
from comparison.points import points

DDPM_BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
X_START = torch.tensor([-1.0, 0.5, 0.0, 2.0, 1.0, -1.0, 2.0, 1.0])


@cache
def dataset(name):
    """A data set of homer.png, drawn once for all tests; of pictures a few are fitted."""
    return replace(pictures(), fitted=12) if name == "pictures" else points()


@cache
def tiny(name):
    """A data set of a few data."""
    if name == "pictures":
        return pictures(side=16, count=20)
    return replace(dataset(name), data=dataset(name).data[::100])


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def wavy(y, sigma):
    """Noise that depends on y and sigma, of nothing in particular."""
    scale = (1 + sigma**2).sqrt()
    return (y / scale).sin() / scale + 0.3 * sigma / scale * (y / scale).flip(1)


def wavy_denoiser(y, sigma):
    return y - sigma * wavy(y, sigma)


def wavy_and_v(y, sigma):
    scale = (1 + sigma**2).sqrt()
    return torch.cat([wavy(y, sigma), 0.5 + (y / scale).cos()], dim=1)
