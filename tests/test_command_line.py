"""The command line: every flag reaches its place, and what goes wrong is one line."""

import contextlib
import inspect
import io
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import main
from tests.common import HOMER, ROOT, TINY, film

posix = pytest.mark.skipif(os.name != "posix", reason="no limits, modes, signals")


def recorded(monkeypatch, *names):
    """What functions of main are given, and what they return, in their last calls."""
    given, returned = {}, {}

    def record(name):
        function = getattr(main, name)

        def recording(*args, **kwargs):
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            given[name] = bound.arguments
            returned[name] = function(*args, **kwargs)
            return returned[name]

        monkeypatch.setattr(main, name, recording)

    for name in names:
        record(name)
    return given, returned


@pytest.mark.parametrize("predict", ["mean", "start", "noise"])
@pytest.mark.parametrize("published", [[], ["--as-published"]])
def test_film_is_reproducible(tmp_path, predict, published):
    def bytes_of(name, seed):
        torch.manual_seed(len(name))  # the caller's random state is of no account
        output = tmp_path / f"{name}.gif"
        flags = ["--predict", predict, *published, "--seed", seed]
        main.main([*TINY.split(), *flags, "--output", str(output)])
        return output.read_bytes()

    assert bytes_of("one", "5") == bytes_of("other", "5")
    assert bytes_of("one", "5") != bytes_of("another", "6")
    assert len(film(tmp_path / "one.gif")[0]) == (30 if published else 31)


def test_every_flag_reaches_its_place(tmp_path, monkeypatch):
    """Each call that main makes, with what it was given, against what was asked."""
    names = "image_to_vector noise_schedule build_denoiser train sample vb_terms"
    names = [*names.split(), "forward", "save_film", "save_strip"]
    calls, _ = recorded(monkeypatch, *names)
    output, strip = tmp_path / "film.gif", tmp_path / "strip.png"
    flags = (
        f"--image={HOMER} --image-size=75 --threshold=90 --max-points=60 "
        "--timesteps=5 --beta-start=0.01 --beta-end=0.3 --predict=start "
        "--variance=posterior --hidden=7 --epochs=2 --steps-per-epoch=3 --batch-size=4 "
        f"--lr=0.02 --seed=11 --device=cpu --fps=10 --dpi=30 --output={output} "
        f"--strip={strip}"
    )
    main.main([*flags.split(), "--as-published", "--fit"])
    labels = [f"$t = {t}$" for t in (5, 4, 3, 2, 1)]
    asked = {
        "image_to_vector": {
            "img_file": HOMER,
            "image_size": 75,
            "threshold": 90,
            "max_points": 60,
            "fit": True,
        },
        "noise_schedule": {"num_timesteps": 5, "beta_start": 0.01, "beta_end": 0.3},
        "build_denoiser": {
            "predict": "start",
            "x_dim": 120,
            "hidden_dim": 7,
            "published_embedding": True,
        },
        "train": {
            "epochs": 2,
            "steps_per_epoch": 3,
            "batch_size": 4,
            "lr": 0.02,
            "decay": False,
            "first_index": 1,
        },
        "sample": {"variance": "posterior", "first_index": 1, "device": "cpu"},
        "vb_terms": {"variance": "posterior"},
        "save_film": {"labels": labels, "path": output, "fps": 10, "dpi": 30},
        "save_strip": {"labels": labels, "path": strip, "dpi": 30},
    }
    for name, arguments in asked.items():
        assert {key: calls[name][key] for key in arguments} == arguments
    names = ("build_denoiser", "train", "sample", "vb_terms", "forward")
    assert [calls[name]["seed"] for name in names] == [11, 12, 13, 14, 15]
    assert calls["sample"]["x_T"] is None

    main.main([*TINY.split(), "--output", str(output)])
    assert calls["image_to_vector"]["fit"] is False
    assert calls["build_denoiser"]["published_embedding"] is False
    assert calls["train"]["decay"] is True
    assert {calls[name]["first_index"] for name in ("train", "sample")} == {0}


@pytest.mark.parametrize(
    "T, published", [(1, []), (2, []), (30, []), (2, ["--as-published"])]
)
def test_both_ways(T, published, tmp_path, monkeypatch, capsys):
    """The film is the forward process and the way back from its very end."""
    names = ("forward", "sample", "strip", "save_film")
    given, returned = recorded(monkeypatch, *names)
    monkeypatch.chdir(tmp_path)
    flags = [*TINY.split(), f"--timesteps={T}", *published, "--strip=strip.png"]
    main.main([*flags, "--both-ways"])
    chain, labels = given["save_film"]["chain"], given["save_film"]["labels"]
    x_start, there = given["forward"]["x_start"], returned["forward"]
    back = returned["sample"]
    last = 1 if published else 0
    held = len(chain) - len(there) - len(back)
    assert torch.equal(chain[: T + 1], there) and torch.equal(there[0], x_start)
    assert torch.equal(chain[-len(back) :], back) and torch.equal(back[0], there[-1])
    assert torch.equal(chain[T : T + held + 2], there[-1].expand(held + 2, -1))
    there_and_back = [*range(T + 1), *[T] * held, *reversed(range(last, T + 1))]
    assert labels == [f"$t = {t}$" for t in there_and_back]

    frames, durations = film("output.gif")
    assert len(frames) == 2 * T + 1 - last
    expected = [120] * len(frames)
    expected[T], expected[-1] = 120 * (held + 2), 1500
    assert durations == expected
    if T == 30:  # the hold is short, and the strip has its middle there
        assert 500 < durations[T] < durations[-1]
        labels = given["strip"]["labels"]
        picked = np.linspace(0, len(labels) - 1, 10).round().astype(int)
        stills = [labels[k] for k in picked]
        assert stills[:6] == [f"$t = {t}$" for t in (0, 8, 15, 23, 30, 30)]
    rmse = (back[-1] - x_start).square().mean().sqrt().item()
    report = capsys.readouterr().out
    assert float(re.search(r"rmse +(\S+)", report)[1]) == pytest.approx(rmse, rel=1e-3)


def test_a_count_is_reported_whole(tmp_path, monkeypatch, capsys):
    Image.new("L", (150, 150)).save(tmp_path / "black.png")
    monkeypatch.chdir(tmp_path)
    flags = "--image=black.png --max-points=12345 --hidden=1 --epochs=1 --timesteps=1"
    main.main([*flags.split(), "--dpi=20"])
    assert re.match(r"points +12345\n", capsys.readouterr().out)


def test_report_is_of_this_run(tmp_path, monkeypatch, capsys):
    """The figures are those of the chain and the denoiser of the run."""
    names = ("image_to_vector", "train", "sample", "vb_terms", "prior_kl")
    _, kept = recorded(monkeypatch, *names)
    main.main([*TINY.split(), "--output", str(tmp_path / "film.gif")])
    printed = capsys.readouterr().out.splitlines()
    report = dict(row.split() for row in printed if not row.startswith("note:"))
    x_start, last = kept["image_to_vector"].numpy(), kept["sample"][-1].numpy()
    assert int(report["points"]) == len(x_start) / 2
    variance_kl, mean_kl = kept["vb_terms"]
    expected = {
        "prior_kl": kept["prior_kl"],
        "variance_kl": sum(variance_kl.tolist()),
        "mean_kl": sum(mean_kl.tolist()),
        "loss": kept["train"][-1],
        "rmse": np.sqrt(np.mean((last - x_start) ** 2)),
    }
    for name, value in expected.items():
        assert float(report[name]) == pytest.approx(value, rel=1e-3)


def test_help_gives_every_flag_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = (
        "output=output.gif strip=None image-size=150 threshold=50 max-points=2500 "
        "timesteps=30 beta-start=0.0004 beta-end=0.02 predict=mean variance=beta "
        "hidden=None epochs=20 steps-per-epoch=40 batch-size=1 lr=0.001 seed=0 "
        "fps=8 dpi=120"
    )
    for flag, default in (pair.split("=") for pair in defaults.split()):
        _, _, after = text.partition(f" --{flag} ")
        assert re.match(rf"\S+ .*? \(default: {default}\)", after), flag
    for name in ("prior_kl", "variance_kl", "mean_kl", "train_s", "loss", "rmse"):
        assert name in text.partition("The report")[2]


# Bad input


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--epochs=0", "--epochs: must be 1 to 1000000, got 0"),
        ("--epochs=1000001", "--epochs: must be 1 to 1000000, got 1000001"),
        ("--epochs=1.5", "--epochs: invalid int value: '1.5'"),
        ("--lr=nan", "--lr.*nan"),
        ("--lr=inf", "--lr.*inf"),
        ("--fps=51", "--fps: must be 0.5 to 50, got 51"),
        ("--threshold=256", "--threshold: must be 0 to 255, got 256"),
        ("--seed=-1", "--seed.*-1"),
        ("--seed=99999999999999999999", "--seed: must be 0 to 4294967295"),
        ("--beta-start=0", "0 < beta_start.*got 30, 0.0 and 0.02"),
        ("--beta-end=nan", "beta_end < 1, got 30, 0.0004 and nan"),
        ("--beta-end=1", "beta_end < 1, got 30, 0.0004 and 1.0"),
        ("--beta-start=0.1", "beta_start <= beta_end.*0.1 and 0.02"),
        ("--timesteps=1 --as-published", "--timesteps must be above 1"),
        ("--image=none.png", "none.png cannot be read.*No such file"),
        ("--image=text.png", "text.png cannot be read.*identify"),
        ("--image=cut.png", "cut.png cannot be read.*truncated"),
        ("--image=folder.gif", "folder.gif cannot be read.*directory"),
        ("--threshold=0 --image-size=10", "homer.png: 0 of 100 .*try --fit"),
        ("--image=grey.png --fit", "nothing is drawn: .* 90"),
        ("--output=film.mp4", "--output: must end in .gif, got film.mp4"),
        ("--strip=film.gif", "--strip: must end in .png, got film.gif"),
        ("--output=nowhere/film.gif", "--output: nowhere/film.gif cannot be written"),
        ("--output=folder.gif", "--output: folder.gif cannot be written"),
        ("--image=in.gif --output=in.gif", "would overwrite --image in.gif"),
        ("--image=in.png --strip=./in.png", "would overwrite --image in.png"),
        ("--predict=eps", "--predict.*eps"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("folder.gif").mkdir()
    Path("text.png").write_text("no picture")
    Image.new("L", (9, 9), 90).save("grey.png")
    Path("cut.png").write_bytes(HOMER.read_bytes()[:3000])
    monkeypatch.setattr(main, "train", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(SystemExit) as stop:
        main.main(flags.split())
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"main\.py: error: .*{message}.*\n", err)


LIMITS = {
    **dict.fromkeys(("hidden", "epochs", "steps-per-epoch"), (1, 10**6)),
    **dict.fromkeys(("batch-size",), (1, 10**6)),
    "image-size": (1, 10**4),
    "max-points": (2, 10**6),
    "timesteps": (1, 1000),
    "threshold": (0, 255),
    "seed": (0, 2**32 - 1),
    "lr": (1e-12, 1e3),
    "fps": (0.5, 50),
    "dpi": (10, 1000),
}


@given(
    st.sampled_from([*LIMITS]),
    st.integers() | st.floats() | st.floats(-100, 100) | st.text(),
)
def test_any_text_is_a_number_in_range_or_refused_in_one_line(flag, text):
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error):
            args = main._parser().parse_args([f"--{flag}={text}"])
    except SystemExit as stop:
        assert stop.code == 2
        assert error.getvalue().startswith(f"main.py: error: argument --{flag}: ")
    else:
        low, high = LIMITS[flag]
        value = vars(args)[flag.replace("-", "_")]
        assert low <= value <= high and math.isfinite(value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_is_refused_where_there_is_none(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--device=cuda"])
    assert stop.value.code == 2 and "--device" in capsys.readouterr().err


def start(flags, cwd, first="pass"):
    """Start main.py as a command, but `first`; return it once all is imported."""
    lines = (
        "import resource, runpy, signal, sys",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # as in a terminal
        "import main",  # so that what follows has imported all that it needs
        first,
        "print('ready')",
        f"sys.argv[0] = {str(ROOT / 'main.py')!r}",
        "runpy.run_path(sys.argv[0], run_name='__main__')",
    )
    process = subprocess.Popen(
        [sys.executable, "-uc", "\n".join(lines), *TINY.split(), *flags.split()],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@posix
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--image=secret.png", "secret.png cannot be read.*Permission denied"),
        ("--output=locked/film.gif", "--output: locked/film.gif cannot be written"),
        ("--output=kept.gif", "--output: kept.gif cannot be written"),
    ],
)
def test_what_is_not_permitted_is_refused(flags, message):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        shutil.copy(HOMER, f"{folder}/secret.png")
        os.chmod(f"{folder}/secret.png", 0)
        Path(f"{folder}/kept.gif").touch(mode=0o444)
        os.mkdir(f"{folder}/locked", 0o555)
        no_root = "import os; os.geteuid() or os.setuid(65534)"  # root may do anything
        process = start(flags, folder, no_root)
        out, err = process.communicate()
    assert process.returncode == 2 and out == ""
    assert re.fullmatch(rf"main\.py: error: .*{message}.*\n", err)


# Failures on the way


@pytest.mark.parametrize(
    "flags, note",
    [
        ("--max-points=5", r"\d+ of 576 pixels are as dark .*, thinned .* = 5"),
        ("--fit", r"fit: greys of 0 to 255 stretched, cropped .* pixels: \d+ points"),
        ("--fit --max-points=5", r"fit: .* pixels: \d+ points, thinned .* = 5"),
    ],
)
def test_what_was_done_to_the_picture_is_noted_in_one_line(flags, note, tmp_path):
    process = start(flags, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0
    assert re.fullmatch(rf"main\.py: note: {note}\n", err)
    points = re.search(r"^points +(\d+)$", out, re.MULTILINE)[1]
    assert points == re.findall(r"\d+", err)[-1]


def test_the_data_set_is_found_through_a_link(tmp_path):
    link = tmp_path / "face.py"
    link.symlink_to(ROOT / "main.py")
    subprocess.run([sys.executable, link, *TINY.split()], cwd=tmp_path, check=True)
    assert (tmp_path / "output.gif").exists()


@pytest.mark.parametrize(
    "flags",
    [
        # Predicted noise, divided by a vanishing alpha in every step, leaves float32.
        "--predict=noise --beta-start=0.999999 --beta-end=0.999999",
        "--lr=1000 --epochs=20",
        "--beta-start=1e-30",
    ],
)
def test_no_figure_out_of_range_is_reported(flags, tmp_path):
    process = start(flags, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert re.fullmatch(r"main\.py: error: \w+ is -?(nan|inf): lower --lr or .*\n", err)
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_full_disk_leaves_the_old_film(tmp_path):
    output = tmp_path / "output.gif"
    output.write_bytes(b"the film before")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))"
    process = start("", tmp_path, limit)
    out, err = process.communicate()
    assert process.returncode == 1 and "mean_kl" in out
    assert re.fullmatch(r"main\.py: error: .*File too large.*output\.gif.*\n", err)
    assert output.read_bytes() == b"the film before"
    assert list(tmp_path.iterdir()) == [output]


@posix
def test_an_interruption_leaves_the_old_film_or_the_new(tmp_path):
    """Ctrl-C at 12 moments of a run, spread over it, in the 12th parts at random."""
    output, strip = tmp_path / "output.gif", tmp_path / "strip.png"

    def started():
        first = (
            # What AdamW imports when it is first used: Python 3.11 makes a RuntimeError
            # of an interrupt that falls into the definition of a class.
            "import torch; torch.optim.AdamW([torch.zeros(1, requires_grad=True)])",
            "import utils; scatter = utils.scatter_pixels",
            "utils.scatter_pixels = lambda *args: print('started') or scatter(*args)",
        )
        process = start("--epochs=20 --strip=strip.png", tmp_path, "; ".join(first))
        assert process.stdout.readline() == "started\n"
        return process

    process, began = started(), time.perf_counter()
    while not process.stdout.readline().startswith("strip"):
        assert process.poll() is None
    lasts = time.perf_counter() - began
    process.communicate()
    whole = output.read_bytes(), strip.read_bytes()

    statuses, rng = [], random.Random(0)
    for k in range(12):
        output.write_bytes(b"the film before")
        strip.unlink(missing_ok=True)
        process = started()
        time.sleep((k + rng.random()) / 12 * lasts)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        statuses.append(process.returncode)
        if process.returncode == 130:  # a library's destructor may still complain
            assert "KeyboardInterrupt" not in err
        assert output.read_bytes() in (b"the film before", whole[0])
        assert not strip.exists() or strip.read_bytes() == whole[1]
        assert {*tmp_path.iterdir()} <= {output, strip}
    # 0 and -2: it came when all was done. 1: once in a hundred times Matplotlib's C++ makes
    # a ValueError of an interrupt.
    assert {*statuses} <= {130, 0, -signal.SIGINT, 1}
    assert statuses.count(130) >= 6 and statuses.count(1) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda(tmp_path):
    for predict in ("mean", "start", "noise"):
        flags = ["--device", "cuda", "--predict", predict]
        main.main([*TINY.split(), *flags, "--output", str(tmp_path / "film.gif")])
        assert len(film(tmp_path / "film.gif")[0]) == 31
