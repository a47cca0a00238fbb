"""The trainings that leave what comparison/weights/ holds, and what the page has of it."""

from base64 import b64encode
from pathlib import Path
from time import perf_counter

from comparison.tables import Rows, dataset, network, tabled
from comparison.training import RECIPES, fit, save


def _trained(data: str, *names: str) -> Rows:
    for name in names:
        began, steps = perf_counter(), RECIPES[name].committed
        save(name, fit(name, dataset(data), steps=steps), dataset(data))
        yield name, f"{perf_counter() - began:.0f}"


@tabled("network", "seconds of training", training=True)
def weights_points(seeds: int) -> Rows:
    """Train the networks that the command uses on points, and write their weights."""
    yield from _trained("points", "points", "hybrid")


@tabled("network", "seconds of training", training=True)
def weights_pictures(seeds: int) -> Rows:
    """Train the U-Net that the command uses on pictures, and write its weights."""
    yield from _trained("pictures", "pictures")


PAGE = Path(__file__).parents[2] / "docs" / "weights.js"


@tabled("file", "bytes", training=True)
def play(seeds: int) -> Rows:
    """Write what docs/play.html plays: the drawing's pixels, and the points' network."""
    points = dataset("points")
    # Columns and rows, from below, of the grid of 150, as `image_to_vector` scales them.
    corner = points.data.new_tensor([3.0, 2.0])
    grid = ((points.centre + points.scale * points.data + corner) * 25).round()
    weights = network("points", 0, "points").state_dict().values()
    parts = {
        "DRAWING": grid.numpy().astype("u1").tobytes(),
        "NETWORK": b"".join(x.numpy().astype("<f4").tobytes() for x in weights),
    }
    text = "// Written by `python -m comparison.tables play`.\n"
    for name, data in parts.items():
        text += f'const {name} =\n  "{b64encode(data).decode()}";\n'
    PAGE.write_text(text)
    yield f"docs/{PAGE.name}", len(text)
