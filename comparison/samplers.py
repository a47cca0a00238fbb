"""Samplers, each for any denoiser: every step is y = D + ratio (y - D) + s z.

D = denoiser(y, here) estimates x_0 at the level `here`; the step leads to `there`:

    ratio = there / here,    s = 0                     DDIM, the probability flow by Euler
    ratio = (there / here)^2,    s^2 = a variance      DDPM, reverse diffusion

with sqrt(there^2 - s^2) / here between them. A sampler is a generator of states y,
(B, D): the start first, x_0 last. `last` keeps the last. `levels` are those of
`levels.py`; `generator` drives the randomness, None means PyTorch's global state.
"""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from comparison.denoisers import NAMED, Denoiser, Variance, beta, exploding, posterior
from comparison.levels import kept_rows, vp_time

Generator = torch.Generator | None


def last(states: Iterator[Tensor]) -> Tensor:
    """Return the last state that a sampler gives."""
    return deque(states, maxlen=1).pop()


def normal_like(y: Tensor, generator: Generator) -> Tensor:
    """Return standard normal noise of y's shape, dtype and device."""
    return torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)


def ancestral_step(
    x_start: Tensor,
    y: Tensor,
    here: Tensor,
    there: Tensor,
    s2: Tensor,
    generator: Generator,
) -> Tensor:
    """Return a draw from N(D + (there / here)^2 (y - D), s^2 I); at 0, its mean."""
    y = x_start + (there / here) ** 2 * (y - x_start)
    return y + s2.sqrt() * normal_like(y, generator) if there > 0 else y


# Ancestral and implicit


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    variance: str | Variance = "beta",
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw by DDPM, Ho et al.'s algorithm 2:

        x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + sigma_t z

    which in y is D + (there / here)^2 (y - D) + s z, s^2 = sigma_t^2 / abar_{t-1}.
    variance: "beta", "posterior", or what returns s^2.
    """
    of = variance if callable(variance) else NAMED[variance]
    yield y
    for here, there in pairwise(levels.to(y)):
        x_start, s2 = denoiser(y, here), of(y, here, there)
        y = ancestral_step(x_start, y, here, there, s2, generator)
        yield y


@torch.no_grad()
def ddpm_stale_alphas(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    kept: int = 50,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Show a bug: DDPM that skips levels, as if each step still led to the next level.

    Few levels are visited, each with its own alpha_t, so that a step removes the noise of
    one level where many are due; `respaced` is right. huggingface/diffusers had this bug
    until its pull request 2076, January 2023. x_{t-1} is then taken for x at the next
    level that is kept: in y, it is multiplied by the quotient of the signals.
    """
    yield y
    levels = levels.to(y)
    rows = [*kept_rows(len(levels) - 1, kept).tolist(), len(levels) - 1]
    for row, below in pairwise(rows):
        here, there, x_start = levels[row], levels[row + 1], denoiser(y, levels[row])
        y = ancestral_step(x_start, y, here, there, beta(here, there), generator)
        y = y * ((1 + levels[below] ** 2) / (1 + there**2)).sqrt()
        yield y


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    eta: float = 0.0,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw by DDIM, (31):

        x_{t-1} = signal_{t-1} x_0 + sqrt(noise_{t-1}^2 - sigma_t^2) eps + sigma_t z

    with sigma_t = eta sqrt(beta~_t): deterministic for eta = 0, DDPM with beta~_t for 1.
    With eta = 0 it is Euler's method on the probability flow, and on `straight` levels
    the sampler of rectified flow. Raises ValueError unless 0 <= eta <= 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be 0 to 1, got {eta}")
    yield y
    for here, there in pairwise(levels.to(y)):
        x_start = denoiser(y, here)
        s2 = eta**2 * posterior(here, there)
        y = x_start + (there**2 - s2).sqrt() / here * (y - x_start)
        if eta > 0:
            y = y + s2.sqrt() * normal_like(y, generator)
        yield y


@torch.no_grad()
def encode(denoiser: Denoiser, levels: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Run DDIM backwards, from data to noise: x_0 first.

    Each step takes D where it starts, and the first, which starts at 0, where it ends.
    """
    yield y
    for here, there in pairwise(levels.to(y).flip(0)):
        at = here if here > 0 else there
        y = y + (there - here) * (y - denoiser(y, at)) / at
        yield y


def slerp(x: Tensor, y: Tensor, share: float) -> Tensor:
    """Return the point at a share of the arc from x to y, each row by itself, (B, D).

    Between two of one norm, as Gaussian noise nearly has in many dimensions, it keeps
    that norm, where the chord would fall short of it.
    """
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()[:, None]
    return (((1 - share) * angle).sin() * x + (share * angle).sin() * y) / angle.sin()


@torch.no_grad()
def inpaint(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    known: Tensor,
    given: Tensor,
    *,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw the rest of data of which a part is given: DDPM with beta~_t and replacement.

    Before each step, the given part of y is replaced by known + here z; at the end it is
    the given one. The rest follows the conditional distribution only approximately. known:
    (D,) or (B, D); given: which coordinates are, bool, of the same shape.
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        y = torch.where(given, known + here * normal_like(y, generator), y)
        s2 = posterior(here, there)
        y = ancestral_step(denoiser(y, here), y, here, there, s2, generator)
        yield y if there > 0 else torch.where(given, known, y)


# Langevin


@torch.no_grad()
def langevin(
    denoiser: Denoiser,
    levels: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    rate: float = 0.2,
    denoise: bool = False,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw by annealed Langevin dynamics, algorithm 1. At each level, `steps` times,

        y <- y + a/2 score + sqrt(a) z,    a = rate sigma^2,    score = (D - y) / sigma^2

    which with one level is plain Langevin dynamics, (43). denoise: end with D.
    """
    yield y
    for sigma in levels[:-1].to(y):
        for _ in range(steps):
            towards = rate / 2 * (denoiser(y, sigma) - y)
            y = y + towards + rate**0.5 * sigma * normal_like(y, generator)
            yield y
    if denoise:
        yield denoiser(y, sigma)


# Stochastic differential equations


@torch.no_grad()
def euler_maruyama(
    denoiser: Denoiser, levels: Tensor, y: Tensor, *, generator: Generator = None
) -> Iterator[Tensor]:
    """Solve the reverse VP SDE, (35), in x_s = y / sqrt(1 + sigma^2), by Euler-Maruyama:

        x <- x + (x/2 + score) beta(s) ds + sqrt(beta(s) ds) z,    beta(s) = 0.1 + 19.9 s

    over the times s of the levels; the last step adds no noise.
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
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw by predictor and corrector on the VE SDE, figure 11. At each level:

        corrector:  y <- y + e score + sqrt(2 e) z,
                    e = 2 (snr mean norm(z) / mean norm(score))^2
        predictor:  reverse diffusion, s^2 = here^2 - there^2

    where means are over the batch. A state is given after each pair. The corrector comes
    first, as in the code of Song et al. (2021); their algorithm 2 starts elsewhere.
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        score, z = (denoiser(y, here) - y) / here**2, normal_like(y, generator)
        e = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()).square()
        y = y + e * score + (2 * e).sqrt() * z
        s2 = exploding(here, there)
        y = ancestral_step(denoiser(y, here), y, here, there, s2, generator)
        yield y


@torch.no_grad()
def heun(
    denoiser: Denoiser, levels: Tensor, y: Tensor, *, generator: Generator = None
) -> Iterator[Tensor]:
    """Solve the probability flow, dy / dsigma = (y - D) / sigma, by Heun's method.

    The last step, to 0, is Euler's: 2 T - 1 evaluations (Karras et al., 2022, algorithm
    1). generator is not used: all samplers are called alike.
    """
    yield y
    for here, there in pairwise(levels.to(y)):
        slope = (y - denoiser(y, here)) / here
        euler = y + (there - here) * slope
        if there > 0:
            slope = (slope + (euler - denoiser(euler, there)) / there) / 2
        y = y + (there - here) * slope
        yield y
