"""Picture, points, vector: orientation, scaling, and the way back."""

import io
import math
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.benchmark import textbook_image_to_vector
from utils import IMG_SIZE, image_to_vector, pack_data, scatter_pixels, unpack_1d_data

HOMER = Path(__file__).parents[1] / "homer.png"


def picture(grey, **options):
    """A PNG file, in memory, of an array of greys."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(grey, dtype=np.uint8)).save(file, "png", **options)
    file.seek(0)
    return file


def white(side=IMG_SIZE):
    return np.full((side, side), 255)


@pytest.mark.parametrize(
    "row, column, point",
    [
        (0, 0, (0, IMG_SIZE)),  # top left
        (0, IMG_SIZE - 1, (IMG_SIZE - 1, IMG_SIZE)),  # top right
        (IMG_SIZE - 1, 0, (0, 1)),  # bottom left
        (IMG_SIZE - 1, IMG_SIZE - 1, (IMG_SIZE - 1, 1)),  # bottom right
    ],
)
def test_orientation(row, column, point):
    grey = white()
    grey[row, column] = 0
    assert scatter_pixels(picture(grey)) == ([point[0]], [point[1]])


def test_order_is_columns_then_rows():
    grey = white(4)
    grey[[3, 0, 2], [0, 1, 1]] = 0
    assert scatter_pixels(picture(grey), image_size=4) == ([0, 1, 1], [1, 4, 2])


def test_points_are_plain_ints():
    for coordinates in scatter_pixels(HOMER):
        assert type(coordinates) is list
        assert {type(c) for c in coordinates} == {int}


@pytest.mark.parametrize("threshold", [0, 50, 254, 255])
def test_threshold_is_inclusive(threshold):
    greys = [[threshold, min(threshold + 1, 255)], [255, 255]]
    xs, ys = scatter_pixels(picture(greys), image_size=2, threshold=threshold)
    assert list(zip(xs, ys)) == (
        [(0, 2)] if threshold < 255 else [(0, 2), (0, 1), (1, 2), (1, 1)]
    )


def test_50_is_dark_and_51_is_not():
    assert scatter_pixels(picture([[50, 51], [51, 51]]), image_size=2) == ([0], [2])


def test_a_picture_may_be_one_pixel():
    assert scatter_pixels(picture([[0]]), image_size=1) == ([0], [1])


def test_16_bits_are_scaled_to_8():
    ramp = np.arange(256, dtype=np.uint16)[None].repeat(256, axis=0)
    file = saved(Image.fromarray(ramp * 257), "png")
    xs, _ = scatter_pixels(file, image_size=256, threshold=128)
    assert max(xs) == 128


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.integers())))
def test_round_trip_of_points(points):
    x, y = [p[0] for p in points], [p[1] for p in points]
    packed = pack_data(x, y)
    assert packed == [coordinate for point in points for coordinate in point]
    assert unpack_1d_data(packed) == (x, y)


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=40), st.data())
def test_round_trip_of_any_vector(values, data):
    values = values[: len(values) // 2 * 2]
    kind = data.draw(st.sampled_from([list, tuple, np.array, torch.tensor]))
    x, y = unpack_1d_data(kind(values))
    packed = pack_data(kind(x), kind(y))
    assert type(x) is type(y) is type(packed) is list
    assert {type(number) for number in x + y + packed} <= {float}
    assert packed == values


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="x and y.*2 and 1"):
        pack_data([1, 2], [3])
    with pytest.raises(ValueError, match=r"v must.*even.*\(3,\)"):
        unpack_1d_data([1, 2, 3])
    with pytest.raises(ValueError, match=r"v must.*\(2, 2\)"):
        unpack_1d_data(torch.zeros(2, 2))


# The vector


@pytest.mark.parametrize("image_size", [150, 200])
def test_vector_is_that_of_plain_loops(image_size):
    expected = textbook_image_to_vector(HOMER, image_size)
    vector = image_to_vector(HOMER, image_size)
    torch.testing.assert_close(vector, expected)


def test_vector_is_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert image_to_vector(HOMER).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_scaling_is_the_published_one():
    grey = white()
    grey[0, 149] = grey[149, 0] = 0
    vector = image_to_vector(picture(grey))
    assert vector.dtype == torch.float32
    assert vector.tolist() == pytest.approx(
        [0 / 25 - 3, 1 / 25 - 2, 149 / 25 - 3, 150 / 25 - 2]
    )


@pytest.mark.parametrize("image_size", [75, 300, 450])
def test_every_size_has_the_same_coordinates(image_size):
    """A square of ink keeps its place: its edges differ by no more than two pixels."""
    grey = white(600)
    grey[100:500, 200:320] = 0
    expected = [200 / 100 - 3, 320 / 100 - 3, 100 / 100 - 2, 500 / 100 - 2]
    vector = image_to_vector(picture(grey), image_size=image_size, max_points=10**6)
    x, y = vector[0::2], vector[1::2]
    edges = [x.min().item(), x.max().item(), y.min().item(), y.max().item()]
    assert edges == pytest.approx(expected, abs=2 * 6 / image_size)


@pytest.mark.parametrize("image_size", [150, 200])
def test_a_picture_is_squared_on_white_not_squashed(image_size):
    grey = np.full((300, 600), 255)
    grey[100:200, 250:350] = 0
    xs, ys = scatter_pixels(picture(grey), image_size)
    unit = image_size / 600
    assert max(xs) - min(xs) + 1 == pytest.approx(100 * unit, abs=2.01)
    assert max(ys) - min(ys) + 1 == pytest.approx(100 * unit, abs=2.01)
    assert (max(ys) + min(ys)) / 2 == pytest.approx(image_size / 2, abs=1.01)


def test_transparency_is_white():
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = 0, 0, 0, 255
    assert scatter_pixels(picture(rgba), image_size=2) == ([0], [2])


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def drawing(kind):
    """homer.png in another format or mode."""
    with Image.open(HOMER) as image:
        grey = image.convert("L")
    ink = 255 - np.asarray(grey)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise, to stand upright
    clear = np.zeros((600, 600, 4), dtype=np.uint8)  # black, opaque where there is ink
    clear[..., 3] = ink
    match kind:
        case "1-bit" | "palette" | "RGB" | "RGBA":
            mode = {"1-bit": "1", "palette": "P"}.get(kind, kind)
            return saved(grey.convert(mode), "png")
        case "16-bit":
            return saved(
                Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "png"
            )
        case "transparent":
            return saved(Image.fromarray(clear), "png")
        case "grey and alpha":
            return saved(Image.fromarray(clear).convert("LA"), "png")
        case "transparent palette":
            image = Image.fromarray((ink < 128).astype(np.uint8)).convert("P")
            image.putpalette([0, 0, 0, 90, 0, 0])
            return saved(image, "gif", transparency=1)
        case "EXIF":
            on_its_side = grey.transpose(Image.Transpose.ROTATE_90)
            return saved(on_its_side, "jpeg", exif=turned)
        case "animation":
            return saved(grey, "gif", save_all=True, append_images=[grey.rotate(90)])
        case "JPEG CMYK":
            return saved(grey.convert("RGB").convert("CMYK"), "jpeg")
        case _:
            return saved(grey.convert("RGB"), kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("1-bit", "16-bit", "palette", "RGB", "RGBA", "transparent", "grey and alpha"),
        *(
            "transparent palette",
            "jpeg",
            "JPEG CMYK",
            "EXIF",
            "webp",
            "gif",
            "animation",
        ),
        "bmp",
    ],
)
def test_every_format_gives_the_same_cloud(kind):
    """Every point of one has a point of the other within one pixel, both ways."""
    clouds = [
        torch.tensor(list(zip(*scatter_pixels(file))), dtype=torch.float64)
        for file in (HOMER, drawing(kind))
    ]
    apart = (clouds[0][:, None] - clouds[1]).abs().amax(dim=2)
    assert apart.amin(dim=0).max() <= 1 and apart.amin(dim=1).max() <= 1


def bomb():
    """A PNG of one pixel whose header promises 60,000 x 60,000."""
    file = saved(Image.new("L", (1, 1)), "png").getvalue()
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + file[24:29]
    return file[:12] + header + zlib.crc32(header).to_bytes(4, "big") + file[33:]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"a line of text", "no picture"),
        (b"P5 3", "damaged, cut short"),
        (HOMER.read_bytes()[:3000], "damaged, cut short"),
        (drawing("jpeg").getvalue()[:3000], "damaged, cut short"),
        (drawing("gif").getvalue()[:3000], "damaged, cut short"),
        (bomb(), "too large"),
    ],
    ids=["empty", "text", "pgm", "png", "jpeg", "gif", "bomb"],
)
def test_what_is_no_picture_is_told(content, message, tmp_path):
    path = tmp_path / "some.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"some\.png is {message}"):
        image_to_vector(path)
    with pytest.raises(ValueError, match=f"the file is {message}"):
        image_to_vector(io.BytesIO(content))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_greys_of_unknown_range_are_refused(kind):
    file = saved(Image.fromarray(np.eye(9, dtype=kind)), "tiff")
    with pytest.raises(ValueError, match="the file is .*: its greys .* 16 bits$"):
        image_to_vector(file)


def test_a_file_can_be_read_again():
    file = drawing("jpeg")
    assert torch.equal(image_to_vector(file), image_to_vector(file))


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        image_to_vector(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError):
        image_to_vector(tmp_path)


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans())
def test_any_bytes_give_a_vector_or_a_clear_error(noise, place, spliced):
    """Noise alone, and noise written over a part of a real picture."""
    small = saved(Image.fromarray(np.eye(40, dtype=np.uint8) * 255), "png").getvalue()
    content = small[:place] + noise + small[place + len(noise) :] if spliced else noise
    try:
        vector = image_to_vector(io.BytesIO(content), image_size=40)
    except ValueError as error:
        assert str(error)
    else:
        assert len(vector) % 2 == 0 and len(vector) >= 4
        assert torch.isfinite(vector).all()


def test_thinning_is_even_reproducible_and_said():
    grey = white()
    grey[:, 40:60] = 0
    with pytest.warns(UserWarning, match="3000 dark pixels.*max_points = 1000") as told:
        vector = image_to_vector(picture(grey), max_points=1000)
    assert told[0].filename == __file__  # where the call is
    assert len(vector) == 2000
    with pytest.warns(UserWarning):
        assert torch.equal(image_to_vector(picture(grey), max_points=1000), vector)
    # Of the 500 pixels in each sixth of the bar, a third are left.
    for low in range(-2, 4):
        inside = (vector[1::2] > low + 1e-3) & (vector[1::2] <= low + 1 + 1e-3)
        assert inside.sum().item() == pytest.approx(500 / 3, abs=10)


def test_thinning_keeps_the_first_and_the_last_of_more_points_than_allowed():
    grey = white(51)
    grey[1:] = 0  # 51 columns of 50
    with warnings.catch_warnings(action="error"):
        whole = image_to_vector(picture(grey), 51, max_points=2550)
    assert len(whole) == 2 * 2550
    with pytest.warns(UserWarning, match="2550.*2500"):
        thinned = image_to_vector(picture(grey), 51)
    assert len(thinned) == 2 * 2500
    with pytest.warns(UserWarning, match="2550.*max_points = 2$"):
        ends = image_to_vector(picture(grey), 51, max_points=2)
    assert torch.equal(ends, torch.cat([whole[:2], whole[-2:]]))


def test_a_cloud_needs_two_points():
    grey = white()
    grey[3, 3] = 0
    for count, shades in enumerate((white(), grey)):
        message = f"^{count} pixels are as dark as threshold 50 .*, and .* 2: raise --threshold$"
        with pytest.raises(ValueError, match=message):
            image_to_vector(picture(shades))


@pytest.mark.parametrize(
    "name, value, error, expected",
    [
        ("image_size", 0, ValueError, "be at least 1"),
        ("image_size", 10.5, TypeError, "be an integer"),
        ("threshold", -1, ValueError, r"lie in 0\.\.255"),
        ("threshold", 256, ValueError, r"lie in 0\.\.255"),
        ("threshold", "50", TypeError, "be an integer"),
        ("max_points", 1, ValueError, "be at least 2"),
        ("max_points", math.nan, TypeError, "be an integer"),
    ],
)
def test_settings_out_of_range_are_named(name, value, error, expected):
    with pytest.raises(error, match=f"^{name} must {expected}, got {value!r}$"):
        image_to_vector(HOMER, **{name: value})


def test_what_is_no_file_is_named():
    with pytest.raises(TypeError, match="^img_file must be .*, got None$"):
        image_to_vector(None)


def test_the_data_set():
    with Image.open(HOMER) as image:
        assert image.size == (600, 600) and image.mode == "L"
    vector = image_to_vector(HOMER)
    assert 800 <= len(vector) // 2 <= 1200
    x, y = vector[0::2], vector[1::2]
    assert -3 <= x.min() and x.max() < 3
    assert -2 < y.min() and y.max() <= 4
    # Even strokes: no point is alone, and no gap wider than a pixel splits a line.
    points = torch.stack([x, y], dim=1) * 25
    nearest = torch.cdist(points, points).fill_diagonal_(math.inf).amin(dim=1)
    assert nearest.max() < 1.5
