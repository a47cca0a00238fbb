"""What one looks at: clouds, films, fields, paths, tables, pictures.

What is in the plane is drawn on the axes of `main.py`'s film.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import IO

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from comparison.data import Pictures, Points
from comparison.measures import nearest
from comparison.methods import Row, head, line
from comparison.picture_methods import PictureRow
from comparison.predictors import Predictor
from main import INK, PAPER, X_LIMITS, Y_LIMITS, stills, write_whole

DOCS = Path(__file__).resolve().parents[1] / "docs"
FAINT = "#a38a00"
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"]


def panels(rows: int, columns: int, side: float = 2.0) -> tuple[Figure, np.ndarray]:
    """Return a figure of square panels, on the axes of `main.py`'s film, and its axes."""
    # Outside pyplot and the caller's settings: no window opens, and no backend changes.
    with style.context("default"):
        figure = Figure(
            figsize=(side * columns, side * 1.12 * rows), layout="constrained"
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xlim=X_LIMITS, ylim=Y_LIMITS, aspect="equal", facecolor=PAPER)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    options = {"dpi": 120, "bbox_inches": "tight", "pad_inches": 0.05}
    with style.context("default"):
        write_whole(path, lambda part: figure.savefig(part, **options))


def save_gif(sheets: Sequence[Image.Image], file: Path | IO[bytes]) -> None:
    """Write the sheets of a film as a GIF, ten a second, the last one for two seconds."""
    first, *others = sheets
    options = {"duration": [100] * len(others) + [2000], "loop": 0}
    first.save(file, "GIF", save_all=True, append_images=others, **options)


def in_main_units(x: Tensor, law: Points) -> Tensor:
    """Return normalised points, (..., 2), where `main.py` draws them."""
    return law.centre + law.scale * x.cpu()


def draw_cloud(
    ax: Axes,
    cloud: Tensor,
    law: Points,
    title: str = "",
    color: str = INK,
    s: float = 2,
) -> None:
    """Draw normalised points, (n, 2), with a title above."""
    x, y = in_main_units(cloud, law).T.tolist()
    points = pd.DataFrame({"x": x, "y": y})
    sns.scatterplot(points, x="x", y="y", ax=ax, s=s, color=color, linewidth=0)
    ax.set(xlabel=None, ylabel=None)
    ax.set_title(title, size=9)


def plot_clouds(columns: Sequence[Sequence[tuple[str, Tensor]]], law: Points) -> Figure:
    """Draw columns of titled clouds, (n, 2) each, in bands of nine columns."""
    wide, high = min(9, len(columns)), max(map(len, columns))
    bands = math.ceil(len(columns) / wide)
    figure, axes = panels(bands * high, wide)
    for k, column in enumerate(columns):
        for row, (title, cloud) in enumerate(column):
            ax = axes[k // wide * high + row, k % wide]
            draw_cloud(ax, cloud, law, title)
    for ax in axes.flat:
        if not ax.collections:
            ax.set_axis_off()
    return figure


def film_sheets(
    paths: dict[str, Tensor], law: Points, frames: int = 48
) -> list[Image.Image]:
    """Draw several samplers' states side by side, each from its start to its end.

    paths: by title, (states, n, 2). A state of more than unit variance is drawn reduced
    to it, as the network sees it.
    """
    sheets = []
    for share in np.linspace(0, 1, frames):
        clouds, labels = [], []
        for title, states in paths.items():
            k = round(share * (len(states) - 1))
            x = states[k] / states[k].std().clamp(min=1)
            clouds.append(in_main_units(x, law).flatten())
            labels.append(f"{title}: {k}")
        sheet = stills(torch.stack(clouds), labels, columns=len(paths), dpi=48)
        sheets.append(sheet.quantize(32))
    return sheets


def plot_field(predictors: dict[str, Predictor], law: Points) -> Figure:
    """Draw the score at four noise levels, a row for each predictor.

    An arrow goes a third of the way from x_t to E[x_0 | x_t], (29), which is noise^2
    times the score, where signal is 1.
    """
    noises = (2.0, 0.7, 0.2, 0.05)
    x, y = (torch.linspace(low, high, 25)[1:-1] for low, high in (X_LIMITS, Y_LIMITS))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
    inside = (grid - law.centre) / law.scale
    figure, axes = panels(len(predictors), len(noises), side=3)
    for (name, predictor), row in zip(predictors.items(), axes):
        for noise, ax in zip(noises, row):
            title = f"{name}, $\\sigma$ = {noise:g}"
            draw_cloud(ax, law.data, law, title, color=FAINT, s=3)
            eps = predictor(inside, inside.new_ones(()), inside.new_tensor(noise))
            arrows = (-noise * eps * law.scale).T
            ax.quiver(
                *grid.T, *arrows, color=INK, angles="xy", scale_units="xy", scale=3
            )
    return figure


def plot_paths(paths: dict[str, Tensor], ends: Tensor, law: Points) -> Figure:
    """Draw ways back, (states, n, 2) by title, and an interpolation's ends.

    A square is a way's start, a circle its end; ends: (n, 2).
    """
    figure, axes = panels(1, len(paths) + 1, side=4.5)
    for (title, states), ax in zip(paths.items(), axes.flat):
        draw_cloud(ax, law.data, law, title, color=FAINT, s=5)
        ways = in_main_units(states, law).transpose(0, 1)
        for color, way in zip(COLOURS * len(ways), ways):
            ax.plot(*way.T, color=color, linewidth=0.7)
            style_of = {"color": color, "markersize": 6, "markeredgecolor": INK}
            ax.plot(*way[0], "s", **style_of)
            ax.plot(*way[-1], "o", **style_of)
    ax = axes[0, -1]
    draw_cloud(ax, law.data, law, color=FAINT, s=5)
    draw_cloud(ax, ends, law, "ends of DDIM from an arc", color=COLOURS[0], s=18)
    draw_cloud(ax, ends[[0, -1]], law, "ends of DDIM from an arc", color=INK, s=50)
    return figure


def plot_half(
    seen: Tensor, unseen: Tensor, clouds: dict[str, Tensor], law: Points
) -> Figure:
    """Draw the points seen and unseen in training, and clouds, (n, 2) by title."""
    figure, axes = panels(1, 1 + len(clouds), side=4.5)
    for cloud, color in ((seen, INK), (unseen, COLOURS[0])):
        draw_cloud(
            axes[0, 0], cloud, law, "points: seen (black), unseen (blue)", color, s=7
        )
    for (title, cloud), ax in zip(clouds.items(), axes.flat[1:]):
        draw_cloud(ax, cloud, law, title, s=3)
    for ax in axes.flat:  # the head's right side, where strokes can be told
        ax.set(xlim=(-0.6, 2.4), ylim=(-0.6, 2.4))
    return figure


def plot_mixture(clouds: dict[str, Tensor]) -> Figure:
    """Draw clouds, (n, 2) by title, on the axes of the survey's figure 25."""
    figure, axes = panels(1, len(clouds), side=3)
    for (title, cloud), ax in zip(clouds.items(), axes.flat):
        ax.plot(*cloud.T, ".", color=INK, markersize=1.5)
        ax.set(xlim=(-10, 10), ylim=(-10, 10))
        ax.set_title(title, size=10)
    return figure


# Tables


def over(values: Iterable[float], digits: int) -> str:
    """Return the mean of values and half of what lies between lowest and highest."""
    values = list(values)
    mean, half = sum(values) / len(values), (max(values) - min(values)) / 2
    digits = f".{digits}f" if mean < 1e6 else ".0e"
    return f"{mean:{digits}} ± {half:{digits}}"


def spread(
    runs: Iterable[Iterable[float]], digits: tuple[int, ...] = (1, 1, 2, 2)
) -> list[str]:
    """Return each column of runs, the measures for instance, `over` the runs."""
    return [over(values, d) for values, d in zip(zip(*runs), digits)]


def show(fields: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    print(head(fields))
    for row in rows:
        print(line(row), flush=True)
    print()


def show_rows(
    runs: Sequence[Sequence[Row | PictureRow]], digits: tuple[int, ...] = (1, 1, 2, 2)
) -> None:
    """Print a table of methods, run with several seeds; of the seconds the median."""

    def rows() -> Iterator[list[str]]:
        for same in zip(*runs):
            cells = spread((row[4:8] for row in same), digits)
            seconds = median(row.seconds for row in same)
            yield [*same[0][:4], *cells, f"{seconds:.1f}"]

    show(runs[0][0]._fields, rows())


# Pictures


def mosaic(x: Tensor, columns: int, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Return pictures, (n, side^2), as one of uint8 greys, row by row on a grid.

    What is blacker than ink or whiter than paper is drawn as ink or paper.
    """
    side, rows = math.isqrt(x.shape[1]), math.ceil(len(x) / columns)
    greys = ((x.cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    cells = torch.full((rows * columns, side + gap, side + gap), 190, dtype=torch.uint8)
    cells[: len(x), gap // 2 : side + gap // 2, gap // 2 : side + gap // 2] = (
        greys.view(-1, side, side)
    )
    grid = cells.view(rows, columns, side + gap, side + gap).transpose(1, 2)
    whole = grid.reshape(rows * (side + gap), columns * (side + gap))
    return whole.repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()


def plot_mosaics(parts: dict[str, Tensor], columns: int) -> Figure:
    """Draw pictures, (n, side^2) by title, each part on its own grid."""
    width = 9.0
    greys = {title: mosaic(x, columns) for title, x in parts.items()}
    heights = [width * grey.shape[0] / grey.shape[1] for grey in greys.values()]
    with style.context("default"):
        size = (width, sum(heights) + 0.3 * len(heights))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), height_ratios=heights, squeeze=False)
    for ax, (title, grey) in zip(axes.flat, greys.items()):
        ax.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_title(title, size=9, loc="left")
        ax.set_axis_off()
    return figure


def plot_picture_rows(
    pairs: Sequence[tuple[PictureRow, Tensor]], law: Pictures
) -> Figure:
    """Draw samples of each row, and below each the nearest picture trained on."""
    parts, columns = {}, 14
    for row, samples in pairs:
        words = row.method, row.steps, row.predictor
        title = " ".join(word for word in words if word != "-")
        title += "" if parts else "; below each sample the nearest picture trained on"
        x = samples[:columns]
        _, index = nearest(x, law.data)
        blank = x.new_ones(columns - len(x), x.shape[1])
        parts[title] = torch.cat([x, blank, law.data[index], blank])
    return plot_mosaics(parts, columns)


def picture_film_sheets(states: Tensor, columns: int = 8) -> list[Image.Image]:
    """Draw each of a sampler's states, (states, n, side^2), on a grid."""
    sheets = []
    for state in states:
        sheet = Image.fromarray(mosaic(state, columns, scale=2))
        sheets.append(sheet.quantize(8))
    return sheets
