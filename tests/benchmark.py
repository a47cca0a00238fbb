"""How fast each piece is, beside the publication's: `python -m tests.benchmark`.

All is measured in one run: quote ratios, since seconds drift. A figure that adds up
measured pieces, where the whole would take too long, is marked *.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from celluloid import Camera
from torch.nn.functional import mse_loss
from tqdm import tqdm

import main
from diffusion import (
    Denoising,
    noise_schedule,
    posterior_mean_variance,
    q_sample,
    sample,
)
from tests import published
from tests.common import HOMER, ROOT
from utils import image_to_vector

# Points of homer.png: as many, twice and four times as many as by default.
IMAGE_SIZES = (150, 200, 280)
EPOCHS, STEPS = 20, 40


def seconds(call, repeats=20, budget=5.0):
    """Return the median time of a call, of `repeats` or of what the budget allows."""
    call()  # pays for what is loaded and allocated once
    began, times = perf_counter(), []
    while len(times) < repeats and (not times or perf_counter() - began < budget):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times)


def training_seconds(x_start, *, predict="mean", beta_end=0.02, hidden=None, batch=1):
    """Return the time of a training step of `main.train`, the first epoch left out."""
    schedule = noise_schedule(beta_end=beta_end)
    model = main.build_model(predict, len(x_start), *schedule, hidden_dim=hidden)
    began = []
    model.register_forward_pre_hook(lambda *_: began.append(perf_counter()))
    main.train(model, x_start, *schedule, epochs=2, batch_size=batch)
    return (began[-1] - began[STEPS]) / (len(began) - STEPS - 1)


def process(*command):
    """Run Python on a command; return its wall time."""
    start = perf_counter()
    subprocess.check_output([sys.executable, *command], cwd=ROOT)
    return perf_counter() - start


def published_training(x_start):
    """Return what takes one step of the published training, AdamW as by default."""
    alphas, alpha_bars = (values.float() for values in noise_schedule())
    model = Denoising(len(x_start), len(alphas))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)

    def step():
        t = np.random.randint(1, len(alphas))
        x_t = published.q_sample(x_start, t, alpha_bars)
        mean, _ = published.posterior(x_start, x_t, t, alphas, alpha_bars)
        optimizer.zero_grad()
        loss = mse_loss(model(x_t, t), mean)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def published_film(chain, path):
    """Draw as the examples of celluloid do, ticks and all."""
    figure, ax = plt.subplots()
    camera = Camera(figure)
    for state in chain:
        xs = [state[i].item() for i in range(0, len(state), 2)]
        ys = [state[i].item() for i in range(1, len(state), 2)]
        sns.scatterplot(pd.DataFrame({"x": xs, "y": ys}), x="x", y="y", ax=ax)
        camera.snap()
    camera.animate().save(path, writer="pillow", fps=24, dpi=120)
    plt.close(figure)


def measured(image_size, folder):
    """Yield each piece at one size: its name, our seconds, the publication's, a mark."""
    x_start = image_to_vector(HOMER, image_size, max_points=10**6)
    alphas, alpha_bars = schedule = noise_schedule()
    floats = [table.float() for table in schedule]
    size, steps = len(x_start), len(alphas)
    model, path = Denoising(size, steps), os.path.join(folder, "film.gif")
    x_t, chain = torch.randn(size), torch.randn(steps + 1, size)
    labels = [str(t) for t in range(steps, -1, -1)]

    ours = seconds(lambda: q_sample(x_start, 20, alpha_bars))
    theirs = seconds(lambda: published.q_sample(x_start, 20, floats[1]))
    yield "`q_sample`", ours, theirs, ""
    ours = seconds(lambda: posterior_mean_variance(x_start, x_t, 20, *schedule))
    theirs = seconds(lambda: published.posterior(x_start, x_t, 20, *schedule))
    yield "posterior", ours, theirs, ""
    ours = seconds(lambda: sample(model, alphas, size))
    step = seconds(lambda: published.reverse_step(model, x_t, 20, floats[0]))
    rest = (steps - 1) * step
    yield "chain", ours, rest, "*"
    our_training = training_seconds(x_start)
    training = seconds(published_training(x_start), budget=10)
    yield "training step", our_training, training, ""
    ours = seconds(lambda: main.save_film(chain, labels, path), 3)
    theirs = seconds(lambda: published_film(chain[:-1], path), 3)
    yield "film", ours, theirs, ""
    rest += theirs
    ours = seconds(lambda: image_to_vector(HOMER, image_size, max_points=10**6))
    theirs = seconds(lambda: published.image_to_vector(HOMER, image_size), 5)
    yield "picture to vector", ours, theirs, ""
    rest += theirs + process("-c", "import main") + EPOCHS * STEPS * training
    flags = f"--image-size={image_size}", "--max-points=1000000", f"--output={path}"
    one_epoch = process("main.py", "--epochs=1", *flags)
    ours = one_epoch + (EPOCHS - 1) * STEPS * our_training
    yield "whole run", ours, rest, "*"


def experiment(folder):
    """Print a table of the pieces for each size, and what two choices are worth."""
    cloud = image_to_vector(HOMER, IMAGE_SIZES[1], max_points=10**6)
    fetched_anew = training_seconds(cloud)
    main.keep_freed_memory()
    ratio = fetched_anew / training_seconds(cloud)
    print(f"Without keep_freed_memory, a training step of {len(cloud) // 2:,} points")
    print(f"takes {ratio:.2g} times as long.")
    for image_size in IMAGE_SIZES:
        count = len(image_to_vector(HOMER, image_size, max_points=10**6)) // 2
        print(f"\n{count:,} points\n")
        print("| piece | ours | published | published / ours |\n|---|---|---|---|")
        pieces = tqdm(measured(image_size, folder), total=7, leave=False, disable=None)
        for name, ours, theirs, mark in pieces:
            ratio = theirs / ours
            ratio = f"{ratio:,.{0 if ratio >= 10 else 1}f}{mark}"
            cells = name, f"{ours:.3g} s", f"{theirs:.3g} s{mark}", ratio
            print(f"| {' | '.join(cells)} |", flush=True)
    homer = image_to_vector(HOMER)
    small = training_seconds(homer, predict="start", beta_end=0.6, hidden=256, batch=8)
    print("\n\\* added up from measured pieces\n\nTraining `start` at 256 and 8 takes")
    print(f"{small / training_seconds(homer):.2g} of the default's time.")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    plt.switch_backend("agg")
    with tempfile.TemporaryDirectory() as folder:
        experiment(folder)
