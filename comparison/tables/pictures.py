"""The tables about pictures. Seeds are those of sampling, of one training."""

from functools import partial
from itertools import product

from comparison.dataset import measured
from comparison.levels import cosine, linear, respaced
from comparison.measures import frechet, principal
from comparison.methods import Method, chosen
from comparison.pictures import Pictures
from comparison.rows import cells, columns, digits, names, over, over_runs, run, states
from comparison.samplers import ddim, ddpm, last
from comparison.tables import Rows, dataset, network, over_seeds, tabled
from comparison.training import RECIPES, fit

# A row draws MANY, of which FITTED are held against their nearest poses; the survey FEW.
MANY, FITTED, FEW = 2000, 300, 100
LEARNED = [method for method in Pictures.methods if "learned" in method.denoisers]
KNOWN = {(method.name, method.steps): method for method in LEARNED}
# DDIM by its steps, with the network of the command.
DDIM = {k: KNOWN["ddim-cosine", k]._replace(own="pictures") for k in ("50", "10")}


@tabled(*columns(Pictures))
def pictures(seeds: int) -> Rows:
    """The command's table."""
    faces = dataset("pictures")._replace(fitted=FITTED)
    known = partial(network, "pictures", 0)
    yield from over_seeds(faces, chosen(faces), seeds, networks=known, samples=MANY)


@tabled(*columns(Pictures), training=True)
def second(seeds: int) -> Rows:
    """The command's learned rows with a network as the committed, of another seed."""
    faces = dataset("pictures")._replace(fitted=FITTED)
    other = network("pictures", 1, "pictures", RECIPES["pictures"].committed)
    methods = [method for method in chosen(faces) if "learned" in method.denoisers]
    yield from over_seeds(faces, methods, seeds, (), lambda _: other, MANY)


@tabled("method", "network", "steps", *names(Pictures), "seconds")
def survey(seeds: int) -> Rows:
    """The survey's tables 1 and 2, and what it could not compare, from 100 samples.

    All networks have the steps of the shorter training.
    """
    faces = dataset("pictures")

    def networks(name):
        return network("pictures", 0, name, RECIPES[name].steps)

    ways = []
    for schedule, levels in (("linear", linear()), ("cosine", cosine())):
        for sampler, kept, clip in product((ddpm, ddim), (1000, 50), (True, False)):
            if kept == 1000 and clip != (sampler is ddpm):
                continue  # what clipping does, 50 steps tell
            words = f"{sampler.__name__}-{schedule}", f"{kept}", respaced(levels, kept)
            ways.append(Method(*words, sampler, f"pictures-{schedule}", clip=clip))
    ways += [KNOWN["ddpm-stale-alphas", "50"], DDIM["50"]]
    ways += [KNOWN["langevin", "10 x 100"], KNOWN["ve-pc", "200"]]
    fresh = (measured(faces, faces.draw(FEW, seed)) for seed in range(seeds))
    yield ["fresh data", "-", "-", *over_runs(fresh, digits(faces)), "-"]
    for method in ways:
        rows = [run(method, faces, FEW, seed, networks) for seed in range(seeds)]
        name, _, steps, _, *rest = cells(rows, faces)
        yield [name, method.own + ", clipped" * method.clip, steps, *rest]


@tabled("pictures", *(f"frechet, {count} components" for count in (16, 128, 1024)))
def counts(seeds: int) -> Rows:
    """Frechet distance of fresh pictures and of a network's to the data; ten draws each."""
    faces = dataset("pictures")
    features = [principal(faces.reference, count) for count in (16, 128, 1024)]

    def drawn(steps, seed):
        networks = partial(network, "pictures", 0)
        _, path = states(DDIM[steps], faces, FEW, seed, networks)
        return last(path)

    draws = {
        f"{n:,} fresh": partial(faces.draw, n) for n in (50, 100, 300, 1000, 2000)
    } | {f"{FEW} by DDIM {steps}": partial(drawn, steps) for steps in DDIM}
    for name, draw in draws.items():
        ten = [draw(seed) for seed in range(10)]
        distances = (
            [frechet(x @ axes, faces.reference @ axes) for x in ten]
            for axes in features
        )
        yield [name, *(over(values, 2) for values in distances)]


@tabled(*columns(Pictures), training=True)
def copies(seeds: int) -> Rows:
    """A control: the same network trained on 50 pictures, held against 50 others too."""
    faces = dataset("pictures")
    few = faces._replace(data=faces.data[:50], fresh=faces.fresh[:50])
    copier = fit("pictures", few)
    yield from over_seeds(
        few, [DDIM["50"]], seeds, ("fresh data",), lambda _: copier, MANY
    )
