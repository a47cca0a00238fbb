"""The loop that trains on any objective, the recipes, and the weights they leave."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from comparison.dataset import DataSet
from comparison.denoisers import DISPLACEMENT, HYBRID, NOISE, VELOCITY, Target
from comparison.levels import (
    cosine,
    geometric,
    linear,
    respaced,
    straight_sigma,
    ve_sigma,
    vp_sigma,
)
from comparison.networks import PointNetwork, UNet
from comparison.objectives import (
    Draw,
    Objective,
    denoising,
    hybrid,
    lognormal,
    simple,
    uniform_level,
    uniform_time,
)
from main import BAR

# The loop


def train(
    network: nn.Module,
    objective: Objective,
    data: Tensor,
    *,
    steps: int = 8_000,
    batch_size: int = 1024,
    lr: float = 8e-3,
    average: float = 0.995,
    seed: int = 0,
) -> Tensor:
    """Train a network in place; return the loss of each step, (steps,), on the CPU.

    A step draws a batch of the data with replacement and takes one AdamW step on the
    objective, whose gradient is cut to norm 1; the rate rises to lr in the first tenth,
    then falls to 0 as half a cosine. At the end the network has the exponential average
    of its weights; from the second step on, n keeps min(average, (1 + n) / (10 + n)).

    data: (n, D), on the network's device.
    """
    generator = torch.Generator(data.device).manual_seed(int(seed))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, fused=True)

    def rate(step: int) -> float:
        share = (step + 0.5) / steps
        return min(10 * share, (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)

    scheduler = LambdaLR(optimizer, rate)
    averaged = AveragedModel(network)
    losses = torch.zeros(steps, device=data.device)
    shape = {"size": (batch_size,), "generator": generator, "device": data.device}
    for step in trange(steps, desc="training", **BAR):
        batch = data[torch.randint(len(data), **shape)]
        optimizer.zero_grad()
        loss = objective(network, batch, generator)
        loss.backward()
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        averaged.multi_avg_fn = get_ema_multi_avg_fn(
            min(average, (1 + step) / (10 + step))
        )
        averaged.update_parameters(network)
        losses[step] = loss.detach()
    network.load_state_dict(averaged.module.state_dict())
    return losses.cpu()


# Recipes and their weights

WEIGHTS = Path(__file__).with_name("weights")


class Recipe(NamedTuple):
    """How a network is trained: its objective, and what its output is.

    network: makes it, called with the seed of its weights. steps: of a training;
    committed: of the weights at hand, if they had more. options: of `train`.
    """

    objective: Callable[[], Objective]
    target: Target = NOISE
    network: Callable[..., nn.Module] = PointNetwork
    steps: int = 8_000
    options: Mapping[str, Any] = MappingProxyType({})
    committed: int | None = None

    def identity(
        self, dataset: DataSet, steps: int | None, seed: int
    ) -> dict[str, object]:
        """Return what weights are told by: data set, steps, options and seed.

        steps: None for those of the committed weights.
        """
        return {
            "picture": dataset.picture,
            "steps": steps or self.committed or self.steps,
            "options": dict(self.options),
            "seed": seed,
        }


def _velocity(draw: Callable[[], Draw], **how: Any) -> Recipe:
    return Recipe(lambda: simple(draw(), VELOCITY), VELOCITY, **how)


_U_NET: dict[str, Any] = {
    "network": UNet,
    "steps": 5_400,
    "options": MappingProxyType({"batch_size": 16, "lr": 3e-3, "average": 0.998}),
}
# The first two serve all samplers of their data set; the others are what papers train.
RECIPES = {
    "points": _velocity(lambda: lognormal(-2.0, 2.0)),
    "pictures": _velocity(lambda: lognormal(0.3, 1.1), committed=30_000, **_U_NET),
    "hybrid": Recipe(
        lambda: hybrid(respaced(linear(), 50)), HYBRID, partial(PointNetwork, 4)
    ),
    "simple": Recipe(lambda: simple(uniform_level(linear()))),
    "cosine": Recipe(lambda: simple(uniform_level(cosine()))),
    "geometric": Recipe(lambda: denoising(uniform_level(geometric()))),
    "vp": Recipe(lambda: simple(uniform_time(vp_sigma, first=1e-3))),
    "ve": Recipe(lambda: simple(uniform_time(ve_sigma))),
    "rectified": Recipe(
        lambda: simple(uniform_time(straight_sigma), DISPLACEMENT), DISPLACEMENT
    ),
    "edm": _velocity(lambda: lognormal(-1.2, 1.2)),
    "pictures-linear": _velocity(lambda: uniform_level(linear()), **_U_NET),
    "pictures-cosine": _velocity(lambda: uniform_level(cosine()), **_U_NET),
}


def fit(
    name: str, dataset: DataSet, *, steps: int | None = None, seed: int = 0
) -> nn.Module:
    """Return the network of a recipe, trained on a data set, on their device.

    steps: of training; None for the recipe's.
    """
    recipe = RECIPES[name]
    network = recipe.network(seed=seed).to(dataset.data.device)
    options: dict[str, Any] = {
        "steps": steps or recipe.steps,
        "seed": seed,
        **recipe.options,
    }
    train(network, recipe.objective(), dataset.data, **options)
    return network.eval().requires_grad_(False)


def save(
    name: str,
    network: nn.Module,
    dataset: DataSet,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Write a network as the file of its recipe, with what it was trained on."""
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    trained_on = RECIPES[name].identity(dataset, steps, seed)
    torch.save({"trained_on": trained_on, "weights": weights}, WEIGHTS / f"{name}.pt")


def load(
    name: str, dataset: DataSet, *, steps: int | None = None, seed: int = 0
) -> nn.Module | None:
    """Return the network that `fit` would, from its recipe's file; None if it holds none.

    The file is used only if it names the same picture, steps, options and seed. Raises
    ValueError if it is damaged, or a file of something else.
    """
    file = WEIGHTS / f"{name}.pt"
    if not file.exists():
        return None
    recipe = RECIPES[name]
    network = recipe.network()
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        fits = (
            recipe.identity(dataset, steps, seed).items()
            <= content["trained_on"].items()
        )
        network.load_state_dict(content["weights"])
    except Exception as error:  # unpickling raises almost anything on bad data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{file} holds no weights for {name}: {reason}") from error
    network = network.to(dataset.data.device).eval().requires_grad_(False)
    return network if fits else None
