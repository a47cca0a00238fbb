"""Picture, points, vector: what is read, what `fit` makes of a drawing, bad input."""

import hashlib
import io
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

from tests import published
from tests.common import HOMER, picture, saved, white
from utils import (
    image_to_vector,
    pack_data,
    read_square,
    scatter_pixels,
    unpack_1d_data,
)


def inked(side, *places):
    """A white square, black at these (row, column)."""
    grey = white(side)
    grey[tuple(zip(*places, strict=True))] = 0
    return picture(grey)


@pytest.mark.parametrize(
    "file, settings, points",
    [
        (inked(150, (0, 0)), (), [(0, 150)]),  # top left
        (inked(150, (149, 149)), (), [(149, 1)]),
        # Columns outer, rows inner.
        (inked(4, (3, 0), (0, 1), (2, 1)), (4,), [(0, 1), (1, 4), (1, 2)]),
        # 50 is dark, 51 is not.
        (picture([[50, 51], [51, 51]]), (2,), [(0, 2)]),
        (picture([[0, 1], [255, 255]]), (2, 0), [(0, 2)]),
        (picture([[255, 255]] * 2), (2, 255), [(0, 2), (0, 1), (1, 2), (1, 1)]),
        (picture([[[0, 0, 0, 255], [0, 0, 0, 0]]] * 2), (2,), [(0, 2), (0, 1)]),
    ],
)
def test_dark_pixels_are_points(file, settings, points):
    xs, ys = scatter_pixels(file, *settings)
    assert [*zip(xs, ys, strict=True)] == points
    assert {type(c) for c in xs + ys} <= {int}


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_round_trip_of_a_vector(kind):
    x, y = unpack_1d_data(kind([1.0, 2.5, -3.0, 4.0]))
    assert [*x] == [1.0, -3.0] and [*y] == [2.5, 4.0]
    assert pack_data(x, y) == [1.0, 2.5, -3.0, 4.0]
    with pytest.raises(ValueError, match="shorter"):
        pack_data(x, y[:1])


@pytest.mark.parametrize("image_size", [150, 200])
def test_vector_is_that_of_plain_loops(image_size):
    vector = image_to_vector(HOMER, image_size)
    torch.testing.assert_close(vector, published.image_to_vector(HOMER, image_size))


def test_what_the_committed_weights_are_keyed_by():
    """One changed bit of these, and the comparison trains its networks anew."""
    square, done = read_square(HOMER, 600, 50)
    found = image_to_vector(HOMER).numpy().tobytes(), square.tobytes()
    assert done == ""
    assert [hashlib.sha256(data).hexdigest()[:32] for data in found] == [
        "407263502b0620b9d25b489fc5f8c701",
        "3173a8c7bcb3a62931c804eb344deb50",
    ]


def test_a_picture_is_padded_with_white_not_squashed():
    grey = np.full((300, 600), 255)
    grey[100:200, 250:350] = 0
    xs, ys = scatter_pixels(picture(grey), 200)
    sides = np.ptp(xs) + 1, np.ptp(ys) + 1
    assert sides == pytest.approx((200 / 6, 200 / 6), abs=2.01)
    assert (max(ys) + min(ys)) / 2 == pytest.approx(100, abs=1.01)


@pytest.mark.parametrize(
    "dark, most, told",
    [
        (224, 11251, r"224 of 22500 .*threshold 50 \(the .* is 0: try --fit\)"),
        (225, 11251, None),
        (11251, 11251, r"11251 of 22500 .* try --fit\)"),
        (2500, 2500, None),
        (2501, 2500, r"2501 of .* try --fit\), thinned evenly to max_points = 2500"),
    ],
)
def test_few_points_and_many_are_told_and_thinned(dark, most, told):
    grey = white().ravel()
    grey[:dark] = 0
    file = picture(grey.reshape(150, 150).T)  # columns outer
    whole = [*zip(*scatter_pixels(file), strict=True)]
    settings = {} if most == 2500 else {"max_points": most}
    with warnings.catch_warnings(record=True, action="always") as notes:
        cloud = image_to_vector(file, **settings).view(-1, 2)
    assert len(notes) == (told is not None)
    assert all(re.fullmatch(told, str(note.message)) for note in notes)
    assert {note.filename for note in notes} <= {__file__}  # where the call is
    points = ((cloud + torch.tensor([3, 2])) * 25).round().int().tolist()
    kept = {*map(tuple, points)}
    assert len(kept) == min(dark, most)
    assert [*map(tuple, points)] == [point for point in whole if point in kept]


@pytest.mark.parametrize("most", [300, 1000, 2500, 5000])
def test_thinning_is_even_in_the_plane(most):
    disc = Image.new("L", (150, 150), 255)
    ImageDraw.Draw(disc).ellipse((10, 10, 140, 140), 0)
    with pytest.warns(UserWarning, match="thinned evenly"):
        cloud = image_to_vector(disc, max_points=most).view(-1, 2) * 25
    near = torch.cdist(cloud, cloud).fill_diagonal_(99).amin(dim=1)
    lattice = (math.pi * 65.5**2 / most) ** 0.5
    assert near.min() > 0.5 * lattice and near.std() < 0.2 * lattice


# Any file of it is the same picture


def files():
    """homer.png in other formats and modes."""
    with Image.open(HOMER) as image:
        grey = image.convert("L")
    greys, rgb = np.asarray(grey), grey.convert("RGB")
    aside, turned = grey.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise, to stand upright
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    clear = np.zeros((600, 600, 4), dtype=np.uint8)  # black, opaque where there is ink
    clear[..., 3] = 255 - greys
    palette = Image.fromarray((greys > 127).astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 90, 0, 0])
    deep = Image.fromarray(greys.astype(np.uint16) * 257)
    veiled = Image.fromarray(np.where(greys > 127, 0, 257).astype(np.uint16))
    pgm = (greys.astype(int) * 1023 // 255).astype(">u2").tobytes()
    return {mode: saved(grey.convert(mode), "png") for mode in ("1", "P", "RGBA")} | {
        "16-bit": saved(deep, "png"),
        "10-bit PGM": io.BytesIO(b"P5 600 600 1023\n" + pgm),
        "transparent 16-bit": saved(veiled, "png", transparency=0),
        "transparent": saved(Image.fromarray(clear), "png"),
        "grey and alpha": saved(Image.fromarray(clear).convert("LA"), "png"),
        "transparent palette": saved(palette, "gif", transparency=1),
        "CMYK": saved(rgb.convert("CMYK"), "jpeg"),
        "EXIF": saved(aside, "jpeg", exif=turned),
        "XMP": saved(aside, "jpeg", xmp=xmp),
        "damaged EXIF": saved(grey, "jpeg", exif=b"Exif\0\0" + bytes(20), dpi=(72, 72)),
        "animation": saved(grey, "gif", save_all=True, append_images=[grey.rotate(90)]),
    }


FILES = files()


@pytest.mark.parametrize("kind", FILES)
def test_every_file_gives_the_same_cloud(kind):
    """As a file, twice, and as a Pillow image, which is left as it was."""
    file = FILES[kind]
    with warnings.catch_warnings(action="error"):  # of metadata neither
        vector, homer = image_to_vector(file), image_to_vector(HOMER)
    # Every point of one has a point of the other within one pixel, both ways.
    clouds = homer.view(-1, 2), vector.view(-1, 2)
    assert max(far(*clouds), far(*clouds[::-1])) < 1.5 / 25
    with Image.open(file) as image:
        for again in (file, image, image):
            assert torch.equal(image_to_vector(again), vector)


def test_16_bits_are_scaled_to_8():
    ramp = np.arange(256, dtype=np.uint16)[None].repeat(256, axis=0)
    file = saved(Image.fromarray(ramp * 257), "png")
    assert max(scatter_pixels(file, image_size=256, threshold=128)[0]) == 128


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
    """Grey lines of uneven pressure on rough paper, with a reflection, in a JPEG file."""
    rng = np.random.default_rng(0)
    ink = np.asarray(house(1.0, 0.0, mode="F"))
    pressure = np.linspace(0.75, 1.25, 600) + rng.normal(0, 0.1, (600, 600))
    grey = 190 - 80 * ink * pressure + rng.normal(0, 4, (600, 600))
    grey[500:560, 500:560] = 255
    return saved(Image.fromarray(grey.clip(0, 255).astype(np.uint8)), "jpeg")


CLEAR = (255, 255, 255, 0)
# A drawing, and what is told of it without `fit`; None where it is found whole.
OWN = {
    "black on white": (house("black", "white"), None),
    "blue on white": (house((40, 80, 210), "white"), r"0 of .* is \d\d"),
    "yellow on white": (house("yellow", "white"), r"0 of .* is 2"),
    "pencil": (pencil(), r"0 of .* is \d\d"),
    "white on black": (house("white", "black"), r"2\d{4} of .* is 0"),
    "chalk": (house((230, 230, 220), (45, 70, 58)), r"\d of .* is \d\d"),
    "on glass": (house("white", CLEAR, mode="RGBA"), r"0 of .* is 255"),
    "black on glass": (house("black", CLEAR, mode="RGBA"), None),
    "thin": (house("black", "white", 3000, at=50, height=2900, width=1), "0 of .* 2"),
    "small": (house("black", "white", 1200, at=1150, height=40, width=2), "0 of .* 1"),
    "as small as it is": (house("black", "white", 42, at=1, height=40, width=2), None),
}


def fitted(file, **settings):
    with pytest.warns(UserWarning, match="^fit: "):
        return image_to_vector(file, fit=True, **settings).view(-1, 2)


def far(some, others):
    """The largest distance of some points, (N, 2), to the nearest of others."""
    return torch.cdist(some, others).amin(dim=1).max()


@pytest.mark.parametrize("kind", OWN)
def test_fit_finds_a_drawing_whole_and_alone(kind):
    file, told = OWN[kind]
    cloud = fitted(file) * 25  # in pixels
    low, high = cloud.aminmax(dim=0)
    middle, height = (low + high) / 2, (high - low)[1]
    assert (middle - torch.tensor([0, 25])).abs().max() <= 1.5
    assert 130 <= height <= 140
    along = torch.linspace(0, 1, 200)[:, None]
    edges = [torch.tensor(ends) for line in HOUSE for ends in pairwise(line)]
    lines = torch.cat([start + along * (end - start) for start, end in edges])
    lines = torch.stack([lines[:, 0] - 0.4, 0.5 - lines[:, 1]], dim=1) * height + middle
    # A line of 2 pixels in 40 is one of 7 in 140, where the lines are up to 3 thick.
    wider = 1 if "small" in kind else 0
    assert far(cloud, lines) < 1.5 + 3 * wider
    assert far(lines, cloud) < 1.6 + wider
    if told:  # by an error, or, where some points were found, by a warning
        with (
            warnings.catch_warnings(action="error"),
            pytest.raises((ValueError, UserWarning), match=f"{told}.*: try --fit"),
        ):
            image_to_vector(file)


def spotted(image, spots, grey, side=1):
    """A copy of a picture with squares at these (x, y)."""
    image = image.copy()
    for x, y in spots:
        image.paste(grey, (x, y, x + side, y + side))
    return image


RNG, PENCIL = np.random.default_rng(0), house(150, 240, mode="L")
CHALK, LARGE = house(105, 15, mode="L"), PENCIL.resize((1200, 1200))
DIM = house(55, 95, 2000, at=300, height=1400, width=12, mode="L")
NOISY = (np.asarray(DIM) + RNG.normal(0, 12, (2000, 2000))).clip(0, 255)
# Drawings, and the same with what is no part of them.
SOILED = {
    "dark pixel": (PENCIL, spotted(PENCIL, [(20, 20)], 0)),
    "light pixel": (CHALK, spotted(CHALK, [(580, 20)], 255)),
    "dust": (LARGE, spotted(LARGE, RNG.integers(0, 1197, (40, 2)).tolist(), 0, 3)),
    "dim light": (DIM, Image.fromarray(NOISY.astype("u1"))),
    "paper on a table": (PENCIL, ImageOps.expand(PENCIL, (200, 300, 200, 100), 60)),
    "board with a light frame": (CHALK, ImageOps.expand(CHALK, 20, 230)),
}


@pytest.mark.parametrize("kind", SOILED)
def test_fit_finds_a_soiled_drawing_as_if_clean(kind):
    clean, found = (fitted(image) for image in SOILED[kind])
    assert max(far(clean, found), far(found, clean)) < 2.5 / 25
    assert len(found) == pytest.approx(len(clean), rel=0.12)


def test_fit_takes_pencil_beside_a_pen_and_freckles_for_ink():
    signed = PENCIL.copy()
    ImageDraw.Draw(signed).line([(x, 530 + x % 40) for x in range(400, 500, 20)], 0, 3)
    assert "dark ink (grey 150 on 240)" in read_square(signed, 150, 50, fit=True)[1]
    freckled = spotted(PENCIL, [(220, 298), (250, 298), (280, 298)], 150, 4)
    assert len(fitted(freckled)) >= len(fitted(PENCIL)) + 3


@pytest.mark.parametrize("box", [(0, 0, 47, 47), (5, 24, 43, 26)])
def test_a_round_square_or_a_bar_is_no_sheet_of_paper(box):
    image = Image.new("L", (48, 48), 255)
    ImageDraw.Draw(image).rounded_rectangle(box, 19, 0)
    for big, threshold in ((image, 50), (image.resize((480, 480)), 50), (image, 255)):
        assert len(fitted(big, threshold=threshold)) > 100


def test_fit_says_what_it_did():
    chalk = (
        r"light ink \(grey 255 on 20\), cropped from 600 x 600 to 321 x 401 pixels: "
    )
    chalk += r"\d{3} points, thinned .* = 100"
    dots = spotted(house("white", "white"), [(50, 50), (550, 550)], 0, 5)
    window = ImageOps.expand(PENCIL, 200, 40)
    ImageDraw.Draw(window).text((20, 20), "File  Edit  View", 200)
    for image, said in (
        (house("white", (20, 20, 20), width=1), chalk),
        (dots, ".*: 2 points, too few: crop to .*, or raise --threshold"),
        (
            window,
            "light ink .*, many: if the background is ink, crop it, thin.*",
        ),
    ):
        with pytest.warns(UserWarning) as told:
            image_to_vector(image, max_points=100, fit=True)
        (warning,) = told
        assert warning.filename == __file__  # where the call is
        assert re.fullmatch("fit: " + said, str(warning.message))


@pytest.mark.parametrize("threshold, bars", [(0, 7), (50, 8), (150, 10), (200, 12)])
def test_fit_stretches_what_the_threshold_is_of(threshold, bars):
    """0 is halfway from most of the ink, 100, to the ground, 200, which is 255."""
    greys = np.full((150, 250), 200)
    greys[10:140, 150:240] = 100
    for k in range(13):
        greys[10:140, 10 * k + 10 : 10 * k + 14] = 100 + 8 * k
    x = fitted(picture(greys), threshold=threshold)[:, 0].unique()
    assert (x.diff() > 1.5 / 25).sum() == bars


@pytest.mark.parametrize("dark", [False, True])
def test_fit_takes_a_filled_drawing_for_one(dark):
    """Though its ink is more than half of the picture, the ground is at the rim."""
    image = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(image).ellipse((2, 2, 97, 97), 0)
    ImageDraw.Draw(image).ellipse((30, 30, 50, 50), 255)
    cloud = fitted(ImageOps.invert(image) if dark else image, max_points=10**5)
    corner, hole, body = (
        far(torch.tensor([[x / 100 * 6 - 3, 4 - y / 100 * 6]]), cloud)
        for x, y in ((8, 8), (40, 40), (50, 70))
    )
    # Of black and white alike, white is the ground.
    assert (min(corner, hole) > 0.3) != dark and (body < 0.05) != dark


def test_fit_neither_loses_thin_lines_nor_thickens_thick_ones():
    """Of vertical strokes in 1,092 pixels, 1,200 with the margin: 8 become one."""
    margin = 54
    cells = {10: (3, 2), 20: (5, 1), 22: (0, 16), 30: (4, 1), 32: (0, 8)}
    cells |= {40: (0, 11), 60: (6, 1), 62: (6, 1), 64: (6, 1), 126: (7, 1)}
    strokes = [(8 * cell + x - margin, wide) for cell, (x, wide) in cells.items()]
    image = Image.new("L", (1300, 1300), 255)
    for left, wide in [*strokes, (0, 2), (1090, 2)]:  # which fill the picture
        image.paste(0, (100 + left, 100, 100 + left + wide, 1192))
    found = (fitted(image, max_points=10**5)[:, 0].unique() * 25 + 75).round().tolist()
    assert found == sorted([*cells, 23, margin // 8, (margin + 1091) // 8])


def tiff(kind):
    """A file whose greys have no known range."""
    return saved(Image.fromarray(np.eye(9, dtype=kind)), "tiff").getvalue()


def test_what_is_no_picture_is_refused_by_its_name(tmp_path):
    path, deep = tmp_path / "some.png", "its greys have no known range: save it with 8"
    for content, reason in (
        (None, "No such file"),
        (b"a line of text", "cannot identify"),
        (HOMER.read_bytes()[:3000], "truncated"),
        (tiff(np.int32), deep),
        (tiff(np.float32), deep),
    ):
        if content:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"some\.png cannot be read: .*{reason}"):
            image_to_vector(path)


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans(), st.booleans())
def test_any_bytes_give_a_vector_or_a_clear_error(noise, place, spliced, fit):
    """Noise alone, and noise written over a part of a real picture."""
    small = saved(Image.fromarray(np.eye(40, dtype=np.uint8) * 255), "png").getvalue()
    content = small[:place] + noise + small[place + len(noise) :] if spliced else noise
    try:
        with warnings.catch_warnings(action="ignore"):
            vector = image_to_vector(io.BytesIO(content), image_size=40, fit=fit)
    except ValueError as error:
        assert re.search("cannot be read: |at least 2 are|is blank", str(error))
    else:
        assert len(vector) % 2 == 0 and len(vector) >= 4 and vector.isfinite().all()


def test_a_cloud_needs_two_points():
    for image, settings, message in (
        (picture(white()), {}, "BytesIO.*: 0 of .*; at least 2 are needed$"),
        (inked(150, (3, 3)), {}, "BytesIO.*: 1 of .*; at least 2 are needed$"),
        (HOMER, {"max_points": 1}, "to max_points = 1; at least 2 are"),
        (Image.new("RGB", (9, 9), "red"), {"fit": True}, "Image.* is blank"),
        (Image.new("RGBA", (9, 9), CLEAR), {"fit": True}, "is blank"),
    ):
        with pytest.raises(ValueError, match=message):
            image_to_vector(image, **settings)
