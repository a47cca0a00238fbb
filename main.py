"""A diffusion model of one picture: from noise to a face, and the film of it.

The way through: `image_to_vector` (2N,) -> `train` -> `sample` (T + 1, 2N), every state
of the reverse chain -> `save_film`. `python main.py --help` lists the settings.
"""

import argparse
import ctypes
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from time import perf_counter
from typing import Literal

if __name__ == "__main__":  # whatever backend a notebook's shell asks for
    os.environ["MPLBACKEND"] = "agg"

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from celluloid import Camera
from matplotlib import style
from matplotlib.animation import ArtistAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm, trange

from diffusion import (
    Denoising,
    PredictNoise,
    PredictStart,
    forward,
    noise_schedule,
    position_encoding_init,
    posterior_mean_variance,
    prediction,
    prior_kl,
    q_sample,
    sample,
    vb_terms,
)
from utils import IMG_SIZE, image_to_vector, unpack_1d_data

# Bars are for terminals, which is what None means, and for notebooks, which are none.
BAR = {} if "ipykernel" in sys.modules else {"disable": None}

# Training


def build_denoiser(
    predict: Literal["mean", "start", "noise"],
    x_dim: int,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    hidden_dim: int | None = None,
    published_embedding: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return an untrained denoiser: the network, asked for what `predict` names.

    "mean": its output is the mean of x_{t-1} (published); "start": x_0; "noise": the noise
    in x_t. `published_embedding` embeds index i as row i of the position table, not i + 1.
    `seed` drives the initial weights and leaves PyTorch's global state as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = Denoising(x_dim, len(alphas), hidden_dim)
    if published_embedding:
        network.emb = position_encoding_init(len(alphas), x_dim)
    if predict == "mean":
        return network
    wrapper = {"start": PredictStart, "noise": PredictNoise}[predict]
    return wrapper(network, alphas, alpha_bars)


def train(
    denoiser: nn.Module,
    x_start: Tensor,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    epochs: int = 20,
    steps_per_epoch: int = 40,
    batch_size: int = 1,
    lr: float = 1e-3,
    decay: bool = True,
    first_index: int = 0,
    seed: int = 1,
) -> list[float]:
    """Train a denoiser in place on the one datum x_start; return each epoch's mean loss.

    Every step draws batch_size indices t uniformly from first_index..T-1, noises x_start
    to x_t with `q_sample`, and takes one AdamW step (PyTorch's defaults) on

        mean((mu~_t(x_t, x_0) - mu_theta(x_t, t))^2)    over coordinates and batch.

    x_start: (D,), on the denoiser's device. decay: let the rate fall from lr to 0, as half
    a cosine; False keeps it (published). first_index: 0, or 1 to leave out the chain's
    last step (published). The denoiser is left in evaluation mode.
    """
    denoiser.train()
    generator = torch.Generator(x_start.device).manual_seed(seed)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=lr, fused=True)
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs * steps_per_epoch)
    x_start = x_start.expand(batch_size, -1)
    shape, losses = (steps_per_epoch, batch_size), []
    for _ in (bar := trange(epochs, desc="training", **BAR)):
        # An epoch's indices at once: bringing them to the CPU makes it wait for a GPU.
        indices = torch.randint(
            first_index, len(alphas), shape, generator=generator, device=x_start.device
        )
        total = 0
        for t in indices.cpu():
            x_t = q_sample(x_start, t, alpha_bars, generator=generator)
            target, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(prediction(denoiser, x_t, t), target)
            loss.backward()
            optimizer.step()
            if decay:
                scheduler.step()
            total += loss.detach()
        losses.append(total.item() / steps_per_epoch)
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
    denoiser.eval()
    return losses


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, where the C library is glibc.

    Else the system zeroes the gradients' pages anew at each step of the training, which
    takes 2 to 3 times as long at 2,122 points (`python -m tests.benchmark`).
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


# Drawing

File = str | os.PathLike[str]
# Ink has no red and paper all of it: `_Frames` tells their blends by it.
INK, PAPER = "#000000", "#ffd90f"
BLENDS = LinearSegmentedColormap.from_list("ink on paper", [INK, PAPER], N=256)
PALETTE = BLENDS(range(256), bytes=True)[:, :3].tobytes()
# Filled by the cloud of a picture, [-3, 3) x (-2, 4], with room for a label below it, and
# by N(0, I), of which 0.5 % of the points lie outside.
X_LIMITS, Y_LIMITS = (-3.35, 3.35), (-2.6, 4.1)


def save_film(
    chain: Tensor, labels: Sequence[str], path: File, *, fps: float = 8, dpi: int = 120
) -> None:
    """Write the film of a chain, as `animate` gives it, as an animated GIF.

    A frame lasts 1 / fps, rounded to 10 ms; the last one is held for 1.5 s at least.
    """
    first, *others = _render(animate(chain, labels, dpi=dpi))
    durations = [10 * round(100 / fps)] * len(chain)
    durations[-1] = max(durations[-1], 1500)
    options = {"append_images": others, "duration": durations, "loop": 0}
    write_whole(path, lambda part: first.save(part, save_all=True, **options))


def animate(
    chain: Tensor, labels: Sequence[str], *, dpi: float = 120, letters: float = 16
) -> ArtistAnimation:
    """Return the film of a chain, (states, 2N), with one label each, 8 states a second.

    In a notebook, `IPython.display.HTML(animate(...).to_jshtml())` plays it: as many
    frames, of 5 x 5 inches, as fit into `rcParams["animation.embed_limit"]`, 20 MB.
    """
    # Outside pyplot and the caller's settings: no window opens, and no backend changes.
    with style.context("default"):
        figure = Figure(figsize=(5, 5), dpi=dpi, facecolor=PAPER)
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1), xlim=X_LIMITS, ylim=Y_LIMITS, aspect="equal")
        ax.set_axis_off()
        camera = Camera(figure)
        behind = {"facecolor": PAPER, "linewidth": 0, "pad": 2}
        pairs = zip(chain.tolist(), labels, strict=True)
        for state, label in tqdm(pairs, "drawing", len(chain), delay=1, **BAR):
            points = pd.DataFrame(dict(zip("xy", unpack_1d_data(state))))
            sns.scatterplot(points, x="x", y="y", ax=ax, s=8, color=INK, linewidth=0)
            ax.text(-3.2, -2.45, label, size=letters, color=INK, bbox=behind)
            camera.snap()
        return camera.animate(interval=125)


def strip(chain: Tensor, labels: Sequence[str], *, dpi: float = 60) -> Image.Image:
    """Return ten evenly spaced states of a film, as in `animate`, as `stills`."""
    pairs = list(zip(chain, labels, strict=True))
    kept = np.linspace(0, len(pairs) - 1, min(10, len(pairs))).round().astype(int)
    clouds, labels = zip(*(pairs[k] for k in kept))
    columns = math.ceil(len(kept) / 2)
    return stills(torch.stack(clouds), labels, columns=columns, dpi=dpi)


def stills(
    clouds: Tensor, labels: Sequence[str], *, columns: int = 5, dpi: float = 60
) -> Image.Image:
    """Return pictures of clouds, (K, 2N), with one label each, in rows of `columns`."""
    # Larger letters than in the film, since a sheet is looked at much reduced.
    frames = _render(animate(clouds, labels, dpi=dpi, letters=28))
    columns, side = min(columns, len(frames)), frames[0].width
    pitch = side + math.ceil(side / 60)
    rows = math.ceil(len(frames) / columns)
    size = columns * pitch - pitch + side, rows * pitch - pitch + side
    sheet = Image.new("RGB", size, "white")
    for k, frame in enumerate(frames):
        sheet.paste(frame, (k % columns * pitch, k // columns * pitch))
    return sheet


class _Frames(PillowWriter):
    """Keeps each frame as the animation has just drawn it, where others draw it again."""

    def grab_frame(self, **savefig_kwargs: object) -> None:
        # From ink to paper red grows from 0 to 255: it is the index in their palette.
        frame = Image.fromarray(np.asarray(self.fig.canvas.buffer_rgba())[..., 0])
        frame.putpalette(PALETTE)
        self._frames.append(frame)

    def finish(self) -> None:
        """Write nothing: an animation calls this even when it was interrupted."""


def _render(animation: ArtistAnimation) -> list[Image.Image]:
    """Return the frames of an animation as pictures."""
    frames = _Frames()
    with style.context("default"):
        animation.save(os.devnull, writer=frames)
    return frames._frames


# Doors: what may be asked for, what is written, what stops a command


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """Return what reads a flag's number, from low to high."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low} to {high}, got {text}")
        return value

    parse.__name__ = kind.__name__  # what argparse calls a text that is no number
    return parse


def check_output(path: Path, suffix: str, *others: Path) -> None:
    """Raise ValueError unless a file can be written there, and is none of the others."""
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    target = os.path.realpath(path)
    try:
        with suppress(FileNotFoundError):
            open(target, "r+b").close()
        TemporaryFile(dir=os.path.dirname(target)).close()
    except OSError as why:
        raise ValueError(f"{path} cannot be written: {why.strerror or why}") from None
    for other in others:
        both = target, os.path.realpath(other)
        there = all(map(os.path.exists, both))
        if os.path.samefile(*both) if there else both[0] == both[1]:
            raise ValueError(f"{path} would overwrite {other}")


def write_whole(path: File, write: Callable[[Path], object]) -> None:
    """Have a file written beside its target and moved into place, whole or not at all.

    Raises OSError. If it cannot be moved, the error tells where it is.
    """
    target, found = Path(os.path.realpath(path)), ""
    whole = target.with_name(token_hex(8) + Path(path).suffix)  # it tells the format
    part = whole.with_name(f".{whole.name}")
    try:
        write(part)
        part.rename(whole)
        found = f"; it is kept as {whole}"
        whole.replace(target)
    except OSError as error:
        reason = f"{error.strerror or error}{found}"
        raise OSError(error.errno, reason, str(target)) from None
    finally:
        part.unlink(missing_ok=True)


def command(name: str, run: Callable[[], None], tip: str) -> None:
    """Run a command: what stops it is one line, with a tip for want of memory or a GPU."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of any letters
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except (FloatingPointError, MemoryError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or "out of memory"
        wanting = isinstance(error, (MemoryError, RuntimeError))
        sys.exit(f"{name}: error: {reason}" + wanting * f": {tip}")


# The experiment


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment as the command line asks: report, film, strip.

    Bad input ends with status 2 and one line on standard error, before any training;
    FloatingPointError is raised if a figure is not finite.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.as_published and args.timesteps < 2:
        parser.error("--as-published leaves out index 0: --timesteps must be above 1")
    try:
        check_output(args.output, ".gif", args.image)
        if args.strip:
            check_output(args.strip, ".png", args.image, args.output)
        alphas, alpha_bars = schedule = noise_schedule(
            args.timesteps, args.beta_start, args.beta_end
        )
        with warnings.catch_warnings(record=True, action="always") as notes:
            x_start = image_to_vector(
                args.image, args.image_size, args.threshold, args.max_points, args.fit
            )
    except ValueError as error:
        parser.error(str(error))
    for note in notes:
        print(f"main.py: note: {note.message}", file=sys.stderr)

    keep_freed_memory()
    x_start = x_start.to(args.device)
    first_index = int(args.as_published)
    denoiser = build_denoiser(
        args.predict,
        len(x_start),
        *schedule,
        hidden_dim=args.hidden,
        published_embedding=args.as_published,
        seed=args.seed,
    ).to(args.device)
    began = perf_counter()
    losses = train(
        denoiser,
        x_start,
        *schedule,
        epochs=args.epochs,
        steps_per_epoch=args.steps_per_epoch,
        batch_size=args.batch_size,
        lr=args.lr,
        decay=not args.as_published,
        first_index=first_index,
        seed=args.seed + 1,
    )
    train_s = perf_counter() - began
    there = forward(x_start, alphas, seed=args.seed + 4)
    chain = sample(
        denoiser,
        alphas,
        len(x_start),
        x_T=there[-1] if args.both_ways else None,
        variance=args.variance,
        first_index=first_index,
        seed=args.seed + 2,
        device=args.device,
    )

    variance_kl, mean_kl = vb_terms(
        denoiser, x_start, *schedule, variance=args.variance, seed=args.seed + 3
    )
    report = {
        "points": len(x_start) // 2,
        "alpha_bar_T": alpha_bars[-1].item(),
        "prior_kl": prior_kl(x_start, alpha_bars),
        "variance_kl": variance_kl.sum().item(),
        "mean_kl": mean_kl.sum().item(),
        "train_s": train_s,
        "loss": losses[-1],
        "rmse": (chain[-1] - x_start).double().square().mean().sqrt().item(),
    }
    for name, value in report.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}: lower --lr or change betas")
    for name, value in report.items():
        print(f"{name:<12} {value:.{4 if value % 1 else 7}g}")  # a count is whole
    if report["prior_kl"] > 0.1:
        print("note: x_T still remembers the picture: raise --beta-end or --timesteps")

    times = [*range(args.timesteps, first_index - 1, -1)]
    if args.both_ways:
        held = math.ceil(args.timesteps / 4)  # at x_T, for a strip to have it twice
        chain = torch.cat([there, there[-1:].expand(held, -1), chain])
        times = [*range(args.timesteps + 1), *[args.timesteps] * held, *times]
    labels = [f"$t = {t}$" for t in times]
    save_film(chain, labels, args.output, fps=args.fps, dpi=args.dpi)
    print(f"{'output':<12} {args.output}")
    if args.strip:
        write_whole(args.strip, strip(chain, labels, dpi=args.dpi * 2 / 5).save)
        print(f"{'strip':<12} {args.strip}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="main.py",
        usage=argparse.SUPPRESS,  # which every error would repeat
        description="Turn a picture into a cloud of points, train a diffusion model on "
        "that one cloud, and film its way back out of noise. The defaults are the "
        "published hyperparameters, with three mends that --as-published takes back.",
        epilog="The report, in nats per dimension: prior_kl, KL of q(x_T | x_0) to "
        "N(0, I); variance_kl and mean_kl, KL of the exact steps back to the network's, "
        "t = 2..T: what their variance costs and what their mean does. train_s: seconds "
        "of training. loss: of the last epoch. rmse: the last state against x_0.",
    )

    def flag(name: str, default: object, kind: object, meaning: str) -> None:
        kind = {"choices": kind} if isinstance(kind, list) else {"type": kind}
        meaning += " (default: %(default)s)"
        parser.add_argument(name, default=default, help=meaning, **kind)

    def switch(name: str, meaning: str) -> None:
        parser.add_argument(name, action="store_true", help=meaning)

    count = number(int, 1, 1_000_000)
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    outputs, variances = ["mean", "start", "noise"], ["beta", "posterior"]
    homer = Path(__file__).resolve().with_name("homer.png")
    flag("--image", homer, Path, "picture to learn, dark lines on a light ground")
    switch("--fit", "find the drawing: turn light on dark round, stretch greys, crop")
    flag("--image-size", IMG_SIZE, number(int, 1, 10_000), "pixels a side to work at")
    flag("--threshold", 50, number(int, 0, 255), "lightest grey that makes a point")
    flag("--max-points", 2500, number(int, 2, 1_000_000), "points to keep at most")
    flag("--timesteps", 30, number(int, 1, 1000), "diffusion steps T")
    flag("--beta-start", 4e-4, float, "noise variance of the first step")
    flag("--beta-end", 0.02, float, "noise variance of the last step")
    flag("--predict", "mean", outputs, "the network's output: x_{t-1}'s mean, x_0, eps")
    flag("--hidden", None, count, "width of the hidden layers; if left out, x_0's")
    flag("--epochs", 20, count, "epochs of training")
    flag("--steps-per-epoch", 40, count, "training steps in an epoch")
    flag("--batch-size", 1, count, "noised states in a training step")
    flag("--lr", 1e-3, number(float, 1e-12, 1e3), "AdamW's learning rate at first")
    flag("--variance", "beta", variances, "of a step back: beta_t, or beta~_t (exact)")
    switch("--as-published", "leave out index 0, embed index i as row i, keep the lr")
    flag("--seed", 0, number(int, 0, 2**32 - 1), "seed of everything random")
    flag("--device", devices[0], devices, "where to compute")
    flag("--output", Path("output.gif"), Path, "film to write, a GIF")
    flag("--strip", None, Path, "picture of ten of its stills to write, a PNG")
    switch("--both-ways", "film the forward process too, and go back from its x_T")
    flag("--fps", 8, number(float, 0.5, 50), "frames a second, as near as GIF can")
    flag("--dpi", 120, number(int, 10, 1000), "pixels per inch of 5-inch frames")
    return parser


if __name__ == "__main__":
    lower = "lower --hidden, --batch-size or --max-points, or take --device cpu"
    command("main.py", main, lower)
