"""Denoisers: callables of (y, sigma) that return an estimate D of x_0.

y = x_0 + sigma eps, (B, D); sigma is () or (B, 1), of y's dtype and device, above 0. All
else follows from it:

    eps = (y - D) / sigma,    score = grad log p(y) = (D - y) / sigma^2, (29)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from comparison.levels import unit

Denoiser = Callable[[Tensor, Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]  # of which a `Target` makes a denoiser


class Exact:
    """The exact denoiser of data, (n, D), each of them as likely as another.

    w = softmax(-norm(y - x^i)^2 / (2 sigma^2)),    D = E[x_0 | y] = sum_i w_i x^i
    No denoiser has a smaller error on them, and a sampler that follows it draws them
    (Karras et al., 2022, appendix B.3). `chunk` of the B x n weights exist at a time.
    """

    def __init__(self, data: Tensor, chunk: int = 2**19) -> None:
        self.data = data
        self.half_norms = data.square().sum(dim=1) / 2
        self.rows = max(1, chunk // len(data))

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        (x_start,) = self._means(y, sigma, self.data)
        return x_start

    def variance(self, y: Tensor, sigma: Tensor) -> Tensor:
        """Return Var[x_0 | y] of each coordinate, (B, D)."""
        mean, square = self._means(y, sigma, self.data, self.data.square())
        return (square - mean.square()).clamp(min=0)

    def _means(self, y: Tensor, sigma: Tensor, *values: Tensor) -> list[Tensor]:
        """Return E[value of x_0 | y] for each table of values, (n, D)."""
        allowed, parts = torch.get_float32_matmul_precision(), []
        torch.set_float32_matmul_precision("highest")  # TF32 would move points
        try:
            # What all x^i have in common, norm(y)^2, the softmax would take out.
            precision = (1 / sigma.square()).expand(len(y), 1)
            for some, a in zip(y.split(self.rows), precision.split(self.rows)):
                logits = torch.addmm(-a * self.half_norms, some * a, self.data.T)
                weights = logits.softmax(dim=1)
                parts.append([weights @ value for value in values])
        finally:
            torch.set_float32_matmul_precision(allowed)
        return [torch.cat(part) for part in zip(*parts)]


def clipped(denoiser: Denoiser, low: float, high: float) -> Denoiser:
    """Return a denoiser whose estimate of x_0 is kept from low to high (Ho et al.)."""
    return lambda y, sigma: denoiser(y, sigma).clamp(low, high)


class Target(NamedTuple):
    """What a network predicts: `of` returns the target, given (x_0, eps, sigma), and
    `denoised` returns D, given (output, y, sigma).
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    denoised: Callable[[Tensor, Tensor, Tensor], Tensor]

    def denoiser(self, network: Network) -> Denoiser:
        """Return the denoiser of a network, a callable of (y, sigma)."""
        return lambda y, sigma: self.denoised(network(y, sigma), y, sigma)


# The noise, as Ho et al. (2020) predict it.
NOISE = Target(lambda x_start, eps, sigma: eps, lambda eps, y, sigma: y - sigma * eps)
# The velocity (eps - sigma x_0) / sqrt(1 + sigma^2) of x_t (Salimans and Ho, 2022).
VELOCITY = Target(
    lambda x_start, eps, sigma: unit(eps - sigma * x_start, sigma),
    lambda output, y, sigma: unit(unit(y, sigma) - sigma * output, sigma),
)
# The displacement eps - x_0, the velocity of rectified flow (Liu et al., 2022).
DISPLACEMENT = Target(
    lambda x_start, eps, sigma: eps - x_start,
    lambda output, y, sigma: (y - sigma * output) / (1 + sigma),
)
# The noise beside v, (eps, v), (B, 2 D), as L_hybrid trains them.
HYBRID = Target(NOISE.of, lambda output, y, sigma: y - sigma * output.chunk(2, 1)[0])


# Called (y, here, there), a variance of a reverse step returns s^2: (), (B, 1) or (B, D).
Variance = Callable[[Tensor, Tensor, Tensor], Tensor]


def beta(y: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Return s^2 in y for sigma_t^2 = beta_t of a paper."""
    return (1 + there**2) * (here**2 - there**2) / (1 + here**2)


def posterior(y: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Return s^2 in y for sigma_t^2 = beta~_t: the variance of q(y there | y here, x_0)."""
    return there**2 * (here**2 - there**2) / here**2


def interpolated(v: Tensor, above: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Return exp(v log beta_t + (1 - v) log beta~_t), (20), in y. v: (B, D).

    beta~_1 = 0 is replaced by beta~_2, as Nichol and Dhariwal do: above is the second
    smallest level, used only where there is 0.
    """
    first = (there == 0).to(v.dtype)
    second = posterior(v, above, here) / (1 + here**2)
    small = posterior(v, here, there) + first * second
    return torch.exp(v * beta(v, here, there).log() + (1 - v) * small.log())


def learned_variance(network: Network, levels: Tensor) -> Variance:
    """Return the variance (20) of a network of outputs (eps, v), asked once more, at levels."""

    def variance(y: Tensor, here: Tensor, there: Tensor) -> Tensor:
        v = network(y, here).chunk(2, dim=1)[1]
        return interpolated(v, levels[-3].to(y), here, there)

    return variance


def best_variance(exact: Exact) -> Variance:
    """Return the diagonal variance of a reverse step that is best in the bound: what
    x_{t-1} varies by, given x_t (compare Bao et al., 2022); in y,

    beta~_t + (1 - (there / here)^2)^2 Var[x_0 | x_t]
    """

    def variance(y: Tensor, here: Tensor, there: Tensor) -> Tensor:
        weight = 1 - (there / here).square()
        return posterior(y, here, there) + weight.square() * exact.variance(y, here)

    return variance
