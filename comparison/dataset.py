"""What a data set is to everything above it; `points.py` and `pictures.py` are two."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


class Measure(NamedTuple):
    """One column of a data set's table: how far samples, (m, D), are from the data.

    of: called (data set, samples). meaning: one line, with the direction that is better.
    """

    name: str
    digits: int
    of: Callable[[Any, Tensor], float]
    meaning: str


class Row(NamedTuple):
    """A row of the table, and the samples that were measured, (n, D)."""

    method: str
    denoiser: str
    steps: str
    evaluations: int
    measures: tuple[float, ...]
    seconds: float
    samples: Tensor


class DataSet(Protocol):
    """Data to train on, (n, D), float32, whose distribution can be drawn from anew.

    box: the corners that all data lie between. picture: tells it from a data set of the
    same name. samples: what a row of its table draws; filmed: what its film shows.
    methods: of its table, see `methods.py`. notes: what a reader of the table must know.
    """

    name: str
    samples: int
    filmed: int
    measures: tuple[Measure, ...]
    methods: tuple[Any, ...]

    @property
    def data(self) -> Tensor: ...

    @property
    def picture(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def box(self) -> tuple[Tensor | float, Tensor | float]: ...

    def draw(self, count: int, seed: int) -> Tensor:
        """Return fresh data, (count, D)."""

    def plot(self, rows: Sequence[Row]) -> Figure:
        """Draw the samples of a table's rows."""

    def sheets(
        self, shown: Sequence[dict[str, Tensor]], colours: bool
    ) -> list[Image.Image]:
        """Draw the frames of a film: samples by title, (n, D) each."""


def measured(dataset: DataSet, samples: Tensor) -> tuple[float, ...]:
    """Return the measures of samples; all NaN if a network exploded."""
    if not samples.isfinite().all():
        return (math.nan,) * len(dataset.measures)
    return tuple(measure.of(dataset, samples) for measure in dataset.measures)


def seeded(dataset: DataSet, seed: int) -> torch.Generator:
    """Return a generator on the data set's device."""
    return torch.Generator(dataset.data.device).manual_seed(int(seed))


def draw_noise(dataset: DataSet, samples: int, generator: torch.Generator) -> Tensor:
    """Draw from N(0, I), (samples, D): a reference of every measure."""
    like = {"generator": generator, "device": dataset.data.device}
    return torch.randn(samples, dataset.data.shape[1], **like)
