"""What the networks see, and are made of. That they learn, test_training.py shows."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from comparison.networks import Attention, PointNetwork, UNet
from tests.common import seeded_by


def random_unet(*args):
    """A U-Net none of whose weights is 0, as those of convolutions are at first."""
    network = UNet(*args)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=seeded_by(3))
    return network


def states(size, count=3):
    y = torch.randn(count, size, generator=seeded_by(2))
    return y, torch.logspace(1, -1, count)[:, None]


@pytest.mark.parametrize(
    "make, size, outputs",
    [
        (PointNetwork, 2, 2),
        (partial(PointNetwork, 4), 2, 4),
        (random_unet, 32**2, 32**2),
        (partial(random_unet, (8, 16)), 16**2, 16**2),
    ],
)
def test_a_network_sees_its_state_and_its_level_but_no_other_state(make, size, outputs):
    """However many there are; and the level may be one for all, or one for each."""
    network, (y, sigma) = make(), states(size, count=102)
    output = network(y, sigma)
    assert output.shape == (102, outputs) and output.isfinite().all()
    for other in (network(y, 1.2 * sigma), network(y + 0.1, sigma)):
        assert ((other - output).abs().amax(dim=1) > 1e-5).all()
    for k in (0, 50, 101):
        for level in (sigma[k : k + 1], sigma[k, 0]):
            alone = network(y[k : k + 1], level)
            torch.testing.assert_close(alone[0], output[k], rtol=1e-3, atol=1e-4)


def test_the_waves_have_periods_from_strokes_to_the_whole():
    """0.3 to 4 of them per unit, each in a direction of its own."""
    waves = PointNetwork().waves
    periods, angles = waves.norm(dim=0) / (2 * math.pi), torch.atan2(*waves)
    assert periods.aminmax() == (pytest.approx(0.3), pytest.approx(4))
    ratios = periods[1:] / periods[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(127))
    assert len(angles.unique()) == 128 and angles.sin().mean().abs() < 0.3


# The U-Net


def test_every_weight_has_a_gradient():
    network = random_unet()
    network(*states(32**2)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_attention_is_that_of_pytorch_between_pixels():
    attention, x = Attention(8), torch.randn(2, 8, 3, 5, generator=seeded_by(15))
    flat = [p.flatten(1) if p.ndim > 1 else p for p in attention.parameters()][2:]
    oracle = nn.MultiheadAttention(8, 1, batch_first=True)
    oracle.load_state_dict(dict(zip(oracle.state_dict(), flat)))
    pixels = attention.norm(x).flatten(2).mT
    mixed, _ = oracle(pixels, pixels, pixels)
    torch.testing.assert_close(attention(x), x + mixed.mT.reshape(x.shape))


def test_attention_is_at_the_lowest_resolution():
    network, seen = random_unet(), []
    (attention,) = (m for m in network.modules() if isinstance(m, Attention))
    attention.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    network(*states(32**2))
    assert seen == [(3, 64, 4, 4)]
