"""The pictures: what a frame shows, where a strip puts it, how long it lasts."""

import os
import subprocess
import sys
from statistics import NormalDist

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

import main
from tests.common import HOMER, ROOT, film
from utils import image_to_vector


def test_frames_are_the_states(tmp_path):
    """Each frame has ink where its state has points, and the final face nowhere else."""
    chain = torch.tensor([[-2.0, 3.0, 2.0, 3.0], [-2.0, -2.0, 2.0, -2.0]])
    main.save_film(chain, ["one", "two"], tmp_path / "film.gif", fps=10, dpi=40)
    frames, durations = film(tmp_path / "film.gif")
    assert durations == [100, 1500]
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.info["loop"] == 0  # for ever
    for frame, y in zip(frames, (3.0, -2.0)):
        dark = frame.sum(axis=2) < 300
        low, high = main.X_LIMITS
        bottom, top = main.Y_LIMITS
        for x in (-2.0, 2.0):
            column = round((x - low) / (high - low) * 200)
            row = round((top - y) / (top - bottom) * 200)
            assert dark[row - 2 : row + 2, column - 2 : column + 2].any()
        dark[190:, :80] = False  # the label
        dark_rows = np.nonzero(dark.any(axis=1))[0]
        assert dark_rows.max() - dark_rows.min() < 8


def test_face_and_noise_fill_the_square(tmp_path):
    """The face from one edge to the other, and the noise, with few points outside."""
    chain = torch.stack([image_to_vector(HOMER), torch.randn(2196)])
    main.save_film(chain, ["", ""], tmp_path / "film.gif", dpi=40)
    for frame in film(tmp_path / "film.gif")[0]:
        rows, columns = np.nonzero(frame.sum(axis=2) < 300)
        assert np.ptp(rows) > 0.85 * 200 and np.ptp(columns) > 0.55 * 200
        assert rows.max() > 0.88 * 200
    inside = [NormalDist().cdf(x) for x in (*main.X_LIMITS, *main.Y_LIMITS)]
    share = (inside[1] - inside[0]) * (inside[3] - inside[2])
    assert 1 - share == pytest.approx(0.005, abs=0.001)


def test_no_cloud_of_a_picture_reaches_the_edge_or_the_label(tmp_path):
    x, y = np.meshgrid(np.arange(150) / 25 - 3, np.arange(1, 151) / 25 - 2)
    cloud = torch.tensor(np.stack([x, y], axis=2).ravel())
    shift = torch.tensor([0, 99]).repeat(22500)  # and out of the frame
    main.save_film(
        torch.stack([cloud, cloud + shift, cloud + shift]),
        ["$t = 30$", "$t = 30$", ""],
        tmp_path / "film.gif",
    )
    ink, label, nothing = (f.sum(axis=2) < 300 for f in film(tmp_path / "film.gif")[0])
    assert not nothing.any()
    assert not ink[[0, -1]].any() and not ink[:, [0, -1]].any()
    assert ink.sum() > 0.7 * ink.size
    assert np.nonzero(label)[0].min() > np.nonzero(ink & ~label)[0].max()


def test_labels_are_those_of_the_states(tmp_path, monkeypatch):
    drawn = []
    text = Axes.text

    def recorded(ax, x, y, s, **kwargs):
        drawn.append(s)
        return text(ax, x, y, s, **kwargs)

    monkeypatch.setattr(Axes, "text", recorded)
    chain, labels = torch.randn(13, 8), [f"$u = {k}$" for k in range(13)]
    main.save_film(chain, labels, tmp_path / "film.gif", dpi=20)
    assert drawn == labels
    drawn.clear()
    main.save_strip(chain, labels, tmp_path / "strip.png", dpi=50)
    assert drawn == [labels[k] for k in (0, 1, 3, 4, 5, 7, 8, 9, 11, 12)]
    for call in (main.animate, main.strip, main.stills):
        for number in (12, 14):
            with pytest.raises(ValueError, match="longer|shorter"):
                call(chain, [""] * number, dpi=20)


def test_strip_holds_the_stills_in_time_order(tmp_path):
    """Ink wanders from the left of the first panel to the right of the last."""
    x = torch.linspace(-3, 3, 10)
    column = torch.linspace(-3, 2, 50)  # of points
    chain = torch.stack([x[:, None].expand(10, 50), column.expand(10, 50)], dim=2)
    main.save_strip(chain.flatten(1), [""] * 10, tmp_path / "strip.png", dpi=150)
    with Image.open(tmp_path / "strip.png") as strip:
        dark = np.asarray(strip.convert("L")) < 120
    side = 300
    pitch = (dark.shape[1] - side) // 4
    for k in range(10):
        top, left = k // 5 * pitch, k % 5 * pitch
        panel = dark[top : top + side, left : left + side]
        low, high = main.X_LIMITS
        expected = (x[k].item() - low) / (high - low) * side
        assert np.nonzero(panel)[1].mean() == pytest.approx(expected, abs=2)


def test_a_film_can_be_played_in_a_notebook():
    for settings, milliseconds in (({}, 125), ({"fps": 5}, 200)):
        film = main.animate(torch.randn(3, 8), list("abc"), dpi=20, **settings)
        page = film.to_jshtml()
        assert page.count("data:image/png;base64") == 3
        assert f"slider_id, {milliseconds}.0," in page
    strip = main.strip(torch.randn(3, 8), list("abc"), dpi=20)
    assert strip.size == (2 * 100 + 2, 2 * 100 + 2)


def test_settings_of_the_caller_do_not_reach_the_film(tmp_path):
    chain = torch.randn(2, 8)
    main.save_film(chain, ["a", "b"], tmp_path / "one.gif", dpi=20)
    theirs = {
        "figure.constrained_layout.use": True,
        "text.usetex": True,
        "text.color": "red",
        "savefig.bbox": "tight",
    }
    with matplotlib.rc_context(theirs):
        main.save_film(chain, ["a", "b"], tmp_path / "other.gif", dpi=20)
    assert (tmp_path / "other.gif").read_bytes() == (tmp_path / "one.gif").read_bytes()


@pytest.mark.parametrize(
    "fps, duration", [(24, 40), (50, 20), (30, 30), (15, 70), (7, 140), (0.5, 2000)]
)
def test_frame_rate_is_the_nearest_a_gif_has(tmp_path, fps, duration):
    path = tmp_path / "film.gif"
    main.save_film(torch.randn(3, 8), list("abc"), path, fps=fps, dpi=20)
    assert film(tmp_path / "film.gif")[1] == [duration, duration, max(1500, duration)]


@pytest.mark.parametrize(
    "code, backend",
    [
        ("matplotlib.use('svg'); import main", "svg"),
        ("import main; main.save_film(main.torch.randn(2, 4), 'ab', 'film.gif')", None),
    ],
)
def test_backend_of_the_caller_is_left_alone(code, backend, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment["PYTHONPATH"] = str(ROOT)
    code = (
        f"import matplotlib; {code}; print(matplotlib.get_backend(auto_select=False))"
    )
    printed = subprocess.check_output(
        [sys.executable, "-c", code], text=True, cwd=tmp_path, env=environment
    )
    assert printed == f"{backend}\n"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "output.gif"
    target.write_bytes(b"the film before")

    def half(picture, path, *args, **options):
        path.write_bytes(b"GIF89a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space.*output.gif"):
        main.save_film(torch.randn(2, 8), ["a", "b"], target, dpi=20)
    assert target.read_bytes() == b"the film before"
    assert list(tmp_path.iterdir()) == [target]


def test_two_films_at_once_do_not_mix(tmp_path, monkeypatch):
    """One is written, to the same place, while the other is."""
    target, save = tmp_path / "output.gif", Image.Image.save
    one, other = torch.randn(2, 2, 8)
    main.save_film(one, ["a", "b"], tmp_path / "alone.gif", dpi=20)
    writing = []

    def saving(picture, path, **options):
        writing.append(path)
        save(picture, path, **options)
        if len(writing) == 1:
            main.save_film(other, ["a", "b"], target, dpi=20)

    monkeypatch.setattr(Image.Image, "save", saving)
    main.save_film(one, ["a", "b"], target, dpi=20)
    assert len({*writing}) == 2
    assert target.read_bytes() == (tmp_path / "alone.gif").read_bytes()
    assert len([*tmp_path.iterdir()]) == 2


def test_a_film_of_no_known_format_is_refused(tmp_path):
    for name in ("film.mp4", "film"):
        with pytest.raises(ValueError, match="unknown file extension"):
            main.save_film(torch.randn(2, 8), ["a", "b"], tmp_path / name, dpi=20)
    assert list(tmp_path.iterdir()) == []
