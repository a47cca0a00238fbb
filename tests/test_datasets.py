"""The data sets and their measures, held against scipy, numpy and matrices by hand."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.linalg import sqrtm
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist
from scipy.stats import kstest, wasserstein_distance
from torch.nn.functional import avg_pool2d

from comparison.dataset import REFERENCES, draw_noise, seeded
from comparison.measures import (
    frechet,
    nearest,
    principal,
    share_near,
    sliced,
    variance_ratio,
)
from comparison.pictures import affine, pictures, posed, random_poses
from comparison.posterior import posterior_variance
from comparison.rows import DATASETS, measured
from tests.common import HOMER, double, picture, seeded_by, white
from tests.datasets import dataset
from utils import image_to_vector

pytestmark = pytest.mark.xdist_group("pictures")

of_every_data_set = pytest.mark.parametrize("name", DATASETS)


def make(name, *image, **options):
    """A data set, of pictures a few small ones."""
    few = {"side": 24, "count": 5} if name == "pictures" else {}
    return DATASETS[name](*image, **few, **options)


@of_every_data_set
def test_a_data_set_draws_itself_by_its_seed(name):
    those, state = dataset(name), torch.random.get_rng_state()
    draws = [those.draw(200, seed) for seed in (1, 1, 2)]
    noises = [draw_noise(those, 200, seeded(those, seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, same, other in (draws, noises):
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert one.shape == (200, those.data.shape[1]) and one.dtype == torch.float32
    assert kstest(noises[0].flatten(), "norm").pvalue > 0.01


@of_every_data_set
def test_bad_pictures_are_refused_by_name(name, tmp_path):
    for content, reason in (
        (b"no picture", "bad.png cannot be read: "),
        (picture(white()).read(), "bad.png.* 50 .the darkest is 255: try"),
    ):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            DATASETS[name](tmp_path / "bad.png")


@of_every_data_set
def test_a_drawing_of_the_users_is_found_and_told_from_others(name, tmp_path):
    """Thin chalk in a corner of a board; homer.png in another format is the same."""
    board, homer = Image.new("L", (900, 500), 30), make(name)
    ImageDraw.Draw(board).ellipse((40, 40, 240, 200), outline=220, width=3)
    board.save(tmp_path / "board.png")
    with Image.open(HOMER) as image:
        image.convert("L").save(tmp_path / "homer.bmp")
    with pytest.warns(UserWarning, match="fit: light ink"):
        those = make(name, tmp_path / "board.png", fit=True)
    others, same = [those], make(name, tmp_path / "homer.bmp")
    if name == "points":
        width, height = (those.data.amax(dim=0) - those.data.amin(dim=0)).tolist()
        assert width / height == pytest.approx(200 / 160, rel=0.05)
    else:
        others += [pictures(side=24, count=6), pictures(side=32, count=5)]
        assert those.data.shape == (5, 24**2) and those.side == 24
        ring = posed(those.drawing, torch.eye(2, 3)[None]).view(24, 24)
        assert ring[12, 12] == 1 and ring[12].min() < 0 and ring[:, 12].min() < 0
    assert homer.picture == same.picture not in {other.picture for other in others}


# Of each measure, what it is between for fresh data, and the defects that it sees.
SEEN = {
    "precision": (100, 100, "noise shifted blurred"),
    "coverage": (85, 95, "noise shifted blurred few"),
    "sliced W1": (0, 1.5, "noise shifted few"),
    "frechet": (0, 12, "noise shifted few"),
    "pose error": (0.003, 0.02, "noise blurred"),
    "variance ratio": (0.88, 1.12, "noise blurred"),
    "energy distance": (-0.1, 0.1, "noise shifted blurred few"),
    "closer to training": (38, 62, "copies"),
}


def off(measure, value):
    """How far a value is from what the measure's meaning calls best at its end."""
    best = re.search(r"(higher|lower|\d+) is (better|best)$", measure.meaning)[1]
    signed = {"higher": -value, "lower": value}
    return signed[best] if best in signed else abs(value - int(best))


@of_every_data_set
def test_every_measure_tells_fresh_data_from_defects_but_not_from_explosions(name):
    those = dataset(name)
    fresh = those.draw(1000 if name == "points" else 60, 3)
    noise = draw_noise(those, len(fresh), seeded(those, 1))
    if name == "points":
        shifted, blurred = (fresh + k * those.pixel for k in (3, 1.5 * noise))
    else:
        those = replace(those, fitted=3, reference=those.reference[:500])  # it is quick
        faces = fresh.view(-1, 1, 32, 32)
        shifted = faces.roll(4, 3).flatten(1)
        blurred = avg_pool2d(faces, 3, 1, 1, count_include_pad=False).flatten(1)
    draws = {"noise": noise, "few": fresh[:3].repeat(30, 1), "copies": those.data[:60]}
    draws |= {"shifted": shifted, "blurred": blurred}
    values = {kind: measured(those, x) for kind, x in draws.items()}
    for k, (measure, one) in enumerate(zip(those.measures, measured(those, fresh))):
        low, high, seen = SEEN.get(measure.name, (-math.inf, math.inf, "noise"))
        assert low <= one <= high, measure.name
        for kind in seen.split():
            assert off(measure, values[kind][k]) > off(measure, one), (measure, kind)
    for value in (math.nan, math.inf):
        fresh[3, 1] = value
        nothing = measured(those, fresh)
        assert len(nothing) == len(those.measures) and np.isnan(nothing).all()


def test_points_are_normalised_and_lead_back():
    those, cloud = dataset("points"), image_to_vector(HOMER).view(-1, 2)
    torch.testing.assert_close(those.in_main_units(those.data), cloud)
    assert those.data.mean(dim=0).abs().max() < 1e-6
    assert those.data.square().mean().item() == pytest.approx(1)
    gaps = those.data[:, 0].unique().diff()
    assert gaps[gaps > 1e-4].min().item() == pytest.approx(those.pixel, rel=1e-3)


def frechet_by_scipy(a, b):
    c_1, c_2 = (np.cov(x.T).reshape(x.shape[1], -1) for x in (a, b))
    means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return means + np.trace(c_1 + c_2 - 2 * sqrtm(c_1 @ c_2).real)


def sliced_by_scipy(a, b, directions=32):
    angles = np.arange(directions) * math.pi / directions
    along = np.stack([np.cos(angles), np.sin(angles)])
    pairs = zip((a @ along).T, (b @ along).T)
    return np.mean([wasserstein_distance(*pair) for pair in pairs])


def test_points_are_measured_in_pixels():
    """By scipy's trees and distances, on the grid of 150, where neighbours count."""
    those = dataset("points")
    drawn = those.draw(300, 1) + 0.7 * those.pixel * torch.randn(300, 2)
    x, data = (one.double().numpy() / those.pixel for one in (drawn, those.data))
    near = [(cKDTree(b).query(a)[0] <= 1.001).mean() for a, b in ((x, data), (data, x))]
    expected = [*(100 * share for share in near), sliced_by_scipy(x, data)]
    expected.append(frechet_by_scipy(x, data))
    assert 20 < expected[1] < expected[0] < 95
    assert measured(those, drawn) == pytest.approx(expected, rel=1e-4)
    beside = those.data + torch.tensor([[those.pixel, 0]])
    assert measured(those, beside)[:2] == (100, 100)
    one = frechet(*(torch.from_numpy(z[:, :1]) for z in (x, data)))
    assert one == pytest.approx(frechet_by_scipy(x[:, :1], data[:, :1]))


@pytest.mark.parametrize("directions", [1, 5])
@pytest.mark.parametrize("m, n", [(1, 1), (50, 50), (7, 300), (300, 7)])
def test_sliced_is_the_mean_of_scipys_distances(m, n, directions):
    # Coordinates of few values: many duplicates, within a sample and between the two.
    a, b = (torch.randint(6, (k, 2), generator=seeded_by(k)).float() for k in (m, n))
    expected = sliced_by_scipy(a.numpy(), 1.5 * b.numpy() - 1, directions)
    assert sliced(a, 1.5 * b - 1, directions) == pytest.approx(expected, rel=1e-6)


def test_neighbours_are_those_of_a_tree():
    """Far from the origin too, where float32's products would lose the distances."""
    a, b = 1000 + torch.randn(2, 60, 2, generator=seeded_by(6))
    distances, index = cKDTree(b.double()).query(a.double())
    got = nearest(a, b)
    np.testing.assert_allclose(got[0], distances, rtol=1e-4)
    assert got[1].tolist() == index.tolist()
    assert share_near(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), within=5.0) == 100


def test_pictures_hold_three_draws_and_draw_others():
    faces, few = dataset("pictures"), make("pictures")
    for data in (faces.data, faces.fresh, faces.reference):
        assert data.shape == (2000, 1024)
        assert data.max() == 1 and data.amin(dim=1).max() < 0  # there is ink in each
    others = [few.draw(5, seed) for seed in range(3)]
    assert (
        torch.pdist(torch.cat([few.data, few.fresh, few.reference, *others])).min() > 1
    )
    for poses, data in zip(faces.poses, (faces.data, faces.fresh, faces.reference)):
        drawn = posed(faces.drawing, affine(poses[:9]))
        torch.testing.assert_close(drawn, data[:9], rtol=0, atol=1e-5)


def test_the_identity_is_the_drawing():
    """Thickened by 7 pixels each way at 600 x 600, and reduced by averaging."""
    with Image.open(HOMER) as image:
        thick = maximum_filter(np.asarray(image.convert("L")) <= 50, 7 + 1 + 7)
    cells = Image.fromarray(thick).convert("L").resize((32, 32), Image.Resampling.BOX)
    drawn = posed(dataset("pictures").drawing, torch.eye(2, 3)[None]).view(32, 32)
    np.testing.assert_allclose(drawn, 1 - np.asarray(cells) / 127.5, atol=0.1)


def test_a_pose_is_mirror_shear_size_turn_and_shift_of_the_ink():
    """In this order; of more than are drawn at once, with ink at the rim, by Pillow."""
    drawing = dataset("pictures").drawing.clone()
    drawing[:, :40] = 1
    poses, half = random_poses(20, seeded_by(3)).double(), 128
    maps = affine(poses)
    for pose, got, drawn in zip(poses.tolist(), maps, posed(drawing, maps)):
        mirror, shear, size, angle, *shift = pose
        angle, shift = math.radians(12 * angle), np.array(shift) * 2 / 24  # half sides
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        sheared = np.array([[1, 0.08 * shear], [0, 1]]) @ np.diag([mirror, 1])
        matrix = turn @ (math.exp(0.12 * size) / 1.25 * sheared)
        np.testing.assert_allclose(got, np.c_[matrix, shift])
        # Pillow asks where a pixel's ink comes from, in pixels from the corner.
        back = np.linalg.inv(matrix)
        back = np.c_[back, half * (1 - back @ (1 + shift))].flatten().tolist()
        pixels = Image.fromarray(drawing.numpy()).transform(
            (2 * half,) * 2, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR
        )
        ink = np.asarray(pixels).reshape(32, 8, 32, 8).mean(axis=(1, 3))
        np.testing.assert_allclose(drawn.view(32, 32), 1 - 2 * ink, atol=0.15)


def test_random_poses_are_mirrored_in_half_the_cases_and_else_normal():
    poses = random_poses(5000, seeded_by(1))
    mirror, *numbers = poses.T
    assert (mirror.abs() == 1).all() and abs(mirror.mean()) < 0.05
    assert all(kstest(z, "norm").pvalue > 0.01 for z in numbers)
    assert (np.corrcoef(poses.T) - np.eye(6)).max() < 0.06


def test_pictures_are_measured_over_all_their_pixels():
    """By scipy; of the pose error, see below."""
    faces = dataset("pictures")
    faces = replace(faces, fitted=2, reference=faces.reference[:60])
    drawn = torch.cat([faces.data[:10], faces.fresh[:13], faces.draw(20, 0)])
    x, those, axes = (z.double().numpy() for z in (drawn, faces.reference, faces.axes))
    closer = cdist(x, faces.data).min(axis=1) < cdist(x, faces.fresh).min(axis=1)
    assert closer[:10].all() and not closer[10:23].any() and 10 < closer.sum() < 30
    variance, of_those = (z.var(axis=0, ddof=1).sum() for z in (x, those))
    energy = 2 * cdist(x, those).mean() - pdist(x).mean() - pdist(those).mean()
    distance = frechet_by_scipy(x @ axes, those @ axes)
    expected = variance / of_those, energy, distance, 100 * closer.mean()
    assert measured(faces, drawn)[1:] == pytest.approx(expected, rel=1e-3)


def test_known_poses_are_found():
    """And not put off by what is drawn over them, which is what is left."""
    faces, poses = dataset("pictures"), random_poses(10, seeded_by(40))
    drawn = posed(faces.drawing, affine(poses))
    for size in (0, 0.3):
        over = size * torch.randn(drawn.shape, generator=seeded_by(41))
        found, left = faces.fit_poses(drawn + over)
        assert torch.equal(found[:, 0], poses[:, 0])
        torch.testing.assert_close(found, poses, rtol=0, atol=size or 0.05)
        expected = over.square().mean(dim=1).sqrt()
        torch.testing.assert_close(left, expected, rtol=0.05, atol=0 if size else 0.02)
    # A square of ink where there was paper, in all that are told to be measured.
    drawn.view(-1, 32, 32)[:5, :8, :8] = -1
    error = next(m.of for m in faces.measures if m.name == "pose error")
    one, both = (error(replace(faces, fitted=count), drawn) for count in (5, 10))
    assert one > 0.2 and both < one


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_posterior_of_a_linear_picture_has_a_closed_form(sigma):
    """Of x_0 = A z, z from N(0, I): A (1 + A^T A / sigma^2)^-1 A^T; mirrored or not."""
    matrix, generator = double(40, 5, seed=1).float(), seeded_by(2)
    inverse = (torch.eye(5) + matrix.T @ matrix / sigma**2).inverse()
    expected = (matrix @ inverse @ matrix.T).diagonal().mean().item()
    got = []
    for pose in random_poses(60, generator):
        y = matrix @ pose[1:] + sigma * torch.randn(40, generator=generator)
        of = (lambda poses: poses[:, 1:] @ matrix.T), pose, y, sigma, generator
        got.append(posterior_variance(*of))
    variance, draws = torch.tensor(got).unbind(dim=1)
    assert variance.mean().item() == pytest.approx(expected, rel=0.05)
    assert 50 < draws.median() < 400


@pytest.mark.parametrize("count", [16, 2])
def test_frechet_of_pictures_is_that_of_the_principal_components(count):
    """Of a shift along a component all is seen, of one along another nothing."""
    faces = dataset("pictures")
    axes = faces.axes if count == 16 else principal(faces.reference, count)
    _, by_size = np.linalg.eigh(np.cov(faces.reference.T.double()))
    for k, seen in ((0, 25.0), (count - 1, 25.0), (count, 0.0), (500, 0.0)):
        shift = torch.from_numpy(by_size[:, -1 - k]).to(axes)
        got = frechet((faces.reference + 5 * shift) @ axes, faces.reference @ axes)
        assert got == pytest.approx(seen, abs=0.05)


@pytest.mark.parametrize("name", ["points", "pictures"])
def test_the_gaussian_reference_has_the_moments_of_the_data(name):
    """By every seed, also those by which the training poses were drawn."""
    data = dataset(name).data
    for seed in range(3):
        x = REFERENCES["gaussian"](dataset(name), 2000, seed)
        assert variance_ratio(x, data) == pytest.approx(1, abs=0.05)
        off = (x.mean(dim=0) - data.mean(dim=0)).square().sum()
        assert off / data.var(dim=0).sum() < 0.01
