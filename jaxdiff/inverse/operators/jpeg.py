"""JPEG: the rounding of a block's cosine transform.

Of each 8 x 8 block of brightness and of the two differences of colour, with the orthonormal cosine transform C and the
table of steps Q_ij,

    y = round(C (127.5 (x0 + 1) - 128) C'/Q),        A+ y = (C' (Q y) C + 128)/127.5 - 1             (1)
    A(A+ y) = y  for whole y.                                                                        (2)

Colour is not sampled more coarsely than brightness, and coefficients are not coded. The tables are those of ITU-T T.81,
annex K, at a quality q from 1 to 100 scaled as the Independent JPEG Group does,

    Q = clip(floor((s table + 50)/100), 1, 255),     s = 5000/q for q < 50,    200 - 2 q else.       (3)

Rounding has the derivative 0. In its place stands that of the identity, the straight-through estimator (Bengio et al.
2013, https://arxiv.org/abs/1308.3432): the derivative of A is that of the linear map within the round.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.inverse.operators.base import Operator, check_image
from jaxdiff.record import record

BRIGHTNESS = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
COLOUR = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
"""Brightness and the differences of blue and red from red, green and blue, of ITU-T T.871."""


@record
class Quantise(Operator):
    """Equation (1).

    Made by `jpeg`.

    Args:
      shape: (H, W, C) of one image in [-1, 1], C 1 or 3.
      steps: Q ``(block, block, C)``, 1 or more; data.

    Raises:
      ValueError: an image whose sides the block does not divide, or of other channels.
    """

    steps: Array
    linear: ClassVar[bool] = False
    pictured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        rows, columns, channels = check_image(self.shape, "jpeg")
        block = jnp.shape(self.steps)[0]
        if channels not in (1, 3) or rows % block or columns % block:
            raise ValueError(
                f"jpeg is of images of 1 or 3 channels whose sides {block} divides, got {self.shape}: a smaller block "
                "is block=4"
            )

    def __call__(self, x: Array) -> Array:
        pixels = jnp.asarray(127.5 * (x + 1))
        if self.shape[2] == 3:
            pixels = _channels(TO_YCC, pixels)
        centred = pixels.at[..., 0].add(-128.0)
        return _rounded(self._blockwise(centred, True) / self._steps(x))

    def pinv(self, y: Array) -> Array:
        pixels = self._blockwise(y * self._steps(y), False).at[..., 0].add(128.0)
        if self.shape[2] == 3:
            pixels = _channels(np.linalg.inv(TO_YCC), pixels)
        return pixels / 127.5 - 1

    def _steps(self, x: Array) -> Array:
        rows, columns, _ = self.shape
        block = self.steps.shape[0]
        return jnp.tile(self.steps.astype(x.dtype), (rows // block, columns // block, 1))[None]

    def _blockwise(self, x: Array, forward: bool) -> Array:
        """The cosine transform of each block, or its inverse."""
        block = self.steps.shape[0]
        tiles = x.reshape(-1, self.shape[0] // block, block, self.shape[1] // block, block, self.shape[2])
        c = jnp.asarray(cosine_matrix(block) if forward else cosine_matrix(block).T, x.dtype)
        return jnp.einsum("ij,kl,byjxlc->byixkc", c, c, tiles, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def cosine_matrix(n: int) -> NDArray[np.float64]:
    """The orthonormal cosine transform of the second kind, C ``(n, n)``.

    >>> c = cosine_matrix(8)
    >>> bool(np.allclose(c @ c.T, np.eye(8)))
    True
    """
    k, j = np.arange(n)[:, None], np.arange(n)[None]
    rows = np.cos(np.pi * (2 * j + 1) * k / (2 * n)) * np.sqrt(2 / n)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


def jpeg(shape: tuple[int, ...], quality: int = 10, block: int = 8) -> Quantise:
    """The rounding of JPEG at a quality.

    The steps are those of equation (3).

    Args:
      shape: (H, W, C) of one image in [-1, 1], C 1 or 3.
      quality: from 1, the coarsest, to 100.
      block: 8, or 4 or 2 for images whose sides 8 does not divide, with every second or fourth step of the tables.

    Raises:
      ValueError: a quality out of range, another block, or an image that it does not divide.

    >>> jpeg((8, 8, 1), 50).steps[0, :3, 0].tolist()
    [16.0, 11.0, 10.0]
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"the quality of jpeg is from 1 to 100, got {quality}")
    if block not in (2, 4, 8):
        raise ValueError(f"the block of jpeg is 8, 4 or 2, got {block}")
    channels = check_image(shape, "jpeg")[2]
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    tables = [np.array(text.split(), float).reshape(8, 8) for text in (BRIGHTNESS, *[COLOUR] * 2)[:channels]]
    steps = np.stack([np.clip(np.floor((scale * each + 50) / 100), 1, 255) for each in tables], axis=-1)
    every = 8 // block
    return Quantise(shape, jnp.asarray(steps[::every, ::every], jnp.result_type(float)))


def _channels(matrix: NDArray[np.floating], x: Array) -> Array:
    return jnp.einsum("dc,bhwc->bhwd", jnp.asarray(matrix, x.dtype), x, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def _rounded(x: Array) -> Array:
    return jnp.round(x)


@_rounded.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _rounded(*primals), tangents[0]
