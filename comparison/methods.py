"""A method: levels, a sampler, and a start; a row of the table for each denoiser.

Each runs with the exact denoiser, which shows what the sampler loses, and with a
network, which shows what learning loses.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from comparison.dataset import DataSet


class Method(NamedTuple):
    """A sampler on its levels: a row of the table for each of its denoisers.

    own: the recipe of the network that its paper trains. box: it starts uniform in a box
    of half-side levels[0], not from N(0, levels[0]^2 I). clip: a network's estimate of
    x_0 is kept in the data set's box. learns_variance: its variance is the denoiser's own.
    slow: it draws a third as many samples, and only if asked for. filmed: the data set's
    film shows it. states: how many it gives at each level.
    """

    name: str
    steps: str
    levels: Tensor
    sampler: Callable[..., Iterator[Tensor]]
    own: str
    box: bool = False
    clip: bool = False
    learns_variance: bool = False
    denoisers: tuple[str, ...] = ("exact", "learned")
    slow: bool = False
    filmed: bool = False
    states: int = 1

    def levels_of_states(self) -> Tensor:
        """Return the level of each state, the start's first."""
        if self.states == 1:
            return self.levels
        each = self.levels[:-1].repeat_interleave(self.states)
        return torch.cat([self.levels[:1], each])


def chosen(
    dataset: DataSet, names: Collection[str] | None = None, own: bool = False
) -> list[Method]:
    """Return a data set's methods of these names, or without names all that are not slow.

    own: let each have the network that its paper trains, and else the data set's for all
    but those that learn the variance.
    """
    return [
        method if own or method.learns_variance else method._replace(own=dataset.name)
        for method in dataset.methods
        if (method.name in names if names else not method.slow)
    ]
