"""How far samples, (m, D), are from data, (n, D), in any unit of length.

A value says little without its references: that of fresh data, and that of noise.
"""

import torch
from torch import Tensor


def share_near(these: Tensor, those: Tensor, within: float = 1.001) -> float:
    """Return the share of these points, (m, D), that have one of those that near, in %.

    Of samples it is precision, of data coverage; neighbours on a grid are 1 apart.
    """
    return 100 * (nearest(these, those)[0] <= within).double().mean().item()


def sliced(samples: Tensor, points: Tensor, directions: int = 32) -> float:
    """Return W1, the Wasserstein distance, averaged over evenly spaced directions; D = 2.

    Along a direction, W1 is the area between the two distribution functions.
    """
    like = {"dtype": torch.float64, "device": points.device}
    angles = torch.arange(directions, **like) * (torch.pi / directions)
    along = torch.stack([angles.cos(), angles.sin()])
    a, b = ((x.double() @ along).T.contiguous().sort(1)[0] for x in (samples, points))
    ends = torch.cat([a, b], dim=1).sort(dim=1)[0]
    inner = ends[:, :-1].contiguous()
    p, q = (torch.searchsorted(x, inner, right=True) / x.shape[1] for x in (a, b))
    return ((p - q).abs() * ends.diff(dim=1)).sum(dim=1).mean().item()


def nearest(these: Tensor, those: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance from each of these, (m, D), to its nearest of those, and which."""
    exact = "donot_use_mm_for_euclid_dist"  # products would blur it by a thousandth
    return torch.cdist(these, those, compute_mode=exact).min(dim=1)


def energy(these: Tensor, those: Tensor) -> float:
    """Return the energy distance of two distributions, estimated without bias: in the mean
    0 if they are the same, and else above 0 (Székely and Rizzo, 2013).

    2 E norm(x - y) - E norm(x - x') - E norm(y - y'), over different draws
    """
    x, y = these.double(), those.double()
    within = (torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return (2 * torch.cdist(x, y).mean() - sum(within)).item()


def variance_ratio(samples: Tensor, data: Tensor) -> float:
    """Return the total variance, the trace of the covariance, of samples over the data's."""
    of_samples, of_data = (x.double().var(dim=0).sum() for x in (samples, data))
    return (of_samples / of_data).item()


def _covariance(x: Tensor) -> Tensor:
    return x.T.double().cov().view(x.shape[1], x.shape[1])  # of one feature too


def principal(data: Tensor, count: int = 16) -> Tensor:
    """Return the principal components of data, (n, D): (D, count), the largest last."""
    _, directions = torch.linalg.eigh(_covariance(data))
    return directions[:, -count:].to(data)


def frechet(samples: Tensor, points: Tensor) -> float:
    """Return Frechet's distance squared, (39), blind to all but mean and covariance.

    norm(m_1 - m_2)^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))
    C_1 C_2 has the eigenvalues of C_1^(1/2) C_2 C_1^(1/2): real, and not negative.
    """
    c_1, c_2 = _covariance(samples), _covariance(points)
    roots = torch.linalg.eigvals(c_1 @ c_2).real.clamp(min=0).sqrt()
    means = samples.double().mean(dim=0) - points.double().mean(dim=0)
    return (means.square().sum() + (c_1 + c_2).trace() - 2 * roots.sum()).item()
