"""Networks, called (y, sigma) as denoisers are; a `Target` says what they predict.

Seeing y / sqrt(1 + sigma^2) and log(sigma), one serves all processes of levels it has seen.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from comparison.levels import unit


class PointNetwork(nn.Module):
    """A multilayer perceptron on points of the plane, their Fourier features, and the level.

    The features are sine and cosine of x along 128 random directions, with 0.3 to 4
    periods per unit: strokes are finer than what a perceptron learns from x alone.
    """

    def __init__(self, outputs: int = 2, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        angle = 2 * math.pi * torch.rand(128)
        periods = torch.logspace(math.log10(0.3), math.log10(4), 128)
        waves = 2 * math.pi * periods * torch.stack([angle.cos(), angle.sin()])
        self.register_buffer("waves", waves)
        self.register_buffer("level_waves", torch.tensor([0.25, 0.5, 1.0, 2.0]))
        sizes = [2 + 2 * 128 + 2 * 4] + [width] * depth
        pairs = ((nn.Linear(*pair), nn.SiLU()) for pair in pairwise(sizes))
        self.layers = nn.Sequential(*chain(*pairs), nn.Linear(width, outputs))

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        x, level = unit(y, sigma), sigma.log().expand(len(y), 1)
        angles = torch.cat([x @ self.waves, level * self.level_waves], dim=1)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))


# The U-Net. Shapes inside are (B, channels, height, width); `level` is (B, L).


class Block(nn.Module):
    """A residual block, told the level by adaptive group normalisation, (17):

    h = conv(SiLU(GroupNorm(x)))
    h = conv(SiLU((1 + scale) GroupNorm(h) + shift)),    scale, shift linear in level
    x + h, where x goes through a 1x1 convolution if its channels are not `outputs`
    """

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, inputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(level, 2 * outputs)
        self.norm_2 = nn.GroupNorm(8, outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)  # at first it adds its bias alone
        same = inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_1(silu(self.norm_1(x)))
        h = self.conv_2(silu((1 + scale) * self.norm_2(h) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """A U-Net on square pictures, after Ho et al. (2020), but smaller.

    It takes patches of 2 x 2 pixels, and beside each its row and its column, from -1 to 1
    (Liu et al., 2018). Every resolution but the lowest has a block on the way down and one
    on the way up, which is also given the state of the way down. At the lowest, attention
    follows the first of three blocks; the mean of the last, which knows the pose, joins the
    level. A block on single pixels, `thin` channels wide, draws the strokes.
    channels: of each resolution, the highest first; all are multiples of 8.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 64), thin: int = 16) -> None:
        super().__init__()
        *upper, lowest = channels
        level, conv = 4 * channels[0], partial(nn.Conv2d, kernel_size=3, padding=1)
        self.register_buffer("level_waves", torch.logspace(-1, 1, level // 2))
        self.level = nn.Sequential(
            nn.Linear(level, level), nn.SiLU(), nn.Linear(level, level), nn.SiLU()
        )
        self.first = conv(4 + 2, channels[0])
        widths = pairwise([channels[0], *upper])
        self.down = nn.ModuleList(Block(a, b, level) for a, b in widths)
        self.shrink = nn.ModuleList(conv(a, a, stride=2) for a in upper)
        self.before = Block(upper[-1], lowest, level)
        self.norm = nn.GroupNorm(8, lowest)
        self.attention = nn.MultiheadAttention(lowest, 1, batch_first=True)
        self.after = nn.ModuleList(Block(lowest, lowest, level) for _ in range(2))
        self.pose = nn.Linear(lowest, level)
        self.grow = nn.ModuleList(conv(b, a) for a, b in pairwise(channels))
        self.up = nn.ModuleList(Block(2 * a, a, level) for a in upper)
        self.patches, self.pixels = conv(channels[0], 4 * thin), conv(1, thin)
        self.strokes = Block(thin, thin, level)
        self.last = conv(thin, 1)
        self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Take and return (B, side^2), side a multiple of 2^len(channels)."""
        sigma = sigma.expand(len(y), 1)
        if len(y) > 100:  # which on a CPU would take twice as long at once
            parts = zip(y.split(100), sigma.split(100))
            return torch.cat([self(*part) for part in parts])
        angles = sigma.log() * self.level_waves
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        side = math.isqrt(y.shape[1])
        x = unit(y, sigma).view(-1, 1, side, side)
        places = torch.linspace(-1, 1, side // 2).to(x)
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"))
        planes = [pixel_unshuffle(x, 2), grid.expand(len(x), -1, -1, -1)]
        h = self.first(torch.cat(planes, dim=1))
        states = []
        for block, shrink in zip(self.down, self.shrink):
            states.append(block(h, level))
            h = shrink(states[-1])
        h = self.before(h, level)
        pixels = self.norm(h).flatten(2).mT
        mixed, _ = self.attention(pixels, pixels, pixels, need_weights=False)
        h = h + mixed.mT.reshape(h.shape)
        for block in self.after:
            h = block(h, level)
        level = level + self.pose(h.mean(dim=(2, 3)))
        for grow, block, state in reversed([*zip(self.grow, self.up, states)]):
            h = grow(interpolate(h, scale_factor=2.0))
            h = block(torch.cat([h, state], dim=1), level)
        h = pixel_shuffle(self.patches(h), 2) + self.pixels(x)
        return self.last(silu(self.strokes(h, level))).flatten(1)
