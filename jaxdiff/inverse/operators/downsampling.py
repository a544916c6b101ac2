"""Down-sampling by a factor n: the mean of boxes, or a bicubic kernel.

Box. y is the mean of n x n pixels, so A' spreads y/n^2 over them and A A' = I/n^2: one singular value, 1/n.

Bicubic. Rows and columns are reduced one after the other by the same kind of matrix R, A = R_h (x) R_w, whose row for
the output i is Keys' kernel (Keys 1981, "Cubic convolution interpolation for digital image processing", equation 15,
at a = -1/2)

    k(d) = 1.5 |d|^3 - 2.5 |d|^2 + 1              |d| <= 1
           -0.5 |d|^3 + 2.5 |d|^2 - 4 |d| + 2     1 < |d| < 2,      else 0                           (1)

widened by n against aliasing, at the distances of the pixels' centres j from the output's,

    R_ij ~ k((j + 1/2 - n (i + 1/2))/n),       sum_j R_ij = 1,                                       (2)

with what falls outside of the picture left out. With R = U S V' for each of the two, A has the singular values
s_i s_j, V_h' x V_w is the spectrum, and A+ y = V_h S_h+ U_h' y U_w S_w+ V_w'. Both SVDs are of small matrices, taken
once in float64.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.inverse.operators.base import OneValue, Operator, check_image
from jaxdiff.record import field, record

SMALLEST = 1e-6
"""Singular values of a matrix below this share of its largest are taken for 0."""


@record
class Box(OneValue):
    """The mean of each n x n pixels.

    Args:
      shape: (H, W, C) of one image.
      factor: n, which divides H and W; static.

    Raises:
      ValueError: a factor that does not divide the sides.

    >>> Box((2, 2, 1), 2)(jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel().tolist()
    [1.5]
    """

    factor: int = field(default=2, pytree_node=False)

    def __post_init__(self) -> None:
        _check_factor(self.shape, self.factor, "box")

    @property
    def value(self) -> float:
        return 1.0 / self.factor

    def __call__(self, x: Array) -> Array:
        rows, columns, channels = self.shape
        n = self.factor
        return x.reshape(-1, rows // n, n, columns // n, n, channels).mean(axis=(2, 4))

    def adjoint(self, y: Array) -> Array:
        return self.pinv(y) / self.factor**2

    def pinv(self, y: Array) -> Array:
        return y.repeat(self.factor, axis=1).repeat(self.factor, axis=2)


@record
class Separable(Operator):
    """A matrix on the columns and one on the rows of images, by their singular value decompositions.

    Made by `bicubic` or `of`.

    Args:
      shape: (H, W, C) of one image.
      left, values, right: of each matrix R ``(h, H)``, for H and then for W: U ``(h, h)``, the singular values
        ``(min(h, H),)``, V' ``(H, H)``.
    """

    left: tuple[Array, Array]
    values: tuple[Array, Array]
    right: tuple[Array, Array]
    spectral: ClassVar[bool] = True

    @classmethod
    def of(cls, shape: tuple[int, ...], rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Separable:
        """y = R_h x R_w' for two matrices.

        Args:
          shape: (H, W, C) of one image.
          rows: R_h ``(h, H)``.
          columns: R_w ``(w, W)``.

        Raises:
          ValueError: matrices that do not fit the image.
        """
        sides = check_image(shape, "a separable operator")[:2]
        if tuple(each.shape[-1] for each in (rows, columns)) != sides or rows.ndim != 2 or columns.ndim != 2:
            raise ValueError(f"the matrices are (h, {sides[0]}) and (w, {sides[1]}), got {rows.shape}, {columns.shape}")
        found = [np.linalg.svd(np.asarray(each, np.float64), full_matrices=True) for each in (rows, columns)]
        parts = [
            tuple(jnp.asarray(part, jnp.result_type(float)) for part in (u, np.where(s > SMALLEST * s[0], s, 0), v))
            for u, s, v in found
        ]
        return cls(shape, *((first, second) for first, second in zip(*parts, strict=True)))

    def __call__(self, x: Array) -> Array:
        (u, v), (s, r), (p, q) = self.left, self.values, self.right
        return _on_sides((u[:, : len(s)] * s[None]) @ p[: len(s)], (v[:, : len(r)] * r[None]) @ q[: len(r)], x)

    def adjoint(self, y: Array) -> Array:
        (u, v), (s, r), (p, q) = self.left, self.values, self.right
        return _on_sides(
            p[: len(s)].T @ (s[:, None] * u[:, : len(s)].T), q[: len(r)].T @ (r[:, None] * v[:, : len(r)].T), y
        )

    def pinv(self, y: Array) -> Array:
        (u, v), (s, r), (p, q) = self.left, self.values, self.right
        s, r = _inverse(s), _inverse(r)
        return _on_sides(
            p[: len(s)].T @ (s[:, None] * u[:, : len(s)].T), q[: len(r)].T @ (r[:, None] * v[:, : len(r)].T), y
        )

    @property
    def singular_values(self) -> Array:
        of_rows, of_columns = (
            jnp.zeros(side, s.dtype).at[: len(s)].set(s) for side, s in zip(self.shape[:2], self.values, strict=True)
        )
        return (of_rows[:, None] * of_columns[None])[None, :, :, None]

    def to_spectrum(self, x: Array) -> Array:
        return _on_sides(*self.right, x)

    def from_spectrum(self, parts: Array) -> Array:
        return _on_sides(self.right[0].T, self.right[1].T, parts)


def bicubic(shape: tuple[int, ...], factor: int = 4) -> Separable:
    """Each side smaller by a factor, by a cubic kernel.

    Equations (1) and (2).

    Args:
      shape: (H, W, C) of one image.
      factor: n, which divides H and W.

    Raises:
      ValueError: a factor that does not divide the sides.

    >>> bicubic((8, 8, 1), 4).measured
    (2, 2, 1)
    """
    _check_factor(shape, factor, "bicubic")
    return Separable.of(shape, bicubic_matrix(shape[0], factor), bicubic_matrix(shape[1], factor))


def bicubic_matrix(side: int, factor: int) -> NDArray[np.float64]:
    """R of equation (2): ``(side / factor, side)``.

    >>> bicubic_matrix(4, 2).sum(axis=1).tolist()
    [1.0, 1.0]
    """
    centres = factor * (np.arange(side // factor) + 0.5)
    d = np.abs(np.arange(side)[None] + 0.5 - centres[:, None]) / factor
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    kernel = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


def _inverse(values: Array) -> Array:
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)


def _on_sides(rows: Array, columns: Array, x: Array) -> Array:
    """R_h x R_w' of images ``(B, H, W, C)``."""
    exact = jax.lax.Precision.HIGHEST
    first = jnp.einsum("hH,bHWc->bhWc", rows.astype(x.dtype), x, precision=exact)
    return jnp.einsum("wW,bhWc->bhwc", columns.astype(x.dtype), first, precision=exact)


def _check_factor(shape: tuple[int, ...], factor: int, what: str) -> None:
    rows, columns, _ = check_image(shape, what)
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 or rows % factor or columns % factor:
        raise ValueError(f"the factor of {what} is a whole number that divides {rows} and {columns}, got {factor!r}")
