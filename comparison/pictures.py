"""Pictures of the drawing in random poses as a data set."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from comparison import levels, samplers
from comparison.dataset import Measure, Method, Row
from comparison.denoisers import posterior
from comparison.figures import mosaic, plot_mosaics
from comparison.levels import COSINE, LINEAR, respaced
from comparison.measures import energy, frechet, nearest, principal, variance_ratio
from comparison.points import HOMER
from utils import ImageFile, read_square

CANVAS, DARK = 600, 50  # pixels of the square where ink is thickened; the lightest ink
FINER = 8  # times finer than its picture a pose is drawn, and averaged


def _pose_error(those: "Pictures", x: Tensor) -> float:
    return those.fit_poses(x[: those.fitted])[1].median().item()


def _data(of: Callable[[Tensor, Tensor], float]) -> Callable[..., float]:
    return lambda those, x: of(x, those.reference)


def _frechet(those: "Pictures", x: Tensor) -> float:
    return frechet(x @ those.axes, those.reference @ those.axes)


def _closer(those: "Pictures", x: Tensor) -> float:
    to_training, to_fresh = (nearest(x, y)[0] for y in (those.data, those.fresh))
    return 100 * (to_training < to_fresh).double().mean().item()


MEASURES: tuple[Measure, ...] = (
    Measure("pose error", 3, _pose_error, "RMS from the nearest pose, lower is better"),
    Measure("variance ratio", 2, _data(variance_ratio), "samples over data, 1 is best"),
    Measure("energy distance", 3, _data(energy), "of all pixels, lower is better"),
    Measure("frechet", 2, _frechet, "squared, of 16 components, lower is better"),
    Measure("closer to training", 0, _closer, "than to fresh ones, %, 50 is best"),
)
GREYS = (-1.0, 1.0)
# Where samplers start, far above the norm of the mean picture, 24, which the start lacks:
# from 20, even the exact denoiser draws too much variance.
LARGEST = 160.0
CUT_COSINE = COSINE[COSINE <= LARGEST]
_any = partial(Method, own="pictures", denoisers=("network",))
_slow = partial(_any, slow=True)
_exact_too = partial(Method, own="pictures", filmed=True)
_posterior = partial(samplers.ddpm, variance=posterior)
METHODS: tuple[Method, ...] = (
    _exact_too("ddim-cosine", "50", respaced(CUT_COSINE, 50), samplers.ddim),
    _any("ddim-cosine", "10", respaced(CUT_COSINE, 10), samplers.ddim),
    _any("ddpm-cosine", "250", respaced(CUT_COSINE, 250), samplers.ddpm, clip=GREYS),
    _any("ddpm-posterior", "250", respaced(CUT_COSINE, 250), _posterior, clip=GREYS),
    _any("heun", "18", levels.karras(LARGEST, 0.01), samplers.heun),
    _slow("ddpm-stale-alphas", "50", LINEAR, samplers.ddpm_stale_alphas, clip=GREYS),
    _slow("langevin", "10 x 100", levels.geometric(), samplers.langevin),
    _slow("ve-pc", "200", levels.geometric(200, 50.0), samplers.predictor_corrector),
)


@dataclass
class Pictures:
    """Pictures of a drawing in random poses: one distribution, drawn from three times.

    All are (n, side^2), row by row from the top: +1 is paper, -1 ink. Trained on are data;
    samples are compared with reference, whose principal components are axes, (side^2, 16).
    poses: of data, fresh and reference, (3, n, 6). drawing: what is posed, (F, F), from 0,
    paper, to 1, ink. picture: the SHA-256 of it and of n. fitted: how many samples' pose is.
    """

    data: Tensor
    fresh: Tensor
    reference: Tensor
    axes: Tensor
    poses: Tensor
    drawing: Tensor
    side: int
    picture: str
    fitted: int = 100
    samples: int = 300
    name, filmed = "pictures", 32
    measures, methods = MEASURES, METHODS

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw pictures by other seeds than those of the data."""
        generator = torch.Generator().manual_seed(1000 + int(seed))
        return self.at(random_poses(count, generator))

    def at(self, poses: Tensor) -> Tensor:  # (n, 6)
        return posed(self.drawing, affine(poses))

    def fit_poses(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pose nearest to each of m samples, (m, 6), and the root mean square,
        over pixels, of what it leaves of the sample, (m,).

        20 steps of Adam's on the five numbers, from the poses of the four reference pictures
        that are nearest, then 40 from the best. All is drawn half as fine.
        """
        drawing, finer = avg_pool2d(self.drawing[None], 2)[0], FINER // 2
        _, index = torch.cdist(samples, self.reference).topk(4, largest=False)
        poses = self.poses[2][index.cpu()]

        def unexplained(poses: Tensor) -> Tensor:
            drawn = posed(drawing, affine(poses.flatten(0, 1)), finer)
            drawn = drawn.view(*poses.shape[:2], -1)
            return (drawn - samples[:, None]).square().mean(dim=2).cpu()

        def descended(poses: Tensor, rates: list[float]) -> tuple[Tensor, Tensor]:
            mirror, numbers = poses[..., :1], poses[..., 1:].requires_grad_()
            optimizer = torch.optim.Adam([numbers])
            for rate in rates:
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                unexplained(torch.cat([mirror, numbers], dim=2)).sum().backward()
                optimizer.step()
            poses = torch.cat([mirror, numbers.detach()], dim=2)
            left, best = unexplained(poses).min(dim=1)
            return poses[range(len(poses)), best], left

        rates = torch.linspace(0.1, 0, 61)[:-1].tolist()
        poses, _ = descended(poses, rates[:20])
        poses, left = descended(poses[:, None], rates[20:])
        return poses, left.sqrt()

    def plot(self, rows: Sequence[Row]) -> Figure:
        """Draw samples of each row, and below each the nearest training picture."""
        parts, columns = {}, min(14, len(rows[0].samples))
        for row in rows:
            words = row.method, row.steps, row.denoiser
            title = " ".join(word for word in words if word != "-")
            title += "" if parts else "; below each sample the nearest training picture"
            x = row.samples[:columns]
            _, index = nearest(x, self.data)
            parts[title] = torch.cat([x, self.data[index]])
        return plot_mosaics(parts, columns)

    def sheets(self, shown: Sequence[dict[str, Tensor]]) -> list[Image.Image]:
        """Draw mosaics of eight columns side by side."""
        grids = ([mosaic(x, 8, scale=2) for x in parts.values()] for parts in shown)
        # Sixteen greys, the same in all frames, make a fifth of the file that 256 do.
        greys = (17 * np.rint(np.concatenate(g, axis=1) / 17) for g in grids)
        return [Image.fromarray(grey.astype(np.uint8)) for grey in greys]


def pictures(
    image: ImageFile = HOMER,
    device: torch.device | str = "cpu",
    *,
    fit: bool = False,
    side: int = 32,
    count: int = 2000,
) -> Pictures:
    """Return pictures of a drawing in random poses.

    Its ink is what is as dark as grey 50 on a square of 600 pixels a side (`read_square`).
    Strokes are thickened by 7 pixels each way, to be seen at a side of 32. Raises
    ValueError for an unreadable image or one without ink; a warning says what `fit` did.
    """
    grey, done = read_square(image, CANVAS, DARK, fit)
    if fit:
        warnings.warn(f"fit: {done}", stacklevel=2)
    ink = grey.point([255 * (v <= DARK) for v in range(256)])
    if not ink.getbbox():
        darkest = grey.getextrema()[0]
        message = f"no pixel is as dark as {DARK} (the darkest is {darkest}: try --fit)"
        raise ValueError(f"{image!s:.200}: {message}")
    thick = ink.filter(ImageFilter.MaxFilter(15))
    small = thick.resize((FINER * side, FINER * side), Image.Resampling.BOX)
    drawing = torch.from_numpy(np.asarray(small) / np.float32(255))
    digest = hashlib.sha256(drawing.numpy().tobytes() + b"%d" % count).hexdigest()
    drawing = drawing.to(device)
    generators = (torch.Generator().manual_seed(seed) for seed in range(3))
    poses = torch.stack([random_poses(count, generator) for generator in generators])
    data, fresh, reference = (posed(drawing, affine(some)) for some in poses)
    axes = principal(reference)
    return Pictures(data, fresh, reference, axes, poses, drawing, side, digest)


def random_poses(count: int, generator: torch.Generator | None) -> Tensor:
    """Draw poses, (count, 6), on the CPU: -1 if mirrored, as half are, or else 1, and five
    numbers of N(0, 1): shear, size, turn, and shift each way.
    """
    numbers = torch.randn(5, count, generator=generator)
    mirror = 1 - 2 * torch.randint(2, (1, count), generator=generator)
    return torch.cat([mirror, numbers]).T


def affine(poses: Tensor) -> Tensor:
    """Return poses, (n, 6), as maps of the drawing about its centre, (n, 2, 3), in half
    sides: mirrored, sheared by N(0, 0.08^2), scaled by exp(N(0, 0.12^2)) / 1.25, turned by
    N(0, (12 degrees)^2), and shifted each way by N(0, (1/24 of the side)^2), in this order.
    """
    mirror, *z = poses.T
    shear, size, angle = 0.08 * z[0], (0.12 * z[1]).exp() / 1.25, z[2] * torch.pi / 15
    cos, sin = size * angle.cos(), size * angle.sin()
    x = torch.stack([mirror * cos, shear * cos - sin, z[3] / 12], dim=1)
    y = torch.stack([mirror * sin, shear * sin + cos, z[4] / 12], dim=1)
    return torch.stack([x, y], dim=1)


def posed(drawing: Tensor, maps: Tensor, finer: int = FINER) -> Tensor:
    """Return pictures of a drawing, (F, F), by maps from the drawing to the picture, (n, 2,
    3): (n, (F / finer)^2), paper where nothing is mapped to. Differentiable in the maps.
    """
    last_row = torch.tensor([0.0, 0.0, 1.0]).expand(len(maps), 1, 3)
    back = torch.cat([maps, last_row], dim=1).inverse()[:, :2].to(drawing)
    parts = []
    for chunk in back.split(16):
        size = [len(chunk), 1, *drawing.shape]
        grid = affine_grid(chunk, size, align_corners=False)
        ink = grid_sample(drawing.expand(size), grid, align_corners=False)
        parts.append(1 - 2 * avg_pool2d(ink, finer).flatten(1))
    return torch.cat(parts)
