"""What networks are trained on, held against the same losses by hand; the training."""

import math
import pickle
import re
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.distributions import Normal, kl_divergence

from comparison import training
from comparison.measures import share_near
from comparison.networks import PointNetwork, UNet
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
from comparison.training import RECIPES, fit, load, save, train
from diffusion import posterior_mean_variance
from tests.common import double, seeded_by
from tests.laws import law, tiny, wavy, wavy_and_v


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


# Levels


def drawn(levels, count=50_000):
    """The levels of a batch of data, as columns of numbers."""
    x_start = torch.zeros(count, 3, dtype=torch.float64)
    state = torch.random.get_rng_state()
    signal, noise = levels(x_start, seeded_by(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert signal.shape == noise.shape == (count, 1)
    assert signal.dtype == noise.dtype == torch.float64
    return signal[:, 0], noise[:, 0]


def test_levels_are_uniform():
    noise = torch.arange(1000, dtype=torch.float64)
    signal, t = drawn(uniform_level(Process(2 * noise, noise)))
    assert torch.equal(signal, 2 * t)
    assert set(t.tolist()) == set(noise.tolist())
    assert kstest(t + double(len(t)).sigmoid(), "uniform", (0, 1000)).pvalue > 0.01


@pytest.mark.parametrize("first", [1e-3, 0.2])
def test_uniform_time_of_the_vp_sde(first):
    signal, noise = drawn(uniform_time(vp_sde, first=first))
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    # s of log signal = -0.05 s - 4.975 s^2.
    time = (-0.05 + (0.05**2 - 4 * 4.975 * signal.log()).sqrt()) / (2 * 4.975)
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
    "cosine": uniform_level(cosine(50)),
    "straight": uniform_time(straight),
    "geometric": uniform_level(geometric()),
    "ve": uniform_time(ve_sde),
    "lognormal": lognormal_ratio(0.0, 1.0),
}
at_levels = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


@at_levels
@pytest.mark.parametrize("target", [None, velocity, displacement])
def test_simple_is_the_mean_square(levels, target):
    x_start, network = double(4000, 2), Recording(wavy)
    loss = simple(levels, target)(network, x_start, seeded_by(1))
    wanted = eps = network.eps(x_start)
    assert kstest(eps.flatten(), "norm").pvalue > 0.01
    _, signal, noise = network.asked
    if target is velocity:
        scale = (signal**2 + noise**2).sqrt()
        wanted = (signal * eps - noise * x_start) / scale
    elif target is displacement:
        wanted = eps - x_start
    expected = (network.answer - wanted).square().sum() / 8000
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["geometric", "ve"])
def test_denoising_is_half_of_simple(name):
    x_start, network = double(300, 2), Recording(wavy)
    half = denoising(LEVELS[name])(network, x_start, seeded_by(4))
    whole = simple(LEVELS[name])(wavy, x_start, seeded_by(4))
    assert half.item() == pytest.approx(whole.item() / 2, rel=1e-9)
    # (33): lambda = sigma^2, the score of N(x_0, sigma^2 I) being (x_0 - x_t) / sigma^2.
    x_t, _, sigma = network.asked
    score, target = -network.answer / sigma, (x_start - x_t) / sigma**2
    expected = (sigma**2 * (score - target) ** 2).mean() / 2
    assert half.item() == pytest.approx(expected.item(), rel=1e-9)


def assert_least(loss, exact, others, sizes):
    """The loss is least at the exact predictor, among predictors that are a little off."""
    for other, size in product(others, sizes):
        assert loss(partial(other, size)) > loss(exact)


@at_levels
def test_no_predictor_is_better_than_the_exact_one(levels):
    data = double(10, 2, seed=5)
    exact, batch = Exact(data), data.repeat(20_000, 1)
    others = [
        lambda size, x, s, n: (1 + 2 * size) * exact(x, s, n),
        lambda size, x, s, n: exact(x, s, n) + size * (3 * x / torch.hypot(s, n)).sin(),
        lambda size, x, s, n: exact(x, s, n * (1 + 4 * size)),
    ]

    def loss(predictor):
        return simple(levels)(predictor, batch, seeded_by(6)).item()

    assert_least(loss, exact, others, (-0.05, 0.05))


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
@pytest.mark.parametrize("options", [{}, {"weight": 0.5}])
def test_hybrid_by_hand(process, options):
    """Its value; and its gradient, of the noise by L_simple alone, of v by the bound's."""
    x_start, outputs = double(60, 3), []

    def answer(*asked):
        outputs.append(wavy_and_v(*asked).requires_grad_())
        return outputs[0]

    network = Recording(answer)
    loss = hybrid(process, **options)(network, x_start, seeded_by(8))
    rows = set(network.asked[1][:, 0].tolist())
    assert rows == set(process.signal.tolist())
    weight = options.get("weight", 0.001)
    parts = outputs[0].chunk(2, dim=1)
    expected = hybrid_by_hand(network, x_start, *parts, process, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    pair = (torch.autograd.grad(one, outputs[0])[0] for one in (loss, expected))
    torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-9)


def test_hybrid_and_simple_draw_alike():
    x_start, networks = double(60, 2), (Recording(wavy), Recording(wavy_and_v))
    simple(uniform_level(TINY))(networks[0], x_start, seeded_by(12))
    hybrid(TINY)(networks[1], x_start, seeded_by(12))
    for one, other in zip(*(network.asked for network in networks)):
        assert torch.equal(one, other)


# Score matching


BLUR = 0.3


def test_the_exact_trace_is_that_of_the_jacobian():
    torch.manual_seed(13)
    mlp = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    network = Recording(lambda x_t, signal, noise: mlp(x_t) * noise.sin())
    x_start = double(20, 3)
    loss = score_matching(0.4, blur=0.7)(network, x_start, seeded_by(13))
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


def test_the_slices_are_those_of_the_jacobian():
    """v^T J v, with the generator's next numbers as v."""
    matrix, x_start = double(3, 3, seed=14), double(50, 3)

    def network(x_t, signal, noise):
        return -noise * x_t.sin() @ matrix

    objective = score_matching(0.4, blur=0.7, sliced=True)
    loss = objective(network, x_start, seeded_by(15))
    generator, terms = seeded_by(15), []
    z, v = (
        torch.randn(50, 3, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    for x, one in zip(x_start + 0.7 * z, v):
        jacobian = torch.func.jacrev(lambda x: x.sin() @ matrix)(x)
        square = (x.sin() @ matrix).square().sum()
        terms.append(one @ jacobian @ one + square / 2)
    assert loss.item() == pytest.approx(sum(terms).item() / 150, rel=1e-9)


@pytest.mark.parametrize("sliced", [False, True])
def test_score_matching_is_least_at_the_score_of_the_blurred_data(sliced):
    data = double(10, 2, seed=16)
    exact, batch = Exact(data), data.repeat(5000, 1)
    others = [
        lambda size, x, s, n: (1 + size) * exact(x, s, n),
        lambda size, x, s, n: exact(x, s, n * (1 + size)),
        lambda size, x, s, n: exact(x, s, n) + size * x,
    ]

    def loss(predictor):
        objective = score_matching(BLUR, blur=BLUR, sliced=sliced)
        return objective(predictor, batch, seeded_by(17)).item()

    assert_least(loss, exact, others, (-0.2, 0.2))


def test_score_matching_on_the_points_themselves_has_no_minimum():
    """The sharper the score that is peaked at the points, the less the loss, without end."""
    data, losses = double(10, 2, seed=19), []
    for width in (0.3, 0.1, 0.03, 0.01):
        # At next to no noise a predictor of the blurred law has that law's score.
        little = blurred(Exact(data), width)
        loss = score_matching(0.5, blur=0)(
            lambda x, signal, noise: little(x, signal, 1e-6 * noise) * 1e6,  # noqa: B023
            data,
            seeded_by(20),
        )
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(-1 / 0.01**2, rel=1e-3)


@pytest.mark.parametrize("sliced", [False, True])
def test_score_matching_reaches_the_weights(sliced):
    network, objective = PointNetwork(), score_matching(BLUR, blur=BLUR, sliced=sliced)
    x_start = double(8, 2).float()
    loss = objective(network, x_start, seeded_by(21))
    loss.backward()
    with torch.no_grad():  # as a caller may have it
        assert objective(network, x_start, seeded_by(21)) == loss
    assert all(p.grad.abs().sum() > 0 for p in list(network.parameters())[:-1])


# The loop


OBJECTIVE = simple(uniform_level(linear()))


def trained(objective=OBJECTIVE, **options):
    network = PointNetwork()
    options = {"steps": 4, "batch_size": 16, "lr": 0.01} | options
    losses = train(network, objective, law("points").data, **options)
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
    assert not torch.equal(losses, trained(seed=2)[1])


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


def path_of(slopes, **options):
    """A weight after each step, where the gradient of each step is given."""
    slopes = iter(slopes)
    watched = Watched(lambda network, *_: next(slopes) * network.weight.sum())
    network = nn.Linear(1, 1, bias=False)
    options = {"batch_size": 1, "average": 0.0} | options
    train(network, watched, torch.zeros(1, 1), **options)
    path = [weights["weight"].item() for weights in watched.weights]
    return [*path, network.weight.item()]


def test_the_rate_reaches_lr_and_falls_to_nothing():
    """Where the gradient is constant, a step of Adam's is the rate."""
    path = path_of([1.0] * 200, steps=200, lr=1e-3)
    # Weight decay takes part, and so does a momentum that changes.
    rates = [before - here for before, here in pairwise(path)]
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert 15 < rates.index(max(rates)) < 25 and rates[0] < 1e-4
    assert rates[110] == pytest.approx(5e-4, rel=0.05)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert all(a > b - 1e-7 for a, b in pairwise(rates[25:]))


def test_one_steep_gradient_does_not_stop_the_training():
    """Cut to norm 1, it leaves AdamW's second moment as small as the others do."""
    path = path_of([1e6] + [1.0] * 99, steps=100, lr=1e-2)
    assert path[-1] < path[0] - 0.3


@pytest.mark.parametrize("steps", [1, 2, 11])
def test_any_number_of_steps_trains(steps):
    weights, losses = trained(steps=steps)
    assert losses.shape == (steps,)
    start = PointNetwork().state_dict()
    assert any(not torch.equal(weights[key], start[key]) for key in start)


def test_a_batch_is_of_the_data_with_replacement():
    seen = []

    def objective(network, x_start, generator):
        seen.append(x_start.flatten())
        return network(x_start).square().mean()

    data = torch.arange(10.0)[:, None]
    train(nn.Linear(1, 1), objective, data, steps=50, batch_size=40)
    counts = torch.stack([batch.long().bincount(minlength=10) for batch in seen])
    assert counts.shape == (50, 10) and (counts.sum(dim=1) == 40).all()
    # Binomial: 2,000 draws, a tenth each.
    error = 5 * math.sqrt(2000 * 0.1 * 0.9)
    assert counts.sum(dim=0).tolist() == pytest.approx([200] * 10, abs=error)
    assert len(counts.unique(dim=0)) == 50


def test_a_network_learns_the_points():
    points, network = law("points"), PointNetwork()
    objective = simple(lognormal_ratio(-2.0, 2.0), velocity)
    losses = train(network, objective, points.data, steps=500, batch_size=512)
    assert losses[-50:].mean() < 0.87 * losses[:10].mean()
    predictor, exact = from_velocity(network.requires_grad_(False)), Exact(points.data)
    batch, start = points.data.repeat(10, 1), torch.randn(1000, 2)
    x = last(ddim(predictor, respaced(linear(), 50), start))
    assert share_near(x, points.data, points.pixel) > 0.5
    learned, least = (
        OBJECTIVE(of, batch, seeded_by(22)).item() for of in (predictor, exact)
    )
    assert least < learned < 1.1 * least


# Recipes


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
    if "s from" in words:
        assert ratios.min().item() == pytest.approx(levels[0].item(), abs=0.1)


@pytest.mark.parametrize("name", ["points", "pictures", "edm", "rectified", "hybrid"])
def test_a_recipe_makes_a_predictor_of_what_it_trains(name):
    """The exact answer to what is asked for has the least loss, and is led back to eps."""
    data = double(1, 2)
    exact, recipe = Exact(data), RECIPES[name]

    def answer(x_t, signal, noise):
        eps = exact(x_t, signal, noise)
        if name == "hybrid":
            return torch.cat([eps, torch.zeros_like(eps)], dim=1)
        target = displacement if name == "rectified" else velocity
        return target(data, eps, signal, noise)

    level = torch.tensor([0.6, 0.8], dtype=torch.float64)
    x_t = double(5, 2, seed=1)
    torch.testing.assert_close(
        recipe.predictor(answer)(x_t, *level), exact(x_t, *level)
    )
    if name != "hybrid":
        loss = recipe.loss()(answer, data.expand(50, 2), seeded_by(1))
        assert loss.item() == pytest.approx(0, abs=1e-18)


def test_a_recipe_is_followed(monkeypatch):
    """Its network, rate, batch and steps, unless others are asked for."""
    given = []

    def noted(network, objective, data, **options):
        given.append((type(network), len(data), options))

    monkeypatch.setattr(training, "train", noted)
    fit("pictures", tiny("pictures"), seed=3)
    fit("points", tiny("points"), steps=5)
    options = {"steps": 5_400, "seed": 3}
    options |= {"batch_size": 16, "lr": 3e-3, "average": 0.998}
    assert given[0] == (UNet, 20, options)
    assert given[1] == (PointNetwork, 11, {"steps": 5, "seed": 0})
    alike = [RECIPES[f"pictures{kind}"][4:7] for kind in ("", "-linear", "-cosine")]
    assert alike[0] == alike[1] == alike[2]


# Weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", ["hybrid", "pictures"])
def test_weights_come_back(recipe, folder):
    those = tiny("pictures" if recipe == "pictures" else "points")
    network = fit(recipe, those, steps=2, seed=4)
    save(recipe, network, those, steps=2, seed=4)
    back = load(recipe, those, steps=2, seed=4)
    pairs = zip(network.state_dict().values(), back.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    for one in (network, back):
        assert not any(p.requires_grad for p in one.parameters()) and not one.training


@pytest.mark.parametrize(
    "change", ["picture", "steps", "seed", "objective", "process", "lr"]
)
def test_weights_of_something_else_are_not_used(folder, monkeypatch, change):
    those, options = law("points"), {"steps": 3, "seed": 4}
    assert load("points", those) is None  # there is no file
    save("points", PointNetwork(), those, **options)
    assert load("points", those, **options) is not None
    if change == "picture":
        those = those._replace(picture="0" * 64)
    elif change in options:
        options[change] += 1
    else:
        another = {"options": {"lr": 1.0}} if change == "lr" else {change: "another"}
        monkeypatch.setitem(RECIPES, "points", RECIPES["points"]._replace(**another))
    assert load("points", those, **options) is None


def test_the_weights_at_hand_had_a_longer_training(folder):
    """They are taken for what they are, and a training is shorter."""
    those, recipe = tiny("pictures"), RECIPES["pictures"]
    save("pictures", UNet(), those)
    for steps, fits in ((None, True), (recipe.committed, True), (recipe.steps, False)):
        assert (load("pictures", those, steps=steps) is not None) == fits
    assert recipe.committed == 30_000 and recipe.steps == 5_400


@pytest.mark.xdist_group("pictures")
def test_committed_weights_are_those_of_the_recipes():
    files = sorted(training.WEIGHTS.iterdir())
    assert [file.name for file in files] == ["hybrid.pt", "pictures.pt", "points.pt"]
    assert sum(file.stat().st_size for file in files) < 8e6
    for file in files:
        those = law("pictures" if file.stem == "pictures" else "points")
        assert load(file.stem, those) is not None


class Evil:
    def __reduce__(self):
        return print, ("evil",)


@pytest.mark.parametrize("kind", ["noise", "empty", "cut", "foreign", "evil", "shapes"])
def test_damaged_weights_are_refused(folder, capsys, kind):
    save("points", PointNetwork(), law("points"))
    file = folder / "points.pt"
    content = file.read_bytes()
    match kind:
        case "noise":
            file.write_bytes(bytes(range(256)) * 9)
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "foreign":
            torch.save({"layers": torch.zeros(3)}, file)
        case "evil":
            file.write_bytes(pickle.dumps(Evil(), protocol=2))
        case "shapes":
            save("points", PointNetwork(outputs=4), law("points"))
    with pytest.raises(ValueError, match=r"points\.pt holds no weights for points: ."):
        load("points", law("points"))
    assert capsys.readouterr().out == ""
