"""The posterior of a picture whose pose is known: the least error that is possible."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from comparison.pictures import random_poses


def posterior_variance(
    render: Callable[[Tensor], Tensor],
    pose: Tensor,
    y: Tensor,
    sigma: float,
    generator: torch.Generator,
    draws: int = 400,
) -> tuple[float, float]:
    """Return Var[x_0 | y] per pixel, and the effective number of draws.

    y = x_0 + sigma eps, (D,), x_0 = render(pose), for one of `random_poses`. Importance
    sampling: 70 % of the draws are from the Laplace approximation of the posterior at that
    pose, 30 % from the prior. The mean over y is the least mean squared error possible.
    """
    mirror, z, h = pose[:1], pose[1:], 0.02 * torch.eye(5)
    around = torch.cat([z + h, z - h, z[None]])
    x = render(torch.cat([mirror.expand(11, 1), around], dim=1))
    slopes = (x[:5] - x[5:10]).T / 0.04  # (D, 5)
    precision = torch.eye(5) + slopes.T @ slopes / sigma**2
    mode = z + torch.linalg.solve(precision, slopes.T @ (y - x[10]) / sigma**2 - z)
    laplace = MultivariateNormal(mode, precision_matrix=precision)
    many = 7 * draws // 10
    near = mode + torch.randn(many, 5, generator=generator) @ laplace.scale_tril.T
    near = torch.cat([mirror.expand(many, 1), near], dim=1)
    poses = torch.cat([near, random_poses(draws - many, generator)])

    same, numbers, x = poses[:, 0] == mirror, poses[:, 1:], render(poses)
    prior = Normal(0.0, 1.0).log_prob(numbers).sum(dim=1) + math.log(0.5)
    local = (math.log(0.7) + laplace.log_prob(numbers)).where(same, -math.inf)
    likelihood = -(y - x).double().square().sum(dim=1) / (2 * sigma**2)
    proposed = torch.logaddexp(local, math.log(0.3) + prior)
    weights = (likelihood + prior - proposed).softmax(dim=0)
    mean = weights @ x.double()
    variance = weights @ (x - mean).square().mean(dim=1)
    return variance.item(), 1 / weights.square().sum().item()
