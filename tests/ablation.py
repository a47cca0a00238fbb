"""What each choice is worth: the tables of docs/findings.md (`python -m tests.ablation`).

Every run learns homer.png; figures are means over seeds, with the range of rmse.
"""

import argparse

import torch
from torch import nn
from tqdm import tqdm

from diffusion import PredictNoise, PredictStart, noise_schedule, vb_terms
from main import build_denoiser, sample, train
from tests.common import HOMER
from utils import image_to_vector

PUBLISHED = {"beta_end": 0.02, "hidden": None, "batch": 1, "variance": "beta"}
NEAR_NOISE = {"beta_end": 0.6}
MENDED = PUBLISHED | NEAR_NOISE | {"hidden": 256, "batch": 8}
POSTERIOR = {"variance": "posterior"}
# What is run, what predicts, what is done otherwise than by default, and the settings.
ROWS = [
    ("as published", "mean", {"embedding", "chain", "rate"}, PUBLISHED),
    ("+ full chain and embedding", "mean", {"rate"}, PUBLISHED),
    ("+ decay: the default", "mean", {}, PUBLISHED),
    ("the default, embedded as published", "mean", {"embedding"}, PUBLISHED),
    ("`start`", "start", {}, PUBLISHED),
    ("`noise`", "noise", {}, PUBLISHED),
    ("predicts no noise, no network", "nothing", {}, PUBLISHED),
    ("best constant, no network", "constant", {}, PUBLISHED),
    ("best constant, no network", "constant", {}, PUBLISHED | POSTERIOR),
    ("exact posterior, no network", "exact", {}, PUBLISHED),
    ("exact posterior, no network", "exact", {}, PUBLISHED | POSTERIOR),
    ("`mean`", "mean", {}, MENDED),
    ("`start`", "start", {}, MENDED),
    ("`start`", "start", {}, MENDED | POSTERIOR),
    ("`start`, width and batch as published", "start", {}, PUBLISHED | NEAR_NOISE),
    ("`noise`", "noise", {}, MENDED),
    ("`noise`, trained on L_simple", "noise", {"L_simple"}, MENDED),
    ("predicts no noise, no network", "nothing", {}, MENDED),
    ("best constant, no network", "constant", {}, MENDED),
    ("best constant, no network", "constant", {}, MENDED | POSTERIOR),
    ("exact posterior, no network", "exact", {}, MENDED),
    ("exact posterior, no network", "exact", {}, MENDED | POSTERIOR),
]


def noise_weights(alphas, alpha_bars):
    """beta_t / sqrt(alpha_t (1 - abar_t)): what an error of the noise is in the mean."""
    return (1 - alphas) / (alphas * (1 - alpha_bars)).sqrt()


class Simple(nn.Module):
    """Errs by its denoiser's error over `noise_weights`: `train` minimises L_simple."""

    def __init__(self, denoiser, x_start, schedule):
        super().__init__()
        self.denoiser = denoiser
        self.exact = PredictStart(lambda x_t, t: x_start, *schedule)
        self.weights = noise_weights(*schedule).float()

    def forward(self, x_t, t):
        exact = self.exact(x_t, t)
        return exact + (self.denoiser(x_t, t) - exact) / self.weights[t][:, None]


def without_network(predict, x_start, schedule):
    if predict == "exact":
        return PredictStart(lambda x_t, t: x_start, *schedule)
    if predict == "nothing":
        return PredictNoise(lambda x_t, t: torch.zeros_like(x_t), *schedule)
    # The mean of x_{t-1} that does not look at x_t: sqrt(abar_{t-1}) x_0.
    scales = torch.cat([torch.ones(1), schedule[1][:-1]]).sqrt().float()
    return lambda x_t, t: scales[t] * x_start


def run(x_start, predict, otherwise, settings, seed):
    """Return the denoiser of one run, and variance_kl, mean_kl, rmse of x_1, rmse."""
    schedule = noise_schedule(beta_end=settings["beta_end"])
    first_index = int("chain" in otherwise)
    if predict in ("mean", "start", "noise"):
        denoiser = build_denoiser(
            predict,
            len(x_start),
            *schedule,
            hidden_dim=settings["hidden"],
            published_embedding="embedding" in otherwise,
            seed=seed,
        )
        simple = "L_simple" in otherwise
        train(
            Simple(denoiser, x_start, schedule) if simple else denoiser,
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs per row (default: 3)"
    )
    seeds = parser.parse_args().seeds
    x_start = image_to_vector(HOMER)
    defaults = []

    print("| run | beta_end | hidden | batch | variance |", end="")
    print(" variance_kl | mean_kl | rmse of x_1 | rmse of the last state |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, predict, otherwise, settings in ROWS:
        figures = []
        for seed in tqdm(range(seeds), desc=name, leave=False, disable=None):
            # main.py --seed s takes s to s + 3.
            denoiser, row = run(x_start, predict, otherwise, settings, 4 * seed)
            figures.append(row)
            if name.endswith("the default"):
                defaults.append(denoiser)
        network = predict in ("mean", "start", "noise")
        hidden = settings["hidden"] or len(x_start)
        cells = [name, settings["beta_end"]]
        cells += [hidden, settings["batch"]] if network else ["-", "-"]
        means = torch.tensor(figures).mean(dim=0).tolist()
        cells += [settings["variance"], *(digits(mean, 3) for mean in means[:2])]
        cells += [digits(mean) for mean in means[2:]]
        rmses = [rmse for *_, rmse in figures]
        cells[-1] += f" ({digits(min(rmses))} to {digits(max(rmses))})"
        print("|", *(f"{cell} |" for cell in cells), flush=True)

    alphas, alpha_bars = noise_schedule()
    print("\nThe default's first reverse step, given c x_0, returns gain x_0 + ...")
    print(f"(exactly, at c = sqrt(abar_T): {alpha_bars[-2].sqrt():.3f}):\n")
    print("| c | gain, each seed |\n|---|---|")
    for c in (0.0, 0.5, alpha_bars[-1].sqrt().item(), 1.0, 1.5):
        with torch.no_grad():
            means = [denoiser(c * x_start, 29) for denoiser in defaults]
        gains = [(mean @ x_start / (x_start @ x_start)).item() for mean in means]
        print(f"| {c:.3g} |", ", ".join(f"{gain:.2f}" for gain in gains), "|")

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
