"""The mathematics against diffusers, Bayes' rule, torch.distributions and the publication."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

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
    prior_kl,
    q_sample,
    reverse_variances,
    sample,
    vb_terms,
)
from tests import published
from tests.common import cuda, double, no_cuda, picture, seeded_by, white

T, close = 30, torch.testing.assert_close
ALPHAS, ALPHA_BARS = SCHEDULE = noise_schedule()
X_START, X_T, EPS = 3 * double(3, 5, 4)
ROWS = torch.tensor([0, 3, 9, 29, 1])
every_t = pytest.mark.parametrize("t", [0, 1, 14, 29, ROWS])


def diffusers(**options):
    """The published chain of diffusers, on our tables, since it rounds its own."""
    chain = DDPMScheduler(T, 4e-4, 0.02, "scaled_linear", clip_sample=False, **options)
    chain.betas, chain.alphas, chain.alphas_cumprod = 1 - ALPHAS, ALPHAS, ALPHA_BARS
    return chain


def column(table, t):
    """The entries of a table as factors of rows, by hand."""
    return table[t][:, None] if torch.is_tensor(t) else table[t]


@pytest.mark.parametrize("settings", [(), (7, 0.01, 0.6), (1, 0.1, 0.1)])
def test_schedule_is_that_of_diffusers(settings):
    """And the published one is the default."""
    alphas, alpha_bars = noise_schedule(*settings)
    theirs = DDPMScheduler(*(settings or (30, 4e-4, 0.02)), "scaled_linear")
    assert alphas.dtype == alpha_bars.dtype == torch.float64
    close(alphas.float(), theirs.alphas)
    close(alpha_bars.float(), theirs.alphas_cumprod)


def test_an_invalid_schedule_is_refused():
    for settings in ((0, 0.1), (3, 0.0), (3, 0.3), (3, 0.1, 1.0), (3, float("nan"))):
        with pytest.raises(ValueError, match="0 < beta_start <= beta_end < 1"):
            noise_schedule(*settings)


@every_t
def test_q_sample_is_that_of_diffusers(t):
    noise = torch.randn(5, 4, dtype=torch.float64, generator=seeded_by(1))
    expected = diffusers().add_noise(X_START, noise, torch.as_tensor(t).expand(5))
    close(q_sample(X_START, t, ALPHA_BARS, generator=seeded_by(1)), expected)


def test_forward_process_is_one_path():
    path, generator = forward(X_START[0], ALPHAS, seed=9), seeded_by(9)
    assert torch.equal(path[0], X_START[0])
    for x, then, alpha in zip(path[:-1], path[1:], ALPHAS, strict=True):
        noise = torch.randn(4, dtype=torch.float64, generator=generator)
        close(then, alpha.sqrt() * x + (1 - alpha).sqrt() * noise)


@every_t
def test_posterior_is_bayes_rule(t):
    """Precisions of q(x_{t-1} | x_0) and of q(x_t | x_{t-1}), as a likelihood, add up."""
    previous = column(torch.cat([torch.ones(1), ALPHA_BARS]), t)
    alpha = column(ALPHAS, t)
    likelihood = alpha / (1 - alpha)
    variance = 1 / (1 / (1 - previous) + likelihood)
    share = (variance / (1 - previous)).nan_to_num(1)  # all, where x_{t-1} is x_0
    mean = share * previous.sqrt() * X_START
    mean = mean + variance * likelihood / alpha.sqrt() * X_T
    close(posterior_mean_variance(X_START, X_T, t, *SCHEDULE), (mean, variance))
    got, covariance = posterior_q(X_START, X_T, t, *SCHEDULE)
    close(got, mean)
    close(covariance, variance[..., None] * torch.eye(4, dtype=torch.float64))
    if not torch.is_tensor(t):
        close(posterior_q(X_START[0], X_T[0], t, *SCHEDULE), (mean[0], covariance))


@pytest.mark.parametrize("size", [(31, 6), (700, 3)])  # the second would show float32
def test_position_encoding(size):
    table = position_encoding_init(*size)
    assert table.dtype == torch.float32 and not table[0].any()
    p, i = np.ogrid[1 : size[0], : size[1]]
    angle = p / 10000 ** (2 * i / size[1])
    expected = np.where(i % 2, np.cos(angle), np.sin(angle))
    close(table[1:], torch.tensor(expected, dtype=torch.float32), atol=1e-7, rtol=0)


@pytest.mark.parametrize("hidden", [None, 7])
def test_network_is_the_published_one(hidden):
    network, table = Denoising(4, T, hidden).double(), position_encoding_init(T + 1, 4)
    assert network.linear2.weight.shape == 2 * (hidden or 4,)
    values = X_T + table[ROWS + 1]
    for k in (1, 2, 3):
        layer = getattr(network, f"linear{k}")
        values = values @ layer.weight.T + layer.bias
        values = values if k == 3 else values.clamp(min=0)
    close(network(X_T, ROWS), values)
    close(network(X_T[2], 9), values[2])


@pytest.mark.parametrize("wrapper", [PredictStart, PredictNoise])
def test_gradients_pass_through_a_wrapper(wrapper):
    network = Denoising(4, T, 5).double()
    wrapper(network, *SCHEDULE)(X_T, ROWS).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("t", [0, 1, 14, 29])
@pytest.mark.parametrize(
    "variance, theirs", [("beta", "fixed_large"), ("posterior", "fixed_small")]
)
@pytest.mark.parametrize(
    "wrapper, output", [(PredictStart, "sample"), (PredictNoise, "epsilon")]
)
def test_a_reverse_step_is_that_of_diffusers(wrapper, output, variance, theirs, t):
    model = wrapper(lambda x_t, t: EPS, *SCHEDULE)
    how = {"variance": variance, "generator": seeded_by(1)}
    got = denoise_with_mu(model, X_T, t, ALPHAS, **how)
    step = diffusers(variance_type=theirs, prediction_type=output).step
    close(got, step(EPS, t, X_T, generator=seeded_by(1)).prev_sample)


@pytest.mark.parametrize(
    "variance", ["beta", double(4).exp(), double(5, 1).exp(), double(5, 4).exp()]
)
def test_a_reverse_step_of_several_times_is_that_of_each(variance):
    def step(t):
        how = {"variance": variance, "generator": seeded_by(5)}
        return denoise_with_mu(lambda x_t, t: x_t / 2, X_T, t, ALPHAS, **how)

    got = step(ROWS)
    close(got, torch.stack([step(t)[row] for row, t in enumerate(ROWS.tolist())]))
    assert torch.equal(got[0], X_T[0] / 2)  # the last step adds no noise
    if torch.is_tensor(variance):
        noise = torch.randn(5, 4, dtype=torch.float64, generator=seeded_by(5))
        close(got[1:], (X_T / 2 + variance.sqrt() * noise)[1:])


@pytest.mark.parametrize("first_index", [0, 1])
@pytest.mark.parametrize("x_T", [None, X_T[0]])
def test_sample_is_the_chain_of_steps(x_T, first_index):
    """Of the exact posterior, from a start of its own or a given one; it ends at x_0."""
    exact, visited = PredictStart(lambda x_t, t: X_START[0], *SCHEDULE), []

    def model(x_t, t):
        visited.append(t)
        return exact(x_t, t)

    how = {"variance": "posterior", "first_index": first_index, "seed": 6}
    chain = sample(model, ALPHAS, 4, x_T=x_T, **how)
    assert visited == [*range(T - 1, first_index - 1, -1)]
    generator = seeded_by(6)
    x = torch.randn(4, generator=generator) if x_T is None else x_T
    for t, state in zip(range(T - 1, first_index - 2, -1), chain, strict=True):
        close(state, x, check_dtype=False)
        if t >= first_index:
            how = {"variance": "posterior", "generator": generator}
            x = denoise_with_mu(exact, x, t, ALPHAS, **how)
    close(chain[-1], X_START[0], atol=0.1, rtol=0, check_dtype=False)
    assert first_index or (chain[-1] == X_START[0].to(chain)).all()


def test_a_misspelt_variance_is_refused():
    with pytest.raises(ValueError, match=r"'beta' or 'posterior', got 'exact'"):
        reverse_variances("exact", ALPHAS)


def test_gaussian_kl_is_that_of_torch():
    one, other = Normal(X_START, EPS.abs() + 0.1), Normal(X_T, 0.3)
    got = gaussian_kl(one.mean, one.variance, other.mean, 0.3**2)
    close(got, kl_divergence(one, other))


def test_gaussian_kl_keeps_small_differences():
    """At equal variances v it is shift^2 / (2 v), however small; and never negative."""
    assert gaussian_kl(0, torch.tensor(0.3), 0, 1).dtype == torch.float64
    shift, v = torch.tensor(1e-7), torch.tensor(0.3)  # which float32 would lose
    close(gaussian_kl(1.0, v, 1 + shift.double(), v), shift.double() ** 2 / 2 / v)
    nearly = 0.3 * (1 + torch.tensor([0, 1e-15, -1e-12, 1e-9], dtype=torch.float64))
    assert (gaussian_kl(0, nearly, 0, 0.3) >= 0).all()


def test_prior_kl():
    end = Normal(ALPHA_BARS[-1].sqrt() * X_START, (1 - ALPHA_BARS[-1]).sqrt())
    expected = kl_divergence(end, Normal(0, 1)).mean().item()
    assert prior_kl(X_START, ALPHA_BARS) == pytest.approx(expected)
    assert prior_kl(X_START.float(), ALPHA_BARS) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_vb_terms_are_the_kl_of_the_steps(variance):
    """Their sum is the KL; for a shifted exact mean, each part is its formula."""
    exact, states = PredictStart(lambda x_t, t: X_START[0], *SCHEDULE), []

    def model(x_t, t):
        states.append(x_t)
        return exact(x_t, t) + 0.01 * t

    how = {"variance": variance, "seed": 7}
    variance_kl, mean_kl = vb_terms(model, X_START[0], *SCHEDULE, **how)
    small = reverse_variances("posterior", ALPHAS)[1:]
    sigma2 = reverse_variances(variance, ALPHAS)[1:]
    close(mean_kl, (0.01 * torch.arange(1, T)).double() ** 2 / (2 * sigma2))
    means = X_T[0, 0] + 0.01 * torch.arange(1, T), X_T[0, 0]
    steps = (Normal(m, v.sqrt()) for m, v in zip(means, (sigma2, small), strict=True))
    model_step, exact_step = steps
    close(variance_kl + mean_kl, kl_divergence(exact_step, model_step))
    generator, rows = seeded_by(7), X_START[:1].expand(8, 4)
    for t, x_t in enumerate(states, start=1):
        assert torch.equal(x_t, q_sample(rows, t, ALPHA_BARS, generator=generator))
    vb_terms(model, X_START[0], *SCHEDULE, states_per_step=3)
    assert len(states[-1]) == 3


@pytest.mark.parametrize("device", ["cpu", "meta", cuda])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_results_have_dtype_and_device_of_the_state(device, dtype):
    x = torch.randn(2, 4, dtype=dtype, device=device)
    network = Denoising(4, T).to(device, dtype)
    for t in (3, torch.tensor([0, 3])):
        results = [
            q_sample(x, t, ALPHA_BARS),
            *posterior_mean_variance(x, x, t, *SCHEDULE),
            *posterior_q(x, x, t, *SCHEDULE),
            denoise_with_mu(network, x, t, ALPHAS),
            denoise_with_mu(network, x, t, ALPHAS, variance=x.new_ones(())),
            PredictNoise(network, *SCHEDULE)(x, t),
        ]
        assert {(y.dtype, y.device) for y in results} == {(dtype, x.device)}


@pytest.mark.parametrize("t", [-1, np.int64(-1), torch.tensor([1, -1])])
def test_a_negative_index_is_refused(t):
    """It would wrap to the last step, as it does in the publication."""
    x = torch.zeros(2, 4)
    for call in (
        lambda: q_sample(x, t, ALPHA_BARS),
        lambda: posterior_mean_variance(x, x, t, *SCHEDULE),
        lambda: posterior_q(x, x, t, *SCHEDULE),
        lambda: Denoising(4, T)(x, t),
        lambda: PredictNoise(lambda x_t, t: x_t, *SCHEDULE)(x, t),
        lambda: denoise_with_mu(lambda x_t, t: x_t, x, t, ALPHAS),
    ):
        with pytest.raises(IndexError, match=r"0 to 29, got .*-1"):
            call()


def test_a_generator_or_a_seed_drives_all_randomness():
    x, network = X_START.float()[0], Denoising(4, T)
    state = torch.get_rng_state()
    q_sample(x, 1, ALPHA_BARS, generator=seeded_by(7))
    denoise_with_mu(network, x, 1, ALPHAS, generator=seeded_by(7))
    forward(x, ALPHAS)
    assert not sample(network, ALPHAS, 4).requires_grad
    assert not vb_terms(network, x, *SCHEDULE)[1].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (q_sample(x, 1, ALPHA_BARS) for _ in range(2))
    assert not torch.equal(one, other)


def test_the_published_functions_are_the_same():
    """From one state of the generator, except at index 0, where the publication errs."""
    alphas, alpha_bars = (table.float() for table in SCHEDULE)
    x_start, x_t, network = *torch.randn(2, 4), Denoising(4, T)
    ours = q_sample, posterior_q, denoise_with_mu
    theirs = published.q_sample, published.posterior, published.reverse_step
    for t in range(1, T):
        results = []
        for q, posterior, step in (ours, theirs):
            torch.manual_seed(t)
            results += [[q(x_start, t, alpha_bars), step(network, x_t, t, alphas)]]
            results[-1] += posterior(x_start, x_t, t, alphas, alpha_bars)
        close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_published_driver(device):
    """The calls of the published driver, by position, on a few points."""
    np.random.seed(0)
    grey = white()
    grey[[30, 50, 70, 110], [20, 60, 70, 130]] = 0
    x_start, states = published.driver(picture(grey), device)
    assert x_start.tolist() == pytest.approx([-2.2, 2.8, -0.6, 2, -0.2, 1.2, 2.2, -0.4])
    off = [np.ravel(state, "F") - x_start.tolist() for state in states]
    assert len(off) == T and np.std(off[-1]) < 0.5 < np.std(off[0])


@no_cuda
def test_a_training_step_never_waits_for_the_gpu():
    x_start, t = torch.randn(3, 4, device="cuda"), torch.tensor([0, 5, 7])
    network = PredictStart(Denoising(4, T).cuda(), *SCHEDULE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_t = q_sample(x_start, t, ALPHA_BARS)
        target, _ = posterior_mean_variance(x_start, x_t, t, *SCHEDULE)
        (network(x_t, t) - target).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
