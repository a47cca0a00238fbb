"""The commands over both laws: rows, starts, figures, films, networks, doors, tables."""

import contextlib
import io
import re
from functools import partial
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from comparison import __main__ as command
from comparison import figures, rows, tables, training
from comparison.laws import LAWS, Pictures, Points
from comparison.measures import nearest
from comparison.methods import METHODS, chosen
from comparison.networks import PointNetwork, UNet
from comparison.tables import __main__ as tables_command
from comparison.tables import pictures as on_pictures
from comparison.tables import points as on_points
from tests.common import HOMER, ROOT, film
from tests.laws import law, tiny

FLAGS = {
    "points": "--samples 200",
    "pictures": "--samples 12 --methods noise floor ddim-cosine flow",
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
    assert head == rows.columns(law(name))
    cells = [dict(zip(head, line, strict=True)) for line in lines]
    return {(row["method"], row["predictor"], row["steps"]): row for row in cells}


@pytest.fixture(autouse=True)
def at_hand(monkeypatch):
    """The laws of homer.png are drawn once for all tests; others as they are asked for."""
    for name, make in [*LAWS.items()]:

        def of(image, device, name=name, make=make, **options):
            known = (image, device) == (HOMER, "cpu") and not options.get("fit")
            return law(name) if known else make(image, device, **options)

        monkeypatch.setitem(LAWS, name, of)


@pytest.fixture(scope="module", params=LAWS)
def whole(request, tmp_path_factory):
    """The law's name, the rows of the committed weights, the folder of the figures."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    flags = [*FLAGS[name].split(), "--device", "cpu", "--film", "--output", folder]
    return name, run(name, *flags), folder


@pytest.fixture
def small(monkeypatch):
    """Laws of a few data, and networks that have learned nothing."""
    for name in LAWS:
        monkeypatch.setitem(LAWS, name, lambda *_, name=name, **options: tiny(name))

    def no_training(network, objective, data, *, steps, seed=0, **options):
        objective(network, data[:4], torch.Generator().manual_seed(seed))
        return torch.ones(steps)

    monkeypatch.setattr(training, "train", no_training)
    monkeypatch.setattr(on_points, "train", no_training)


# The rows


def test_every_row_is_there(whole):
    name, got, _ = whole
    asked = FLAGS[name].split()[2:] or {method.name for method in METHODS[name]}
    expected = [("noise", "-", "-"), ("floor", "-", "-")]
    for method in METHODS[name]:
        if method.name in asked and not method.slow:
            expected += [(method.name, k, method.steps) for k in method.predictors]
    assert [*got] == expected and len(got) == {"points": 44, "pictures": 6}[name]
    counted = {"flow": 35, "edm": 35, "ve-pc": 400}
    counted |= {"langevin": 1000, "langevin-denoised": 1001}
    for (method, predictor, count), row in got.items():
        evaluations = 0 if count == "-" else counted.get(method) or int(count)
        if (method, predictor) == ("ddpm-learned", "learned"):
            evaluations *= 2  # once for the mean, once for the variance
        assert int(row["evaluations"]) == evaluations, method


# On drawing with the exact score and with the committed weights, at the least.
BOUNDS = {
    ("ddpm-linear", "1000"): (99.5, 98.5),
    ("ddpm-posterior", "50"): (99, 84),
    ("ddpm-learned", "50"): (98, 46),
    ("ddim-linear", "50"): (99, 84),
    ("ddim-cosine", "50"): (99, 91),
    ("langevin", "10 x 100"): (97, 95),
    ("langevin-denoised", "10 x 100"): (99.5, 98.5),
    ("ve-pc", "200"): (99.5, 98.5),
    ("vp-em", "1000"): (99.5, 98.5),
    ("flow", "18"): (99.5, 95),
    ("edm", "18"): (99.5, 95),
    ("rectified-flow", "100"): (99.5, 94),
}


def test_samples_look_like_the_law(whole):
    name, got, _ = whole
    value = {
        key: {column: float(row[column]) for column in law(name).measures}
        for key, row in got.items()
    }
    floor, noise = value["floor", "-", "-"], value["noise", "-", "-"]
    if name == "points":
        defect = value["ddpm-kept-alphas", "exact", "50"]["sliced"]
        for (method, steps), bounds in BOUNDS.items():
            exact, learned = (value[method, k, steps] for k in ("exact", "learned"))
            assert exact["on drawing"] >= bounds[0], method
            assert learned["on drawing"] >= bounds[1], method
            # From one start, so that they can be compared on few samples.
            assert exact["sliced"] < floor["sliced"] + 1.5, method
            assert learned["sliced"] < exact["sliced"] + 0.8, method
            assert defect > exact["sliced"] + 1.5
        assert noise["on drawing"] < 15
        return
    for method, steps in (("ddim-cosine", "50"), ("flow", "18")):
        row = value[method, "learned", steps]
        assert row["frechet"] < 1.4 * floor["frechet"] and 25 <= row["nearer"] <= 75
        assert row["off pose"] < 0.14 and row["spread"] > floor["spread"] - 0.15
        assert row["kernel"] < floor["kernel"] + 0.15
    exact = value["ddim-cosine", "exact", "50"]
    assert exact["nearer"] >= 95 and exact["off pose"] < 2 * floor["off pose"] < 0.03
    assert noise["off pose"] > 1 and noise["kernel"] > 5


def test_a_row_times_the_sampling_alone():
    def networks(recipe):
        sleep(0.5)
        return PointNetwork()

    (flow,) = chosen(tiny("points"), ["flow"])
    row = rows.run(flow, tiny("points"), 5, 0, networks)
    assert 0 < row.seconds < 0.4 and row.evaluations == 35


@over_laws
def test_one_seed_gives_one_table(name, tmp_path, small):
    def drawn(seed):
        torch.rand(1)  # the caller's random state is of no account
        flags = ["--methods", "flow", "ddim-linear", "--samples", 9, "--seed", seed]
        cells = run(name, *flags, "--output", tmp_path).values()
        kept = [
            [cell for key, cell in row.items() if key != "seconds"] for row in cells
        ]
        return kept, (tmp_path / f"{name}.png").read_bytes()

    one, same, other = drawn(3), drawn(3), drawn(4)
    assert one == same and one[0] != other[0]


@over_laws
def test_each_row_starts_where_its_process_ends(name):
    """Exact and learned from the same: N(0, noise_T^2 I), or a box of that half-side."""
    those, network = tiny(name), {"points": PointNetwork, "pictures": UNet}[name]()

    def networks(recipe):
        return PointNetwork(4) if recipe == "hybrid" else network

    for method in METHODS[name]:
        method = method._replace(own="hybrid" if method.learns_variance else name)
        starts = []
        for known in (None, networks):
            _, path = rows.states(method, those, 3000, 0, known)
            starts.append(next(path))
        x = starts[0] * (method.process.signal[-1] if method.name == "flow" else 1)
        assert torch.equal(*starts)
        noise = method.process.noise[-1].item()
        if method.box:
            assert x.abs().max() <= noise and x.min() < -0.99 * noise < 0.99 * noise
        deviation = noise / 3**0.5 if method.box else noise
        assert x.std().item() == pytest.approx(deviation, rel=0.05)


def test_what_tells_methods_apart_reaches_their_samplers():
    """Variances, and of pictures' DDPM the box."""
    variances = {}
    for method in chosen(
        tiny("points"), ["ddpm-linear", "ddpm-posterior", "ddpm-learned"]
    ):
        if method.steps == "50":
            _, path = rows.states(method, tiny("points"), 2000, 0, None)
            variances[method.name] = [*path][-2].var().item()
    # Before the last step, which adds none, the cloud has the noise that was added.
    assert variances["ddpm-posterior"] < variances["ddpm-linear"]
    assert variances["ddpm-posterior"] < variances["ddpm-learned"]

    half = torch.tensor(0.5**0.5)
    for method in chosen(tiny("pictures"), {m.name for m in METHODS["pictures"]}):
        # A velocity of 100, at signal = noise: an x_0 of -100 / 2^(1/2), unless clipped.
        method = method._replace(sampler=lambda predictor, *_, **options: [predictor])
        _, (predictor,) = rows.states(
            method,
            tiny("pictures"),
            2,
            0,
            lambda _: lambda x, *_: 100 * torch.ones_like(x),
        )
        x_start = -predictor(torch.zeros(2, 256), half, half)
        assert (x_start.abs().max() <= 1.001) == method.name.startswith("ddpm")


@over_laws
def test_slow_methods_draw_a_third_and_have_bounds_of_their_own(name, tmp_path, small):
    asked = ["noise", "flow", "ddim-linear", "--samples", 6, "--output", tmp_path]
    got = {method for method, *_ in run(name, "--methods", *asked)}
    slow = {"noise (2)", "ddim-linear (2)"}
    assert got == {"noise", "flow"} | (slow if name == "pictures" else {"ddim-linear"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(whole, tmp_path):
    name, here, _ = whole
    flags = [*FLAGS[name].split(), "--device", "cuda", "--film", "--output", tmp_path]
    got = run(name, *flags)
    assert [*got] == [*here]
    column, within = ("on drawing", 12) if name == "points" else ("spread", 0.2)
    for key, row in got.items():
        assert float(row[column]) == pytest.approx(float(here[key][column]), abs=within)
    few = ["--own", "--train", "--train-steps", 5, "--samples", 5]
    run(name, "--methods", "ddpm-cosine", *few, *flags[-5:])


# What one looks at


def test_figures(whole):
    name, got, folder = whole
    assert {path.name for path in folder.iterdir()} == {f"{name}.gif", f"{name}.png"}
    with Image.open(folder / f"{name}.png") as image:
        assert image.width > 900 and image.height > 100 * len(got) / 9
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


@pytest.mark.parametrize("wanted", [True, False])
def test_colours_are_those_of_the_ends(wanted):
    colours = figures.hues(torch.tensor([[1.0, 0], [3, 0], [0, 1], [-1, 0.1]]))
    assert (colours[0] == colours[1]).all() and len(np.unique(colours, axis=0)) == 3
    ends = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    path = {"way": torch.stack([ends.flip(0), ends])}
    inks = []
    for sheet in figures.film_sheets(path, law("points"), frames=2, colours=wanted):
        below = np.asarray(sheet.convert("RGB"), dtype=int)[60:-9]
        halves = (half.reshape(-1, 3) for half in np.array_split(below, 2, axis=1))
        inks.append([half[half.sum(axis=1).argmin()] for half in halves])
    (left, right), (_, right_end) = inks
    # They change places, and each keeps its colour.
    assert np.abs(left - right_end).max() < 40
    assert (np.abs(left - right).max() > 60) == wanted


def test_a_mosaic_holds_each_picture():
    x = torch.linspace(-1.5, 1.5, 5)[:, None].expand(5, 16)
    grid = figures.mosaic(x, 3, gap=2, scale=2)
    assert grid.shape == (24, 36) and grid.dtype == np.uint8
    assert [grid[4, 4], grid[4, 16], grid[4, 28], grid[16, 4]] == [0, 32, 128, 223]
    assert grid[16, 16] == 255 and grid[16, 28] == grid[0, 0] == 190


def test_below_each_sample_is_the_nearest_picture():
    faces = tiny("pictures")
    row = rows.Row("flow", "learned", "18", 35, (), 0.0, -faces.data[:14])
    (ax,) = figures.plot_rows([row], faces).axes
    _, index = nearest(row.samples, faces.data)
    expected = figures.mosaic(torch.cat([row.samples, faces.data[index]]), 14)
    assert np.array_equal(ax.images[0].get_array(), expected)


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_what_fails_leaves_the_old_figures(kind, tmp_path, monkeypatch):
    """A film or a figure that cannot be written whole is not written."""
    sheet, path = Image.new("L", (9, 9)), tmp_path / f"a.{kind}"
    figure = figures.plot_clouds([[("", law("points").data[:9])]], law("points"))
    path.write_bytes(b"before")

    def full(self, file, *args, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(type(figure), "savefig", full)
    with pytest.raises(OSError, match=f"{path.name}: No space left"):
        if kind == "gif":
            figures.save_gif([sheet, sheet], path)
        else:
            figures.save_png(figure, path)
    assert path.read_bytes() == b"before" and [*tmp_path.iterdir()] == [path]


# Networks


@over_laws
def test_the_networks_asked_for_are_trained_or_loaded(name, tmp_path, monkeypatch):
    asked = []

    def fit(recipe, those, **options):
        asked.append((recipe, len(those.data), options))
        return training.RECIPES[recipe].network().eval()

    monkeypatch.setattr(command, "fit", fit)
    for work in ("table", "plot_rows", "save_png"):
        monkeypatch.setattr(command, work, lambda *args: iter(()))
    run_here = partial(run, name, "--output", tmp_path)
    run_here()
    assert asked == []  # all are at hand
    run_here("--train", "--methods", "noise")
    assert asked == []  # none is needed
    run_here("--train", "--train-steps", 7, "--seed", 5, "--methods", "flow")
    expected = name, len(law(name).data), {"steps": 7, "seed": 5}
    assert asked.pop() == expected and asked == []
    run_here("--seed", 5)
    assert asked == []  # the seed of sampling alone
    run_here("--own")
    own = {method.own for method in METHODS[name] if not method.slow}
    assert {recipe for recipe, *_ in asked} == own - {"hybrid", "pictures"}


def test_another_picture_is_trained_for_and_not_saved(tmp_path, capsys):
    image = Image.new("L", (900, 900), 255)
    ImageDraw.Draw(image).ellipse((30, 30, 120, 120), outline=150, width=6)
    image.save(tmp_path / "ring.png")
    before = {path: path.read_bytes() for path in training.WEIGHTS.iterdir()}
    flags = ["--image", tmp_path / "ring.png", "--train-steps", 3, "--samples", 400]
    flags += ["--methods", "floor", "flow", "--output", tmp_path]
    got = run("points", *flags, "--fit")
    note = "comparison: note: fit: .*: 3... points, .*\n"
    assert re.fullmatch(note, capsys.readouterr().err)
    assert float(got["flow", "exact", "18"]["on drawing"]) > 99
    assert {path: path.read_bytes() for path in training.WEIGHTS.iterdir()} == before


@over_laws
def test_methods_have_networks(name):
    methods = METHODS[name]
    for own in (True, False):
        those = chosen(law(name), {method.name for method in methods}, own)
        assert len(those) == len(methods)
        assert {method.own for method in those} <= set(training.RECIPES)
    assert not any(method.slow for method in chosen(law(name)))
    taken = {"points": {"points", "hybrid"}, "pictures": {"pictures"}}[name]
    assert {method.own for method in chosen(law(name))} == taken


# Doors


def refused(monkeypatch, capsys, flags, message):
    """The command ends with status 2 and one line, and has not begun to work."""

    def work(*args, **options):
        raise AssertionError("work has begun")

    for name in ("fit", "table", "plot_rows"):
        monkeypatch.setattr(command, name, work)
    with pytest.raises(SystemExit) as end:
        command.main([*map(str, flags)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error


@over_laws
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--methods ddpm-square", "noise, floor, dd"),
        ("--methods", "--methods"),
        ("--output no/such", "cannot be written: No such file"),
        ("--output README.md", "cannot be written: Not a directory"),
        ("--image no.png", "no.png cannot be read: "),
        ("--image README.md", "README.md cannot be read: "),
        ("--samples 1", "must be a whole number from 2"),
        ("--samples many", "must be a whole number from 2"),
        ("--train-steps 0", "must be a whole number from 1"),
        ("--seed -1", "must be a whole number from 0"),
        ("--device tpu", "invalid choice: 'tpu'"),
        ("--side 17", "unrecognized arguments: --side"),
    ],
)
def test_bad_flags_end_before_any_work(name, monkeypatch, capsys, flags, message):
    refused(monkeypatch, capsys, [name, *flags.split()], message)


def test_an_unknown_law_ends_before_any_work(monkeypatch, capsys):
    refused(monkeypatch, capsys, ["photographs"], "invalid choice: 'photographs'")


def test_damaged_weights_end_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    (tmp_path / "points.pt").write_bytes(b"no weights")
    flags = ["points", "--methods", "flow", "--output", tmp_path]
    refused(monkeypatch, capsys, flags, "points.pt holds no weights")


@over_laws
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_the_picture_is_not_overwritten(name, kind, tmp_path, monkeypatch, capsys):
    image = tmp_path / "homer.png"
    image.write_bytes(HOMER.read_bytes())
    (tmp_path / f"{name}.{kind}").symlink_to(image)
    flags = [name, "--image", image, "--output", tmp_path]
    refused(monkeypatch, capsys, flags, f"{name}.{kind} would overwrite")


# Tables


def test_cells_are_means_and_half_ranges():
    runs = [
        rows.Row("flow", "exact", "18", 35, (x, x + 1, 2 * x, x), seconds, None)
        for x, seconds in ((1.0, 5.0), (2.0, 1.0), (6.0, 2.0))
    ]
    expected = "flow exact 18 35 3.0±2.5 4.0±2.5 6.00±5.00 3.00±2.50 2.0"
    cells = rows.cells(runs, law("points"))
    assert [str(c).replace(" ", "") for c in cells] == expected.split()
    assert rows.over([1.25], 1) == "1.2"
    assert rows.over([1e7, 3e7], 1) == "2e+07 ± 1e+07"


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_can_be_made(name, tmp_path, small, monkeypatch, capsys):
    """Each with few samples, few steps and networks that have learned nothing."""

    def few_data(those, count, seed):
        return those.data[torch.randint(len(those.data), (count,))]

    for module in (tables, on_points, on_pictures, tables_command.weights):
        monkeypatch.setattr(module, "law", tiny)
    for kind in (Points, Pictures):
        monkeypatch.setattr(kind, "samples", 6)
        monkeypatch.setattr(kind, "draw", few_data)
    monkeypatch.setattr(on_points, "LAW", tiny("points"))
    monkeypatch.setattr(on_points, "SAMPLES", 6)
    monkeypatch.setattr(on_pictures, "FEW", 4)
    monkeypatch.setattr(on_pictures, "MANY", 6)
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    monkeypatch.setattr(tables_command.weights, "PAGE", tmp_path / "weights.js")
    tables.network.cache_clear()

    def drawn(method, those, samples, seed, networks):
        kind = "learned" if networks and networks(method.own) else "exact"
        x = torch.randn(samples, those.data.shape[1])
        words = method.name, kind, method.steps
        return rows.Row(*words, 7, those.measure(x), 0.1, x)

    for module in (rows, on_pictures):
        monkeypatch.setattr(module, "run", drawn)
    monkeypatch.setattr("sys.argv", ["tables", name, "--seeds", "2"])
    tables_command.main()
    tables.network.cache_clear()
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    counts = {line.count(" | ") for line in lines if "---" not in line}
    asked = tables.TABLES[name]
    assert len(lines) >= 3 and counts == {len(asked.columns) - 1}
    assert bool([*tmp_path.iterdir()]) == (name == "play" or "weights" in name)
    assert not asked.training or "| exact |" not in "".join(lines)
    if name == "survey":  # with 1000 steps DDPM alone is clipped
        whole = [line for line in lines if "| 1000 |" in line]
        assert len(whole) == 4
        assert all(("ddpm" in line) == ("clipped" in line) for line in whole)


def test_tables_say_which_is_which(small, monkeypatch):
    """Seen and unseen, of draws that are the seen; and which variance a row has."""
    points, asked = law("points"), []

    def drawn_by(sampler, predictor, process, seed, **options):
        asked.append(options.get("variance"))
        return points.data[::2]

    monkeypatch.setattr(on_points, "drawn_by", drawn_by)
    for name, seen, unseen, _ in on_points.half(1):
        assert (float(seen) > 99) == (float(unseen) < 5) == (name[:3] in ("net", "exa"))
    del asked[:]
    names = [name for _, name, *_ in on_points.covariance(1)]
    known = ["beta" if x == "beta" else "beta~" for x in asked if isinstance(x, str)]
    assert names == [*known[:2], "the best", *known[2:], "learned"] and len(asked) == 6


def test_without_a_name_no_network_is_written(monkeypatch):
    made = []
    for name, entry in tables.TABLES.items():

        def noted(seeds, name=name):
            made.append(name)
            return iter(())

        monkeypatch.setitem(tables.TABLES, name, entry._replace(rows=noted))
    monkeypatch.setattr("sys.argv", ["tables"])
    tables_command.main()
    trainings = {"weights_points", "weights_pictures", "second", "copies", "play"}
    assert set(tables.TABLES) - set(made) == trainings


def test_the_document_names_each_table():
    text = (ROOT / "docs" / "comparison.md").read_text()
    named = re.findall(r"python -m comparison\.tables (\w+)", text)
    assert set(named) == set(tables.TABLES)
