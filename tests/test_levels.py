"""Noise levels, against diffusers, an integral and the processes they stand for."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, ScoreSdeVeScheduler
from scipy.integrate import quad

from comparison.levels import (
    cosine,
    geometric,
    karras,
    kept_rows,
    linear,
    respaced,
    straight,
    to_zero,
    unit,
    ve_sigma,
    vp_sde,
    vp_sigma,
    vp_time,
)
from tests.common import double
from tests.datasets import number


def close(got, expected, rtol=1e-9):
    torch.testing.assert_close(got.double(), expected.double(), rtol=rtol, atol=1e-18)


@pytest.mark.parametrize("of, count", [
    (linear, 1000), (cosine, 1000), (geometric, 10), (vp_sde, 1000),
    (straight, 100), (lambda: karras(5.0, 0.1), 18),
])  # fmt: skip
def test_levels_fall_to_zero_in_double_precision(of, count):
    assert of().dtype == torch.float64 and of().shape == (count + 1,)
    assert (of().diff() < 0).all() and of()[-1] == 0


@pytest.mark.parametrize("steps", [1000, 6])
@pytest.mark.parametrize(
    "of, kind", [(linear, "linear"), (cosine, "squaredcos_cap_v2")]
)
def test_alpha_bars_are_those_of_diffusers(of, kind, steps):
    """Theirs is float32; the cosine's last beta is 0.999."""
    theirs = DDPMScheduler(steps, beta_schedule=kind).alphas_cumprod.double()
    close(1 / (1 + of(steps)[:-1].square()), theirs.flip(0), rtol=3e-4)
    close(of(steps)[:-1].square(), (1 / theirs - 1).flip(0), rtol=1e-3)


@pytest.mark.parametrize(
    "levels, low, high",
    [
        (geometric(), 0.01, 5),
        (geometric(5, 3, 0.2), 0.2, 3),
        (geometric(11, 50.0), 0.01, 50),
    ],
)
def test_geometric_levels_are_those_of_diffusers(levels, low, high):
    theirs = ScoreSdeVeScheduler(len(levels) - 1, sigma_min=low, sigma_max=high)
    close(levels[:-1].flip(0), theirs.discrete_sigmas, rtol=1e-5)


def test_the_level_of_the_ve_sde_at_a_time():
    close(
        ve_sigma(torch.linspace(1, 0, 200).double()),
        geometric(200, 50.0)[:-1],
        rtol=1e-6,
    )


@pytest.mark.parametrize("s", [1e-9, 1e-3, 0.3, 1.0])
def test_the_level_of_the_vp_sde_is_that_of_its_integral(s):
    """sigma^2 = 1 / abar - 1, abar = exp(-integral of beta(s) = 0.1 + 19.9 s)."""
    integral, _ = quad(lambda u: 0.1 + 19.9 * u, 0, s)
    close(vp_sigma(number(s)).square(), number(math.expm1(integral)))
    got = vp_time(vp_sigma(number(s)).float()).item()  # single precision, as samplers
    assert got == pytest.approx(s, rel=1e-6, abs=1e-7)


def test_times_are_even():
    """The straight process has level s / (1 - s) at time s."""
    close(vp_time(vp_sde(5)), number([1, 0.75025, 0.5005, 0.25075, 0.001, 0]))
    close(straight(4) / (1 + straight(4)), 0.999 * number([1, 0.75, 0.5, 0.25, 0]))


@pytest.mark.parametrize("steps", [18, 5])
def test_karras_levels_are_those_of_diffusers(steps):
    theirs = EDMEulerScheduler(sigma_min=0.02, sigma_max=5.0)
    theirs.set_timesteps(steps)
    close(karras(5.0, 0.02, steps), theirs.sigmas, rtol=1e-6)


@pytest.mark.parametrize("steps, kept", [(1000, 2), (1000, 50), (1000, 999), (41, 41)])
def test_kept_levels_are_those_of_diffusers(steps, kept):
    theirs = DDPMScheduler(steps, timestep_spacing="linspace")
    theirs.set_timesteps(kept)
    assert kept_rows(steps, kept).tolist() == (steps - 1 - theirs.timesteps).tolist()
    expected = cosine(steps)[steps - 1 - theirs.timesteps]
    assert torch.equal(respaced(cosine(steps), kept), to_zero(expected))


@pytest.mark.parametrize("kept", [-1, 0, 1, 31])
def test_respacing_refuses(kept):
    with pytest.raises(ValueError, match=f"2 to 30 can be kept, not {kept}"):
        respaced(linear(30), kept)


@pytest.mark.parametrize("noise", [0.8, number(0.8), number([[0.8], [0.6]])])
def test_unit_is_the_state_of_the_variance_preserving_process(noise):
    x_start, eps, signal = double(2, 3), double(2, 3, seed=1), (1 - noise**2) ** 0.5
    for dtype in (torch.float32, torch.float64):
        got = unit((x_start + noise / signal * eps).to(dtype), noise / signal)
        torch.testing.assert_close(got, (signal * x_start + noise * eps).to(dtype))
