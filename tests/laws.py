"""What several tests of the comparison use: its data sets, and predictors."""

from functools import cache

import torch

from comparison.laws import pictures, points

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


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def wavy(x_t, signal, noise):
    """A predictor of nothing in particular."""
    return signal * x_t.sin() + 0.3 * noise * x_t.flip(1)


def wavy_and_v(x_t, signal, noise):
    return torch.cat([wavy(x_t, signal, noise), 0.5 + x_t.cos()], dim=1)
