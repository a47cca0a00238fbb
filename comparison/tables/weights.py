"""The trainings that leave what comparison/weights/ holds."""

from time import perf_counter

from comparison.tables import Rows, law, tabled
from comparison.training import RECIPES, fit, save


def _trained(law_name: str, *names: str) -> Rows:
    for name in names:
        began, steps = perf_counter(), RECIPES[name].committed
        save(name, fit(name, law(law_name), steps=steps), law(law_name))
        yield name, f"{perf_counter() - began:.0f}"


@tabled("network", "seconds of training", training=True)
def weights_points(seeds: int) -> Rows:
    """Train the networks that the command uses on points, and write their weights."""
    yield from _trained("points", "points", "hybrid")


@tabled("network", "seconds of training", training=True)
def weights_pictures(seeds: int) -> Rows:
    """Train the U-Net that the command uses on pictures, and write its weights."""
    yield from _trained("pictures", "pictures")
