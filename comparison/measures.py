"""How far samples, (m, D), are from data, (n, D), in any unit of length.

A value says little without its references: that of fresh data, and that of noise.
"""

import torch
from torch import Tensor


def share_near(these: Tensor, those: Tensor, within: float) -> float:
    """Return the share of these points, (m, D), that have one of those within a distance.

    share_near(samples, data, 1) is precision, share_near(data, samples, 1) coverage.
    """
    return (nearest(these, those)[0] <= within).double().mean().item()


def sliced(samples: Tensor, points: Tensor, directions: int = 32) -> float:
    """Return W1, the Wasserstein distance, averaged over evenly spaced directions; D = 2.

    Along a direction, W1 is the area between the two distribution functions.
    """
    like = {"dtype": torch.float64, "device": points.device}
    angles = torch.arange(directions, **like) * (torch.pi / directions)
    along = torch.stack([angles.cos(), angles.sin()])
    a, b = (
        (x.double() @ along).T.contiguous().sort(dim=1)[0] for x in (samples, points)
    )
    ends = torch.cat([a, b], dim=1).sort(dim=1)[0]
    below_a, below_b = (
        torch.searchsorted(x, ends[:, :-1].contiguous(), right=True) / x.shape[1]
        for x in (a, b)
    )
    area = (below_a - below_b).abs() * ends.diff(dim=1)
    return area.sum(dim=1).mean().item()


def nearest(these: Tensor, those: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance from each of these, (m, D), to its nearest of those, and which."""
    exact = "donot_use_mm_for_euclid_dist"  # products would blur it by a thousandth
    return torch.cdist(these, those, compute_mode=exact).min(dim=1)


def energy(these: Tensor, those: Tensor) -> float:
    """Return the energy distance of two distributions, estimated without bias:

        2 E norm(x - y) - E norm(x - x') - E norm(y - y')

    x and x', y and y' being different draws. It is 0 if they are the same, and else
    above 0 in the mean over samples of any number (Székely and Rizzo, 2013).
    """
    x, y = these.double(), those.double()
    within = (torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return (2 * torch.cdist(x, y).mean() - sum(within)).item()


def total_variance(x: Tensor) -> float:
    """Return the trace of the covariance of a sample."""
    return x.double().var(dim=0).sum().item()


def _covariance(x: Tensor) -> Tensor:
    return x.T.double().cov().view(x.shape[1], x.shape[1])  # of one feature too


def principal(data: Tensor, count: int = 16) -> Tensor:
    """Return the principal components of data, (n, D): (D, count), the largest last."""
    _, directions = torch.linalg.eigh(_covariance(data))
    return directions[:, -count:].to(data)


def frechet(samples: Tensor, points: Tensor) -> float:
    """Return Frechet's distance squared, (39), blind to all but mean and covariance:

        norm(m_1 - m_2)^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

    The eigenvalues of C_1 C_2 are real and not negative, as are those of the symmetric
    C_1^(1/2) C_2 C_1^(1/2), which has the same.
    """
    c_1, c_2 = _covariance(samples), _covariance(points)
    roots = torch.linalg.eigvals(c_1 @ c_2).real.clamp(min=0).sqrt()
    means = samples.double().mean(dim=0) - points.double().mean(dim=0)
    return (means.square().sum() + (c_1 + c_2).trace() - 2 * roots.sum()).item()
