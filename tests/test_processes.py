"""Forward processes, held against diffusers, integrals and their own equations."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, ScoreSdeVeScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from comparison.processes import (
    cosine,
    geometric,
    kept_rows,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
)
from tests.laws import number

# Discrete processes


@pytest.mark.parametrize(
    "process, kind, first, last",
    [(linear, "linear", 1e-4, 0.02), (cosine, "squaredcos_cap_v2", 4.13e-5, 0.999)],
)
def test_alpha_bars_are_those_of_diffusers(process, kind, first, last):
    signal, noise, *sde = process()
    theirs = DDPMScheduler(1000, beta_schedule=kind).alphas_cumprod.double()
    assert signal.dtype == noise.dtype == torch.float64
    assert sde == [None] * 3
    # Theirs is float32, and the last beta of the cosine is 0.999.
    torch.testing.assert_close(signal.square(), theirs, rtol=3e-4, atol=0)
    torch.testing.assert_close(noise.square(), 1 - theirs, rtol=1e-3, atol=0)
    alphas, alpha_bars = process().schedule()
    assert (1 - alphas)[[0, -1]].tolist() == pytest.approx([first, last], rel=1e-3)
    torch.testing.assert_close(alpha_bars, signal.square())
    torch.testing.assert_close(alphas.cumprod(dim=0), alpha_bars)


@given(st.integers(2, 60))
def test_cosine_follows_its_formula_up_to_the_cap(steps):
    def f(t):
        return math.cos(math.pi / 2 * (t / steps + 0.008) / 1.008) ** 2

    alpha_bars = cosine(steps).signal.square().tolist()
    for t in range(steps - 1):
        assert alpha_bars[t] == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    assert alpha_bars[-1] / alpha_bars[-2] == pytest.approx(0.001, rel=1e-9)


@pytest.mark.parametrize("levels, largest", [(200, 50.0), (11, 3.0)])
def test_ve_levels_are_those_of_diffusers(levels, largest):
    theirs = ScoreSdeVeScheduler(levels, sigma_min=0.01, sigma_max=largest)
    for process in ve_sde(levels, largest=largest), geometric(levels, largest):
        assert (process.signal == 1).all()
        ours = process.noise.float()
        torch.testing.assert_close(ours, theirs.discrete_sigmas, rtol=1e-5, atol=0)


def test_ends_of_the_processes():
    """As docs/comparison.md has them."""
    ends = {name: of().noise[[0, -1]].tolist() for name, of in (
        ("geometric", geometric), ("ve", ve_sde), ("vp", vp_sde), ("straight", straight),
    )}  # fmt: skip
    assert ends["geometric"] == pytest.approx([0.01, 5])
    assert ends["ve"] == pytest.approx([0.01, 50])
    assert ends["vp"] == pytest.approx([0.0105, 1], abs=5e-5)
    assert ends["straight"] == pytest.approx([0.00999, 0.999])
    assert [of().steps for of in (geometric, ve_sde, vp_sde)] == [10, 200, 1000]
    assert cosine().signal[-1].item() ** 2 == pytest.approx(2.4e-9, rel=0.02)
    assert straight(10).noise.tolist() == pytest.approx(np.arange(1, 11) * 0.0999)
    for process in (straight(10), straight(number([0.25, 0.7]))):
        torch.testing.assert_close(process.signal, 1 - process.noise)


# Stochastic differential equations


def moments(sde, s):
    """Mean and variance at time s from (1, 0) at 0: m' = f m, v' = 2 f v + g^2."""

    def slope(s, y):
        *_, f, g = sde(number([s]))
        return [f.item() * y[0], 2 * f.item() * y[1] + g.item() ** 2]

    return solve_ivp(slope, (0, s), [1, 0], rtol=1e-10, atol=1e-13).y[:, -1]


@pytest.mark.parametrize("sde", [vp_sde, ve_sde])
@pytest.mark.parametrize("s", [1e-3, 0.3, 1.0])
def test_the_sdes_solve_their_equations(sde, s):
    """The VE SDE but for its least variance, which Song et al. drop."""
    signal, noise, time, f, g = (table.item() for table in sde(number([s])))
    mean, variance = moments(sde, s)
    dropped = 0.01**2 if sde is ve_sde else 0
    assert time == s and signal == pytest.approx(mean, rel=1e-7)
    assert noise**2 == pytest.approx(variance + dropped, rel=1e-7)
    if sde is ve_sde:
        assert (f, noise) == pytest.approx((0, 0.01 * 5000**s))
    else:
        assert (f, g**2) == pytest.approx((-(0.1 + 19.9 * s) / 2, 0.1 + 19.9 * s))
        integral, _ = quad(lambda u: 0.1 + 19.9 * u, 0, s)
        assert signal == pytest.approx(math.exp(-integral / 2))


@pytest.mark.parametrize("sde, first, count", [(vp_sde, 1e-3, 1000), (ve_sde, 0, 200)])
def test_times_of_the_sdes(sde, first, count):
    time = sde().time
    assert (len(time), time[0].item(), time[-1].item()) == (count, first, 1)
    assert time.diff().tolist() == pytest.approx(
        [(1 - first) / (count - 1)] * (count - 1)
    )


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
    alphas, _ = process.schedule()
    products = [
        math.prod(alphas[start + 1 : end + 1].tolist())
        for start, end in zip([-1, *rows[:-1]], rows)
    ]
    assert short.schedule()[0].tolist() == pytest.approx(products, rel=1e-9)


@pytest.mark.parametrize("kept", [2, 10, 50, 999])
def test_kept_levels_are_those_of_diffusers(kept):
    theirs = DDPMScheduler(1000, timestep_spacing="linspace")
    theirs.set_timesteps(kept)
    assert kept_rows(1000, kept).tolist() == theirs.timesteps.tolist()[::-1]


@pytest.mark.parametrize("process", [linear(41), cosine(41), vp_sde(41), ve_sde(41)])
def test_respacing_takes_all_tables_along(process):
    for kept, every in ((5, 10), (41, 1)):
        for short, table in zip(respaced(process, kept), process, strict=True):
            assert short is table is None or torch.equal(short, table[::every])


@pytest.mark.parametrize("kept", [-1, 0, 1, 31])
def test_respacing_refuses(kept):
    with pytest.raises(ValueError, match=f"2 to 30 can be kept, got {kept}"):
        respaced(linear(30), kept)


@pytest.mark.parametrize("process", [ve_sde(), geometric(), straight()])
def test_ddpm_tables_need_a_variance_preserving_process(process):
    with pytest.raises(ValueError, match="variance-preserving"):
        process.schedule()


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
