"""Samplers, each for any denoiser. All but `heun` and `euler_maruyama` step to

    y = D + ratio (y - D) + s z,    D = denoiser(y, here)

where D estimates x_0 at the level `here`, and the step leads to the level `there`:

    ratio = there / here,    s = 0                     DDIM, the probability flow by Euler
    ratio = (there / here)^2,    s^2 = a variance      DDPM, reverse diffusion

with sqrt(there^2 - s^2) / here between them. A sampler is a generator of states y,
(B, D): the start first, x_0 last. `levels` are those of `levels.py`; `generator` drives
the randomness, None means PyTorch's global state.
"""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from comparison.denoisers import Denoiser, Variance, beta, posterior
from comparison.levels import kept_rows, vp_time

MaybeGenerator = torch.Generator | None


def last(states: Iterator[Tensor]) -> Tensor:
    """Return the last state that a sampler gives."""
    return deque(states, maxlen=1).pop()


def normal_like(y: Tensor, generator: MaybeGenerator) -> Tensor:
    """Return standard normal noise of y's shape, dtype and device."""
    return torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)


def step(
    x_start: Tensor, y: Tensor, ratio: Tensor, s2: Tensor, generator: MaybeGenerator
) -> Tensor:
    """Return D + ratio (y - D) + s z; no z is drawn if s is 0 throughout."""
    y = x_start + ratio * (y - x_start)
    return y + s2.sqrt() * normal_like(y, generator) if s2.any() else y


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    variance: Variance = beta,
    generator: MaybeGenerator = None,
) -> Iterator[Tensor]:
    """Draw by DDPM, Ho et al.'s algorithm 2, without noise in the last step.

    x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + sigma_t z
    variance: s^2 = sigma_t^2 / abar_{t-1}, `beta` or `posterior` for instance.
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        x_start, s2 = denoiser(y, here), variance(y, here, there) * (there > 0)
        y = step(x_start, y, (there / here) ** 2, s2, generator)
        yield y


@torch.no_grad()
def ddpm_stale_alphas(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    kept: int = 50,
    generator: MaybeGenerator = None,
) -> Iterator[Tensor]:
    """Show a bug: DDPM that skips levels, as if each step still led to the next level.

    `kept` levels are visited, each with its own alpha_t, so that a step removes the noise
    of one level where many are due, and x_{t-1} is taken for x at the next level kept: in
    y, it is multiplied by the quotient of the signals. `respaced` is right.
    huggingface/diffusers had this bug until its pull request 2076, January 2023.
    """
    yield y
    levels = levels.to(y)
    rows = [*kept_rows(len(levels) - 1, kept).tolist(), len(levels) - 1]
    for row, below in pairwise(rows):
        here, there = levels[row], levels[row + 1]
        x_start, s2 = denoiser(y, here), beta(y, here, there) * (there > 0)
        y = step(x_start, y, (there / here) ** 2, s2, generator)
        y = y * ((1 + levels[below] ** 2) / (1 + there**2)).sqrt()
        yield y


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    eta: float = 0.0,
    generator: MaybeGenerator = None,
) -> Iterator[Tensor]:
    """Draw by DDIM, (31), with sigma_t = eta sqrt(beta~_t).

    x_{t-1} = signal_{t-1} x_0 + sqrt(noise_{t-1}^2 - sigma_t^2) eps + sigma_t z
    With eta = 1 it is DDPM with beta~_t, with 0 deterministic: Euler's method on the
    probability flow, and on `straight` levels the sampler of rectified flow.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be 0 to 1, got {eta}")
    yield y
    for here, there in pairwise(levels.to(y)):
        s2 = eta**2 * posterior(y, here, there)
        ratio = (there**2 - s2).sqrt() / here
        y = step(denoiser(y, here), y, ratio, s2, generator)
        yield y


@torch.no_grad()
def encode(denoiser: Denoiser, levels: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Run DDIM backwards, from data, the first state, to noise. Each step takes D at the
    level where it starts, but the first, from 0, at the level where it ends.
    """
    yield y
    for here, there in pairwise(levels.to(y).flip(0)):
        at = here if here > 0 else there
        y = y + (there - here) * (y - denoiser(y, at)) / at
        yield y


@torch.no_grad()
def inpaint(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    known: Tensor,
    given: Tensor,
    *,
    generator: MaybeGenerator = None,
) -> Iterator[Tensor]:
    """Draw the rest of data of which a part is given: DDPM with beta~_t and replacement.

    Before each step, the given part of y becomes known + here z, at the end known. The
    rest follows the conditional distribution only approximately. known: (D,) or (B, D);
    given: which coordinates are, bool, of the same shape.
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        y = torch.where(given, known + here * normal_like(y, generator), y)
        x_start, s2 = denoiser(y, here), posterior(y, here, there)
        y = step(x_start, y, (there / here) ** 2, s2, generator)
        yield y if there > 0 else torch.where(given, known, y)


@torch.no_grad()
def langevin(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    rate: float = 0.2,
    denoise: bool = False,
    generator: MaybeGenerator = None,
) -> Iterator[Tensor]:
    """Draw by annealed Langevin dynamics (Song and Ermon, 2019, algorithm 1): at each level,
    `steps` times,

    y <- y + a/2 score + sqrt(a) z,    a = rate sigma^2,    score = (D - y) / sigma^2
    With one level it is plain Langevin dynamics, (43). denoise: end with D.
    """
    yield y
    for sigma in levels[:-1].to(y):
        for _ in range(steps):
            towards = rate / 2 * (denoiser(y, sigma) - y)
            y = y + towards + rate**0.5 * sigma * normal_like(y, generator)
            yield y
    if denoise:
        yield denoiser(y, sigma)


@torch.no_grad()
def euler_maruyama(
    denoiser: Denoiser, levels: Tensor, y: Tensor, *, generator: MaybeGenerator = None
) -> Iterator[Tensor]:
    """Solve the reverse VP SDE, (35), in x_s = y / sqrt(1 + sigma^2), by Euler-Maruyama,
    over the times s of the levels, without noise in the last step.

    x <- x + (x/2 + score) beta(s) ds + sqrt(beta(s) ds) z,    beta(s) = 0.1 + 19.9 s
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        s, signal = vp_time(here), (1 + here**2) ** -0.5
        rise = (0.1 + 19.9 * s) * (s - vp_time(there))  # beta ds
        x, noise = signal * y, here * signal
        score = signal * (denoiser(y, here) - y) / noise**2
        x = x + (x / 2 + score) * rise
        if there > 0:
            x = x + rise.sqrt() * normal_like(x, generator)
        y = x * (1 + there**2).sqrt()
        yield y


@torch.no_grad()
def predictor_corrector(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    snr: float = 0.16,
    corrections: int = 1,
    generator: MaybeGenerator = None,
) -> Iterator[Tensor]:
    """Draw by correctors and predictor on the VE SDE, the survey's figure 11, a state a level.

    corrector: y <- y + e score + sqrt(2 e) z, e = 2 (snr mean norm(z) / mean norm(score))^2
    predictor: reverse diffusion, s^2 = here^2 - there^2
    Means are over the batch. The corrector comes first, as in Song et al.'s code (2021).
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        for _ in range(corrections):
            score, z = (denoiser(y, here) - y) / here**2, normal_like(y, generator)
            e = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()).square()
            y = y + e * score + (2 * e).sqrt() * z
        x_start, s2 = denoiser(y, here), (here**2 - there**2) * (there > 0)
        y = step(x_start, y, (there / here) ** 2, s2, generator)
        yield y


@torch.no_grad()
def heun(
    denoiser: Denoiser, levels: Tensor, y: Tensor, *, generator: MaybeGenerator = None
) -> Iterator[Tensor]:
    """Solve the probability flow, dy / dsigma = (y - D) / sigma, by Heun's method.

    The last step, to 0, is Euler's: 2 T - 1 evaluations (Karras et al., 2022, algorithm
    1). generator is unused; the sampler of every row is given one.
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        slope = (y - denoiser(y, here)) / here
        if there > 0:
            euler = y + (there - here) * slope
            slope = (slope + (euler - denoiser(euler, there)) / there) / 2
        y = y + (there - here) * slope
        yield y
