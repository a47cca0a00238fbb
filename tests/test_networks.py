"""The networks: what they see, what they are made of, and that they learn."""

import math

import pytest
import torch

from comparison.laws import pictures
from comparison.measures import nearest
from comparison.networks import Attention, PointNetwork, UNet, unit
from comparison.objectives import simple, uniform_level
from comparison.predictors import from_velocity, velocity
from comparison.processes import cosine, linear, respaced, ve_sde
from comparison.samplers import ddim, last
from comparison.training import train
from tests.common import double, seeded_by


def states(side=16, count=3):
    x = torch.randn(count, side**2, generator=seeded_by(2))
    signal = torch.tensor([[0.9], [0.5], [0.1]])[:count]
    return x, signal, (1 - signal**2).sqrt()


def random_unet(*args):
    """A U-Net none of whose weights is 0, as those of some convolutions are at first."""
    network = UNet(*args)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=seeded_by(3))
    return network


def points_and_levels():
    pairs = torch.tensor([[1.0, 0.01], [0.6, 0.8], [0.1, 0.995]])
    return torch.randn(3, 2, generator=seeded_by(1)), *pairs.T[..., None]


BOTH = pytest.mark.parametrize(
    "network, asked",
    [
        (PointNetwork(), points_and_levels()),
        (PointNetwork(4), points_and_levels()),
        (random_unet(), states(32)),
        (random_unet((16, 32, 64)), states(16)),
        (random_unet((8, 16), 2), states(64)),
    ],
)


@pytest.mark.parametrize("process", [linear(), ve_sde()])
def test_states_are_scaled_to_unit_variance(process):
    x_0, eps = double(2, 20_000, 2, seed=24)
    for t in (0, process.steps // 2, process.steps - 1):
        signal, noise = process.at(t, x_0)
        x, level = unit(signal * x_0 + noise * eps, signal, noise)
        assert x.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 40_000))
        assert level.shape == (20_000, 1) and (level == level[0]).all()
        assert level[0].item() == pytest.approx(math.log(noise / signal))


@BOTH
def test_a_network_sees_the_scaled_state_and_the_ratio_alone(network, asked):
    x, signal, noise = asked
    output = network(x, signal, noise)
    outputs = network.layers[-1].out_features if x.shape[1] == 2 else x.shape[1]
    assert output.shape == (3, outputs) and output.isfinite().all()
    for scale in (0.2, 7.0, 1 / (signal**2 + noise**2).sqrt()):
        same = network(scale * x, scale * signal, scale * noise)
        torch.testing.assert_close(same, output, rtol=1e-3, atol=2e-4)
    for other in (network(x, signal, 1.2 * noise), network(x + 0.1, signal, noise)):
        assert ((other - output).abs().amax(dim=1) > 1e-4).all()


@BOTH
def test_a_state_does_not_see_its_neighbours(network, asked):
    """And the level may be one for all, or one for each."""
    output = network(*asked)
    for k, (x, signal, noise) in enumerate(zip(*asked)):
        for level in ((signal[None], noise[None]), (signal[0], noise[0])):
            alone = network(x[None], *level)
            torch.testing.assert_close(alone[0], output[k], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [PointNetwork, UNet])
def test_the_seed_makes_the_network(kind):
    state = torch.random.get_rng_state()
    one, same, other = (kind(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    again = kind(seed=3).state_dict()
    for key in one:
        assert torch.equal(one[key], same[key]) and torch.equal(one[key], again[key])
    differ = {key for key in one if not torch.equal(one[key], other[key])}
    assert {key for key in one if "weight" in key and "norm" not in key} - differ <= {
        *(key for key in one if "conv_2" in key)  # which are 0 at first
    }


def test_the_waves_have_periods_from_strokes_to_the_whole():
    """0.3 to 4 of them per unit, each in a direction of its own."""
    periods = PointNetwork().waves.norm(dim=0) / (2 * math.pi)
    assert periods.aminmax() == (pytest.approx(0.3), pytest.approx(4))
    ratios = periods[1:] / periods[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(127))


# The U-Net


def test_every_weight_has_a_gradient():
    network = random_unet()
    network(*states(32)).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_attention_is_a_softmax_between_pixels():
    attention, x = Attention(8, 4), torch.randn(2, 8, 3, 5, generator=seeded_by(15))
    normed = attention.norm(x).flatten(2).transpose(1, 2)
    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    query, key, value = (normed @ weight[:, :, 0, 0].T + bias).chunk(3, dim=2)
    shares = (query @ key.transpose(1, 2) / math.sqrt(8)).softmax(dim=2)
    mixed = shares @ value @ attention.out.weight[:, :, 0, 0].T + attention.out.bias
    expected = x.flatten(2).transpose(1, 2) + mixed
    got = attention(x, None).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_unet_has_attention_at_the_lowest_resolution():
    network, seen = random_unet(), []
    (attention,) = (m for m in network.modules() if isinstance(m, Attention))
    attention.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    network(*states(32))
    assert seen == [(3, 64, 4, 4)]


def test_two_pictures_are_learned_by_heart():
    law = pictures(side=16, count=2)
    network, process = UNet((8, 16)), respaced(cosine(), 20)
    objective = simple(uniform_level(cosine()), velocity)
    options = {"steps": 180, "batch_size": 16, "lr": 1e-2, "average": 0.95}
    losses = train(network, objective, law.data, **options)
    assert losses[-30:].mean() < 0.4 * losses[:5].mean()
    network.requires_grad_(False)
    x_T = torch.randn(20, 256, generator=seeded_by(4))
    drawn = last(ddim(from_velocity(network), process, x_T))
    off, which = nearest(drawn, law.data)
    assert (off / math.sqrt(256)).median() < 0.3
    assert set(which.tolist()) == {0, 1}
