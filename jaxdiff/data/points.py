"""Points of the plane: sets whose density is known exactly.

Each set is a mixture of round Gaussians of one width, so that its score at every noise level is a formula
(`jaxdiff.exact.MixtureDenoiser`). The classic sets that are curves or areas are mixtures too: their components stand
closer than their width, and a learned field can be compared with the true one at every point.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.arrays import ArraySource
from jaxdiff.data.sources import DataError

SIZES = {"train": 65_536, "test": 8_192}


class PointMixture(NamedTuple):
    """A mixture of K round Gaussians in the plane.

    Attributes:
      means: ``(K, 2)``, about in [-1, 1].
      std: of every component.
      weights: ``(K,)``, summing to 1.
    """

    means: NDArray[np.float64]
    std: float
    weights: NDArray[np.float64]

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.float32]:
        """``(n, 2)`` points."""
        which = rng.choice(len(self.weights), n, p=self.weights)
        return (self.means[which] + self.std * rng.standard_normal((n, 2))).astype(np.float32)


def _equal(means: NDArray[np.float64], std: float) -> PointMixture:
    return PointMixture(means, std, np.full(len(means), 1.0 / len(means)))


def _circle(radius: float, k: int, centre: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    angle = 2 * math.pi * np.arange(k) / k
    return np.asarray(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _two_gaussians() -> PointMixture:
    # of unequal weight, which Langevin dynamics without annealing does not see (Song & Ermon 2019, section 3.2.2)
    return PointMixture(np.array([[-0.6, -0.6], [0.6, 0.6]]), 0.15, np.array([0.8, 0.2]))


def _grid() -> PointMixture:
    place = np.linspace(-0.8, 0.8, 5)
    return _equal(np.stack(np.meshgrid(place, place), axis=-1).reshape(-1, 2), 0.05)


def _rings() -> PointMixture:
    return _equal(np.concatenate([_circle(0.4, 40), _circle(0.85, 80)]), 0.05)


def _moons() -> PointMixture:
    angle = math.pi * (np.arange(40) + 0.5) / 40
    arc = 0.55 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    shift = np.array([[0.28, 0.15]])
    return _equal(np.concatenate([arc - shift, shift - arc]), 0.06)


def _spiral() -> PointMixture:
    # evenly along the curve radius = angle: the arc length grows about as the square of the angle
    angle = 3 * math.pi * np.sqrt(np.linspace(0.1, 1.0, 100))
    return _equal((0.9 * angle / angle[-1])[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.05)


def _pinwheel() -> PointMixture:
    radius = np.linspace(0.15, 0.9, 16)
    arms = [2 * math.pi * arm / 5 + 1.2 * radius for arm in range(5)]
    return _equal(np.concatenate([radius[:, None] * np.stack([np.cos(a), np.sin(a)], axis=1) for a in arms]), 0.06)


def _checkerboard() -> PointMixture:
    side, within = 0.5, (np.arange(6) + 0.5) / 6
    inside = side * np.stack(np.meshgrid(within, within), axis=-1).reshape(-1, 2)
    corners = [(i * side - 1.0, j * side - 1.0) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    return _equal(np.concatenate([inside + np.asarray(corner) for corner in corners]), 0.05)


POINTS: dict[str, Callable[[], PointMixture]] = {
    "eight_gaussians": lambda: _equal(_circle(0.8, 8), 0.08),
    "two_gaussians": _two_gaussians,
    "grid": _grid,
    "moons": _moons,
    "rings": _rings,
    "spiral": _spiral,
    "pinwheel": _pinwheel,
    "checkerboard": _checkerboard,
}


def point_mixture(name: str) -> PointMixture:
    """The mixture behind a set of points.

    Raises:
      DataError: there is no such set.

    >>> mixture = point_mixture("eight_gaussians")
    >>> mixture.means.shape, mixture.std
    ((8, 2), 0.08)
    """
    if name not in POINTS:
        raise DataError(f"points: there is no set {name!r}; there are {', '.join(POINTS)}")
    return POINTS[name]()


def open_points(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
    conditions: Sequence[str] | None = None,
    text: str | None = None,
) -> ArraySource:
    """Points drawn from a mixture, always the same ones: 65,536 for training, 8,192 for tests.

    Args:
      name: eight_gaussians, two_gaussians, grid, moons, rings, spiral, pinwheel or checkerboard.
      path: there is none to give.
      split: "train" or "test".
      image_size, num_classes, resize: are of images; points have none.
      skip_bad: no point is bad.
      channels: coordinates, 2 or None.
      conditions, text: points have none.

    Raises:
      DataError: there is no such set or split, or an option of images is given.

    >>> source = open_points("moons")
    >>> len(source), source.spec["x"]
    (65536, Spec(shape=(2,), dtype='float32', low=None, high=None, null=None))
    """
    if path is not None or image_size is not None or num_classes is not None or resize or text is not None:
        raise DataError(
            f"points:{name}: points lie in no file and have no size, classes or text; leave path, image_size, resize, "
            "text and the network's num_classes out"
        )
    if channels not in (None, 2):
        raise DataError(f"points:{name}: points have 2 coordinates, got channels {channels}; set in_channels=2")
    if split not in SIZES:
        raise DataError(f"points:{name}: no split {split!r}; there are {', '.join(SIZES)}")
    rng = np.random.default_rng([list(SIZES).index(split), *name.encode()])
    return ArraySource({"x": point_mixture(name).draw(rng, SIZES[split])}, name=f"points:{name} ({split})")
