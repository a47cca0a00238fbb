"""The laws and their measures: points, poses, distances, held against scipy and numpy."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance

from comparison.laws import LAWS, affine, pictures, points, posed, random_poses
from comparison.measures import (
    energy,
    frechet,
    nearest,
    principal,
    share_near,
    sliced,
    total_variance,
)
from tests.common import HOMER, double, picture, seeded_by, white
from tests.laws import law
from utils import image_to_vector

pytestmark = pytest.mark.xdist_group("pictures")

IDENTITY = torch.eye(2, 3)[None]


# What a law has


@pytest.mark.parametrize("name", LAWS)
def test_a_law_draws_itself_by_its_seed(name):
    those, state = law(name), torch.random.get_rng_state()
    one, same, other = (those.draw(200, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (200, those.data.shape[1])
    assert one.dtype == those.data.dtype == torch.float32
    low, high = those.box
    assert (one >= low).all() and (one <= high).all()
    assert len(those.measure(one[:9])) == len(those.measures)
    nothing = those.measure(torch.full_like(one, torch.nan))
    assert not any(value > 0 for value in nothing)


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_bad_pictures(make, tmp_path):
    for content, reason in (
        (b"no picture", "bad.png cannot be read: "),
        (picture(white()).read(), "bad.png.* 50 .the darkest is 255: try"),
    ):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            make(tmp_path / "bad.png")


# Points


def test_points_are_normalised_and_lead_back():
    those, cloud = law("points"), image_to_vector(HOMER).view(-1, 2)
    torch.testing.assert_close(those.centre + those.scale * those.data, cloud)
    assert those.data.mean(dim=0).abs().max() < 1e-6
    assert those.data.square().mean().item() == pytest.approx(1)
    gaps = those.data[:, 0].unique().diff()
    assert gaps[gaps > 1e-4].min().item() == pytest.approx(those.pixel, rel=1e-3)


def test_the_law_is_told_by_its_points(tmp_path):
    """The same picture in another format is the same law, and another fit is not."""
    with Image.open(HOMER) as image:
        image.convert("L").save(tmp_path / "homer.bmp")
    assert points(tmp_path / "homer.bmp").picture == law("points").picture
    with pytest.warns(UserWarning, match="fit: "):
        assert points(HOMER, fit=True).picture != law("points").picture


def test_points_are_measured_in_pixels():
    """By scipy's trees and distances, on the grid of 150, where neighbours count."""
    those = law("points")
    drawn = those.draw(300, 1) + 0.7 * those.pixel * torch.randn(300, 2)
    x, data = (one.double().numpy() / those.pixel for one in (drawn, those.data))
    near = [(cKDTree(b).query(a)[0] <= 1.001).mean() for a, b in ((x, data), (data, x))]
    along = [np.array([math.cos(a), math.sin(a)]) for a in np.arange(32) * math.pi / 32]
    distance = np.mean([wasserstein_distance(x @ v, data @ v) for v in along])
    spread = frechet(torch.from_numpy(x), torch.from_numpy(data))
    expected = [*(100 * share for share in near), distance, spread]
    assert 20 < expected[1] < expected[0] < 95
    assert those.measure(drawn) == pytest.approx(expected, rel=1e-4)
    beside = those.data[:1] + torch.tensor([[those.pixel, 0]])
    assert those.measure(beside.expand(2, 2))[0] == 100


# Pictures


def test_the_law_holds_three_draws():
    faces = law("pictures")
    for data in faces[:3]:
        assert data.shape == (2000, 1024)
        assert data.min() >= -1 and data.max() == 1
        assert data.min(dim=1).values.max() < 0  # there is ink in each
        assert len(data.unique(dim=0)) == 2000
    assert nearest(faces.data[:50], torch.cat(faces[1:3]))[0].min() > 1
    assert nearest(faces.draw(20, 1), torch.cat(faces[:3]))[0].min() > 1


def test_the_identity_is_the_drawing():
    """Thickened by 7 pixels each way at 600 x 600, and reduced by averaging."""
    with Image.open(HOMER) as image:
        ink = np.asarray(image.convert("L")) <= 50
    thick = np.zeros_like(ink)
    for row, column in np.argwhere(ink):
        thick[max(0, row - 7) : row + 8, max(0, column - 7) : column + 8] = True
    cells = np.asarray(
        Image.fromarray(np.uint8(255 * thick)).resize((32, 32), Image.Resampling.BOX)
    )
    drawing = law("pictures").drawing
    drawn = posed(drawing, IDENTITY).view(32, 32)
    np.testing.assert_allclose(drawn, 1 - cells / 127.5, atol=0.1)
    mirrored = posed(drawing, torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])).view(32, 32)
    torch.testing.assert_close(mirrored, drawn.flip(1), rtol=0, atol=1e-4)
    assert not torch.allclose(mirrored, drawn, atol=0.5)


@pytest.mark.parametrize(
    "matrix, shift",
    [
        ([[1.0, 0], [0, 1]], [-0.25, 0.5]),
        ([[0.0, -1], [1, 0]], [0, 0]),
        ([[1.4, 0], [0, 1.4]], [0, 0]),
        ([[1, 0.5], [0, 1]], [0, 0]),
    ],
)
def test_a_pose_moves_the_ink(matrix, shift):
    """A dot, right of the middle and above it, by shift, turn, size and shear."""
    drawing = torch.zeros(128, 128)
    drawing[28:36, 92:100] = 1  # its middle is at x = 0.5, y = -0.5, up being negative
    matrix, shift = torch.tensor(matrix), torch.tensor(shift)[:, None]
    drawn = posed(drawing, torch.cat([matrix, shift], dim=1)[None]).view(16, 16)
    ink, place = (1 - drawn) / 2, (torch.arange(16) + 0.5) / 8 - 1
    middle = torch.stack([(ink.sum(0) * place).sum(), (ink.sum(1) * place).sum()])
    expected = matrix @ torch.tensor([0.5, -0.5]) + shift[:, 0]
    torch.testing.assert_close(middle / ink.sum(), expected, rtol=0, atol=0.02)
    assert ink.sum().item() == pytest.approx(matrix.det().item(), abs=0.05)
    away = torch.tensor([[[1.0, 0, 3], [0, 1, 0]]])
    assert (posed(torch.ones(128, 128), away) == 1).all()


def test_poses_have_the_moments_they_should():
    """Taken apart by QR: turn times a triangle, of the mirrored size and the shear."""
    count, error = 20_000, 5 / math.sqrt(20_000)
    poses = random_poses(count, seeded_by(1))
    assert poses.shape == (count, 6) and (poses[:, 0].abs() == 1).all()
    assert torch.equal(poses, random_poses(count, seeded_by(1)))
    matrix, shift = affine(poses.double()).tensor_split([2], dim=2)
    shift = shift[:, :, 0]
    mirror = matrix.det().sign()
    size = matrix.det().abs().sqrt()
    angle = torch.atan2(mirror * matrix[:, 1, 0], mirror * matrix[:, 0, 0])
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1)
    rest = turn.view(-1, 2, 2).mT @ matrix
    torch.testing.assert_close(rest[:, 0, 0], mirror * size, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rest[:, 1, 1], size, rtol=1e-5, atol=1e-6)
    for values, mean, deviation in (
        (mirror, 0, 1),
        (size.log(), -math.log(1.25), 0.12),
        (angle, 0, math.radians(12)),
        (rest[:, 0, 1] / size, 0, 0.08),
        (shift[:, 0], 0, 1 / 12),
        (shift[:, 1], 0, 1 / 12),
    ):
        assert values.mean().item() == pytest.approx(mean, abs=deviation * error)
        assert values.std().item() == pytest.approx(deviation, rel=error)


def test_most_poses_lie_wholly_inside():
    drawing = law("pictures").drawing
    rows, columns = (drawing > 0).nonzero().T
    half = drawing.shape[0] / 2
    ink = torch.stack([(columns + 0.5) / half - 1, (rows + 0.5) / half - 1])
    maps = affine(random_poses(500, seeded_by(0)))
    places = maps[:, :, :2] @ ink + maps[:, :, 2:]
    assert (places.abs().amax(dim=(1, 2)) < 1).double().mean() > 0.8


def test_a_drawing_of_the_users(tmp_path):
    """Thin chalk in a corner of a board, once fitted, at a side asked for."""
    board = Image.new("L", (900, 500), 30)
    ImageDraw.Draw(board).ellipse((40, 40, 240, 200), outline=220, width=3)
    board.save(tmp_path / "board.png")
    with pytest.warns(UserWarning, match="fit: light ink"):
        those = pictures(tmp_path / "board.png", fit=True, side=24, count=5)
    assert those.data.shape == (5, 24**2) and those.side == 24
    homer = pictures(count=5, side=24)
    assert those.picture != homer.picture != pictures(count=6, side=24).picture
    ring = posed(those.drawing, IDENTITY).view(24, 24)
    assert ring[12, 12] == 1 and ring[12].min() < 0 and ring[:, 12].min() < 0


def test_measures_of_known_pictures():
    """Of copies, of others, of the law's own, the floor, and of noise, the ceiling."""
    faces = law("pictures")._replace(fitted=9)
    copies, others, own, noise = (
        dict(zip(faces.measures, faces.measure(x)))
        for x in (
            faces.data[:100],
            faces.fresh[:100],
            faces.draw(300, 0),
            torch.randn(100, 1024, generator=seeded_by(16)),
        )
    )
    assert copies["nearer"] == 100 and others["nearer"] == 0
    assert own["nearer"] == pytest.approx(50, abs=12)
    for one in (copies, others, own):
        assert 0.003 < one["off pose"] < 0.015
        assert one["spread"] == pytest.approx(1, abs=0.12)
        assert abs(one["kernel"]) < 0.1 and 0.5 < one["frechet"] < 7
    assert noise["off pose"] > 1 and noise["kernel"] > 5 and noise["frechet"] > 50
    assert noise["spread"] == pytest.approx(1024 / 270, rel=0.02)


def test_known_poses_are_found():
    """As they are; and not put off by what is drawn over them, which is what is left."""
    faces, poses = law("pictures"), random_poses(12, seeded_by(40))
    drawn = posed(faces.drawing, affine(poses))
    found, left = faces.fit_poses(drawn)
    assert torch.equal(found[:, 0], poses[:, 0])
    torch.testing.assert_close(found, poses, rtol=0, atol=0.05)
    assert left.max() < 0.02
    for size in (0.1, 0.3):
        over = size * torch.randn(drawn.shape, generator=seeded_by(41))
        found, left = faces.fit_poses(drawn + over)
        torch.testing.assert_close(found, poses, rtol=0, atol=size)
        torch.testing.assert_close(
            left, over.square().mean(1).sqrt(), rtol=0.05, atol=0
        )
    # A square of ink where there was paper, in all that are told to be measured.
    blot = drawn.view(-1, 32, 32).clone()
    blot[:6, :8, :8] = -1
    one, both = (
        faces._replace(fitted=count).measure(blot.flatten(1))[0] for count in (6, 12)
    )
    assert one > 0.2 and both < one


def test_frechet_of_pictures_is_that_of_the_components():
    """Of a shift along a component all is seen, of one along another nothing."""
    faces = law("pictures")
    reference, own = faces.reference, faces.reference @ faces.axes
    _, _, axes = torch.linalg.svd(reference - reference.mean(0), full_matrices=False)
    for k, seen in ((0, 25.0), (15, 25.0), (16, 0.0), (500, 0.0)):
        got = frechet((reference + 5 * axes[k]) @ faces.axes, own)
        assert got == pytest.approx(seen, abs=0.05)
    few = faces.fresh[:50]
    assert faces._replace(fitted=2).measure(few)[3] == pytest.approx(
        frechet(few @ faces.axes, own)
    )


# Measures


@pytest.mark.parametrize("within", [0.1, 0.3, 0.6])
def test_neighbours_are_those_of_a_tree(within):
    these, those = double(300, 2, seed=24), double(40, 2, seed=25) + 0.5
    for a, b in ((these, those), (those, these)):
        distances, index = cKDTree(b).query(a)
        got = nearest(a, b)
        np.testing.assert_allclose(got[0], distances, rtol=1e-9)
        assert got[1].tolist() == index.tolist()
        expected = (distances <= within).mean()
        assert 0 < expected < 1 and share_near(a, b, within) == expected
    assert share_near(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), within=5.0) == 1


def test_distances_are_not_those_of_products():
    """Which in float32, far from the origin, would lose what is between the points."""
    these, those = 1000 + torch.randn(2, 60, 5, generator=seeded_by(6))
    expected = nearest(these.double(), those.double())[0].float()
    torch.testing.assert_close(nearest(these, those)[0], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("directions", [1, 5, 32])
@pytest.mark.parametrize("m, n", [(1, 1), (50, 50), (7, 300)])
def test_sliced_is_the_mean_of_scipys_distances(m, n, directions):
    # Coordinates of few values: many duplicates, within a sample and between the two.
    a, b = (torch.randint(6, (k, 2), generator=seeded_by(k)).float() for k in (m, n))
    b, distances = 1.5 * b - 1, []
    for k in range(directions):
        angle = math.pi * k / directions
        along = [math.cos(angle), math.sin(angle)]
        distances.append(wasserstein_distance(a.numpy() @ along, b.numpy() @ along))
    for pair in ((a, b), (b, a)):
        assert sliced(*pair, directions) == pytest.approx(np.mean(distances), rel=1e-6)
    assert sliced(a, b) == sliced(a, b, 32)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_frechet_is_that_of_scipys_root(dimension):
    a = double(300, dimension, seed=29) @ double(dimension, dimension, seed=30)
    b = double(200, dimension, seed=31) + 0.3
    c_1, c_2 = (np.cov(x.T).reshape(dimension, dimension) for x in (a, b))
    means = ((a.numpy().mean(axis=0) - b.numpy().mean(axis=0)) ** 2).sum()
    expected = means + np.trace(c_1 + c_2 - 2 * sqrtm(c_1 @ c_2).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-8)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a.float(), b.float()) == pytest.approx(expected, rel=1e-4)


def test_principal_components_are_those_of_numpy():
    scales = torch.tensor([0.1, 3.0, 0.5, 2.0, 1.0]).double()
    data = 7 + scales * double(500, 5, seed=7)
    axes = principal(data, 2)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2).double())
    _, _, expected = np.linalg.svd((data - data.mean(0)).numpy(), full_matrices=False)
    overlap = (axes.T @ torch.from_numpy(expected[:2].T)).abs()
    torch.testing.assert_close(overlap, torch.eye(2).double().flip(0))
    assert principal(data[:, :1], 1).shape == (1, 1)


@pytest.mark.parametrize("dimension", [1, 4])
@pytest.mark.parametrize("m, n", [(2, 3), (40, 9)])
def test_energy_is_without_bias(dimension, m, n):
    """In the mean over samples of any number: 0 for one law, else that of two Gaussians.

    E norm(z), z from N(0, 2 s^2 I), is 2 s gamma((D + 1) / 2) / gamma(D / 2).
    """
    ratio = math.gamma((dimension + 1) / 2) / math.gamma(dimension / 2)
    x, y = double(2000, m, dimension, seed=42), double(2000, n, dimension, seed=43)
    for scale in (1.0, 3.0):
        values = torch.tensor([energy(*pair) for pair in zip(x, scale * y)])
        between = 2 * math.sqrt((1 + scale**2) / 2)
        expected = ratio * (2 * between - 2 - 2 * scale)
        error = values.std().item() / math.sqrt(len(values))
        assert values.mean().item() == pytest.approx(expected, abs=4 * error)
        assert error < 0.07
    assert energy(x[0], y[0]) == pytest.approx(energy(y[0], x[0]))
    near = [0.0, 0.0], [3.0, 4.0], [6.0, 8.0]
    a, b, c = torch.tensor(near)[:, None]
    assert energy(torch.cat([a, b]), torch.cat([b, c])) == pytest.approx(0)


def test_total_variance_is_that_of_numpy():
    x = 5 + double(30, 4, seed=44)
    assert total_variance(x) == pytest.approx(np.var(x.numpy(), axis=0, ddof=1).sum())
