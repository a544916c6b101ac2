"""Inpainting: some of the numbers of a sample are measured, y = m x0.

m is 1 where x0 is known and 0 elsewhere, so that A = A' = A+ and the singular values are m itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.inverse.operators.base import Operator, Rows, check_image
from jaxdiff.record import record


@record
class Mask(Operator):
    """Equation y = m x0. What y is where m is 0 does not matter.

    Args:
      shape: of one x0.
      known: m, 1 where x0 is measured and 0 where it is not: ``(1, *shape)`` for all samples or ``(B, *shape)``, with
        one channel or all; also without the first axis. Data.

    Raises:
      ValueError: a mask of another shape, or of other numbers than 0 and 1.

    >>> mask = Mask((2, 2, 1), jnp.array([[1, 0], [0, 1]])[..., None])
    >>> mask(jnp.ones((1, 2, 2, 1)))[0, ..., 0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    known: Array
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known = self.known
        if jnp.ndim(known) == len(self.shape):
            known = jnp.asarray(known)[None]
        fits = jnp.ndim(known) == len(self.shape) + 1 and all(
            a in (b, 1) if axis == len(self.shape) - 1 else a == b
            for axis, (a, b) in enumerate(zip(known.shape[1:], self.shape, strict=True))
        )
        if not fits:
            raise ValueError(f"a mask is {self.shape}, or one such a sample, got {jnp.shape(self.known)}")
        if not isinstance(known, jax.core.Tracer) and not np.isin(np.asarray(known), (0, 1)).all():
            raise ValueError("a mask is 1 where x0 is known and 0 elsewhere, got other numbers: threshold it first")
        object.__setattr__(self, "known", jnp.asarray(known, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return self.known.astype(x.dtype) * x

    def adjoint(self, y: Array) -> Array:
        return self(y)

    def pinv(self, y: Array) -> Array:
        return self(y)

    @property
    def singular_values(self) -> Array:
        return self.known

    def to_spectrum(self, x: Array) -> Array:
        return x

    def from_spectrum(self, parts: Array) -> Array:
        return parts

    def seen(self, y: Array) -> Array:
        return self(y)

    def rows(self, cut: Rows) -> Mask:
        return self if self.known.shape[0] == 1 else dataclasses.replace(self, known=cut(self.known))


def random_mask(shape: tuple[int, ...], hidden: float = 0.4, seed: int = 0) -> Mask:
    """A random share of the pixels is hidden, all channels of a pixel alike.

    Args:
      shape: of one x0.
      hidden: the share, from 0 to 1.
      seed: of which pixels.

    Raises:
      ValueError: a share out of range.

    >>> float(random_mask((8, 8, 1), 0.25).known.sum())
    48.0
    """
    if not 0 <= hidden <= 1:
        raise ValueError(f"hidden is the share of pixels that are not measured, from 0 to 1, got {hidden}")
    sides = shape[:-1] if len(shape) > 1 else shape
    places = math.prod(sides)
    order = np.random.default_rng(seed).permutation(places)
    known = np.ones(places, np.float32)
    known[order[: round(hidden * places)]] = 0
    return Mask(shape, jnp.asarray(known.reshape(*sides, 1) if len(shape) > 1 else known))


def box_mask(shape: tuple[int, ...], top: int, left: int, height: int, width: int) -> Mask:
    """A rectangle of pixels is hidden.

    Args:
      shape: of one image.
      top, left: its first row and column.
      height, width: its size.

    Raises:
      ValueError: a rectangle that is not within the image.

    >>> box_mask((4, 4, 1), 1, 1, 2, 2).known[0, 1, :, 0].tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    rows, columns, _ = check_image(shape, "box_mask")
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise ValueError(
            f"the hidden rectangle is to lie within {rows}x{columns}, got rows {top} to {top + height} and columns "
            f"{left} to {left + width}"
        )
    known = np.ones((rows, columns, 1), np.float32)
    known[top : top + height, left : left + width] = 0
    return Mask(shape, jnp.asarray(known))


def outside(shape: tuple[int, ...], hidden: ArrayLike) -> Mask:
    """The mask of `Model.sample`, which is 1 where samples are drawn anew, as an operator.

    Args:
      shape: of one x0.
      hidden: 1 where x0 is not known; shaped as `Mask` takes it.

    >>> outside((3,), jnp.array([1, 0, 0])).known.tolist()
    [[0.0, 1.0, 1.0]]
    """
    return Mask(shape, 1 - jnp.asarray(hidden))
