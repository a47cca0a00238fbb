"""Clouds, mosaics and films. What is in the plane is on the axes of `main.py`'s film."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import seaborn as sns
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from main import INK, PAPER, X_LIMITS, Y_LIMITS, write_whole

HUES = sns.husl_palette(256, as_cmap=True)


def blank(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure of a size in inches, and its axes."""
    # Outside pyplot and the caller's settings: no window opens, and no backend changes.
    with style.context("default"):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def panels(rows: int, columns: int, side: float = 2.0) -> tuple[Figure, np.ndarray]:
    """Return a figure of square panels, on the axes of `main.py`'s film, and its axes."""
    figure, axes = blank(rows, columns, side * columns, side * 1.12 * rows)
    for ax in axes.flat:
        ax.set(xlim=X_LIMITS, ylim=Y_LIMITS, aspect="equal", facecolor=PAPER)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 64 colours."""
    options, drawn = {"bbox_inches": "tight", "pad_inches": 0.05}, BytesIO()
    with style.context("default"):
        figure.savefig(drawn, dpi=120, **options)
    picture = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    write_whole(path, lambda part: picture.save(part, optimize=True))


def save_gif(sheets: Sequence[Image.Image], path: Path) -> None:
    """Write the sheets of a film as a GIF, ten a second, the last one for two seconds."""
    first, *others = sheets
    options: dict[str, Any] = {"duration": [100] * len(others) + [2000], "loop": 0}
    options |= {"append_images": others, "save_all": True}
    write_whole(path, lambda part: first.save(part, **options))


def hues(ends: Tensor) -> np.ndarray:
    """Return a colour for each of normalised points, (n, 2), by its angle about 0."""
    turns = torch.atan2(*ends.cpu().T.flip(0)) / (2 * torch.pi) + 0.5
    return HUES(turns.numpy())


def draw_cloud(
    ax: Axes, cloud: Tensor, title: str = "", color: Any = INK, s: float = 2
) -> None:
    """Draw points, (n, 2), with a title above, in one colour or one each."""
    x, y = cloud.T.tolist()
    sns.scatterplot(x=x, y=y, ax=ax, s=s, c=color, linewidth=0)
    ax.set_title(title, size=9)


def plot_clouds(columns: Sequence[Sequence[tuple[str, Tensor]]]) -> Figure:
    """Draw columns of titled clouds, (n, 2) each, in bands of nine columns."""
    wide, high = min(9, len(columns)), max(map(len, columns))
    bands = math.ceil(len(columns) / wide)
    figure, axes = panels(bands * high, wide)
    for k, column in enumerate(columns):
        for row, (title, cloud) in enumerate(column):
            draw_cloud(axes[k // wide * high + row, k % wide], cloud, title)
    for ax in axes.flat:
        if not ax.collections:
            ax.set_axis_off()
    return figure


def frames(
    paths: Mapping[str, Sequence[Tensor]], count: int = 48
) -> list[dict[str, Tensor]]:
    """Return evenly spaced states of paths, (n, D) each, by title, with their step; those
    of more than unit variance are reduced to it, as x_t of VP processes are, or nearly.
    """
    shown = []
    for share in np.linspace(0, 1, count):
        kept = {name: round(share * (len(y) - 1)) for name, y in paths.items()}
        states = {f"{name}: {k}": paths[name][k] for name, k in kept.items()}
        shown.append({key: y / y.std().clamp(min=1) for key, y in states.items()})
    return shown


def cloud_sheets(
    shown: Sequence[dict[str, Tensor]], inks: Sequence[np.ndarray]
) -> list[Image.Image]:
    """Draw clouds side by side, with a colour for each point of each."""
    figure, (axes,) = panels(1, len(inks), side=2.4)
    for ax in axes:
        ax.set_facecolor("white")
    sheets = []
    for clouds in shown:
        for ax, (title, cloud), ink in zip(axes, clouds.items(), inks):
            for old in [*ax.collections]:
                old.remove()
            draw_cloud(ax, cloud, title, ink, 3)
        canvas = cast(FigureCanvasAgg, figure.canvas)
        canvas.draw()
        sheet = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        sheets.append(sheet.convert("RGB"))
    palette = sheets[-1].quantize(64)  # where all colours lie on their own
    plain = Image.Dither.NONE
    return [sheet.quantize(palette=palette, dither=plain) for sheet in sheets]


def plot_lines(
    x: Sequence[float], panels: Mapping[str, Mapping[str, Any]], **settings: Any
) -> Figure:
    """Draw panels of lines over x, by title and by label; settings are those of axes."""
    wide = 2 + max(2.4 * len(panels), 4)
    figure, (axes,) = blank(1, len(panels), wide, 3, sharey=True)
    for ax, (title, lines) in zip(axes, panels.items()):
        for label, y in lines.items():
            ax.plot(x, y, marker="." if len(x) < 20 else "", label=label)
        ax.set(title=title, **settings)
        ax.label_outer()
    axes[-1].legend(bbox_to_anchor=(1, 0.5), loc="center left", frameon=False)
    return figure


def mosaic(x: Tensor, columns: int, scale: int = 1) -> np.ndarray:
    """Return pictures, (n, side^2), as one of uint8 greys on a grid, row by row, -1 and
    below as black, 1 and above as white.
    """
    side, rows = math.isqrt(x.shape[1]), math.ceil(len(x) / columns)
    greys = ((x.cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    cell = side + 2  # with a rim
    cells = torch.full((rows * columns, cell, cell), 190, dtype=torch.uint8)
    cells[: len(x), 1:-1, 1:-1] = greys.view(-1, side, side)
    grid = cells.view(rows, columns, cell, cell).transpose(1, 2)
    whole = grid.reshape(rows * cell, columns * cell)
    return whole.repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()


def plot_mosaics(parts: dict[str, Tensor], columns: int) -> Figure:
    """Draw pictures, (n, side^2) by title, each part on its own grid."""
    greys = {title: mosaic(x, columns) for title, x in parts.items()}
    tall = [9 * grey.shape[0] / grey.shape[1] for grey in greys.values()]
    high = sum(tall) + 0.3 * len(tall)
    figure, axes = blank(len(tall), 1, 9, high, height_ratios=tall)
    for ax, (title, grey) in zip(axes.flat, greys.items()):
        ax.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_title(title, size=9, loc="left")
        ax.set_axis_off()
    return figure
