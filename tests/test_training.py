"""What networks are trained on, held against the papers' formulas in x_t; training."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import jacrev, vmap

from comparison import training
from comparison.denoisers import DISPLACEMENT, NOISE, VELOCITY, Exact
from comparison.levels import cosine, geometric, linear, respaced, straight, vp_sde
from comparison.measures import share_near
from comparison.networks import PointNetwork
from comparison.objectives import (
    hybrid,
    lognormal,
    score_matching,
    simple,
    uniform,
    up_to,
)
from comparison.pictures import CUT_COSINE
from comparison.samplers import ddim, last
from comparison.training import RECIPES, fit, load, save, train, trained_on
from tests.common import double, seeded_by
from tests.datasets import dataset, number, tiny, wavy, wavy_and_v


class Recording:
    """A network that keeps what it was asked and what it answered."""

    def __init__(self, network):
        self.network = network

    def __call__(self, y, sigma):
        self.y, self.sigma = y, sigma
        self.answer = self.network(y, sigma)
        return self.answer


# Levels and objectives


def test_quantiles_are_those_of_the_levels_and_of_the_logarithm():
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = uniform(torch.arange(20.0, -1, -1))(u).long().bincount()
    assert counts.tolist() == [0] + [50] * 20
    normal = lognormal(0.7, 1.7)
    torch.testing.assert_close(normal(u).log(), Normal(0.7, 1.7).icdf(u))
    further, edge, below = up_to(500.0, normal), number(0.95), u < 0.95
    torch.testing.assert_close(further(u)[below], normal(u)[below])
    for share, end in ((0.95, normal(edge)), (0.975, (500 * normal(edge)).sqrt())):
        assert further(number(share)).item() == pytest.approx(end.item())
    assert further(number(1.0)).item() == pytest.approx(500)


def test_a_batch_has_a_level_of_each_part_of_their_distribution():
    network = Recording(wavy)
    simple(lambda u: 1 + u)(network, double(500, 2), seeded_by(2))
    parts = 500 * (network.sigma[:, 0] - 1)
    assert torch.equal(parts.long(), torch.arange(500))
    assert kstest(parts.frac(), "uniform").pvalue > 0.01


def in_x_t(x_start, y, sigma):
    """The signal and the noise of x_t, of variance 1, and the eps that is in it."""
    signal = 1 / (1 + sigma**2).sqrt()
    noise = (1 - signal**2).sqrt()
    return signal, noise, (signal * y - signal * x_start) / noise


@pytest.mark.parametrize(
    "target, wanted",
    [
        (NOISE, lambda x_start, eps, signal, noise: eps),
        (VELOCITY, lambda x_start, eps, signal, noise: signal * eps - noise * x_start),
        (DISPLACEMENT, lambda x_start, eps, signal, noise: eps - x_start),
    ],
)
def test_simple_is_the_mean_square_of_the_target_less_the_output(target, wanted):
    x_start, network = double(4000, 2), Recording(wavy)
    loss = simple(lognormal(0.0, 1.0), target)(network, x_start, seeded_by(1))
    signal, noise, eps = in_x_t(x_start, network.y, network.sigma)
    assert kstest(eps.flatten(), "norm").pvalue > 0.01
    error = network.answer - wanted(x_start, eps, signal, noise)
    assert loss.item() == pytest.approx((error.square().sum() / 8000).item())


def test_half_of_simple_is_denoising_score_matching():
    x_start, network = double(300, 2), Recording(wavy)
    loss = simple(uniform(geometric()))(network, x_start, seeded_by(4)) / 2
    y, sigma = network.y.requires_grad_(), network.sigma
    (score,) = torch.autograd.grad(Normal(x_start, sigma).log_prob(y).sum(), y)
    expected = (sigma**2 * (-network.answer / sigma - score) ** 2).mean() / 2
    assert loss.item() == pytest.approx(expected.item())


def hybrid_in_x_t(x_start, y, sigma, output, v, levels, weight):
    """L_hybrid, (25), from abar_t as Nichol and Dhariwal have it."""
    bars = 1 / (1 + levels.flip(0) ** 2)  # of t = 0, ..., T
    t = (levels.flip(0) == sigma).nonzero()[:, 1:]
    bar, previous, alpha = bars[t], bars[t - 1], bars[t] / bars[t - 1]
    x_t, eps = bar.sqrt() * y, in_x_t(x_start, y, sigma)[2]
    mean = previous.sqrt() * (1 - alpha) * x_start + alpha.sqrt() * (1 - previous) * x_t
    mean_theta = x_t - (1 - alpha) / (1 - bar).sqrt() * output.detach()
    k = t.clamp(min=2)  # beta~_1 = 0 is replaced by beta~_2
    small = (1 - bars[k - 1]) / (1 - bars[k]) * (1 - bars[k] / bars[k - 1])
    variance = (v * (1 - alpha).log() + (1 - v) * small.log()).exp()
    model = Normal(mean_theta / alpha.sqrt(), variance.sqrt())
    kl = kl_divergence(Normal(mean / (1 - bar), small.sqrt()), model)
    bound = (len(levels) - 1) * kl.where(t > 1, -model.log_prob(x_start)).mean()
    return (output - eps).square().mean() + weight * bound


@pytest.mark.parametrize("levels", [respaced(linear(), 4), cosine(7)], ids=len)
@pytest.mark.parametrize("options", [{}, {"weight": 0.5}])
def test_hybrid_and_its_gradient_are_those_in_x_t(levels, options):
    """Of the noise by L_simple alone, of v by the bound's."""
    x_start = double(2000, 3)
    network = Recording(lambda *asked: wavy_and_v(*asked).requires_grad_())
    loss = hybrid(levels, **options)(network, x_start, seeded_by(8))
    counts = network.sigma.unique(return_counts=True)[1]
    assert len(counts) == len(levels) - 1 and chisquare(counts).pvalue > 0.01
    output, weight = network.answer, options.get("weight", 0.001)
    eps, v = output.chunk(2, dim=1)
    expected = hybrid_in_x_t(x_start, network.y, network.sigma, eps, v, levels, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    pair = (torch.autograd.grad(one, output)[0] for one in (loss, expected))
    torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sliced, error", [(False, 1e-9), (True, 0.01)])
def test_score_matching_is_of_the_jacobian(sliced, error):
    """Its trace, by autograd, and the gradient of the weights; slices in the mean."""
    mlp = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    network = Recording(lambda y, sigma: mlp(y) * sigma.sin())
    x_start, objective = double(5000, 3), score_matching(0.4, blur=0.7, sliced=sliced)
    loss = objective(network, x_start, seeded_by(13))
    y = network.y.detach()
    assert network.sigma.item() == pytest.approx(0.4)
    assert kstest(((y - x_start) / 0.7).flatten(), "norm").pvalue > 0.01

    def score(y):
        return -mlp(y) * math.sin(0.4) / 0.4

    trace = vmap(jacrev(score))(y).diagonal(dim1=1, dim2=2).sum(dim=1)
    expected = (trace + score(y).square().sum(dim=1) / 2).mean() / 3
    assert loss.item() == pytest.approx(expected.item(), abs=error)
    weights = [*mlp.parameters()]
    for pair in zip(*(torch.autograd.grad(x, weights) for x in (loss, expected))):
        torch.testing.assert_close(*pair, rtol=0, atol=error)
    with torch.no_grad():  # as a caller may have it
        assert objective(network, x_start, seeded_by(13)) == loss


# The loop


@pytest.mark.parametrize("average", [0.5, 0.999])
@pytest.mark.parametrize("steps", [1, 12, 40])
def test_train_follows_a_loop_by_hand(steps, average):
    """AdamW on gradients cut to norm 1; a rate that rises, then falls; the average."""
    slopes, seen = 2 * double(steps, 2).float(), []

    def objective(network, x_start, generator):
        weights = torch.cat([network.weight[0], network.bias])
        seen.append(weights.detach())
        return slopes[len(seen) - 1] @ weights

    network, data = nn.Linear(1, 1), torch.zeros(1, 1)
    losses = train(network, objective, data, steps=steps, lr=0.1, average=average)
    averaged, weights = seen[0], nn.Parameter(seen[0].clone())
    optimizer = torch.optim.AdamW([weights])
    for n, slope in enumerate(slopes):
        torch.testing.assert_close(seen[n], weights.detach(), rtol=1e-4, atol=1e-5)
        share = (n + 0.5) / steps
        fall = math.cos(math.pi / 2 * (share - 0.1) / 0.9) ** 2
        optimizer.param_groups[0]["lr"] = 0.1 * (share / 0.1 if share < 0.1 else fall)
        weights.grad = slope / slope.norm().clamp(min=1)
        optimizer.step()
        kept = average if n else 0  # the first start it
        averaged = kept * averaged + (1 - kept) * weights.detach()
    ended = torch.cat([network.weight[0], network.bias]).detach()
    torch.testing.assert_close(ended, averaged, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses, (slopes * torch.stack(seen)).sum(dim=1))


def test_the_seed_makes_the_batches_of_all_data_with_replacement():
    network, data = nn.Linear(1, 1), torch.arange(10.0)[:, None]

    def batches(seed):
        """How often each datum is in the batch of each step, then a number of noise."""
        seen = []

        def objective(network, x_start, generator):
            counts = x_start.flatten().long().bincount(minlength=10)
            seen.append(torch.cat([counts, torch.randn(1, generator=generator)]))
            return network(x_start).square().mean()

        train(network, objective, data, steps=50, batch_size=40, seed=seed)
        return torch.stack(seen)

    state = torch.random.get_rng_state()
    one, other = batches(1), batches(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    counts = one[:, :10]
    assert (counts.sum(dim=1) == 40).all() and len(counts.unique(dim=0)) == 50
    assert chisquare(counts.sum(dim=0)).pvalue > 0.01
    torch.manual_seed(6)
    assert torch.equal(batches(1), one) and (other != one)[:, 10].all()


def test_a_network_learns_the_points():
    points, recipe = dataset("points"), RECIPES["points"]
    network = recipe.untrained(0)
    train(
        network, recipe.objective, points.data, steps=500, batch_size=512, average=0.98
    )
    levels, denoiser = respaced(linear(), 50), recipe.target.denoiser(network)
    start = levels[0].float() * torch.randn(1000, 2, generator=seeded_by(5))
    x = last(ddim(denoiser, levels, start))
    assert share_near(x, points.data, points.pixel) > 50


# Recipes and their weights


def log_normal(mean, deviation, largest=None):
    """Its quantiles, as levels; the last is 0."""
    shares = torch.linspace(1, 0, 10_001, dtype=torch.float64)[1:]
    levels = Normal(mean, deviation).icdf(shares).exp()
    if largest:
        levels[:500] = geometric(500, largest, levels[500].item())[:-1]
    return levels


@pytest.mark.parametrize(
    "name, target, levels",
    [
        ("points", VELOCITY, partial(log_normal, -2.0, 2.0)),
        ("pictures", VELOCITY, partial(log_normal, 0.3, 1.1, 160.0)),
        ("hybrid", NOISE, lambda: respaced(linear(), 50)),
        ("simple", NOISE, linear),
        ("cosine", NOISE, cosine),
        ("geometric", NOISE, geometric),
        ("vp", NOISE, partial(vp_sde, 10**5)),
        ("ve", NOISE, partial(geometric, 10**5, 50.0, 0.01)),
        ("rectified", DISPLACEMENT, partial(straight, 10**5)),
        ("edm", VELOCITY, partial(log_normal, -1.2, 1.2)),
        ("pictures-linear", VELOCITY, linear),
        ("pictures-cosine", VELOCITY, lambda: CUT_COSINE),
    ],
)
def test_a_recipe_trains_and_reads_a_network_as_its_name_says(name, target, levels):
    """The right answer on one point has no loss, and is led back to the point."""
    recipe, x_start = RECIPES[name], double(1, 2)

    def answer(y, sigma):
        output = target.of(x_start, (y - x_start) / sigma, sigma)
        return torch.cat([output, 0 * output], dim=1) if name == "hybrid" else output

    network = Recording(answer)
    loss = recipe.objective(network, x_start.expand(20_000, 2), seeded_by(25))
    assert loss.item() == pytest.approx(0, abs=0.1 if name == "hybrid" else 1e-9)
    sigma, levels = network.sigma[:, 0], levels()[:-1]
    assert ks_2samp(sigma, levels).statistic < 0.015
    assert name != "vp" or sigma.min() > levels[-1]
    back = recipe.target.denoiser(answer)(network.y[:9], network.sigma[:9])
    torch.testing.assert_close(back, x_start.expand(9, 2))


def test_fit_follows_the_recipe_and_its_weights_come_back(tmp_path, monkeypatch):
    recipe = RECIPES["hybrid"]._replace(steps=1, options=(("lr", 0.01),))
    monkeypatch.setitem(RECIPES, "hybrid", recipe)
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    data = tiny("points")
    for steps, asked in ((1, {}), (2, {"steps": 2})):
        torch.manual_seed(4)
        expected, state = PointNetwork(outputs=4), torch.random.get_rng_state()
        train(expected, recipe.objective, data.data, steps=steps, lr=0.01, seed=4)
        network = fit("hybrid", data, **asked, seed=4)
        assert load("hybrid", data, **asked, seed=4) is None  # there is no file
        save("hybrid", network, trained_on("hybrid", data, **asked, seed=4))
        back = load("hybrid", data, **asked, seed=4)
        assert torch.equal(torch.random.get_rng_state(), state)
        for wanted, *same in zip(*(x.parameters() for x in (expected, network, back))):
            assert all(torch.equal(x, wanted) and not x.requires_grad for x in same)


@pytest.mark.parametrize("name", ["points", "hybrid", "pictures"])
def test_load_takes_the_committed_weights_and_they_denoise(name):
    """Points as well as the exact denoiser does, and fresh pictures far better."""
    data = dataset("pictures" if name == "pictures" else "points")
    recipe, network = RECIPES[name], load(name, data)
    x_start, sigma = data.draw(200, 3), torch.tensor(0.5)
    y = x_start + sigma * torch.randn(x_start.shape, generator=seeded_by(9))
    denoisers = recipe.target.denoiser(network), Exact(data.data)
    error, least = ((x_start - d(y, sigma)).square().mean() for d in denoisers)
    assert error < least * (0.05 if name == "pictures" else 1.02)
    # The pictures' network had a longer training than a recipe has.
    assert (load(name, data, steps=recipe.steps) is None) == (name == "pictures")


@pytest.mark.parametrize(
    "data, recipe, asked",
    [
        ({"picture": "0" * 64}, {}, {}),
        ({}, {"options": (("lr", 1.0),)}, {}),
        ({}, {}, {"steps": 7}),
        ({}, {}, {"seed": 7}),
    ],
)
def test_load_refuses_the_weights_of_something_else(data, recipe, asked, monkeypatch):
    monkeypatch.setitem(RECIPES, "points", RECIPES["points"]._replace(**recipe))
    assert load("points", replace(dataset("points"), **data), **asked) is None
