"""The loop that trains on any objective, the recipes, and the weights they leave."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from comparison.laws import Law
from comparison.networks import PointNetwork, UNet
from comparison.objectives import (
    Objective,
    denoising,
    hybrid,
    lognormal_ratio,
    simple,
    uniform_level,
    uniform_time,
)
from comparison.predictors import (
    Predictor,
    displacement,
    from_displacement,
    from_hybrid,
    from_velocity,
    velocity,
)
from comparison.processes import (
    cosine,
    geometric,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
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
    of its weights, `average` of which every step keeps.

    data: (n, D), on the network's device.
    """
    generator = torch.Generator(data.device).manual_seed(int(seed))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, fused=True)

    def rate(step: int) -> float:
        share = (step + 0.5) / steps
        return min(10 * share, (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)

    scheduler = LambdaLR(optimizer, rate)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(average))
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
        averaged.update_parameters(network)
        losses[step] = loss.detach()
    network.load_state_dict(averaged.module.state_dict())
    return losses.cpu()


# Recipes and their weights

WEIGHTS = Path(__file__).with_name("weights")


class Recipe(NamedTuple):
    """What a network is trained on, in the words that its file holds, and how.

    predictor: makes a noise predictor of the network. network: makes it, called with the
    seed of its weights. steps: of a training; committed: of the weights at hand, if they
    had more. options: of `train`.
    """

    objective: str
    process: str
    loss: Callable[[], Objective]
    predictor: Callable[[nn.Module], Predictor] = lambda network: network
    network: Callable[..., nn.Module] = PointNetwork
    steps: int = 8_000
    options: Mapping[str, float] = MappingProxyType({})
    committed: int | None = None

    def trained_on(self, law: Law, steps: int | None, seed: int) -> dict[str, object]:
        """Return what a network is told by: the recipe's words, steps, options, seed.

        steps: None for those of the committed weights.
        """
        return {
            "picture": law.picture,
            "objective": self.objective,
            "process": self.process,
            "steps": steps or self.committed or self.steps,
            "options": dict(self.options),
            "seed": seed,
        }


def _on_velocity(process: str, levels: Callable, words: str = "", **how) -> Recipe:
    objective = f"L_simple on the velocity{words}"
    return Recipe(
        objective, process, lambda: simple(levels(), velocity), from_velocity, **how
    )


_U_NET = {
    "network": UNet,
    "steps": 5_400,
    "options": MappingProxyType({"batch_size": 16, "lr": 3e-3, "average": 0.998}),
}
# The first two serve all samplers of their law; the others are what papers train.
RECIPES = {
    "points": _on_velocity(
        "log(noise / signal) from N(-2, 2^2)", lambda: lognormal_ratio(-2.0, 2.0)
    ),
    "pictures": _on_velocity(
        "log(noise / signal) from N(0.3, 1.1^2)",
        lambda: lognormal_ratio(0.3, 1.1),
        committed=30_000,
        **_U_NET,
    ),
    "hybrid": Recipe(
        "L_hybrid, t uniform",
        "linear, 50 of 1000 levels",
        lambda: hybrid(respaced(linear(), 50)),
        from_hybrid,
        partial(PointNetwork, 4),
    ),
    "simple": Recipe(
        "L_simple, t uniform",
        "linear, 1000 levels",
        lambda: simple(uniform_level(linear())),
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
    "rectified": Recipe(
        "L_simple on eps - x_0, s uniform",
        "straight",
        lambda: simple(uniform_time(straight), displacement),
        from_displacement,
    ),
    "edm": _on_velocity(
        "log(noise / signal) from N(-1.2, 1.2^2)", lambda: lognormal_ratio(-1.2, 1.2)
    ),
    "pictures-linear": _on_velocity(
        "linear, 1000 levels", lambda: uniform_level(linear()), ", t uniform", **_U_NET
    ),
    "pictures-cosine": _on_velocity(
        "cosine, 1000 levels", lambda: uniform_level(cosine()), ", t uniform", **_U_NET
    ),
}


def fit(name: str, law: Law, *, steps: int | None = None, seed: int = 0) -> nn.Module:
    """Return the network of a recipe, trained on a law's data, on their device.

    steps: of training; None for the recipe's.
    """
    recipe = RECIPES[name]
    network = recipe.network(seed=seed).to(law.data.device)
    options = {"steps": steps or recipe.steps, "seed": seed, **recipe.options}
    train(network, recipe.loss(), law.data, **options)
    return network.eval().requires_grad_(False)


def save(
    name: str, network: nn.Module, law: Law, *, steps: int | None = None, seed: int = 0
) -> None:
    """Write a network as the file of its recipe, with what it was trained on."""
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    trained_on = RECIPES[name].trained_on(law, steps, seed)
    torch.save({"trained_on": trained_on, "weights": weights}, WEIGHTS / f"{name}.pt")


def load(
    name: str, law: Law, *, steps: int | None = None, seed: int = 0
) -> nn.Module | None:
    """Return the network that `fit` would, from its recipe's file; None if it holds none.

    The file is used only if it names the same picture, objective, process, steps,
    options and seed. Raises ValueError if it is damaged, or a file of something else.
    """
    file = WEIGHTS / f"{name}.pt"
    if not file.exists():
        return None
    recipe = RECIPES[name]
    network = recipe.network()
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        fits = content["trained_on"] == recipe.trained_on(law, steps, seed)
        network.load_state_dict(content["weights"])
    except Exception as error:  # unpickling raises almost anything on bad data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{file} holds no weights for {name}: {reason}") from error
    network = network.to(law.data.device).eval().requires_grad_(False)
    return network if fits else None
