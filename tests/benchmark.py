"""How fast each piece is, beside the publication's way (`python -m tests.benchmark`).

Everything is measured in one run, in turn: quote its ratios, since seconds drift. The
publication's way samples through dense covariance matrices, which PyTorch checks by
default; it steps with AdamW as PyTorch has it by default on a CPU, loops over pixels and
coordinates, and draws with celluloid as its examples do, ticks and all. A figure that adds
up measured pieces, where the whole would take too long, is marked *.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from celluloid import Camera
from diffusers import UNet2DModel
from PIL import Image
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import mse_loss
from tqdm import tqdm

import main
from comparison.data import points
from comparison.networks import PointNetwork, UNet
from comparison.predictors import Exact
from comparison.processes import linear
from comparison.training import simple, train, uniform_level
from diffusion import (
    Denoising,
    denoise_with_mu,
    noise_schedule,
    posterior_mean_variance,
    q_sample,
)
from tests.common import HOMER
from utils import IMG_SIZE, image_to_vector

ROOT = Path(__file__).parents[1]
# Points of homer.png: about as many, twice and four times as many as by default.
IMAGE_SIZES = (150, 200, 280)
EPOCHS, STEPS = 20, 40
# A batch-1 step reads the weights forward, two thirds of them backward, and writes the
# gradients; AdamW reads weights, gradients and two moments, and writes all but gradients.
PASSES_PER_STEP = 1 + 2 / 3 + 1 + 7


# The publication's way, written anew


def published_image_to_vector(path, image_size):
    image = Image.open(path).convert("L").resize((image_size, image_size))
    vector = []
    for column in range(image_size):
        for row in range(image_size):
            if image.getpixel((column, row)) <= 50:
                x, y = column, image_size - row
                vector.append(x * IMG_SIZE / image_size / 25 - 3)
                vector.append(y * IMG_SIZE / image_size / 25 - 2)
    return torch.tensor(vector)


def published_q_sample(x_start, t, alpha_bars):
    mean = alpha_bars[t].sqrt() * x_start
    covariance = (1 - alpha_bars[t]) * torch.eye(len(x_start))
    return MultivariateNormal(mean, covariance).sample()


def published_posterior(x_start, x_t, t, alphas, alpha_bars):
    alpha, alpha_bar, previous = alphas[t], alpha_bars[t], alpha_bars[t - 1]
    mean = (
        previous.sqrt() * (1 - alpha) / (1 - alpha_bar) * x_start
        + alpha.sqrt() * (1 - previous) / (1 - alpha_bar) * x_t
    )
    variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha)
    return mean, variance * torch.eye(len(x_start))


@torch.no_grad()
def published_reverse_step(model, x_t, t, alphas):
    covariance = torch.diag((1 - alphas[t]).repeat(len(x_t)))
    return MultivariateNormal(model(x_t, t), covariance).sample()


def published_training_step(model, optimizer, x_start, alphas, alpha_bars):
    t = np.random.randint(1, len(alphas))
    x_t = published_q_sample(x_start, t, alpha_bars)
    mean, _ = published_posterior(x_start, x_t, t, alphas, alpha_bars)
    loss = mse_loss(model(x_t, t), mean)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def published_training(x_start):
    """Return what takes one step of the publication's training."""
    alphas, alpha_bars = (values.float() for values in noise_schedule())
    model = Denoising(len(x_start), len(alphas))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)
    return lambda: published_training_step(
        model, optimizer, x_start, alphas, alpha_bars
    )


def published_film(chain, path):
    figure, ax = plt.subplots()
    camera = Camera(figure)
    for state in chain:
        xs, ys = [], []
        for i in range(0, len(state), 2):
            xs.append(state[i].item())
            ys.append(state[i + 1].item())
        sns.scatterplot(pd.DataFrame({"x": xs, "y": ys}), x="x", y="y", ax=ax)
        camera.snap()
    camera.animate().save(path, writer="pillow", fps=24, dpi=120)
    plt.close(figure)


# Measuring


def seconds(call, repeats=20, budget=5.0):
    """Return the median time of a call, of `repeats` or of what the budget allows."""
    call()  # pays for what is loaded and allocated once
    began, times = perf_counter(), []
    while len(times) < repeats and (not times or perf_counter() - began < budget):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times)


def step_seconds(x_start, steps=STEPS):
    """Return the median training step of `main.train`, and the time of an epoch."""
    schedule = noise_schedule()
    calls = []

    class Clocked(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Denoising(len(x_start), len(schedule[0]))

        def forward(self, x_t, t):
            calls.append(perf_counter())
            return self.network(x_t, t)

    main.train(Clocked(), x_start, *schedule, epochs=2, steps_per_epoch=steps)
    # Without the first step, which allocates the optimiser's state.
    return median(np.diff(calls[1:])), calls[steps + 1] - calls[1]


def bandwidth(size):
    """Return the best rate of streaming through `size` floats, in bytes per second."""
    one, other = torch.zeros(size), torch.zeros(size)
    parameter = nn.Parameter(torch.zeros(size))
    parameter.grad = torch.zeros(size)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    streams = {
        2: lambda: one.copy_(other),  # reads one array and writes one
        3: lambda: one.add_(other),
        7: optimizer.step,  # reads four arrays and writes three
    }
    return max(4 * size * n / seconds(call, 12) for n, call in streams.items())


def process(*command):
    """Run Python on a command; return its wall time and its peak memory in bytes."""
    # Between the two, a process of few megabytes: a child counts its parent's as its own.
    launcher = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(time.perf_counter() - start, "
        "1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    printed = subprocess.check_output(
        [sys.executable, "-c", launcher, sys.executable, *command], cwd=ROOT, text=True
    )
    return tuple(float(figure) for figure in printed.split())


def measure(image_size, folder, bar):
    """Return the rows of one size: name, ours, published, reference, and what they are."""
    x_start = image_to_vector(HOMER, image_size, max_points=10**6)
    data_size = len(x_start)
    alphas, alpha_bars = schedule = noise_schedule()
    model = Denoising(data_size, len(alphas))
    x_t, chain = torch.randn(data_size), torch.randn(len(alphas) + 1, data_size)
    film = os.path.join(folder, "film.gif")
    labels = [str(t) for t in range(len(alphas), -1, -1)]
    rows = {}

    def row(name, ours, published=None, **more):
        rows[name] = {"ours": ours, "published": published} | more
        bar.update()

    row(
        "q_sample",
        seconds(lambda: q_sample(x_start, 20, alpha_bars)),
        seconds(lambda: published_q_sample(x_start, 20, alpha_bars.float())),
    )
    row(
        "posterior",
        seconds(lambda: posterior_mean_variance(x_start, x_t, 20, *schedule)),
        seconds(lambda: published_posterior(x_start, x_t, 20, *schedule)),
    )
    reverse = seconds(lambda: published_reverse_step(model, x_t, 20, alphas.float()))
    row(
        "reverse step",
        seconds(lambda: denoise_with_mu(model, x_t, 20, alphas)),
        reverse,
    )
    row(
        "chain",
        seconds(lambda: main.sample(model, alphas, data_size)),
        len(alphas) * reverse,
        composed=["published"],
    )
    parameters = sum(p.numel() for p in model.parameters())
    rate = bandwidth(parameters)
    reference = PASSES_PER_STEP * 4 * parameters / rate
    ours, epoch = step_seconds(x_start)
    published = seconds(published_training(x_start), budget=10)
    row("training step", ours, published, reference=reference)
    row("epoch", epoch, STEPS * published, composed=["published"])
    row(
        "film",
        seconds(lambda: main.save_film(chain, labels, film), 3),
        seconds(lambda: published_film(chain, film), 3),
    )
    row(
        "image to vector",
        seconds(lambda: image_to_vector(HOMER, image_size, max_points=10**6)),
        seconds(lambda: published_image_to_vector(HOMER, image_size), 5),
    )

    flags = [f"--image-size={image_size}", "--max-points=1000000", f"--output={film}"]
    # The program with next to no network: what importing and drawing take.
    _, resting = process("main.py", *flags, "--hidden=1", "--epochs=1")
    composed = ["published"]
    if EPOCHS * epoch < 90:
        runs = [
            process("main.py", *flags) for _ in range(3 if EPOCHS * epoch < 30 else 1)
        ]
        whole, peak = (median(values) for values in zip(*runs))
    else:
        first, peak = process("main.py", *flags, "--epochs=1")
        whole = first + (EPOCHS - 1) * epoch
        composed = ["ours", "published"]
    startup, _ = process("-c", "import main")
    pieces = ("image to vector", "chain", "film")
    published_whole = (
        startup
        + EPOCHS * STEPS * published
        + sum(rows[name]["published"] for name in pieces)
    )
    row("whole run", whole, published_whole, composed=composed)
    _, published_peak = process(
        "-c",
        "from tests.benchmark import *; "
        f"step = published_training(image_to_vector(HOMER, {image_size}, max_points=10**6)); "
        "step(); step()",
    )
    # Against the weights, the gradients and AdamW's two moments.
    row(
        "peak memory",
        peak - resting,
        published_peak - resting,
        reference=16 * parameters,
        unit="bytes",
    )
    return {"points": data_size // 2, "rate": rate, "rows": rows}


def small_network():
    """Return the training time of the `start` variant over that of the default."""
    x_start = image_to_vector(HOMER)
    times = []
    for predict, beta_end, hidden, batch in (
        ("mean", 0.02, None, 1),
        ("start", 0.6, 256, 8),
    ):
        schedule = noise_schedule(beta_end=beta_end)
        denoiser = main.build_denoiser(
            predict, len(x_start), *schedule, hidden_dim=hidden
        )
        start = perf_counter()
        main.train(denoiser, x_start, *schedule, batch_size=batch)
        times.append(perf_counter() - start)
    return times[1] / times[0]


def in_turn(ours, bare, repeats):
    """Return the median time of one call over another's, measured in turn."""
    ours(), bare()  # which pays for what is loaded and allocated once
    times = []
    for call in repeats * (ours, bare):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times[0::2]) / median(times[1::2])


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


def unet_sampling_ratios():
    """Return a call in bfloat16, and one in the plain memory format, over float32's."""
    network, plain = UNet(), UNet().to(memory_format=torch.contiguous_format)
    x, level = torch.randn(300, 1024), torch.tensor(0.5)

    def call(network, bfloat16):
        with (
            torch.no_grad(),
            patch.object(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16),
        ):
            network(x, level, level)

    def float32():
        call(network, False)

    return (
        in_turn(lambda: call(network, True), float32, 9),
        in_turn(lambda: call(plain, False), float32, 9),
    )


def comparison_ratios():
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

    objective = simple(uniform_level(linear()))
    return (
        in_turn(lambda: exact(x_t, signal, noise), written_out, 100),
        in_turn(
            lambda: train(PointNetwork(), objective, data, steps=STEPS), bare_steps, 15
        ),
    )


def readable(value, unit="s", mark=""):
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            break
    return f"{value * factor:.3g} {name}{mark}"


def print_table(result):
    points, rate = result["points"], result["rate"] / 1e9
    print(f"\n{points:,} points, D = {2 * points:,}, memory at {rate:.0f} GB/s\n")
    print(
        "| piece | ours | published | published / ours | reference | ours / reference |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in result["rows"].items():
        ours, published, reference = (
            row.get(key) for key in ("ours", "published", "reference")
        )
        unit = row.get("unit", "s")
        cells = [name]
        for key in ("ours", "published"):
            mark = "\\*" if key in row.get("composed", ()) else ""
            cells.append(readable(row[key], unit, mark))
        ratio = published / ours
        cells.append(f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}")
        cells.append(readable(reference, unit))
        cells.append(f"{ours / reference:.2f}" if reference else "")
        print("|", *(f"{cell} |" for cell in cells), flush=True)


def run():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the same there"
    )
    args = parser.parse_args()
    plt.switch_backend("agg")
    cloud = image_to_vector(HOMER, IMAGE_SIZES[1], max_points=10**6)
    fetched_anew, _ = step_seconds(cloud, steps=20)
    main.keep_freed_memory()
    kept, _ = step_seconds(cloud, steps=20)
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=10 * len(IMAGE_SIZES) + 1, desc="measuring", disable=None) as bar,
    ):
        ratio = small_network()
        bar.update()
        for image_size in IMAGE_SIZES:
            results.append(measure(image_size, folder, bar))
            print_table(results[-1])
    print("\n\\* added up from measured pieces")
    print(
        f"\nWithout keep_freed_memory, a training step of {len(cloud) // 2:,} points "
        f"takes {1000 * fetched_anew:.0f} ms, with it {1000 * kept:.0f} ms."
    )
    exact_call, training = comparison_ratios()
    unet, (bfloat16, plain) = unet_ratio(), unet_sampling_ratios()
    print(
        f"\nA training step of the U-Net takes {unet:.2f} of one of diffusers'; a call "
        f"without gradients in bfloat16 {bfloat16:.2f} of one in float32, in the plain "
        f"memory format {plain:.2f} of one with channels last."
    )
    print(
        f"\nAn exact call of 2,000 points takes {exact_call:.2f} of its products and "
        f"softmax, a training step of the comparison {training:.2f} of its network's."
    )
    print(f"\nTraining `start` at 256 and 8 takes {ratio:.2f} of training the default.")
    if args.json:
        args.json.write_text(
            json.dumps({"sizes": results, "start / default": ratio}, indent=2) + "\n"
        )


if __name__ == "__main__":
    run()
