"""The objectives, and the levels that they are trained on.

An objective is called (network, x_start, generator), x_start a batch of data, (B, D),
and returns its loss, a mean over coordinates and batch. It draws the levels and the
noise and forms x_t itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import mse_loss

from comparison.predictors import Predictor, interpolated_variance
from comparison.processes import Process
from comparison.samplers import Generator, normal_like
from diffusion import PredictNoise, gaussian_kl, posterior_mean_variance

Objective = Callable[[Predictor, Tensor, Generator], Tensor]
# What draws the levels of a batch: called (x_start, generator), it returns signal and
# noise, (B, 1) each.
Levels = Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


# Which levels a batch is noised to


def _uniform(x_start: Tensor, generator: Generator) -> Tensor:
    """Return one number of [0, 1) for each row, float64, on the CPU."""
    like = {"dtype": torch.float64, "device": x_start.device}
    return torch.rand(len(x_start), generator=generator, **like).cpu()


def uniform_level(process: Process) -> Levels:
    """t uniform over the rows, as in Ho et al.'s algorithm 1."""

    def draw(x_start: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        u = _uniform(x_start, generator)
        return process.at((process.steps * u).long(), x_start)

    return draw


def uniform_time(sde: Callable[[Tensor], Process], first: float = 0.0) -> Levels:
    """The time s of an SDE uniform over [first, 1], as in (36)."""

    def draw(x_start: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        process = sde(first + (1 - first) * _uniform(x_start, generator))
        return process.at(torch.arange(len(x_start)), x_start)

    return draw


def lognormal_ratio(mean: float, deviation: float) -> Levels:
    """log(noise / signal) from N(mean, deviation^2), of no process (Karras et al., 2022)."""

    def draw(x_start: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        ratio = x_start.new_empty(len(x_start), 1)
        ratio.log_normal_(mean, deviation, generator=generator)
        signal = 1 / (1 + ratio.square()).sqrt()
        return signal, ratio * signal

    return draw


# Objectives


def _noised(
    x_start: Tensor, signal: Tensor, noise: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return (x_t, eps)."""
    eps = normal_like(x_start, generator)
    return signal * x_start + noise * eps, eps


def simple(levels: Levels, target: Target | None = None) -> Objective:
    """L_simple, (24): the mean of (eps - eps_theta(x_t, t))^2.

    With `uniform_time` this is the objective in continuous time, (36), lambda =
    noise^2. target: what the network's output is instead of eps: called (x_0, eps,
    signal, noise). `velocity` weights each level by 1 + noise^2 / signal^2.
    """

    def loss(network: Predictor, x_start: Tensor, generator: Generator) -> Tensor:
        signal, noise = levels(x_start, generator)
        x_t, eps = _noised(x_start, signal, noise, generator)
        wanted = target(x_start, eps, signal, noise) if target else eps
        return mse_loss(network(x_t, signal, noise), wanted)

    return loss


def denoising(levels: Levels) -> Objective:
    """Denoising score matching, (32, 33), with lambda = noise^2 and signal = 1:

        1/2 mean of noise^2 (score_theta + eps / noise)^2

    which is one half of L_simple, since score_theta = -eps_theta / noise.
    """

    def loss(network: Predictor, x_start: Tensor, generator: Generator) -> Tensor:
        signal, noise = levels(x_start, generator)
        x_t, eps = _noised(x_start, signal, noise, generator)
        score = -network(x_t, signal, noise) / noise
        return (noise * (score + eps / noise)).square().mean() / 2

    return loss


def hybrid(process: Process, weight: float = 1e-3) -> Objective:
    """L_hybrid, (25): L_simple + weight L_vlb, for a network of outputs (eps, v).

    L_vlb is T times the term of (16) of the t drawn, in nats per dimension, with the
    variance (20) that v makes; t = 1 gives -log p(x_0 | x_1). The mean's gradient is
    stopped, so L_vlb trains v alone.
    """
    alphas, alpha_bars = process.schedule()

    def loss(network: Predictor, x_start: Tensor, generator: Generator) -> Tensor:
        t = (process.steps * _uniform(x_start, generator)).long()
        signal, noise = process.at(t, x_start)
        x_t, eps = _noised(x_start, signal, noise, generator)
        output, v = network(x_t, signal, noise).chunk(2, dim=1)

        variance = interpolated_variance(v, t, alphas, alpha_bars)
        stopped = PredictNoise(lambda *_: output.detach(), alphas, alpha_bars)
        mean_theta = stopped(x_t, t)
        mean, small = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
        first = (t == 0).to(x_start.device)
        small = small.where(~first[:, None], 1.0)
        kl = gaussian_kl(mean, small, mean_theta, variance).sum(dim=1)
        likelihood = Normal(mean_theta, variance.sqrt(), validate_args=False)
        nll = -likelihood.log_prob(x_start).sum(dim=1)
        term = torch.where(first, nll.double(), kl).mean() / x_start.shape[1]
        return mse_loss(output, eps) + weight * process.steps * term

    return loss


def score_matching(noise: float, blur: float, sliced: bool = False) -> Objective:
    """Score matching at one level, signal = 1, on the data blurred with N(0, blur^2 I):

        exact trace, (41):  E [tr(grad score) + 1/2 norm(score)^2] / D
        sliced, (42):       E [v^T (grad score) v + 1/2 norm(score)^2] / D,  v ~ N(0, I)

    With blur = noise it has its minimum at the score that `denoising` finds, without
    ever knowing eps; with blur = 0 it has none, since the data are a set of points
    (figure 24).
    """

    def loss(network: Predictor, x_start: Tensor, generator: Generator) -> Tensor:
        x = x_start + blur * normal_like(x_start, generator)
        x.requires_grad_()
        level = x.new_tensor(noise)
        with torch.enable_grad():
            score = -network(x, x.new_ones(()), level) / level
            if sliced:
                vs = [normal_like(x, generator)]
            else:
                vs = torch.eye(x.shape[1]).to(x)[:, None].expand(-1, len(x), -1)
            trace = 0
            for v in vs:
                (slope,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
                trace = trace + (slope * v).sum(dim=1)
        return (trace + score.square().sum(dim=1) / 2).mean() / x.shape[1]

    return loss
