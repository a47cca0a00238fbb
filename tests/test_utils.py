"""Picture, points, vector: orientation, scaling, and the way back."""

import math
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

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
    with pytest.warns(UserWarning, match="^2 of 22500 pixels"):
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


KINDS = (
    *("1-bit", "16-bit", "palette", "RGB", "RGBA", "transparent", "grey and alpha"),
    *("transparent palette", "transparent 16-bit", "jpeg", "JPEG CMYK", "EXIF", "webp"),
    *("gif", "animation", "bmp"),
)


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_pillow_image_is_as_good_as_its_file(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(drawing(kind).getvalue())
    with Image.open(path) as image:
        vector = image_to_vector(image)
        assert torch.equal(vector, image_to_vector(path))
        assert torch.equal(vector, image_to_vector(image))  # it was left as it was
        if kind == "animation":
            image.seek(1)


def test_thinning_is_even_reproducible_and_said():
    grey = white()
    grey[:, 40:60] = 0
    with pytest.warns(UserWarning, match="^3000 of 22500 .*max_points = 1000$") as told:
        vector = image_to_vector(picture(grey), max_points=1000)
    assert told[0].filename == __file__  # where the call is
    assert len(vector) == 2000
    with pytest.warns(UserWarning, match="the darkest is 0: try --fit"):
        assert torch.equal(image_to_vector(picture(grey), max_points=1000), vector)
    # Of the 500 pixels in each sixth of the bar, a third are left.
    for low in range(-2, 4):
        inside = (vector[1::2] > low + 1e-3) & (vector[1::2] <= low + 1 + 1e-3)
        assert inside.sum().item() == pytest.approx(500 / 3, abs=10)


def test_thinning_keeps_the_first_and_the_last_of_more_points_than_allowed():
    grey = white(102)
    grey[:50, :51] = 0
    with warnings.catch_warnings(action="error"):
        whole = image_to_vector(picture(grey), 102, max_points=2550)
    assert len(whole) == 2 * 2550
    with pytest.warns(UserWarning, match="^2550 .*2500$"):
        thinned = image_to_vector(picture(grey), 102)
    assert len(thinned) == 2 * 2500
    with pytest.warns(UserWarning, match="2550.*max_points = 2$"):
        ends = image_to_vector(picture(grey), 102, max_points=2)
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


# One's own drawing

# Lines between corners, of a height of 1, y down.
HOUSE = (
    ((0, 1), (0, 0.4), (0.4, 0), (0.8, 0.4), (0.8, 1), (0, 1)),
    ((0, 0.4), (0.8, 0.4)),
    ((0.3, 1), (0.3, 0.65), (0.5, 0.65), (0.5, 1)),
    ((0.65, 0.2), (0.75, 0.05)),
)


def house(ink, paper, side=600, *, at=100, height=400, width=6, mode="RGB"):
    """A picture of the house, with its upper left corner `at` pixels from the edges."""
    image = Image.new(mode, (side, side), paper)
    for line in HOUSE:
        corners = [(at + height * x, at + height * y) for x, y in line]
        ImageDraw.Draw(image).line(corners, ink, width)
    return image


def pencil():
    """Grey lines of uneven pressure on rough paper, in a JPEG file."""
    rng = np.random.default_rng(0)
    ink = np.asarray(house(1.0, 0.0, mode="F"))
    pressure = np.linspace(0.75, 1.25, 600) + rng.normal(0, 0.1, (600, 600))
    grey = 220 - 80 * ink * pressure + rng.normal(0, 4, (600, 600))
    return saved(Image.fromarray(grey.clip(0, 255).astype(np.uint8)), "jpeg")


def glossy():
    """Grey paper with a reflection, which is lighter still."""
    image = house((60, 60, 60), (170, 170, 170))
    image.paste("white", (500, 500, 560, 560))
    return image


OWN = {
    "black on white": lambda: house("black", "white"),
    "blue on white": lambda: house((40, 80, 210), "white"),
    "yellow on white": lambda: house("yellow", "white"),
    "pencil": pencil,
    "glossy paper": glossy,
    "white on black": lambda: house("white", "black"),
    "chalk on a board": lambda: house((230, 230, 220), (45, 70, 58)),
    "white on glass": lambda: house("white", (255, 255, 255, 0), mode="RGBA"),
    "thin in a large picture": lambda: house(
        "black", "white", 3000, at=50, height=2900, width=1
    ),
    "small in a corner": lambda: house(
        "black", "white", 1200, at=1150, height=40, width=2
    ),
    "as small as it is": lambda: house("black", "white", 42, at=1, height=40, width=2),
}


def fitted(file, **settings):
    with pytest.warns(UserWarning, match="^fit: "):
        return image_to_vector(file, fit=True, **settings)


def far(some, others):
    """The largest distance of some points, (N, 2), to the nearest of others."""
    return torch.cdist(some, others).amin(dim=1).max()


@pytest.mark.parametrize("kind", OWN)
def test_fit_finds_a_drawing_whole_and_alone(kind):
    cloud = fitted(OWN[kind]()).view(-1, 2) * 25  # in pixels
    low, high = cloud.aminmax(dim=0)
    middle, height = (low + high) / 2, (high - low)[1]
    assert (middle - torch.tensor([0, 25])).abs().max() <= 1.5
    assert 130 <= height <= 140
    lines = torch.tensor(
        [
            [x + u * (x_to - x) - 0.4, 0.5 - y - u * (y_to - y)]
            for line in HOUSE
            for (x, y), (x_to, y_to) in pairwise(line)
            for u in np.linspace(0, 1, 200)
        ],
        dtype=torch.float32,
    )
    lines = lines * height + middle
    # A line of 2 pixels in 40 is one of 7 in 140, where the lines are up to 3 thick.
    wider = 1 if "small" in kind else 0
    assert far(cloud, lines) < 1.5 + 3 * wider
    assert far(lines, cloud) < 1.6 + wider


@pytest.mark.parametrize(
    "kind, found",
    [
        ("blue on white", r"0 of 22500 .*the darkest is \d\d:"),
        ("pencil", r"0 of 22500 .*the darkest is 1\d\d:"),
        ("thin in a large picture", r"0 of 22500 .*the darkest is 2\d\d:"),
        ("white on glass", "0 of 22500 .*the darkest is 255:"),
        ("small in a corner", r"0 of 22500 .*the darkest is 1\d\d:"),
        ("chalk on a board", r"\d of 22500 .*the darkest is \d\d:"),
        ("white on black", r"2\d{4} of 22500 .*the darkest is 0:"),
    ],
)
def test_what_is_not_found_without_fit_is_told(kind, found):
    """By an error, or, where some points were found, by a warning."""
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises((ValueError, UserWarning), match=f"{found} try --fit"),
    ):
        image_to_vector(OWN[kind]())


@pytest.mark.parametrize(
    "dark, told", [(224, True), (225, False), (11250, False), (11251, True)]
)
def test_few_points_and_many_are_told(dark, told):
    grey = white()
    grey.ravel()[:dark] = 0
    with warnings.catch_warnings(record=True, action="always") as notes:
        vector = image_to_vector(picture(grey), max_points=11251)
    assert len(vector) == 2 * dark
    assert [str(note.message) for note in notes] == told * [
        f"{dark} of 22500 pixels are as dark as threshold 50 (the darkest is 0: try --fit)"
    ]


def test_fit_says_what_it_did():
    ground = house("white", (20, 20, 20), width=1)
    message = (
        "fit: light on dark turned round, greys of 20 to 255 stretched, "
        r"cropped from 600 x 600 to 321 x 401 pixels: (\d+) points"
    )
    with pytest.warns(UserWarning) as told:
        vector = image_to_vector(ground, fit=True)
    (warning,) = told
    assert warning.filename == __file__  # where the call is
    found = re.fullmatch(message, str(warning.message))
    assert int(found[1]) == len(vector) / 2
    with pytest.warns(UserWarning, match="^fit: greys of 0 to 255 stretched, cropped"):
        image_to_vector(HOMER, fit=True)


def test_fit_minds_neither_sign_nor_contrast_nor_paper_nor_size():
    with Image.open(HOMER) as image:
        homer = image.convert("L")
    cloud = fitted(homer)
    for same in (
        ImageOps.invert(homer),
        homer.point(lambda v: 100 + v // 2),
        ImageOps.expand(homer, 500, 255),
    ):
        other = fitted(same)
        # Greys are whole numbers: a pixel of a hundred may fall on the other side.
        assert len(other) == pytest.approx(len(cloud), rel=0.02)
        assert far(other.view(-1, 2), cloud.view(-1, 2)) <= 0.041
        assert far(cloud.view(-1, 2), other.view(-1, 2)) <= 0.041
    for side in (400, 1800):
        other = fitted(homer.resize((side, side))).view(-1, 2)
        assert far(other, cloud.view(-1, 2)) < 0.09
        assert far(cloud.view(-1, 2), other) < 0.09


@pytest.mark.parametrize("threshold, bars", [(0, 7), (50, 8), (150, 10), (200, 12)])
def test_fit_stretches_what_the_threshold_is_of(threshold, bars):
    """0 is half-way from the darkest, 100, to the ground, 200, which is 255."""
    greys = np.full((150, 150), 200)
    for k in range(13):
        greys[10:140, 10 * k + 10 : 10 * k + 14] = 100 + 8 * k
    x = fitted(picture(greys), threshold=threshold)[0::2].unique()
    assert (x.diff() > 1.5 / 25).sum() + 1 == bars


@pytest.mark.parametrize("dark", [False, True])
def test_fit_takes_a_filled_drawing_for_one(dark):
    """Though its ink is more than half of the picture, the ground is at the rim."""
    image = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(image).ellipse((2, 2, 97, 97), 0)
    ImageDraw.Draw(image).ellipse((30, 30, 50, 50), 255)
    cloud = fitted(ImageOps.invert(image) if dark else image, max_points=10**5)
    corner, hole, filled = (
        torch.tensor([x / 100 * 6 - 3, 4 - y / 100 * 6])
        for x, y in ((8, 8), (40, 40), (50, 70))
    )
    near = [(cloud.view(-1, 2) - place).norm(dim=1).min() for place in (corner, hole)]
    assert (min(near) > 0.3) != dark  # of black and white alike, white is the ground
    inked = (cloud.view(-1, 2) - filled).norm(dim=1).min() < 0.05
    assert inked != dark


def columns_of(strokes):
    """The columns of the cloud of vertical strokes, given as (left, width), in pixels.

    The picture is 1,092 pixels high, 1,200 with the margin: 8 become one.
    """
    image = Image.new("L", (1300, 1300), 255)
    for left, width in strokes:
        image.paste(0, (100 + left, 100, 100 + left + width, 1192))
    x = fitted(image, max_points=10**5)[0::2].unique()
    return (x * 25 + 75).round().int().tolist()


def test_fit_neither_loses_thin_lines_nor_thickens_thick_ones():
    margin = 54
    cells = {10: (3, 2), 20: (5, 1), 22: (0, 16), 23: None, 30: (4, 1), 32: (0, 8)}
    cells |= {40: (0, 11), 60: (6, 1), 62: (6, 1), 64: (6, 1), 126: (7, 1)}
    strokes = [
        (8 * cell + place[0] - margin, place[1])
        for cell, place in cells.items()
        if place is not None
    ]
    strokes += [(0, 2), (1090, 2)]  # which fill the picture
    found = columns_of(strokes)
    assert found == sorted([*cells, margin // 8, (margin + 1091) // 8])


def test_few_points_after_fit_are_told():
    """Two specks that are darker than the drawing are all that is found of it."""
    image = house((170, 170, 170), "white")
    image.putpixel((50, 50), (0, 0, 0))
    image.putpixel((550, 550), (0, 0, 0))
    few = (
        r"^fit: .*: 2 points, which is few: crop to the drawing, or raise --threshold$"
    )
    with pytest.warns(UserWarning, match=few):
        image_to_vector(image, fit=True)
    assert len(fitted(image, threshold=200)) > 1000


def test_thinning_after_fit_is_told_in_the_same_line():
    square = ImageOps.expand(Image.new("L", (80, 80)), 40, 255)
    message = r"^fit: .* 80 x 80 pixels: 1\d{4} points, thinned .* max_points = 100$"
    with pytest.warns(UserWarning, match=message) as told:
        vector = image_to_vector(square, max_points=100, fit=True)
    assert len(told) == 1 and len(vector) == 200


@pytest.mark.parametrize(
    "image, grey",
    [
        (Image.new("L", (30, 30), 255), 255),
        (Image.new("L", (30, 30), 0), 0),
        (Image.new("RGB", (30, 30), (90, 90, 90)), 90),
        (Image.new("RGBA", (30, 30), (90, 90, 90, 0)), 0),
    ],
)
def test_fit_finds_nothing_where_nothing_is_drawn(image, grey):
    with pytest.raises(ValueError, match=f"nothing is drawn: every .* grey {grey}$"):
        image_to_vector(image, fit=True)
