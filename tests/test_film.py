"""The pictures: what a frame shows, where a strip puts it, how long it lasts."""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

import main
from tests.common import ROOT, film


def test_frames_are_the_states(tmp_path):
    """Each frame has ink where its state has points, and the final face nowhere else."""
    chain = torch.tensor([[-2.0, 3.0, 2.0, 3.0], [-2.0, -2.0, 2.0, -2.0]])
    main.save_film(chain, tmp_path / "film.gif", fps=10, dpi=40)
    frames, durations = film(tmp_path / "film.gif")
    assert durations == [100, 1500]
    for frame, y in zip(frames, (3.0, -2.0)):
        dark = frame.sum(axis=2) < 300
        low, high = main.X_LIMITS
        bottom, top = main.Y_LIMITS
        for x in (-2.0, 2.0):
            column = round((x - low) / (high - low) * 200)
            row = round((top - y) / (top - bottom) * 200)
            assert dark[row - 2 : row + 2, column - 2 : column + 2].any()
        dark[:40, :80] = False  # the step's label
        dark_rows = np.nonzero(dark.any(axis=1))[0]
        assert dark_rows.max() - dark_rows.min() < 8


def test_every_frame_is_labelled_with_its_step(tmp_path, monkeypatch):
    labels = []
    text = Axes.text

    def recorded(ax, x, y, s, **kwargs):
        labels.append(int(s.strip("$").removeprefix("t = ")))
        return text(ax, x, y, s, **kwargs)

    monkeypatch.setattr(Axes, "text", recorded)
    chain = torch.randn(13, 8)
    main.save_film(chain, tmp_path / "film.gif", dpi=20)
    assert labels == list(range(12, -1, -1))
    labels.clear()
    main.save_film(chain, tmp_path / "film.gif", dpi=20, first_index=1)
    assert labels == list(range(13, 0, -1))
    labels.clear()
    main.save_strip(chain, tmp_path / "strip.png", dpi=50)
    assert len(labels) == 10
    assert labels[0] == 12 and labels[-1] == 0
    assert labels == sorted(set(labels), reverse=True)


def test_strip_holds_the_stills_in_time_order(tmp_path):
    """Ink wanders from the left of the first panel to the right of the last."""
    x = torch.linspace(-3.5, 3.5, 10)
    column = torch.linspace(-3, 2, 50)  # of points
    chain = torch.stack([x[:, None].expand(10, 50), column.expand(10, 50)], dim=2)
    main.save_strip(chain.flatten(1), tmp_path / "strip.png", dpi=150)
    with Image.open(tmp_path / "strip.png") as strip:
        dark = np.asarray(strip.convert("L")) < 120
    side = 300
    pitch = (dark.shape[1] - side) // 4
    for k in range(10):
        top, left = k // 5 * pitch, k % 5 * pitch
        panel = dark[top + 50 : top + side, left : left + side]  # below the label
        expected = (x[k].item() - main.X_LIMITS[0]) / 8.4 * side
        assert np.nonzero(panel)[1].mean() == pytest.approx(expected, abs=2)


def test_a_film_can_be_played_in_a_notebook():
    page = main.animate(torch.randn(3, 8), fps=8, dpi=20).to_jshtml()
    assert page.count("data:image/png;base64") == 3
    assert "125" in page  # milliseconds a frame
    assert main.strip(torch.randn(3, 8), dpi=20).size == (2 * 100 + 2, 2 * 100 + 2)


def test_settings_of_the_caller_do_not_reach_the_film(tmp_path):
    chain = torch.randn(2, 8)
    main.save_film(chain, tmp_path / "one.gif", dpi=20)
    theirs = {
        "figure.constrained_layout.use": True,
        "text.usetex": True,
        "text.color": "red",
        "savefig.bbox": "tight",
    }
    with matplotlib.rc_context(theirs):
        main.save_film(chain, tmp_path / "other.gif", dpi=20)
    assert (tmp_path / "other.gif").read_bytes() == (tmp_path / "one.gif").read_bytes()


@pytest.mark.parametrize(
    "fps, duration", [(24, 40), (50, 20), (30, 30), (7, 140), (0.5, 2000)]
)
def test_frame_rate_is_the_nearest_a_gif_has(tmp_path, fps, duration):
    main.save_film(torch.randn(3, 8), tmp_path / "film.gif", fps=fps, dpi=20)
    assert film(tmp_path / "film.gif")[1] == [duration, duration, max(1500, duration)]


@pytest.mark.parametrize(
    "code, backend",
    [
        ("matplotlib.use('svg'); import main", "svg"),
        ("import main; main.save_film(main.torch.randn(2, 4), 'film.gif')", None),
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
        main.save_film(torch.randn(2, 8), target, dpi=20)
    assert target.read_bytes() == b"the film before"
    assert list(tmp_path.iterdir()) == [target]
