"""Noise levels. Divided by its signal, every forward process is

    y = x_t / signal = x_0 + sigma eps,    sigma = noise / signal,    eps ~ N(0, I)

so processes differ only by the levels sigma that they visit. Levels are a float64
tensor, (T + 1,), the largest first and 0 last; state t of a paper has level T - t.
"""

import math

import torch
from torch import Tensor


def to_zero(sigmas: Tensor) -> Tensor:
    """Return levels of sigmas, (T,), the largest first: 0 is appended."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def unit(y: Tensor, sigma: Tensor | float) -> Tensor:
    """Return y / sqrt(1 + sigma^2): x_t of the variance-preserving process."""
    return y / (1 + torch.as_tensor(sigma).square()).sqrt().to(y)


def variance_preserving(alpha_bars: Tensor) -> Tensor:
    """Return levels of abar_1, ..., abar_T: sigma_t^2 = 1 / abar_t - 1."""
    return to_zero((1 / alpha_bars - 1).sqrt().flip(0))


def linear(steps: int = 1000) -> Tensor:
    """Return DDPM's levels: beta_t grows linearly from 1e-4 to 0.02."""
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    return variance_preserving((1 - betas).cumprod(dim=0))


def cosine(steps: int = 1000) -> Tensor:
    """Return the levels of the cosine schedule, (18), of Nichol and Dhariwal (2021):

    f(t) = cos^2(pi/2 (t/T + s) / (1 + s)), s = 0.008, beta_t = 1 - f(t) / f(t-1), but
    at most 0.999, so that abar_T is 2.4e-9 (T = 1000), not 0.
    """
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    f = (math.pi / 2 * (time + 0.008) / 1.008).cos().square()
    return variance_preserving((f[1:] / f[:-1]).clamp(min=0.001).cumprod(dim=0))


def geometric(levels: int = 10, largest: float = 5.0, smallest: float = 0.01) -> Tensor:
    """Return levels even in log sigma: a VE SDE's, or a noise conditional score network's,
    of which 5 is above the points' largest distance, as Song and Ermon (2020) advise.
    """
    ends = math.log(largest), math.log(smallest)
    return to_zero(torch.linspace(*ends, levels, dtype=torch.float64).exp())


def ve_sigma(s: Tensor) -> Tensor:
    """Return sigma(s) = 0.01 (50 / 0.01)^s of the VE SDE of Song et al. (2021)."""
    return 0.01 * 5000**s


def vp_sde(steps: int = 1000) -> Tensor:
    """Return the levels of the VP SDE of Song et al. (2021) at even times 1, ..., 1e-3."""
    return to_zero(vp_sigma(torch.linspace(1, 1e-3, steps, dtype=torch.float64)))


def vp_sigma(s: Tensor) -> Tensor:
    """Return sigma(s) of the VP SDE, beta(s) = 0.1 + 19.9 s: sigma^2 = 1 / abar - 1,
    abar(s) = exp(-integral of beta) = exp(-0.1 s - 9.95 s^2).
    """
    return (0.1 * s + 9.95 * s.square()).expm1().sqrt()


def vp_time(sigma: Tensor) -> Tensor:
    """Return the time s at which `vp_sigma` is sigma."""
    return ((0.01 + 39.8 * sigma.square().log1p()).sqrt() - 0.1) / 19.9


def straight(steps: int = 100) -> Tensor:
    """Return the levels of rectified flow (Liu et al., 2022) at even times 0.999, ..., 0."""
    time = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    return straight_sigma(0.999 * time)


def straight_sigma(s: Tensor) -> Tensor:
    """Return sigma(s) of x_s = (1 - s) x_0 + s eps."""
    return s / (1 - s)


def karras(largest: float, smallest: float, steps: int = 18) -> Tensor:
    """Return levels even in sigma^(1/7) (Karras et al., 2022)."""
    ends = largest ** (1 / 7), smallest ** (1 / 7)
    return to_zero(torch.linspace(*ends, steps, dtype=torch.float64) ** 7.0)


def kept_rows(steps: int, kept: int) -> Tensor:
    """Return `kept` of the rows 0..steps-1, evenly spaced in t, both ends among them."""
    if not 2 <= kept <= steps:
        raise ValueError(f"of {steps} levels, 2 to {steps} can be kept, not {kept}")
    index = torch.linspace(0, steps - 1, kept, dtype=torch.float64).round().long()
    return steps - 1 - index.flip(0)  # rows descend as t does


def respaced(levels: Tensor, kept: int) -> Tensor:
    """Return `kept` of the levels, evenly spaced, both ends among them, and 0."""
    return to_zero(levels[kept_rows(len(levels) - 1, kept)])


LINEAR, COSINE = linear(), cosine()
