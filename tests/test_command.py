"""The commands: rows, figures, films, networks, bad input, the document's tables."""

import contextlib
import io
import math
import re
from dataclasses import replace
from functools import partial
from itertools import product
from time import sleep

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from comparison import __main__ as command
from comparison import figures, rows, tables, training
from comparison.levels import to_zero
from comparison.pictures import pictures
from comparison.rows import DATASETS
from comparison.tables import __main__ as tables_command
from comparison.tables import pictures as on_pictures
from comparison.tables import points as on_points
from tests.common import HOMER, ROOT, film, seeded_by
from tests.datasets import dataset, tiny

KINDS = command.KINDS
METHODS = [(name, one) for name, kind in KINDS.items() for one in kind.methods]
DEVICES = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
# Of data, a method, a denoiser, its steps and a measure, the least and the most.
BOUNDS = {
    "points ddpm-linear exact 1000 precision": (99.5, 100),
    "points ddpm-linear network 50 precision": (64, 80),
    "points ddpm-learned network 50 precision": (50, 64),
    "points ddpm-posterior network 50 precision": (84, 96),
    "points ddpm-stale-alphas exact 50 sliced W1": (4, 9),
    "points heun network 18 precision": (95, 100),
    "pictures ddim-cosine exact 50 closer to training": (100, 100),
    "pictures ddim-cosine network 50 closer to training": (15, 85),
    "pictures ddim-cosine network 50 pose error": (0.03, 0.14),
}


class Stub(torch.nn.Module):
    """A network that has learned nothing, and counts how often it is asked."""

    def __init__(self, outputs=1):
        super().__init__()
        self.scales = torch.nn.Parameter(torch.tensor([[30.0], [0.5]][:outputs]))
        self.calls = 0

    def forward(self, y, sigma):
        self.calls += 1
        wave = (y / (1 + sigma**2).sqrt()).sin()
        return (wave[:, None] * self.scales).flatten(1)


def run(name, *flags):
    """What the command prints, in this process: (method, denoiser, steps) -> cells."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.main([name, *map(str, flags)])
    lines = [line[2:-2].split(" | ") for line in printed.getvalue().splitlines()]
    cells = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return {(row["method"], row["denoiser"], row["steps"]): row for row in cells}


@pytest.fixture(scope="module", params=[*product(DATASETS, DEVICES)], ids="-".join)
def whole(request, tmp_path_factory):
    """A data set's name, the folder of its figures, and the rows of several methods."""
    (name, device), folder = request.param, tmp_path_factory.mktemp("whole")
    asked = {key.split()[1] for key in BOUNDS if key.startswith(name)}
    flags = f"--film --device {device} --samples {[6, 200][name == 'points']}".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "frames", partial(figures.frames, count=4))
        if device == "cpu":  # as it is drawn once for all tests
            patch.setitem(DATASETS, name, lambda *_, **__: dataset(name))
        return name, folder, run(name, *flags, "--output", folder, "--methods", *asked)


@pytest.fixture
def small(request, monkeypatch, tmp_path):
    """Data sets of a few data, few levels and frames, networks that learn one step."""
    few = {"points": tiny("points")}
    few["pictures"] = replace(pictures(side=8, count=20), fitted=1)
    for name, data in few.items():
        monkeypatch.setitem(DATASETS, name, lambda *_, data=data, **__: data)
    for name, recipe in training.RECIPES.items():
        network = partial(Stub, 2) if name == "hybrid" else Stub
        brief = recipe._replace(network=network, steps=1, committed=1)
        monkeypatch.setitem(training.RECIPES, name, brief)

    def train(*data, steps, **options):
        return training.train(*data, steps=1, **options)

    def states(method, *options, real=rows.states):
        return real(method._replace(levels=to_zero(method.levels[:-1][::20])), *options)

    monkeypatch.setattr(on_points, "train", train)
    monkeypatch.setattr(rows, "states", states)
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    monkeypatch.setattr(command, "frames", partial(figures.frames, count=3))
    for cached in (tables.network, tables.dataset):
        cached.cache_clear()
        request.addfinalizer(cached.cache_clear)
    return few


@pytest.mark.parametrize("name, method", METHODS, ids=lambda x: getattr(x, "name", x))
def test_every_method_makes_its_rows(name, method):
    """Both from N(0, levels[0]^2 I); once more for a variance of its own."""
    those, steps = tiny(name), math.prod(map(int, method.steps.split(" x ")))
    method = method._replace(own=method.own or name)
    calls = {"langevin-denoised": steps + 1, "ve-pc": 2 * steps}
    calls |= {"heun": 2 * steps - 1, "edm": 2 * steps - 1, "ve-pcc": 3 * steps}
    noise = torch.randn(40, those.data.shape[1], generator=seeded_by(0))
    begin = method.levels[0].float() * noise
    for kind in method.denoisers:
        learned, network = kind == "network", Stub(2 if method.learns_variance else 1)
        networks = (lambda _, network=network: network) if learned else None
        row = rows.run(method, those, 3, 0, networks)
        words = "network, clipped" if method.clip and learned else kind
        assert row[:3] == (method.name, words, method.steps)
        assert row.samples.shape == (3, those.data.shape[1])
        assert np.isfinite(row.measures).all() and len(row.measures) > 0
        count = calls.get(method.name, steps) << (method.learns_variance and learned)
        assert row.evaluations == count and network.calls == count * learned
        given = method._replace(sampler=lambda d, _, y, **how: (d, y, how))
        denoiser, y, how = rows.states(given, those, 40, 0, networks)[1]
        torch.testing.assert_close(y, begin)
        assert callable(how.get("variance")) == method.learns_variance
        x = denoiser(y, method.levels[0].float())
        assert not method.clip or kind == "exact" or (x == x.clamp(*method.clip)).all()


def test_a_row_times_the_sampling_alone():
    row = rows.run(
        dict(METHODS)["points"], tiny("points"), 5, 0, lambda _: sleep(0.3) or Stub()
    )
    assert 0 < row.seconds < 0.25


def test_samples_look_like_fresh_data_and_so_do_the_figures(whole):
    name, folder, got = whole
    for key, (least, most) in BOUNDS.items():
        data, method, kind, steps, measure = key.split(" ", 4)
        if data == name:
            assert least <= float(got[method, kind, steps][measure]) <= most, key
    assert {path.name for path in folder.iterdir()} == {f"{name}.gif", f"{name}.png"}
    frames, durations = film(folder / f"{name}.gif")
    assert durations == [100, 100, 100, 2000]
    assert 0.003 < (frames[-1].min(axis=2) < 128).mean() < 0.2  # noise is darker


@pytest.mark.parametrize("name", DATASETS)
def test_one_seed_gives_one_table(name, small, tmp_path):
    def drawn(seed):
        torch.rand(1)  # the caller's random state is of no account
        flags = ["--methods", "noise", "heun", "ddim-cosine", "--samples", 6, "--film"]
        got = run(name, *flags, "--seed", seed, "--output", tmp_path)
        cells = [[row[k] for k in row if k != "seconds"] for row in got.values()]
        return cells, *(path.read_bytes() for path in sorted(tmp_path.glob("*.[gp]*")))

    one, same, other = drawn(3), drawn(3), drawn(4)
    assert one == same and one[0][0] != other[0][0] and len(one) == 3
    assert {method for method, *_ in one[0]} == {"noise", "heun", "ddim-cosine"}


def test_films_show_states_of_unit_variance_in_the_colours_of_their_ends():
    """Two points change places, coming from far outside, and each keeps its colour."""
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    shown = figures.frames({"way": [9 * ends.flip(0), ends, 0.5 * ends]}, 2)
    assert [[*parts] for parts in shown] == [["way: 0"], ["way: 2"]]
    (first,), (end,) = (parts.values() for parts in shown)
    assert first.std().item() == pytest.approx(1) and torch.equal(end, 0.5 * ends)
    hues = 255 * figures.hues(ends)[:, :3]
    for k, sheet in enumerate(dataset("points").sheets(shown)):
        below = np.asarray(sheet.convert("RGB"), dtype=int)[60:-9]
        for half, hue in zip(np.array_split(below, 2, axis=1), hues[:: 1 - 2 * k]):
            ink = min(half.reshape(-1, 3).tolist(), key=sum)
            assert np.abs(ink - hue).max() < 60


def test_a_mosaic_holds_each_picture_and_below_each_sample_is_the_nearest():
    x, faces = torch.linspace(-1.5, 1.5, 5)[:, None].expand(5, 16), tiny("pictures")
    grid = figures.mosaic(x, 3, scale=2)
    assert grid[4::12, 4::12].tolist() == [[0, 32, 128], [223, 255, 190]]
    assert (grid[:2] == 190).all() and (grid[:, 10:14] == 190).all()
    row = rows.Row("heun", "network", "18", 35, (), 0.0, -faces.data[:14])
    (ax,) = faces.plot([row]).axes
    index = torch.cdist(row.samples, faces.data).argmin(dim=1)
    expected = figures.mosaic(torch.cat([row.samples, faces.data[index]]), 14)
    assert np.array_equal(ax.images[0].get_array(), expected)


@pytest.mark.parametrize("name", DATASETS)
def test_networks_are_trained_or_loaded_as_asked(name, small, tmp_path, monkeypatch):
    asked, known, those = [], KINDS[name].methods, small[name]

    def fit(recipe, data, **options):
        asked.append((recipe, len(data.data), options))
        return training.RECIPES[recipe].network()

    monkeypatch.setattr(command, "fit", fit)
    for own in ("hybrid", name):
        told = training.trained_on(own, those)
        training.save(own, training.RECIPES[own].network(), told)
    run_here = partial(run, name, "--samples", 3, "--output", tmp_path)
    got = [(method, steps) for method, _, steps in run_here("--seed", 5)]
    assert {*got[4:]} == {(one.name, one.steps) for one in known if not one.slow}
    run_here("--train", "--methods", "noise")
    assert asked == []  # all are at hand, or none is needed
    run_here("--train", "--train-steps", 7, "--seed", 5, "--methods", "heun")
    assert asked.pop() == (name, len(those.data), {"steps": 7, "seed": 5})
    run_here("--train-steps", 7, "--methods", "noise", "--film")
    assert asked.pop()[0] == name  # for the film


def test_another_picture_is_trained_for_and_not_saved(tmp_path, capsys):
    image = Image.new("L", (900, 900), 255)
    ImageDraw.Draw(image).ellipse((30, 30, 120, 120), outline=150, width=6)
    image.save(tmp_path / "ring.png")
    before = {path: path.read_bytes() for path in training.WEIGHTS.iterdir()}
    flags = ["--image", tmp_path / "ring.png", "--train-steps", 3, "--samples", 400]
    got = run("points", *flags, "--methods", "heun", "--output", tmp_path, "--fit")
    assert re.fullmatch(".* note: fit: .*: 3... points, .*\n", capsys.readouterr().err)
    assert float(got["heun", "exact", "18"]["precision"]) > 99
    assert {path: path.read_bytes() for path in training.WEIGHTS.iterdir()} == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "pictures --methods vp-em",
            "noise, gaussian, copies, fresh data, ddim-cosine",
        ),
        ("points --output no/such", "cannot be written: No such file"),
        ("points --output {tmp}", "points.png would overwrite"),
        ("pictures --output {tmp}", "pictures.gif would overwrite"),
        ("points --image no.png", "no.png cannot be read: "),
        ("points --samples 1", "must be a whole number from 2"),
    ],
)
def test_bad_input_ends_before_any_work(flags, message, tmp_path, monkeypatch, capsys):
    for module, name in ((command, "fit"), (rows, "table"), (command, "save_png")):
        monkeypatch.delattr(module, name)
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    for figure in ("points.png", "pictures.gif"):
        (tmp_path / figure).symlink_to(HOMER)
    with pytest.raises(SystemExit) as end:
        command.main(flags.format(tmp=tmp_path).split())
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error


def test_cells_are_means_and_sample_standard_deviations():
    same, words = [], ("heun", "exact", "18", 35)
    for x, seconds in ((1.0, 5.0), (2.0, 1.0), (6.0, 2.0)):
        same.append(rows.Row(*words, (x, 2 * x, 3 * x, 4 * x), seconds, None))
    spread, places = np.std([1, 2, 6], ddof=1), {1: 1, 2: 1, 3: 2, 4: 2}
    expected = [f"{3 * k:.{d}f} ± {spread * k:.{d}f}" for k, d in places.items()]
    assert rows.cells(same, KINDS["points"]) == [*words, *expected, "2.0"]
    assert rows.over([1.25], 1) == "1.2" and rows.over([1e7, 3e7], 1) == "2e+07 ± 1e+07"
    assert rows.over([math.nan, 1.0], 1) == "nan ± nan"  # of a network that exploded


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_can_be_made(name, tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(KINDS["points"], "samples", 200)
    monkeypatch.setattr(on_points, "SAMPLES", 200)
    monkeypatch.setattr(on_points, "DATA", small["points"])
    for module in (on_pictures, tables_command.trainings):
        monkeypatch.setattr(module, "MANY", 6)
    monkeypatch.setattr(on_pictures, "FEW", 3)
    for module in (on_points, on_pictures, tables_command.trainings):
        monkeypatch.setattr(module, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["tables", name, "--seeds", "2"])
    tables_command.main()
    assert name != "points" or tables.network.cache_info().currsize == 2 * 2  # by seed
    printed = capsys.readouterr().out.splitlines()
    lines = [line.strip("| ").split("|") for line in printed if line[:1] == "|"]
    assert len(lines) >= 3 and len({len(line) for line in lines}) == 1
    files = {
        "play": ["weights.js"],
        "guidance": ["guidance.png"],
        "poses": ["copies.png"],
    }
    files |= {name: [f"{name}.png"] for name in ("errors", "degradation")}
    files["weights"] = ["hybrid.pt", "pictures.pt", "points.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files.get(name, [])
    lines = [[cell.strip() for cell in line] for line in lines]
    if name == "survey":  # with all steps DDPM alone is clipped
        ends = {line[0][:4]: line[1][-7:] for line in lines if line[2] == "1000"}
        assert ends["ddpm"] == "clipped" != ends["ddim"]
    if name == "half":  # the exact score's and a blur's are not those of fresh data
        means = [[float(x.split()[0]) for x in line[1:]] for line in lines[3:]]
        assert means == [[100, 0, 100], [100, 0, means[1][2]], [100, 100, 100]]
        assert 50 < means[1][2] < 100
    if name == "covariance":
        beta, posterior, best = (float(line[-1].split()[0]) for line in lines[2:5])
        assert best < posterior < beta


def test_the_document_names_each_table_and_the_trainings_are_made_by_name(monkeypatch):
    made = []
    for name, table in tables.TABLES.items():

        def noted(seeds, name=name):
            made.append(name)
            return iter(())

        noted.__module__ = table.__module__
        monkeypatch.setitem(tables.TABLES, name, noted)
    monkeypatch.setattr("sys.argv", ["tables"])
    tables_command.main()
    trainings = {"weights", "controls", "play"}
    assert set(tables.TABLES) - set(made) == trainings
    text = (ROOT / "docs" / "comparison.md").read_text()
    assert set(re.findall(r"comparison\.tables (\w+)", text)) == set(tables.TABLES)
