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
from functools import partial
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import torch
from diffusers import UNet2DModel
from torch.nn.functional import mse_loss
from tqdm import tqdm

import main
from comparison.laws import points
from comparison.networks import PointNetwork, UNet, unit
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


def training_seconds(x_start, *, predict="mean", beta_end=0.02, epochs=2, **options):
    """Return the time of a training step of `main.train`, the first epoch left out."""
    schedule = noise_schedule(beta_end=beta_end)
    hidden_dim = options.pop("hidden_dim", None)
    denoiser = main.build_denoiser(
        predict, len(x_start), *schedule, hidden_dim=hidden_dim
    )
    began = []
    denoiser.register_forward_pre_hook(lambda *_: began.append(perf_counter()))
    main.train(denoiser, x_start, *schedule, epochs=epochs, **options)
    return (began[-1] - began[STEPS]) / (len(began) - STEPS - 1)


def process(*command):
    """Run Python on a command; return its wall time."""
    start = perf_counter()
    subprocess.check_output([sys.executable, *command], cwd=ROOT)
    return perf_counter() - start


# The experiment


def measured(image_size, folder):
    """Yield the pieces at one size: name, our seconds, the publication's, what is added
    up."""
    x_start = image_to_vector(HOMER, image_size, max_points=10**6)
    alphas, alpha_bars = schedule = noise_schedule()
    size, steps, floats = len(x_start), len(alphas), alphas.float()
    model, path = Denoising(size, steps), os.path.join(folder, "film.gif")
    x_t, chain = torch.randn(size), torch.randn(steps + 1, size)
    theirs = {}

    def piece(name, ours, publications, marks=""):
        theirs[name] = publications
        return name, ours, publications, marks

    yield piece(
        "`q_sample`",
        seconds(lambda: q_sample(x_start, 20, alpha_bars)),
        seconds(lambda: published.q_sample(x_start, 20, alpha_bars.float())),
    )
    yield piece(
        "posterior",
        seconds(lambda: posterior_mean_variance(x_start, x_t, 20, *schedule)),
        seconds(lambda: published.posterior(x_start, x_t, 20, *schedule)),
    )
    yield piece(
        "chain",
        seconds(lambda: sample(model, alphas, size)),
        (steps - 1) * seconds(lambda: published.reverse_step(model, x_t, 20, floats)),
        "*",
    )
    step = training_seconds(x_start)
    yield piece("training step", step, seconds(published.training(x_start), budget=10))
    labels = [str(t) for t in range(steps, -1, -1)]
    yield piece(
        "film",
        seconds(lambda: main.save_film(chain, labels, path), 3),
        seconds(lambda: published.film(chain[:-1], path), 3),
    )
    yield piece(
        "picture to vector",
        seconds(lambda: image_to_vector(HOMER, image_size, max_points=10**6)),
        seconds(lambda: published.image_to_vector(HOMER, image_size), 5),
    )
    flags = [f"--image-size={image_size}", "--max-points=1000000", f"--output={path}"]
    ours = process("main.py", "--epochs=1", *flags) + (EPOCHS - 1) * STEPS * step
    training = EPOCHS * STEPS * theirs.pop("training step")
    rest = sum(theirs[name] for name in ("chain", "film", "picture to vector"))
    whole = process("-c", "import main") + training + rest
    yield piece("whole run", ours, whole, "*")


def experiment(folder):
    """Print a table of the pieces for each size, and what two choices are worth."""
    cloud = image_to_vector(HOMER, IMAGE_SIZES[1], max_points=10**6)
    fetched_anew = training_seconds(cloud)
    main.keep_freed_memory()
    kept = training_seconds(cloud)
    for image_size in IMAGE_SIZES:
        count = len(image_to_vector(HOMER, image_size, max_points=10**6)) // 2
        print(f"\n{count:,} points\n")
        print("| piece | ours | published | published / ours |\n|---|---|---|---|")
        pieces = tqdm(measured(image_size, folder), total=7, leave=False, disable=None)
        for name, ours, publications, marks in pieces:
            cells = name, f"{ours:.3g} s", f"{publications:.3g} s{marks}"
            print("|", *(f"{cell} |" for cell in cells), end=" ")
            ratio = publications / ours
            print(f"{ratio:,.{0 if ratio >= 10 else 1}f}{marks} |", flush=True)
    homer = image_to_vector(HOMER)
    mended = {"predict": "start", "beta_end": 0.6, "hidden_dim": 256, "batch_size": 8}
    ratio = training_seconds(homer, **mended) / training_seconds(homer)
    print(
        "\n\\* added up from measured pieces\n\nWithout keep_freed_memory, a training"
    )
    print(
        f"step of {len(cloud) // 2:,} points takes {fetched_anew / kept:.2g} times as"
    )
    print(
        f"long. Training `start` at 256 and 8 takes {ratio:.2g} of the default's time."
    )


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


def unet_sampling_ratios():
    """Return calls, 100 pictures at a time and in the plain memory format, over others."""
    network, plain = UNet(), UNet().to(memory_format=torch.contiguous_format)
    x, level = torch.randn(1000, 1024), torch.tensor(0.5)

    @torch.no_grad()
    def call(network):
        network(x, level, level)

    @torch.no_grad()
    def at_once():
        network.at_once(*unit(x, level, level))

    return in_turn(partial(call, network), at_once, 5), in_turn(
        partial(call, plain), partial(call, network), 5
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
    unet, (parts, plain) = unet_ratio(), unet_sampling_ratios()
    print(f"\nAn exact call of 2,000 points takes {exact_call:.2f} of its products and")
    print(
        f"softmax, a training step of the points {training:.2f} of its network's; one"
    )
    print(f"of the U-Net {unet:.2f} of diffusers', a call 100 pictures at a time")
    print(
        f"{parts:.2f} of all at once, in the plain memory format {plain:.2f} of that."
    )


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
