"""Denoisers, variances and the bound, against autograd, densities and diffusers."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from comparison import denoisers, objectives
from comparison.denoisers import DISPLACEMENT, HYBRID, NOISE, VELOCITY, Exact
from comparison.levels import linear, respaced, variance_preserving
from comparison.samplers import step
from diffusion import noise_schedule, posterior_mean_variance
from tests import datasets
from tests.common import double, seeded_by
from tests.datasets import number

close = torch.testing.assert_close
# The levels that a denoiser is asked for: one, or one for each of 7 states.
at_levels = pytest.mark.parametrize("sigma", [number(2.5), double(7, 1).abs() + 0.2])
# A chain of `diffusion.py`, and the two levels of each of its steps t = 1..8.
ALPHAS, ALPHA_BARS = SCHEDULE = noise_schedule(8, 0.004, 0.5)
LEVELS = variance_preserving(ALPHA_BARS)
STEPS = list(pairwise(LEVELS.flip(0)))


def log_densities(y, data, sigma):
    """log N(y; x^i, sigma^2 I) of each state and datum, (B, n)."""
    return Normal(data, sigma[..., None]).log_prob(y[:, None]).sum(dim=2)


def spread(values, y, data, sigma):
    """The variance, given y, of values of each datum, (..., n, D)."""
    weights = log_densities(y, data, sigma).softmax(dim=1)[..., None]
    mean = (weights * values).sum(dim=1, keepdim=True)
    return (weights * (values - mean).square()).sum(dim=1)


@at_levels
def test_exact_is_the_score_of_the_mixture(sigma):
    data, y = double(6, 3, seed=2), (2 * double(7, 3, seed=3)).requires_grad_()
    log_p = log_densities(y, data, sigma).logsumexp(dim=1)
    (score,) = torch.autograd.grad(log_p.sum(), y)
    close(Exact(data)(y, sigma), y + sigma**2 * score)


@at_levels
def test_exact_variance_is_the_sum_and_never_below_zero(sigma):
    data, y = double(6, 3, seed=4), 2 * double(7, 3, seed=5)
    close(Exact(data).variance(y, sigma), spread(data, y, data, sigma))
    assert Exact(data[:1].repeat(7, 20)).variance(y.repeat(1, 20), sigma).min() >= 0


class Recording(TorchDispatchMode):
    """Notes of each operator its name, its precision and the size of its result."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        size = result.numel() if isinstance(result, torch.Tensor) else 0
        self.notes.append((str(func), torch.get_float32_matmul_precision(), size))
        return result


@at_levels
@pytest.mark.parametrize("chunk, most", [(1, 50), (99, 50), (100, 100), (149, 100)])
def test_chunks_change_nothing_and_bound_the_memory(chunk, most, sigma):
    data, y = double(50, 1, seed=6), double(7, 1, seed=7)
    for method in (Exact.__call__, Exact.variance):
        with Recording() as recording:
            got = method(Exact(data, chunk=chunk), y, sigma)
        close(got, method(Exact(data), y, sigma), rtol=1e-10, atol=1e-12)
        assert max(size for *_, size in recording.notes) == most


def test_exact_multiplies_in_full_precision_and_restores_what_the_caller_allows():
    before, eye = torch.get_float32_matmul_precision(), torch.eye(2)
    torch.set_float32_matmul_precision("medium")
    try:
        with Recording() as recording:
            Exact(eye).variance(eye, torch.ones(()))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert {note[1] for note in recording.notes if "mm" in note[0]} == {"highest"}


def test_exact_in_single_precision_at_the_smallest_noise():
    data, sigma = datasets.dataset("points").data, torch.tensor(0.01)
    y = data + sigma * torch.randn(data.shape, generator=seeded_by(8))
    exact = Exact(data.double())(y.double(), sigma.double())
    close(Exact(data)(y, sigma).double(), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("sigma", [torch.tensor(1e-5), number(1e-9), number(1e-60)])
def test_tiny_noise_leads_to_the_nearest_datum(sigma):
    data = double(6, 2, seed=9).to(sigma)
    y = data[[3, 0, 5]] + 0.01
    close(Exact(data)(y, sigma), data[[3, 0, 5]])
    assert Exact(data).variance(y, sigma).abs().max() < 1e-6


def test_clipped_keeps_the_estimate_in_the_box():
    y, sigma = 2 * double(7, 2, seed=12), number(0.7)
    x_start = datasets.wavy_denoiser(y, sigma)
    got = denoisers.clipped(datasets.wavy_denoiser, -0.5, 0.25)(y, sigma)
    assert got.tolist() == [[min(max(x, -0.5), 0.25) for x in row] for row in x_start]
    assert 0 < (got == x_start).sum() < got.numel()


@pytest.mark.parametrize("target, signal, noise", [
    (NOISE, torch.ones_like, lambda s: s), (HYBRID, torch.ones_like, lambda s: s),
    (VELOCITY, torch.cos, torch.sin), (DISPLACEMENT, lambda s: 1 - s, lambda s: s),
])  # fmt: skip
def test_what_a_network_predicts_is_the_motion_of_x_t(target, signal, noise):
    """Along y, Salimans and Ho's circle, the straight line; it leads to the datum."""
    (x_start, eps), s = double(2, 7, 3, seed=16), double(7, 1).sigmoid()
    x_t, motion = torch.autograd.functional.jvp(
        lambda s: signal(s) * x_start + noise(s) * eps, s, torch.ones_like(s)
    )
    sigma, width = noise(s) / signal(s), 6 if target is HYBRID else 3
    close(target.of(x_start, eps, sigma), motion)
    denoiser = target.denoiser(
        lambda y, s: torch.cat([target.of(y - s * eps, eps, s), y], dim=1)[:, :width]
    )
    close(denoiser(x_t / signal(s), sigma), x_start)


def test_one_datum_is_the_chain_of_the_vector():
    """In x, the variance of a step is s^2 abar_{t-1}."""
    datum, y = datasets.X_START.double(), 3 * double(3, 8)
    for t, (there, here) in enumerate(STEPS):
        x_t, signal = ALPHA_BARS[t].sqrt() * y, (1 + there**2).rsqrt()
        mean, variance = posterior_mean_variance(datum, x_t, t, *SCHEDULE)
        x_start = Exact(datum[None])(y, here)
        close(signal * step(x_start, y, (there / here) ** 2, 0 * here, None), mean)
        close(signal**2 * denoisers.posterior(y, here, there), variance)
        close(signal**2 * denoisers.beta(y, here, there), 1 - ALPHAS[t])


@pytest.mark.parametrize("kept", [2, 50, 1000])
def test_interpolated_variance_is_that_of_diffusers(kept):
    """But at t = 1, where it has beta~_2 in place of 0."""
    theirs = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    theirs.alphas_cumprod = (1 - datasets.DDPM_BETAS).cumprod(dim=0)  # not float32
    theirs.set_timesteps(kept)
    levels, v = respaced(linear(), kept), 2 * double(kept, 2, seed=18)
    here, there = levels.flip(0)[1:, None], levels.flip(0)[:-1, None]
    got = denoisers.interpolated(v, levels[-3], here, there) / (1 + there**2)
    for row, one, t in zip(got[1:], v[1:], theirs.timesteps.flip(0)[1:]):
        expected = theirs._get_variance(t, predicted_variance=2 * one - 1).exp()
        close(row, expected, rtol=1e-7, atol=0)
    second, v = theirs._get_variance(theirs.timesteps[-2], number(-1.0)).exp(), v[0]
    close(got[0], datasets.DDPM_BETAS[0] ** v * second ** (1 - v), rtol=1e-7, atol=0)


def test_learned_variance_is_the_second_output_of_a_network():
    y, variance = double(4, 2), denoisers.learned_variance(datasets.wavy_and_v, LEVELS)
    for there, here in STEPS:
        v = datasets.wavy_and_v(y, here)[:, 2:]
        expected = denoisers.interpolated(v, LEVELS[-3], here, there)
        close(variance(y, here, there), expected)


def test_best_variance_is_that_of_the_mixture():
    """Given x_t, x_{t-1} is of N(mu~(x^i, x_t), beta~) with the weight of x^i."""
    data, y = double(6, 2, seed=21), double(7, 2, seed=22)
    for t, (there, here) in enumerate(STEPS):
        x_t = ALPHA_BARS[t].sqrt() * y[:, None]
        means, small = posterior_mean_variance(data, x_t, t, *SCHEDULE)
        got = denoisers.best_variance(Exact(data))(y, here, there)
        close(got / (1 + there**2), small + spread(means, y, data, here))


@pytest.mark.parametrize("variance", ["beta", "posterior", "best"])
def test_bound_terms_are_the_mean_divergence(variance):
    data, generator = double(40, 3).float(), seeded_by(35)
    exact, best = Exact(data[:7]), denoisers.best_variance(Exact(data[:7]))
    asked = best if variance == "best" else getattr(denoisers, variance)
    terms = objectives.bound_terms(exact, LEVELS, data, asked, seeded_by(35))
    for t, (there, here) in enumerate(pairwise(LEVELS.float().flip(0)[1:]), 1):
        y = data + here * torch.randn(data.shape, generator=generator)
        (mean, small), (theta, _) = (
            posterior_mean_variance(x, ALPHA_BARS[t].sqrt() * y, t, *SCHEDULE)
            for x in (data, exact(y, here))
        )
        of = {"posterior": small, "beta": 1 - ALPHAS[t]}
        sigma2 = of.get(variance, best(y, here, there) / (1 + there**2))
        model = Normal(theta, sigma2.sqrt().expand_as(theta))
        kl = kl_divergence(Normal(mean, small.sqrt()), model).mean()
        assert terms[t - 1].item() == pytest.approx(kl.item(), rel=1e-4)
    assert terms.shape == (7,) and terms.dtype == torch.float64
