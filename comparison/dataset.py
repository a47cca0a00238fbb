"""What a data set is to everything above it; `points.py` and `pictures.py` are two."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


class Measure(NamedTuple):
    """A column of a data set's table: how far samples, (m, D), are from the data; `of` is a
    callable of (data set, samples); the meaning ends with the direction that is better.
    """

    name: str
    digits: int
    of: Callable[[Any, Tensor], float]
    meaning: str


class Method(NamedTuple):
    """A sampler on its levels: a row of the table for each of its denoisers.

    With the exact denoiser it shows what the sampler loses, with a network what learning
    loses. own: the recipe of the network that its paper trains, if any; the command uses
    the data set's. clip: where a network's estimate of x_0 is kept. learns_variance: its
    variance is the denoiser's own. slow: it is run only if asked for. filmed: in the film.
    """

    name: str
    steps: str
    levels: Tensor
    sampler: Callable[..., Iterator[Tensor]]
    own: str = ""
    clip: tuple[float, float] | None = None
    learns_variance: bool = False
    denoisers: tuple[str, ...] = ("exact", "network")
    slow: bool = False
    filmed: bool = False


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

    picture: tells it from others of its name. samples: what a row of its table draws;
    filmed: what its film shows. draw returns fresh data, (count, D); plot draws the samples
    of a table's rows, sheets the frames of a film, samples, (n, D), by title.
    """

    name: str
    data: Tensor
    picture: str
    samples: int
    filmed: int
    measures: tuple[Measure, ...]
    methods: tuple[Method, ...]

    def draw(self, count: int, seed: int) -> Tensor: ...
    def plot(self, rows: Sequence[Row]) -> Figure: ...
    def sheets(self, shown: Sequence[dict[str, Tensor]]) -> list[Image.Image]: ...


def seeded(dataset: DataSet, seed: int) -> torch.Generator:
    """Return a generator on the data set's device."""
    return torch.Generator(dataset.data.device).manual_seed(int(seed))


def draw_noise(dataset: DataSet, samples: int, generator: torch.Generator) -> Tensor:
    """Draw from N(0, I), (samples, D)."""
    y = dataset.data.new_empty(samples, dataset.data.shape[1])
    return y.normal_(generator=generator)


def draw_copies(dataset: DataSet, count: int, seed: int) -> Tensor:
    """Draw training data, each as likely as another, (count, D)."""
    like = {"generator": seeded(dataset, seed), "device": dataset.data.device}
    return dataset.data[torch.randint(len(dataset.data), (count,), **like)]


def draw_gaussian(dataset: DataSet, count: int, seed: int) -> Tensor:
    """Draw from the normal distribution with the training data's mean and covariance."""
    mean, n = dataset.data.mean(dim=0), len(dataset.data)
    # Poses were drawn by small seeds: z must not be the numbers of the training pictures.
    z = dataset.data.new_empty(count, n).normal_(generator=seeded(dataset, 3000 + seed))
    return mean + z @ (dataset.data - mean) / (n - 1) ** 0.5


# What measures are compared with: callables of (data set, count, seed) that draw it.
REFERENCES: dict[str, Callable[[DataSet, int, int], Tensor]] = {
    "noise": lambda those, count, seed: draw_noise(those, count, seeded(those, seed)),
    "gaussian": draw_gaussian,
    "copies": draw_copies,
    "fresh data": lambda those, count, seed: those.draw(count, seed),
}
