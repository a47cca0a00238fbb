"""The objectives, the levels that they are trained on, and the bound.

An objective is a callable of (network, x_start, generator), x_start a batch of data,
(B, D), that returns its loss, a mean over coordinates and batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import mse_loss

from comparison import denoisers
from comparison.denoisers import NOISE, Denoiser, Network, Target, Variance
from comparison.samplers import MaybeGenerator, normal_like
from diffusion import gaussian_kl

Objective = Callable[[Network, Tensor, MaybeGenerator], Tensor]
# The quantiles of a distribution of levels: a callable of u in [0, 1) that returns sigma.
Quantiles = Callable[[Tensor], Tensor]


def _uniform(x_start: Tensor, generator: MaybeGenerator) -> Tensor:
    """Draw one number from each of n equal parts of [0, 1), (n,), float64, on the CPU."""
    n, like = len(x_start), {"dtype": torch.float64, "device": x_start.device}
    return (torch.arange(n) + torch.rand(n, generator=generator, **like).cpu()) / n


def uniform(levels: Tensor) -> Quantiles:
    """t uniform over the levels but 0, as in Ho et al.'s algorithm 1."""
    ascending = levels[:-1].flip(0)
    return lambda u: ascending[(len(ascending) * u).long()]


def lognormal(mean: float, deviation: float) -> Quantiles:
    """log(sigma) from N(mean, deviation^2) (Karras et al., 2022)."""
    return lambda u: (mean + deviation * torch.special.ndtri(u)).exp()


def up_to(largest: float, quantiles: Quantiles) -> Quantiles:
    """These quantiles, with their upper 5 % spread evenly in log(sigma) up to `largest`."""
    edge = torch.tensor(0.95, dtype=torch.float64)
    ratio = largest / quantiles(edge)
    return lambda u: quantiles(u.minimum(edge)) * ratio ** ((u - edge) / 0.05).relu()


def simple(quantiles: Quantiles, target: Target = NOISE) -> Objective:
    """L_simple, (24): the mean of (target - network(y, sigma))^2, y = x_0 + sigma eps.

    With NOISE, half of it is denoising score matching, (32, 33), lambda = sigma^2; over
    times s uniform in [0, 1], it is the objective in continuous time, (36), lambda =
    noise^2. VELOCITY weights the squared error of eps by 1 + sigma^2 instead of 1.
    """

    def loss(network: Network, x_start: Tensor, generator: MaybeGenerator) -> Tensor:
        sigma = quantiles(_uniform(x_start, generator)).to(x_start)[:, None]
        eps = normal_like(x_start, generator)
        output = network(x_start + sigma * eps, sigma)
        return mse_loss(output, target.of(x_start, eps, sigma))

    return loss


def hybrid(levels: Tensor, weight: float = 1e-3) -> Objective:
    """L_hybrid, (25): L_simple + weight L_vlb, for a network of outputs (eps, v).

    L_vlb is T times the term of (16) of the t drawn, -log p(x_0 | x_1) for t = 1, in nats
    per dimension, with the variance (20). The mean has no gradient: L_vlb trains v alone.
    """
    steps = len(levels) - 1

    def loss(network: Network, x_start: Tensor, generator: MaybeGenerator) -> Tensor:
        t = (steps * _uniform(x_start, generator)).long()
        here, there = (levels[steps - 1 - t + k].to(x_start)[:, None] for k in (0, 1))
        eps = normal_like(x_start, generator)
        y = x_start + here * eps
        output, v = network(y, here).chunk(2, dim=1)

        variance = denoisers.interpolated(v, levels[-3].to(y), here, there)
        share = 1 - (there / here).square()
        mean = y + share * (x_start - y)
        mean_theta = y - share * here * output.detach()
        small = denoisers.posterior(y, here, there).where(there > 0, 1.0)
        kl = gaussian_kl(mean, small, mean_theta, variance)
        likelihood = Normal(mean_theta, variance.sqrt(), validate_args=False)
        term = kl.where(there > 0, -likelihood.log_prob(x_start).double())
        return mse_loss(output, eps) + weight * steps * term.mean()

    return loss


def score_matching(sigma: float, blur: float, sliced: bool = False) -> Objective:
    """Score matching at one level on the data blurred with N(0, blur^2 I):

        exact trace, (41):  E [tr(grad score) + 1/2 norm(score)^2] / D
        sliced, (42):       E [v^T (grad score) v + 1/2 norm(score)^2] / D,  v ~ N(0, I)

    of a network of eps = -sigma score. With blur = sigma its minimum is the score that
    `simple` finds, without knowing eps; with blur = 0 it has none (figure 24).
    """

    def loss(network: Network, x_start: Tensor, generator: MaybeGenerator) -> Tensor:
        y = (x_start + blur * normal_like(x_start, generator)).requires_grad_()
        level, trace = y.new_tensor(sigma), torch.zeros(())
        with torch.enable_grad():
            score = -network(y, level) / level
            basis = torch.eye(y.shape[1]).to(y)[:, None].expand(-1, *y.shape)
            for v in [normal_like(y, generator)] if sliced else basis:
                (slope,) = torch.autograd.grad((score * v).sum(), y, create_graph=True)
                trace = trace + (slope * v).sum(dim=1)
        return (trace + score.square().sum(dim=1) / 2).mean() / y.shape[1]

    return loss


@torch.no_grad()
def bound_terms(
    denoiser: Denoiser,
    levels: Tensor,
    data: Tensor,
    variance: Variance,
    generator: MaybeGenerator = None,
) -> Tensor:
    """Return the bound's terms (16) for t = 2..T: float64, (T - 1,), nats per dimension.

    E KL(N(mu~_t, beta~_t I) || N(mu_theta, Sigma_t)), over all data, one x_t of each
    Of the bound's other terms, the first does not depend on the variance, and the last,
    -log p(x_0 | x_1), has no finite value, since the last step adds no noise.
    """
    terms = []
    for t in range(2, len(levels)):
        here, there = levels[-t - 1].to(data), levels[-t].to(data)
        y = data + here * normal_like(data, generator)
        share, small = 1 - (there / here).square(), denoisers.posterior(y, here, there)
        mean, mean_theta = (y + share * (x - y) for x in (data, denoiser(y, here)))
        kl = gaussian_kl(mean, small, mean_theta, variance(y, here, there))
        terms.append(kl.mean())
    return torch.stack(terms)
