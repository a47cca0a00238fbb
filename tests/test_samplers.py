"""The ways back, held against diffusers, scipy and Gaussian closed forms.

The exact score of a Gaussian is linear, so every step of a sampler is an affine map plus
Gaussian noise: a draw is the map's value plus sigma times the generator's next numbers.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, ScoreSdeVeScheduler
from diffusers.schedulers import scheduling_sde_ve
from scipy.integrate import solve_ivp

from comparison.methods import ddpm_kept_alphas
from comparison.predictors import Exact, best_variance, blurred, learned_variance
from comparison.processes import (
    cosine,
    geometric,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
)
from comparison.samplers import (
    ddim,
    ddim_encode,
    ddpm,
    euler_maruyama,
    inpaint,
    langevin,
    last,
    predictor_corrector,
    probability_flow,
    slerp,
)
from diffusion import posterior_mean_variance
from tests.common import double, seeded_by
from tests.laws import DDPM_BETAS, law, wavy, wavy_and_v

EYE = np.eye(2)
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[1.0, 0.6], [0.6, 0.8]])
SHORT = respaced(linear(), 8)
LEVELS = geometric(3, 2.0, 0.3)
ONE_LEVEL = LEVELS.rows(torch.tensor([1]))
VP, VE = vp_sde(8), ve_sde(8, largest=5.0)
DATA = double(5, 2)


def gaussian(x_t, signal, noise):
    """The exact predictor of N(MEAN, COVARIANCE)."""
    mean, covariance = torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE)
    total = signal**2 * covariance + noise**2 * torch.from_numpy(EYE)
    return noise * (x_t - signal * mean) @ torch.linalg.inv(total)


# What a step does to a state: x <- A x + b + sigma z


def rows_of(process):
    """(signal, noise) of each row and of the one below it, in plain numbers."""
    rows = [*zip(process.signal.tolist(), process.noise.tolist())]
    return [*zip(rows, [(1.0, 0.0), *rows[:-1]])]


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


def uneven(x_t, t):
    shares = torch.tensor([0.3, 0.1], dtype=torch.float64)
    return (SHORT.noise[t].square() * shares).expand(len(x_t), 2)


def ddpm_maps(process, variance):
    """The mean is E[x_{t-1} | x_t], again of two jointly Gaussian vectors."""
    for (signal, noise), (signal_prev, noise_prev) in reversed(rows_of(process)):
        root_alpha = signal / signal_prev
        before = total(signal_prev, noise_prev)
        a = root_alpha * before @ np.linalg.inv(total(signal, noise))
        beta = 1 - root_alpha**2
        sigma2 = {
            "beta": beta,
            "posterior": beta * noise_prev**2 / noise**2,
            uneven: noise**2 * np.array([0.3, 0.1]),
        }[variance]
        sigma = np.sqrt(sigma2) if noise_prev else 0
        yield a, signal_prev * MEAN - signal * a @ MEAN, sigma


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
        yield a, b, scale * sigma


def encoding_maps(process):
    rows = rows_of(process)
    for (signal_next, noise_next), (signal, noise) in rows:
        a, b = eps_map(signal, noise) if noise else eps_map(*rows[0][0])
        weight = noise_next - signal_next * noise / signal
        yield signal_next / signal * EYE + weight * a, weight * b, 0


def langevin_maps(process, steps, rate, denoise=False):
    for (signal, noise), _ in reversed(rows_of(process)):
        a, b = score_map(signal, noise)
        size = rate * noise**2
        for _ in range(steps):
            yield EYE + size / 2 * a, size / 2 * b, math.sqrt(size)
    if denoise:
        yield EYE + noise**2 * a, noise**2 * b, 0


def reverse_sde_maps(process, drift, diffusion2, times):
    for k in reversed(range(len(times))):
        s = times[k]
        ds = s - (times[k - 1] if k else 0)
        a, b = score_map(process.signal[k].item(), process.noise[k].item())
        f, g2 = drift(s), diffusion2(s)
        a, b = EYE + ds * (-f * EYE + g2 * a), ds * g2 * b
        yield a, b, math.sqrt(g2 * ds) if k else 0


def flow_maps(process, levels, rho):
    """Heun's method on dy/dr = r (COVARIANCE + r^2 I)^-1 (y - MEAN)."""
    first, *_, (signal, noise) = [row for row, _ in rows_of(process)]
    smallest, largest = (
        (first[1] / first[0]) ** (1 / rho),
        (noise / signal) ** (1 / rho),
    )
    r = np.linspace(largest, smallest, levels) ** rho
    for here, there in pairwise([*r, 0.0]):
        slope, _ = eps_map(1, here)
        a = euler = EYE + (there - here) * slope
        if there:
            slope_there, _ = eps_map(1, there)
            a = EYE + (there - here) / 2 * (slope + slope_there @ euler)
        yield a, MEAN - a @ MEAN, 0


def vp_beta(s):
    return 0.1 + 19.9 * s


def ve_diffusion2(s):
    return 2 * math.log(500) * (0.01 * 500**s) ** 2


BETA, POSTERIOR = {"variance": "beta"}, {"variance": "posterior"}
FEW, FAST, DENOISED = {"steps": 3}, {"steps": 6, "rate": 0.7}, {"denoise": True}
ON_VP = lambda s: -vp_beta(s) / 2, vp_beta, np.linspace(1e-3, 1, 8)
ON_VE = lambda s: 0.0, ve_diffusion2, np.linspace(0, 1, 8)
CASES = [
    (ddpm, SHORT, {}, ddpm_maps(SHORT, "beta")),
    (ddpm, SHORT, BETA, ddpm_maps(SHORT, "beta")),
    (ddpm, SHORT, POSTERIOR, ddpm_maps(SHORT, "posterior")),
    (ddpm, SHORT, {"variance": uneven}, ddpm_maps(SHORT, uneven)),
    (ddim, SHORT, {}, ddim_maps(SHORT, 0)),
    (ddim, LEVELS, {}, ddim_maps(LEVELS, 0)),
    (ddim, straight(6), {}, ddim_maps(straight(6), 0)),
    (ddim, SHORT, {"eta": 0.5}, ddim_maps(SHORT, 0.5)),
    (ddim, SHORT, {"eta": 1.0}, ddpm_maps(SHORT, "posterior")),
    (ddim, VE, {"eta": 0.5}, ddim_maps(VE, 0.5)),
    (ddim_encode, SHORT, None, encoding_maps(SHORT)),
    (ddim_encode, LEVELS, None, encoding_maps(LEVELS)),
    (langevin, LEVELS, FEW, langevin_maps(LEVELS, 3, 0.2)),
    (langevin, ONE_LEVEL, FAST, langevin_maps(ONE_LEVEL, 6, 0.7)),
    (langevin, LEVELS, FEW | DENOISED, langevin_maps(LEVELS, 3, 0.2, denoise=True)),
    (euler_maruyama, VP, {}, reverse_sde_maps(VP, *ON_VP)),
    (euler_maruyama, VE, {}, reverse_sde_maps(VE, *ON_VE)),
    (probability_flow, linear(), {}, flow_maps(linear(), 18, 7)),
    (probability_flow, VE, {"levels": 5, "rho": 2}, flow_maps(VE, 5, 2)),
]
CASES = [(*case, [*maps]) for *case, maps in CASES]


@pytest.mark.parametrize("sampler, process, options, maps", CASES)
def test_steps_are_affine_maps_and_noise(sampler, process, options, maps):
    x_T, generator = 2 * double(3, 2, seed=1), seeded_by(2)
    seeds = {} if options is None else options | {"generator": seeded_by(2)}
    states = sampler(gaussian, process, x_T, **seeds)
    expected = x_T.numpy()
    if sampler is probability_flow:  # whose states are divided by the signal
        expected = expected / process.signal[-1].item()
    np.testing.assert_allclose(next(states), expected)
    for x, (a, b, sigma) in zip(states, maps, strict=True):
        expected = expected @ a.T + b
        if np.any(sigma):
            z = torch.randn(3, 2, dtype=torch.float64, generator=generator)
            expected = expected + sigma * z.numpy()
        np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-9)


# Against diffusers


def their_states(scheduler, x, predictor, **options):
    """The states of a scheduler of diffusers, its table in float64 instead of float32."""
    scheduler.alphas_cumprod = (1 - DDPM_BETAS).cumprod(dim=0)
    yield x
    for t in scheduler.timesteps:
        abar = scheduler.alphas_cumprod[t]
        output = predictor(x, abar.sqrt(), (1 - abar).sqrt())
        x = scheduler.step(output, t, x, **options).prev_sample
        yield x


def assert_same(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


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
    assert_same(ours, their_states(theirs, x_T, predictor, generator=seeded_by(2)))


@pytest.mark.parametrize("eta", [0, 0.5, 1])
@pytest.mark.parametrize("kept, spacing", [(10, "trailing"), (50, "leading")])
def test_ddim_is_that_of_diffusers(kept, spacing, eta):
    theirs = DDIMScheduler(
        1000, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    theirs.set_timesteps(kept)
    process, x_T = linear().rows(theirs.timesteps.flip(0)), double(6, 2, seed=3)
    ours = ddim(wavy, process, x_T, eta=eta, generator=seeded_by(4))
    assert_same(ours, their_states(theirs, x_T, wavy, eta=eta, generator=seeded_by(4)))


@pytest.mark.parametrize("levels", [2, 9])
def test_predictor_corrector_is_that_of_diffusers(levels, monkeypatch):
    """All but its last step, to which diffusers adds noise: there the mean is compared."""

    def in_float64(shape, generator, **options):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", in_float64)
    theirs = ScoreSdeVeScheduler(levels, snr=0.16, sigma_min=0.01, sigma_max=5.0)
    process, exact = ve_sde(levels, largest=5.0), Exact(DATA)
    theirs.discrete_sigmas = process.noise
    x = x_T = 5 * double(30, 2, seed=5)
    generator, expected = seeded_by(6), [x]
    for t in reversed(range(levels)):
        sigma = process.noise[t]
        score = -exact(x, torch.ones_like(sigma), sigma) / sigma
        x = theirs.step_correct(score, x, generator=generator).prev_sample
        score = -exact(x, torch.ones_like(sigma), sigma) / sigma
        step = theirs.step_pred(score, (t + 0.5) / (levels - 1), x, generator=generator)
        x = step.prev_sample if t else step.prev_sample_mean
        expected.append(x)
    assert_same(
        predictor_corrector(exact, process, x_T, generator=seeded_by(6)), expected
    )


def test_ddpm_on_few_rows_with_their_own_alphas():
    """The defect: nothing makes up for the rows that are left out."""
    alpha_bars, x = (1 - DDPM_BETAS).cumprod(dim=0), double(6, 2, seed=11)
    ours = ddpm_kept_alphas(wavy, linear(), x, kept=4, generator=seeded_by(12))
    expected, generator = [x], seeded_by(12)
    for t in (999, 666, 333, 0):
        beta, noise = DDPM_BETAS[t], (1 - alpha_bars[t]).sqrt()
        mean = x - beta / noise * wavy(x, alpha_bars[t].sqrt(), noise)
        z = torch.randn(6, 2, dtype=torch.float64, generator=generator)
        x = mean / (1 - beta).sqrt() + (beta.sqrt() * z if t else 0)
        expected.append(x)
    assert_same(ours, expected)


# Encoding and interpolation


def test_encoding_leads_back_the_better_the_more_steps():
    points, medians = law("points"), []
    exact, data = Exact(points.data), points.data[::3]
    for kept in (20, 50, 200):
        process = respaced(linear(), kept)
        x_T = last(ddim_encode(exact, process, data))
        back = last(ddim(exact, process, x_T))
        medians.append((back - data).norm(dim=1).median().item() / points.pixel)
    assert medians == pytest.approx([4.1, 1.2, 0.14], rel=0.2)
    assert x_T.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dimension", [2, 7])
def test_slerp_goes_along_the_arc(dimension):
    x, y = double(2, 5, dimension, seed=13)
    torch.testing.assert_close(slerp(x, y, 0.0), x)
    torch.testing.assert_close(slerp(x, y, 1.0), y)
    torch.testing.assert_close(slerp(x, x, 0.3), x, rtol=1e-4, atol=1e-4)
    x, y = (one / one.norm(dim=1, keepdim=True) for one in (x, y))
    angle = torch.linalg.vecdot(x, y).acos()
    for share in (0.1, 0.37, 0.8):
        point = slerp(x, y, share)
        torch.testing.assert_close(point.norm(dim=1), torch.ones(5).double())
        for end, part in ((x, share), (y, 1 - share)):
            torch.testing.assert_close(
                torch.linalg.vecdot(end, point).acos(), part * angle
            )


# Inpainting


def test_inpainting_step_by_step():
    process, exact = respaced(linear(), 6), Exact(double(5, 3, seed=14))
    known, given = double(4, 3, seed=15), torch.tensor([True, False, True])
    x = double(4, 3, seed=16)
    ours = inpaint(exact, process, x, known, given, generator=seeded_by(17))
    expected, generator = [x], seeded_by(17)
    for t in reversed(range(6)):
        signal, noise = process.signal[t], process.noise[t]
        z, z_step = (
            torch.randn(4, 3, dtype=torch.float64, generator=generator)
            for _ in range(2)
        )
        x = torch.where(given, signal * known + noise * z, x)
        x_start = (x - noise * exact(x, signal, noise)) / signal
        mean, small = posterior_mean_variance(x_start, x, t, *process.schedule())
        x = mean + small.sqrt() * z_step
        expected.append(x if t else torch.where(given, known, x))
    assert_same(ours, expected)


def test_what_is_given_stays_and_the_rest_fits():
    """Two points: where x is given, y follows; of four corners, y is either, half each."""
    process, x_T = respaced(cosine(), 50), torch.randn(2000, 2, generator=seeded_by(8))
    known, given = torch.tensor([-1.0, 7]), torch.tensor([True, False])
    pair = torch.tensor([[1.0, 1], [-1, -1]])
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    for data, share in ((pair, 0.0), (corners, 0.5)):
        ours = inpaint(Exact(data), process, x_T, known, given, generator=seeded_by(9))
        x, y = last(ours).T
        assert (x == -1).all() and (y.abs() - 1).abs().max() < 0.01
        assert (y > 0).double().mean().item() == pytest.approx(share, abs=0.06)


# Langevin


@pytest.mark.parametrize(
    "process, options, low, high",
    [
        (geometric(10, 10, 0.1).rows(torch.tensor([0])), {"rate": 30}, 0.46, 0.54),
        (geometric(10, 10, 0.1), {}, 0.18, 0.27),
    ],
)
def test_annealing_finds_the_shares_of_two_laws(process, options, low, high):
    """Of which one has a fifth; plain Langevin dynamics keeps those of its start."""
    centres = torch.tensor([[-5.0, -5.0]] + [[5.0, 5.0]] * 4).double()
    hills, generator = blurred(Exact(centres), 1.0), seeded_by(15)
    x = torch.rand(3000, 2, dtype=torch.float64, generator=generator)
    x = last(langevin(hills, process, 16 * x - 8, generator=generator, **options))
    small = x.sum(dim=1) < 0
    for cloud, centre in ((x[small], -5), (x[~small], 5)):
        assert cloud.mean().item() == pytest.approx(centre, abs=0.15)
        assert cloud.var(dim=0).tolist() == pytest.approx([1, 1], abs=0.25)
    assert low < small.double().mean() < high


# The probability flow


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


# What all samplers have in common

PARTS = {"known": torch.zeros(3), "given": torch.tensor([True, False, False])}
COMMON = [
    (ddpm, SHORT, {}, 8),
    (ddpm, SHORT, {"variance": best_variance}, 8),
    (ddim, SHORT, {}, 8),
    (ddim, SHORT, {"eta": 0.5}, 8),
    (ddim_encode, SHORT, None, 8),
    (ddpm_kept_alphas, linear(), {"kept": 3}, 3),
    (inpaint, SHORT, PARTS, 8),
    (langevin, LEVELS, {"steps": 4}, 12),
    (langevin, LEVELS, {"steps": 4, "denoise": True}, 13),
    (euler_maruyama, VE, {}, 8),
    (predictor_corrector, LEVELS, {}, 3),
    (probability_flow, SHORT, {}, 18),
]


@pytest.mark.parametrize("sampler, process, options, steps", COMMON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_state_is_given_and_the_seed_alone_decides(
    sampler, process, options, steps, dtype
):
    start = double(4, 3, seed=22).to(dtype)
    kept, exact = start.clone(), Exact(double(5, 3, seed=23).to(dtype).requires_grad_())
    if options and "variance" in options:
        options = {"variance": best_variance(exact, process)}

    def run(seed):
        seeds = {} if options is None else options | {"generator": seeded_by(seed)}
        return torch.stack([*sampler(exact, process, start, **seeds)])

    state = torch.random.get_rng_state()
    states = run(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert states.shape == (steps + 1, 4, 3) and states.dtype == dtype
    assert states.isfinite().all() and torch.equal(start, kept)
    assert not states.requires_grad
    assert torch.equal(run(0), states)
    deterministic = sampler in (ddim_encode, probability_flow)
    deterministic = deterministic or (sampler is ddim and not options)
    assert torch.equal(run(1), states) == deterministic


@pytest.mark.parametrize(
    "sampler, process, options, message",
    [
        (ddim, SHORT, {"eta": -0.1}, "eta must be 0 to 1, got -0.1"),
        (ddim, SHORT, {"eta": 1.1}, "eta"),
        (ddim, SHORT, {"eta": math.nan}, "eta"),
        (ddpm, VE, {}, "variance-preserving"),
        (inpaint, LEVELS, PARTS, "variance-preserving"),
        (langevin, SHORT, {}, "signal of 1"),
        (predictor_corrector, SHORT, {}, "signal of 1"),
        (euler_maruyama, SHORT, {}, "drift"),
    ],
)
def test_samplers_refuse_what_they_cannot_go_along(sampler, process, options, message):
    with pytest.raises(ValueError, match=message):
        last(sampler(wavy, process, double(2, 3), **options))
