"""The effect of each choice: the tables of docs/findings.md (`python -m tests.ablation`).

Every run learns homer.png; figures are means over seeds, with the range of the RMSE.
"""

import argparse

import torch
from torch import nn
from tqdm import tqdm

from diffusion import (
    PredictNoise,
    PredictStart,
    at,
    noise_schedule,
    posterior_tables,
    q_sample,
    sample,
    vb_terms,
)
from main import build_model, train
from tests.common import HOMER, seeded_by
from utils import image_to_vector

PUBLISHED = {"beta_end": 0.02, "hidden": None, "batch": 1, "variance": "beta"}
NEAR_NOISE = PUBLISHED | {"beta_end": 0.6}
FIXED = NEAR_NOISE | {"hidden": 256, "batch": 8}
WIDE = FIXED | {"hidden": None}
POSTERIOR = {"variance": "posterior"}
NETWORKS = ("mean", "start", "noise")
# Name, what the network predicts, what differs from the default, settings.
ROWS = [
    ("`--as-published`", "mean", {"embedding", "chain", "rate"}, PUBLISHED),
    ("`--as-published` plus decay", "mean", {"embedding", "chain"}, PUBLISHED),
    ("`--as-published` plus step and embedding", "mean", {"rate"}, PUBLISHED),
    ("default", "mean", set(), PUBLISHED),
    ("default, published embedding", "mean", {"embedding"}, PUBLISHED),
    ("default, cosines in row 0", "mean", {"embedding", "cosines"}, PUBLISHED),
    ("`start`", "start", set(), PUBLISHED),
    ("`noise`", "noise", set(), PUBLISHED),
    ("`mean`", "mean", set(), FIXED),
    ("`start`", "start", set(), FIXED),
    ("`start`, posterior variance", "start", set(), FIXED | POSTERIOR),
    ("`start`, default width and batch", "start", set(), NEAR_NOISE),
    ("`noise`", "noise", set(), FIXED),
    ("`mean`", "mean", set(), WIDE),
    ("`noise`", "noise", set(), WIDE),
    ("`noise`, trained on L_simple", "noise", {"L_simple"}, WIDE),
    ("`noise`, trained on the bound", "noise", {"bound"}, WIDE),
    ("`mean` + x_t", "mean", {"path"}, FIXED),
    ("`mean` + x_t, trained on the bound", "mean", {"path", "bound"}, FIXED),
    ("`noise` + x_t", "noise", {"path"}, FIXED),
    ("`noise` + x_t, trained on L_simple", "noise", {"path", "L_simple"}, FIXED),
    ("`noise` + x_t, trained on the bound", "noise", {"path", "bound"}, FIXED),
    ("`mean` + x_t, best constant for each t", "mean + x_t", set(), FIXED),
    ("`noise` + x_t, best constant for each t", "noise + x_t", set(), FIXED),
] + [
    (f"{name}, no network", predict, set(), settings | variance)
    for settings in (PUBLISHED, FIXED)
    for name, predict, variance in (
        ("epsilon = 0", "nothing", {}),
        ("best mean that ignores x_t", "constant", {}),
        ("exact posterior", "exact", {}),
        ("exact posterior, posterior variance", "exact", POSTERIOR),
    )
]


def noise_weights(alphas, alpha_bars):
    """beta_t / sqrt(alpha_t (1 - abar_t)): what an error of the noise is in the mean."""
    return (1 - alphas) / (alphas * (1 - alpha_bars)).sqrt()


class Reweighted(nn.Module):
    """A model whose error is divided by a scale for each t, so that `train` weights it."""

    def __init__(self, model, exact, scales):
        super().__init__()
        self.model, self.exact, self.scales = model, exact, scales

    def forward(self, x_t, t):
        exact = self.exact(x_t, t)
        return exact + (self.model(x_t, t) - exact) / at(self.scales, t, x_t)


class WithPath(nn.Module):
    """A network with a skip connection: x_t is added to its output."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_t, t):
        return self.network(x_t, t) + x_t


def without_network(predict, x_start, schedule):
    """Return a model that knows x_0: the exact posterior, or a reference."""
    if predict == "exact":
        return PredictStart(lambda x_t, t: x_start, *schedule)
    if predict == "nothing":
        return PredictNoise(lambda x_t, t: torch.zeros_like(x_t), *schedule)
    # The best constants: of the mean of x_{t-1} given nothing, or x_t, and of the noise.
    signal = schedule[1].sqrt().float()
    before = torch.cat([torch.ones(1), signal[:-1]])
    if predict == "noise + x_t":
        return PredictNoise(lambda x_t, t: x_t - signal[t] * x_start, *schedule)
    if predict == "mean + x_t":
        return lambda x_t, t: x_t + (before - signal)[t] * x_start
    return lambda x_t, t: before[t] * x_start


def trained(x_start, predict, otherwise, settings, schedule, seed):
    """Return the trained model of one run."""
    model = build_model(
        predict,
        len(x_start),
        *schedule,
        hidden_dim=settings["hidden"],
        published_embedding="embedding" in otherwise,
        seed=seed,
    )
    if "cosines" in otherwise:  # cos(0) = 1, as in every row but this
        model.emb[0, 1::2] = 1
    if "path" in otherwise and predict == "mean":
        model = WithPath(model)
    elif "path" in otherwise:
        model.network = WithPath(model.network)
    # The bound's weight is 1 / 2 sigma_t^2, at the published variance: sigma_t^2 = beta_t.
    weights = {"L_simple": noise_weights(*schedule), "bound": (1 - schedule[0]).sqrt()}
    exact, learner = without_network("exact", x_start, schedule), model
    for loss in otherwise & {*weights}:
        learner = Reweighted(model, exact, weights[loss])
    train(
        learner,
        x_start,
        *schedule,
        batch_size=settings["batch"],
        decay="rate" not in otherwise,
        first_index=int("chain" in otherwise),
        seed=seed + 1,
    )
    return model


def run(x_start, predict, otherwise, settings, seed):
    """Return the model of one run, and its mean_kl, rmse of x_1, rmse."""
    schedule = noise_schedule(beta_end=settings["beta_end"])
    first_index = int("chain" in otherwise)
    if predict in NETWORKS:
        model = trained(x_start, predict, otherwise, settings, schedule, seed)
    else:
        model = without_network(predict, x_start, schedule)
    options = {"variance": settings["variance"]}
    _, mean_kl = vb_terms(model, x_start, *schedule, seed=seed + 3, **options)
    options |= {"first_index": first_index, "seed": seed + 2}
    chain = sample(model, schedule[0], len(x_start), **options)
    # As published the last state is x_1, else the last but one.
    rmse = (chain - x_start).square().mean(dim=1).sqrt()
    return model, [x.item() for x in (mean_kl.sum(), rmse[first_index - 2], rmse[-1])]


def digits(value, kept=2):
    """That many significant digits, without an exponent for 110."""
    return f"{float(f'{value:.{kept}g}'):g}"


def listed(values):
    return ", ".join(f"{value:#.2g}" for value in values)


def table(*columns):
    print("|", *(f"{name} |" for name in columns))
    print("|" + "---|" * len(columns), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs a row (default: 3)")
    seeds = range(parser.parse_args().seeds)
    x_start = image_to_vector(HOMER)
    size, kept = len(x_start), {}

    columns = "run", "beta_end", "hidden", "batch", "mean_kl", "rmse of x_1"
    table(*columns, "rmse of the last state")
    for name, predict, otherwise, settings in ROWS:
        figures = []
        for seed in tqdm(seeds, desc=name, leave=False, disable=None):
            # main.py --seed s takes s to s + 4.
            model, row = run(x_start, predict, otherwise, settings, 4 * seed)
            figures.append(row)
            kept.setdefault((name, settings["beta_end"]), []).append(model)
        cells = [name, settings["beta_end"], "-", "-"]
        if predict in NETWORKS:
            cells[2:4] = settings["hidden"] or size, settings["batch"]
        mean_kl, *means = torch.tensor(figures).mean(dim=0).tolist()
        cells += [digits(mean_kl, 3), *(digits(mean) for mean in means)]
        rmses = [rmse for *_, rmse in figures]
        cells[-1] += f" ({digits(min(rmses))}-{digits(max(rmses))})"
        print("|", *(f"{cell} |" for cell in cells), flush=True)

    alphas, alpha_bars = noise_schedule()
    x_T = q_sample(x_start, 29, alpha_bars, generator=seeded_by(0))
    print("\nThe default's first reverse step returns, for each seed, of x_0 (and of a")
    print(f"draw of q(x_T | x_0) should on average: {alpha_bars[-2].sqrt():.3f}):\n")
    table("given", "coefficient of x_0")
    for name, x_t in (
        ("a draw of q(x_T \\| x_0)", x_T),
        ("a draw of N(0, I)", torch.randn(size, generator=seeded_by(1))),
        *((f"{c:.3g} x_0", c * x_start) for c in (0.0, 0.5, 1.0, 1.5)),
    ):
        with torch.no_grad():
            means = [d(x_t, 29) for d in kept["default", 0.02]]
        shares = [(mean @ x_start / (x_start @ x_start)).item() for mean in means]
        print(f"| {name} |", listed(shares), "|")

    print("\nrmse of `start` with the published schedule, for each seed, from\n")
    for name, x_t in (("N(0, I)", None), ("q(x_T | x_0)", x_T)):
        rmses = []
        for seed, model in zip(seeds, kept["`start`", 0.02]):
            chain = sample(model, alphas, size, x_T=x_t, seed=4 * seed + 2)
            rmses.append((chain[-1] - x_start).square().mean().sqrt().item())
        print(f"{name}: {listed(rmses)}")

    print(
        "\nThe weight of the noise's squared error in the loss, over t; the factor by which"
    )
    print(
        "predicting zero noise multiplies an error in x_T; the least mean_kl at width 256:\n"
    )
    table("beta_end", "smallest", "largest", "1 / sqrt(abar_T)", "`noise`", "`mean`")
    for beta_end in (0.02, 0.6):
        alphas, alpha_bars = schedule = noise_schedule(beta_end=beta_end)
        weights = noise_weights(*schedule).square()
        passed_on = posterior_tables(*schedule)[1].square() * (1 - alpha_bars)
        # At least (D - 256) / D of the noise is missed, whatever is learned.
        least = [
            (size - 256) / size * (missed / (2 * (1 - alphas)))[1:].sum()
            for missed in (weights, passed_on)
        ]
        cells = weights.min(), weights.max(), 1 / alpha_bars[-1].sqrt(), *least
        print(f"| {beta_end} |", *(f"{digits(cell, 3)} |" for cell in cells))


if __name__ == "__main__":
    main()
