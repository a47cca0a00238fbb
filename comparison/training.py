"""The loop that trains on any objective, the recipes, and the weights they leave."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from comparison import levels, objectives
from comparison.dataset import DataSet
from comparison.denoisers import DISPLACEMENT, HYBRID, NOISE, VELOCITY, Target
from comparison.levels import COSINE, LINEAR, respaced
from comparison.networks import PointNetwork, UNet
from comparison.objectives import Objective, hybrid, lognormal, simple, uniform, up_to
from comparison.pictures import CUT_COSINE, LARGEST
from main import BAR


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

    A step draws a batch of the data, (n, D), with replacement and takes one AdamW step on
    the objective, whose gradient is cut to norm 1; the rate rises to lr in the first
    tenth, then falls to 0 as half a cosine. At the end the network has the exponential
    average of its weights, of which a step keeps `average`.
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


WEIGHTS = Path(__file__).with_name("weights")


class Recipe(NamedTuple):
    """How a network is trained, and what its output is. committed: steps of its weights."""

    objective: Objective
    target: Target = NOISE
    network: Callable[[], nn.Module] = PointNetwork
    steps: int = 8_000
    committed: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def untrained(self, seed: int) -> nn.Module:
        """Return a network; PyTorch's global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return self.network()


def _simple(of: objectives.Quantiles, target: Target = NOISE, **how: Any) -> Recipe:
    return Recipe(simple(of, target), target, **how)


OPTIONS = ("batch_size", 16), ("lr", 3e-3), ("average", 0.998)
_u_net = partial(_simple, target=VELOCITY, network=UNet, steps=5400, options=OPTIONS)
# The first two serve all samplers of their data set; the others are what papers train.
RECIPES = {
    "points": _simple(lognormal(-2.0, 2.0), VELOCITY),
    "pictures": _u_net(up_to(LARGEST, lognormal(0.3, 1.1)), committed=60_000),
    "hybrid": Recipe(hybrid(respaced(LINEAR, 50)), HYBRID, partial(PointNetwork, 4)),
    "simple": _simple(uniform(LINEAR)),
    "cosine": _simple(uniform(COSINE)),
    "geometric": _simple(uniform(levels.geometric())),
    "vp": _simple(lambda u: levels.vp_sigma(1e-3 + (1 - 1e-3) * u)),
    "ve": _simple(levels.ve_sigma),
    "rectified": _simple(levels.straight_sigma, DISPLACEMENT),
    # EDM's F is the velocity, but for its sign, where the data have unit variance.
    "edm": _simple(lognormal(-1.2, 1.2), VELOCITY),
    "pictures-linear": _u_net(uniform(LINEAR)),
    "pictures-cosine": _u_net(uniform(CUT_COSINE)),
}


def fit(
    name: str, dataset: DataSet, *, steps: int | None = None, seed: int = 0
) -> nn.Module:
    """Return the network of a recipe, trained; steps: None for the recipe's."""
    recipe = RECIPES[name]
    network = recipe.untrained(seed).to(dataset.data.device)
    how = {**dict(recipe.options), "steps": steps or recipe.steps, "seed": seed}
    train(network, recipe.objective, dataset.data, **how)
    return network.eval().requires_grad_(False)


def trained_on(
    name: str, dataset: DataSet, steps: int | None = None, seed: int = 0
) -> dict[str, object]:
    """Return what must agree for saved weights to be used; steps: None for theirs."""
    recipe = RECIPES[name]
    steps = steps or recipe.committed or recipe.steps
    told = {"picture": dataset.picture, "steps": steps, "seed": seed}
    return {**told, "options": dict(recipe.options)}


def save(name: str, network: nn.Module, told: dict[str, object]) -> None:
    """Write a network as the file of its recipe; told: what `trained_on` returns."""
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    torch.save({"trained_on": told, "weights": weights}, WEIGHTS / f"{name}.pt")


def load(
    name: str, dataset: DataSet, *, steps: int | None = None, seed: int = 0
) -> nn.Module | None:
    """Return the network of a recipe's file, or None if it was not trained as asked."""
    file, told = WEIGHTS / f"{name}.pt", trained_on(name, dataset, steps, seed)
    if not file.exists():
        return None
    content = torch.load(file, weights_only=True, map_location="cpu")
    if not told.items() <= content["trained_on"].items():
        return None
    network = RECIPES[name].untrained(seed)
    network.load_state_dict(content["weights"])
    return network.to(dataset.data.device).eval().requires_grad_(False)
