"""The samplers, held against the formulas of their papers, diffusers and scipy.

They go along x_t = signal x_0 + noise eps; the samplers' states are y = x_t / signal.
"""

import inspect
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, ScoreSdeVeScheduler
from scipy.integrate import solve_ivp

from comparison import levels, samplers
from comparison.denoisers import Exact, beta, learned_variance, posterior
from comparison.samplers import last
from diffusion import PredictNoise, denoise_with_mu, noise_schedule
from tests.common import double, seeded_by
from tests.datasets import DDPM_BETAS, wavy, wavy_and_v, wavy_denoiser

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
EYE, DATA = torch.eye(2, dtype=torch.float64), double(5, 2)

# Each step, for data of N(MEAN, COVARIANCE): x becomes A x + b + sigma z


def gaussian(y, sigma):
    return MEAN + (y - MEAN) @ (COVARIANCE + sigma**2 * EYE).inverse() @ COVARIANCE


def score_of(x, signal, noise):
    """The gradient of log N(x; signal MEAN, signal^2 COVARIANCE + noise^2 I)."""
    total = signal**2 * COVARIANCE + noise**2 * EYE
    return (signal * MEAN - x) @ total.inverse()


def ddpm_step(x, here, there, z, variance=beta):
    """Ho et al. (2020), algorithm 2."""
    (signal, noise), (signal_prev, noise_prev) = here, there
    alpha, eps = (signal / signal_prev) ** 2, -noise * score_of(x, signal, noise)
    x = (x - (1 - alpha) / noise * eps) / math.sqrt(alpha)
    share = 1 if variance is beta else noise_prev**2 / noise**2
    return x + math.sqrt(share * (1 - alpha)) * z() if noise_prev else x


def stale_step(x, here, there, z, **options):
    """To the next row of all, whose x is taken for that of the next one kept."""
    return ddpm_step(x, here[:2], here[2], z)


def ddim_step(x, here, there, z, eta=0.0):
    """Song, Meng and Ermon (2021), (12) and (16); for eta = 0 along any process."""
    (signal, noise), (signal_prev, noise_prev) = here, there
    eps = -noise * score_of(x, signal, noise)
    sigma = eta * noise_prev / noise * math.sqrt(1 - (signal / signal_prev) ** 2)
    x = signal_prev * (x - noise * eps) / signal
    x = x + math.sqrt(noise_prev**2 - sigma**2) * eps
    return x + sigma * z() if sigma else x


def encode_step(x, here, there, z):
    (signal, noise), at = here, here if here[1] else there
    eps = -at[1] * score_of(at[0] / signal * x, *at)
    return there[0] * (x - noise * eps) / signal + there[1] * eps


def inpaint_step(x, here, there, z, known, given):
    x = torch.where(given, here[0] * known + here[1] * z(), x)
    x = ddpm_step(x, here, there, z, posterior)
    return x if there[1] else torch.where(given, known, x)


def langevin_step(x, here, there, z, rate=0.2, **options):
    """Song and Ermon (2019), algorithm 1."""
    a = rate * here[1] ** 2
    return x + a / 2 * score_of(x, *here) + math.sqrt(a) * z()


def reverse_sde_step(x, here, there, z):
    """dx = -beta(s) (x/2 + score) ds + sqrt(beta(s)) dw, backwards in s."""
    (*row, s), (*_, s_prev) = here, there
    step = (0.1 + 19.9 * s) * (s - s_prev)
    return x + step * (x / 2 + score_of(x, *row)) + math.sqrt(step) * z() * (s_prev > 0)


def vp(sigmas):
    """(signal, noise) at each level."""
    return [(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in sigmas.tolist()]


def stale(kept):
    rows = vp(levels.linear())
    visited = [round(999 * k / (kept - 1)) for k in range(kept)]
    return [*((*rows[k], rows[k + 1]) for k in visited), (1, 0)]


def ve(sigmas, steps):
    return [*((1, r) for r in sigmas[:-1].tolist() for _ in range(steps)), (1, 0)]


TIMES = levels.to_zero(torch.linspace(1, 1e-3, 8, dtype=torch.float64))
ON_VP = (0.1 * TIMES + 9.95 * TIMES**2).expm1().sqrt()
TIMED = [(*row, s) for row, s in zip(vp(ON_VP), TIMES.tolist())]
ON_LINE = [(1 - s, s) for s in (0.999 * k / 6 for k in range(6, -1, -1))]
SHORT, FEW = levels.respaced(levels.linear(), 8), levels.geometric(3, 2.0, 0.3)
PARTS = {"known": double(3, 2, seed=4), "given": torch.tensor([True, False])}
CASES = [
    (samplers.ddpm, SHORT, {}, vp(SHORT), ddpm_step),
    (samplers.ddpm, SHORT, {"variance": posterior}, vp(SHORT), ddpm_step),
    (samplers.ddpm_stale_alphas, levels.linear(), {}, stale(50), stale_step),
    (samplers.ddpm_stale_alphas, levels.linear(), {"kept": 4}, stale(4), stale_step),
    (samplers.ddim, FEW, {"eta": 0.5}, vp(FEW), ddim_step),
    (samplers.ddim, levels.straight(6), {}, ON_LINE, ddim_step),
    (samplers.encode, SHORT, None, vp(SHORT)[::-1], encode_step),
    (samplers.inpaint, SHORT, PARTS, vp(SHORT), inpaint_step),
    (samplers.langevin, FEW[-2:], {}, ve(FEW[-2:], 100), langevin_step),
    (samplers.langevin, FEW, {"steps": 3, "rate": 0.7}, ve(FEW, 3), langevin_step),
    (samplers.euler_maruyama, ON_VP, {}, TIMED, reverse_sde_step),
]


@pytest.mark.parametrize("sampler, sigmas, options, rows, step", CASES)
def test_each_step_is_that_of_the_paper(sampler, sigmas, options, rows, step):
    y = 2 * double(3, 2, seed=1)
    z = partial(torch.randn, 3, 2, dtype=torch.float64, generator=seeded_by(2))
    seeds = {} if options is None else options | {"generator": seeded_by(2)}
    _, *states = sampler(gaussian, sigmas, y, **seeds)
    x = rows[0][0] * y
    for state, (here, there) in zip(states, pairwise(rows), strict=True):
        x = step(x, here, there, z, **(options or {}))
        torch.testing.assert_close(there[0] * state, x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("t, variance", [(0, beta), (3, beta), (3, posterior)])
def test_a_step_of_ddpm_is_denoise_with_mu(t, variance):
    y, (alphas, alpha_bars) = double(6, 2, seed=1), noise_schedule(6)
    sigmas = levels.variance_preserving(alpha_bars)[5 - t : 7 - t]
    (signal, _), (signal_prev, _) = vp(sigmas)
    model = PredictNoise(lambda x, _: wavy(x / signal, sigmas[0]), alphas, alpha_bars)
    torch.manual_seed(2)
    x = denoise_with_mu(model, signal * y, t, alphas, variance=variance.__name__)
    torch.manual_seed(2)
    ours = last(samplers.ddpm(wavy_denoiser, sigmas, y, variance=variance))
    torch.testing.assert_close(signal_prev * ours, x)


# Against diffusers

KINDS = [
    (samplers.ddpm, {"variance": beta}, "fixed_large", wavy),
    (samplers.ddpm, {"variance": posterior}, "fixed_small", wavy),
    (samplers.ddpm, {}, "learned_range", wavy_and_v),
    *((samplers.ddim, {"eta": eta}, None, wavy) for eta in (0, 0.5, 1)),
]


@pytest.mark.parametrize("kept", [7, 50])
@pytest.mark.parametrize("sampler, options, kind, network", KINDS)
def test_steps_are_those_of_diffusers(sampler, options, kind, network, kept):
    theirs = DDPMScheduler(variance_type=kind) if kind else DDIMScheduler()
    theirs.register_to_config(clip_sample=False, timestep_spacing="leading")
    theirs.set_timesteps(kept)
    theirs.alphas_cumprod = (1 - DDPM_BETAS).cumprod(dim=0)  # theirs is float32
    sigmas = levels.to_zero(levels.linear()[999 - theirs.timesteps])
    own, rows = {} if kind else options, vp(sigmas)
    if network is wavy_and_v:  # from whose v, -1 to 1, they make (v + 1) / 2
        variance = learned_variance(lambda *at: (network(*at) + 1) / 2, sigmas)
        options = {"variance": variance}
    y, generator = sigmas[0] * double(6, 2, seed=3), seeded_by(4)
    _, *states = sampler(wavy_denoiser, sigmas, y, generator=seeded_by(4), **options)
    x = rows[0][0] * y
    for k, t in enumerate(theirs.timesteps):
        output = network(x / rows[k][0], sigmas[k])
        x = theirs.step(output, t, x, generator=generator, **own).prev_sample
        torch.testing.assert_close(rows[k + 1][0] * states[k], x, rtol=1e-6, atol=1e-7)


def test_predictor_corrector_is_that_of_diffusers():
    """But at its last step diffusers adds noise: there the mean is compared."""
    theirs = ScoreSdeVeScheduler(9, snr=0.16, sigma_min=0.01, sigma_max=5.0)
    exact, generator = Exact(DATA.float()), seeded_by(6)
    x, sigmas = 5 * double(30, 2, seed=5).float(), levels.geometric(9, 5.0, 0.01)
    ours = samplers.predictor_corrector(exact, sigmas, x, generator=seeded_by(6))
    for t, (_, y) in zip(reversed(range(9)), pairwise(ours), strict=True):
        sigma, time = theirs.discrete_sigmas[t], (t + 0.5) / 8
        score = (exact(x, sigma) - x) / sigma**2
        x = theirs.step_correct(score, x, generator=generator).prev_sample
        score = (exact(x, sigma) - x) / sigma**2
        step = theirs.step_pred(score, time, x, generator=generator)
        x = step.prev_sample if t else step.prev_sample_mean
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)


def test_heun_solves_the_flow_with_order_2():
    """In x_s of the VP SDE: dx/ds = -beta(s)/2 (x + score), beta(s) = 0.1 + 19.9 s."""

    def slope(s, x):
        x, signal = torch.from_numpy(x).view(-1, 2), math.exp(-0.05 * s - 4.975 * s**2)
        score = score_of(x, signal, math.sqrt(1 - signal**2))
        return -(0.1 + 19.9 * s) / 2 * (x + score).ravel()

    x, errors, ends = double(8, 2, seed=20), [], torch.tensor([1, 0.2]).double()
    flow = solve_ivp(slope, ends, x.flatten(), rtol=1e-10, atol=1e-10)
    (first, _), (signal, _) = vp(levels.vp_sigma(ends))
    for steps in (25, 50, 100, 200):
        sigmas = levels.karras(*levels.vp_sigma(ends).tolist(), steps)
        *_, y, end = samplers.heun(gaussian, sigmas, x / first)
        errors.append(abs(signal * y.ravel().numpy() - flow.y[:, -1]).max())
        torch.testing.assert_close(end, gaussian(y, sigmas[-2]))  # Euler's step
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2] * 3, abs=0.3) and errors[-1] < 1e-3


def test_encoding_leads_back_the_better_the_more_steps():
    x_start, errors = double(200, 2, seed=7), []
    for kept in (40, 80, 160):
        sigmas = levels.respaced(levels.linear(), kept)
        y = last(samplers.encode(gaussian, sigmas, x_start))
        back = last(samplers.ddim(gaussian, sigmas, y))
        errors.append((back - x_start).norm(dim=1).median().item())
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2, 2], rel=0.1)


def test_what_is_given_stays_and_the_rest_fits():
    """Of two points y follows where x is given; of four corners y is either, evenly."""
    sigmas = levels.respaced(levels.cosine(), 50)
    start = sigmas[0].float() * torch.randn(2000, 2)
    known, given = torch.tensor([-1.0, 7]), torch.tensor([True, False])
    corners = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]])
    for data, share in ((corners[:2], 0.0), (corners, 0.5)):
        x, y = last(samplers.inpaint(Exact(data), sigmas, start, known, given)).T
        assert (x == -1).all() and (y.abs() - 1).abs().max() < 0.01
        assert (y > 0).double().mean().item() == pytest.approx(share, abs=0.06)


def test_annealed_langevin_finds_the_shares_of_two_modes():
    """One has a fifth; Langevin dynamics at one level keeps the halves of its start."""
    exact = Exact(torch.tensor([[-5.0, -5.0]] + [[5.0, 5.0]] * 4).double())
    sigmas = levels.geometric(10, 10, 0.1)

    def hills(y, sigma):  # of deviation 1
        wider = (sigma**2 + 1).sqrt()
        return y + (sigma / wider) ** 2 * (exact(y, wider) - y)

    for visited, rate, share in ((sigmas, 0.2, 0.2), (sigmas[-2:], 30, 0.5)):
        y = 16 * torch.rand(3000, 2, dtype=torch.float64) - 8
        *_, y, end = samplers.langevin(hills, visited, y, rate=rate, denoise=True)
        torch.testing.assert_close(end, hills(y, visited[-2]))
        small = y.sum(dim=1) < 0
        for cloud, centre in ((y[small], -5), (y[~small], 5)):
            assert cloud.mean().item() == pytest.approx(centre, abs=0.15)
            assert cloud.var(dim=0).tolist() == pytest.approx([1, 1], abs=0.25)
        assert small.double().mean().item() == pytest.approx(share, abs=0.06)


SAMPLERS = dict(inspect.getmembers(samplers, inspect.isgeneratorfunction))
OPTIONS = {
    "ddpm_stale_alphas": [{"kept": 3}],
    "ddim": [{}, {"eta": 0.5}],
    "inpaint": [{"known": torch.zeros(2), "given": torch.tensor([True, False])}],
    "predictor_corrector": [{}, {"corrections": 0}, {"corrections": 2}],
    "langevin": [{"steps": 4}, {"steps": 4, "denoise": True}],
}
RUNS = [(k, one) for k in SAMPLERS | OPTIONS for one in OPTIONS.get(k, [{}])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name, options", RUNS)
def test_every_state_is_given_and_the_seed_alone_decides(name, options, dtype):
    start, exact = double(4, 2).to(dtype), Exact(DATA.to(dtype).requires_grad_())
    before, state = start.clone(), torch.random.get_rng_state()

    def run(seed):
        generator = seeded_by(seed)
        seeds = {} if name == "encode" else {"generator": generator}
        states = torch.stack([*SAMPLERS[name](exact, SHORT, start, **seeds, **options)])
        return states, torch.equal(generator.get_state(), seeded_by(seed).get_state())

    states, deterministic = run(0)
    steps = options.get("kept", 8) * options.get("steps", 1) + ("denoise" in options)
    assert states.shape == (steps + 1, 4, 2) and states.dtype == dtype
    assert states.isfinite().all() and not states.requires_grad
    assert torch.equal(states[0], before) and torch.equal(start, before)
    assert torch.equal(run(0)[0], states)
    assert torch.equal(run(1)[0], states) == deterministic
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_ddim_refuses_eta_outside_0_to_1(eta):
    with pytest.raises(ValueError, match=f"eta must be 0 to 1, got {eta}"):
        next(samplers.ddim(wavy_denoiser, SHORT, double(2, 2), eta=eta))
