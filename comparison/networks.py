"""Networks, callables of (y, sigma) as denoisers are; a `Target` says what they predict.

Seeing y / sqrt(1 + sigma^2) and log(sigma), one serves all processes of levels it has seen.
"""

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

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


class Attention(nn.Module):
    """Self-attention between the pixels, one head: x + what each takes from all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)
        mixed = scaled_dot_product_attention(*pixels.chunk(3, dim=2))
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """A U-Net on square pictures, after Ho et al. (2020) and the survey, but smaller.

    Beside each pixel stand its row and its column, from -1 to 1 (Liu et al., 2018). Each
    resolution has a block on the way down and two on the way up, which are given all states
    of the way down, the last one first. Between resolutions are strided convolutions, and
    convolutions of doubled pixels; in the middle, self-attention between two blocks.
    channels: of each resolution, the highest first; multiples of 8, GroupNorm's groups.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        width, level = channels[0], 4 * channels[0]
        self.register_buffer("level_waves", torch.logspace(-1, 1, level // 2))
        self.level = nn.Sequential(
            nn.Linear(level, level), nn.SiLU(), nn.Linear(level, level), nn.SiLU()
        )
        self.first = nn.Conv2d(3, width, 3, padding=1)
        skips, down, up = [width], [], []
        for depth, outputs in enumerate(channels):
            if depth > 0:
                down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            down.append(Block(width, outputs, level))
            width = outputs
            skips.append(width)
        before, after = (Block(width, width, level) for _ in range(2))
        middle = before, Attention(width), after
        for depth, outputs in reversed([*enumerate(channels)]):
            for _ in range(2):
                up.append(Block(width + skips.pop(), outputs, level))
                width = outputs
            if depth > 0:
                width = channels[depth - 1]
                up.append(nn.Conv2d(outputs, width, 3, padding=1))
        self.down, self.middle, self.up = map(nn.ModuleList, (down, middle, up))
        self.norm = nn.GroupNorm(8, width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Take and return (B, side^2), side a multiple of 2^(len(channels) - 1)."""
        sigma = sigma.expand(len(y), 1)
        if len(y) > 100:  # which on a CPU would take twice as long at once
            parts = zip(y.split(100), sigma.split(100))
            return torch.cat([self(*part) for part in parts])
        angles = sigma.log() * self.level_waves
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        side = math.isqrt(y.shape[1])
        places = torch.linspace(-1, 1, side).to(y)
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"))
        x = unit(y, sigma).view(-1, 1, side, side)
        planes = [x, grid.expand(len(x), -1, -1, -1)]
        h = self.first(torch.cat(planes, dim=1))
        states = [h]
        for piece in self.down:
            h = piece(h, level) if isinstance(piece, Block) else piece(h)
            states.append(h)
        before, attention, after = self.middle
        h = after(attention(before(h, level)), level)
        for piece in self.up:
            if isinstance(piece, Block):
                h = piece(torch.cat([h, states.pop()], dim=1), level)
            else:
                h = piece(interpolate(h, scale_factor=2.0))
        return self.last(silu(self.norm(h))).flatten(1)
