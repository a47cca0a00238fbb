"""What each choice is worth: the figures of docs/findings.md (`python -m tests.ablation`).

Every run learns homer.png; figures are means over seeds, with the range of rmse.
"""

import argparse

import torch
from torch import nn
from tqdm import tqdm

from diffusion import (
    PredictNoise,
    noise_schedule,
    q_sample,
    vb_terms,
)
from main import build_denoiser, sample, train
from tests.common import HOMER, exact_denoiser, seeded_by
from utils import image_to_vector

PUBLISHED = {"beta_end": 0.02, "hidden": None, "batch": 1, "variance": "beta"}
NEAR_NOISE = {"beta_end": 0.6}
MENDED = PUBLISHED | NEAR_NOISE | {"hidden": 256, "batch": 8}
POSTERIOR = {"variance": "posterior"}
NETWORKS = ("mean", "start", "noise")
# What is run, what predicts, what is done otherwise than by default, and the settings.
ROWS = [
    ("as published", "mean", {"embedding", "chain", "rate"}, PUBLISHED),
    ("as published + decay", "mean", {"embedding", "chain"}, PUBLISHED),
    ("as published + full chain, embedding", "mean", {"rate"}, PUBLISHED),
    ("all three: the default", "mean", set(), PUBLISHED),
    ("the default, embedded as published", "mean", {"embedding"}, PUBLISHED),
    ("`start`", "start", set(), PUBLISHED),
    ("`noise`", "noise", set(), PUBLISHED),
    ("predicts no noise, no network", "nothing", set(), PUBLISHED),
    ("best constant, no network", "constant", set(), PUBLISHED),
    ("best constant, no network", "constant", set(), PUBLISHED | POSTERIOR),
    ("exact posterior, no network", "exact", set(), PUBLISHED),
    ("exact posterior, no network", "exact", set(), PUBLISHED | POSTERIOR),
    ("`mean`", "mean", set(), MENDED),
    ("`mean`, trained on the bound", "mean", {"bound"}, MENDED),
    ("`start`", "start", set(), MENDED),
    ("`start`", "start", set(), MENDED | POSTERIOR),
    ("`start`, width and batch as published", "start", set(), PUBLISHED | NEAR_NOISE),
    ("`noise`", "noise", set(), MENDED),
    ("`noise`, trained on L_simple", "noise", {"L_simple"}, MENDED),
    ("`noise`, trained on the bound", "noise", {"bound"}, MENDED),
    ("predicts no noise, no network", "nothing", set(), MENDED),
    ("best constant, no network", "constant", set(), MENDED),
    ("best constant, no network", "constant", set(), MENDED | POSTERIOR),
    ("exact posterior, no network", "exact", set(), MENDED),
    ("exact posterior, no network", "exact", set(), MENDED | POSTERIOR),
]


def noise_weights(alphas, alpha_bars):
    """beta_t / sqrt(alpha_t (1 - abar_t)): what an error of the noise is in the mean."""
    return (1 - alphas) / (alphas * (1 - alpha_bars)).sqrt()


class Reweighted(nn.Module):
    """Errs by its denoiser's error over a scale for each t: `train` minimises its square."""

    def __init__(self, denoiser, x_start, schedule, scales):
        super().__init__()
        self.denoiser = denoiser
        self.exact = exact_denoiser(x_start, schedule)
        self.scales = scales.float()

    def forward(self, x_t, t):
        exact = self.exact(x_t, t)
        return exact + (self.denoiser(x_t, t) - exact) / self.scales[t][:, None]


def without_network(predict, x_start, schedule):
    if predict == "exact":
        return exact_denoiser(x_start, schedule)
    if predict == "nothing":
        return PredictNoise(lambda x_t, t: torch.zeros_like(x_t), *schedule)
    # The mean of x_{t-1} that does not look at x_t: sqrt(abar_{t-1}) x_0.
    scales = torch.cat([torch.ones(1), schedule[1][:-1]]).sqrt().float()
    return lambda x_t, t: scales[t] * x_start


def run(x_start, predict, otherwise, settings, seed):
    """Return the denoiser of one run, and variance_kl, mean_kl, rmse of x_1, rmse."""
    schedule = noise_schedule(beta_end=settings["beta_end"])
    first_index = int("chain" in otherwise)
    if predict in NETWORKS:
        denoiser = build_denoiser(
            predict,
            len(x_start),
            *schedule,
            hidden_dim=settings["hidden"],
            published_embedding="embedding" in otherwise,
            seed=seed,
        )
        trained = denoiser
        if "L_simple" in otherwise:
            scales = noise_weights(*schedule)
            trained = Reweighted(denoiser, x_start, schedule, scales)
        if "bound" in otherwise:  # at the published variance: sigma_t^2 = beta_t
            scales = (1 - schedule[0]).sqrt()
            trained = Reweighted(denoiser, x_start, schedule, scales)
        train(
            trained,
            x_start,
            *schedule,
            batch_size=settings["batch"],
            decay="rate" not in otherwise,
            first_index=first_index,
            seed=seed + 1,
        )
    else:
        denoiser = without_network(predict, x_start, schedule)
    variance = settings["variance"]
    chain = sample(
        denoiser,
        schedule[0],
        len(x_start),
        variance=variance,
        first_index=first_index,
        seed=seed + 2,
    )
    terms = vb_terms(denoiser, x_start, *schedule, variance=variance, seed=seed + 3)
    # As published the last state is x_1, else the last but one.
    rmse = (chain - x_start).square().mean(dim=1).sqrt()
    figures = [*(part.sum() for part in terms), rmse[first_index - 2], rmse[-1]]
    return denoiser, [figure.item() for figure in figures]


def digits(value, kept=2):
    """That many significant digits, without an exponent for 110."""
    return f"{float(f'{value:.{kept}g}'):g}"


@torch.no_grad()
def active(denoiser, x_start, schedule):
    """Share of the first layer's units that answer any of 8 states of q(x_t | x_0)."""
    network = getattr(denoiser, "network", denoiser)
    answered = torch.zeros(network.linear1.out_features, dtype=torch.bool)
    for t in range(len(schedule[0])):
        x_t = q_sample(x_start.expand(8, -1), t, schedule[1], generator=seeded_by(t))
        answered |= (network.linear1(x_t + network.emb[t]) > 0).any(dim=0)
    return answered.double().mean().item()


def coefficient(mean, x_start):
    return (mean @ x_start / (x_start @ x_start)).item()


def listed(values):
    return ", ".join(f"{value:#.2g}" for value in values)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs per row (default: 3)"
    )
    seeds = range(parser.parse_args().seeds)
    x_start = image_to_vector(HOMER)
    kept = {}

    print("| run | beta_end | hidden | batch | variance |", end="")
    print(" variance_kl | mean_kl | rmse of x_1 | rmse of the last state |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, predict, otherwise, settings in ROWS:
        figures = []
        for seed in tqdm(seeds, desc=name, leave=False, disable=None):
            # main.py --seed s takes s to s + 3.
            with torch.enable_grad():
                denoiser, row = run(x_start, predict, otherwise, settings, 4 * seed)
            figures.append(row)
            kept.setdefault((name, *settings.values()), []).append(denoiser)
        network = predict in NETWORKS
        hidden = settings["hidden"] or len(x_start)
        cells = [name, settings["beta_end"]]
        cells += [hidden, settings["batch"]] if network else ["-", "-"]
        means = torch.tensor(figures).mean(dim=0).tolist()
        cells += [settings["variance"], *(digits(mean, 3) for mean in means[:2])]
        cells += [digits(mean) for mean in means[2:]]
        rmses = [rmse for *_, rmse in figures]
        cells[-1] += f" ({digits(min(rmses))} to {digits(max(rmses))})"
        print("|", *(f"{cell} |" for cell in cells), flush=True)

    published, near_noise = noise_schedule(), noise_schedule(beta_end=0.6)
    alpha_bars = published[1]
    x_T = q_sample(x_start, 29, alpha_bars, generator=seeded_by(0))
    root = alpha_bars[-1].sqrt().item()
    print("\nWhat the default's first step back returns of x_0, for each seed")
    print(f"(of q(x_T | x_0), on average, it must be {alpha_bars[-2].sqrt():.3f}):\n")
    print("| given | coefficient of x_0 |\n|---|---|")
    for name, x_t in (
        ("a draw of q(x_T \\| x_0)", x_T),
        ("a draw of N(0, I)", torch.randn(len(x_start), generator=seeded_by(1))),
        *((f"{c:.3g} x_0", c * x_start) for c in (0.0, 0.5, root, 1.0, 1.5)),
    ):
        means = [
            denoiser(x_t, 29)
            for denoiser in kept["all three: the default", *PUBLISHED.values()]
        ]
        print(f"| {name} |", listed(coefficient(mean, x_start) for mean in means), "|")

    print("\nrmse of `start` with the published schedule, for each seed, from\n")
    for name, x_t in (("N(0, I)", None), ("q(x_T | x_0)", x_T)):
        rmses = []
        for seed, denoiser in zip(seeds, kept["`start`", *PUBLISHED.values()]):
            chain = sample(
                denoiser, published[0], len(x_start), x_T=x_t, seed=4 * seed + 2
            )
            rmses.append((chain[-1] - x_start).square().mean().sqrt().item())
        print(f"{name}: {listed(rmses)}")

    print("\nShare of the first layer's units that answer any of 240 states of the")
    print("forward process, beta_end 0.6, width 256, for each seed:\n")
    untrained = build_denoiser("mean", len(x_start), *near_noise, hidden_dim=256)
    print("untrained:", listed([active(untrained, x_start, near_noise)]))
    for name, predict, _, settings in ROWS:
        if predict in NETWORKS and settings == MENDED:
            denoisers = kept[name, *MENDED.values()]
            print(f"{name}:", listed(active(d, x_start, near_noise) for d in denoisers))

    print(
        "\nThe weight of the noise's squared error in the loss, t = 1..T, and what no"
    )
    print("noise predicted makes of an error in x_T:\n")
    print("| beta_end | smallest | largest | 1 / sqrt(abar_T) |\n|---|---|---|---|")
    for beta_end in (0.02, 0.6):
        alphas, alpha_bars = noise_schedule(beta_end=beta_end)
        weights = noise_weights(alphas, alpha_bars).square()
        cells = [weights.min(), weights.max(), 1 / alpha_bars[-1].sqrt()]
        print(f"| {beta_end} |", *(f"{digits(cell)} |" for cell in cells))


if __name__ == "__main__":
    main()
