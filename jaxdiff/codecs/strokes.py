"""Grey pictures of writing, and what their strokes are like: the width and the slant, measured from the pixels.

With g in [0, 1] the ink of a pixel, x to the right and y upwards from the ink's centre of mass, and the central moments
mu_pq = sum x^p y^q g,

    slant   s = mu_11 / mu_02                                                                        (1)
    width   w = 2 A / P,    A = sum g,    P = sum |grad g|                                           (2)

(1): a shear x -> x + a y adds a to s, so s is what deslanting takes away (LeCun et al. 1998, "Gradient-Based Learning
Applied to Document Recognition", section III.A, by the moments of inertia); above 0 leans to the right, and s = 1 is 45
degrees. (2): A is the area, and P the perimeter, as the total variation of an indicator is (Fleming & Rishel 1960, the
coarea formula). A stroke of width w and length l has A = w l and P = 2 (w + l), so (2) is w/(1 + w/l); a closed ring
has P = 2 A/w, so there it is w. The darkness of the ink cancels, and a blurred edge counts as a sharp one.

Between pixels |grad g| is the mean of sqrt(dx^2 + dy^2) over the four choices of one-sided differences, which sees
strokes of one pixel and favours no diagonal. A stroke under 2 pixels is as wide as its pixels' blur: one of 1 reads 1.0
to 1.8.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.codecs.base import Stored, passed_on
from jaxdiff.codecs.images import Images
from jaxdiff.record import field, record
from jaxdiff.spec import Spec, Specs


@record
class Strokes:
    """The codec of uint8 grey pictures of bright writing on black, as MNIST's; `Images` does all but the condition.

    `encode` makes the condition ``"style"`` ``(B, 2)``: the strokes' width, pixels, and slant (`stroke_style`).

    Args:
      shape: (H, W, 1).

    Raises:
      ValueError: a shape of other than one channel.

    >>> bar = np.zeros((1, 16, 16, 1), np.uint8)
    >>> bar[:, :, 6:9] = 255
    >>> [round(float(v), 2) for v in Strokes((16, 16, 1)).encode({"x": bar})["style"][0]]
    [2.79, 0.0]
    """

    shape: tuple[int, int, int] = field(pytree_node=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self._images.shape[2] != 1:
            raise ValueError(f"shape: strokes are of grey pictures (H, W, 1), got {self.shape}")

    @property
    def _images(self) -> Images:
        return Images(self.shape)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """.png and .npz."""
        return self._images.suffixes

    @property
    def spec(self) -> Specs:
        """``"x"`` in [-1, 1], and ``"style"``."""
        return {**self._images.spec, "style": Spec((2,), "float32")}

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Records ``{"x": uint8 (B, H, W, 1), ...}`` as ``{"x": float32 in [-1, 1], "style": (B, 2), ...}``."""
        batch = self._images.encode(passed_on(record, {"style": self.spec["style"]}), key)
        return {**batch, "style": stroke_style(0.5 * (batch["x"][..., 0] + 1.0))}

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bytes of samples ``(B, H, W, 1)``."""
        return self._images.decode(x0, passed_on(cond, self.spec))

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """A grid of the pictures."""
        return self._images.picture(stored, columns)

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """A grid (.png), or the arrays by name (.npz)."""
        self._images.save(path, stored, columns)


def stroke_style(ink: Array) -> Array:
    """Width and slant of strokes, equations (2) and (1); zeros where there is no ink.

    Args:
      ink: ``(B, H, W)`` in [0, 1].

    Returns:
      ``(B, 2)``: width in pixels, slant as a tangent.

    >>> stroke_style(jnp.eye(9)[None, ::-1])[:, 1].tolist()  # a line at 45 degrees
    [1.0]
    """
    height, width = ink.shape[1:]
    x = jnp.arange(width, dtype=ink.dtype)[None, None, :]
    y = -jnp.arange(height, dtype=ink.dtype)[None, :, None]
    area = ink.sum(axis=(1, 2))

    def mean(value: Array) -> Array:
        return (value * ink).sum(axis=(1, 2), keepdims=True) / jnp.maximum(area, 1e-6)[:, None, None]

    x, y = x - mean(x), y - mean(y)
    upright = mean(y * y)[:, 0, 0]
    slant = jnp.where(upright > 0, mean(x * y)[:, 0, 0] / jnp.maximum(upright, 1e-6), 0.0)

    framed = jnp.pad(ink, ((0, 0), (1, 1), (1, 1)))  # what lies beyond is blank
    across, down = jnp.diff(framed, axis=2)[:, 1:-1], jnp.diff(framed, axis=1)[:, :, 1:-1]
    slopes = [
        jnp.sqrt(jnp.square(dx) + jnp.square(dy) + 1e-12)  # so that it has a derivative on blank paper
        for dx in (across[:, :, :-1], across[:, :, 1:])
        for dy in (down[:, :-1], down[:, 1:])
    ]
    outline = jnp.stack(slopes).sum(axis=(0, 2, 3)) / 4.0
    return jnp.stack([2.0 * area / jnp.maximum(outline, 1e-6), slant], axis=1)
