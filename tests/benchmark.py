"""How fast each piece is, beside the publication's way (`python -m tests.benchmark`).

Everything is measured in one run, in turn: quote its ratios, since seconds drift. The
publication's way is that of `published.py`. A figure that adds up measured pieces, where
the whole would take too long, is marked *.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import torch
from diffusers import UNet2DModel
from torch.nn.functional import mse_loss
from tqdm import tqdm

import main
from comparison.laws import points
from comparison.networks import PointNetwork, UNet
from comparison.objectives import simple, uniform_level
from comparison.predictors import Exact
from comparison.processes import linear
from comparison.training import train
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


def in_turn(ours, bare, repeats):
    """Return the median time of one call over another's, measured in turn."""
    ours(), bare()  # which pays for what is loaded and allocated once
    times = []
    for call in repeats * (ours, bare):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times[0::2]) / median(times[1::2])


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


# The experiment


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
    yield "chain", ours, (rest := (steps - 1) * step), "*"
    ours = step = training_seconds(x_start)
    yield "training step", ours, (training := seconds(published.training(x_start))), ""
    ours = seconds(lambda: main.save_film(chain, labels, path), 3)
    theirs = seconds(lambda: published.film(chain[:-1], path), 3)
    yield "film", ours, theirs, ""
    rest += theirs
    ours = seconds(lambda: image_to_vector(HOMER, image_size, max_points=10**6))
    theirs = seconds(lambda: published.image_to_vector(HOMER, image_size), 5)
    yield "picture to vector", ours, theirs, ""
    rest += theirs + process("-c", "import main") + EPOCHS * STEPS * training
    flags = f"--image-size={image_size}", "--max-points=1000000", f"--output={path}"
    ours = process("main.py", "--epochs=1", *flags) + (EPOCHS - 1) * STEPS * step
    yield "whole run", ours, rest, "*"


def experiment(folder):
    """Print a table of the pieces for each size, and what the smaller network takes."""
    for image_size in IMAGE_SIZES:
        count = len(image_to_vector(HOMER, image_size, max_points=10**6)) // 2
        print(f"\n{count:,} points\n")
        print("| piece | ours | published | published / ours |\n|---|---|---|---|")
        pieces = tqdm(measured(image_size, folder), total=7, leave=False, disable=None)
        for name, ours, theirs, mark in pieces:
            ratio = theirs / ours
            ratio = f"{ratio:,.{0 if ratio >= 10 else 1}f}{mark}"
            print(f"| {name} | {ours:.3g} s | {theirs:.3g} s{mark} | {ratio} |")
    homer = image_to_vector(HOMER)
    small = training_seconds(homer, predict="start", beta_end=0.6, hidden=256, batch=8)
    print("\n\\* added up from measured pieces\n\nTraining `start` at 256 and 8 takes")
    print(f"{small / training_seconds(homer):.2g} of the default's time.")


# The comparison


def unet_ratio():
    """Return a training step of the U-Net over one of diffusers' that is built alike."""
    channels = (16, 32, 64, 64)
    theirs = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=["DownBlock2D"] * len(channels),
        up_block_types=["UpBlock2D"] * len(channels),
        attention_head_dim=channels[-1],
        resnet_time_scale_shift="scale_shift",
    )
    x, level = torch.randn(16, 1024), torch.full((16, 1), 0.5)
    pictures, t = x.view(-1, 1, 32, 32), torch.full((16,), 500)

    def stepping(network, call):
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)

        def steps():
            for _ in range(5):
                optimizer.zero_grad()
                mse_loss(call(), x).backward()
                optimizer.step()

        return steps

    ours = UNet(channels)
    return in_turn(
        stepping(ours, lambda: ours(x, level, level)),
        stepping(theirs, lambda: theirs(pictures, t).sample.flatten(1)),
        9,
    )


def points_ratios():
    """Return an exact call, and training steps, over what they are made of."""
    data, generator = points().data, torch.Generator().manual_seed(0)
    x_t = torch.randn(2000, 2, generator=generator)
    signal, noise = torch.tensor(0.5), torch.tensor(0.75**0.5)
    precision, half_norms = signal / noise**2, data.square().sum(dim=1) / 2
    exact = Exact(data)

    def written_out():
        logits = precision * x_t @ data.T - signal * precision * half_norms
        return logits.softmax(dim=1) @ data

    network, batch, level = PointNetwork(), data[:1024], torch.full((1024, 1), 0.5)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def bare_steps():
        for _ in range(STEPS):
            optimizer.zero_grad()
            mse_loss(network(batch, level, level), batch).backward()
            optimizer.step()

    def steps():
        train(PointNetwork(), simple(uniform_level(linear())), data, steps=STEPS)

    return (
        in_turn(lambda: exact(x_t, signal, noise), written_out, 100),
        in_turn(steps, bare_steps, 15),
    )


def comparison():
    """Print what the comparison's pieces take, over what they are held against."""
    exact_call, training = points_ratios()
    print(f"\nAn exact call of 2,000 points takes {exact_call:.2f} of its products and")
    print(f"softmax, a training step of points {training:.2f} of its network's, one of")
    print(f"the U-Net {unet_ratio():.2f} of diffusers'.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=["experiment", "comparison"])
    part = parser.parse_args().part
    plt.switch_backend("agg")
    with tempfile.TemporaryDirectory() as folder:
        if part in (None, "experiment"):
            experiment(folder)
    if part in (None, "comparison"):
        comparison()
