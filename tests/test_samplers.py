"""The ways back and the measures, held against diffusers, scipy and Gaussian closed forms.

The exact score of a Gaussian is linear, so every step of every sampler is an affine map
plus Gaussian noise, whose mean and covariance follow from the formulas.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, ScoreSdeVeScheduler
from scipy.integrate import quad, solve_ivp
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance
from torch.distributions import Normal, kl_divergence

from comparison.laws import points
from comparison.measures import frechet, share_near, sliced
from comparison.methods import ddpm_kept_alphas
from comparison.predictors import (
    Exact,
    best_variance,
    blurred,
    bound_terms,
    learned_variance,
)
from comparison.processes import (
    Process,
    cosine,
    geometric,
    linear,
    respaced,
    ve_sde,
    vp_sde,
)
from comparison.samplers import (
    ddim,
    ddim_encode,
    ddpm,
    euler_maruyama,
    langevin,
    last,
    predictor_corrector,
    probability_flow,
    slerp,
)
from diffusion import PredictStart, posterior_mean_variance, vb_terms
from tests.common import X_START, seeded_by

EYE = np.eye(2)
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[1.0, 0.6], [0.6, 0.8]])
START_MEAN, START_SCALE = np.array([-0.7, 1.2]), np.array([[1.0, 0.0], [-0.6, 0.9]])
CHAINS = 200_000

SHORT = respaced(linear(), 8)
LEVELS = geometric(3, 2.0, 0.3)
VP, VE = vp_sde(8), ve_sde(8, largest=5.0)
DATA = torch.randn(5, 2, dtype=torch.float64, generator=seeded_by(0))


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded_by(seed))


def gaussian(x_t, signal, noise):
    """The exact predictor of N(MEAN, COVARIANCE)."""
    mean, covariance = torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE)
    total = signal**2 * covariance + noise**2 * torch.from_numpy(EYE)
    return noise * (x_t - signal * mean) @ torch.linalg.inv(total)


def wavy(x_t, signal, noise):
    """A predictor of nothing in particular."""
    return signal * x_t.sin() + 0.3 * noise * x_t.flip(1)


def rows_of(process):
    """(signal, noise) of each row and of the one below it, in plain numbers."""
    rows = [*zip(process.signal.tolist(), process.noise.tolist())]
    return [*zip(rows, [(1.0, 0.0), *rows[:-1]])]


# What a step does to a Gaussian's law: x <- A x + b + N(0, Q)


def total(signal, noise):
    return signal**2 * COVARIANCE + noise**2 * EYE


def score_map(signal, noise):
    precision = np.linalg.inv(total(signal, noise))
    return -precision, signal * precision @ MEAN


def eps_map(signal, noise):
    a, b = score_map(signal, noise)
    return -noise * a, -noise * b


def start_map(signal, noise):
    """E[x_0 | x_t] of two jointly Gaussian vectors."""
    gain = signal * COVARIANCE @ np.linalg.inv(total(signal, noise))
    return gain, MEAN - signal * gain @ MEAN


def ddpm_maps(process, variance):
    """The mean is E[x_{t-1} | x_t], again of two jointly Gaussian vectors."""
    for (signal, noise), (signal_prev, noise_prev) in reversed(rows_of(process)):
        root_alpha = signal / signal_prev
        before = total(signal_prev, noise_prev)
        a = root_alpha * before @ np.linalg.inv(total(signal, noise))
        b = signal_prev * MEAN - signal * a @ MEAN
        beta = 1 - root_alpha**2
        q = {
            "beta": beta * EYE,
            "posterior": beta * noise_prev**2 / noise**2 * EYE,
            uneven: noise**2 * np.diag([0.3, 0.1]),
        }[variance]
        yield a, b, q if noise_prev else 0 * EYE


def uneven(x_t, t):
    return (SHORT.noise[t].square() * torch.tensor([0.3, 0.1])).expand(len(x_t), 2)


def ddim_maps(process, eta):
    """With abar = signal^2 / (signal^2 + noise^2), what (31) says of x / sqrt(the sum)."""
    for (signal, noise), (signal_prev, noise_prev) in reversed(rows_of(process)):
        scale = math.hypot(signal_prev, noise_prev)
        abar, abar_prev = (
            s**2 / (s**2 + n**2)
            for s, n in ((signal, noise), (signal_prev, noise_prev))
        )
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        weight = scale * math.sqrt(1 - abar_prev - sigma**2)
        start, eps = start_map(signal, noise), eps_map(signal, noise)
        a, b = (signal_prev * x + weight * y for x, y in zip(start, eps))
        yield a, b, (scale * sigma) ** 2 * EYE


def encoding_maps(process):
    rows = rows_of(process)
    for (signal_next, noise_next), (signal, noise) in rows:
        a, b = eps_map(signal, noise) if noise else eps_map(*rows[0][0])
        weight = noise_next - signal_next * noise / signal
        yield signal_next / signal * EYE + weight * a, weight * b, 0 * EYE


def langevin_maps(process, steps, rate, denoise=False):
    for (signal, noise), _ in reversed(rows_of(process)):
        a, b = score_map(signal, noise)
        size = rate * noise**2
        for _ in range(steps):
            yield EYE + size / 2 * a, size / 2 * b, size * EYE
    if denoise:
        a, b = score_map(signal, noise)
        yield EYE + noise**2 * a, noise**2 * b, 0 * EYE


def reverse_sde_maps(process, drift, diffusion2, times):
    for k in reversed(range(len(times))):
        s = times[k]
        ds = s - (times[k - 1] if k else 0)
        a, b = score_map(process.signal[k].item(), process.noise[k].item())
        f, g2 = drift(s), diffusion2(s)
        q = g2 * ds if k else 0
        yield EYE + ds * (-f * EYE + g2 * a), ds * g2 * b, q * EYE


def mean_norm(mean, covariance):
    """E norm(x), by r = sqrt(2/pi) times the integral of (1 - exp(-t^2 r^2 / 2)) / t^2."""

    def integrand(t):
        widened = EYE + t**2 * covariance
        power = -(t**2) / 2 * mean @ np.linalg.solve(widened, mean)
        return (1 - math.exp(power) / math.sqrt(np.linalg.det(widened))) / t**2

    return math.sqrt(2 / math.pi) * quad(integrand, 0, math.inf)[0]


def predictor_corrector_maps(process, law):
    """The corrector's step depends on the law of the states: (mean, covariance)."""
    mean, covariance = law
    for (signal, noise), (_, noise_prev) in reversed(rows_of(process)):
        a, b = score_map(signal, noise)
        scores = mean_norm(a @ mean + b, a @ covariance @ a.T)
        e = 2 * (0.16 * math.sqrt(math.pi / 2) / scores) ** 2
        size = noise**2 - noise_prev**2
        corrector, predictor = EYE + e * a, EYE + size * a
        joint = predictor @ corrector, predictor @ (e * b) + size * b
        q = 2 * e * predictor @ predictor.T + (size if noise_prev else 0) * EYE
        yield *joint, q
        mean, covariance = after((*joint, q), mean, covariance)


def flow_maps(process, levels, rho):
    """Heun's method on dy/dr = r (COVARIANCE + r^2 I)^-1 (y - MEAN)."""
    first, *_, (signal, noise) = [row for row, _ in rows_of(process)]
    smallest, largest = (
        (first[1] / first[0]) ** (1 / rho),
        (noise / signal) ** (1 / rho),
    )
    r = [
        (largest + k / (levels - 1) * (smallest - largest)) ** rho
        for k in range(levels)
    ]
    for here, there in pairwise([*r, 0.0]):
        slope, _ = eps_map(1, here)
        a = euler = EYE + (there - here) * slope
        if there:
            slope_there, _ = eps_map(1, there)
            a = EYE + (there - here) / 2 * (slope + slope_there @ euler)
        yield a, MEAN - a @ MEAN, 0 * EYE


def after(step, mean, covariance):
    a, b, q = step
    return a @ mean + b, a @ covariance @ a.T + q


START = START_MEAN, START_SCALE @ START_SCALE.T


@pytest.mark.parametrize(
    "sampler, process, options, maps",
    [
        (ddim, SHORT, {}, lambda: ddim_maps(SHORT, 0)),
        (ddim, LEVELS, {}, lambda: ddim_maps(LEVELS, 0)),
        (ddim, VE, {}, lambda: ddim_maps(VE, 0)),
        (ddim_encode, SHORT, {}, lambda: encoding_maps(SHORT)),
        (ddim_encode, LEVELS, {}, lambda: encoding_maps(LEVELS)),
        (probability_flow, linear(), {}, lambda: flow_maps(linear(), 18, 7)),
        (probability_flow, VE, {"levels": 5, "rho": 2}, lambda: flow_maps(VE, 5, 2)),
    ],
)
def test_deterministic_steps_are_affine_maps(sampler, process, options, maps):
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    states = sampler(gaussian, process, corners, **options)
    expected = next(states).numpy()
    if sampler is not probability_flow:
        assert np.array_equal(expected, corners)
    for x, (a, b, _) in zip(states, maps(), strict=True):
        expected = expected @ a.T + b
        np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-9)


BETA, POSTERIOR = {"variance": "beta"}, {"variance": "posterior"}
FEW, FAST = {"steps": 3}, {"steps": 6, "rate": 0.7}
ONE_LEVEL = geometric(3, 2.0, 0.3).rows(torch.tensor([1]))


def vp_beta(s):
    return 0.1 + 19.9 * s


STOCHASTIC = [
    (ddpm, SHORT, {}, lambda: ddpm_maps(SHORT, "beta")),
    (ddpm, SHORT, BETA, lambda: ddpm_maps(SHORT, "beta")),
    (ddpm, SHORT, POSTERIOR, lambda: ddpm_maps(SHORT, "posterior")),
    (ddpm, SHORT, {"variance": uneven}, lambda: ddpm_maps(SHORT, uneven)),
    (ddim, SHORT, {"eta": 0.5}, lambda: ddim_maps(SHORT, 0.5)),
    (ddim, SHORT, {"eta": 1.0}, lambda: ddim_maps(SHORT, 1)),
    (ddim, SHORT, {"eta": 1.0}, lambda: ddpm_maps(SHORT, "posterior")),
    (ddim, VE, {"eta": 0.5}, lambda: ddim_maps(VE, 0.5)),
    (langevin, LEVELS, FEW, lambda: langevin_maps(LEVELS, 3, 0.2)),
    (langevin, ONE_LEVEL, FAST, lambda: langevin_maps(ONE_LEVEL, 6, 0.7)),
    (
        langevin,
        LEVELS,
        FEW | {"denoise": True},
        lambda: langevin_maps(LEVELS, 3, 0.2, denoise=True),
    ),
    (
        euler_maruyama,
        VP,
        {},
        lambda: reverse_sde_maps(
            VP, lambda s: -vp_beta(s) / 2, vp_beta, np.linspace(1e-3, 1, 8)
        ),
    ),
    (
        euler_maruyama,
        VE,
        {},
        lambda: reverse_sde_maps(
            VE,
            lambda s: 0.0,
            lambda s: 2 * math.log(500) * (0.01 * 500**s) ** 2,
            np.linspace(0, 1, 8),
        ),
    ),
    (predictor_corrector, VE, {}, lambda: predictor_corrector_maps(VE, START)),
    (predictor_corrector, LEVELS, {}, lambda: predictor_corrector_maps(LEVELS, START)),
]


@pytest.mark.parametrize("sampler, process, options, maps", STOCHASTIC)
def test_stochastic_steps_have_their_mean_and_covariance(
    sampler, process, options, maps
):
    generator = seeded_by(1)
    z = torch.randn(CHAINS, 2, dtype=torch.float64, generator=generator)
    start = torch.from_numpy(START_MEAN) + z @ torch.from_numpy(START_SCALE).T
    states = sampler(gaussian, process, start, generator=generator, **options)
    assert next(states) is start
    mean, covariance = START
    for x, step in zip(states, maps(), strict=True):
        mean, covariance = after(step, mean, covariance)
        variances = covariance.diagonal()
        # Five standard errors of a Gaussian sample's moments.
        mean_error = 5 * np.sqrt(variances / CHAINS)
        squares = np.outer(variances, variances) + covariance**2
        covariance_error = 5 * np.sqrt(squares / CHAINS)
        assert (np.abs(x.mean(dim=0).numpy() - mean) < mean_error).all()
        assert (np.abs(x.T.cov().numpy() - covariance) < covariance_error).all()


# Against diffusers


def linear_alpha_bars():
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(dim=0)


def their_states(scheduler, x, predictor, **options):
    """The states of a scheduler of diffusers, its table in float64 instead of float32."""
    scheduler.alphas_cumprod = linear_alpha_bars()
    for t in scheduler.timesteps:
        abar = scheduler.alphas_cumprod[t]
        output = predictor(x, abar.sqrt(), (1 - abar).sqrt())
        x = scheduler.step(output, t, x, **options).prev_sample
        yield x


def wavy_and_v(x_t, signal, noise):
    return torch.cat([wavy(x_t, signal, noise), 0.5 + x_t.cos()], dim=1)


@pytest.mark.parametrize("kept", [7, 50])
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_is_that_of_diffusers(kind, kept):
    process, x_T = respaced(linear(), kept), double(6, 2, seed=1)
    theirs = DDPMScheduler(
        1000, variance_type=kind, clip_sample=False, timestep_spacing="linspace"
    )
    theirs.set_timesteps(kept)
    variance, predictor = {"fixed_small": "posterior", "fixed_large": "beta"}, wavy
    if kind == "learned_range":
        variance = {kind: learned_variance(wavy_and_v, process)}

        def predictor(x_t, signal, noise):  # theirs takes v from [-1, 1]
            eps, v = wavy_and_v(x_t, signal, noise).chunk(2, dim=1)
            return torch.cat([eps, 2 * v - 1], dim=1)

    ours = ddpm(wavy, process, x_T, variance=variance[kind], generator=seeded_by(2))
    assert next(ours) is x_T
    expected = their_states(theirs, x_T, predictor, generator=seeded_by(2))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eta", [0, 0.5, 1])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("kept", [10, 50])
def test_ddim_is_that_of_diffusers(kept, spacing, eta):
    theirs = DDIMScheduler(
        1000, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    theirs.set_timesteps(kept)
    process, x_T = linear().rows(theirs.timesteps.flip(0)), double(6, 2, seed=3)
    ours = ddim(wavy, process, x_T, eta=eta, generator=seeded_by(4))
    assert next(ours) is x_T
    expected = their_states(theirs, x_T, wavy, eta=eta, generator=seeded_by(4))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("levels", [2, 9])
def test_predictor_corrector_is_that_of_diffusers(levels):
    """All but its last step, to which diffusers adds noise: there the mean is compared."""
    theirs = ScoreSdeVeScheduler(levels, snr=0.16, sigma_min=0.01, sigma_max=5.0)
    process, exact = ve_sde(levels, largest=5.0), Exact(DATA.float())
    x = x_T = 5 * double(30, 2, seed=5).float()
    ours = predictor_corrector(exact, process, x_T, generator=seeded_by(6))
    assert next(ours) is x_T
    generator = seeded_by(6)
    for t in reversed(range(levels)):
        one, sigma = torch.ones(()), theirs.discrete_sigmas[t]
        score = -exact(x, one, sigma) / sigma
        x = theirs.step_correct(score, x, generator=generator).prev_sample
        score = -exact(x, one, sigma) / sigma
        step = theirs.step_pred(score, (t + 0.5) / (levels - 1), x, generator=generator)
        x = step.prev_sample if t else step.prev_sample_mean
        torch.testing.assert_close(next(ours), x, rtol=1e-3, atol=1e-4)
    assert next(ours, None) is None


# DDPM and DDIM


@pytest.mark.parametrize("process", [SHORT, cosine(12)])
def test_ddim_with_all_noise_is_ddpm(process):
    x_T = double(6, 2, seed=7)
    ddpm_states = ddpm(wavy, process, x_T, variance="posterior", generator=seeded_by(8))
    ddim_states = ddim(wavy, process, x_T, eta=1, generator=seeded_by(8))
    for x, y in zip(ddpm_states, ddim_states, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eta", [0, 0.6])
def test_ddim_of_any_process_is_that_of_its_scaled_twin(eta):
    scale = (VE.signal.square() + VE.noise.square()).sqrt()
    twin, exact = Process(VE.signal / scale, VE.noise / scale), Exact(DATA)
    x_T = 5 * double(6, 2, seed=9)
    states = ddim(exact, VE, x_T, eta=eta, generator=seeded_by(10))
    small = ddim(exact, twin, x_T / scale[-1], eta=eta, generator=seeded_by(10))
    for x, y, by in zip(states, small, [*scale.tolist()[::-1], 1], strict=True):
        torch.testing.assert_close(x, by * y, rtol=1e-7, atol=1e-9)


def test_ddpm_on_few_rows_with_their_own_alphas():
    """The defect: nothing makes up for the rows that are left out."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bars = linear_alpha_bars()
    x = double(6, 2, seed=11)
    ours = ddpm_kept_alphas(wavy, linear(), x, kept=4, generator=seeded_by(12))
    assert next(ours) is x
    generator = seeded_by(12)
    for t in (999, 666, 333, 0):
        beta, noise = betas[t], (1 - alpha_bars[t]).sqrt()
        mean = x - beta / noise * wavy(x, alpha_bars[t].sqrt(), noise)
        x = mean / (1 - beta).sqrt()
        if t:
            z = torch.randn(6, 2, dtype=torch.float64, generator=generator)
            x = x + beta.sqrt() * z
        torch.testing.assert_close(next(ours), x)
    assert next(ours, None) is None


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_ddim_refuses_eta(eta):
    with pytest.raises(ValueError, match="eta"):
        last(ddim(wavy, SHORT, double(2, 2), eta=eta))


@pytest.mark.parametrize("process", [VE, LEVELS])
def test_ddpm_refuses_a_process_that_explodes(process):
    with pytest.raises(ValueError, match="variance-preserving"):
        last(ddpm(wavy, process, double(2, 2)))


@pytest.mark.parametrize(
    "sampler, message",
    [
        (langevin, "signal of 1"),
        (predictor_corrector, "signal of 1"),
        (euler_maruyama, "vp_sde or ve_sde"),
    ],
)
def test_samplers_refuse_a_process_without_what_they_need(sampler, message):
    with pytest.raises(ValueError, match=message):
        last(sampler(wavy, SHORT, double(2, 2)))


# Encoding and interpolation


def test_encoding_leads_back_the_better_the_more_steps():
    law = points()
    exact, data = Exact(law.data), law.data[::3]
    medians = []
    for kept in (20, 50, 200):
        process = respaced(linear(), kept)
        x_T = last(ddim_encode(exact, process, data))
        back = last(ddim(exact, process, x_T))
        medians.append((back - data).norm(dim=1).median().item() / law.pixel)
    assert medians == pytest.approx([4.1, 1.2, 0.14], rel=0.2)
    assert x_T.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dimension", [2, 7])
def test_slerp_goes_along_the_arc(dimension):
    x, y = double(2, 5, dimension, seed=13)
    torch.testing.assert_close(slerp(x, y, 0.0), x)
    torch.testing.assert_close(slerp(x, y, 1.0), y)
    x, y = (one / one.norm(dim=1, keepdim=True) for one in (x, y))
    middle = (x + y) / (x + y).norm(dim=1, keepdim=True)
    torch.testing.assert_close(slerp(x, y, 0.5), middle)
    angle = torch.linalg.vecdot(x, y).acos()
    for share in (0.1, 0.37, 0.8):
        point = slerp(x, y, share)
        torch.testing.assert_close(point.norm(dim=1), torch.ones(5).double())
        torch.testing.assert_close(torch.linalg.vecdot(x, point).acos(), share * angle)
        torch.testing.assert_close(
            torch.linalg.vecdot(y, point).acos(), (1 - share) * angle
        )


def test_slerp_between_the_same_point_and_itself():
    x = double(4, 2, seed=14)
    torch.testing.assert_close(slerp(x, x, 0.3), x, rtol=1e-4, atol=1e-4)


# Langevin


LAW = blurred(Exact(torch.tensor([[-5.0, -5.0]] + [[5.0, 5.0]] * 4).double()), 1.0)


def share_of_the_small_law(process, **options):
    generator = seeded_by(15)
    x = torch.rand(3000, 2, dtype=torch.float64, generator=generator)
    x = last(langevin(LAW, process, 16 * x - 8, generator=generator, **options))
    small = x.sum(dim=1) < 0
    for cloud, centre in ((x[small], -5), (x[~small], 5)):
        assert cloud.mean().item() == pytest.approx(centre, abs=0.15)
        assert cloud.var(dim=0).tolist() == pytest.approx([1, 1], abs=0.25)
    return small.double().mean().item()


def test_plain_langevin_does_not_find_the_shares_of_two_laws():
    share = share_of_the_small_law(
        geometric(10, 10, 0.1).rows(torch.tensor([0])), rate=30, steps=100
    )
    assert share == pytest.approx(0.5, abs=0.04)


def test_annealed_langevin_finds_the_shares_of_two_laws():
    assert 0.18 < share_of_the_small_law(geometric(10, 10, 0.1)) < 0.27


# Stochastic differential equations


@pytest.mark.parametrize("process", [VP, VE])
def test_euler_maruyama_step_by_step(process):
    """On data, with the same noise: the terms of (35) one by one."""
    exact, x, n = Exact(DATA), double(6, 2, seed=16), 8
    ours = euler_maruyama(exact, process, x, generator=seeded_by(17))
    assert next(ours) is x
    generator = seeded_by(17)
    times = np.linspace(1e-3 if process is VP else 0, 1, n)
    for k in reversed(range(n)):
        s, ds = times[k], times[k] - (times[k - 1] if k else 0)
        f = -vp_beta(s) / 2 if process is VP else 0
        g2 = vp_beta(s) if process is VP else 2 * math.log(500) * 1e-4 * 500 ** (2 * s)
        score = -exact(x, process.signal[k], process.noise[k]) / process.noise[k]
        x = x - f * x * ds + g2 * score * ds
        if k:
            z = torch.randn(6, 2, dtype=torch.float64, generator=generator)
            x = x + math.sqrt(g2 * ds) * z
        torch.testing.assert_close(next(ours), x)
    assert next(ours, None) is None


def test_euler_maruyama_ends_in_the_law():
    law = 0.5 * double(3, 2, seed=18)
    generator = seeded_by(19)
    x_T = torch.randn(2000, 2, dtype=torch.float64, generator=generator)
    x = last(euler_maruyama(Exact(law), vp_sde(300), x_T, generator=generator))
    distance, nearest = cKDTree(law).query(x)
    assert np.quantile(distance, 0.99) < 0.02
    assert np.bincount(nearest) / 2000 == pytest.approx([1 / 3] * 3, abs=0.05)


def exact_flow(exact, x, signal, noise, there):
    """x / signal, carried from noise / signal to a smaller ratio."""

    def slope(r, y):
        y = torch.from_numpy(y).view(-1, 2)
        return exact(y, torch.ones(()).double(), torch.tensor(r)).flatten().numpy()

    span = noise / signal, there
    flow = solve_ivp(slope, span, (x / signal).flatten().numpy(), rtol=1e-9, atol=1e-9)
    return torch.from_numpy(flow.y[:, -1]).view(-1, 2)


@pytest.mark.parametrize(
    "process",
    [respaced(linear(), 100).rows(torch.arange(25, 100)), geometric(9, 20.0, 0.7)],
)
def test_probability_flow_solves_its_equation(process):
    exact = Exact(DATA)
    signal, noise = process.signal[-1].item(), process.noise[-1].item()
    smallest = (process.noise[0] / process.signal[0]).item()
    x_T = math.hypot(signal, noise) * double(8, 2, seed=20)
    expected = exact_flow(exact, x_T, signal, noise, smallest)
    errors = []
    for levels in (25, 50, 100, 200):
        *_, at_smallest, _ = probability_flow(exact, process, x_T, levels=levels)
        errors.append((at_smallest - expected).norm(dim=1).max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2] * 3, abs=0.5)
    assert errors[-1] < 1e-3


def test_probability_flow_carries_a_gaussian_to_its_law():
    """The flow is y = MEAN + ((S + r^2 I) (S + R^2 I)^-1)^(1/2) (Y - MEAN), S the covariance."""
    process = vp_sde()
    x_T = double(5, 2, seed=21)
    *_, at_smallest, _ = probability_flow(gaussian, process, x_T, levels=200)
    smallest, largest = (process.noise / process.signal)[[0, -1]].tolist()
    root = sqrtm(total(1, smallest) @ np.linalg.inv(total(1, largest)))
    expected = MEAN + (x_T.numpy() / process.signal[-1].item() - MEAN) @ root.T
    np.testing.assert_allclose(at_smallest, expected, atol=1.5e-3)


@pytest.mark.parametrize("levels", [2, 18, 40])
def test_probability_flow_counts_its_evaluations(levels):
    ratios = []

    def counting(x_t, signal, noise):
        ratios.append((noise / signal).item())
        return gaussian(x_t, signal, noise)

    last(probability_flow(counting, linear(), double(3, 2), levels=levels))
    assert len(ratios) == 2 * levels - 1
    assert ratios[0] == pytest.approx(157, abs=1) and min(ratios) == ratios[-1]
    assert ratios[-1] == pytest.approx(0.01, rel=1e-3)


# What all samplers have in common

COMMON = [(*case[:3], 8) for case in STOCHASTIC if case[1].steps == 8]
COMMON += [
    (langevin, LEVELS, {"steps": 4}, 12),
    (langevin, LEVELS, {"steps": 4, "denoise": True}, 13),
    (predictor_corrector, LEVELS, {}, 3),
    (ddim, SHORT, {}, 8),
    (ddim_encode, SHORT, None, 8),
    (probability_flow, SHORT, None, 18),
    (ddpm_kept_alphas, linear(), {"kept": 3}, 3),
]


@pytest.mark.parametrize("sampler, process, options, steps", COMMON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_state_is_given_and_the_seed_alone_decides(
    sampler, process, options, steps, dtype
):
    start = double(4, 3, seed=22).to(dtype)
    kept, exact = start.clone(), Exact(double(5, 3, seed=23).to(dtype))
    if options and callable(options.get("variance")):
        options = options | {"variance": best_variance(exact, process)}

    def run(seed):
        seeds = {} if options is None else options | {"generator": seeded_by(seed)}
        return torch.stack([*sampler(exact, process, start, **seeds)])

    state = torch.random.get_rng_state()
    states = run(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert states.shape == (steps + 1, 4, 3) and states.dtype == dtype
    assert states.isfinite().all() and torch.equal(start, kept)
    scale = process.signal[-1].to(dtype) if sampler is probability_flow else 1
    torch.testing.assert_close(scale * states[0], start)
    assert torch.equal(run(0), states)
    deterministic = options is None or (sampler is ddim and not options)
    assert torch.equal(run(1), states) == deterministic


# Measures


@pytest.mark.parametrize("within", [0.1, 0.3, 0.6])
def test_share_near_is_that_of_a_tree(within):
    these, those = double(300, 2, seed=24), double(40, 2, seed=25) + 0.5
    for a, b in ((these, those), (those, these)):
        expected = (cKDTree(b).query(a)[0] <= within).mean()
        assert 0 < expected < 1
        assert share_near(a, b, within) == pytest.approx(expected, abs=1e-12)


def test_share_near_counts_within_one_unit():
    these = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [9.0, 9.0]])
    assert share_near(these, torch.zeros(1, 2)) == 0.5
    assert share_near(these, torch.zeros(1, 2), within=5.0) == 0.75


@pytest.mark.parametrize("directions", [1, 5, 32])
@pytest.mark.parametrize("m, n", [(1, 1), (50, 50), (60, 45), (7, 300)])
def test_sliced_is_the_mean_of_scipys_distances(m, n, directions):
    generator = seeded_by(26)
    # Coordinates of few values: many duplicates, within a sample and between the two.
    a, b = (torch.randint(6, (k, 2), generator=generator).float() for k in (m, n))
    b = 1.5 * b - 1
    distances = []
    for k in range(directions):
        angle = math.pi * k / directions
        along = [math.cos(angle), math.sin(angle)]
        distances.append(wasserstein_distance(a.numpy() @ along, b.numpy() @ along))
    expected = np.mean(distances)
    assert sliced(a, b, directions) == pytest.approx(expected, rel=1e-6)
    assert sliced(b, a, directions) == pytest.approx(expected, rel=1e-6)


def test_sliced_looks_in_32_directions_and_sees_a_shift():
    a, b = double(80, 2, seed=27), double(90, 2, seed=28)
    assert sliced(a, b) == sliced(a, b, 32) != sliced(a, b, 31)
    assert sliced(a, a) == pytest.approx(0, abs=1e-12)
    shift = torch.tensor([3.0, 0.0])
    # The mean of 3 abs(cos) over half a turn.
    assert sliced(a, a + shift, 1000) == pytest.approx(6 / math.pi, rel=1e-4)


@pytest.mark.parametrize("dimension", [2, 5])
def test_frechet_is_that_of_scipys_root(dimension):
    a = double(300, dimension, seed=29) @ double(dimension, dimension, seed=30)
    b = double(200, dimension, seed=31) + 0.3
    c_1, c_2 = np.cov(a.T), np.cov(b.T)
    means = ((a.numpy().mean(axis=0) - b.numpy().mean(axis=0)) ** 2).sum()
    expected = means + np.trace(c_1 + c_2 - 2 * sqrtm(c_1 @ c_2).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-8)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a.float(), b.float()) == pytest.approx(expected, rel=1e-4)


def test_frechet_in_closed_form():
    """Of a cloud and the same one scaled and shifted: norm(shift)^2 + (1 - c)^2 tr C."""
    a = double(300, 2, seed=32)
    b = 3 * (a - a.mean(dim=0)) + a.mean(dim=0) + torch.tensor([1.0, 2.0])
    assert frechet(a, b) == pytest.approx(5 + 4 * np.trace(np.cov(a.T)), rel=1e-9)


# The bound


@pytest.mark.parametrize("process", [SHORT, cosine(10)])
def test_bound_of_one_datum(process):
    datum, schedule = X_START.double(), process.schedule()
    predictor = Exact(datum[None])
    terms = bound_terms(predictor, process, datum[None], "posterior", seeded_by(33))
    assert terms.shape == (process.steps - 1,) and terms.dtype == torch.float64
    assert terms.abs().max() < 1e-12
    terms = bound_terms(predictor, process, datum[None], "beta", seeded_by(33))
    known = PredictStart(lambda x_t, t: datum, *schedule)
    expected, nothing = vb_terms(known, datum, *schedule, variance="beta")
    assert nothing.abs().max() < 1e-12 and expected.min() > 0
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
    terms = bound_terms(
        recording,
        process,
        data,
        best if variance == "best" else variance,
        seeded_by(35),
    )
    assert len(seen) == 5
    for t, x_t in enumerate(seen, start=1):
        level = process.at(t, x_t)
        mean, small = posterior_mean_variance(data, x_t, t, alphas, alpha_bars)
        sigma2 = {
            "beta": 1 - alphas[t],
            "posterior": small,
            "best": best(x_t, t),
        }[variance]
        x_start = (x_t - level[1] * exact(x_t, *level)) / level[0]
        model, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
        model = Normal(model, sigma2.sqrt().expand_as(model))
        kl = kl_divergence(Normal(mean, small.sqrt()), model)
        assert terms[t - 1].item() == pytest.approx(kl.mean().item(), rel=1e-7)
        noise = (x_t - level[0] * data) / level[1]
        assert noise.mean().item() == pytest.approx(0, abs=5 / math.sqrt(120))
        assert noise.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 120))


def test_the_best_variance_is_best_in_the_bound():
    process, data = respaced(linear(), 10), double(8, 2, seed=36)
    exact = Exact(data)
    beta, posterior, best = (
        bound_terms(exact, process, data.repeat(4000, 1), variance, seeded_by(37))
        for variance in ("beta", "posterior", best_variance(exact, process))
    )
    assert (best < beta).all() and (best < posterior).all()
