"""What networks are trained on, held against the same losses by hand, and the training."""

import math
import re
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.distributions import Normal, kl_divergence

from comparison.laws import points
from comparison.measures import share_near
from comparison.networks import PointNetwork, unit
from comparison.objectives import (
    denoising,
    hybrid,
    lognormal_ratio,
    score_matching,
    simple,
    uniform_level,
    uniform_time,
)
from comparison.predictors import Exact, blurred, displacement, from_velocity, velocity
from comparison.processes import (
    Process,
    cosine,
    geometric,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
)
from comparison.samplers import ddim, last
from comparison.training import RECIPES, train
from diffusion import posterior_mean_variance
from tests.common import seeded_by


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded_by(seed))


class Recording:
    """A network that keeps what it was asked and what it answered."""

    def __init__(self, network):
        self.network = network

    def __call__(self, x_t, signal, noise):
        self.asked = x_t, signal, noise
        self.answer = self.network(x_t, signal, noise)
        return self.answer

    def eps(self, x_start):
        x_t, signal, noise = self.asked
        return (x_t - signal * x_start) / noise


def wavy(x_t, signal, noise):
    """A network of nothing in particular."""
    return signal * x_t.sin() + 0.3 * noise * x_t.flip(1)


def wavy_and_v(x_t, signal, noise):
    return torch.cat([wavy(x_t, signal, noise), 0.5 + x_t.cos()], dim=1)


# Levels


def drawn(levels, count=50_000, seed=0):
    """The levels of a batch of data, as columns of numbers."""
    x_start = torch.zeros(count, 3, dtype=torch.float64)
    state = torch.random.get_rng_state()
    signal, noise = levels(x_start, seeded_by(seed))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert signal.shape == noise.shape == (count, 1)
    assert signal.dtype == noise.dtype == torch.float64
    return signal[:, 0], noise[:, 0]


def test_levels_are_uniform():
    steps, count = 1000, 50_000
    noise = torch.arange(steps, dtype=torch.float64)
    signal, t = drawn(uniform_level(Process(2 * noise, noise)), count)
    assert torch.equal(signal, 2 * t)
    share = torch.bincount(t.long(), minlength=steps).cumsum(dim=0) / count
    # Kolmogorov-Smirnov, at the level of 1 in 1,000.
    assert (share - (noise + 1) / steps).abs().max() < 1.95 / math.sqrt(count)
    _, noise = drawn(uniform_level(linear(10)), 5000)
    assert set(noise.tolist()) == set(linear(10).noise.tolist())


def vp_time(signal):
    """s of log signal = -0.05 s - 4.975 s^2."""
    return (-0.05 + (0.05**2 - 4 * 4.975 * signal.log()).sqrt()) / (2 * 4.975)


@pytest.mark.parametrize("first", [1e-3, 0.2])
def test_uniform_time_of_the_vp_sde(first):
    signal, noise = drawn(uniform_time(vp_sde, first=first))
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    time = vp_time(signal)
    assert first - 1e-9 < time.min() < first + 1e-3 and 0.999 < time.max() <= 1
    assert kstest(time, "uniform", (first, 1 - first)).pvalue > 0.01


def test_uniform_time_of_the_ve_sde():
    signal, noise = drawn(uniform_time(ve_sde))
    assert (signal == 1).all()
    time = (noise / 0.01).log() / math.log(5000)
    assert kstest(time, "uniform").pvalue > 0.01


def test_lognormal_ratio():
    signal, noise = drawn(lognormal_ratio(0.7, 1.7))
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    assert kstest((noise / signal).log(), "norm", (0.7, 1.7)).pvalue > 0.01


# The losses


LEVELS = {
    "linear": uniform_level(linear(50)),
    "cosine": uniform_level(cosine(50)),
    "straight": uniform_time(straight),
    "geometric": uniform_level(geometric()),
    "vp": uniform_time(vp_sde, first=1e-3),
    "ve": uniform_time(ve_sde),
    "lognormal": lognormal_ratio(0.0, 1.0),
}


@pytest.mark.parametrize("name", LEVELS)
def test_simple_is_the_mean_square(name):
    x_start = double(4000, 2)
    network = Recording(wavy)
    loss = simple(LEVELS[name])(network, x_start, seeded_by(1))
    eps = network.eps(x_start)
    assert kstest(eps.flatten(), "norm").pvalue > 0.01
    pairs = zip(eps.flatten().tolist(), network.answer.flatten().tolist())
    assert loss.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 8000)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("kind", [velocity, displacement])
def test_the_target_is_what_it_says(name, kind):
    x_start = double(4000, 2)
    network = Recording(wavy)
    loss = simple(LEVELS[name], kind)(network, x_start, seeded_by(2))
    _, signal, noise = network.asked
    target = network.eps(x_start) - x_start
    if kind is velocity:
        scale = (signal**2 + noise**2).sqrt()
        target = (signal * network.eps(x_start) - noise * x_start) / scale
    expected = (network.answer - target).square().mean()
    assert loss.item() == pytest.approx(expected.item())


def test_velocity_weighs_the_noise_by_the_signal():
    """eps - eps_theta = signal (velocity - velocity_theta), where signal^2 + noise^2 = 1."""
    process, x_start = cosine(50).rows(torch.tensor([30])), double(500, 2)
    levels = uniform_level(process)
    whole = simple(levels, velocity)(wavy, x_start, seeded_by(3))
    eps = simple(levels)(from_velocity(wavy), x_start, seeded_by(3))
    signal2 = process.signal.item() ** 2
    assert 0.2 < signal2 < 0.8
    assert eps.item() == pytest.approx(signal2 * whole.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["geometric", "ve"])
def test_denoising_is_half_of_simple(name):
    x_start = double(300, 2)
    network = Recording(wavy)
    half = denoising(LEVELS[name])(network, x_start, seeded_by(4))
    whole = simple(LEVELS[name])(wavy, x_start, seeded_by(4))
    assert half.item() == pytest.approx(whole.item() / 2, rel=1e-9)
    # (33): lambda = sigma^2, the score of N(x_0, sigma^2 I) being (x_0 - x_t) / sigma^2.
    x_t, _, sigma = network.asked
    score, target = -network.answer / sigma, (x_start - x_t) / sigma**2
    expected = (sigma**2 * (score - target) ** 2).mean() / 2
    assert half.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", LEVELS)
def test_no_predictor_is_better_than_the_exact_one(name):
    data = double(10, 2, seed=5)
    exact, batch = Exact(data), data.repeat(20_000, 1)

    def loss(predictor):
        return simple(LEVELS[name])(predictor, batch, seeded_by(6)).item()

    least = loss(exact)
    others = [
        lambda size, x, s, n: (1 + 2 * size) * exact(x, s, n),
        lambda size, x, s, n: exact(x, s, n) + size,
        lambda size, x, s, n: exact(x, s, n) + size * (3 * x / torch.hypot(s, n)).sin(),
        lambda size, x, s, n: exact(x, s, n * (1 + 4 * size)),
        lambda size, x, s, n: exact(x + 2 * size * n, s, n),
    ]
    for other, size in product(others, (-0.05, 0.05)):
        assert loss(partial(other, size)) > least


def test_the_loss_of_the_exact_predictor_of_one_datum_is_nothing():
    datum = double(1, 2)
    loss = simple(LEVELS["linear"])(Exact(datum), datum.expand(50, 2), seeded_by(7))
    assert loss.item() == pytest.approx(0, abs=1e-20)


# L_hybrid


TINY = respaced(linear(), 4)


def hybrid_by_hand(network, x_start, output, v, process, weight):
    """From what the network was asked: the row of each state, then its term by PyTorch."""
    x_t, signal, _ = network.asked
    alphas, alpha_bars = schedule = process.schedule()
    terms = []
    for i in range(len(x_start)):
        t = (process.signal - signal[i]).abs().argmin().item()
        abar, alpha = alpha_bars[t], alphas[t]
        mean_theta = x_t[i] - (1 - alpha) / (1 - abar).sqrt() * output[i].detach()
        mean_theta = mean_theta / alpha.sqrt()
        # beta~_1 = 0 is replaced by beta~_2.
        at_least_1 = max(t, 1)
        previous = alpha_bars[at_least_1 - 1]
        small = (1 - alphas[at_least_1]) * (1 - previous) / (1 - alpha_bars[at_least_1])
        sigma = ((1 - alpha) ** v[i] * small ** (1 - v[i])).sqrt()
        model = Normal(mean_theta, sigma)
        if t == 0:
            terms.append(-model.log_prob(x_start[i]).sum())
        else:
            mean, small = posterior_mean_variance(x_start[i], x_t[i], t, *schedule)
            terms.append(kl_divergence(Normal(mean, small.sqrt()), model).sum())
    mean_square = (output - network.eps(x_start)).square().mean()
    return mean_square + weight * process.steps * sum(terms) / x_start.numel()


@pytest.mark.parametrize("process", [TINY, cosine(7)])
@pytest.mark.parametrize("weight", [None, 0.5])
def test_hybrid_by_hand(process, weight):
    network, x_start = Recording(wavy_and_v), double(60, 3)
    options = {} if weight is None else {"weight": weight}
    loss = hybrid(process, **options)(network, x_start, seeded_by(8))
    rows = set(network.asked[1][:, 0].tolist())
    assert rows == set(process.signal.tolist())
    answer = network.answer.chunk(2, dim=1)
    weight = 0.001 if weight is None else weight
    expected = hybrid_by_hand(network, x_start, *answer, process, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_hybrid_trains_the_noise_by_l_simple_and_v_by_the_bound():
    x_start = double(60, 2)
    outputs = double(60, 4, seed=9).requires_grad_()
    network = Recording(lambda *_: outputs)
    loss = hybrid(TINY, weight=2.0)(network, x_start, seeded_by(10))
    (gradient,) = torch.autograd.grad(loss, outputs)
    eps, v = gradient.chunk(2, dim=1)
    off = outputs.detach()[:, :2] - network.eps(x_start)
    torch.testing.assert_close(eps, 2 * off / 120)

    by_hand = hybrid_by_hand(
        network, x_start, *outputs.chunk(2, dim=1), TINY, weight=2.0
    )
    (expected,) = torch.autograd.grad(by_hand, outputs)
    torch.testing.assert_close(v, expected[:, 2:], rtol=1e-7, atol=1e-9)
    assert v.abs().min() > 0


def test_hybrid_and_simple_draw_alike():
    x_start = double(60, 2)
    scales = double(2, seed=11).requires_grad_()

    def one(x_t, signal, noise):
        return scales[0] * x_t

    def two(x_t, signal, noise):
        return torch.cat([scales[0] * x_t, scales[1] * x_t], dim=1)

    losses = [
        simple(uniform_level(TINY))(one, x_start, seeded_by(12)),
        hybrid(TINY)(two, x_start, seeded_by(12)),
    ]
    a, b = (torch.autograd.grad(loss, scales)[0] for loss in losses)
    assert a[0].item() == pytest.approx(b[0].item(), rel=1e-9)
    assert a[1] == 0 != b[1]


# Score matching


BLUR = 0.3


def test_the_exact_trace_is_that_of_the_jacobian():
    generator = seeded_by(13)
    torch.manual_seed(13)
    mlp = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x_start = double(20, 3)
    network = Recording(lambda x_t, signal, noise: mlp(x_t) * noise.sin())
    loss = score_matching(0.4, blur=0.7)(network, x_start, generator)
    x, signal, noise = network.asked
    assert signal == 1 and noise.item() == pytest.approx(0.4)
    assert kstest(((x - x_start) / 0.7).flatten().detach(), "norm").pvalue > 0.01

    def score(x):
        return -mlp(x) * math.sin(0.4) / 0.4

    terms = []
    for one in x.detach():
        trace = torch.func.jacrev(score)(one).trace()
        terms.append((trace + score(one).square().sum() / 2) / 3)
    assert loss.item() == pytest.approx((sum(terms) / 20).item(), rel=1e-9)


def test_the_slices_have_the_trace_as_their_mean():
    """v^T J v has the variance 2 norm(J)^2, J being the symmetric part."""
    matrix, n = double(3, 3, seed=14), 200_000
    x_start = double(1, 3).expand(n, 3)

    def network(x_t, signal, noise):
        return -noise * x_t.sin() @ matrix

    exact = score_matching(0.4, blur=0)(network, x_start, seeded_by(15)).item()
    sliced = score_matching(0.4, blur=0, sliced=True)(
        network, x_start, seeded_by(15)
    ).item()
    jacobian = torch.func.jacrev(lambda x: x.sin() @ matrix)(x_start[0])
    score = x_start[0].sin() @ matrix
    expected = (jacobian.trace() + score.square().sum() / 2).item() / 3
    assert exact == pytest.approx(expected, rel=1e-9)
    symmetric = (jacobian + jacobian.T) / 2
    error = 5 * math.sqrt(2 * symmetric.square().sum().item() / n) / 3
    assert 0 < abs(sliced - exact) < error


def test_the_slices_are_normal_vectors():
    """At 0, where the score is x, D times the loss is norm(v)^2: chi-squared."""
    objective = score_matching(0.4, blur=0, sliced=True)
    losses = [
        objective(
            lambda x_t, signal, noise: -noise * x_t, double(1, 3) * 0, seeded_by(k)
        )
        for k in range(500)
    ]
    squares = 3 * torch.stack(losses).detach()
    assert kstest(squares, "chi2", (3,)).pvalue > 0.01


@pytest.mark.parametrize("sliced", [False, True])
def test_score_matching_is_least_at_the_score_of_the_blurred_data(sliced):
    data = double(10, 2, seed=16)
    exact, batch = Exact(data), data.repeat(5000, 1)

    def loss(predictor):
        objective = score_matching(BLUR, blur=BLUR, sliced=sliced)
        return objective(predictor, batch, seeded_by(17)).item()

    least = loss(exact)
    others = [
        lambda size, x, s, n: (1 + size) * exact(x, s, n),
        lambda size, x, s, n: exact(x, s, n) + size,
        lambda size, x, s, n: exact(x, s, n * (1 + size)),
        lambda size, x, s, n: exact(x, s, n) + size * x,
    ]
    for other, size in product(others, (-0.2, 0.2)):
        assert loss(partial(other, size)) > least
    # At the least, by parts, the loss is -1/2 E norm(score)^2.
    x = batch + BLUR * double(len(batch), 2, seed=18)
    eps = exact(x, torch.ones(()).double(), torch.tensor(BLUR).double())
    expected = -(eps / BLUR).square().sum(dim=1).mean().item() / 4
    assert least == pytest.approx(expected, rel=0.03)


def test_score_matching_on_the_points_themselves_has_no_minimum():
    """The sharper the score that is peaked at the points, the less the loss, without end."""
    data = double(10, 2, seed=19)
    losses = []
    for width in (0.3, 0.1, 0.03, 0.01):
        peaked = partial(with_score_of, blurred(Exact(data), width))
        loss = score_matching(0.5, blur=0)(peaked, data, seeded_by(20))
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(-1 / 0.01**2, rel=1e-3)


def with_score_of(predictor, x_t, signal, noise):
    """Predict what gives the score that another has at next to no noise."""
    little = 1e-6 * noise
    return noise * predictor(x_t, signal, little) / little


@pytest.mark.parametrize("sliced", [False, True])
def test_score_matching_reaches_the_weights(sliced):
    network = PointNetwork()
    loss = score_matching(BLUR, blur=BLUR, sliced=sliced)(
        network, double(8, 2).float(), seeded_by(21)
    )
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in list(network.parameters())[:-1])


# The network


@pytest.mark.parametrize("process", [linear(), ve_sde()])
def test_states_are_scaled_to_unit_variance(process):
    x_0, eps = double(2, 20_000, 2, seed=24)
    for t in (0, process.steps // 2, process.steps - 1):
        signal, noise = process.at(t, x_0)
        x, level = unit(signal * x_0 + noise * eps, signal, noise)
        assert x.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 40_000))
        assert level.shape == (20_000, 1) and (level == level[0]).all()
        assert level[0].item() == pytest.approx(math.log(noise / signal))


def test_network_sees_the_scaled_state_and_the_ratio_alone():
    network, x_t = PointNetwork().double(), double(4, 2)
    pairs = [[1.0, 0.01], [0.6, 0.8], [1.0, 5.0], [0.1, 0.995]]
    signal, noise = torch.tensor(pairs, dtype=torch.float64).T[..., None]
    output = network(x_t, signal, noise)
    assert output.shape == (4, 2)
    for scale in (0.2, 7.0, 1 / (signal**2 + noise**2).sqrt()):
        same = network(scale * x_t, scale * signal, scale * noise)
        torch.testing.assert_close(same, output, rtol=1e-9, atol=1e-9)
    for other in (
        network(x_t + 0.1, signal, noise),
        network(x_t, signal, 1.2 * noise),
        network(x_t, 1.2 * signal, noise),
    ):
        assert ((other - output).abs().amax(dim=1) > 1e-6).all()


@pytest.mark.parametrize("outputs", [2, 4])
def test_network_takes_one_level_or_one_a_row(outputs):
    network, x_t = PointNetwork(outputs), torch.randn(3, 2)
    signal, noise = torch.tensor(0.6), torch.tensor(0.8)
    output = network(x_t, signal, noise)
    assert output.shape == (3, outputs)
    rows = network(x_t, signal.expand(3, 1), noise.expand(3, 1))
    torch.testing.assert_close(rows, output)
    for k in range(3):
        alone = network(x_t[k : k + 1], signal, noise)
        torch.testing.assert_close(alone, output[k : k + 1], rtol=1e-4, atol=1e-5)


def test_the_seed_makes_the_network():
    state = torch.random.get_rng_state()
    one, same, other = (PointNetwork(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(
        torch.equal(one[key], other[key]) for key in one if "level" not in key
    )
    torch.manual_seed(5)
    again = PointNetwork(seed=3).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)


# Training


OBJECTIVE = simple(uniform_level(linear()))


def trained(objective=OBJECTIVE, **options):
    network = PointNetwork()
    options = {"steps": 4, "batch_size": 16, "lr": 0.01} | options
    losses = train(network, objective, points().data, **options)
    return network.state_dict(), losses


def test_the_seed_makes_the_training():
    state = torch.random.get_rng_state()
    one, losses = trained(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert losses.shape == (4,) and losses.isfinite().all()
    torch.manual_seed(6)
    again, same_losses = trained(seed=1)
    assert torch.equal(losses, same_losses)
    assert all(torch.equal(one[key], again[key]) for key in one)
    other, other_losses = trained(seed=2)
    assert not torch.equal(losses, other_losses)
    assert not all(torch.equal(one[key], other[key]) for key in one)


class Watched:
    """An objective that keeps the weights of each step, and what it made of them."""

    def __init__(self, objective):
        self.objective, self.weights, self.losses = objective, [], []

    def __call__(self, network, x_start, generator):
        now = {key: value.clone() for key, value in network.state_dict().items()}
        loss = self.objective(network, x_start, generator)
        self.weights.append(now)
        self.losses.append(loss.item())
        return loss


@pytest.mark.parametrize("average", [0.5, 0.9])
def test_training_ends_with_the_average_of_the_weights(average):
    watched = Watched(OBJECTIVE)
    last_weights, losses = trained(watched, average=0.0, steps=6)
    assert losses.tolist() == pytest.approx(watched.losses)
    averages, same_losses = trained(OBJECTIVE, average=average, steps=6)
    assert torch.equal(losses, same_losses)
    _, expected, *others = [*watched.weights, last_weights]
    for weights in others:
        expected = {
            key: average * expected[key] + (1 - average) * weights[key]
            for key in weights
        }
    for key, value in averages.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)
    off = (averages[key] - last_weights[key] for key in averages)
    assert max(x.abs().max() for x in off) > 1e-3


def test_the_rate_reaches_lr_and_falls_to_nothing():
    """Where the gradient is constant, a step of Adam's is the rate."""
    watched = Watched(lambda network, *_: network.weight.sum())
    network = nn.Linear(1, 1, bias=False)
    options = {"steps": 200, "lr": 1e-3, "batch_size": 1, "average": 0.0}
    train(network, watched, torch.zeros(1, 1), **options)
    path = [weights["weight"].item() for weights in watched.weights]
    rates = [before - here for before, here in pairwise([*path, network.weight.item()])]
    # Weight decay takes part, and so does a momentum that changes.
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates.index(max(rates)) < 40
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    assert all(a > b - 1e-7 for a, b in pairwise(rates[40:]))


def test_one_steep_gradient_does_not_stop_the_training():
    """Cut to norm 1, it leaves AdamW's second moment as small as the others do."""
    slopes = iter([1e6] + [1.0] * 99)
    network = nn.Linear(1, 1, bias=False)
    start = network.weight.item()
    options = {"steps": 100, "lr": 1e-2, "batch_size": 1, "average": 0.0}
    train(
        network,
        lambda network, *_: next(slopes) * network.weight.sum(),
        torch.zeros(1, 1),
        **options,
    )
    assert network.weight.item() < start - 0.3


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_the_levels_it_says(name):
    """Their ratios, by the words that its file holds."""
    recipe, seen = RECIPES[name], []

    def network(x_t, signal, noise):
        seen.append((noise / signal).log().flatten())
        return torch.zeros(len(x_t), 4 if name == "hybrid" else 2, requires_grad=True)

    recipe.loss()(network, torch.zeros(20_000, 2), seeded_by(25))
    (ratios,) = seen
    words = recipe.process
    if "from N(" in words:
        mean, deviation = map(float, re.findall(r"-?[\d.]+(?=[,^])", words)[:2])
        assert kstest(ratios, "norm", (mean, deviation)).pvalue > 0.01
        return
    process = {
        "linear, 1000": linear(),
        "linear, 50 o": respaced(linear(), 50),
        "cosine, 1000": cosine(),
        "geometric, 1": geometric(),
        "VP SDE, s fr": vp_sde(100_000),
        "VE SDE, 0.01": ve_sde(100_000),
        "straight": straight(100_000),
    }[words[:12]]
    levels = (process.noise / process.signal).log().float()
    if len(levels) <= 1000:
        assert (ratios[:, None] - levels).abs().amin(dim=1).max() < 1e-4
        assert len(ratios.unique()) > 0.99 * len(levels)
    if len(levels) >= 1000:
        shares = torch.tensor([0.1, 0.5, 0.9])
        quantiles = ratios.quantile(shares), levels.quantile(shares)
        torch.testing.assert_close(*quantiles, rtol=0, atol=0.15)


@pytest.mark.parametrize("steps", [1, 2, 10, 11])
def test_any_number_of_steps_trains(steps):
    weights, losses = trained(steps=steps)
    assert losses.shape == (steps,)
    start = PointNetwork().state_dict()
    moved = max((weights[key] - start[key]).abs().max() for key in start)
    assert moved > (1e-3 if steps > 1 else 0)


def test_a_batch_is_of_the_data_with_replacement():
    seen = []

    def objective(network, x_start, generator):
        seen.append(x_start.flatten())
        return network(x_start).square().mean()

    data = torch.arange(10.0)[:, None]
    train(nn.Linear(1, 1), objective, data, steps=50, batch_size=40)
    counts = torch.stack([batch.long().bincount(minlength=10) for batch in seen])
    assert counts.shape == (50, 10) and (counts.sum(dim=1) == 40).all()
    assert torch.stack(seen).unique().tolist() == data.flatten().tolist()
    # Binomial: 2,000 draws, a tenth each.
    error = 5 * math.sqrt(2000 * 0.1 * 0.9)
    assert counts.sum(dim=0).tolist() == pytest.approx([200] * 10, abs=error)
    assert len(counts.unique(dim=0)) == 50


def test_a_network_learns_the_points():
    law, network = points(), PointNetwork()
    objective = simple(lognormal_ratio(-2.0, 2.0), velocity)
    losses = train(network, objective, law.data, steps=500, batch_size=512)
    assert losses[-50:].mean() < 0.87 * losses[:10].mean()
    network.requires_grad_(False)
    exact, predictor = Exact(law.data), from_velocity(network)
    untrained = from_velocity(PointNetwork().requires_grad_(False))
    batch = law.data.repeat(10, 1)

    def loss(predictor):
        return OBJECTIVE(predictor, batch, seeded_by(22)).item()

    start = torch.randn(1000, 2, generator=seeded_by(23))
    x = last(ddim(predictor, respaced(linear(), 50), start))
    near = [share_near(y / law.pixel, law.data / law.pixel) for y in (x, start)]
    assert loss(exact) < loss(predictor) < 1.1 * loss(exact) < loss(untrained)
    assert near[1] == pytest.approx(0.12, abs=0.03) and near[0] > 0.5
