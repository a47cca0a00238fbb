"""Predictors, variances and the bound, held against autograd, sums by hand and diffusers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from comparison.networks import PointNetwork
from comparison.predictors import (
    Exact,
    best_variance,
    blurred,
    bound_terms,
    clipped,
    denoiser,
    displacement,
    from_displacement,
    from_hybrid,
    from_velocity,
    interpolated_variance,
    learned_variance,
    velocity,
)
from comparison.processes import cosine, linear, respaced
from diffusion import PredictStart, posterior_mean_variance, q_sample, vb_terms
from tests.common import double, seeded_by
from tests.laws import DDPM_BETAS, X_START, law, number

# The levels that a predictor is asked for: one, or one for each of 7 states.
LEVELS = [
    (number(0.8), number(0.6)),
    (number(1.0), number(2.5)),
    (double(7, 1).abs() + 0.1, double(7, 1, seed=1).abs() + 0.3),
]
at_levels = pytest.mark.parametrize("signal, noise", LEVELS)


# The exact predictor


def eps_by_autograd(x, data, signal, noise, width=0.0):
    """-noise grad log p(x_t), of data blurred by a width, from each component's density."""
    x = x.clone().requires_grad_()
    variance = noise**2 + (signal * width) ** 2
    square = (x[:, None] - signal[..., None] * data).square().sum(dim=2)
    log_p = torch.logsumexp(-square / (2 * variance), dim=1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    return -noise * score


@at_levels
@pytest.mark.parametrize("dimension", [2, 5])
@pytest.mark.parametrize("width", [0, 0.3, 2.0])
def test_exact_is_the_score_of_the_mixture(width, dimension, signal, noise):
    data, x_t = double(6, dimension, seed=2), 2 * double(7, dimension, seed=3)
    predictor = blurred(Exact(data), width) if width else Exact(data)
    expected = eps_by_autograd(x_t, data, signal, noise, width)
    torch.testing.assert_close(predictor(x_t, signal, noise), expected)


def weights_by_hand(x, data, signal, noise):
    square = [sum((a - signal * b) ** 2 for a, b in zip(x, one)) for one in data]
    logs = [-s / (2 * noise**2) for s in square]
    weights = [math.exp(log - max(logs)) for log in logs]
    return [w / sum(weights) for w in weights]


@at_levels
def test_exact_variance_is_the_sum(signal, noise):
    data, x_t = double(6, 3, seed=4), 2 * double(7, 3, seed=5)
    got = Exact(data).x_start_variance(x_t, signal, noise)
    levels = [level.expand(7, 1)[:, 0].tolist() for level in (signal, noise)]
    for x, s, n, row in zip(x_t.tolist(), *levels, got.tolist()):
        weights = weights_by_hand(x, data.tolist(), s, n)
        mean = weights @ data.numpy()
        variance = weights @ (data.numpy() - mean) ** 2
        assert row == pytest.approx(variance.tolist(), abs=1e-12)


@at_levels
@pytest.mark.parametrize("chunk", [1, 12, 13, 41])
def test_chunks_change_nothing_and_bound_the_memory(chunk, signal, noise):
    """At most `chunk` weights at a time, or one row of them."""
    data, x_t, sizes = double(6, 1, seed=6), double(7, 1, seed=7), []

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend([result.numel()] if "softmax" in str(func) else [])
            return result

    whole, parts = Exact(data), Exact(data, chunk=chunk)
    for name in ("__call__", "x_start_variance"):
        expected = getattr(whole, name)(x_t, signal, noise)
        with Recording():
            got = getattr(parts, name)(x_t, signal, noise)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert max(sizes) == max(6, chunk // 6 * 6)


def test_exact_in_single_precision_at_the_smallest_noise():
    data = law("points").data
    x_t = data + 0.01 * torch.randn(data.shape, generator=seeded_by(8))
    one, noise = torch.ones(()), torch.tensor(0.01)
    got = Exact(data)(x_t, one, noise)
    exact = Exact(data.double())(x_t.double(), one.double(), noise.double())
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=0.02)


def test_the_exact_predictor_multiplies_in_full_precision():
    """Whatever the caller allows, which is left as it was."""
    before, seen = torch.get_float32_matmul_precision(), []

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "mm" in str(func):
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    torch.set_float32_matmul_precision("medium")
    try:
        with Recording():
            Exact(torch.eye(2)).x_start_variance(torch.eye(2), *torch.ones(2, 1, 1))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) >= 3 and set(seen) == {"highest"}


@pytest.mark.parametrize("process", [linear(40), cosine(40)])
def test_one_datum_is_the_chain_of_the_vector(process):
    data, schedule = X_START.double(), process.schedule()
    exact = denoiser(Exact(data[None]), process)
    known = PredictStart(lambda x_t, t: data, *schedule)
    for t in [*range(process.steps), torch.tensor([0, 39, 20])]:
        x_t = q_sample(data.expand(3, -1), t, schedule[1], generator=seeded_by(1))
        torch.testing.assert_close(exact(x_t, t), known(x_t, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "dtype, noise",
    [(torch.float32, 1e-5), (torch.float64, 1e-9), (torch.float64, 1e-60)],
)
def test_tiny_noise_leads_to_the_nearest_datum(dtype, noise):
    data = double(6, 2, seed=9).to(dtype)
    x_t = data[[3, 0, 5]] + 0.01
    one, noise = torch.ones((), dtype=dtype), torch.tensor(noise, dtype=dtype)
    x_start = x_t - noise * Exact(data)(x_t, one, noise)
    torch.testing.assert_close(x_start, data[[3, 0, 5]])
    variance = Exact(data).x_start_variance(x_t, one, noise)
    assert variance.min() >= 0 and variance.max() < 1e-6


# Predictors around predictors


@at_levels
def test_clipped_keeps_the_estimate_in_the_box(signal, noise):
    low, high = number([-0.5, -1.0]), number([1.0, 0.25])
    x_t, x_start = double(7, 2, seed=12), 2 * double(7, 2, seed=13)
    eps = (x_t - signal * x_start) / noise
    got = clipped(lambda *_: eps, low, high)(x_t, signal, noise)
    nearest = torch.minimum(torch.maximum(x_start, low), high)
    torch.testing.assert_close((x_t - noise * got) / signal, nearest)
    inside = (x_start >= low) & (x_start <= high)
    assert 0 < inside.sum() < inside.numel()


@at_levels
@pytest.mark.parametrize(
    "target, back", [(velocity, from_velocity), (displacement, from_displacement)]
)
def test_what_a_network_is_asked_for_leads_to_the_noise(target, back, signal, noise):
    x_start, eps = double(7, 2, seed=14), double(7, 2, seed=15)
    predictor = back(lambda *_: target(x_start, eps, signal, noise))
    got = predictor(signal * x_start + noise * eps, signal, noise)
    torch.testing.assert_close(got, eps)


def test_the_velocity_of_a_network_does_not_depend_on_the_scale_of_the_process():
    """What a network sees is scaled, so its velocity leads to one eps at any scale."""
    x_t, predictor = double(7, 2, seed=14), from_velocity(PointNetwork().double())
    preserving = predictor(x_t, number(0.6), number(0.8))
    for scale in (0.1, 1 / 0.6, 30):
        got = predictor(scale * x_t, number(0.6 * scale), number(0.8 * scale))
        torch.testing.assert_close(got, preserving, rtol=1e-6, atol=1e-9)


def test_what_is_asked_for_is_the_motion_of_the_state():
    """Velocity along the circle, in phi; displacement along the straight line, in s."""
    x_start, eps, at = double(2, 3, seed=16), double(2, 3, seed=17), number(0.7)

    def circle(phi):
        return phi.cos() * x_start + phi.sin() * eps

    def line(s):
        return (1 - s) * x_start + s * eps

    motion = torch.autograd.functional.jacobian(circle, at)
    torch.testing.assert_close(velocity(x_start, eps, at.cos(), at.sin()), motion)
    motion = torch.autograd.functional.jacobian(line, at)
    torch.testing.assert_close(displacement(x_start, eps, 1 - at, at), motion)


# Variances


@pytest.mark.parametrize("kept", [50, 1000])
def test_interpolated_variance_is_that_of_diffusers(kept):
    theirs = DDPMScheduler(
        1000, variance_type="learned_range", timestep_spacing="linspace"
    )
    theirs.betas = DDPM_BETAS  # not float32
    theirs.alphas_cumprod = (1 - DDPM_BETAS).cumprod(dim=0)
    theirs.set_timesteps(kept)
    schedule = respaced(linear(), kept).schedule()
    v = 2 * double(5, 2, seed=18)
    for t in range(1, kept, 7):
        timestep = theirs.timesteps[kept - 1 - t]
        log_variance = theirs._get_variance(timestep, predicted_variance=2 * v - 1)
        got = interpolated_variance(v, t, *schedule)
        torch.testing.assert_close(got, log_variance.exp(), rtol=1e-7, atol=0)


def test_ends_of_the_interpolated_variance():
    schedule = respaced(linear(), 20).schedule()
    zeros, rows = torch.zeros(20, 2, dtype=torch.float64), torch.arange(20)
    abar = [1.0, *schedule[1].tolist()]
    beta = [1 - abar[t + 1] / abar[t] for t in range(20)]
    small = [(1 - abar[t]) / (1 - abar[t + 1]) * beta[t] for t in range(20)]
    small[0] = small[1]
    middle = np.sqrt(np.multiply(small, beta))
    for v, expected in ((0, small), (0.5, middle), (1, beta)):
        got = interpolated_variance(zeros + v, rows, *schedule)
        assert got.shape == (20, 2)
        assert got[:, 0].tolist() == pytest.approx(expected, rel=1e-9)
        for t in (0, 1, 13):
            one = interpolated_variance(zeros[:3] + v, t, *schedule)
            torch.testing.assert_close(one, got[t].expand(3, 2))


def test_a_network_of_two_outputs_knows_noise_and_variance():
    process = respaced(linear(), 20)
    x_t, v = double(4, 2, seed=19), double(4, 2, seed=20)

    def network(x_t, signal, noise):
        return torch.cat([signal * x_t + noise, v + noise], dim=1)

    variance = learned_variance(network, process)
    for t in range(20):
        signal, noise = process.at(t, x_t)
        got = from_hybrid(network)(x_t, signal, noise)
        torch.testing.assert_close(got, signal * x_t + noise)
        expected = interpolated_variance(v + noise, t, *process.schedule())
        torch.testing.assert_close(variance(x_t, t), expected)


@pytest.mark.parametrize("process", [respaced(linear(), 10), cosine(8)])
def test_best_variance_is_that_of_the_mixture(process):
    """Given x_t, x_{t-1} is drawn from N(mu~(x^i, x_t), beta~) with the weight of x^i."""
    data, x_t = double(6, 2, seed=21), double(7, 2, seed=22)
    best = best_variance(Exact(data), process)
    for t in range(process.steps):
        signal, noise = (level.item() for level in process.at(t, x_t))
        for x, row in zip(x_t, best(x_t, t).tolist()):
            weights = weights_by_hand(x.tolist(), data.tolist(), signal, noise)
            means, small = posterior_mean_variance(
                data, x.expand(6, 2), t, *process.schedule()
            )
            second = weights @ (means.square() + small).numpy()
            variance = second - (weights @ means.numpy()) ** 2
            assert row == pytest.approx(variance.tolist(), rel=1e-7, abs=1e-12)


# The bound


@pytest.mark.parametrize("process", [respaced(linear(), 8), cosine(10)])
def test_bound_of_one_datum(process):
    datum, schedule = X_START.double(), process.schedule()
    predictor = Exact(datum[None])
    terms = bound_terms(predictor, process, datum[None], "posterior", seeded_by(33))
    assert terms.shape == (process.steps - 1,) and terms.dtype == torch.float64
    assert terms.abs().max() < 1e-12
    terms = bound_terms(predictor, process, datum[None], "beta", seeded_by(33))
    known = PredictStart(lambda x_t, t: datum, *schedule)
    expected, _ = vb_terms(known, datum, *schedule, variance="beta")
    torch.testing.assert_close(terms, expected)


@pytest.mark.parametrize("variance", ["beta", "posterior", "best"])
def test_bound_terms_are_the_mean_divergence(variance):
    process, data = respaced(linear(), 6), double(40, 3, seed=34)
    alphas, alpha_bars = process.schedule()
    exact, seen = Exact(data[:7]), []

    def recording(x_t, signal, noise):
        seen.append(x_t)
        return exact(x_t, signal, noise)

    best = best_variance(exact, process)
    asked = best if variance == "best" else variance
    terms = bound_terms(recording, process, data, asked, seeded_by(35))
    generator = seeded_by(35)
    for t, x_t in enumerate(seen, start=1):
        drawn = q_sample(data, t, alpha_bars, generator=generator)
        torch.testing.assert_close(x_t, drawn)
        mean, small = posterior_mean_variance(data, x_t, t, alphas, alpha_bars)
        ours = denoiser(exact, process)(x_t, t)
        sigma2 = {"beta": 1 - alphas[t], "posterior": small, "best": best(x_t, t)}
        model = Normal(ours, sigma2[variance].sqrt().expand_as(ours))
        kl = kl_divergence(Normal(mean, small.sqrt()), model)
        assert terms[t - 1].item() == pytest.approx(kl.mean().item(), rel=1e-7)
    assert len(seen) == len(terms) == 5
