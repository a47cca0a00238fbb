"""The mathematics, held against Bayes' rule, integrals, chains and other libraries."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from diffusion import (
    Denoising,
    PredictNoise,
    PredictStart,
    denoise_with_mu,
    gaussian_kl,
    noise_schedule,
    position_encoding_init,
    posterior_mean_variance,
    posterior_q,
    prediction,
    prior_kl,
    q_sample,
    vb_terms,
)
from tests.common import by_hand, seeded_by

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
cuda = pytest.param("cuda", marks=no_cuda)


@st.composite
def schedules(draw, min_timesteps=1):
    timesteps = draw(st.integers(min_timesteps, 60))
    low, high = sorted(draw(st.tuples(*[st.floats(1e-5, 0.95)] * 2)))
    return noise_schedule(timesteps, low, high)


@st.composite
def posteriors(draw, min_timesteps=1):
    """A schedule, an index or one per row, and two states that fit it, in float64."""
    alphas, alpha_bars = draw(schedules(min_timesteps))
    indices = st.integers(min_timesteps - 1, len(alphas) - 1)
    rows, columns = draw(st.tuples(st.integers(0, 4), st.integers(1, 6)))
    shape = (rows, columns) if rows else (columns,)
    x_start, x_t = torch.randn((2, *shape), dtype=torch.float64, generator=seeded(draw))
    t = draw(indices)
    if rows and draw(st.booleans()):
        t = torch.tensor(draw(st.lists(indices, min_size=rows, max_size=rows)))
    return 3 * x_start, 3 * x_t, t, alphas, alpha_bars


def seeded(draw):
    return seeded_by(draw(st.integers(0, 2**32)))


def columns_by_hand(alphas, t):
    """`by_hand` as tensors that multiply a state, for one index or one per row."""
    if not isinstance(t, torch.Tensor):
        return torch.tensor(by_hand(alphas, t), dtype=torch.float64)
    rows = [by_hand(alphas, index) for index in t.tolist()]
    return torch.tensor(rows, dtype=torch.float64).T[..., None]


# The schedule


def test_published_schedule():
    alphas, alpha_bars = noise_schedule()
    assert alphas.dtype == alpha_bars.dtype == torch.float64
    assert len(alphas) == 30
    assert 1 - alphas[0].item() == pytest.approx(4e-4, rel=1e-12)
    assert 1 - alphas[-1].item() == pytest.approx(0.02, rel=1e-12)
    assert alpha_bars[-1].item() == pytest.approx(0.79, abs=0.005)


@given(st.integers(1, 40), st.floats(1e-6, 0.9), st.floats(1e-6, 0.9))
def test_schedule_is_linear_in_sqrt_beta(timesteps, one, other):
    start, end = sorted((one, other))
    alphas, alpha_bars = noise_schedule(timesteps, start, end)
    for i in range(timesteps):
        share = i / (timesteps - 1) if timesteps > 1 else 0
        beta = (math.sqrt(start) * (1 - share) + math.sqrt(end) * share) ** 2
        assert alphas[i].item() == pytest.approx(1 - beta, rel=1e-12)
        _, alpha_bar, _ = by_hand(alphas, i)
        assert alpha_bars[i].item() == pytest.approx(alpha_bar, rel=1e-12)


def test_a_schedule_may_reach_noise_to_the_last_bit():
    alphas, alpha_bars = noise_schedule(2000, 0.9, 0.9)
    assert alpha_bars[-1] == 0
    x = torch.randn(2, 4)
    assert posterior_mean_variance(*x, 1999, alphas, alpha_bars)[0].isfinite().all()


# The forward process


@pytest.mark.parametrize("t", [0, 7, 29])
def test_q_sample_moments(t):
    alphas, alpha_bars = noise_schedule(beta_end=0.6)
    _, alpha_bar, _ = by_hand(alphas, t)
    n = 400_000
    x_start = torch.full((n,), 2.0, dtype=torch.float64)
    x_t = q_sample(x_start, t, alpha_bars, generator=seeded_by(t))
    variance = 1 - alpha_bar
    # Five standard errors of a Gaussian sample's mean and variance.
    assert x_t.mean().item() == pytest.approx(
        2 * math.sqrt(alpha_bar), abs=5 * math.sqrt(variance / n)
    )
    assert x_t.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("t", [0, 3, 9])
def test_q_sample_has_the_law_of_the_chain(t):
    alphas, alpha_bars = noise_schedule(10, 0.01, 0.5)
    rng, n = np.random.default_rng(0), 100_000
    chain = np.full(n, -1.5)
    for alpha in alphas[: t + 1].tolist():
        chain = math.sqrt(alpha) * chain + math.sqrt(1 - alpha) * rng.normal(size=n)
    x_start = torch.full((n,), -1.5, dtype=torch.float64)
    x_t = q_sample(x_start, t, alpha_bars, generator=seeded_by(0))
    # Kolmogorov-Smirnov for two samples, at the level of 1 in 1,000.
    points = np.sort(np.concatenate([chain, x_t.numpy()]))
    below = [np.searchsorted(np.sort(s), points, "right") / n for s in (chain, x_t)]
    assert np.abs(below[0] - below[1]).max() < 1.95 * math.sqrt(2 / n)


def test_q_sample_noises_each_row_with_its_own_index():
    _, alpha_bars = noise_schedule(beta_end=0.6)
    t = torch.tensor([0, 12, 29])
    x_start = torch.randn(3, 50_000, generator=seeded_by(1))
    x_t = q_sample(x_start, t, alpha_bars, generator=seeded_by(2))
    for row in range(3):
        noise = x_t[row] - alpha_bars[t[row]].sqrt() * x_start[row]
        assert noise.var().item() == pytest.approx(
            1 - alpha_bars[t[row]].item(), rel=5 * math.sqrt(2 / 50_000)
        )


def test_no_covariance_matrix_is_formed():
    alphas, alpha_bars = noise_schedule(3)
    x = torch.ones(2_000_000)  # whose D x D matrix would take 16 TB
    x_t = q_sample(x, 2, alpha_bars)
    posterior_mean_variance(x, x_t, 2, alphas, alpha_bars)
    assert denoise_with_mu(lambda x_t, t: x_t, x_t, 2, alphas).shape == x.shape


# The posterior


@given(posteriors(min_timesteps=2))
def test_posterior_is_bayes_rule(case):
    x_start, x_t, t, alphas, alpha_bars = case
    alpha, _, alpha_bar_prev = columns_by_hand(alphas, t)
    # The prior q(x_{t-1} | x_0) and the likelihood q(x_t | x_{t-1}), as precisions.
    prior, likelihood = 1 / (1 - alpha_bar_prev), alpha / (1 - alpha)
    variance = 1 / (prior + likelihood)
    mean = variance * (
        prior * alpha_bar_prev.sqrt() * x_start + likelihood * x_t / alpha.sqrt()
    )
    got_mean, got_variance = posterior_mean_variance(
        x_start, x_t, t, alphas, alpha_bars
    )
    assert got_mean.shape == x_t.shape
    per_row = isinstance(t, torch.Tensor)
    assert got_variance.shape == ((len(t), 1) if per_row else ())
    torch.testing.assert_close(got_mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        got_variance.reshape(-1), variance.reshape(-1), rtol=1e-8, atol=0
    )


@given(schedules(min_timesteps=2), st.data())
def test_posterior_is_the_integral(schedule, data):
    alphas, alpha_bars = schedule
    t = data.draw(st.integers(1, len(alphas) - 1))
    x_start, x_t = data.draw(st.tuples(*[st.floats(-2, 2)] * 2))
    alpha, _, alpha_bar_prev = by_hand(alphas, t)
    prior_mean, prior_variance = math.sqrt(alpha_bar_prev) * x_start, 1 - alpha_bar_prev
    peaks = (
        prior_mean,
        x_t / math.sqrt(alpha),
    )  # of the two factors; the mass is between
    width = min(math.sqrt(prior_variance), math.sqrt((1 - alpha) / alpha))
    x = np.linspace(min(peaks) - 12 * width, max(peaks) + 12 * width, 400_001)
    assert x[1] - x[0] < width / 10
    log_density = -((x - prior_mean) ** 2) / (2 * prior_variance) - (
        x_t - math.sqrt(alpha) * x
    ) ** 2 / (2 * (1 - alpha))
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = (weight * x).sum()
    variance = (weight * (x - mean) ** 2).sum()
    got_mean, got_variance = posterior_mean_variance(
        torch.tensor([x_start], dtype=torch.float64),
        torch.tensor([x_t], dtype=torch.float64),
        t,
        alphas,
        alpha_bars,
    )
    assert got_mean.item() == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert got_variance.item() == pytest.approx(variance, rel=1e-6)


@given(schedules())
def test_posterior_identities(schedule):
    alphas, alpha_bars = schedule
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in range(len(alphas)):
        _, alpha_bar, alpha_bar_prev = by_hand(alphas, t)
        a, variance = posterior_mean_variance(one, zero, t, alphas, alpha_bars)
        b, _ = posterior_mean_variance(zero, one, t, alphas, alpha_bars)
        a, b, variance = a.item(), b.item(), variance.item()
        assert a + b * math.sqrt(alpha_bar) == pytest.approx(math.sqrt(alpha_bar_prev))
        assert b**2 * (1 - alpha_bar) + variance == pytest.approx(
            1 - alpha_bar_prev, rel=1e-8, abs=1e-12
        )


@given(posteriors())
def test_posterior_written_in_the_noise(case):
    """A network that knows x_0 and one that knows the noise give one mean."""
    x_start, noise, t, alphas, alpha_bars = case
    _, alpha_bar, _ = columns_by_hand(alphas, t)
    x_t = alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise
    mean, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
    from_noise = PredictNoise(lambda x_t, t: noise, alphas, alpha_bars)(x_t, t)
    torch.testing.assert_close(from_noise, mean, rtol=1e-7, atol=1e-7)
    from_start = PredictStart(lambda x_t, t: x_start, alphas, alpha_bars)(x_t, t)
    torch.testing.assert_close(from_start, from_noise, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_one_prediction_counts_for_every_row(rows):
    schedule = noise_schedule()
    one, x_t = torch.randn(4), torch.randn(rows, 4)
    for wrapper in (PredictStart, PredictNoise):
        got = wrapper(lambda x_t, t: one, *schedule)(x_t, 3)
        expected = wrapper(lambda x_t, t: one.expand(rows, 4), *schedule)(x_t, 3)
        assert torch.equal(got, expected)


@given(schedules())
def test_posterior_at_index_0_is_x_start(schedule):
    x_start, x_t = torch.randn(2, 3, 4, dtype=torch.float64)
    mean, variance = posterior_mean_variance(x_start, x_t, 0, *schedule)
    assert torch.equal(mean, x_start)
    assert variance == 0
    t = torch.zeros(3, dtype=torch.int64)
    mean, variance = posterior_mean_variance(x_start, x_t, t, *schedule)
    assert torch.equal(mean, x_start)
    assert torch.equal(variance, torch.zeros(3, 1, dtype=torch.float64))


def test_posterior_q_adds_the_dense_covariance():
    schedule = noise_schedule()
    x_start, x_t = torch.randn(2, 3, 4)
    for t in (5, torch.tensor([0, 5, 29])):
        mean, covariance = posterior_q(x_start, x_t, t, *schedule)
        same_mean, variance = posterior_mean_variance(x_start, x_t, t, *schedule)
        assert torch.equal(mean, same_mean)
        assert covariance.shape == (*variance.shape[:1], 4, 4)
        for matrix, number in zip(covariance.reshape(-1, 4, 4), variance.reshape(-1)):
            assert np.array_equal(matrix, number.item() * np.eye(4, dtype=np.float32))


# The network


@given(st.integers(1, 8), st.integers(1, 9))
@example(700, 3)  # where float32 angles would be seen to be rounded
def test_position_encoding(n_position, d):
    table = position_encoding_init(n_position, d)
    assert table.shape == (n_position, d) and table.dtype == torch.float32
    assert not table[0].any()
    for p in range(1, n_position):
        for i in range(d):
            angle = p / 10000 ** (2 * i / d)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert table[p, i].item() == pytest.approx(expected, abs=1e-7)


def test_network_is_the_published_one():
    model = Denoising(6, 4)
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    square = {f"linear{k}.weight": (6, 6) for k in (1, 2, 3)}
    assert sizes == square | {f"linear{k}.bias": (6,) for k in (1, 2, 3)}
    assert [name for name, _ in model.named_buffers()] == ["emb"]
    assert torch.equal(model.emb, position_encoding_init(5, 6)[1:])

    weights = {
        name: p.detach().double().numpy() for name, p in model.named_parameters()
    }
    x_t = torch.randn(3, 6)
    rows = [0, 2, 3]
    got = model(x_t, torch.tensor(rows))
    for row, t in enumerate(rows):
        hidden = x_t[row].double().numpy() + model.emb[t].double().numpy()
        for k in (1, 2, 3):
            hidden = weights[f"linear{k}.weight"] @ hidden + weights[f"linear{k}.bias"]
            hidden = hidden if k == 3 else np.maximum(hidden, 0)
        np.testing.assert_allclose(got[row].detach(), hidden, atol=1e-5)
        torch.testing.assert_close(model(x_t[row], t), got[row])


def test_network_width():
    model = Denoising(6, 4, hidden_dim=3)
    assert model.linear1.weight.shape == (3, 6)
    assert model.linear2.weight.shape == (3, 3)
    assert model.linear3.weight.shape == (6, 3)
    assert model(torch.randn(6), 0).shape == (6,)


@pytest.mark.parametrize("wrapper", [None, PredictStart, PredictNoise])
def test_gradients(wrapper):
    torch.manual_seed(0)
    schedule = noise_schedule(4, 0.1, 0.5)
    network = Denoising(4, 4, hidden_dim=5).double()
    denoiser = wrapper(network, *schedule) if wrapper else network
    x_t = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1, 3])
    assert torch.autograd.gradcheck(lambda x_t: denoiser(x_t, t), x_t)
    denoiser(x_t, t).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in denoiser.parameters())
    assert network.emb.grad is None and not network.emb.requires_grad


# The reverse step


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("t", [0, 1, 20])
def test_reverse_step_mean_and_variance(variance, t):
    alphas, _ = noise_schedule(beta_end=0.6)
    alpha, alpha_bar, alpha_bar_prev = by_hand(alphas, t)
    expected = 1 - alpha
    if variance == "posterior":
        expected *= (1 - alpha_bar_prev) / (1 - alpha_bar)
    n = 400_000
    x_t = torch.full((n,), 3.0, dtype=torch.float64)
    x_t_before = denoise_with_mu(
        lambda x_t, t: x_t / 2 + t,
        x_t,
        t,
        alphas,
        variance=variance,
        generator=seeded_by(0),
    )
    if t == 0:
        assert torch.equal(x_t_before, torch.full_like(x_t, 1.5))
    else:
        deviation = 5 * math.sqrt(expected / n)
        assert x_t_before.mean().item() == pytest.approx(1.5 + t, abs=deviation)
        assert x_t_before.var().item() == pytest.approx(
            expected, rel=5 * math.sqrt(2 / n)
        )


def test_reverse_step_of_a_batch_adds_no_noise_at_index_0():
    alphas, _ = noise_schedule()
    x_t = torch.randn(3, 1000)
    for variance in ("beta", "posterior"):
        x_t_before = denoise_with_mu(
            lambda x_t, t: x_t, x_t, torch.tensor([0, 1, 29]), alphas, variance=variance
        )
        moved = (x_t_before - x_t).std(dim=1)
        assert moved[0] == 0 and 0 < moved[1] < moved[2]


def test_reverse_step_takes_any_variance():
    """A number, one for each row, one for each coordinate: sigma_t^2 of the noise added."""
    alphas, _ = noise_schedule()
    x_t = torch.randn(3, 4, dtype=torch.float64)
    noise = torch.randn(3, 4, dtype=torch.float64, generator=seeded_by(5))
    for shape in ((), (3, 1), (3, 4), (4,)):
        variance = torch.rand(shape, dtype=torch.float64)
        for t in ([7, 7, 7], [7, 0, 9]):
            got = denoise_with_mu(
                lambda x_t, t: x_t / 2,
                x_t,
                torch.tensor(t),
                alphas,
                variance=variance,
                generator=seeded_by(5),
            )
            added = variance.sqrt() * noise * (torch.tensor(t) > 0)[:, None]
            torch.testing.assert_close(got, x_t / 2 + added)


def test_exact_reverse_chain_retraces_the_forward_law():
    """From x_T ~ q(x_T | x_0), the exact steps give x_t ~ q(x_t | x_0) for every t."""
    alphas, alpha_bars = noise_schedule(beta_end=0.6)
    n = 100_000
    x_start = torch.full((n,), 1.7, dtype=torch.float64)
    exact = PredictStart(lambda x_t, t: x_start, alphas, alpha_bars)
    generator = seeded_by(3)
    x = q_sample(x_start, 29, alpha_bars, generator=generator)
    for t in range(29, -1, -1):
        x = denoise_with_mu(
            exact, x, t, alphas, variance="posterior", generator=generator
        )
        _, _, alpha_bar = by_hand(alphas, t)
        variance = 1 - alpha_bar
        assert x.mean().item() == pytest.approx(
            1.7 * math.sqrt(alpha_bar), abs=5 * math.sqrt(variance / n) + 1e-12
        )
        assert x.var().item() == pytest.approx(
            variance, rel=5 * math.sqrt(2 / n), abs=1e-12
        )
    assert torch.equal(x, x_start)


def test_reverse_chain_with_variance_beta_has_the_law_of_its_recursion():
    """x_{t-1} = A_t x_0 + B_t x_t + sqrt(beta_t) z, from N(0, 1): mean and variance."""
    alphas, alpha_bars = noise_schedule(beta_end=0.6)
    n, mean, variance = 200_000, 0.0, 1.0
    x_start = torch.full((n,), 1.7, dtype=torch.float64)
    exact = PredictStart(lambda x_t, t: x_start, alphas, alpha_bars)
    generator = seeded_by(4)
    x = torch.randn(n, dtype=torch.float64, generator=generator)
    for t in range(29, 0, -1):
        x = denoise_with_mu(exact, x, t, alphas, generator=generator)
        alpha, alpha_bar, alpha_bar_prev = by_hand(alphas, t)
        a = math.sqrt(alpha_bar_prev) * (1 - alpha) / (1 - alpha_bar)
        b = math.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        mean, variance = a * 1.7 + b * mean, b**2 * variance + 1 - alpha
        assert x.mean().item() == pytest.approx(
            mean, abs=5 * math.sqrt(variance / n) + 1e-12
        )
        assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    # The state before last: 0.048 off, where the exact law has 0.020.
    assert math.sqrt(variance) == pytest.approx(0.048, abs=5e-4)
    assert math.sqrt(1 - alpha_bars[0].item()) == pytest.approx(0.020, abs=5e-4)


def test_noise_is_added_as_the_generator_gives_it():
    alphas, alpha_bars = noise_schedule()
    zeros = torch.zeros(5, dtype=torch.float64)

    def generator():
        return seeded_by(7)

    noise = torch.randn(5, dtype=torch.float64, generator=generator())
    x_t = q_sample(zeros, 9, alpha_bars, generator=generator())
    torch.testing.assert_close(x_t, (1 - alpha_bars[9]).sqrt() * noise)
    x_t_before = denoise_with_mu(
        lambda x_t, t: x_t, zeros, 9, alphas, generator=generator()
    )
    torch.testing.assert_close(x_t_before, (1 - alphas[9]).sqrt() * noise)


def test_generator_drives_all_randomness():
    alphas, alpha_bars = noise_schedule()
    x = torch.randn(5)
    state = torch.get_rng_state()

    def draws():
        generator = seeded_by(7)
        x_t = q_sample(x, 9, alpha_bars, generator=generator)
        return x_t, denoise_with_mu(lambda x, t: x, x_t, 9, alphas, generator=generator)

    for one, other in zip(draws(), draws()):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(q_sample(x, 9, alpha_bars), q_sample(x, 9, alpha_bars))


# The bound


def full(variance, shape):
    """A diagonal covariance, of any form that is allowed, as matrices."""
    variance = torch.as_tensor(variance, dtype=torch.float64)
    return torch.diag_embed(variance.expand(shape))


@given(st.integers(1, 6), st.integers(0, 4), st.data())
def test_gaussian_kl_against_torch_distributions(d, rows, data):
    shape, generator = (rows, d) if rows else (d,), seeded(data.draw)
    mean1, mean2 = torch.randn((2, *shape), dtype=torch.float64, generator=generator)

    def draw_variance():
        kinds = [(), (*shape[:-1], 1), shape]
        logs = torch.randn(data.draw(st.sampled_from(kinds)), generator=generator)
        return (2 * logs.double()).exp()

    variance1, variance2 = draw_variance(), draw_variance()
    expected = kl_divergence(
        MultivariateNormal(mean1, full(variance1, shape)),
        MultivariateNormal(mean2, full(variance2, shape)),
    )
    got = gaussian_kl(mean1, variance1, mean2, variance2)
    assert got.shape == shape[:-1]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    one = gaussian_kl(mean1, 0.3, mean2, 2)
    number = torch.tensor(0.3, dtype=torch.float64)
    same = gaussian_kl(mean1, number, mean2, torch.tensor(2.0))
    assert torch.equal(one, same)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gaussian_kl_keeps_small_differences(dtype):
    """At equal variances v it is norm(shift)^2 / 2 v, however small; and never negative."""
    mean, shift = torch.zeros(1000, dtype=dtype), torch.full((1000,), 1e-4, dtype=dtype)
    expected = 1000 * shift[0].item() ** 2 / (2 * 0.3)
    got = gaussian_kl(mean, 0.3, shift, 0.3).item()
    assert got == pytest.approx(expected, rel=1e-12)
    for nearly in (0.3, 0.3 * (1 + 1e-15), 0.3 * (1 - 1e-12), 0.3 * (1 + 1e-9)):
        assert gaussian_kl(mean, nearly, mean, 0.3) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_kl(dtype):
    alphas, alpha_bars = noise_schedule(8, 0.02, 0.5)
    alpha_bar = math.prod(alphas.tolist())
    x_start = torch.randn(3, 8, dtype=dtype)
    eye, means = torch.eye(8).double(), math.sqrt(alpha_bar) * x_start.double()
    expected = [
        kl_divergence(
            MultivariateNormal(mean, (1 - alpha_bar) * eye),
            MultivariateNormal(torch.zeros(8).double(), eye),
        ).item()
        / 8
        for mean in means
    ]
    assert prior_kl(x_start[0], alpha_bars) == pytest.approx(expected[0])
    assert prior_kl(x_start, alpha_bars) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("beta_end, expected", [(0.02, 0.48), (0.6, 1.15)])
def test_what_the_published_variance_costs(beta_end, expected):
    schedule = noise_schedule(beta_end=beta_end)
    zero = torch.zeros(1)
    cost, _ = vb_terms(lambda x_t, t: zero, zero, *schedule)
    by_the_book = []
    for t in range(1, 30):
        _, alpha_bar, alpha_bar_prev = by_hand(schedule[0], t)
        ratio = (1 - alpha_bar) / (1 - alpha_bar_prev)  # beta_t / beta~_t
        by_the_book.append((math.log(ratio) - 1 + 1 / ratio) / 2)
    assert cost.tolist() == pytest.approx(by_the_book, rel=1e-9)
    assert cost.sum().item() == pytest.approx(expected, abs=0.005)
    nothing, _ = vb_terms(lambda x_t, t: zero, zero, *schedule, variance="posterior")
    assert not nothing.any()


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_vb_terms_are_the_kl_of_the_steps(variance):
    """The two parts add up to the KL of dense Gaussians, with means written by hand."""
    alphas, _ = schedule = noise_schedule(6, 0.05, 0.5)
    x_start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def denoiser(x_t, t):
        return 0.9 * x_t + 0.1 * t

    terms = vb_terms(denoiser, x_start, *schedule, variance=variance, seed=7)
    generator, eye = seeded_by(7), torch.eye(3, dtype=torch.float64)
    for t in range(1, 6):
        alpha, alpha_bar, alpha_bar_prev = by_hand(alphas, t)
        noise = torch.randn(8, 3, dtype=torch.float64, generator=generator)
        x_t = math.sqrt(alpha_bar) * x_start + math.sqrt(1 - alpha_bar) * noise
        exact = (x_t - (1 - alpha) / math.sqrt(1 - alpha_bar) * noise) / alpha**0.5
        beta = 1 - alpha
        exact_variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        model_variance = beta if variance == "beta" else exact_variance
        expected = kl_divergence(
            MultivariateNormal(exact, exact_variance * eye),
            MultivariateNormal(0.9 * x_t + 0.1 * t, model_variance * eye),
        )
        got = sum(part[t - 1] for part in terms)
        assert got.item() == pytest.approx(expected.mean().item() / 3, rel=1e-9)
    assert [part.shape for part in terms] == [(5,), (5,)]


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("gain", ["constant", "no noise"])
def test_mean_kl_of_a_gain_on_the_noise(gain, variance):
    """A mean that passes on g of the noise costs (g - B_t)^2 (1 - abar_t) / 2 sigma_t^2."""
    alphas, alpha_bars = schedule = noise_schedule(8, 0.02, 0.5)
    x_start = torch.randn(20_000)
    no_noise = PredictNoise(lambda x_t, t: torch.zeros_like(x_t), *schedule)

    def constant(x_t, t):  # (D,) for every row
        return alpha_bars[t - 1].sqrt().float() * x_start

    denoiser = constant if gain == "constant" else no_noise
    _, got = vb_terms(denoiser, x_start, *schedule, variance=variance)
    expected = []
    for t in range(1, 8):
        alpha, alpha_bar, alpha_bar_prev = by_hand(alphas, t)
        b = math.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        sigma_squared = 1 - alpha
        if variance == "posterior":
            sigma_squared *= (1 - alpha_bar_prev) / (1 - alpha_bar)
        g = 0 if gain == "constant" else 1 / math.sqrt(alpha)
        expected.append((g - b) ** 2 * (1 - alpha_bar) / (2 * sigma_squared))
    assert got.tolist() == pytest.approx(expected, rel=5 * math.sqrt(2 / 160_000))


@pytest.mark.parametrize("shift", [1e-7, 0.0])
def test_mean_kl_of_a_nearly_exact_mean(shift):
    """A mean that is a shift c off costs c^2 / 2 sigma_t^2, and an exact one nothing."""
    alphas, alpha_bars = schedule = noise_schedule(8, 0.02, 0.5)
    x_start = torch.randn(50, dtype=torch.float64)

    def noise(x_t, t):  # the mean by the other formula than that of `vb_terms`
        return (x_t - alpha_bars[t].sqrt() * x_start) / (1 - alpha_bars[t]).sqrt()

    exact = PredictNoise(noise, *schedule)
    _, got = vb_terms(lambda x_t, t: exact(x_t, t) + shift, x_start, *schedule)
    expected = [shift**2 / (2 * (1 - alpha)) for alpha in alphas[1:].tolist()]
    assert got.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-26)
    assert (got >= 0).all()


def test_vb_terms_of_one_step():
    terms = vb_terms(lambda x_t, t: x_t, torch.zeros(3), *noise_schedule(1))
    assert [part.shape for part in terms] == [(0,), (0,)]


def test_how_a_denoiser_is_called():
    """`vb_terms` passes an int, and takes what has x_t's shape or (D,)."""
    asked = []
    x_start = torch.randn(4)
    vb_terms(
        lambda x_t, t: asked.append((t, x_t.shape)) or x_start,
        x_start,
        *noise_schedule(),
        states_per_step=5,
    )
    assert asked == [(t, (5, 4)) for t in range(1, 30)]
    assert {type(t) for t, _ in asked} == {int}
    x_t = torch.randn(5, 4)
    assert torch.equal(prediction(lambda x_t, t: x_start, x_t, 1), x_start.expand(5, 4))


# The conventions


@pytest.mark.parametrize("device", ["cpu", "meta", cuda])
@pytest.mark.parametrize("schedule_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_results_have_dtype_and_device_of_the_state(device, dtype, schedule_dtype):
    alphas, alpha_bars = (s.to(schedule_dtype) for s in noise_schedule())
    x = torch.randn(2, 4, dtype=dtype, device=device)
    network = Denoising(4, 30).to(device, dtype)
    for t in (3, torch.tensor([0, 3])):
        x_t = q_sample(x, t, alpha_bars)
        results = [
            x_t,
            *posterior_mean_variance(x, x_t, t, alphas, alpha_bars),
            *posterior_q(x, x_t, t, alphas, alpha_bars),
            denoise_with_mu(network, x_t, t, alphas),
            denoise_with_mu(network, x_t, t, alphas, variance="posterior"),
            PredictStart(network, alphas, alpha_bars)(x_t, t),
            PredictNoise(network, alphas, alpha_bars)(x_t, t),
        ]
        for result in results:
            assert result.dtype == dtype and result.device == x.device


@pytest.mark.parametrize(
    "t", [np.int64(2), np.int32(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)]
)
def test_any_integer_is_an_index(t):
    alphas, alpha_bars = noise_schedule()
    x_start, x_t = torch.randn(2, 6)
    network = Denoising(6, 30)
    assert torch.equal(network(x_t, t), network(x_t, 2))
    for got, expected in zip(
        posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars),
        posterior_mean_variance(x_start, x_t, 2, alphas, alpha_bars),
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_published_driver(device):
    """The calls of the publication, positional, end to end on a cloud of four points."""
    torch.manual_seed(0)
    steps = 12
    betas = torch.linspace(0.02, 0.14, steps) ** 2
    alphas = 1 - betas
    alpha_bars = torch.cumprod(alphas, 0)
    x_start = torch.tensor([-1.0, 0.5, 0.0, 2.0, 1.0, -1.0, 2.0, 1.0], device=device)
    data_size = len(x_start)
    model = Denoising(data_size, steps).to(device)
    model.emb = model.emb.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(300):
        t = rng.integers(1, steps)
        x_t = q_sample(x_start, t, alpha_bars, device)
        mean, covariance = posterior_q(x_start, x_t, t, alphas, alpha_bars, device)
        assert covariance.shape == (data_size, data_size)
        loss = (model(x_t, t) - mean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-50:]) < np.mean(losses[:50]) / 4
    x = torch.randn(data_size, device=device)
    for t in np.arange(1, steps)[::-1]:
        x = denoise_with_mu(model, x, t, alphas, data_size, device)
    assert x.shape == x_start.shape and x.device == x_start.device
    assert (x - x_start).square().mean().sqrt() < 0.5


def test_needs_pytorch_only():
    code = (
        "import sys, diffusion; "
        "print([m for m in ('PIL', 'matplotlib', 'pandas', 'seaborn', 'utils', 'main') "
        "if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@no_cuda
def test_a_training_step_never_waits_for_the_gpu():
    schedule = noise_schedule()
    x_start, t = torch.randn(3, 4, device="cuda"), torch.tensor([0, 5, 29])
    network = PredictStart(Denoising(4, 30).cuda(), *schedule)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_t = q_sample(x_start, t, schedule[1])
        target, _ = posterior_mean_variance(x_start, x_t, t, *schedule)
        (network(x_t, t) - target).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
