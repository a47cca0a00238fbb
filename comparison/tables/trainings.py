"""The tables that train for long, made only by name; and the files they leave."""

from base64 import b64encode
from dataclasses import replace
from time import perf_counter

from comparison.rows import columns
from comparison.tables import DOCS, Rows, dataset, network, over_seeds, tabled
from comparison.tables.pictures import DDIM, FITTED, MANY
from comparison.training import RECIPES, fit, load, save, trained_on


@tabled
def weights(seeds: int) -> Rows:
    """Train the commands' networks, and write their weights; files at hand are kept."""
    yield "network", "seconds of training"
    for name, data in (("points",) * 2, ("hybrid", "points"), ("pictures",) * 2):
        those, began = dataset(data), perf_counter()
        if not load(name, those):
            trained = fit(name, those, steps=RECIPES[name].committed)
            save(name, trained, trained_on(name, those))
            yield name, f"{perf_counter() - began:.0f}"


@tabled
def play(seeds: int) -> Rows:
    """Write what docs/play.html plays: the drawing's pixels, and the points' network."""
    yield "file", "bytes"
    points = dataset("points")
    # Columns and rows, from below, of the grid of 150, as `image_to_vector` scales them.
    corner = points.data.new_tensor([3.0, 2.0])
    grid = ((points.centre + points.scale * points.data + corner) * 25).round()
    parameters = network("points", 0, "points").state_dict().values()
    parts = {
        "DRAWING": grid.numpy().astype("u1").tobytes(),
        "NETWORK": b"".join(x.numpy().astype("<f4").tobytes() for x in parameters),
    }
    text = "// Written by `python -m comparison.tables play`.\n"
    for name, data in parts.items():
        text += f'const {name} =\n  "{b64encode(data).decode()}";\n'
    (DOCS / "weights.js").write_text(text)
    yield "docs/weights.js", len(text)


@tabled
def controls(seeds: int) -> Rows:
    """DDIM 50 with networks trained for fewer steps than the committed one: two seeds,
    fresh pictures only, and 50 pictures, for which 50 others are the fresh ones.
    """
    faces = replace(dataset("pictures"), fitted=FITTED, samples=MANY)
    fifty = replace(faces, data=faces.data[:50], fresh=faces.fresh[:50])
    recipe = RECIPES["pictures"]
    fresh = faces.draw(recipe.steps * dict(recipe.options)["batch_size"], 1)
    yield ["trained on", *columns(faces)]
    for name, data, seed in (
        ("2,000 pictures", faces.data, 0),
        ("2,000 pictures, another seed", faces.data, 1),
        ("fresh pictures", fresh, 0),
        ("50 pictures", fifty.data, 0),
    ):
        trained = fit("pictures", replace(faces, data=data), seed=seed)
        known = ["copies", "fresh data"] if data is fifty.data else []
        held = fifty if known else faces
        rows = over_seeds(held, DDIM[:1], seeds, known, lambda _, net=trained: net)
        next(rows)
        yield from ([name, *row] for row in rows)
