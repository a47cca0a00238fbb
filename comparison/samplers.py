"""The ways back: samplers, each for any predictor.

A sampler is a generator of states, (B, D): the start first, then one for each step, x_0
last. `last` keeps the last, `list` all. Steps go down the process's rows, and the last
one ends at row -1, the datum, where signal is 1 and noise 0. `generator` drives the
randomness; None means PyTorch's global state.
"""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from comparison.predictors import Predictor, Variance, denoiser
from comparison.processes import Process
from diffusion import denoise_with_mu

Generator = torch.Generator | None


def last(states: Iterator[Tensor]) -> Tensor:
    """Return the last state that a sampler gives."""
    return deque(states, maxlen=1).pop()


def normal_like(x: Tensor, generator: Generator) -> Tensor:
    """Return standard normal noise of x's shape, dtype and device."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what}, and this process has none")


# Ancestral and implicit


@torch.no_grad()
def ddpm(
    predictor: Predictor,
    process: Process,
    x_T: Tensor,
    *,
    variance: Literal["beta", "posterior"] | Variance = "beta",
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw x_{t-1} from N(mu_theta(x_t, t), sigma_t^2 I), Ho et al.'s algorithm 2.

    variance: what sigma_t^2 is: beta_t, beta~_t, or what a callable returns. process: a
    variance-preserving one, else ValueError.
    """
    alphas, _ = process.schedule()
    mean = denoiser(predictor, process)
    yield x_T
    x = x_T
    for t in reversed(range(process.steps)):
        sigma2 = variance(x, t) if callable(variance) else variance
        x = denoise_with_mu(mean, x, t, alphas, variance=sigma2, generator=generator)
        yield x


@torch.no_grad()
def ddim(
    predictor: Predictor,
    process: Process,
    x_T: Tensor,
    *,
    eta: float = 0.0,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Go back as DDIM does, (31), here for any process:

        x_{t-1} = signal_{t-1} x_0 + sqrt(noise_{t-1}^2 - sigma_t^2) eps + sigma_t z,
        sigma_t = eta noise_{t-1} / noise_t
                  sqrt(noise_t^2 - (noise_{t-1} signal_t / signal_{t-1})^2)

    where x_0 and eps are the predictor's estimates and z ~ N(0, I). With eta = 0 it is
    deterministic, and with 1 it is DDPM with variance beta~_t. Raises ValueError unless
    0 <= eta <= 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be 0 to 1, got {eta}")
    yield x_T
    x = x_T
    for t in reversed(range(process.steps)):
        signal, noise = process.at(t, x)
        signal_prev, noise_prev = process.at(t - 1, x)
        eps = predictor(x, signal, noise)
        x_start = (x - noise * eps) / signal
        added = noise.square() - (noise_prev * signal / signal_prev).square()
        sigma = eta * noise_prev / noise * added.sqrt()
        x = signal_prev * x_start + (noise_prev.square() - sigma.square()).sqrt() * eps
        if eta > 0:
            x = x + sigma * normal_like(x, generator)
        yield x


@torch.no_grad()
def ddim_encode(
    predictor: Predictor, process: Process, x_start: Tensor
) -> Iterator[Tensor]:
    """Run DDIM's deterministic step (31) forward, from data to x_T: x_0 first.

    Each step takes eps where it starts; the first, which starts at noise 0, takes it at
    row 0.
    """
    yield x_start
    x = x_start
    for t in range(process.steps):
        eps = predictor(x, *process.at(max(t - 1, 0), x))
        signal, noise = process.at(t - 1, x)
        signal_next, noise_next = process.at(t, x)
        x = signal_next * (x - noise * eps) / signal + noise_next * eps
        yield x


def slerp(x: Tensor, y: Tensor, share: float) -> Tensor:
    """Return the point at a share of the arc from x to y, each row by itself, (B, D).

    Between two of one norm, as Gaussian noise nearly has in many dimensions, it keeps
    that norm, where the chord would fall short of it.
    """
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).clamp(
        -1 + 1e-6, 1 - 1e-6
    )
    angle = cosine.acos()[:, None]
    return (((1 - share) * angle).sin() * x + (share * angle).sin() * y) / angle.sin()


@torch.no_grad()
def inpaint(
    predictor: Predictor,
    process: Process,
    x_T: Tensor,
    known: Tensor,
    given: Tensor,
    *,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw the rest of data of which a part is given, section 4.4: DDPM with beta~_t.

    Before each step, the given part of x_t is replaced by that part of q(x_t | known);
    at the end it is the given one. The rest's law is the conditional one only nearly:
    what is given reaches it through the predictor alone. known: (D,) or (B, D); given:
    which coordinates are, bool, of the same shape. process: a variance-preserving one,
    else ValueError.
    """
    alphas, _ = process.schedule()
    mean = denoiser(predictor, process)
    yield x_T
    x = x_T
    for t in reversed(range(process.steps)):
        signal, noise = process.at(t, x)
        noised = signal * known + noise * normal_like(x, generator)
        x = torch.where(given, noised, x)
        x = denoise_with_mu(
            mean, x, t, alphas, variance="posterior", generator=generator
        )
        yield torch.where(given, known, x) if t == 0 else x


# Langevin


@torch.no_grad()
def langevin(
    predictor: Predictor,
    process: Process,
    x: Tensor,
    *,
    steps: int = 100,
    rate: float = 0.2,
    denoise: bool = False,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw by annealed Langevin dynamics, the survey's algorithm 1.

    At each level sigma_i, the largest first, `steps` times

        x <- x + a_i/2 score + sqrt(a_i) z,    a_i = rate sigma_i^2

    which with a process of one level is plain Langevin dynamics, (43). denoise: end
    with x + sigma_L^2 score, the estimate of x_0 at the smallest level. Raises
    ValueError unless the process's signal is 1.
    """
    _need(bool((process.signal == 1).all()), "Langevin dynamics needs a signal of 1")
    yield x
    for t in reversed(range(process.steps)):
        signal, noise = process.at(t, x)
        for _ in range(steps):
            score = -predictor(x, signal, noise) / noise
            a = rate * noise.square()
            x = x + a / 2 * score + a.sqrt() * normal_like(x, generator)
            yield x
    if denoise:
        signal, noise = process.at(0, x)
        yield x - noise * predictor(x, signal, noise)


# Stochastic differential equations


@torch.no_grad()
def euler_maruyama(
    predictor: Predictor, process: Process, x_T: Tensor, *, generator: Generator = None
) -> Iterator[Tensor]:
    """Solve the reverse SDE (35) by the method of Euler and Maruyama:

        x <- x - (f x - g^2 score) ds + g sqrt(ds) z

    from each row's time s to the next one's, at last to s = 0, where no noise is added.
    Raises ValueError unless the process holds an SDE.
    """
    _need(process.time is not None, "the reverse SDE needs a drift and a diffusion")
    yield x_T
    x = x_T
    for t in reversed(range(process.steps)):
        signal, noise = process.at(t, x)
        s, f, g = (table[t].to(x) for table in process[2:])
        ds = s - process.time[t - 1].to(x) if t else s
        score = -predictor(x, signal, noise) / noise
        x = x - (f * x - g.square() * score) * ds
        if t:
            x = x + g * ds.sqrt() * normal_like(x, generator)
        yield x


@torch.no_grad()
def predictor_corrector(
    predictor: Predictor,
    process: Process,
    x_T: Tensor,
    *,
    snr: float = 0.16,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Draw by predictor and corrector, figure 11. At each level, sigma, with the one below:

        corrector:  x <- x + e score + sqrt(2 e) z,
                    e = 2 (snr mean norm(z) / mean norm(score))^2
        predictor:  x <- x + d score + sqrt(d) z,    d = sigma^2 - sigma_below^2

    where means are over the batch, and the last step, to sigma = 0, adds no noise. A
    state is given after each pair. The corrector comes first, as in the code of Song et
    al. (2021); their algorithm 2 differs in where the loop begins. Raises ValueError
    unless the process's signal is 1.
    """
    _need(bool((process.signal == 1).all()), "predictor-corrector needs a signal of 1")
    yield x_T
    x = x_T
    for t in reversed(range(process.steps)):
        signal, noise = process.at(t, x)
        _, noise_prev = process.at(t - 1, x)
        score = -predictor(x, signal, noise) / noise
        z = normal_like(x, generator)
        e = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()).square()
        x = x + e * score + (2 * e).sqrt() * z

        score = -predictor(x, signal, noise) / noise
        step = noise.square() - noise_prev.square()
        x = x + step * score
        if t:
            x = x + step.sqrt() * normal_like(x, generator)
        yield x


@torch.no_grad()
def probability_flow(
    predictor: Predictor,
    process: Process,
    x_T: Tensor,
    *,
    levels: int = 18,
    rho: float = 7.0,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Solve the probability flow, deterministic, by Heun's method. States are x / signal.

    In y = x / signal and r = noise / signal, any process's flow is dy/dr = eps. The
    levels go from the process's largest ratio to its smallest, evenly in r^(1/rho), and
    then to 0 by one step of Euler's: 2 levels - 1 evaluations (Karras et al., 2022).
    generator is not used: all samplers are called alike.
    """
    ratios = (process.noise / process.signal).pow(1 / rho)
    r = torch.linspace(ratios[-1], ratios[0], levels, dtype=ratios.dtype).pow(rho)
    r = torch.cat([r, r.new_zeros(1)]).to(x_T)
    one = torch.ones_like(r[0])
    y = x_T / process.at(process.steps - 1, x_T)[0]
    yield y
    for here, there in pairwise(r):
        eps = predictor(y, one, here)
        euler = y + (there - here) * eps
        if there > 0:
            eps = (eps + predictor(euler, one, there)) / 2
        y = y + (there - here) * eps
        yield y
