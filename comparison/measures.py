"""How far a sample is from the law, in any unit of length.

`samples` are (m, D) and `points`, the law's, (n, D), each of which is equally likely.
Every measure has a floor, which as many draws from the law itself have, and a ceiling,
pure noise's: a figure says nothing without them.
"""

import torch
from torch import Tensor

from comparison.predictors import Predictor, Variance, denoiser
from comparison.processes import Process
from diffusion import gaussian_kl, posterior_mean_variance, q_sample


def share_near(these: Tensor, those: Tensor, within: float = 1.0) -> float:
    """Return the share of these points, (m, D), that have one of those within a distance.

    share_near(samples, points) is "on drawing", share_near(points, samples) "covered".
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


def principal(data: Tensor, count: int = 16) -> Tensor:
    """Return the principal components of data, (n, D): (D, count), the largest last."""
    _, directions = torch.linalg.eigh(data.T.double().cov())
    return directions[:, -count:].to(data)


def frechet(samples: Tensor, points: Tensor) -> float:
    """Return Frechet's distance squared, (39), blind to all but mean and covariance:

        norm(m_1 - m_2)^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

    The eigenvalues of C_1 C_2 are real and not negative, as are those of the symmetric
    C_1^(1/2) C_2 C_1^(1/2), which has the same.
    """
    samples, points = samples.double(), points.double()
    c_1, c_2 = samples.T.cov(), points.T.cov()
    roots = torch.linalg.eigvals(c_1 @ c_2).real.clamp(min=0).sqrt()
    means = (samples.mean(dim=0) - points.mean(dim=0)).square().sum()
    return (means + c_1.trace() + c_2.trace() - 2 * roots.sum()).item()


@torch.no_grad()
def bound_terms(
    predictor: Predictor,
    process: Process,
    data: Tensor,
    variance: str | Variance,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the bound's terms (16) for t = 2..T: float64, (T - 1,), nats per dimension.

        E KL(N(mu~_t, beta~_t I) || N(mu_theta, Sigma_t))

    over all data, each with one draw of x_t. variance: as `ddpm` takes it. Of the
    bound's other terms the first does not depend on it, and the last, -log p(x_0 |
    x_1), has no finite value, since the sampler's last step adds no noise.
    """
    alphas, alpha_bars = process.schedule()
    mean_of = denoiser(predictor, process)
    terms = torch.zeros(process.steps - 1, dtype=torch.float64)
    for t in range(1, process.steps):
        x_t = q_sample(data, t, alpha_bars, generator=generator)
        mean, small = posterior_mean_variance(data, x_t, t, alphas, alpha_bars)
        if callable(variance):
            sigma2 = variance(x_t, *process.at(t, x_t))
        else:
            sigma2 = {"beta": 1 - alphas[t], "posterior": small}[variance]
        kl = gaussian_kl(mean, small, mean_of(x_t, t), sigma2)
        terms[t - 1] = kl.mean() / data.shape[1]
    return terms
