"""Points: vectors of real numbers that a network sees as they are stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from jaxdiff.codecs.base import Stored, passed_on, save_npz, save_png, saved_as
from jaxdiff.record import field, record
from jaxdiff.spec import Spec, Specs

PAPER, DOTS = (255, 255, 255), (31, 90, 160)
FINER = 2  # drawn larger by this factor, then reduced: smooth edges


@record
class Points:
    """The codec of points: the identity.

    Args:
      shape: (D,); pictures are of D = 2.

    >>> codec = Points()
    >>> codec.decode(codec.encode({"x": np.float32([[0.5, -1.0]])})["x"])["x"].tolist()
    [[0.5, -1.0]]
    """

    shape: tuple[int, ...] = field(default=(2,), pytree_node=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """.npz; and .png of points of the plane."""
        return (".png", ".npz") if self.shape == (2,) else (".npz",)

    @property
    def spec(self) -> Specs:
        """``"x"``, without bounds."""
        return {"x": Spec(self.shape, "float32")}

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """The same, float32."""
        return {**record, "x": jnp.asarray(record["x"], jnp.float32)}

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same."""
        return {"x": x0, **passed_on(cond, self.spec)}

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """A scatter plot of all points on [-1.3, 1.3]^2."""
        return scatter(stored["x"])

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """A scatter plot (.png), or the arrays by name (.npz)."""
        if saved_as(path, self.suffixes, f"points {self.shape}") == ".npz":
            save_npz(path, stored)
        else:
            save_png(path, self.picture(stored))


def scatter(points: ArrayLike, size: int = 480, half: float = 1.3) -> NDArray[np.uint8]:
    """Points ``(N, 2)`` as dots on the square [-half, half]^2: uint8 ``(size, size, 3)``. Those that are not finite are
    left out.

    Raises:
      ValueError: points of other than two coordinates.

    >>> scatter(np.zeros((1, 2)), 20).shape
    (20, 20, 3)
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"a scatter plot is of points (N, 2), got {points.shape}; save them as .npz")
    picture = Image.new("RGB", (FINER * size, FINER * size), PAPER)
    draw_dots(picture, points / half, DOTS, FINER * size / 200)
    return reduced(picture, size)


def draw_dots(picture: Image.Image, points: NDArray[Any], colour: tuple[int, int, int], radius: float) -> None:
    """Draws points of [-1, 1]^2 into a square picture."""
    draw = ImageDraw.Draw(picture)
    for x, y in pixels_of(points[np.isfinite(points).all(axis=1)], picture):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], colour)


def pixels_of(points: NDArray[Any], picture: Image.Image) -> NDArray[Any]:
    """Places in a square picture of points of [-1, 1]^2, the second coordinate upwards."""
    return (np.asarray(points) * [1, -1] + 1) / 2 * picture.width


def reduced(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """A picture drawn larger, at its size."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))
