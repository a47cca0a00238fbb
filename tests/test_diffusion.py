"""The mathematics, held against Bayes' rule, integrals, chains and other libraries.

A draw is its mean and sigma times the generator's next noise, to the bit that rounding
leaves: so laws are compared by replaying the noise.
"""

import math
import subprocess
import sys
from functools import partial
from itertools import accumulate
from operator import mul

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
    forward,
    gaussian_kl,
    noise_schedule,
    position_encoding_init,
    posterior_mean_variance,
    posterior_q,
    posterior_tables,
    prediction,
    prior_kl,
    q_sample,
    sample,
    vb_terms,
)
from tests import published
from tests.common import HOMER, ROOT, SCHEDULE, X_START, picture, seeded_by, white
from utils import image_to_vector

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
cuda = pytest.param("cuda", marks=no_cuda)
close = torch.testing.assert_close


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
    generator = seeded_by(draw(st.integers(0, 2**32)))
    x_start, x_t = torch.randn((2, *shape), dtype=torch.float64, generator=generator)
    t = draw(indices)
    if rows and draw(st.booleans()):
        t = torch.tensor(draw(st.lists(indices, min_size=rows, max_size=rows)))
    return 3 * x_start, 3 * x_t, t, alphas, alpha_bars


def by_hand(alphas, t):
    """alpha_t, abar_t and abar_{t-1} from plain products, as what multiplies a state."""
    bars = torch.tensor([1.0, *accumulate(alphas.tolist(), mul)], dtype=torch.float64)
    rows = [table[t] for table in (alphas, bars[1:], bars[:-1])]
    return [row[:, None] if torch.is_tensor(t) else row for row in rows]


def by_bayes(alphas, t):
    """A_t, B_t and beta~_t from precisions: of q(x_{t-1} | x_0) and q(x_t | x_{t-1})."""
    alpha, _, previous = by_hand(alphas, t)
    prior, likelihood = 1 / (1 - previous), alpha / (1 - alpha)
    variance = 1 / (prior + likelihood)  # where t > 1, and the prior is no point
    start_weight, x_t_weight = prior * previous.sqrt(), likelihood / alpha.sqrt()
    return variance * start_weight, variance * x_t_weight, variance


# The schedule


@given(st.integers(1, 40), st.floats(1e-6, 0.9), st.floats(1e-6, 0.9))
@example(30, 4e-4, 0.02)  # published
def test_schedule_is_linear_in_sqrt_beta(timesteps, one, other):
    start, end = sorted((one, other))
    alphas, alpha_bars = noise_schedule(timesteps, start, end)
    assert alphas.dtype == alpha_bars.dtype == torch.float64
    for i in range(timesteps):
        share = i / (timesteps - 1) if timesteps > 1 else 0
        beta = (math.sqrt(start) * (1 - share) + math.sqrt(end) * share) ** 2
        assert alphas[i].item() == pytest.approx(1 - beta, rel=1e-12)
        close(alpha_bars[i], by_hand(alphas, i)[1], rtol=1e-12, atol=0)


def test_published_schedule_is_the_default():
    assert torch.equal(
        *(s[0] for s in (noise_schedule(), noise_schedule(30, 4e-4, 0.02)))
    )
    assert noise_schedule()[1][-1].item() == pytest.approx(0.79, abs=0.005)


def test_a_schedule_may_reach_noise_to_the_last_bit():
    alphas, alpha_bars = noise_schedule(2000, 0.9, 0.9)
    assert alpha_bars[-1] == 0
    x = torch.randn(2, 4)
    assert posterior_mean_variance(*x, 1999, alphas, alpha_bars)[0].isfinite().all()


# The forward process


@given(posteriors(), st.integers(0, 99))
def test_q_sample_is_the_chain_at_once(case, seed):
    """Mean and variance after t steps of x -> sqrt(alpha) x + sqrt(beta) z."""
    x_start, _, t, alphas, alpha_bars = case
    mean, variance = torch.ones(len(alphas) + 1), torch.zeros(len(alphas) + 1)
    mean, variance = mean.double(), variance.double()
    for i, alpha in enumerate(alphas):
        mean[i + 1] = alpha.sqrt() * mean[i]
        variance[i + 1] = alpha * variance[i] + (1 - alpha)
    mean, variance = mean[1:][t], variance[1:][t]
    if isinstance(t, torch.Tensor):
        mean, variance = mean[:, None], variance[:, None]
    noise = torch.randn(x_start.shape, dtype=torch.float64, generator=seeded_by(seed))
    x_t = q_sample(x_start, t, alpha_bars, generator=seeded_by(seed))
    close(x_t, mean * x_start + variance.sqrt() * noise, rtol=1e-9, atol=1e-9)


def test_forward_process_is_one_path():
    alphas, _ = SCHEDULE
    path, generator = forward(X_START, alphas, seed=9), seeded_by(9)
    assert path.shape == (9, 8) and torch.equal(path[0], X_START)
    for t, alpha in enumerate(alphas.tolist()):
        noise = torch.randn(8, generator=generator)
        close(path[t + 1], math.sqrt(alpha) * path[t] + math.sqrt(1 - alpha) * noise)


def test_no_covariance_matrix_is_formed():
    alphas, alpha_bars = noise_schedule(3)
    x = torch.ones(2_000_000)  # whose D x D matrix would take 16 TB
    x_t = q_sample(x, 2, alpha_bars)
    posterior_mean_variance(x, x_t, 2, alphas, alpha_bars)
    assert denoise_with_mu(lambda x_t, t: x_t, x_t, 2, alphas).shape == x.shape


# The posterior


@given(posteriors(min_timesteps=2))
def test_posterior_is_bayes_rule(case):
    x_start, x_t, t, alphas, _ = case
    a, b, variance = by_bayes(alphas, t)
    got_mean, got_variance = posterior_mean_variance(*case)
    assert got_mean.shape == x_t.shape and got_variance.shape == variance.shape
    close(got_mean, a * x_start + b * x_t, rtol=1e-8, atol=1e-8)
    close(got_variance, variance, rtol=1e-8, atol=0)


@given(schedules(min_timesteps=2), st.data())
def test_posterior_is_the_integral(schedule, data):
    alphas, _ = schedule
    t = data.draw(st.integers(1, len(alphas) - 1))
    x_start, x_t = data.draw(st.tuples(*[st.floats(-2, 2)] * 2))
    alpha, _, alpha_bar_prev = (value.item() for value in by_hand(alphas, t))
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
    states = torch.tensor([[x_start], [x_t]], dtype=torch.float64)
    got_mean, got_variance = posterior_mean_variance(*states, t, *schedule)
    assert got_mean.item() == pytest.approx(mean, rel=1e-6, abs=1e-6)
    variance = (weight * (x - mean) ** 2).sum()
    assert got_variance.item() == pytest.approx(variance, rel=1e-6)


@given(schedules())
def test_posterior_identities(schedule):
    """x_{t-1}, drawn from the posterior of an x_t of the right law, has the right law."""
    alpha_bars = schedule[1]
    previous = torch.cat([torch.ones(1).double(), alpha_bars[:-1]])
    a, b, variance = posterior_tables(*schedule)
    close(a + b * alpha_bars.sqrt(), previous.sqrt(), rtol=1e-8, atol=1e-12)
    close(b**2 * (1 - alpha_bars) + variance, 1 - previous, rtol=1e-8, atol=1e-12)


@given(posteriors())
def test_posterior_written_in_the_noise(case):
    """A network that knows x_0 and one that knows the noise give one mean."""
    x_start, noise, t, alphas, alpha_bars = case
    _, alpha_bar, _ = by_hand(alphas, t)
    x_t = alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise
    mean, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
    from_noise = PredictNoise(lambda x_t, t: noise, alphas, alpha_bars)(x_t, t)
    from_start = PredictStart(lambda x_t, t: x_start, alphas, alpha_bars)(x_t, t)
    close(from_noise, mean, rtol=1e-7, atol=1e-7)
    close(from_start, mean, rtol=1e-7, atol=1e-7)


@given(schedules())
def test_posterior_at_index_0_is_x_start(schedule):
    x_start, x_t = torch.randn(2, 3, 4, dtype=torch.float64)
    for t in (0, torch.zeros(3, dtype=torch.int64)):
        mean, variance = posterior_mean_variance(x_start, x_t, t, *schedule)
        assert torch.equal(mean, x_start) and not variance.any()


def test_posterior_q_adds_the_dense_covariance():
    x_start, x_t = torch.randn(2, 3, 4)
    for t in (5, torch.tensor([0, 5, 7])):
        mean, covariance = posterior_q(x_start, x_t, t, *SCHEDULE)
        same_mean, variance = posterior_mean_variance(x_start, x_t, t, *SCHEDULE)
        assert torch.equal(mean, same_mean)
        assert torch.equal(covariance, variance[..., None] * torch.eye(4))


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


@pytest.mark.parametrize("hidden", [None, 3])
def test_network_is_the_published_one(hidden):
    model, width = Denoising(6, 4, hidden), hidden or 6
    sizes = [tuple(p.shape) for p in model.parameters()]
    assert sizes[0::2] == [(width, 6), (width, width), (6, width)]
    assert [name for name, _ in model.named_buffers()] == ["emb"]
    assert torch.equal(model.emb, position_encoding_init(5, 6)[1:])
    x_t, rows = torch.randn(3, 6), [0, 2, 3]
    got = model(x_t, torch.tensor(rows))
    weights = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    for row, t in enumerate(rows):
        hidden = x_t[row].double().numpy() + model.emb[t].double().numpy()
        for k in (1, 2, 3):
            hidden = weights[f"linear{k}.weight"] @ hidden + weights[f"linear{k}.bias"]
            hidden = hidden if k == 3 else np.maximum(hidden, 0)
        np.testing.assert_allclose(got[row].detach(), hidden, atol=1e-5)
        close(model(x_t[row], t), got[row])


@pytest.mark.parametrize("wrapper", [None, PredictStart, PredictNoise])
def test_gradients(wrapper):
    network = Denoising(4, 8, hidden_dim=5).double()
    denoiser = wrapper(network, *SCHEDULE) if wrapper else network
    x_t = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1, 3])
    assert torch.autograd.gradcheck(lambda x_t: denoiser(x_t, t), x_t)
    denoiser(x_t, t).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in denoiser.parameters())
    assert network.emb.grad is None and not network.emb.requires_grad


# The way back


@given(posteriors(), st.sampled_from(["beta", "posterior", "number", "row", "all"]))
def test_reverse_step_is_its_mean_and_noise(case, variance):
    """sigma_t^2 by name, as one number, one for each row or coordinate; 0 at index 0."""
    _, x_t, t, alphas, alpha_bars = case
    column = (lambda table: table[t][:, None]) if torch.is_tensor(t) else lambda v: v[t]
    if variance in ("beta", "posterior"):
        exact = posterior_tables(alphas, alpha_bars)[2]
        expected = column(1 - alphas if variance == "beta" else exact)
    else:
        shapes = {"number": (), "row": (*x_t.shape[:-1], 1), "all": x_t.shape}
        variance = expected = torch.rand(shapes[variance], dtype=torch.float64)
    step = partial(denoise_with_mu, variance=variance, generator=seeded_by(5))
    noise = torch.randn(x_t.shape, dtype=torch.float64, generator=seeded_by(5))
    not_last = column(torch.arange(len(alphas)) > 0)
    got = step(lambda x_t, t: x_t / 2 + 1, x_t, t, alphas, x_t.shape[-1])
    close(got, x_t / 2 + 1 + not_last * expected.sqrt() * noise)


@pytest.mark.parametrize("first_index", [0, 1])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("x_T", [None, torch.arange(8.0)])
def test_chain_of_the_exact_posterior(x_T, variance, first_index):
    """Each step by Bayes' rule and the next noise; the last state is the datum."""
    alphas, generator, visited = SCHEDULE[0], seeded_by(6), []

    def network(x_t, t):
        visited.append(t)
        return X_START

    options = {"x_T": x_T, "variance": variance, "first_index": first_index, "seed": 6}
    chain = sample(PredictStart(network, *SCHEDULE), alphas, 8, **options)
    assert visited == [7, 6, 5, 4, 3, 2, 1, 0][: 8 - first_index]
    assert {type(t) for t in visited} == {int} and chain.dtype == torch.float32
    x = torch.randn(8, generator=generator) if x_T is None else x_T
    for t, state in zip(range(7, -1, -1), chain):
        close(state, x.float(), rtol=1e-4, atol=1e-5)
        a, b, exact = by_bayes(alphas, max(t, 1))
        sigma = (exact if variance == "posterior" else 1 - alphas[t]).sqrt()
        x = a * X_START + b * x + sigma * torch.randn(8, generator=generator)
    assert len(chain) == 9 - first_index
    assert first_index or torch.equal(chain[-1], X_START)


def test_what_the_published_variance_does_to_the_chain():
    """x_{t-1} = A_t x_0 + B_t x_t + sigma_t z from N(0, I): the spread of x_1."""
    schedule = noise_schedule(beta_end=0.6)
    _, weights, exact = posterior_tables(*schedule)
    for variances, spread in ((1 - schedule[0], 0.048), (exact, 0.020)):
        variance = 1.0
        for b, added in zip(weights[1:].flip(0), variances[1:].flip(0)):
            variance = b**2 * variance + added
        assert variance**0.5 == pytest.approx(spread, abs=5e-4)


def test_generator_drives_all_randomness():
    x, network = torch.randn(5), Denoising(5, 8)
    state = torch.get_rng_state()
    q_sample(x, 1, SCHEDULE[1], generator=seeded_by(7))
    forward(x, SCHEDULE[0])
    assert not sample(network, SCHEDULE[0], 5).requires_grad
    assert not vb_terms(network, x, *SCHEDULE)[1].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (q_sample(x, 1, SCHEDULE[1]) for _ in range(2))
    assert not torch.equal(one, other)


# The bound


def full(variance, shape):
    """A diagonal covariance, of any form that is allowed, as matrices."""
    variance = torch.as_tensor(variance, dtype=torch.float64)
    return torch.diag_embed(variance.expand(shape))


@given(st.integers(1, 6), st.integers(0, 4), st.data())
def test_gaussian_kl_against_torch_distributions(d, rows, data):
    shape = (rows, d) if rows else (d,)
    generator = seeded_by(data.draw(st.integers(0, 2**32)))
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
    close(got, expected, rtol=1e-9, atol=1e-9)
    number = torch.tensor(0.3, dtype=torch.float64)
    same = gaussian_kl(mean1, number, mean2, torch.tensor(2.0))
    assert torch.equal(gaussian_kl(mean1, 0.3, mean2, 2), same)


def test_gaussian_kl_keeps_small_differences():
    """At equal variances v it is norm(shift)^2 / 2 v, however small; and never negative."""
    mean, shift = torch.zeros(1000), torch.full((1000,), 1e-4)
    expected = 1000 * shift[0].item() ** 2 / (2 * 0.3)
    assert gaussian_kl(mean, 0.3, shift, 0.3).item() == pytest.approx(
        expected, rel=1e-12
    )
    for nearly in (0.3, 0.3 * (1 + 1e-15), 0.3 * (1 - 1e-12), 0.3 * (1 + 1e-9)):
        assert gaussian_kl(mean, nearly, mean, 0.3) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_kl(dtype):
    alpha_bar = math.prod(SCHEDULE[0].tolist())
    x_start, eye = torch.randn(3, 8, dtype=dtype), torch.eye(8).double()
    law = MultivariateNormal(alpha_bar**0.5 * x_start.double(), (1 - alpha_bar) * eye)
    noise = MultivariateNormal(torch.zeros(8).double(), eye)
    expected = (kl_divergence(law, noise) / 8).tolist()
    assert prior_kl(x_start[0], SCHEDULE[1]) == pytest.approx(expected[0], rel=1e-9)
    assert prior_kl(x_start, SCHEDULE[1]) == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_vb_terms_are_the_kl_of_the_steps(variance):
    """The two parts add up to the KL of dense Gaussians, with means written by hand."""
    alphas, _ = SCHEDULE
    x_start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def denoiser(x_t, t):
        assert type(t) is int and x_t.shape == (5, 3)
        return 0.9 * x_t + 0.1 * t

    options = {"variance": variance, "states_per_step": 5, "seed": 7}
    terms = vb_terms(denoiser, x_start, *SCHEDULE, **options)
    generator, eye = seeded_by(7), torch.eye(3, dtype=torch.float64)
    for t in range(1, 8):
        alpha, alpha_bar, _ = (value.item() for value in by_hand(alphas, t))
        noise = torch.randn(5, 3, dtype=torch.float64, generator=generator)
        x_t = math.sqrt(alpha_bar) * x_start + math.sqrt(1 - alpha_bar) * noise
        mean = (x_t - (1 - alpha) / math.sqrt(1 - alpha_bar) * noise) / alpha**0.5
        exact = by_bayes(alphas, t)[2]
        model = 1 - alpha if variance == "beta" else exact
        expected = kl_divergence(
            MultivariateNormal(mean, exact * eye),
            MultivariateNormal(0.9 * x_t + 0.1 * t, model * eye),
        )
        got = sum(part[t - 1] for part in terms)
        assert got.item() == pytest.approx(expected.mean().item() / 3, rel=1e-9)


def test_mean_kl_of_a_gain_on_the_noise():
    """A mean that passes on g of the noise costs (g - B_t)^2 (1 - abar_t) / 2 beta_t."""
    alphas, alpha_bars = SCHEDULE
    x_start, b = torch.randn(20_000), posterior_tables(*SCHEDULE)[1]

    def constant(x_t, t):  # the best mean that does not look at x_t, (D,)
        return alpha_bars[t - 1].sqrt().float() * x_start

    no_noise = PredictNoise(lambda x_t, t: torch.zeros_like(x_t), *SCHEDULE)
    for denoiser, g in ((constant, 0), (no_noise, 1 / alphas.sqrt())):
        expected = (g - b) ** 2 * (1 - alpha_bars) / (2 * (1 - alphas))
        got = vb_terms(denoiser, x_start, *SCHEDULE)[1]
        close(got, expected[1:], rtol=5 * math.sqrt(2 / 160_000), atol=0)


@pytest.mark.parametrize("shift", [1e-7, 0.0])
def test_mean_kl_of_a_nearly_exact_mean(shift):
    """A mean that is a shift c off costs c^2 / 2 sigma_t^2, and an exact one nothing."""
    alphas, alpha_bars = SCHEDULE
    x_start = torch.randn(50, dtype=torch.float64)

    def noise(x_t, t):  # the mean by the other formula than that of `vb_terms`
        assert len(x_t) == 8
        return (x_t - alpha_bars[t].sqrt() * x_start) / (1 - alpha_bars[t]).sqrt()

    exact = PredictNoise(noise, *SCHEDULE)
    _, got = vb_terms(lambda x_t, t: exact(x_t, t) + shift, x_start, *SCHEDULE)
    close(got, shift**2 / (2 * (1 - alphas[1:])), rtol=1e-6, atol=1e-26)
    assert (got >= 0).all()


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
    "setting, other, usual",
    [
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_device, "meta", "cpu"),
    ],
)
def test_defaults_of_pytorch_do_not_decide(setting, other, usual):
    """Where the documents fix dtype and device, the code does."""

    def made():
        torch.manual_seed(0)
        network, tables = Denoising(8, 30), noise_schedule()
        mean, _ = posterior_mean_variance(X_START, X_START + 1, 3, *tables)
        path, chain = forward(X_START, tables[0]), sample(network, tables[0], 8)
        vector = image_to_vector(HOMER)
        return [
            vector,
            *tables,
            mean,
            path,
            chain,
            *vb_terms(network, X_START, *tables),
        ]

    expected = made()
    setting(other)
    try:
        got = made()
    finally:
        setting(usual)
    close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "t", [np.int64(2), np.int32(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)]
)
def test_any_integer_is_an_index(t):
    x_t, network = torch.randn(2, 6), Denoising(6, 8)
    assert torch.equal(network(x_t, t), network(x_t, 2))
    rows = torch.as_tensor(t).expand(2)
    assert torch.equal(network(x_t, rows), network(x_t, torch.tensor([2, 2])))


def test_the_published_way_of_the_pieces_is_the_same():
    """From one state of the generator, away from index 0, where it differs."""
    x_start, x_t, (alphas, alpha_bars) = X_START, X_START + 1, SCHEDULE
    network, floats = Denoising(8, 8), [table.float() for table in SCHEDULE]

    def drawn(function, *args):
        torch.manual_seed(t)
        return function(*args)

    for t in range(1, 8):
        pairs = (
            (posterior_q(x_start, x_t, t, *SCHEDULE)[k], theirs)
            for k, theirs in enumerate(published.posterior(x_start, x_t, t, *floats))
        )
        step = network, x_t, t
        for ours, theirs in (
            *pairs,
            (
                drawn(q_sample, x_start, t, alpha_bars),
                drawn(published.q_sample, x_start, t, floats[1]),
            ),
            (
                drawn(denoise_with_mu, *step, alphas),
                drawn(published.reverse_step, *step, floats[0]),
            ),
        ):
            close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_published_driver(device):
    """The calls of the publication, in its order and by position, on a few points."""
    np.random.seed(0)
    grey = white()
    grey[[30, 50, 70, 110], [20, 60, 70, 130]] = 0
    x_start, states = published.driver(picture(grey), device)
    assert x_start.tolist() == pytest.approx([-2.2, 2.8, -0.6, 2, -0.2, 1.2, 2.2, -0.4])
    rmse = [
        np.sqrt(np.mean((np.ravel(s, "F") - x_start.tolist()) ** 2)) for s in states
    ]
    assert len(rmse) == 30 and rmse[-1] < 0.5 < rmse[0]


def test_import_is_of_pytorch_only():
    code = "import sys, diffusion; print({'PIL', 'matplotlib', 'pandas', 'utils', 'main'} & {*sys.modules})"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert printed == "set()\n"


@no_cuda
def test_a_training_step_never_waits_for_the_gpu():
    x_start, t = torch.randn(3, 4, device="cuda"), torch.tensor([0, 5, 7])
    network = PredictStart(Denoising(4, 8).cuda(), *SCHEDULE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_t = q_sample(x_start, t, SCHEDULE[1])
        target, _ = posterior_mean_variance(x_start, x_t, t, *SCHEDULE)
        (network(x_t, t) - target).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Bad input: what PyTorch refuses by itself is here too, since it must not pass silently

ALPHAS, ALPHA_BARS = SCHEDULE
X, BATCH = torch.zeros(4), torch.zeros(3, 4)
INDEX = torch.tensor


def same(x_t, t):
    return x_t


def returns(output):
    return lambda x_t, t: output if x_t.ndim == 1 else output[None]


def indexed(x, t):
    """Every call that looks up an index."""
    step = partial(denoise_with_mu, variance=torch.ones(()))
    return (
        (q_sample, x, t, ALPHA_BARS),
        (posterior_mean_variance, x, x, t, *SCHEDULE),
        (posterior_q, x, x, t, *SCHEDULE),
        (Denoising(4, 8), x, t),
        (PredictStart(same, *SCHEDULE), x, t),
        (PredictNoise(same, *SCHEDULE), x, t),
        (denoise_with_mu, same, x, t, ALPHAS),
        (step, same, x, t, ALPHAS),
    )


def asked(output):
    """Every call that asks a network."""
    return (
        (prediction, returns(output), X, 1),
        (PredictStart(returns(output), *SCHEDULE), X, 1),
        (PredictNoise(returns(output), *SCHEDULE), X, 1),
        (denoise_with_mu, returns(output), X, 1, ALPHAS),
        (vb_terms, returns(output), X, *SCHEDULE),
    )


def tabled(*tables):
    """Every call that needs both tables."""
    noise = PredictNoise(same, *tables)
    return (posterior_tables, *tables), (noise, X, 1), (vb_terms, same, X, *tables)


def elsewhere(device):
    return (
        (q_sample, X, 1, ALPHA_BARS, device),
        (posterior_q, X, X, 1, *SCHEDULE, device),
        (denoise_with_mu, same, X, 1, ALPHAS, 4, device),
    )


def apart(one, other):
    return [
        (posterior_mean_variance, *x, 1, *SCHEDULE)
        for x in ((one, other), (other, one))
    ]


NO_SCHEDULE = ValueError, "products of alphas"
APART = ValueError, "states must have one shape, dtype and device"
ASKED = ValueError, "a network must return one of"
NO_NAME = ValueError, "variance must be.*'exact'"


@pytest.mark.parametrize(
    "error, message, calls",
    [
        (ValueError, "^a schedule needs .*>= 1 and .*got 0", [(noise_schedule, 0)]),
        (ValueError, "0 < beta_start.*got 3, 0.0", [(noise_schedule, 3, 0.0, 0.1)]),
        (ValueError, "<= beta_end.*0.2 and 0.1", [(noise_schedule, 3, 0.2, 0.1)]),
        (ValueError, "beta_end < 1.*0.2 and 1.0", [(noise_schedule, 3, 0.2, 1.0)]),
        (ValueError, "beta_end < 1.*nan", [(noise_schedule, 3, 0.2, math.nan)]),
        (IndexError, r"t .*0\.\.7, got 8", indexed(X, 8)),
        (IndexError, r"t .*0\.\.7, got -1", indexed(X, -1)),
        (IndexError, r"t .*integer.*1.0", indexed(X, 1.0)),
        (TypeError, "str", indexed(X, "1")),
        (
            ValueError,
            r"t .*per row of torch.Size\(\[4\]\)",
            indexed(X, INDEX([1, 1, 1, 1])),
        ),
        (ValueError, r"t .*per row", indexed(BATCH, INDEX([1, 2]))),
        (IndexError, r"t .*0\.\.7", indexed(BATCH, INDEX([1, 2, 8]))),
        (IndexError, "t .*integer", indexed(BATCH, INDEX([1.0, 2.0, 3.0]))),
        (
            ValueError,
            "t must be .*CPU.*meta",
            indexed(BATCH, INDEX([1, 2, 3]).to("meta")),
        ),
        (*NO_SCHEDULE, tabled(ALPHA_BARS, ALPHAS)),
        (*NO_SCHEDULE, tabled(ALPHAS, noise_schedule(8, 0.02, 0.501)[1])),
        (*NO_SCHEDULE, tabled(ALPHAS, ALPHA_BARS * math.nan)),
        (RuntimeError, "7.*8|8.*7", tabled(ALPHAS, ALPHA_BARS[:-1])),
        (ValueError, "tables .*on meta", [(q_sample, X, 1, ALPHA_BARS.to("meta"))]),
        *[(*APART, apart(X, x)) for x in (BATCH, BATCH[:1], X.double(), X.to("meta"))],
        *[(*ASKED, asked(x)) for x in (BATCH, X[:1], X.double(), X.to("meta"))],
        ((RuntimeError, AssertionError), "device|CUDA", elsewhere("meta")),
        (
            ValueError,
            "size must be 4.*got 5",
            [(denoise_with_mu, same, X, 1, ALPHAS, 5)],
        ),
        (*NO_NAME, [(partial(vb_terms, variance="exact"), same, X, *SCHEDULE)]),
        (*NO_NAME, [(partial(denoise_with_mu, variance="exact"), same, X, 1, ALPHAS)]),
        (RuntimeError, "dtype", [(Denoising(4, 8), X.double(), 1)]),
        (
            RuntimeError,
            "expand",
            [(partial(denoise_with_mu, variance=BATCH), same, X, 1, ALPHAS)],
        ),
    ],
)
def test_bad_input_is_refused(error, message, calls):
    for function, *args in calls:
        with pytest.raises(error, match=message):
            function(*args)


def test_tables_may_be_where_the_states_are():
    x_t = q_sample(X.to("meta"), 1, ALPHA_BARS.to("meta"))
    assert x_t.device.type == "meta"


@pytest.mark.parametrize("steps", [30, 1000])
def test_a_rounded_schedule_is_none_of_these(steps):
    exact, products = noise_schedule(steps, 1e-4, 0.02)
    rounded = exact.float()
    for alpha_bars in (products, products.float(), rounded.cumprod(dim=0)):
        mean, _ = posterior_mean_variance(X + 1, X, steps - 1, rounded, alpha_bars)
        expected, _ = posterior_mean_variance(X + 1, X, steps - 1, exact, products)
        close(mean, expected, rtol=1e-2, atol=0)
