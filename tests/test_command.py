"""The commands over both laws: rows, starts, figures, films, networks, weights, tables."""

import contextlib
import io
import os
import pickle
import re
from functools import partial
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from comparison import __main__ as command
from comparison import figures, tables, training
from comparison import rows as rows_of_tables
from comparison.laws import LAWS, pictures, points
from comparison.methods import METHODS, chosen
from comparison.networks import PointNetwork, UNet
from comparison.rows import Row, cells, columns, over, states
from comparison.rows import run as run_method
from comparison.tables import __main__ as tables_command
from tests.common import HOMER, ROOT, film
from utils import image_to_vector

LAW = {"points": points(), "pictures": pictures()}
TINY = {
    "points": LAW["points"]._replace(data=LAW["points"].data[::100]),
    "pictures": pictures(side=16, count=20),
}
FLAGS = {
    "points": "--samples 500",
    "pictures": "--samples 100 --methods noise floor ddim-cosine flow",
}
over_laws = pytest.mark.parametrize("name", LAWS)


def run(name, *flags):
    """What the command prints, in this process: (method, predictor, steps) -> cells."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command.main([name, *map(str, flags)])
    head, _, *lines = (
        line[2:-2].split(" | ") for line in printed.getvalue().splitlines()
    )
    assert head == columns(LAW[name])
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    return {(row["method"], row["predictor"], row["steps"]): row for row in rows}


@pytest.fixture(autouse=True)
def at_hand(monkeypatch):
    """The laws of homer.png are drawn once for all tests; others as they are asked for."""
    for name, make in [*LAWS.items()]:

        def of(image, *args, name=name, make=make, **options):
            known = image == HOMER and not options.get("fit")
            return LAW[name] if known else make(image, *args, **options)

        monkeypatch.setitem(LAWS, name, of)


@pytest.fixture(scope="module", params=LAWS)
def whole(request, tmp_path_factory):
    """The law's name, the rows of the committed weights, the folder of the figures."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = FLAGS[request.param].split()
    return (
        request.param,
        run(request.param, *flags, "--film", "--output", folder),
        folder,
    )


@pytest.fixture
def tiny(monkeypatch):
    """Laws of a few data, and networks that have learned nothing."""
    for name, law in TINY.items():
        monkeypatch.setitem(LAWS, name, lambda *args, law=law, **options: law)

    def no_training(network, objective, data, *, steps, seed=0, **options):
        objective(network, data[:4], torch.Generator().manual_seed(seed))
        return torch.ones(steps)

    monkeypatch.setattr(training, "train", no_training)


# The laws


def test_points_are_normalised_and_lead_back():
    law, cloud = LAW["points"], image_to_vector(HOMER).view(-1, 2)
    torch.testing.assert_close(law.centre + law.scale * law.data, cloud)
    assert law.data.mean(dim=0).abs().max() < 1e-6
    assert law.data.square().mean().item() == pytest.approx(1)
    gaps = law.data[:, 0].unique().diff()
    assert gaps[gaps > 1e-4].min().item() == pytest.approx(law.pixel, rel=1e-3)


def test_the_law_is_told_by_its_points(tmp_path):
    """The same picture in another format is the same law, and another fit is not."""
    with Image.open(HOMER) as image:
        image.convert("L").save(tmp_path / "homer.bmp")
    assert points(tmp_path / "homer.bmp").picture == LAW["points"].picture
    with pytest.warns(UserWarning, match="fit: "):
        assert points(HOMER, fit=True).picture != LAW["points"].picture


@over_laws
def test_a_law_draws_itself_by_its_seed(name):
    law = LAW[name]
    one, same, other = (law.draw(200, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (200, law.data.shape[1])
    assert len(law.measure(one)) == len(law.measures)
    nothing = law.measure(torch.full_like(one, torch.nan))
    assert not any(value > 0 for value in nothing)


# The rows


def test_every_row_is_there(whole):
    name, rows, _ = whole
    steps = {
        "points": {
            "ddpm-linear": ["1000", "50"],
            "ddpm-posterior": ["50"],
            "ddpm-learned": ["50"],
            "ddpm-kept-alphas": ["50"],
            "ddpm-cosine": ["1000", "50"],
            "ddim-linear": ["1000", "50", "20", "10"],
            "ddim-cosine": ["50"],
            "langevin": ["10 x 100"],
            "langevin-denoised": ["10 x 100"],
            "ve-pc": ["200"],
            "vp-em": ["1000"],
            "flow": ["18"],
            "edm": ["18"],
            "rectified-flow": ["1", "10", "100"],
        },
        "pictures": {"ddim-cosine": ["50", "10"], "flow": ["18"]},
    }[name]
    expected = [("noise", "-", "-"), ("floor", "-", "-")]
    for method, counts in steps.items():
        kinds = ["exact", "learned"] if name == "points" else ["learned"]
        expected += [(method, kind, count) for count in counts for kind in kinds]
    if name == "pictures":
        expected.append(("ddim-cosine", "exact", "50"))
    assert [*rows] == expected
    counted = {
        "flow": 35,
        "edm": 35,
        "ve-pc": 400,
        "langevin": 1000,
        "langevin-denoised": 1001,
    }
    for (method, predictor, count), row in rows.items():
        if predictor != "-":
            assert int(row["evaluations"]) == counted.get(method) or int(count)


# Beyond what three seeds gave: the committed weights and every sampler, in one go.
BOUNDS = {
    ("ddpm-linear", "exact", "1000"): (99.5, 2.6),
    ("ddpm-posterior", "exact", "50"): (99, 3.4),
    ("ddim-linear", "exact", "50"): (99, 2.6),
    ("ve-pc", "exact", "200"): (99.5, 2.6),
    ("vp-em", "exact", "1000"): (99.5, 2.6),
    ("flow", "exact", "18"): (99.5, 2.6),
    ("langevin", "exact", "10 x 100"): (97, 2.6),
    ("langevin-denoised", "exact", "10 x 100"): (99.5, 2.6),
    ("rectified-flow", "exact", "100"): (99.5, 2.6),
    ("ddpm-linear", "learned", "1000"): (98.5, 2.6),
    ("ddim-linear", "learned", "50"): (85, 2.6),
    ("ddim-cosine", "learned", "50"): (93, 2.6),
    ("ddpm-learned", "learned", "50"): (46, 2.8),
    ("langevin-denoised", "learned", "10 x 100"): (98.5, 2.6),
    ("ve-pc", "learned", "200"): (98.5, 2.6),
    ("vp-em", "learned", "1000"): (98.5, 2.6),
    ("flow", "learned", "18"): (97, 2.6),
    ("edm", "learned", "18"): (97, 2.6),
    ("rectified-flow", "learned", "100"): (96.5, 2.6),
}


def test_samples_look_like_the_law(whole):
    name, rows, _ = whole
    if name == "points":
        for key, (on_drawing, sliced) in BOUNDS.items():
            assert float(rows[key]["on drawing"]) >= on_drawing, key
            assert float(rows[key]["sliced"]) <= sliced, key
        for kind in ("exact", "learned"):
            defect = float(rows["ddpm-kept-alphas", kind, "50"]["sliced"])
            assert defect > 1.7 * float(rows["ddpm-linear", kind, "50"]["sliced"])
        assert float(rows["noise", "-", "-"]["on drawing"]) < 15
        return
    floor, noise = rows["floor", "-", "-"], rows["noise", "-", "-"]
    for key in (("ddim-cosine", "learned", "50"), ("flow", "learned", "18")):
        assert float(rows[key]["frechet"]) < 8
        ratio = float(rows[key]["to training"]) / float(floor["to training"])
        assert 0.8 < ratio < 1.2 and 35 <= float(rows[key]["nearer"]) <= 66
    exact = rows["ddim-cosine", "exact", "50"]
    assert float(exact["nearer"]) >= 95 and float(exact["to training"]) < 1
    assert float(noise["to training"]) > 2 * float(floor["to training"])


def test_figures(whole):
    name, rows, folder = whole
    assert {path.name for path in folder.iterdir()} == {f"{name}.gif", f"{name}.png"}
    with Image.open(folder / f"{name}.png") as image:
        assert image.width > 900 and image.height > 100 * len(rows) / 9
    frames, durations = film(folder / f"{name}.gif")
    assert len(frames) == 48 and durations[-1] == 2000
    ink = [frame.sum(axis=2) < 150 for frame in frames]
    if name == "points":
        firsts, lasts = (np.array_split(ink[k], 4, axis=1) for k in (0, -1))
        for first, end in zip(firsts, lasts):
            assert 0.003 < end.mean() < 0.1 and not np.array_equal(first, end)
        # Noise at first, which is wider than the face.
        assert firsts[0][30:, :25].any() and not lasts[0][30:, :25].any()
    else:
        assert ink[0].mean() > 0.1 and 0.03 < ink[-1].mean() < 0.2
        paper = [(frame > 240).mean() for frame in frames]
        assert paper[0] < 0.2 and paper[-1] > 0.4


def test_colours_are_those_of_the_ends():
    law = LAW["points"]
    colours = figures.hues(torch.tensor([[1.0, 0], [3, 0], [0, 1], [-1, 0.1]]))
    assert (colours[0] == colours[1]).all() and len(np.unique(colours, axis=0)) == 3
    ends = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    path = {"way": torch.stack([ends.flip(0), ends])}
    for wanted in (True, False):
        sheets = figures.film_sheets(path, law, frames=2, colours=wanted)
        first, end = (np.asarray(sheet.convert("RGB"), dtype=int) for sheet in sheets)
        (left, right), (_, right_end) = (
            [half[60:-9].reshape(-1, 3) for half in np.array_split(sheet, 2, axis=1)]
            for sheet in (first, end)
        )
        left, right, right_end = (
            half[half.sum(axis=1).argmin()] for half in (left, right, right_end)
        )
        # They change places, and each keeps its colour.
        assert np.abs(left - right_end).max() < 40
        assert (np.abs(left - right).max() > 60) == wanted


def test_a_row_times_the_sampling_alone():
    def networks(recipe):
        sleep(0.5)
        return PointNetwork()

    (flow,) = chosen(TINY["points"], ["flow"])
    row = run_method(flow, TINY["points"], 5, 0, networks)
    assert 0 < row.seconds < 0.4 and row.evaluations == 35


@over_laws
def test_one_seed_gives_one_table(name, tmp_path, tiny):
    def drawn(seed):
        torch.rand(1)  # the caller's random state is of no account
        flags = ["--methods", "flow", "ddim-linear", "--samples", 9, "--seed", seed]
        rows = run(name, *flags, "--output", tmp_path).values()
        kept = [[cell for key, cell in row.items() if key != "seconds"] for row in rows]
        return kept, (tmp_path / f"{name}.png").read_bytes()

    assert drawn(3) == drawn(3)
    assert drawn(3)[0] != drawn(4)[0]


@over_laws
def test_each_row_starts_where_its_process_ends(name):
    """Exact and learned from the same: N(0, noise_T^2 I), or a box of that half-side."""
    law, network = TINY[name], {"points": PointNetwork, "pictures": UNet}[name]()

    def networks(recipe):
        return PointNetwork(4) if recipe == "hybrid" else network

    for method in METHODS[name]:
        method = method._replace(own="hybrid" if method.learns_variance else name)
        starts = []
        for known in (None, networks):
            _, path = states(method, law, 3000, 0, known)
            starts.append(next(path))
        x = starts[0] * (method.process.signal[-1] if method.name == "flow" else 1)
        assert torch.equal(*starts)
        noise = method.process.noise[-1].item()
        if method.box:
            assert x.abs().max() <= noise and x.min() < -0.99 * noise < 0.99 * noise
            assert x.std().item() == pytest.approx(noise / 3**0.5, rel=0.05)
        else:
            assert x.std().item() == pytest.approx(noise, rel=0.05)


def test_what_tells_methods_apart_reaches_their_samplers():
    """Variances, and of pictures' DDPM the box."""
    law, variances = TINY["points"], {}
    for method in chosen(law, ["ddpm-linear", "ddpm-posterior", "ddpm-learned"]):
        if method.steps == "50":
            _, path = states(method, law, 2000, 0, None)
            variances[method.name] = [*path][-2].var().item()
    # A step's variance: beta_t is the widest, beta~_t the narrowest, the best between.
    assert variances["ddpm-posterior"] < variances["ddpm-linear"]
    assert variances["ddpm-posterior"] < variances["ddpm-learned"]

    law, half = TINY["pictures"], torch.tensor(0.5**0.5)
    for method in chosen(law, {m.name for m in METHODS["pictures"]}):
        # A velocity of 100, at signal = noise: an x_0 of -100 / 2^(1/2), unless clipped.
        method = method._replace(sampler=lambda predictor, *_, **options: [predictor])
        _, (predictor,) = states(
            method, law, 2, 0, lambda _: lambda x_t, *_: torch.full_like(x_t, 100.0)
        )
        x_start = -predictor(torch.zeros(2, 256), half, half)
        assert (x_start.abs().max() <= 1.001) == method.name.startswith("ddpm")


@over_laws
def test_slow_methods_draw_a_third_and_have_bounds_of_their_own(name, tmp_path, tiny):
    asked = ["noise", "flow", "ddim-linear", "--samples", 6, "--output", tmp_path]
    rows = {method for method, *_ in run(name, "--methods", *asked)}
    slow = {"noise (2)", "ddim-linear (2)"}
    assert rows == {"noise", "flow"} | (slow if name == "pictures" else {"ddim-linear"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(whole, tmp_path):
    name, here, _ = whole
    flags = [*FLAGS[name].split(), "--device", "cuda", "--film", "--output", tmp_path]
    rows = run(name, *flags)
    assert [*rows] == [*here]
    for key, row in rows.items():
        column = "on drawing" if name == "points" else "nearer"
        assert float(row[column]) == pytest.approx(float(here[key][column]), abs=12)
    few = ["--own", "--train", "--train-steps", 5, "--samples", 5]
    run(name, "--methods", "ddpm-cosine", *few, *flags[-4:])


# Networks


@over_laws
def test_the_networks_asked_for_are_trained_or_loaded(name, tmp_path, monkeypatch):
    asked = []

    def fit(recipe, law, **options):
        asked.append((recipe, len(law.data), options))
        return training.RECIPES[recipe].network().eval()

    monkeypatch.setattr(command, "fit", fit)
    monkeypatch.setattr(command, "table", lambda *args: iter(()))
    monkeypatch.setattr(command, "plot_rows", lambda *args: None)
    monkeypatch.setattr(command, "save_png", lambda *args: None)
    flags = ["--output", tmp_path]
    data, own = len(LAW[name].data), {m.own for m in METHODS[name] if not m.slow}
    run(name, *flags)
    assert asked == []  # all are at hand
    run(name, "--methods", "noise", "--train", *flags)
    assert asked == []  # none is needed
    run(name, "--methods", "flow", "--train", "--train-steps", 7, "--seed", 5, *flags)
    assert asked.pop() == (name, data, {"steps": 7, "seed": 5}) and asked == []
    run(name, "--seed", 5, *flags)
    assert asked == []  # the seed of sampling alone
    run(name, "--own", *flags)
    assert {recipe for recipe, *_ in asked} == own - {"hybrid", "pictures"}


def test_another_picture_is_trained_for_and_not_saved(tmp_path, capsys):
    image = Image.new("L", (900, 900), 255)
    ImageDraw.Draw(image).ellipse((30, 30, 120, 120), outline=150, width=6)
    image.save(tmp_path / "ring.png")
    before = {path: path.read_bytes() for path in training.WEIGHTS.iterdir()}
    flags = ["--image", tmp_path / "ring.png", "--train-steps", 3, "--samples", 400]
    flags += ["--methods", "floor", "flow", "--output", tmp_path]
    rows = run("points", *flags, "--fit")
    assert re.fullmatch(
        "comparison: note: fit: .*: 3... points, .*\n", capsys.readouterr().err
    )
    assert float(rows["flow", "exact", "18"]["on drawing"]) > 99
    assert {path: path.read_bytes() for path in training.WEIGHTS.iterdir()} == before


def test_committed_weights_are_what_they_say():
    files = sorted(training.WEIGHTS.iterdir())
    assert [file.name for file in files] == ["hybrid.pt", "pictures.pt", "points.pt"]
    assert sum(file.stat().st_size for file in files) < 6e6
    for file in files:
        law = LAW["pictures" if file.stem == "pictures" else "points"]
        assert training.load(file.stem, law) is not None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", ["hybrid", "pictures"])
def test_weights_come_back(recipe, folder):
    law = TINY["pictures" if recipe == "pictures" else "points"]
    network = training.fit(recipe, law, steps=2, seed=4)
    training.save(recipe, network, law, steps=2, seed=4)
    back = training.load(recipe, law, steps=2, seed=4)
    pairs = zip(network.state_dict().values(), back.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not any(p.requires_grad for p in back.parameters()) and not back.training


@pytest.mark.parametrize(
    "change", ["picture", "steps", "seed", "objective", "process", "lr"]
)
def test_weights_of_something_else_are_not_used(folder, monkeypatch, change):
    law, options = LAW["points"], {"steps": 3, "seed": 4}
    assert training.load("points", law) is None  # there is no file
    training.save("points", PointNetwork(), law, **options)
    assert training.load("points", law, **options) is not None
    if change == "picture":
        law = law._replace(picture="0" * 64)
    elif change in options:
        options[change] += 1
    else:
        another = {"options": {"lr": 1.0}} if change == "lr" else {change: "another"}
        recipe = training.RECIPES["points"]._replace(**another)
        monkeypatch.setitem(training.RECIPES, "points", recipe)
    assert training.load("points", law, **options) is None


def test_a_recipe_is_followed(monkeypatch):
    """Its network, rate, batch and steps, unless others are asked for."""
    given = []

    def train(network, objective, data, **options):
        given.append((type(network), len(data), options))

    monkeypatch.setattr(training, "train", train)
    training.fit("pictures", TINY["pictures"], seed=3)
    training.fit("points", TINY["points"], steps=5)
    recipe = training.RECIPES["pictures"]
    options = {"steps": recipe.steps, "seed": 3, **recipe.options}
    assert given[0] == (UNet, 20, options) and options["batch_size"] == 16
    assert given[1][0] is PointNetwork
    assert given[1][2] == {"steps": 5, "seed": 0, **training.RECIPES["points"].options}


# Doors


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def refused(monkeypatch, capsys, flags, message):
    """The command ends with status 2 and one line, and has not begun to work."""

    def work(*args, **options):
        raise AssertionError("work has begun")

    for name in ("fit", "table", "plot_rows"):
        monkeypatch.setattr(command, name, work)
    with pytest.raises(SystemExit) as end:
        command.main(flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("kind", ["noise", "empty", "cut", "foreign", "evil", "shapes"])
def test_damaged_weights_end_before_any_work(folder, monkeypatch, capsys, kind):
    monkeypatch.chdir(folder)
    training.save("points", PointNetwork(), LAW["points"])
    file = folder / "points.pt"
    content = file.read_bytes()
    match kind:
        case "noise":
            file.write_bytes(bytes(range(256)) * 9)
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "foreign":
            torch.save({"layers": torch.zeros(3)}, file)
        case "evil":
            file.write_bytes(pickle.dumps(Evil(), protocol=2))
        case "shapes":
            training.save("points", PointNetwork(outputs=4), LAW["points"])
    flags = ["points", "--methods", "flow"]
    refused(monkeypatch, capsys, flags, "points.pt holds no weights")
    assert not (folder / "evil").exists()


@over_laws
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--methods ddpm-square", "floor, ddpm-linear"),
        ("--methods", "--methods"),
        ("--output no/such", "cannot be written: No such file"),
        ("--output README.md", "cannot be written: Not a directory"),
        ("--image no.png", "no.png cannot be read as a picture"),
        ("--image README.md", "README.md cannot be read as a picture"),
        ("--samples 1", "must be 2 to"),
        ("--samples many", "invalid int value: 'many'"),
        ("--train-steps 0", "must be 1 to"),
        ("--seed -1", "must be 0 to"),
        ("--device tpu", "invalid choice: 'tpu'"),
        ("--side 17", "unrecognized arguments: --side"),
    ],
)
def test_bad_flags_end_before_any_work(name, monkeypatch, capsys, flags, message):
    if "floor" in message and name == "pictures":
        message = "floor, ddim-cosine"
    refused(monkeypatch, capsys, [name, *flags.split()], message)


@over_laws
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_the_picture_is_not_overwritten(name, kind, tmp_path, monkeypatch, capsys):
    image = tmp_path / f"{name}.{kind}"
    (tmp_path / "homer.png").write_bytes(HOMER.read_bytes())
    image.symlink_to(tmp_path / "homer.png")
    flags = [name, "--image", str(tmp_path / "homer.png"), "--output", str(tmp_path)]
    refused(monkeypatch, capsys, flags, f"{name}.{kind} would overwrite")


def test_unknown_law(capsys):
    with pytest.raises(SystemExit):
        command.main(["photographs"])
    assert "invalid choice: 'photographs'" in capsys.readouterr().err


def test_what_fails_leaves_the_old_figures(tmp_path, monkeypatch):
    """A film or a figure that cannot be written whole is not written."""
    sheet = Image.new("L", (9, 9))
    figure = figures.plot_clouds([[("", LAW["points"].data[:9])]], LAW["points"])
    for path, save in (
        (tmp_path / "a.gif", partial(figures.save_gif, [sheet, sheet])),
        (tmp_path / "a.png", partial(figures.save_png, figure)),
    ):
        path.write_bytes(b"before")
        for target, method in ((Image.Image, "save"), (type(figure), "savefig")):

            def full(self, file, *args, **options):
                file.write_bytes(b"half")
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(target, method, full)
        with pytest.raises(OSError, match=f"No space left.*{path.name}"):
            save(path)
        monkeypatch.undo()
        assert path.read_bytes() == b"before"
    assert len([*tmp_path.iterdir()]) == 2


# Tables


def test_cells_are_means_and_half_ranges():
    law = LAW["points"]
    rows = [
        Row("flow", "exact", "18", 35, (x, x + 1, 2 * x, x), seconds, None)
        for x, seconds in ((1.0, 5.0), (2.0, 1.0), (6.0, 2.0))
    ]
    expected = "flow exact 18 35 3.0±2.5 4.0±2.5 6.00±5.00 3.00±2.50 2.0"
    assert [str(c).replace(" ", "") for c in cells(rows, law)] == expected.split()
    assert over([1.25], 1) == "1.2" and over([1e7, 3e7], 1) == "2e+07 ± 1e+07"


@pytest.mark.parametrize("name", tables_command.TABLES)
def test_tables_can_be_made(name, tmp_path, tiny, monkeypatch, capsys):
    """Each with few samples, few steps and networks that have learned nothing."""
    for module in (tables, tables_command.points, tables_command.pictures):
        for attribute in ("law", "train"):
            if hasattr(module, attribute):
                monkeypatch.setattr(
                    module,
                    attribute,
                    TINY.get if attribute == "law" else training.train,
                )
    for law in TINY.values():
        monkeypatch.setattr(type(law), "samples", 6)
    monkeypatch.setattr(tables_command.points, "LAW", TINY["points"])
    monkeypatch.setattr(tables_command.points, "SAMPLES", 6)
    monkeypatch.setattr(tables_command.pictures, "FEW", 4)
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    tables.network.cache_clear()

    def drawn(method, law, samples, seed, networks):
        kind = "learned" if networks and networks(method.own) else "exact"
        x = torch.randn(samples, law.data.shape[1])
        words = method.name, kind, method.steps
        return Row(*words, 7, law.measure(x), 0.1, x)

    for module in (rows_of_tables, tables_command.pictures):
        monkeypatch.setattr(module, "run", drawn)
    asked = tables_command.TABLES[name]
    monkeypatch.setattr("sys.argv", ["tables", name, "--seeds", "2"])
    tables_command.main()
    tables.network.cache_clear()
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(lines) >= 3
    assert {line.count(" | ") for line in lines if "---" not in line} == {
        len(asked.columns) - 1
    }
    assert bool([*tmp_path.iterdir()]) == asked.training


def test_without_a_name_no_network_is_written(monkeypatch, capsys):
    made = []
    for name, entry in tables_command.TABLES.items():
        rows = partial(lambda name, seeds: iter([made.append(name) or []]), name)
        entry = entry._replace(rows=rows)
        rows.__doc__ = name
        monkeypatch.setitem(tables_command.TABLES, name, entry)
    monkeypatch.setattr("sys.argv", ["tables"])
    tables_command.main()
    assert set(tables_command.TABLES) - set(made) == {
        "weights_points",
        "weights_pictures",
    }


def test_the_document_names_each_table():
    text = (ROOT / "docs" / "comparison.md").read_text()
    named = re.findall(r"python -m comparison\.tables (\w+)", text)
    assert set(named) == set(tables_command.TABLES)


@over_laws
def test_methods_have_networks(name):
    for own in (True, False):
        names = {method.name for method in METHODS[name]}
        methods = chosen(LAW[name], names, own)
        assert len(methods) == len(METHODS[name])
        assert {method.own for method in methods} <= set(training.RECIPES)
    assert not any(method.slow for method in chosen(LAW[name]))
    taken = {"points": {"points", "hybrid"}, "pictures": {"pictures"}}[name]
    assert {method.own for method in chosen(LAW[name])} == taken
