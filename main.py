"""A diffusion model of one picture: trained on it, sampled from noise, and filmed.

`image_to_vector` (2N,) -> `train` -> `sample` (states, 2N) -> `save_film`
"""

import argparse
import ctypes
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast

if __name__ == "__main__" and "ipykernel" not in sys.modules:
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's `!` command inherits

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
    prior_kl,
    q_sample,
    sample,
    vb_terms,
)
from utils import IMG_SIZE, image_to_vector, unpack_1d_data

File = str | os.PathLike[str]
BAR: dict[str, Any] = {}  # of progress, shown in notebooks
if "ipykernel" not in sys.modules:
    BAR["disable"] = not sys.stderr or None  # None: shown in terminals


def build_model(
    predict: Literal["mean", "start", "noise"],
    x_dim: int,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    hidden_dim: int | None = None,
    published_embedding: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return an untrained denoise_model whose network predicts what `predict` names."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        network = Denoising(x_dim, len(alphas), hidden_dim)
    if published_embedding:  # index i is row i of the position table, not i + 1
        network.emb = position_encoding_init(len(alphas), x_dim)
    if predict == "mean":  # of x_{t-1}, as published; "start" is x_0
        return network
    wrapper = {"start": PredictStart, "noise": PredictNoise}[predict]
    return wrapper(network, alphas, alpha_bars)


def train(
    denoise_model: nn.Module,
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
    """Train in place on one example, x_start (D,); return the mean loss of each epoch.

    It is (mu~_t(x_t, x_0) - mu_theta(x_t, t))^2, whatever the network predicts, for
    indices uniform in first_index..T-1. decay: anneal lr to 0 along half a cosine.
    """
    denoise_model.train()
    generator = torch.Generator(x_start.device).manual_seed(int(seed))
    optimizer = torch.optim.AdamW(denoise_model.parameters(), lr=lr, fused=True)
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs * steps_per_epoch)
    x_start = x_start.expand(batch_size, -1)  # (B, D)
    shape, losses = (steps_per_epoch, batch_size), []
    for _ in (bar := trange(epochs, desc="training", **BAR)):
        # All of an epoch's indices at once: each copy to the CPU waits for the GPU.
        indices = torch.randint(
            first_index, len(alphas), shape, generator=generator, device=x_start.device
        )
        total = torch.zeros((), device=x_start.device)
        for t in indices.cpu():  # (B,)
            x_t = q_sample(x_start, t, alpha_bars, generator=generator)
            target, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(denoise_model(x_t, t), target)
            loss.backward()
            optimizer.step()
            if decay:
                scheduler.step()
            total += loss.detach()
        losses.append(total.item() / steps_per_epoch)
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
    denoise_model.eval()
    return losses


# Red runs from 0 (ink) to 255 (paper), so it is also the index into PALETTE.
INK, PAPER = "#000000", "#ffd90f"
BLENDS = LinearSegmentedColormap.from_list("ink on paper", [INK, PAPER])
PALETTE = BLENDS(range(256), bytes=True)[:, :3].tobytes()
# Room for any picture's cloud, a label below it, and 99.5 % of the points of N(0, I).
X_LIMITS, Y_LIMITS = (-3.35, 3.35), (-2.6, 4.1)


def animate(
    chain: Tensor, labels: Sequence[str], *, dpi: float = 120, letters: float = 16
) -> ArtistAnimation:
    """Return the film of a chain, (states, 2N), one label per state, 8 a second."""
    # Neither pyplot nor the caller's settings: no window opens, the backend stays.
    with style.context("default"):
        figure = Figure(figsize=(5, 5), dpi=dpi, facecolor=PAPER)
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1), xlim=X_LIMITS, ylim=Y_LIMITS, aspect="equal")
        ax.set_axis_off()
        camera = Camera(figure)
        behind = {"facecolor": PAPER, "linewidth": 0, "pad": 2}
        pairs = zip(chain.tolist(), labels, strict=True)
        for state, label in tqdm(pairs, "drawing", len(chain), delay=1, **BAR):
            points = pd.DataFrame(dict(zip("xy", unpack_1d_data(state), strict=True)))
            sns.scatterplot(points, x="x", y="y", ax=ax, s=8, color=INK, linewidth=0)
            ax.text(-3.2, -2.45, label, size=letters, color=INK, bbox=behind)
            camera.snap()
        return camera.animate(interval=125)


class _Frames(PillowWriter):  # keeps each frame as just drawn, and writes no file
    _frames: list[Image.Image]  # which PillowWriter makes anew for each animation

    def grab_frame(self, **savefig_kwargs: object) -> None:
        canvas = cast(FigureCanvasAgg, self.fig.canvas)
        self._frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., 0]))
        self._frames[-1].putpalette(PALETTE)

    def finish(self) -> None: ...


def _drawn(film: ArtistAnimation) -> list[Image.Image]:
    """Return the frames of a film."""
    writer = _Frames()
    with style.context("default"):
        film.save(os.devnull, writer=writer)
    return writer._frames


def save_film(
    chain: Tensor, labels: Sequence[str], path: File, *, fps: float = 8, dpi: int = 120
) -> None:
    """Write the film of a chain as a GIF; the last frame is held for at least 1.5 s."""
    first, *others = _drawn(animate(chain, labels, dpi=dpi))
    lasting = [10 * round(100 / fps)] * len(chain)  # a GIF counts in 10 ms
    lasting[-1] = max(lasting[-1], 1500)
    options: dict[str, Any] = {"append_images": others, "duration": lasting, "loop": 0}
    write_whole(path, lambda part: first.save(part, "GIF", save_all=True, **options))


def stills(
    clouds: Tensor, labels: Sequence[str], *, columns: int = 5, dpi: float = 60
) -> Image.Image:
    """Return a sheet of clouds, (K, 2N), one label each, in rows of `columns`."""
    panels = _drawn(animate(clouds, labels, dpi=dpi, letters=28))
    columns, side = min(columns, len(panels)), panels[0].width
    gap, rows = math.ceil(side / 60), math.ceil(len(panels) / columns)
    size = columns * (side + gap) - gap, rows * (side + gap) - gap
    sheet = Image.new("RGB", size, "white")
    for k, panel in enumerate(panels):
        sheet.paste(panel, (k % columns * (side + gap), k // columns * (side + gap)))
    return sheet


def strip(chain: Tensor, labels: Sequence[str], *, dpi: float = 60) -> Image.Image:
    """Return up to ten evenly spaced states of a chain, (states, 2N), as a sheet."""
    kept = np.linspace(0, len(chain) - 1, min(10, len(chain))).round().astype(int)
    return stills(chain[kept], [labels[k] for k in kept], dpi=dpi)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment as the command line asks: report, film, strip."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.as_published and args.timesteps < 2:
        parser.error("--as-published skips t = 1: --timesteps must be at least 2")
    try:
        check_output(args.output, ".gif", args.image)
        if args.strip:
            check_output(args.strip, ".png", args.image, args.output)
        schedule = noise_schedule(args.timesteps, args.beta_start, args.beta_end)
        with warnings.catch_warnings(record=True, action="always") as notes:
            x_start = image_to_vector(
                args.image, args.image_size, args.threshold, args.max_points, args.fit
            ).to(args.device)
    except ValueError as error:
        parser.error(str(error))
    for note in notes:
        print(f"main.py: note: {note.message}", file=sys.stderr)

    keep_freed_memory()
    alphas, alpha_bars = schedule
    first_index = int(args.as_published)
    denoise_model = build_model(
        args.predict,
        len(x_start),
        *schedule,
        hidden_dim=args.hidden,
        published_embedding=args.as_published,
        seed=args.seed,
    ).to(args.device)
    began = perf_counter()
    losses = train(
        denoise_model,
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
    path = forward(x_start, alphas, seed=args.seed + 4)
    chain = sample(
        denoise_model,
        alphas,
        len(x_start),
        x_T=path[-1] if args.both_ways else None,
        variance=args.variance,
        first_index=first_index,
        seed=args.seed + 2,
        device=args.device,
    )
    variance_kl, mean_kl = vb_terms(
        denoise_model, x_start, *schedule, variance=args.variance, seed=args.seed + 3
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
        print(f"{name:<12} {value:.{4 if value % 1 else 7}g}")  # whole numbers in full
    if report["prior_kl"] > 0.1:
        print("note: q(x_T | x_0) is far from N(0, I): raise --beta-end or --timesteps")

    times = [*range(args.timesteps, first_index - 1, -1)]
    if args.both_ways:
        held = math.ceil(args.timesteps / 4)  # at x_T, so that a strip shows it twice
        chain = torch.cat([path, path[-1:].expand(held, -1), chain])
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
        usage=argparse.SUPPRESS,  # or every error would repeat it
        description="Turn a picture into a cloud of points, train a diffusion model on "
        "this single example, and film the reverse process. The defaults are the "
        "published hyperparameters with three fixes, which --as-published reverts.",
        epilog="Report: alpha_bar_T: squared weight of x_0 in x_T; prior_kl (x_T "
        "against noise), variance_kl, mean_kl (reverse steps t = 2..T): parts of the "
        "variational bound in nats per dimension, lower is better; train_s: seconds; "
        "loss: last epoch; rmse: last state against x_0 (the picture is 6 units wide).",
    )

    def flag(name: str, default: object, kind: Any, meaning: str) -> None:
        how: dict[str, Any] = {"choices" if isinstance(kind, list) else "type": kind}
        how = {"action": "store_true"} if kind is bool else how
        meaning += "" if default is None or kind is bool else " (default: %(default)s)"
        parser.add_argument(name, default=default, help=meaning, **how)

    count = number(int, 1, 1_000_000)
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    outputs, variances = ["mean", "start", "noise"], ["beta", "posterior"]
    homer = Path(__file__).resolve().with_name("homer.png")
    flag("--image", homer, Path, "picture to learn: dark lines on a light background")
    flag("--fit", False, bool, "find the drawing, dark or light, and crop to it")
    flag("--image-size", IMG_SIZE, number(int, 1, 10_000), "resize to this many pixels")
    flag("--threshold", 50, number(int, 0, 255), "lightest grey of ink; 0 is black")
    flag("--max-points", 2500, number(int, 2, 1_000_000), "maximum number of points")
    flag("--timesteps", 30, number(int, 1, 1000), "number of diffusion steps, T")
    flag("--beta-start", 4e-4, float, "noise variance of the first step, beta_1")
    flag("--beta-end", 0.02, float, "noise variance of the last step, beta_T")
    flag("--predict", "mean", outputs, "network output: x_{t-1}'s mean, x_0, or noise")
    flag("--hidden", None, count, "width of hidden layers (default: dimension of x_0)")
    flag("--epochs", 20, count, "number of training epochs")
    flag("--steps-per-epoch", 40, count, "training steps in each epoch")
    flag("--batch-size", 1, count, "noisy states in each training step")
    flag("--lr", 1e-3, number(float, 1e-12, 1e3), "initial learning rate of AdamW")
    flag("--variance", "beta", variances, "reverse variance: beta_t or the posterior's")
    flag("--as-published", False, bool, "skip t = 1, embed t as row t-1, fix lr")
    flag("--seed", 0, number(int, 0, 2**32 - 1), "first of a run's five random seeds")
    flag("--device", devices[0], devices, "device to compute on")
    flag("--output", Path("output.gif"), Path, "GIF file for the film")
    flag("--strip", None, Path, "PNG file for a strip of up to ten frames")
    flag("--both-ways", False, bool, "film forward process, then sampling from its x_T")
    flag("--fps", 8, number(float, 0.5, 50), "frames per second, as near as GIF allows")
    flag("--dpi", 120, number(int, 10, 1000), "resolution of the 5-inch frames")
    return parser


def number(kind: type, low: float, high: float) -> Callable[[str], Any]:
    """Return a parser for a flag's number from low to high."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what} from {low} to {high}")

    return parse


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, so that Linux need not zero it at each step."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def check_output(path: Path, suffix: str, *others: Path) -> None:
    """Raise ValueError unless path has the suffix, is writable, and is not another."""
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    for other in others:
        if path.exists() and other.exists() and path.samefile(other):
            raise ValueError(f"{path} would overwrite {other}")
    try:
        if path.exists():
            open(path, "r+b").close()
        part = Path(os.path.realpath(path)).with_name(os.urandom(8).hex())
        part.touch()
        part.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def write_whole(path: File, write: Callable[[Path], object]) -> None:
    """Write a file in full or not at all; if it cannot be moved, keep it nearby."""
    target, kept = Path(os.path.realpath(path)), ""
    part = target.with_name(os.urandom(8).hex() + Path(path).suffix)  # its format
    try:
        write(part)
        kept = f"; the new file is kept as {part}"
        part.replace(target)
    except OSError as error:
        raise OSError(f"{target}: {error.strerror or error}{kept}") from None
    finally:
        if not kept:
            part.unlink(missing_ok=True)


def command(name: str, run: Callable[[], None], tip: str) -> None:
    """Run a command; report in one line what stops it, with a tip on memory."""
    if hasattr(sys.stdout, "reconfigure"):  # for names it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    if "ipykernel" not in sys.modules:  # whose own handler stays
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except (FloatingPointError, MemoryError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or "out of memory"
        failed = isinstance(error, (MemoryError, RuntimeError))
        sys.exit(f"{name}: error: {reason}" + (f": {tip}" if failed else ""))


if __name__ == "__main__":
    lower = "lower --hidden, --batch-size, --max-points or --dpi, or use --device cpu"
    command("main.py", main, lower)
