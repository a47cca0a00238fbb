"""The comparison on pictures: poses, U-Net, measures, inpainting, command."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.spatial import cKDTree

from comparison import training
from comparison.figures import mosaic
from comparison.laws import HOMER, pictures, posed, random_poses
from comparison.measures import frechet, nearest, principal
from comparison.networks import Attention, UNet
from comparison.objectives import simple, uniform_level
from comparison.predictors import Exact, blurred, from_velocity, velocity
from comparison.processes import cosine, linear, respaced, ve_sde
from comparison.samplers import ddim, ddpm, inpaint, last
from comparison.training import train
from tests.common import picture, seeded_by, white

IDENTITY = torch.eye(2, 3)[None]


@pytest.fixture(scope="module")
def law():
    return pictures()


# Poses


def test_the_law_holds_three_draws(law):
    for data in law[:3]:
        assert data.shape == (2000, 1024) and data.dtype == torch.float32
        assert data.min() >= -1 and data.max() == 1
        assert data.min(dim=1).values.max() < 0  # there is ink in each
        assert len(data.unique(dim=0)) == 2000
    assert not torch.equal(law.data[0], law.fresh[0])
    assert not torch.equal(law.fresh[0], law.reference[0])


def test_the_identity_is_the_drawing(law):
    """Thickened by 7 pixels each way at 600 x 600, and reduced by averaging."""
    with Image.open(HOMER) as image:
        ink = np.asarray(image.convert("L")) <= 50
    thick = np.zeros_like(ink)
    for row, column in np.argwhere(ink):
        thick[max(0, row - 7) : row + 8, max(0, column - 7) : column + 8] = True
    cells = np.asarray(
        Image.fromarray(np.uint8(255 * thick)).resize((32, 32), Image.Resampling.BOX)
    )
    drawn = posed(law.drawing, IDENTITY).view(32, 32).numpy()
    np.testing.assert_allclose(drawn, 1 - cells / 127.5, atol=0.1)


def test_a_mirrored_pose_is_mirrored(law):
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    drawn = posed(law.drawing, IDENTITY).view(32, 32)
    mirrored = posed(law.drawing, mirror).view(32, 32)
    torch.testing.assert_close(mirrored, drawn.flip(1), rtol=0, atol=1e-4)
    assert not torch.allclose(mirrored, drawn, atol=0.5)


def test_a_pose_moves_the_ink_and_leaves_paper():
    """A dot, right of the middle and above it, by shift, turn, size and shear."""
    drawing = torch.zeros(128, 128)
    drawing[28:36, 92:100] = 1  # its middle is at x = 0.5, y = -0.5, up being negative
    corner = torch.tensor([0.5, -0.5])
    quarter = torch.tensor([[0.0, -1], [1, 0]])
    for matrix, shift in (
        (torch.eye(2), [-0.25, 0.5]),
        (quarter, [0, 0]),
        (1.4 * torch.eye(2), [0, 0]),
        (torch.tensor([[1, 0.5], [0, 1]]), [0, 0]),
    ):
        shift = torch.tensor(shift)[:, None]
        drawn = posed(drawing, torch.cat([matrix, shift], dim=1)[None]).view(16, 16)
        ink = (1 - drawn) / 2
        place = (torch.arange(16) + 0.5) / 8 - 1
        middle = torch.stack([(ink.sum(0) * place).sum(), (ink.sum(1) * place).sum()])
        expected = matrix @ corner + shift[:, 0]
        torch.testing.assert_close(middle / ink.sum(), expected, rtol=0, atol=0.02)
        assert ink.sum().item() == pytest.approx(matrix.det().item(), abs=0.05)
    away = torch.tensor([[[1.0, 0, 3], [0, 1, 0]]])
    assert (posed(torch.ones(128, 128), away) == 1).all()


def test_poses_have_the_moments_they_should():
    count = 20_000
    poses = random_poses(count, seeded_by(1)).double()
    assert poses.shape == (count, 2, 3)
    mirrored = poses[:, :, :2].det() < 0
    error = 5 / math.sqrt(count)
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=error / 2)
    size = poses[:, :, :2].det().abs().sqrt().log()
    assert size.mean().item() == pytest.approx(-math.log(1.25), abs=0.12 * error)
    assert size.std().item() == pytest.approx(0.12, rel=error)
    # The first column is the mirrored x axis, turned.
    sign = 1 - 2 * mirrored.double()
    angle = torch.atan2(sign * poses[:, 1, 0], sign * poses[:, 0, 0])
    assert math.degrees(angle.std()) == pytest.approx(12, rel=error)
    assert angle.mean().item() == pytest.approx(0, abs=0.21 * error)
    turned_back = torch.einsum(
        "nij,nj->ni",
        torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(
            -1, 2, 2
        ),
        poses[:, :, 1],
    )
    shear = turned_back[:, 0] / size.exp()
    assert shear.std().item() == pytest.approx(0.08, rel=error)
    torch.testing.assert_close(turned_back[:, 1], size.exp(), rtol=1e-5, atol=0)
    assert poses[:, :, 2].std(dim=0).tolist() == pytest.approx([1 / 12] * 2, rel=error)


def test_most_poses_lie_wholly_inside(law):
    rows, columns = (law.drawing > 0).nonzero().T
    half = law.drawing.shape[0] / 2
    ink = torch.stack([(columns + 0.5) / half - 1, (rows + 0.5) / half - 1])
    poses = random_poses(2000, seeded_by(0))
    places = poses[:, :, :2] @ ink + poses[:, :, 2:]
    assert (places.abs().amax(dim=(1, 2)) < 1).double().mean() > 0.8


def test_poses_are_seeded(law):
    state = torch.random.get_rng_state()
    again = pictures(count=20)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again.data, pictures(count=20).data)
    one, other = law.draw(20, 1), law.draw(20, 2)
    assert torch.equal(one, law.draw(20, 1)) and not torch.equal(one, other)
    assert nearest(one, torch.cat(law[:3]))[0].min() > 1


@pytest.mark.parametrize("side", [16, 24])
def test_a_picture_has_the_side_asked_for(side):
    law = pictures(side=side, count=3)
    assert law.data.shape == (3, side**2) and law.side == side
    assert law.data.min() < -0.2


def test_a_drawing_of_the_users(tmp_path):
    """Thin chalk in a corner of a board: a law of its own, once fitted."""
    board = Image.new("L", (900, 500), 30)
    ImageDraw.Draw(board).ellipse((40, 40, 240, 200), outline=220, width=3)
    board.save(tmp_path / "board.png")
    with pytest.warns(UserWarning, match="fit: light on dark"):
        law = pictures(tmp_path / "board.png", fit=True, count=5)
    assert law.picture != pictures(count=5).picture
    ring = posed(law.drawing, IDENTITY).view(32, 32)
    assert ring[16, 16] == 1 and ring[16].min() < 0 and ring[:, 16].min() < 0
    with open(tmp_path / "board.png", "rb") as file, pytest.warns(UserWarning):
        assert pictures(file, fit=True, count=5).picture == law.picture


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no picture", "cannot be read as a picture"),
        (picture(white()).read(), "no pixel is as dark as 50 .the darkest is 255"),
    ],
)
def test_bad_pictures(tmp_path, content, message):
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        pictures(file)


# The U-Net


def a_batch(side=16, count=3):
    x = torch.randn(count, side**2, generator=seeded_by(2))
    signal = torch.tensor([[0.9], [0.5], [0.1]])[:count]
    return x, signal, (1 - signal**2).sqrt()


def random_network(*args):
    """A U-Net none of whose weights is 0, as those of some convolutions are at first."""
    network = UNet(*args)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=seeded_by(3))
    return network


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("channels, blocks", [((16, 32, 64), 1), ((8, 16), 2)])
def test_unet_keeps_the_shape(side, channels, blocks):
    network, batch = random_network(channels, blocks), a_batch(side)
    output = network(*batch)
    assert output.shape == batch[0].shape and output.isfinite().all()
    x, signal, noise = batch
    one_level = network(x, signal[0, 0], noise[0, 0])
    rows = network(x, signal[:1].expand(3, 1), noise[:1].expand(3, 1))
    torch.testing.assert_close(one_level, rows)


def test_every_weight_has_a_gradient():
    network = random_network()
    network(*a_batch(32)).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_a_picture_does_not_see_its_neighbours():
    network, (x, signal, noise) = random_network(), a_batch(32)
    output = network(x, signal, noise)
    for k in range(3):
        alone = network(*(part[k : k + 1] for part in (x, signal, noise)))
        torch.testing.assert_close(alone, output[k : k + 1], rtol=1e-3, atol=1e-4)


def test_attention_is_a_softmax_between_pixels():
    attention, x = Attention(8, 4), torch.randn(2, 8, 3, 5, generator=seeded_by(15))
    normed = attention.norm(x).flatten(2).transpose(1, 2)
    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    query, key, value = (normed @ weight[:, :, 0, 0].T + bias).chunk(3, dim=2)
    shares = (query @ key.transpose(1, 2) / math.sqrt(8)).softmax(dim=2)
    mixed = shares @ value @ attention.out.weight[:, :, 0, 0].T + attention.out.bias
    expected = x.flatten(2).transpose(1, 2) + mixed
    got = attention(x, None).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_unet_has_attention_at_the_lowest_resolution():
    network, seen = random_network(), []
    (attention,) = (m for m in network.modules() if isinstance(m, Attention))
    attention.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    network(*a_batch(32))
    assert seen == [(3, 64, 4, 4)]


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with bfloat16"
)
def test_without_gradients_the_same_comes_in_bfloat16():
    network, batch = random_network(), a_batch(32)
    exact = network(*batch)
    with torch.no_grad():
        rounded = network(*batch)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    off = (rounded - exact).square().mean() / exact.square().mean()
    assert off.sqrt() < 0.03


def test_unet_sees_the_scaled_state_and_the_ratio_alone():
    network, (x, signal, noise) = random_network(), a_batch()
    output = network(x, signal, noise)
    same = network(7 * x, 7 * signal, 7 * noise)
    torch.testing.assert_close(same, output, rtol=1e-3, atol=1e-4)
    for other in (network(x, signal, 1.2 * noise), network(x + 0.1, signal, noise)):
        assert ((other - output).abs().amax(dim=1) > 1e-3).all()


def test_the_seed_makes_the_unet():
    state = torch.random.get_rng_state()
    one, same, other = (UNet(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_two_pictures_are_learned_by_heart():
    law = pictures(side=16, count=2)
    network, process = UNet((8, 16)), respaced(cosine(), 20)
    objective = simple(uniform_level(cosine()), velocity)
    options = {"steps": 400, "batch_size": 16, "lr": 1e-2, "average": 0.98}
    losses = train(network, objective, law.data, **options)
    assert losses[-50:].mean() < 0.2 * losses[:5].mean()
    network.requires_grad_(False)
    x_T = torch.randn(20, 256, generator=seeded_by(4))
    drawn = last(ddim(from_velocity(network), process, x_T))
    off, which = nearest(drawn, law.data)
    assert (off / math.sqrt(256)).median() < 0.2
    assert set(which.tolist()) == {0, 1}


def test_unet_weights_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    law = pictures(side=16, count=4)
    network = training.fit("pictures", law, steps=1, seed=3)
    training.save("pictures", network, law, steps=1, seed=3)
    back = training.load("pictures", law, steps=1, seed=3)
    batch = a_batch()
    assert torch.equal(back(*batch), network(*batch))
    assert not any(p.requires_grad for p in back.parameters())
    assert training.load("pictures", pictures(count=4), steps=1, seed=3) is None
    assert training.load("pictures", law, steps=2, seed=3) is None
    assert training.load("pictures", law, steps=1, seed=4) is None
    fewer = pictures(side=16, count=3)
    assert training.load("pictures", fewer, steps=1, seed=3) is None


# Measures


def test_nearest_is_that_of_a_tree():
    these, those = torch.randn(2, 60, 5, generator=seeded_by(6)).double()
    distances, index = nearest(these, those)
    expected = cKDTree(those.numpy()).query(these.numpy())
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    assert index.tolist() == expected[1].tolist()


def test_distances_are_not_those_of_products():
    """Which in float32, far from the origin, would lose what is between the points."""
    these, those = 1000 + torch.randn(2, 60, 5, generator=seeded_by(6))
    expected = nearest(these.double(), those.double())[0].float()
    torch.testing.assert_close(nearest(these, those)[0], expected, rtol=1e-4, atol=0)


def test_principal_components_are_those_of_numpy():
    scales = torch.tensor([0.1, 3.0, 0.5, 2.0, 1.0]).double()
    data = 7 + scales * torch.randn(500, 5, generator=seeded_by(7)).double()
    axes = principal(data, 2)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2).double())
    _, _, expected = np.linalg.svd((data - data.mean(0)).numpy(), full_matrices=False)
    overlap = (axes.T @ torch.from_numpy(expected[:2].T)).abs()
    torch.testing.assert_close(overlap, torch.eye(2).double().flip(0))


def test_measures_of_known_samples(law):
    copies = law.measure(law.data[:300])
    assert copies[1] < 0.05 and copies[3] == 100
    other_copies = law.measure(law.fresh[:300])
    assert other_copies[2] < 0.05 and other_copies[3] == 0
    assert copies[2] == pytest.approx(other_copies[1], rel=0.1)
    drawn = [law.measure(law.draw(300, seed)) for seed in range(5)]
    frechets, to_training, to_fresh, nearer = zip(*drawn)
    assert max(frechets) < 2.7
    assert np.mean(to_training) == pytest.approx(np.mean(to_fresh), rel=0.05)
    assert np.mean(nearer) == pytest.approx(50, abs=5)
    noise = law.measure(torch.randn(300, 1024, generator=seeded_by(16)))
    assert noise[0] > 20 * max(frechets) and noise[1] > 2 * max(to_training)
    assert all(map(math.isnan, law.measure(torch.full((9, 1024), math.nan))))


def test_frechet_is_that_of_the_components(law):
    """Of a shift along a component all is seen, of one along another nothing."""
    _, _, axes = torch.linalg.svd(
        law.reference - law.reference.mean(0), full_matrices=False
    )
    for k, seen in ((0, 25.0), (15, 25.0), (16, 0.0), (500, 0.0)):
        shifted = (law.reference + 5 * axes[k]) @ law.axes
        got = frechet(shifted, law.reference @ law.axes)
        assert got == pytest.approx(seen, abs=0.05)
    few = law.fresh[:50]
    plain = frechet(few @ axes[:16].T, law.reference @ axes[:16].T)
    assert law.measure(few)[0] == pytest.approx(plain, rel=1e-3)


# Inpainting


def test_what_is_given_stays_and_the_rest_fits():
    """Two points: where x is given, y follows; of four corners, y is either, half each."""
    process, x_T = respaced(cosine(), 50), torch.randn(2000, 2, generator=seeded_by(8))
    known, given = torch.tensor([-1.0, 7]), torch.tensor([True, False])
    pair = torch.tensor([[1.0, 1], [-1, -1]])
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])

    def fill(data):
        options = {"known": known, "given": given, "generator": seeded_by(9)}
        return [*inpaint(Exact(data), process, x_T, **options)]

    for data, share in ((pair, 0.0), (corners, 0.5)):
        states = fill(data)
        assert len(states) == 51 and torch.equal(states[0], x_T)
        assert (states[-1][:, 0] == -1).all()
        y = states[-1][:, 1]
        assert (y.abs() - 1).abs().max() < 0.01
        assert (y > 0).double().mean().item() == pytest.approx(share, abs=0.06)
        assert torch.equal(fill(data)[-1], states[-1])


def test_what_does_not_depend_on_the_given_is_drawn_as_by_ddpm():
    """Independent coordinates: the mean and the variance are DDPM's with beta~."""
    gaussian = blurred(Exact(torch.tensor([[0.5, -1.0]])), 0.3)
    process = respaced(linear(), 20)
    x_T = torch.randn(20_000, 2, generator=seeded_by(10))
    given = torch.tensor([False, True])
    filled = last(
        inpaint(
            gaussian,
            process,
            x_T,
            torch.tensor([0.0, 5.0]),
            given,
            generator=seeded_by(11),
        )
    )
    drawn = last(
        ddpm(gaussian, process, x_T, variance="posterior", generator=seeded_by(12))
    )
    error = 5 * drawn[:, 0].std().item() / math.sqrt(20_000)
    assert filled[:, 0].mean().item() == pytest.approx(
        drawn[:, 0].mean().item(), abs=2 * error
    )
    assert filled[:, 0].std().item() == pytest.approx(
        drawn[:, 0].std().item(), abs=2 * error
    )
    assert (filled[:, 1] == 5).all()


def test_inpainting_noises_what_is_given():
    """At every level the predictor sees the given part at that level's signal and noise."""
    process, seen = respaced(linear(), 6), []

    def predictor(x_t, signal, noise):
        seen.append((x_t[:, 0], signal, noise))
        return torch.zeros_like(x_t)

    known, given = torch.tensor([3.0, 0]), torch.tensor([True, False])
    x_T = torch.randn(50_000, 2, generator=seeded_by(13))
    last(inpaint(predictor, process, x_T, known, given, generator=seeded_by(14)))
    assert len(seen) == 6
    for x, signal, noise in seen:
        error = 5 * noise.item() / math.sqrt(50_000)
        assert x.mean().item() == pytest.approx(3 * signal.item(), abs=error)
        assert x.std().item() == pytest.approx(noise.item(), abs=error)


def test_inpainting_needs_a_variance_preserving_process():
    with pytest.raises(ValueError, match="variance-preserving"):
        last(inpaint(Exact(torch.zeros(1, 2)), ve_sde(), *torch.zeros(3, 1, 2)))


# What one looks at


def test_a_mosaic_holds_each_picture():
    x = torch.linspace(-1.5, 1.5, 5)[:, None].expand(5, 16)
    grid = mosaic(x, 3, gap=2, scale=2)
    assert grid.shape == (24, 36) and grid.dtype == np.uint8
    assert [grid[4, 4], grid[4, 16], grid[4, 28], grid[16, 4]] == [0, 32, 128, 223]
    assert grid[16, 16] == 255 and grid[16, 28] == grid[0, 0] == 190
