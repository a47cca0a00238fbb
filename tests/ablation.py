"""What each choice is worth: the README's tables, measured (`python -m tests.ablation`).

Every run learns homer.png; figures are means over seeds, with the range of rmse.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion import PredictStart, noise_schedule
from main import build_denoiser, mean_gap, sample, train
from utils import image_to_vector

PUBLISHED = {"beta_end": 0.02, "hidden": None, "batch": 1, "variance": "beta"}
REACHES_NOISE = {"beta_end": 0.6}
MENDED = PUBLISHED | REACHES_NOISE | {"hidden": 256, "batch": 8}
POSTERIOR = MENDED | {"variance": "posterior"}
# What is run, what predicts, which mends are taken back, and the settings.
ROWS = [
    ("as published", "mean", {"embedding", "chain", "decay"}, PUBLISHED),
    ("+ full chain and embedding", "mean", {"decay"}, PUBLISHED),
    ("+ decay: the default", "mean", {}, PUBLISHED),
    ("the default, embedded as published", "mean", {"embedding"}, PUBLISHED),
    ("best constant, no network", "constant", {}, PUBLISHED),
    ("`start`, published schedule", "start", {}, PUBLISHED),
    ("`noise`, published schedule", "noise", {}, PUBLISHED),
    ("`mean`", "mean", {}, MENDED),
    ("`start`, width and batch as published", "start", {}, PUBLISHED | REACHES_NOISE),
    ("`start`", "start", {}, MENDED),
    ("`start`, posterior variance", "start", {}, POSTERIOR),
    ("`noise`", "noise", {}, MENDED),
    ("exact posterior, no network", "exact", {}, MENDED),
    ("exact posterior, no network", "exact", {}, POSTERIOR),
]


def run(x_start, predict, taken_back, settings, seed):
    """Return the denoiser of one run and its chain_kl, rmse of x_1, and rmse."""
    alphas, alpha_bars = schedule = noise_schedule(beta_end=settings["beta_end"])
    first_index = int("chain" in taken_back)
    if predict == "exact":
        denoiser = PredictStart(lambda x_t, t: x_start, *schedule)
    elif predict == "constant":
        # The mean of x_{t-1} that does not look at x_t: sqrt(abar_{t-1}) x_0.
        scales = torch.cat([torch.ones(1), alpha_bars[:-1]]).sqrt().float()

        def denoiser(x_t, t):
            return (scales[t] * x_start).expand_as(x_t)

    else:
        denoiser = build_denoiser(
            predict,
            len(x_start),
            *schedule,
            hidden_dim=settings["hidden"],
            published_embedding="embedding" in taken_back,
            seed=seed,
        )
        train(
            denoiser,
            x_start,
            *schedule,
            batch_size=settings["batch"],
            decay="decay" not in taken_back,
            first_index=first_index,
            seed=seed + 1,
        )
    chain = sample(
        denoiser,
        alphas,
        len(x_start),
        variance=settings["variance"],
        first_index=first_index,
        seed=seed + 2,
    )
    gaps = mean_gap(denoiser, x_start, *schedule, seed=seed + 3)
    # As published the last state is x_1, else the last but one.
    rmse = (chain - x_start).square().mean(dim=1).sqrt()
    return denoiser, gaps.sum().item(), rmse[first_index - 2].item(), rmse[-1].item()


def digits(value):
    """Two significant digits, without an exponent for 110."""
    return f"{float(f'{value:.2g}'):g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs per row (default: 3)"
    )
    seeds = parser.parse_args().seeds
    x_start = image_to_vector(Path(__file__).parents[1] / "homer.png")

    print("| run | beta_end | hidden | batch | variance |", end="")
    print(" chain_kl | rmse of x_1 | rmse of the last state |")
    print("|---|---|---|---|---|---|---|---|")
    for name, predict, taken_back, settings in ROWS:
        figures = []
        for seed in tqdm(range(seeds), desc=name, leave=False, disable=None):
            # main.py --seed s takes s to s + 3.
            denoiser, *row = run(x_start, predict, taken_back, settings, 4 * seed)
            figures.append(row)
            if name.endswith("the default") and seed == 0:
                default = denoiser
        network = predict in ("mean", "start", "noise")
        hidden = settings["hidden"] or len(x_start)
        cells = [name, settings["beta_end"]]
        cells += [hidden, settings["batch"]] if network else ["-", "-"]
        cells += [settings["variance"]]
        cells += [digits(mean) for mean in torch.tensor(figures).mean(dim=0).tolist()]
        rmses = [rmse for *_, rmse in figures]
        cells[-1] += f" ({digits(min(rmses))} to {digits(max(rmses))})"
        print("|", *(f"{cell} |" for cell in cells), flush=True)

    print(
        "\nThe default's first reverse step, mean_theta(c x_0, T) = gain x_0 + ...:\n"
    )
    print("| c | gain |\n|---|---|")
    for c in (0.0, 0.5, 1.0, 1.5):
        with torch.no_grad():
            mean = default(c * x_start, 29)
        print(f"| {c} | {(mean @ x_start / (x_start @ x_start)).item():.2f} |")


if __name__ == "__main__":
    main()
