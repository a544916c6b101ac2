"""Grey pictures and their outlines, as the condition of a ControlNet (`jaxdiff.networks.control`).

With g in [0, 1] a pixel's ink, u = (1, 2, 1)/4 and v = (-1, 0, 1), Sobel's operator (Sobel & Feldman 1968) is

    e = min(1, sqrt((u^T v * g)^2 + (v^T u * g)^2))                                                (1)

so that a straight edge from 0 to 1 has e = 1 on both of its sides.
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
class Outlines:
    """The codec of uint8 grey pictures; `Images` does all but the condition.

    `encode` makes the condition ``"control"`` ``(B, H, W, 1)``, the outlines of the pictures, from 0 to 1.

    Args:
      shape: (H, W, 1).

    Raises:
      ValueError: a shape of other than one channel.

    >>> bar = np.zeros((1, 8, 8, 1), np.uint8)
    >>> bar[:, :, 4:] = 255
    >>> Outlines((8, 8, 1)).encode({"x": bar})["control"][0, 3, :, 0].tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """

    shape: tuple[int, int, int] = field(pytree_node=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self._images.shape[2] != 1:
            raise ValueError(f"shape: outlines are of grey pictures (H, W, 1), got {self.shape}")

    @property
    def _images(self) -> Images:
        return Images(self.shape)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """.png and .npz."""
        return self._images.suffixes

    @property
    def spec(self) -> Specs:
        """``"x"`` in [-1, 1], and ``"control"``."""
        return {**self._images.spec, "control": Spec(self.shape, "float32", 0.0, 1.0)}

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Records ``{"x": uint8 (B, H, W, 1), ...}`` as ``{"x": float32 in [-1, 1], "control": (B, H, W, 1), ...}``."""
        batch = self._images.encode(passed_on(record, {"control": self.spec["control"]}), key)
        return {**batch, "control": outline(0.5 * (batch["x"] + 1.0))}

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bytes of samples ``(B, H, W, 1)``."""
        return self._images.decode(x0, passed_on(cond, self.spec))

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """A grid of the images."""
        return self._images.picture(stored, columns)

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """A grid (.png), or the arrays by name (.npz)."""
        self._images.save(path, stored, columns)


def outline(ink: Array) -> Array:
    """Equation (1); beyond the border lies what is at it.

    Args:
      ink: ``(B, H, W, C)`` from 0 to 1.

    >>> outline(jnp.ones((1, 4, 4, 1))).sum().item()
    0.0
    """
    g = jnp.pad(ink, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (g[:, :-2] + 2 * g[:, 1:-1] + g[:, 2:]) / 4
    columns = (g[:, :, :-2] + 2 * g[:, :, 1:-1] + g[:, :, 2:]) / 4
    across, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    return jnp.minimum(jnp.sqrt(jnp.square(across) + jnp.square(down)), 1.0)
