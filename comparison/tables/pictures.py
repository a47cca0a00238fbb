"""The tables about pictures. Seeds are those of sampling, of one training."""

from functools import partial
from itertools import product

from comparison.laws import Pictures
from comparison.measures import frechet, principal
from comparison.methods import METHODS, Method, chosen
from comparison.processes import cosine, linear, respaced
from comparison.rows import cells, columns, over, run, spread
from comparison.samplers import ddim, ddpm
from comparison.tables import Rows, law, network, over_seeds, tabled

FEW = 100


@tabled(*columns(Pictures))
def pictures(seeds: int) -> Rows:
    """The command's table."""
    faces = law("pictures")
    yield from over_seeds(faces, chosen(faces), seeds, trainings=False)


@tabled("method", "network", "steps", *Pictures.measures, "seconds")
def survey(seeds: int) -> Rows:
    """The survey's tables 1 and 2, and what it could not compare, from 100 samples."""
    faces, networks = law("pictures"), partial(network, "pictures", 0)

    known = {(m.name, m.steps): m for m in METHODS["pictures"]}
    ways = []
    for schedule, process in (("linear", linear()), ("cosine", cosine())):
        for sampler, kept in product((ddpm, ddim), (1000, 50)):
            words = f"{sampler.__name__}-{schedule}", f"{kept}", respaced(process, kept)
            clip = {"clip": sampler is ddpm}
            ways.append(Method(*words, sampler, f"pictures-{schedule}", **clip))
    ways += [known["ddpm-kept-alphas", "50"]]
    ways += [known["ddim-cosine", "50"]._replace(own="pictures")]
    ways += [known["langevin", "10 x 100"], known["ve-pc", "200"]]
    floor = (faces.measure(faces.draw(FEW, seed)) for seed in range(seeds))
    yield ["floor", "-", "-", *spread(floor, faces.measures.values()), "-"]
    for method in ways:
        rows = [run(method, faces, FEW, seed, networks) for seed in range(seeds)]
        name, _, steps, _, *measured = cells(rows, faces)
        yield [name, method.own, steps, *measured]


@tabled("samples", *(f"frechet, {count} components" for count in (16, 128, 1024)))
def counts(seeds: int) -> Rows:
    """Frechet's distance of n fresh pictures to their own law; ten draws for each n."""
    faces = law("pictures")
    features = [principal(faces.reference, count) for count in (16, 128, 1024)]
    for n in (50, 100, 300, 1000, 2000):
        drawn = [faces.draw(n, seed) for seed in range(10)]
        distances = (
            [frechet(x @ axes, faces.reference @ axes) for x in drawn]
            for axes in features
        )
        yield [f"{n:,}", *(over(values, 2) for values in distances)]
