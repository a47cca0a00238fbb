"""Bad input to the library: what is refused, and what the message names.

The command line's is in test_command_line.py. What PyTorch refuses by itself is here too,
since it must not pass silently.
"""

import io
import math
import re
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import main
from diffusion import (
    Denoising,
    PredictNoise,
    PredictStart,
    denoise_with_mu,
    gaussian_kl,
    noise_schedule,
    posterior_mean_variance,
    posterior_q,
    prediction,
    q_sample,
    vb_terms,
)
from tests.common import HOMER, drawing, picture, saved, white
from utils import image_to_vector, pack_data, unpack_1d_data

alphas, alpha_bars = noise_schedule()
x = torch.zeros(4)
batch = torch.zeros(3, 4)
index = torch.tensor


def same(x_t, t):
    return x_t


@pytest.mark.parametrize(
    "settings, message",
    [
        ((0,), "^a schedule needs num_timesteps >= 1 and .*got 0"),
        ((3, 0.0, 0.1), "0 < beta_start.*got 3, 0.0"),
        ((3, 0.2, 0.1), "beta_start <= beta_end.*0.2 and 0.1"),
        ((3, 0.2, 1.0), "beta_end < 1.*0.2 and 1.0"),
        ((3, 0.2, math.nan), "beta_end < 1.*nan"),
    ],
)
def test_schedules(settings, message):
    with pytest.raises(ValueError, match=message):
        noise_schedule(*settings)


@pytest.mark.parametrize(
    "state, t, error, message",
    [
        (x, 30, IndexError, r"t .*0\.\.29, got 30"),
        (x, -1, IndexError, r"t .*0\.\.29, got -1"),
        (x, 1.0, IndexError, r"t .*integer.*1.0"),
        (x, index(1.0), IndexError, r"t .*integer"),
        (x, "1", TypeError, "str"),
        (x, index([1]), ValueError, r"t .*one per row"),
        (x, x.long(), ValueError, r"t .*one per row of torch.Size\(\[4\]\)"),
        (batch, index([1, 2]), ValueError, r"t .*one per row of torch.Size\(\[3, 4\]"),
        (batch, index([1, 2, 30]), IndexError, r"t .*0\.\.29"),
        (batch, index([1, -2, 3]), IndexError, r"t .*0\.\.29"),
        (batch, index([1.0, 2.0, 3.0]), IndexError, "t .*integer"),
    ],
)
def test_an_index_is_checked_wherever_it_is_used(state, t, error, message):
    calls = [
        lambda: q_sample(state, t, alpha_bars),
        lambda: posterior_mean_variance(state, state, t, alphas, alpha_bars),
        lambda: posterior_q(state, state, t, alphas, alpha_bars),
        lambda: Denoising(4, 30)(state, t),
        lambda: PredictStart(same, alphas, alpha_bars)(state, t),
        lambda: PredictNoise(same, alphas, alpha_bars)(state, t),
        lambda: denoise_with_mu(same, state, t, alphas),
        lambda: denoise_with_mu(same, state, t, alphas, variance=torch.ones(())),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    "tables",
    [
        (alpha_bars, alphas),
        (alphas, noise_schedule(beta_end=0.021)[1]),
        (1 - alphas, alpha_bars),
        (alphas, alpha_bars * math.nan),
        (alphas, alpha_bars.roll(1)),
    ],
)
def test_tables_of_different_schedules(tables):
    calls = [
        lambda: posterior_mean_variance(x, x, 1, *tables),
        lambda: posterior_q(x, x, 1, *tables),
        lambda: PredictStart(same, *tables)(x, 1),
        lambda: PredictNoise(same, *tables)(x, 1),
        lambda: vb_terms(same, x, *tables),
        lambda: main.train(main.build_denoiser("mean", 4, *tables), x, *tables),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="products of alphas"):
            call()


def test_tables_of_different_lengths():
    with pytest.raises(RuntimeError, match="29.*30|30.*29"):
        posterior_mean_variance(x, x, 1, alphas, alpha_bars[:-1])


@pytest.mark.parametrize("steps", [30, 1000])
def test_a_rounded_schedule_is_none_of_these(steps):
    exact, products = noise_schedule(steps, 1e-4, 0.02)
    rounded = exact.float()
    for alpha_bars in (products, products.float(), rounded.cumprod(dim=0)):
        mean, _ = posterior_mean_variance(x + 1, x, steps - 1, rounded, alpha_bars)
        expected, _ = posterior_mean_variance(x + 1, x, steps - 1, exact, products)
        torch.testing.assert_close(mean, expected, rtol=1e-2, atol=0)


def test_a_schedule_elsewhere_than_on_the_cpu():
    with pytest.raises(ValueError, match="schedule must be on the CPU.*meta"):
        q_sample(x, 1, alpha_bars.to("meta"))


@pytest.mark.parametrize(
    "other", [batch, batch[:1], x[:1], x.double(), x.half(), x.to("meta")]
)
def test_states_that_differ(other):
    for states in ((x, other), (other, x)):
        with pytest.raises(ValueError, match="one shape, dtype and device"):
            posterior_mean_variance(*states, 1, alphas, alpha_bars)


@pytest.mark.parametrize(
    "output", [batch, x[0], x[:1], x[:2], x.double(), x.half(), x.to("meta")]
)
def test_a_network_that_returns_something_else(output):
    def network(x_t, t):
        return output

    calls = [
        lambda: prediction(network, x, 1),
        lambda: PredictStart(network, alphas, alpha_bars)(x, 1),
        lambda: PredictNoise(network, alphas, alpha_bars)(x, 1),
        lambda: denoise_with_mu(network, x, 1, alphas),
        lambda: main.sample(network, alphas, 4),
        lambda: vb_terms(network, x, alphas, alpha_bars, states_per_step=2),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="a network must return one of"):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_of_another_dtype(dtype):
    network = Denoising(4, 30)
    with pytest.raises(RuntimeError, match="dtype"):
        network(x.to(dtype), 1)
    with pytest.raises(RuntimeError, match="dtype"):
        main.train(network, x.to(dtype), alphas, alpha_bars)

    class Promoting(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(1, 4, dtype=torch.float64))

        def forward(self, x_t, t):
            return x_t + self.shift

    with pytest.raises(ValueError, match="a network must return one of.*float32"):
        main.train(Promoting(), x, alphas, alpha_bars)


def test_published_arguments_that_do_not_fit():
    for size in (5, 1):
        with pytest.raises(ValueError, match=f"data_size must be 4.*got {size}"):
            denoise_with_mu(same, x, 1, alphas, size)
    for device in ("meta", "cuda:7", "tpv"):
        for call in (
            lambda device: q_sample(x, 1, alpha_bars, device),
            lambda device: posterior_q(x, x, 1, alphas, alpha_bars, device),
            lambda device: denoise_with_mu(same, x, 1, alphas, 4, device),
        ):
            with pytest.raises((RuntimeError, AssertionError), match="device|CUDA"):
                call(device)


def test_a_variance_of_no_name():
    for call in (
        lambda: denoise_with_mu(same, x, 1, alphas, variance="exact"),
        lambda: vb_terms(same, x, alphas, alpha_bars, variance="exact"),
    ):
        with pytest.raises(ValueError, match="variance must be.*'exact'"):
            call()


@pytest.mark.parametrize(
    "mean1, variance1, mean2, variance2",
    [
        (x, 1.0, batch, 1.0),
        (x, 1.0, x[:1], 1.0),
        (batch, torch.ones(3), batch, 1.0),
        (batch, 1.0, batch, torch.ones(4)),
        (x, torch.ones(3, 1), x, 1.0),
    ],
)
def test_gaussians_of_unequal_shapes(mean1, variance1, mean2, variance2):
    with pytest.raises(ValueError, match="means and variances must fit"):
        gaussian_kl(mean1, variance1, mean2, variance2)


def test_parameterisations_of_no_name():
    with pytest.raises(KeyError, match="eps"):
        main.build_denoiser("eps", 4, alphas, alpha_bars)


# Pictures and points


def bomb():
    """A PNG of one pixel whose header promises 60,000 x 60,000."""
    file = saved(Image.new("L", (1, 1)), "png").getvalue()
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + file[24:29]
    return file[:12] + header + zlib.crc32(header).to_bytes(4, "big") + file[33:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a line of text",
        b"P5 3",
        HOMER.read_bytes()[:3000],
        drawing("jpeg").getvalue()[:3000],
        drawing("gif").getvalue()[:3000],
        bomb(),
    ],
    ids=["empty", "text", "pgm", "png", "jpeg", "gif", "bomb"],
)
def test_what_is_no_picture(content, tmp_path):
    path = tmp_path / "some.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.png cannot be read as a picture: ."):
        image_to_vector(path)
    with pytest.raises(ValueError, match="BytesIO.* cannot be read as a picture: ."):
        image_to_vector(io.BytesIO(content))


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png cannot be read.* No such file"):
        image_to_vector(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be read as a picture: .*directory"):
        image_to_vector(tmp_path)
    with pytest.raises(ValueError, match="None cannot be read as a picture"):
        image_to_vector(None)
    with pytest.raises(ValueError, match="^b'.{198} cannot be read as a .{,220}$"):
        image_to_vector(HOMER.read_bytes())


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_greys_of_unknown_range(kind):
    file = saved(Image.fromarray(np.eye(9, dtype=kind)), "tiff")
    with pytest.raises(ValueError, match="cannot be read .*its greys .* 16 bits$"):
        image_to_vector(file)


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans(), st.booleans())
def test_any_bytes_give_a_vector_or_a_clear_error(noise, place, spliced, fit):
    """Noise alone, and noise written over a part of a real picture."""
    small = saved(Image.fromarray(np.eye(40, dtype=np.uint8) * 255), "png").getvalue()
    content = small[:place] + noise + small[place + len(noise) :] if spliced else noise
    try:
        with warnings.catch_warnings(action="ignore"):
            vector = image_to_vector(io.BytesIO(content), image_size=40, fit=fit)
    except ValueError as error:
        assert re.search("cannot be read as a|and a cloud needs|nothing is", str(error))
    else:
        assert len(vector) % 2 == 0 and len(vector) >= 4
        assert torch.isfinite(vector).all()


def test_a_cloud_needs_two_points():
    grey = white()
    grey[3, 3] = 0
    for count, shades in enumerate((white(), grey)):
        with pytest.raises(ValueError, match=f"BytesIO.*: {count} of .*, .* needs 2$"):
            image_to_vector(picture(shades))


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="shorter"):
        pack_data([1, 2], [3])
    with pytest.raises(ValueError, match="shorter|longer"):
        pack_data([1], [3, 4])
    with pytest.raises(ValueError, match=r"v must.*even.*\(3,\)"):
        unpack_1d_data([1, 2, 3])
    with pytest.raises(ValueError, match=r"v must.*\[?2, 2"):
        unpack_1d_data(torch.zeros(2, 2))
