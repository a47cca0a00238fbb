"""Networks that predict noise. Their arguments are a predictor's: (x_t, signal, noise).

A network sees x_t scaled to unit variance and log(noise / signal), so that one and the
same serves every process whose levels it has seen.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def unit(x_t: Tensor, signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_t / sqrt(signal^2 + noise^2), and log(noise / signal) as (B, 1)."""
    scaled = x_t / (signal.square() + noise.square()).sqrt()
    return scaled, (noise / signal).log().expand(len(x_t), 1)


class PointNetwork(nn.Module):
    """A multilayer perceptron on points of the plane, their Fourier features, and the level.

    The features are sine and cosine of x along `directions` random directions, with 0.3
    to 4 periods per unit: strokes are finer than what a perceptron learns from x alone.

    outputs: 2 for the noise or the velocity, 4 for (eps, v). seed drives the directions
    and the initial weights, and leaves PyTorch's global state as it was.
    """

    def __init__(
        self,
        outputs: int = 2,
        width: int = 128,
        depth: int = 3,
        directions: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            angle = 2 * math.pi * torch.rand(directions)
            periods = torch.logspace(math.log10(0.3), math.log10(4), directions)
            waves = 2 * math.pi * periods * torch.stack([angle.cos(), angle.sin()])
            self.register_buffer("waves", waves)
            self.register_buffer("level_waves", torch.tensor([0.25, 0.5, 1.0, 2.0]))
            sizes = [2 + 2 * directions + 8] + [width] * depth
            layers = []
            for size, next_size in pairwise(sizes):
                layers += [nn.Linear(size, next_size), nn.SiLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        x, level = unit(x_t, signal, noise)
        angles = torch.cat([x @ self.waves, level * self.level_waves], dim=1)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))
