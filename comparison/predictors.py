"""Noise predictors: whatever is called (x_t, signal, noise) and returns its eps.

In x_t = signal x_0 + noise eps, eps is to be estimated from x_t, (B, D); signal and
noise are () or (B, 1), of x_t's dtype and device, noise above 0. All else follows from
it:

    x_0 = (x_t - noise eps) / signal, (29),    score = grad log p(x_t) = -eps / noise,

and the mean of a step back (`denoiser`), so every sampler takes any predictor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from comparison.processes import Process
from diffusion import (
    PredictNoise,
    gaussian_kl,
    posterior_mean_variance,
    posterior_tables,
    q_sample,
)

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
# A variance is called (x_t, t), t the one row of all states, and returns sigma_t^2 of the
# step back from there: (), (B, 1) or (B, D).
Variance = Callable[[Tensor, int], Tensor]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply float32 as such, whatever the caller allows: TF32 would move points."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


class Exact:
    """The exact predictor of a finite data set: each of its n points is equally likely.

        w = softmax(-norm(x_t - signal x^i)^2 / (2 noise^2)),
        E[x_0 | x_t] = sum_i w_i x^i,
        eps = (x_t - signal E[x_0 | x_t]) / noise

    No predictor has a smaller L_simple on these data; and what it leads a sampler to is
    the data. data: (n, D). Memory is bounded: `chunk` of the B x n weights exist at a
    time.
    """

    def __init__(self, data: Tensor, chunk: int = 2**19) -> None:
        self.data = data
        self.half_norms = data.square().sum(dim=1) / 2
        self.rows = max(1, chunk // len(data))

    def __call__(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        (x_start,) = self._means(x_t, signal, noise, self.data)
        return (x_t - signal * x_start) / noise

    def x_start_variance(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return Var[x_0 | x_t] of each coordinate, (B, D)."""
        mean, square = self._means(x_t, signal, noise, self.data, self.data.square())
        return (square - mean.square()).clamp(min=0)

    @_full_precision()
    def _means(
        self, x_t: Tensor, signal: Tensor, noise: Tensor, *values: Tensor
    ) -> list[Tensor]:
        """Return E[value of x_0 | x_t] for each table of values, (n, D)."""
        # What all x^i have in common, norm(x_t)^2, the softmax would take out.
        precision = (signal / noise.square()).expand(len(x_t), 1)
        signal = signal.expand(len(x_t), 1)
        parts = []
        for x, a, s in zip(*(c.split(self.rows) for c in (x_t, precision, signal))):
            logits = torch.addmm(-s * a * self.half_norms, x * a, self.data.T)
            weights = logits.softmax(dim=1)
            parts.append([weights @ value for value in values])
        return [torch.cat(part) for part in zip(*parts)]


def blurred(predictor: Predictor, width: float) -> Predictor:
    """Return the predictor of a law that is blurred with N(0, width^2 I).

    At a level, the blurred law is the law itself with noise^2 + signal^2 width^2 in the
    place of noise^2, and the score is the same.
    """

    def predict(x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        wider = (noise.square() + (signal * width).square()).sqrt()
        return noise / wider * predictor(x_t, signal, wider)

    return predict


def clipped(
    predictor: Predictor, low: Tensor | float, high: Tensor | float
) -> Predictor:
    """Return a predictor whose estimate of x_0 (29) is kept in a box, as Ho et al. do.

    low, high: the box's corners, (D,), or one number for all coordinates.
    """

    def predict(x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        x_start = (x_t - noise * predictor(x_t, signal, noise)) / signal
        return (x_t - signal * x_start.clamp(low, high)) / noise

    return predict


def velocity(x_start: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity of x_t / scale, of Salimans and Ho (2022):

        (signal eps - noise x_0) / scale,    scale = sqrt(signal^2 + noise^2)

    It is that of the scaled state since that is what the network sees.
    """
    scale = (signal.square() + noise.square()).sqrt()
    return (signal * eps - noise * x_start) / scale


def from_velocity(network: Predictor) -> Predictor:
    """Return the predictor of a network whose output is the velocity:

    eps = (noise x_t / scale + signal velocity) / scale
    """

    def predict(x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        scale = (signal.square() + noise.square()).sqrt()
        return (noise * x_t / scale + signal * network(x_t, signal, noise)) / scale

    return predict


def displacement(x_start: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return eps - x_0, the velocity of the straight process (Liu et al., 2022)."""
    return eps - x_start


def from_displacement(network: Predictor) -> Predictor:
    """Return the predictor of a network whose output is the displacement:

    eps = (x_t + signal (eps - x_0)) / (signal + noise)
    """

    def predict(x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        return (x_t + signal * network(x_t, signal, noise)) / (signal + noise)

    return predict


def from_hybrid(network: Predictor) -> Predictor:
    """Return the predictor of a network of outputs (eps, v), (B, 2 D), as L_hybrid trains."""
    return lambda x_t, signal, noise: network(x_t, signal, noise).chunk(2, dim=1)[0]


def denoiser(predictor: Predictor, process: Process) -> PredictNoise:
    """Return the denoiser (x_t, t) of a predictor along a variance-preserving process."""
    return PredictNoise(
        lambda x_t, t: predictor(x_t, *process.at(t, x_t)), *process.schedule()
    )


# Variances of a step back


def interpolated_variance(
    v: Tensor, t: int | Tensor, alphas: Tensor, alpha_bars: Tensor
) -> Tensor:
    """Return exp(v log beta_t + (1 - v) log beta~_t), (20).

    beta~_1 = 0 is replaced by beta~_2, as Nichol and Dhariwal do. v: (B, D); t: a row,
    or one row of each state.
    """
    at_least_1 = torch.as_tensor(t).clamp(min=1)
    _, small = posterior_mean_variance(v, v, at_least_1, alphas, alpha_bars)
    beta = (1 - alphas)[t].to(v)
    beta = beta[:, None] if beta.ndim else beta
    return torch.exp(v * beta.log() + (1 - v) * small.log())


def learned_variance(network: Predictor, process: Process) -> Variance:
    """Return the variance (20) of a network of outputs (eps, v), along its process."""
    alphas, alpha_bars = process.schedule()

    def variance(x_t: Tensor, t: int) -> Tensor:
        v = network(x_t, *process.at(t, x_t)).chunk(2, dim=1)[1]
        return interpolated_variance(v, t, alphas, alpha_bars)

    return variance


def best_variance(exact: Exact, process: Process) -> Variance:
    """Return the diagonal variance of a step back that is best in the bound:

        beta~_t + A_t^2 Var[x_0 | x_t],    A_t the weight of x_0 in mu~_t

    which is what x_{t-1} varies by, given x_t (compare Bao et al., "Analytic-DPM",
    2022).
    """
    start_weights, _, small = posterior_tables(*process.schedule())

    def variance(x_t: Tensor, t: int) -> Tensor:
        unknown = exact.x_start_variance(x_t, *process.at(t, x_t))
        return small[t].to(x_t) + start_weights[t].to(x_t).square() * unknown

    return variance


# The bound


@torch.no_grad()
def bound_terms(
    predictor: Predictor,
    process: Process,
    data: Tensor,
    variance: str | Variance,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the bound's terms (16) for t = 2..T: float64, (T - 1,), nats per dimension.

        E KL(N(mu~_t, beta~_t I) || N(mu_theta, Sigma_t))

    over all data, each with one draw of x_t. variance: as `ddpm` takes it. Of the
    bound's other terms the first does not depend on it, and the last, -log p(x_0 |
    x_1), has no finite value, since the sampler's last step adds no noise.
    """
    alphas, alpha_bars = process.schedule()
    mean_of = denoiser(predictor, process)
    terms = torch.zeros(process.steps - 1, dtype=torch.float64)
    for t in range(1, process.steps):
        x_t = q_sample(data, t, alpha_bars, generator=generator)
        mean, small = posterior_mean_variance(data, x_t, t, alphas, alpha_bars)
        if callable(variance):
            sigma2 = variance(x_t, t)
        else:
            sigma2 = {"beta": 1 - alphas[t], "posterior": small}[variance]
        kl = gaussian_kl(mean, small, mean_of(x_t, t), sigma2).sum(dim=1)
        terms[t - 1] = kl.mean() / data.shape[1]
    return terms
