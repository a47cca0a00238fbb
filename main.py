"""A diffusion model of one picture: from noise to a face, and the film of it.

The way through: `image_to_vector` (2N,) -> `train` -> `sample` (T + 1, 2N), every state
of the reverse chain -> `draw_film`. `python main.py --help` lists the settings.
"""

import signal

if __name__ == "__main__":
    # Loading PyTorch takes seconds: an interrupt there ends the process, and no more.
    interrupt_handler = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import ctypes
import io
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal, NoReturn

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
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm, trange

from diffusion import (
    Denoiser,
    Denoising,
    PredictNoise,
    PredictStart,
    check_sizes,
    denoise_with_mu,
    gaussian_kl,
    noise_schedule,
    position_encoding_init,
    posterior_mean_variance,
    q_sample,
)
from utils import IMG_SIZE, image_to_vector, unpack_1d_data

# Ink has no red and paper all of it: `_Frames` tells their blends by it.
INK, PAPER = "#000000", "#ffd90f"
BLENDS = LinearSegmentedColormap.from_list("ink on paper", [INK, PAPER], N=256)
PALETTE = BLENDS(range(256), bytes=True)[:, :3].tobytes()
# Wide enough for the cloud of any picture, [-3, 3) x (-2, 4], for N(0, I), and for most
# of what lies between them.
X_LIMITS, Y_LIMITS = (-4.2, 4.2), (-3.6, 4.8)


def build_denoiser(
    predict: str,
    x_dim: int,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    hidden_dim: int | None = None,
    published_embedding: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return an untrained denoiser: the network, asked for what `predict` names.

    "mean": the network's output is the mean of x_{t-1} (published); "start": it is x_0,
    and the mean follows from the posterior; "noise": it is the noise in x_t, likewise.
    `published_embedding` embeds index i as row i of the position table, not i + 1.
    `seed` drives the initial weights and leaves PyTorch's global state as it was.
    """
    if predict not in ("mean", "start", "noise"):
        raise ValueError(f"predict must be mean, start or noise, got {predict!r}")
    num_timesteps = len(alphas)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = Denoising(x_dim, num_timesteps, hidden_dim)
    if published_embedding:
        network.emb = position_encoding_init(num_timesteps, x_dim)
    if predict == "start":
        return PredictStart(network, alphas, alpha_bars)
    if predict == "noise":
        return PredictNoise(network, alphas, alpha_bars)
    return network


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
    seed: int = 0,
) -> list[float]:
    """Train a denoiser in place on the one datum x_start; return each epoch's mean loss.

    Every step draws batch_size indices t uniformly from first_index..T-1, noises x_start
    to x_t with `q_sample`, and takes one AdamW step (PyTorch's defaults) on

        mean((mu~_t(x_t, x_0) - mu_theta(x_t, t))^2)    over coordinates and batch.

    x_start: (D,), on the denoiser's device. decay: let the learning rate fall from lr to
    0 over the run, as half a cosine; False keeps it (published). first_index: 0, or 1 to
    leave out the chain's last step (published). Raises FloatingPointError once the loss
    is no longer finite.
    """
    check_sizes(epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    _check_first_index(first_index, alphas)
    generator = torch.Generator(x_start.device).manual_seed(seed)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=lr, fused=True)
    # Falling to lr is not falling at all.
    scheduler = CosineAnnealingLR(
        optimizer, T_max=epochs * steps_per_epoch, eta_min=0 if decay else lr
    )
    x_start = x_start.expand(batch_size, -1)
    losses = []
    for epoch in (bar := trange(epochs, desc="training", disable=None)):
        # An epoch's indices at once: bringing them to the CPU makes it wait for a GPU.
        indices = torch.randint(
            first_index,
            len(alphas),
            (steps_per_epoch, batch_size),
            generator=generator,
            device=x_start.device,
        )
        total = torch.zeros((), device=x_start.device)
        for t in indices.cpu():
            optimizer.zero_grad()
            x_t = q_sample(x_start, t, alpha_bars, generator=generator)
            target, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
            loss = mse_loss(denoiser(x_t, t), target)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        losses.append(total.item() / steps_per_epoch)
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss is {losses[-1]} in epoch {epoch + 1}, with a learning rate "
                f"that began at {lr}: try a smaller --lr"
            )
    return losses


def sample(
    denoiser: Denoiser,
    alphas: Tensor,
    data_size: int,
    *,
    x_T: Tensor | None = None,
    variance: Literal["beta", "posterior"] = "beta",
    first_index: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Run the reverse chain from pure noise; return all its states, x_T first.

    One `denoise_with_mu` step for each index T-1..first_index. With first_index 0 the
    last row is x_0, and the shape (T + 1, data_size); with 1 (published) it is x_1, and
    there are T rows.

    x_T: the starting state, (data_size,); None draws it from N(0, I) on `device`.
    """
    _check_first_index(first_index, alphas)
    device = device if x_T is None else x_T.device
    generator = torch.Generator(device).manual_seed(seed)
    if x_T is None:
        x_T = torch.randn(data_size, generator=generator, device=device)
    chain = [x_T]
    for t in reversed(range(first_index, len(alphas))):
        x_t = chain[-1]
        x_t_before = denoise_with_mu(
            denoiser, x_t, t, alphas, data_size, variance=variance, generator=generator
        )
        chain.append(x_t_before)
    return torch.stack(chain)


def _check_first_index(first_index: int, alphas: Tensor) -> None:
    if not 0 <= first_index < len(alphas):
        raise ValueError(
            f"first_index must lie in 0..{len(alphas) - 1}, got {first_index}"
        )


@torch.no_grad()
def mean_gap(
    denoiser: Denoiser,
    x_start: Tensor,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    states_per_step: int = 8,
    seed: int = 0,
) -> Tensor:
    """Return how far the denoiser's mean is from the exact one, for t = 2..T: (T - 1,).

    KL(N(mu~_t, beta_t I) || N(mu_theta(x_t, t), beta_t I)), which is
    norm(mu~_t - mu_theta)^2 / (2 beta_t), in nats per dimension, averaged over
    `states_per_step` draws of x_t from q(x_t | x_0). It is what the t-th term of the
    bound owes to the mean, at the published variance; t = 1 has no finite value.
    """
    generator = torch.Generator(x_start.device).manual_seed(seed)
    x_start = x_start.expand(states_per_step, -1)
    gaps = []
    for t in range(1, len(alphas)):
        x_t = q_sample(x_start, t, alpha_bars, generator=generator)
        exact, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
        beta = (1 - alphas[t]).item()
        kl = gaussian_kl(exact, beta, denoiser(x_t, t), beta)
        gaps.append(kl.mean() / x_start.shape[-1])
    return torch.stack(gaps) if gaps else x_start.new_zeros(0)


def prior_kl(x_start: Tensor, alpha_bars: Tensor) -> float:
    """Return KL(q(x_T | x_0) || N(0, I)) in nats per dimension.

    The first term of the bound: what the chain loses by starting from pure noise.
    """
    mean = alpha_bars[-1].sqrt().item() * x_start
    variance = 1 - alpha_bars[-1].item()
    kl = gaussian_kl(mean, variance, torch.zeros_like(mean), 1.0)
    return kl.item() / len(x_start)


def animate(
    chain: Tensor, *, fps: float = 24, dpi: float = 120, first_index: int = 0
) -> ArtistAnimation:
    """Return the film of a chain, one frame of 5 x 5 inches per state.

    In a notebook, `IPython.display.HTML(animate(chain).to_jshtml())` plays it.

    chain: (states, 2N), its last row x_t with t = first_index.
    """
    labels = _labels(len(chain), first_index)
    return _animation(chain, labels, 16, dpi, interval=1000 / fps)


def draw_film(
    chain: Tensor,
    path: str | os.PathLike[str],
    *,
    fps: float = 24,
    dpi: float = 120,
    first_index: int = 0,
) -> None:
    """Write the film of a chain, as `animate` gives it, as an animated GIF.

    A frame lasts 1 / fps, rounded to the centiseconds of a GIF; the last one is held
    for 1.5 s at least.
    """
    first, *others = _render(animate(chain, dpi=dpi, first_index=first_index))
    durations = [10 * round(100 / fps)] * len(chain)
    durations[-1] = max(durations[-1], 1500)
    film = io.BytesIO()
    first.save(
        film, "gif", save_all=True, append_images=others, duration=durations, loop=0
    )
    _write_whole(path, film.getvalue())


def stills(
    clouds: Tensor, labels: Sequence[str], *, columns: int = 5, dpi: float = 60
) -> Image.Image:
    """Return pictures of clouds, each with its label, in rows of `columns`.

    clouds: (K, 2N), with one label each. A picture has 5 x 5 inches.
    """
    # Larger letters than in the film, since a sheet is looked at much reduced.
    frames = _render(_animation(clouds, labels, 28, dpi))
    columns, side = min(columns, len(frames)), frames[0].width
    pitch = side + math.ceil(side / 60)
    rows = math.ceil(len(frames) / columns)
    sheet = Image.new(
        "RGB", (columns * pitch - pitch + side, rows * pitch - pitch + side), "white"
    )
    for k, frame in enumerate(frames):
        sheet.paste(frame, (k % columns * pitch, k // columns * pitch))
    return sheet


def strip(chain: Tensor, *, dpi: float = 60, first_index: int = 0) -> Image.Image:
    """Return ten evenly spaced states of a chain as `stills`, in time order.

    chain and first_index as for `animate`.
    """
    kept = np.linspace(0, len(chain) - 1, min(10, len(chain))).round().astype(int)
    labels = _labels(len(chain), first_index)
    columns = math.ceil(len(kept) / 2)
    return stills(chain[kept], [labels[k] for k in kept], columns=columns, dpi=dpi)


def draw_strip(
    chain: Tensor,
    path: str | os.PathLike[str],
    *,
    dpi: float = 120,
    first_index: int = 0,
) -> None:
    """Write the `strip` of a film as a PNG; a still has two fifths of a frame's side."""
    picture = io.BytesIO()
    strip(chain, dpi=dpi * 2 / 5, first_index=first_index).save(picture, "png")
    _write_whole(path, picture.getvalue())


class _Frames(PillowWriter):
    """Keeps each frame as the animation has just drawn it, where others draw it again."""

    def grab_frame(self, **savefig_kwargs: object) -> None:
        # From ink to paper red grows from 0 to 255: it is the index in their palette.
        frame = Image.fromarray(np.asarray(self.fig.canvas.buffer_rgba())[..., 0])
        frame.putpalette(PALETTE)
        self._frames.append(frame)

    def finish(self) -> None:
        """Write nothing: an animation calls this even when it was interrupted."""


def _animation(
    clouds: Tensor, labels: Sequence[str], size: float, dpi: float, **options: float
) -> ArtistAnimation:
    """Return an animation of clouds, each with its label, on fixed axes."""
    # Outside pyplot and the caller's settings: no window opens, and no backend changes.
    with style.context("default"):
        figure = Figure(figsize=(5, 5), dpi=dpi, facecolor=PAPER)
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1), xlim=X_LIMITS, ylim=Y_LIMITS, aspect="equal")
        ax.set_axis_off()
        camera = Camera(figure)
        behind = {"facecolor": PAPER, "linewidth": 0, "pad": 2}
        pairs = zip(clouds.tolist(), labels, strict=True)
        for cloud, label in tqdm(pairs, "drawing", len(clouds), disable=None):
            points = pd.DataFrame(dict(zip("xy", unpack_1d_data(cloud))))
            sns.scatterplot(points, x="x", y="y", ax=ax, s=8, color=INK, linewidth=0)
            ax.text(-3.9, 4.5, label, size=size, va="top", color=INK, bbox=behind)
            camera.snap()
        return camera.animate(**options)


def _render(animation: ArtistAnimation) -> list[Image.Image]:
    """Return the frames of an animation as pictures."""
    frames = _Frames()
    with style.context("default"):
        animation.save(os.devnull, writer=frames)
    return frames._frames


def _labels(states: int, first_index: int) -> list[str]:
    """Return the paper's t of each row of a chain, as its label."""
    return [f"$t = {t}$" for t in reversed(range(first_index, first_index + states))]


def _write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside the target and move into place: it is replaced whole or not at all."""
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{os.getpid()}.part")
    try:
        part.write_bytes(content)
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    finally:
        part.unlink(missing_ok=True)


def keep_freed_memory() -> None:
    """Let memory that is freed stay with the process, where the C library is glibc.

    Every training step frees the gradients and allocates them anew. glibc hands blocks of
    that size back to the system, and fetching their pages again, zeroed, costs as much
    as the arithmetic.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment as the command line asks, and print its report.

    Exits with status 2 for bad input, before any training, 1 if training or writing
    fails, 130 if interrupted: one line on standard error, and no file left half-written.
    """
    try:
        args = _parser().parse_args(argv)
        keep_freed_memory()
        _run(args)
    except KeyboardInterrupt:
        _stop(130, "interrupted")
    except (FloatingPointError, OSError) as error:
        _stop(1, f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        # Python 3.11 makes a RuntimeError of an interrupt while a class is defined.
        if isinstance(error.__cause__, KeyboardInterrupt):
            _stop(130, "interrupted")
        out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not out_of_memory and "DefaultCPUAllocator" not in str(error):
            raise
        flags = "--hidden, --max-points, --batch-size or --dpi"
        _stop(1, f"error: out of memory: try a smaller {flags}")


def _stop(status: int, message: str) -> NoReturn:
    print("main.py:", *message.splitlines(), file=sys.stderr)
    sys.exit(status)


def _run(args: argparse.Namespace) -> None:
    began = perf_counter()
    try:
        _check(args)
    except ValueError as error:
        _stop(2, f"error: {error}")
    try:
        alphas, alpha_bars = noise_schedule(
            args.timesteps, args.beta_start, args.beta_end
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x_start = image_to_vector(
                args.image, args.image_size, args.threshold, args.max_points
            )
    except OSError as error:
        _stop(2, f"error: --image {args.image}: {error.strerror}")
    except ValueError as error:
        _stop(2, f"error: {error}")
    for warning in caught:
        print(f"main.py: note: {warning.message}", file=sys.stderr)
    loaded = perf_counter()

    x_start = x_start.to(args.device)
    first_index = 1 if args.as_published else 0
    denoiser = build_denoiser(
        args.predict,
        len(x_start),
        alphas,
        alpha_bars,
        hidden_dim=args.hidden,
        published_embedding=args.as_published,
        seed=args.seed,
    ).to(args.device)
    losses = train(
        denoiser,
        x_start,
        alphas,
        alpha_bars,
        epochs=args.epochs,
        steps_per_epoch=args.steps_per_epoch,
        batch_size=args.batch_size,
        lr=args.lr,
        decay=not args.as_published,
        first_index=first_index,
        seed=args.seed + 1,
    )
    trained = perf_counter()

    chain = sample(
        denoiser,
        alphas,
        len(x_start),
        variance=args.variance,
        first_index=first_index,
        seed=args.seed + 2,
        device=args.device,
    )
    rmse = (chain[-1] - x_start).double().square().mean().sqrt().item()
    sampled = perf_counter()

    gaps = mean_gap(denoiser, x_start, alphas, alpha_bars, seed=args.seed + 3)
    chain_kl = gaps.sum().item()
    if not math.isfinite(rmse + chain_kl):
        raise FloatingPointError(
            f"the chain ran out of range (rmse {rmse}, chain_kl {chain_kl}): try a "
            "smaller --lr, a smaller --beta-end or --predict start"
        )
    measured = perf_counter()

    drawing = {"dpi": args.dpi, "first_index": first_index}
    draw_film(chain, args.output, fps=args.fps, **drawing)
    if args.strip:
        draw_strip(chain, args.strip, **drawing)
    drawn = perf_counter()

    report = {
        "points": len(x_start) // 2,
        "alpha_bar_T": alpha_bars[-1].item(),
        "prior_kl": prior_kl(x_start, alpha_bars),
        "loss": losses[-1],
        "chain_kl": chain_kl,
        "rmse": rmse,
        "load_s": loaded - began,
        "train_s": trained - loaded,
        "sample_s": sampled - trained,
        "draw_s": drawn - measured,
        "output": args.output,
    }
    if args.strip:
        report["strip"] = args.strip
    for name, value in report.items():
        print(f"{name:<12}", f"{value:.4g}" if isinstance(value, float) else value)
    if report["prior_kl"] > 0.1:
        print(
            "note: prior_kl is above 0.1: x_T still remembers the picture, but the chain "
            "starts from pure noise, where no training step was; raise --beta-end "
            "(0.6 mends it)"
        )


def _check(args: argparse.Namespace) -> None:
    """Refuse what the flags allow one by one, but not together or not on this machine.

    Also settles `--device auto`.
    """
    if args.as_published and args.timesteps < 2:
        raise ValueError(
            "--as-published leaves out index 0: --timesteps must be above 1"
        )
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here; use cpu")
    taken = {os.path.realpath(args.image): "--image"}
    for flag, path, suffix in (
        ("--output", args.output, ".gif"),
        ("--strip", args.strip, ".png"),
    ):
        if path is None:
            continue
        target = os.path.realpath(path)
        folder = os.path.dirname(target)
        if path.suffix.lower() != suffix:
            raise ValueError(f"{flag} must end in {suffix}, got {path}")
        if target in taken:
            raise ValueError(f"{flag} {path} would overwrite {taken[target]}")
        taken[target] = flag
        if not os.path.isdir(folder):
            raise ValueError(f"{flag} {path}: there is no folder {folder}")
        if os.path.exists(target):
            if not os.path.isfile(target):
                raise ValueError(f"{flag} {path} is a folder or a device, not a file")
            if not os.access(target, os.W_OK):
                raise ValueError(f"{flag} {path} is not writable")
        try:
            path.stat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ValueError(f"{flag} {path}: {error.strerror}") from None
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"{flag} {path}: the folder {folder} is not writable ({error.strerror})"
            ) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _stop(2, f"error: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        description="Turn a picture into a cloud of points, train a diffusion model on "
        "that one cloud, and film its way back out of noise. The defaults are the "
        "published settings.",
        epilog="The report. prior_kl: KL of q(x_T | x_0) to N(0, I); chain_kl: KL of the "
        "reverse steps with the exact mean to those with the network's, summed over "
        "t = 2..T (both in nats per dimension); rmse: the last state against the "
        "picture's cloud, in its units; load_s to draw_s: seconds.",
    )
    count = _number(int, 1, 1_000_000)
    for name, default, kind, meaning in (
        ("--output", Path("output.gif"), Path, "film to write, a GIF"),
        ("--strip", None, Path, "picture of about ten of its stills to write, a PNG"),
        ("--image-size", IMG_SIZE, _number(int, 1, 10_000), "pixels a side to work at"),
        ("--threshold", 50, _number(int, 0, 255), "lightest grey that makes a point"),
        ("--max-points", 2500, _number(int, 2), "points to keep at most"),
        ("--timesteps", 30, count, "diffusion steps T"),
        ("--beta-start", 4e-4, float, "noise variance of the first step"),
        ("--beta-end", 0.02, float, "noise variance of the last step"),
        ("--hidden", None, count, "width of the hidden layers; None: that of the data"),
        ("--epochs", 20, count, "epochs of training"),
        ("--steps-per-epoch", 40, count, "training steps in an epoch"),
        ("--batch-size", 1, count, "noised states in a training step"),
        ("--lr", 1e-3, _number(float, 1e-12), "learning rate of AdamW at the start"),
        ("--seed", 0, _number(int, 0, 2**32 - 1), "seed of everything random"),
        (
            "--fps",
            24,
            _number(float, 0.01, 50),
            "frames per second, as near as GIF can",
        ),
        ("--dpi", 120, _number(int, 10, 13_000), "pixels per inch of 5-inch frames"),
    ):
        meaning += f" (default: {default})"
        parser.add_argument(name, default=default, type=kind, help=meaning)
    for name, choices, meaning in (
        ("--predict", ("mean", "start", "noise"), "mean of x_{t-1}, x_0, or the noise"),
        ("--variance", ("beta", "posterior"), "the reverse step's: beta_t or beta~_t"),
        ("--device", ("auto", "cpu", "cuda"), "auto is CUDA if there is one, else CPU"),
    ):
        meaning += f" (default: {choices[0]})"
        parser.add_argument(name, default=choices[0], choices=choices, help=meaning)
    parser.add_argument(
        "--image",
        default=Path(__file__).with_name("homer.png"),
        type=Path,
        help="picture to learn (default: the homer.png beside main.py)",
    )
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="take back what is mended here: leave out index 0, embed index i as row i "
        "of the position table, keep the learning rate constant",
    )
    return parser


def _number(
    kind: type[int] | type[float], low: float, high: float = sys.float_info.max
) -> Callable[[str], float]:
    """Return what reads a flag's number, from low to high."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            limits = (
                f"at least {low}" if high == sys.float_info.max else f"{low} to {high}"
            )
            raise argparse.ArgumentTypeError(f"must be {limits}, got {value}")
        return value

    parse.__name__ = kind.__name__  # what argparse calls a text that is no number
    return parse


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt_handler)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
