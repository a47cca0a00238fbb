"""The methods: each is a process, a way back along it, and a start; a row of the table.

Each runs with the exact predictor, which shows what the sampler loses, and with a
network, which shows what learning loses.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from comparison.laws import Law
from comparison.predictors import Predictor, denoiser
from comparison.processes import (
    Process,
    cosine,
    geometric,
    kept_rows,
    linear,
    respaced,
    straight,
    ve_sde,
    vp_sde,
)
from comparison.samplers import (
    ddim,
    ddpm,
    euler_maruyama,
    langevin,
    predictor_corrector,
    probability_flow,
)
from diffusion import denoise_with_mu


class Method(NamedTuple):
    """A way back: a row of the table for each of its predictors.

    own: the recipe of the network that its paper trains. box: it starts uniform in a box
    of half-side noise_T, not from N(0, noise_T^2 I). clip: a network's estimate of x_0 is
    kept in the law's box. learns_variance: its variance is the predictor's own. slow: it
    draws a third as many samples, and only if asked for. filmed: the law's film shows it.
    """

    name: str
    steps: str
    process: Process
    sampler: Callable[..., Iterator[Tensor]]
    own: str
    box: bool = False
    clip: bool = False
    learns_variance: bool = False
    predictors: tuple[str, ...] = ("exact", "learned")
    slow: bool = False
    filmed: bool = False


@torch.no_grad()
def ddpm_kept_alphas(
    predictor: Predictor,
    process: Process,
    x_T: Tensor,
    *,
    kept: int = 50,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Show a defect: DDPM that leaves out levels, as if each step were still of one level.

    Of the levels few are visited, yet with each one's own alpha_t, so that a step takes
    away the noise of one where many are due. `respaced` is the right way. (So did
    huggingface/diffusers until its pull request 2076, January 2023.)
    """
    alphas, _ = process.schedule()
    mean = denoiser(predictor, process)
    yield x_T
    x = x_T
    for t in reversed(kept_rows(process.steps, kept).tolist()):
        x = denoise_with_mu(mean, x, t, alphas, generator=generator)
        yield x


def _methods() -> dict[str, list[Method]]:
    line, arc = linear(), cosine()
    ddpm_posterior = partial(ddpm, variance="posterior")
    denoised = partial(langevin, denoise=True)
    learning = {"own": "hybrid", "learns_variance": True}
    annealed = {"own": "geometric", "box": True}
    points = [
        Method("ddpm-linear", "1000", line, ddpm, "simple", filmed=True),
        Method("ddpm-linear", "50", respaced(line, 50), ddpm, "simple"),
        Method("ddpm-posterior", "50", respaced(line, 50), ddpm_posterior, "simple"),
        Method("ddpm-learned", "50", respaced(line, 50), ddpm, **learning),
        Method("ddpm-kept-alphas", "50", line, ddpm_kept_alphas, "simple"),
        Method("ddpm-cosine", "1000", arc, ddpm, "cosine"),
        Method("ddpm-cosine", "50", respaced(arc, 50), ddpm, "cosine"),
        Method("ddim-linear", "1000", line, ddim, "simple"),
        Method("ddim-linear", "50", respaced(line, 50), ddim, "simple", filmed=True),
        Method("ddim-linear", "20", respaced(line, 20), ddim, "simple"),
        Method("ddim-linear", "10", respaced(line, 10), ddim, "simple"),
        Method("ddim-cosine", "50", respaced(arc, 50), ddim, "cosine"),
        Method("langevin", "10 x 100", geometric(), langevin, **annealed, filmed=True),
        Method("langevin-denoised", "10 x 100", geometric(), denoised, **annealed),
        Method("ve-pc", "200", ve_sde(), predictor_corrector, "ve", filmed=True),
        Method("vp-em", "1000", vp_sde(), euler_maruyama, "vp"),
        Method("flow", "18", line, probability_flow, "vp"),
        Method("edm", "18", geometric(2, 80.0, 0.002), probability_flow, "edm"),
        # Along the straight process Euler's steps are DDIM's.
        Method("rectified-flow", "1", straight(1), ddim, "rectified"),
        Method("rectified-flow", "10", straight(10), ddim, "rectified"),
        Method("rectified-flow", "100", straight(100), ddim, "rectified"),
    ]

    on_line, on_arc, on_none = "pictures-linear", "pictures-cosine", "pictures"
    exact, learned = (partial(Method, predictors=(k,)) for k in ("exact", "learned"))
    slow = partial(learned, slow=True)
    pictures = [
        learned("ddim-cosine", "50", respaced(arc, 50), ddim, on_arc, filmed=True),
        learned("ddim-cosine", "10", respaced(arc, 10), ddim, on_arc),
        learned("ddpm-cosine", "250", respaced(arc, 250), ddpm, on_arc, clip=True),
        learned("flow", "18", line, probability_flow, on_none),
        exact("ddim-cosine", "50", respaced(arc, 50), ddim, on_arc),
        slow("ddpm-linear", "1000", line, ddpm, on_line, clip=True),
        slow("ddpm-kept-alphas", "50", line, ddpm_kept_alphas, on_line, clip=True),
        slow("ddpm-cosine", "1000", arc, ddpm, on_arc, clip=True),
        slow("ddim-linear", "50", respaced(line, 50), ddim, on_line),
        slow("langevin", "10 x 100", geometric(), langevin, on_none, box=True),
        slow("ve-pc", "200", ve_sde(), predictor_corrector, on_none),
    ]
    return {"points": points, "pictures": pictures}


METHODS = _methods()


def chosen(
    law: Law, names: Collection[str] | None = None, own: bool = False
) -> list[Method]:
    """Return a law's methods of these names, or without names all that are not slow.

    own: let each have the network that its paper trains, and else the law's for all but
    those that learn the variance.
    """
    return [
        method if own or method.learns_variance else method._replace(own=law.name)
        for method in METHODS[law.name]
        if (method.name in names if names else not method.slow)
    ]
