"""Picture, points, vector: orientation, scaling, and the way back."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.benchmark import published_image_to_vector
from tests.common import HOMER, drawing, picture, saved, white
from utils import IMG_SIZE, image_to_vector, pack_data, scatter_pixels, unpack_1d_data


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


# The vector


@pytest.mark.parametrize("image_size", [150, 200])
def test_vector_is_that_of_plain_loops(image_size):
    expected = published_image_to_vector(HOMER, image_size)
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


def test_a_file_can_be_read_again():
    file = drawing("jpeg")
    assert torch.equal(image_to_vector(file), image_to_vector(file))


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
