"""The tables about pictures. Seeds are those of sampling, of one training."""

from dataclasses import replace
from functools import partial
from itertools import product

from comparison import levels, samplers
from comparison.dataset import Method, measured
from comparison.measures import frechet, principal
from comparison.pictures import GREYS, METHODS
from comparison.rows import cells, chosen, columns, over, over_runs, run
from comparison.tables import Rows, dataset, network, over_seeds, tabled
from comparison.training import RECIPES

# A row draws MANY, of which FITTED are held against their nearest poses; the survey FEW.
MANY, FITTED, FEW = 2000, 300, 100
KNOWN = {(m.name, m.steps): m._replace(denoisers=("learned",)) for m in METHODS}
# DDIM by its steps, with the network of the command.
DDIM = {k: KNOWN["ddim-cosine", k]._replace(own="pictures") for k in ("50", "10")}


@tabled
def pictures(seeds: int) -> Rows:
    """The command's table."""
    faces = replace(dataset("pictures"), fitted=FITTED, samples=MANY)
    known = partial(network, "pictures", 0)
    yield from over_seeds(faces, chosen(faces), seeds, networks=known)


@tabled
def survey(seeds: int) -> Rows:
    """The survey's tables 1 and 2, and what it could not compare, from 100 samples, all
    networks with the steps of the shorter training.
    """
    faces = dataset("pictures")
    yield ["method", "network", "steps", *columns(faces)[4:]]

    def networks(name):
        return network("pictures", 0, name, RECIPES[name].steps)

    methods, names = [], ("ddpm", "ddim")
    for schedule, kept, name in product(("linear", "cosine"), (1000, 50), names):
        row = levels.respaced(getattr(levels, schedule)(), kept)
        words = f"{name}-{schedule}", f"{kept}", row, getattr(samplers, name)
        for clip in (GREYS, None):
            # With 1000 steps, clipped DDPM and DDIM that is not clipped will do.
            if kept == 50 or bool(clip) == (name == "ddpm"):
                methods.append(Method(*words, f"pictures-{schedule}", clip=clip))
    methods += [KNOWN["ddpm-stale-alphas", "50"], DDIM["50"]]
    methods += [KNOWN["langevin", "10 x 100"], KNOWN["ve-pc", "200"]]
    fresh = (measured(faces, faces.draw(FEW, seed)) for seed in range(seeds))
    digits = [measure.digits for measure in faces.measures]
    yield ["fresh data", "-", "-", *over_runs(fresh, digits), "-"]
    for method in methods:
        rows = [run(method, faces, FEW, seed, networks) for seed in range(seeds)]
        name, _, steps, _, *rest = cells(rows, faces)
        yield [name, method.own + ", clipped" * bool(method.clip), steps, *rest]


@tabled
def counts(seeds: int) -> Rows:
    """Frechet distance of fresh pictures and of a network's to the data; ten draws each."""
    components, faces = (16, 128, 1024), dataset("pictures")
    yield ["pictures", *(f"frechet, {count} components" for count in components)]

    def drawn(method, seed):
        return run(method, faces, FEW, seed, partial(network, "pictures", 0)).samples

    draws = {f"{n:,} fresh": partial(faces.draw, n) for n in (50, 100, 300, 1000, 2000)}
    draws |= {f"{FEW} by DDIM {m.steps}": partial(drawn, m) for m in DDIM.values()}
    axes = [principal(faces.reference, count) for count in components]
    for name, draw in draws.items():
        ten = [draw(seed) for seed in range(10)]
        distances = ([frechet(x @ a, faces.reference @ a) for x in ten] for a in axes)
        yield [name, *(over(values, 2) for values in distances)]
