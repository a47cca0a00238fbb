"""The comparison as a whole: data, command, committed weights, tables, document."""

import contextlib
import io
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from comparison import __main__ as command
from comparison import (
    methods,
    picture_methods,
    picture_tables,
    point_tables,
    tables,
    training,
)
from comparison.data import pictures, points
from comparison.figures import plot_clouds, save_png
from comparison.networks import PointNetwork
from comparison.processes import respaced
from tests.common import HOMER, ROOT, film
from utils import image_to_vector

LAW = points()
COLUMNS = [
    *("method", "predictor", "steps", "evaluations", "on drawing", "covered"),
    *("sliced", "frechet", "seconds"),
]


def rows_of(text):
    """The rows of a Markdown table, (method, predictor, steps) -> column -> cell."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line[0] == "|"]
    assert lines[0] == COLUMNS
    assert all(len(line) == len(COLUMNS) for line in lines[2:])
    cells = [dict(zip(COLUMNS, line)) for line in lines[2:]]
    return {(c["method"], c["predictor"], c["steps"]): c for c in cells}


def run(*flags):
    """What the command prints, in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command.main(["points", *map(str, flags)])
    return printed.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of the command as a user runs it, and the folder of its figures."""
    folder = tmp_path_factory.mktemp("comparison")
    flags = ["points", "--film", "--output", folder]
    text = subprocess.check_output(
        [sys.executable, "-m", "comparison", *flags],
        cwd=ROOT,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "DISPLAY"},
    )
    return rows_of(text), folder


# The law


def test_points_are_normalised_and_lead_back():
    cloud = image_to_vector(HOMER).view(-1, 2)
    torch.testing.assert_close(LAW.centre + LAW.scale * LAW.data, cloud)
    assert LAW.data.mean(dim=0).abs().max() < 1e-6
    assert LAW.data.square().mean().item() == pytest.approx(1)
    xs = LAW.data[:, 0].unique()
    gaps = xs.diff()
    assert gaps[gaps > 1e-4].min().item() == pytest.approx(LAW.pixel, rel=1e-3)


def test_the_law_is_told_by_its_points(tmp_path):
    """The same picture in another format is the same law, and another fit is not."""
    with Image.open(HOMER) as image:
        image.convert("L").save(tmp_path / "homer.bmp")
    assert points(tmp_path / "homer.bmp").picture == LAW.picture
    with pytest.warns(UserWarning, match="fit: "):
        assert points(HOMER, fit=True).picture != LAW.picture


# The command


def test_every_row_is_there(whole):
    rows, _ = whole
    steps = {
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
    }
    expected = [("noise", "-", "-"), ("floor", "-", "-")]
    for name, counts in steps.items():
        learned = "learned, clipped" if "cosine" in name else "learned"
        for count in counts:
            expected += [(name, "exact", count), (name, learned, count)]
    assert [*rows] == expected
    evaluations = {
        "flow": 35,
        "ve-pc": 400,
        "langevin": 1000,
        "langevin-denoised": 1001,
    }
    for (name, predictor, count), row in rows.items():
        if predictor != "-":
            assert int(row["evaluations"]) == evaluations.get(name) or int(count)


# Bounds below what three seeds gave, (on drawing, covered, sliced): the committed weights
# and every sampler, in one go.
@pytest.mark.parametrize(
    "key, on_drawing, covered, sliced",
    [
        (("ddpm-linear", "exact", "1000"), 99.5, 95, 1.7),
        (("ddim-linear", "exact", "50"), 99, 95, 1.7),
        (("ve-pc", "exact", "200"), 99.5, 95, 1.7),
        (("vp-em", "exact", "1000"), 99.5, 95, 1.7),
        (("flow", "exact", "18"), 99.5, 95, 1.8),
        (("langevin", "exact", "10 x 100"), 98, 94, 1.7),
        (("langevin-denoised", "exact", "10 x 100"), 99.5, 95, 1.7),
        (("ddpm-linear", "learned", "1000"), 85, 88, 1.8),
        (("ddim-linear", "learned", "50"), 74, 82, 1.9),
        (("ddim-cosine", "learned, clipped", "50"), 80, 82, 1.9),
        (("ddpm-learned", "learned", "50"), 48, 75, 2),
        (("langevin", "learned", "10 x 100"), 83, 83, 1.9),
        (("langevin-denoised", "learned", "10 x 100"), 88, 84, 1.9),
        (("ve-pc", "learned", "200"), 88, 87, 1.9),
        (("vp-em", "learned", "1000"), 85, 87, 1.9),
        (("flow", "learned", "18"), 88, 85, 2),
    ],
)
def test_samples_look_like_the_drawing(whole, key, on_drawing, covered, sliced):
    row = whole[0][key]
    assert float(row["on drawing"]) >= on_drawing
    assert float(row["covered"]) >= covered
    assert float(row["sliced"]) <= sliced


def test_defects_show(whole):
    rows, _ = whole
    for predictor in ("exact", "learned"):
        kept = float(rows["ddpm-kept-alphas", predictor, "50"]["sliced"])
        assert kept > 2 * float(rows["ddpm-linear", predictor, "50"]["sliced"])
    assert float(rows["noise", "-", "-"]["on drawing"]) < 15


def test_figures(whole):
    _, folder = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "points.gif",
        "points.png",
    ]
    with Image.open(folder / "points.png") as image:
        assert image.width > image.height > 700
    frames, durations = film(folder / "points.gif")
    assert len(frames) == 48 and durations[-1] == 2000
    panels = np.split(frames[-1][:, :972, 0], [244, 488, 732], axis=1)
    for (
        panel
    ) in panels:  # of four faces, each has ink, and none is where the mouth is not
        assert 500 < (panel[:, :240] < 100).sum() < 6000
    firsts = np.split(frames[0][:, :972, 0], [244, 488, 732], axis=1)
    assert not (firsts[0] == panels[0]).all()


def test_one_seed_gives_one_table(tmp_path):
    def drawn(seed):
        torch.rand(1)  # the caller's random state is of no account
        flags = ["--methods", "flow", "langevin", "--samples", 50, "--seed", seed]
        rows = rows_of(run(*flags, "--output", tmp_path)).values()
        cells = [[row[name] for name in COLUMNS[:-1]] for row in rows]
        return cells, (tmp_path / "points.png").read_bytes()

    assert drawn(3) == drawn(3)
    assert drawn(3)[0] != drawn(4)[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_command_on_cuda(tmp_path, whole):
    flags = ["--device", "cuda", "--film", "--output", tmp_path]
    rows = rows_of(run(*flags))
    assert [*rows] == [*whole[0]]
    for key, row in rows.items():
        here = float(whole[0][key]["on drawing"])
        assert float(row["on drawing"]) == pytest.approx(here, abs=8)
    run("--methods", "ddpm-learned", "--own", "--train", "--train-steps", 20, *flags)


def test_own_networks_are_those_of_the_papers(tmp_path, monkeypatch):
    asked = []

    def fit(name, law, **options):
        asked.append(name)
        return training.RECIPES[name].network().eval()

    monkeypatch.setattr(command, "fit", fit)
    monkeypatch.setattr(command, "load", lambda *args, **options: None)
    run("--own", "--samples", 5, "--output", tmp_path)
    assert asked == ["cosine", "geometric", "hybrid", "simple", "ve", "vp"]
    asked.clear()
    run("--samples", 5, "--output", tmp_path)
    assert asked == ["hybrid", "simple"]


def test_train_trains_anew(tmp_path, monkeypatch):
    given = {}

    def fit(name, law, **options):
        given.update(options, name=name, count=len(law.data))
        return PointNetwork().eval()

    monkeypatch.setattr(command, "fit", fit)
    flags = "--methods flow --train --train-steps 7 --seed 5 --samples 5 --output"
    run(*flags.split(), tmp_path)
    assert given == {"steps": 7, "seed": 5, "name": "simple", "count": 1098}


def test_another_picture_is_trained_for_and_not_saved(tmp_path):
    image = Image.new("L", (150, 150), 255)
    ImageDraw.Draw(image).ellipse((30, 30, 120, 120), outline=0, width=3)
    image.save(tmp_path / "ring.png")
    before = {path: path.read_bytes() for path in training.WEIGHTS.iterdir()}
    text = run(
        *("--image", tmp_path / "ring.png", "--methods", "floor", "flow"),
        *("--train-steps", 3, "--samples", 500, "--output", tmp_path),
    )
    assert float(rows_of(text)["flow", "exact", "18"]["on drawing"]) > 99
    assert {path: path.read_bytes() for path in training.WEIGHTS.iterdir()} == before


# Weights


def test_committed_weights_are_what_they_say():
    files = sorted(training.WEIGHTS.iterdir())
    assert [file.name for file in files] == ["hybrid.pt", "simple.pt", "unet.pt"]
    assert sum(file.stat().st_size for file in files) < 6e6
    for file in files:
        trained_on = torch.load(file, weights_only=True)["trained_on"]
        recipe = training.RECIPES[file.stem]
        law = pictures() if file.stem == "unet" else LAW
        assert trained_on == {
            "picture": law.picture,
            "objective": recipe.objective,
            "process": recipe.process,
            "steps": recipe.steps,
            "options": dict(recipe.options),
            "seed": 0,
        }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    return tmp_path


def test_weights_come_back(folder):
    network = training.fit("hybrid", LAW, steps=3, seed=4)
    training.save("hybrid", network, LAW, steps=3, seed=4)
    back = training.load("hybrid", LAW, steps=3, seed=4)
    assert all(
        map(torch.equal, network.state_dict().values(), back.state_dict().values())
    )
    assert not any(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize(
    "change", ["picture", "steps", "seed", "objective", "process", "lr"]
)
def test_weights_of_something_else_are_not_used(folder, monkeypatch, change):
    training.save("simple", PointNetwork(), LAW, steps=3, seed=4)
    law, options = LAW, {"steps": 3, "seed": 4}
    if change == "picture":
        law = LAW._replace(picture="0" * 64)
    elif change in options:
        options[change] += 1
    else:
        another = {"options": {"lr": 1.0}} if change == "lr" else {change: "another"}
        recipe = training.RECIPES["simple"]._replace(**another)
        monkeypatch.setitem(training.RECIPES, "simple", recipe)
    assert training.load("simple", law, **options) is None


def test_no_file_gives_no_network(folder):
    assert training.load("simple", LAW) is None


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("kind", ["noise", "empty", "cut", "foreign", "evil", "shapes"])
def test_damaged_weights_end_before_any_work(folder, monkeypatch, capsys, kind):
    monkeypatch.chdir(folder)
    training.save("simple", PointNetwork(), LAW)
    file = folder / "simple.pt"
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
            training.save("simple", PointNetwork(outputs=4), LAW)
    _refused(monkeypatch, capsys, ["--methods", "flow"], "simple.pt holds no weights")
    assert not (folder / "evil").exists()


def _refused(monkeypatch, capsys, flags, message):
    """The command ends with status 2 and one line, and has not begun to work."""

    def work(*args, **options):
        raise AssertionError("work has begun")

    for name in ("fit", "table", "plot_clouds"):
        monkeypatch.setattr(command, name, work)
    with pytest.raises(SystemExit) as end:
        command.main(["points", *flags])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--methods ddpm-square", "invalid choice: 'ddpm-square'"),
        ("--methods", "--methods"),
        ("--output no/such", "no/such/points.png cannot be written: No such file"),
        (
            "--output README.md",
            "README.md/points.png cannot be written: Not a directory",
        ),
        ("--image no.png", "no.png cannot be read as a picture"),
        ("--image README.md", "README.md cannot be read as a picture"),
        ("--samples 1", "must be 2 to"),
        ("--samples many", "invalid int value: 'many'"),
        ("--train-steps 0", "must be 1 to"),
        ("--seed -1", "must be 0 to"),
        ("--device tpu", "invalid choice: 'tpu'"),
    ],
)
def test_bad_flags_end_before_any_work(monkeypatch, capsys, flags, message):
    _refused(monkeypatch, capsys, flags.split(), message)


def test_the_picture_is_not_overwritten(tmp_path, monkeypatch, capsys):
    image = tmp_path / "points.png"
    image.write_bytes(HOMER.read_bytes())
    flags = ["--image", str(image), "--output", str(tmp_path)]
    _refused(monkeypatch, capsys, flags, f"points.png would overwrite {image}")
    assert image.read_bytes() == HOMER.read_bytes()


def test_unknown_law(capsys):
    with pytest.raises(SystemExit):
        command.main(["photographs"])
    assert "invalid choice: 'photographs'" in capsys.readouterr().err


# Figures and tables


def test_many_clouds_stand_in_bands(tmp_path):
    cloud = LAW.data[::100]
    columns = [[(f"{k}, above", cloud), (f"{k}, below", cloud)] for k in range(11)]
    save_png(plot_clouds(columns, LAW), tmp_path / "many.png")
    save_png(plot_clouds(columns[:2], LAW), tmp_path / "few.png")
    with (
        Image.open(tmp_path / "many.png") as many,
        Image.open(tmp_path / "few.png") as few,
    ):
        assert many.width > 4 * few.width and many.height > 1.8 * few.height


@pytest.fixture
def no_cached_networks():
    caches = point_tables.network, picture_tables.network
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("no_cached_networks")
@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_tables_can_be_made(tmp_path, monkeypatch, capsys, name):
    """Each with few samples and networks that have learned nothing."""

    def no_training(network, objective, data, *, steps=1, seed=0, **options):
        objective(network, data[:4], torch.Generator().manual_seed(seed))
        return torch.ones(steps)

    def drawn(method, law, samples, seed, predictor):
        assert predictor is None or callable(predictor)
        return torch.randn(samples, law.data.shape[1]), 0, 0.1

    small = pictures(side=16, count=20)
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    monkeypatch.setattr(training, "train", no_training)
    monkeypatch.setattr(point_tables, "DOCS", tmp_path)
    monkeypatch.setattr(picture_tables, "DOCS", tmp_path)
    monkeypatch.setattr(point_tables, "LAW", LAW._replace(data=LAW.data[::20]))
    monkeypatch.setattr(point_tables, "SAMPLES", 10)
    monkeypatch.setattr(point_tables, "train", no_training)
    monkeypatch.setattr(picture_tables, "SAMPLES", 6)
    monkeypatch.setattr(picture_tables, "FEW", 4)
    monkeypatch.setattr(picture_tables, "law", lambda: small)
    monkeypatch.setattr(picture_tables, "respaced", lambda p, kept: respaced(p, 3))
    for module in (picture_tables, picture_methods):
        monkeypatch.setattr(module, "timed", drawn)
    tables.TABLES[name](2)
    printed = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len({line.count(" | ") for line in printed if "---" not in line}) <= 2
    assert printed or [*tmp_path.iterdir()]


def test_the_document_names_each_table():
    text = (ROOT / "docs" / "comparison.md").read_text()
    named = re.findall(r"python -m comparison\.tables (\w+)", text)
    assert set(named) == set(tables.TABLES)


def test_methods_have_networks():
    for method in methods.methods():
        assert {method.network(own) for own in (True, False)} <= set(training.RECIPES)
