"""Forward processes and predictors, held against diffusers, integrals and autograd."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, ScoreSdeVeScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from comparison.laws import points
from comparison.networks import PointNetwork
from comparison.predictors import (
    Exact,
    best_variance,
    blurred,
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
from comparison.processes import (
    Process,
    cosine,
    geometric,
    kept_rows,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
)
from comparison.samplers import ddim
from diffusion import PredictStart, posterior_mean_variance, q_sample
from tests.common import X_START, seeded_by


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded_by(seed))


def number(x):
    return torch.tensor(x, dtype=torch.float64)


# The levels that a predictor is asked for: one, or one for each of 7 states.
LEVELS = [
    (number(0.8), number(0.6)),
    (number(1.0), number(2.5)),
    (double(7, 1).abs() + 0.1, double(7, 1, seed=1).abs() + 0.3),
]


def scheduler(kind="linear", kept=None, **options):
    """diffusers' scheduler, with its own cumulative products in float64."""
    options = {"clip_sample": False, "timestep_spacing": "linspace"} | options
    result = DDPMScheduler(1000, beta_schedule=kind, **options)
    if kind == "linear":
        result.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        result.alphas_cumprod = (1 - result.betas).cumprod(dim=0)
    if kept:
        result.set_timesteps(kept)
    return result


# Discrete processes


@pytest.mark.parametrize(
    "process, kind", [(linear, "linear"), (cosine, "squaredcos_cap_v2")]
)
def test_alpha_bars_are_those_of_diffusers(process, kind):
    signal, noise, *sde = process()
    theirs = DDPMScheduler(1000, beta_schedule=kind).alphas_cumprod.double()
    assert signal.dtype == noise.dtype == torch.float64
    assert sde == [None] * 3
    # Theirs is float32, and the last beta of the cosine is 0.999.
    torch.testing.assert_close(signal.square(), theirs, rtol=3e-4, atol=0)
    torch.testing.assert_close(noise.square(), 1 - theirs, rtol=1e-3, atol=0)


def test_ends_of_the_discrete_processes():
    alpha_bars = cosine().signal.square()
    assert alpha_bars[-1].item() == pytest.approx(2.4e-9, rel=0.02)
    alphas, _ = cosine().schedule()
    assert (1 - alphas).max().item() == pytest.approx(0.999, rel=1e-9)
    alphas, _ = linear().schedule()
    assert 1 - alphas[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert 1 - alphas[-1].item() == pytest.approx(0.02, rel=1e-9)


@given(st.integers(2, 60))
def test_cosine_follows_its_formula_up_to_the_cap(steps):
    def f(t):
        return math.cos(math.pi / 2 * (t / steps + 0.008) / 1.008) ** 2

    signal, _, *_ = cosine(steps)
    for t in range(steps - 1):
        assert signal[t].item() ** 2 == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    capped = signal[-1].item() ** 2 / signal[-2].item() ** 2
    assert capped == pytest.approx(0.001, rel=1e-9)


@given(st.integers(2, 40), st.floats(1e-3, 1.0), st.floats(1.5, 1e3))
def test_geometric_levels(levels, smallest, factor):
    signal, noise, *_ = geometric(levels, smallest * factor, smallest)
    assert torch.equal(signal, torch.ones(levels, dtype=torch.float64))
    assert noise[0].item() == pytest.approx(smallest)
    assert noise[-1].item() == pytest.approx(smallest * factor)
    ratios = (noise[1:] / noise[:-1]).tolist()
    assert ratios == pytest.approx([factor ** (1 / (levels - 1))] * (levels - 1))


# Stochastic differential equations


def moments(sde, s):
    """Mean and variance at time s from (1, 0) at 0: m' = f m, v' = 2 f v + g^2."""

    def slope(s, y):
        *_, f, g = sde(number([s]))
        return [f.item() * y[0], 2 * f.item() * y[1] + g.item() ** 2]

    return solve_ivp(slope, (0, s), [1, 0], rtol=1e-10, atol=1e-13).y[:, -1]


@pytest.mark.parametrize("s", [1e-3, 0.1, 0.5, 1.0])
def test_vp_sde_solves_its_equation(s):
    signal, noise, time, f, g = (table.item() for table in vp_sde(number([s])))
    mean, variance = moments(vp_sde, s)
    assert signal == pytest.approx(mean, rel=1e-7)
    assert noise**2 == pytest.approx(variance, rel=1e-7)
    assert time == s
    assert (f, g**2) == pytest.approx((-(0.1 + 19.9 * s) / 2, 0.1 + 19.9 * s))
    integral, _ = quad(lambda u: 0.1 + 19.9 * u, 0, s)
    assert signal == pytest.approx(math.exp(-integral / 2))


@pytest.mark.parametrize("s", [0.01, 0.3, 1.0])
def test_ve_sde_solves_its_equation_but_for_the_least_variance(s):
    signal, noise, time, f, _ = (table.item() for table in ve_sde(number([s])))
    mean, variance = moments(ve_sde, s)
    assert (signal, f, time) == (1, 0, s) and mean == 1
    assert noise == pytest.approx(0.01 * 5000**s)
    assert noise**2 == pytest.approx(variance + 0.01**2, rel=1e-7)
    assert noise**2 != pytest.approx(variance, rel=1e-9)


def test_times_of_the_sdes():
    time = vp_sde().time
    assert (len(time), time[0].item(), time[-1].item()) == (1000, 1e-3, 1)
    assert vp_sde().noise[0].item() == pytest.approx(0.0105, abs=5e-5)
    assert time.diff().tolist() == pytest.approx([0.999 / 999] * 999)
    _, noise, time, *_ = ve_sde()
    assert (len(time), time[0].item(), time[-1].item()) == (200, 0, 1)
    assert (noise[0].item(), noise[-1].item()) == pytest.approx((0.01, 50))


@pytest.mark.parametrize("levels, largest", [(200, 50.0), (11, 3.0)])
def test_ve_levels_are_those_of_diffusers(levels, largest):
    theirs = ScoreSdeVeScheduler(levels, sigma_min=0.01, sigma_max=largest)
    for process in ve_sde(levels, largest=largest), geometric(levels, largest):
        ours = process.noise.float()
        torch.testing.assert_close(ours, theirs.discrete_sigmas, rtol=1e-5, atol=0)


# Respacing


@given(st.data(), st.integers(2, 300), st.sampled_from([linear, cosine]))
def test_respacing_keeps_the_levels_and_makes_longer_steps(data, steps, kind):
    process = kind(steps)
    kept = data.draw(st.integers(2, steps))
    short = respaced(process, kept)
    positions = [(steps - 1) * k / (kept - 1) for k in range(kept)]
    rows = kept_rows(steps, kept).tolist()
    assert rows[0] == 0 and rows[-1] == steps - 1
    assert len(set(rows)) == short.steps == kept
    assert np.abs(np.subtract(rows, positions)).max() <= 0.5 + 1e-9
    assert torch.equal(short.signal, process.signal[rows])
    assert torch.equal(short.noise, process.noise[rows])

    alphas, _ = process.schedule()
    long_alphas, alpha_bars = short.schedule()
    starts = [-1, *rows[:-1]]
    products = [
        math.prod(alphas[start + 1 : end + 1].tolist())
        for start, end in zip(starts, rows)
    ]
    assert long_alphas.tolist() == pytest.approx(products, rel=1e-9)
    torch.testing.assert_close(alpha_bars, process.signal[rows].square())


@pytest.mark.parametrize("kept", [2, 10, 20, 50, 999])
def test_kept_levels_are_those_of_diffusers(kept):
    assert (
        kept_rows(1000, kept).tolist() == scheduler(kept=kept).timesteps.tolist()[::-1]
    )


@pytest.mark.parametrize("process", [linear(30), cosine(30), vp_sde(30), ve_sde(30)])
def test_respacing_to_all_levels_changes_nothing(process):
    for kept, table in zip(respaced(process, 30), process):
        assert kept is table is None or torch.equal(kept, table)


def test_respacing_takes_an_sde_along():
    process = vp_sde(41)
    for kept, table in zip(respaced(process, 5), process):
        assert torch.equal(kept, table[::10])


@pytest.mark.parametrize("kept", [-1, 0, 1, 31])
def test_respacing_refuses(kept):
    with pytest.raises(ValueError, match="30"):
        respaced(linear(30), kept)


@pytest.mark.parametrize("process", [ve_sde(), geometric()])
def test_ddpm_tables_need_a_variance_preserving_process(process):
    with pytest.raises(ValueError, match="variance-preserving"):
        process.schedule()


@pytest.mark.parametrize("process", [linear(9), cosine(9), vp_sde(9)])
def test_schedule_is_that_of_the_signal(process):
    alphas, alpha_bars = process.schedule()
    for t in range(9):
        assert alpha_bars[t].item() == pytest.approx(process.signal[t].item() ** 2)
        product = math.prod(alphas[: t + 1].tolist())
        assert product == pytest.approx(alpha_bars[t].item(), rel=1e-9)


# One level


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_as_a_predictor_takes_them(dtype):
    process, x = linear(12), torch.zeros(3, 2, dtype=dtype)
    for level, datum in zip(process.at(-1, x), (1, 0)):
        assert level == datum and level.shape == () and level.dtype == dtype
    for level, table in zip(process.at(7, x), process):
        assert level.item() == pytest.approx(table[7].item())
        assert level.shape == () and level.dtype == dtype
    rows = [11, 0, 7]
    for level, table in zip(process.at(torch.tensor(rows), x), process):
        assert level.shape == (3, 1) and level.dtype == dtype
        assert level[:, 0].tolist() == pytest.approx(table[rows].tolist())


# The exact predictor


def log_density(x, data, signal, noise, width=0.0):
    """log p(x_t) of data blurred by a width, from the density of each component."""
    variance = noise**2 + (signal * width) ** 2
    square = (x[:, None] - signal[..., None] * data).square().sum(dim=2)
    logs = -square / (2 * variance) - data.shape[1] / 2 * variance.log()
    return torch.logsumexp(logs, dim=1) - math.log(len(data))


def eps_by_autograd(x, data, signal, noise, width=0.0):
    x = x.clone().requires_grad_()
    log_p = log_density(x, data, signal, noise, width)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    return -noise * score


@pytest.mark.parametrize("signal, noise", LEVELS)
@pytest.mark.parametrize("dimension", [2, 5])
def test_exact_is_the_score_of_the_mixture(dimension, signal, noise):
    data, x_t = double(6, dimension, seed=2), 2 * double(7, dimension, seed=3)
    expected = eps_by_autograd(x_t, data, signal, noise)
    torch.testing.assert_close(Exact(data)(x_t, signal, noise), expected)


def weights_by_hand(x, data, signal, noise):
    square = [sum((a - signal * b) ** 2 for a, b in zip(x, one)) for one in data]
    logs = [-s / (2 * noise**2) for s in square]
    weights = [math.exp(log - max(logs)) for log in logs]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("signal, noise", LEVELS)
def test_exact_variance_is_the_sum(signal, noise):
    data, x_t = double(6, 3, seed=4), 2 * double(7, 3, seed=5)
    got = Exact(data).x_start_variance(x_t, signal, noise)
    levels = [level.expand(7, 1)[:, 0].tolist() for level in (signal, noise)]
    for x, s, n, row in zip(x_t.tolist(), *levels, got.tolist()):
        weights = weights_by_hand(x, data.tolist(), s, n)
        mean = weights @ data.numpy()
        variance = weights @ (data.numpy() - mean) ** 2
        assert row == pytest.approx(variance.tolist(), abs=1e-12)


@pytest.mark.parametrize("signal, noise", LEVELS)
def test_chunks_change_nothing(signal, noise):
    data, x_t = double(6, 3, seed=6), double(7, 3, seed=7)
    whole = Exact(data)
    for chunk in (1, 12, 13, 41):
        parts = Exact(data, chunk=chunk)
        for name in ("__call__", "x_start_variance"):
            got, expected = (
                getattr(exact, name)(x_t, signal, noise) for exact in (parts, whole)
            )
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_exact_keeps_memory_bounded():
    """At most `chunk` weights at a time, or one row of them."""
    sizes = []

    class Recording(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend([result.numel()] if isinstance(result, torch.Tensor) else [])
            return result

    exact = Exact(double(100, 2), chunk=1000)
    with Recording():
        exact(double(400, 2), number(1.0), number(0.5))
    assert max(sizes) == 1000


def test_exact_in_single_precision_at_the_smallest_noise():
    data = points().data
    x_t = data + 0.01 * torch.randn(data.shape, generator=seeded_by(8))
    one, noise = torch.ones(()), torch.tensor(0.01)
    got = Exact(data)(x_t, one, noise)
    exact = Exact(data.double())(x_t.double(), one.double(), noise.double())
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("process", [linear(40), cosine(40)])
def test_one_datum_is_the_chain_of_the_vector(process):
    data, schedule = X_START.double(), process.schedule()
    exact = denoiser(Exact(data[None]), process)
    known = PredictStart(lambda x_t, t: data, *schedule)
    for t in range(process.steps):
        x_t = q_sample(data.expand(3, -1), t, schedule[1], generator=seeded_by(t))
        torch.testing.assert_close(exact(x_t, t), known(x_t, t), rtol=1e-9, atol=1e-9)
    t = torch.tensor([0, 39, 20])
    torch.testing.assert_close(exact(x_t, t), known(x_t, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "dtype, noise",
    [(torch.float32, 1e-5), (torch.float64, 1e-9), (torch.float64, 1e-60)],
)
def test_tiny_noise_leads_to_the_nearest_datum(dtype, noise):
    data = double(6, 2, seed=9).to(dtype)
    x_t = data[[3, 0, 5]] + 0.01
    one, noise = torch.ones((), dtype=dtype), torch.tensor(noise, dtype=dtype)
    eps = Exact(data)(x_t, one, noise)
    assert eps.isfinite().all()
    x_start = x_t - noise * eps
    torch.testing.assert_close(x_start, data[[3, 0, 5]])
    variance = Exact(data).x_start_variance(x_t, one, noise)
    torch.testing.assert_close(variance, torch.zeros_like(variance), rtol=0, atol=1e-6)


# Predictors around predictors


@pytest.mark.parametrize("signal, noise", LEVELS)
@pytest.mark.parametrize("width", [0.3, 2.0])
def test_blurred_is_the_score_of_the_wider_mixture(width, signal, noise):
    data, x_t = double(6, 2, seed=10), 2 * double(7, 2, seed=11)
    expected = eps_by_autograd(x_t, data, signal, noise, width)
    got = blurred(Exact(data), width)(x_t, signal, noise)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("signal, noise", LEVELS)
def test_clipped_keeps_the_estimate_in_the_box(signal, noise):
    low, high = number([-0.5, -1.0]), number([1.0, 0.25])
    x_t = double(7, 2, seed=12)
    x_start = 2 * double(7, 2, seed=13)
    eps = (x_t - signal * x_start) / noise
    got = clipped(lambda *_: eps, low, high)(x_t, signal, noise)
    estimate = (x_t - noise * got) / signal
    nearest = torch.minimum(torch.maximum(x_start, low), high)
    torch.testing.assert_close(estimate, nearest)
    inside = (x_start >= low) & (x_start <= high)
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(got[inside], eps[inside])


@pytest.mark.parametrize("signal, noise", LEVELS)
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
    x_t, network = double(7, 2, seed=14), PointNetwork().double()
    predictor = from_velocity(network)
    preserving = predictor(x_t, number(0.6), number(0.8))
    for scale in (0.1, 1 / 0.6, 30):
        got = predictor(scale * x_t, number(0.6 * scale), number(0.8 * scale))
        torch.testing.assert_close(got, preserving, rtol=1e-6, atol=1e-9)


def test_velocity_is_the_motion_along_the_circle():
    """In x = cos(phi) x_0 + sin(phi) eps, it is dx / dphi."""
    x_start, eps = double(2, 3, seed=16), double(2, 3, seed=17)

    def x(phi):
        return phi.cos() * x_start + phi.sin() * eps

    phi = number(0.7)
    motion = torch.autograd.functional.jacobian(x, phi)
    got = from_velocity(lambda *_: motion)(x(phi), phi.cos(), phi.sin())
    torch.testing.assert_close(got, eps)
    torch.testing.assert_close(velocity(x_start, eps, phi.cos(), phi.sin()), motion)


def test_displacement_is_the_motion_along_the_straight_process():
    """Which starts above the data and ends just before noise, and one step is Euler's."""
    process, x_start, eps = straight(10), double(4, 3), double(4, 3, seed=1)
    assert process.noise.tolist() == pytest.approx(np.arange(1, 11) * 0.0999)
    torch.testing.assert_close(process.signal, 1 - process.noise)
    one = straight(number([0.25]))
    assert (one.signal.item(), one.noise.item()) == (0.75, 0.25)
    states = [s * x_start + n * eps for s, n in zip(process.signal, process.noise)]
    exact = from_displacement(lambda *_: eps - x_start)
    _, between, back = ddim(exact, process.rows(torch.tensor([3, 7])), states[7])
    torch.testing.assert_close(between, states[3])
    torch.testing.assert_close(back, x_start)


def test_the_exact_predictor_multiplies_in_full_precision():
    """Whatever the caller allows, which is left as it was."""
    seen = []

    class Recording(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "mm" in str(func):
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Recording():
            Exact(torch.eye(2)).x_start_variance(
                torch.eye(2), torch.ones(()), torch.ones(())
            )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) >= 3 and set(seen) == {"highest"}


# Variances


@pytest.mark.parametrize("kept", [50, 1000])
def test_interpolated_variance_is_that_of_diffusers(kept):
    theirs = scheduler(kept=kept, variance_type="learned_range")
    schedule = respaced(linear(), kept).schedule()
    v = 2 * double(5, 2, seed=18)
    for t in range(1, kept, 7):
        timestep = theirs.timesteps[kept - 1 - t]
        log_variance = theirs._get_variance(timestep, predicted_variance=2 * v - 1)
        got = interpolated_variance(v, t, *schedule)
        torch.testing.assert_close(got, log_variance.exp(), rtol=1e-7, atol=0)


def test_ends_of_the_interpolated_variance():
    schedule = respaced(linear(), 20).schedule()
    zeros = torch.zeros(20, 2, dtype=torch.float64)
    rows = torch.arange(20)
    abar = [1.0, *schedule[1].tolist()]
    beta = [1 - abar[t + 1] / abar[t] for t in range(20)]
    small = [(1 - abar[t]) / (1 - abar[t + 1]) * beta[t] for t in range(20)]
    assert small[0] == 0
    small[0] = small[1]
    for v, expected in ((0, small), (1, beta)):
        got = interpolated_variance(zeros + v, rows, *schedule)
        assert got.shape == (20, 2)
        assert got[:, 0].tolist() == pytest.approx(expected, rel=1e-9)
        for t in (0, 1, 13):
            one = interpolated_variance(zeros[:3] + v, t, *schedule)
            torch.testing.assert_close(one, got[t].expand(3, 2))
    half = interpolated_variance(zeros + 0.5, rows, *schedule)[:, 1]
    assert half.square().tolist() == pytest.approx(np.multiply(small, beta).tolist())


def test_a_network_of_two_outputs_knows_noise_and_variance():
    process = respaced(linear(), 20)
    schedule = process.schedule()
    x_t, v = double(4, 2, seed=19), double(4, 2, seed=20)

    def network(x_t, signal, noise):
        return torch.cat([signal * x_t + noise, v], dim=1)

    variance = learned_variance(network, process)
    for t in range(20):
        level = process.at(t, x_t)
        got = from_hybrid(network)(x_t, *level)
        torch.testing.assert_close(got, level[0] * x_t + level[1])
        expected = interpolated_variance(v, t, *schedule)
        torch.testing.assert_close(variance(x_t, t), expected)


@pytest.mark.parametrize("process", [respaced(linear(), 10), cosine(8)])
def test_best_variance_is_that_of_the_mixture(process):
    """Given x_t, x_{t-1} is drawn from N(mu~(x^i, x_t), beta~) with the weight of x^i."""
    data, x_t = double(6, 2, seed=21), double(7, 2, seed=22)
    schedule = process.schedule()
    best = best_variance(Exact(data), process)
    for t in range(process.steps):
        signal, noise = process.at(t, x_t)
        got = best(x_t, t)
        for x, row in zip(x_t, got.tolist()):
            level = signal.item(), noise.item()
            weights = weights_by_hand(x.tolist(), data.tolist(), *level)
            means, small = posterior_mean_variance(data, x.expand(6, 2), t, *schedule)
            second = weights @ (means.square() + small).numpy()
            variance = second - (weights @ means.numpy()) ** 2
            assert row == pytest.approx(variance.tolist(), rel=1e-7, abs=1e-12)


def test_best_variance_is_what_is_drawn():
    """Monte Carlo: x_{t-1} along the chain, in a thin slice of x_t."""
    process, t, n = Process(*(number([[0.9, 0.6], [0.19**0.5, 0.8]]))), 1, 4_000_000
    data = number([[-1.0], [0.5], [1.5]])
    generator = seeded_by(23)
    x_start = data[torch.randint(3, (n,), generator=generator)]
    noises = torch.randn(2, n, 1, dtype=torch.float64, generator=generator)
    x_prev = 0.9 * x_start + 0.19**0.5 * noises[0]
    alpha = (0.6 / 0.9) ** 2
    x_t = alpha**0.5 * x_prev + (1 - alpha) ** 0.5 * noises[1]
    for middle in (-0.5, 0.4):
        near = x_prev[(x_t - middle).abs() < 0.02]
        got = best_variance(Exact(data), process)(number([[middle]]), t)
        error = 5 * near.var().item() * math.sqrt(2 / len(near))
        assert got.item() == pytest.approx(near.var().item(), abs=error)
