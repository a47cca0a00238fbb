"""The objectives, the one loop that trains on any of them, and the weights it leaves.

An objective is called (network, x_start, generator), x_start a batch of data, (B, D),
and returns its loss, a mean over coordinates and batch. It draws the levels and the
noise and forms x_t itself.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from comparison.data import Pictures, Points
from comparison.networks import PointNetwork, UNet
from comparison.predictors import Predictor, interpolated_variance
from comparison.processes import (
    Process,
    cosine,
    geometric,
    linear,
    respaced,
    ve_sde,
    vp_sde,
)
from comparison.samplers import normal_like
from diffusion import PredictNoise, gaussian_kl, posterior_mean_variance

Objective = Callable[[Predictor, Tensor, torch.Generator | None], Tensor]
# What draws the levels of a batch: called (x_start, generator), it returns signal and
# noise, (B, 1) each.
Levels = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor]]


# Which levels a batch is noised to


def _uniform(x_start: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return one number of [0, 1) for each row, float64, on the CPU."""
    like = {"dtype": torch.float64, "device": x_start.device}
    return torch.rand(len(x_start), generator=generator, **like).cpu()


def uniform_level(process: Process) -> Levels:
    """t uniform over the rows, as in Ho et al.'s algorithm 1."""
    return power_level(process, 1)


def power_level(process: Process, power: float = 2) -> Levels:
    """t = T u^power with u uniform: small noise more often than with t uniform."""

    def draw(
        x_start: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        u = _uniform(x_start, generator)
        return process.at((process.steps * u.pow(power)).long(), x_start)

    return draw


def uniform_time(sde: Callable[[Tensor], Process], first: float = 0.0) -> Levels:
    """The time s of an SDE uniform over [first, 1], as in (36)."""

    def draw(
        x_start: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        process = sde(first + (1 - first) * _uniform(x_start, generator))
        return process.at(torch.arange(len(x_start)), x_start)

    return draw


def lognormal_ratio(mean: float, deviation: float) -> Levels:
    """log(noise / signal) from N(mean, deviation^2), of no process (Karras et al., 2022)."""

    def draw(
        x_start: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        ratio = x_start.new_empty(len(x_start), 1)
        ratio.log_normal_(mean, deviation, generator=generator)
        signal = 1 / (1 + ratio.square()).sqrt()
        return signal, ratio * signal

    return draw


# Objectives


def _noised(
    x_start: Tensor, signal: Tensor, noise: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return (x_t, eps)."""
    eps = normal_like(x_start, generator)
    return signal * x_start + noise * eps, eps


def simple(levels: Levels, velocity: bool = False) -> Objective:
    """L_simple, (24): the mean of (eps - eps_theta(x_t, t))^2.

    With `uniform_time` this is the objective in continuous time, (36), lambda =
    noise^2. velocity: the network's output is the velocity instead, as `from_velocity`
    takes it, which weights each level by 1 + noise^2 / signal^2.
    """

    def loss(
        network: Predictor, x_start: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        signal, noise = levels(x_start, generator)
        x_t, eps = _noised(x_start, signal, noise, generator)
        target = eps
        if velocity:
            scale = (signal.square() + noise.square()).sqrt()
            target = (signal * eps - noise * x_start) / scale
        return mse_loss(network(x_t, signal, noise), target)

    return loss


def denoising(levels: Levels) -> Objective:
    """Denoising score matching, (32, 33), with lambda = noise^2 and signal = 1:

        1/2 mean of noise^2 (score_theta + eps / noise)^2

    which is one half of L_simple, since score_theta = -eps_theta / noise.
    """

    def loss(
        network: Predictor, x_start: Tensor, generator: torch.Generator | None
    ) -> Tensor:
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

    def loss(
        network: Predictor, x_start: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        t = (process.steps * _uniform(x_start, generator)).long()
        signal, noise = process.at(t, x_start)
        x_t, eps = _noised(x_start, signal, noise, generator)
        output, v = network(x_t, signal, noise).chunk(2, dim=1)

        variance = interpolated_variance(v, t, alphas, alpha_bars)
        stopped = PredictNoise(lambda *_: output.detach(), alphas, alpha_bars)
        mean_theta = stopped(x_t, t)
        mean, small = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
        first = (t == 0).to(x_start.device)
        kl = gaussian_kl(mean, small.where(~first[:, None], 1.0), mean_theta, variance)
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

    def loss(
        network: Predictor, x_start: Tensor, generator: torch.Generator | None
    ) -> Tensor:
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


# The loop

STEPS, PICTURE_STEPS = 8_000, 5_400


def train(
    network: nn.Module,
    objective: Objective,
    data: Tensor,
    *,
    steps: int = STEPS,
    batch_size: int = 1024,
    lr: float = 8e-3,
    average: float = 0.995,
    seed: int = 0,
) -> Tensor:
    """Train a network in place; return the loss of each step, (steps,), on the CPU.

    A step draws a batch of the data with replacement and takes one AdamW step on the
    objective, whose gradient is cut to norm 1; the rate rises to lr in the first tenth,
    then falls to 0 as half a cosine. At the end the network has the exponential average
    of its weights, `average` of which every step keeps.

    data: (n, D), on the network's device.
    """
    generator = torch.Generator(data.device).manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, fused=True)

    def rate(step: int) -> float:
        share = (step + 0.5) / steps
        return min(10 * share, (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)

    scheduler = LambdaLR(optimizer, rate)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(average))
    losses = torch.zeros(steps, device=data.device)
    shape = {"size": (batch_size,), "generator": generator, "device": data.device}
    for step in trange(steps, desc="training", disable=None):
        batch = data[torch.randint(len(data), **shape)]
        optimizer.zero_grad()
        loss = objective(network, batch, generator)
        loss.backward()
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        averaged.update_parameters(network)
        losses[step] = loss.detach()
    network.load_state_dict(averaged.module.state_dict())
    return losses.cpu()


# Weights

WEIGHTS = Path(__file__).with_name("weights")


class Recipe(NamedTuple):
    """What a network is trained on, in the words that its file holds, and how.

    network: makes it, called with the seed of its weights. options: of `train`.
    """

    objective: str
    process: str
    loss: Callable[[], Objective]
    network: Callable[..., nn.Module] = PointNetwork
    steps: int = STEPS
    options: Mapping[str, float] = MappingProxyType({})


ON_PICTURES = {
    "network": UNet,
    "steps": PICTURE_STEPS,
    "options": {"batch_size": 16, "lr": 2e-3},
}
RECIPES = {
    "simple": Recipe(
        "L_simple, t uniform",
        "linear, 1000 levels",
        lambda: simple(uniform_level(linear())),
    ),
    "hybrid": Recipe(
        "L_hybrid, t uniform",
        "linear, 50 of 1000 levels",
        lambda: hybrid(respaced(linear(), 50)),
        partial(PointNetwork, 4),
    ),
    "low": Recipe(
        "L_simple, t = T u^2",
        "linear, 1000 levels",
        lambda: simple(power_level(linear())),
    ),
    "cosine": Recipe(
        "L_simple, t uniform",
        "cosine, 1000 levels",
        lambda: simple(uniform_level(cosine())),
    ),
    "geometric": Recipe(
        "denoising score matching",
        "geometric, 10 levels from 5 to 0.01",
        lambda: denoising(uniform_level(geometric())),
    ),
    "vp": Recipe(
        "continuous time",
        "VP SDE, s from 1e-3",
        lambda: simple(uniform_time(vp_sde, first=1e-3)),
    ),
    "ve": Recipe(
        "continuous time", "VE SDE, 0.01 to 50", lambda: simple(uniform_time(ve_sde))
    ),
    "unet": Recipe(
        "L_simple on the velocity",
        "log(noise / signal) from N(0.7, 1.7^2)",
        lambda: simple(lognormal_ratio(0.7, 1.7), velocity=True),
        **ON_PICTURES,
    ),
    "unet-linear": Recipe(
        "L_simple on the velocity, t uniform",
        "linear, 1000 levels",
        lambda: simple(uniform_level(linear()), velocity=True),
        **ON_PICTURES,
    ),
    "unet-cosine": Recipe(
        "L_simple on the velocity, t uniform",
        "cosine, 1000 levels",
        lambda: simple(uniform_level(cosine()), velocity=True),
        **ON_PICTURES,
    ),
}


def fit(
    name: str, law: Points | Pictures, *, steps: int | None = None, seed: int = 0
) -> nn.Module:
    """Return the network of a recipe, trained on a law's data, on their device.

    steps: of training; None for the recipe's.
    """
    recipe = RECIPES[name]
    network = recipe.network(seed=seed).to(law.data.device)
    options = {"steps": steps or recipe.steps, "seed": seed, **recipe.options}
    train(network, recipe.loss(), law.data, **options)
    return network.eval().requires_grad_(False)


def save(
    name: str,
    network: nn.Module,
    law: Points | Pictures,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Write a network as the file of its recipe, with what it was trained on."""
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    trained_on = _trained_on(name, law, steps, seed)
    torch.save({"trained_on": trained_on, "weights": weights}, WEIGHTS / f"{name}.pt")


def load(
    name: str, law: Points | Pictures, *, steps: int | None = None, seed: int = 0
) -> nn.Module | None:
    """Return the network that `fit` would, from its recipe's file; None if there is none.

    The file is used only if it was trained on just that: picture, objective, process,
    steps, options and seed. Raises ValueError if it is damaged, or a file of something else.
    """
    file = WEIGHTS / f"{name}.pt"
    if not file.exists():
        return None
    network = RECIPES[name].network()
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        fits = content["trained_on"] == _trained_on(name, law, steps, seed)
        network.load_state_dict(content["weights"])
    except Exception as error:  # unpickling raises almost anything on bad data
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} holds no weights for {name}: {reason}") from error
    network = network.to(law.data.device).eval().requires_grad_(False)
    return network if fits else None


def _trained_on(
    name: str, law: Points | Pictures, steps: int | None, seed: int
) -> dict[str, object]:
    recipe = RECIPES[name]
    return {
        "picture": law.picture,
        "objective": recipe.objective,
        "process": recipe.process,
        "steps": steps or recipe.steps,
        "options": dict(recipe.options),
        "seed": seed,
    }
