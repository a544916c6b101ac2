"""Compressed sensing: some coefficients of an orthogonal transform that mixes all numbers of a sample.

    y = P Q D x,     A A' = I                                                                        (1)

D changes signs at random, Q is orthogonal, P takes M of the N rows at random. For N = 2^a m, Q = H (x) G with the
orthonormal Walsh-Hadamard matrix H of size 2^a and a random orthogonal G of size m: a transform costs N (a + m).
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.broadcast import flatten
from jaxdiff.inverse.operators.base import OneValue, size_of
from jaxdiff.record import record


@record
class CompressedSensing(OneValue):
    """Equation (1).

    Made by `sensing`.

    Args:
      shape: of one x0, of N numbers.
      signs: D ``(N,)`` of 1 and -1.
      mixing: G ``(m, m)``, orthogonal; N = 2^a m.
      kept: P ``(M,)``, the rows taken.
    """

    signs: Array
    mixing: Array
    kept: Array
    pictured: ClassVar[bool] = False

    @property
    def value(self) -> float:
        return 1.0

    def __call__(self, x: Array) -> Array:
        return self._mixed(flatten(x) * self.signs[None], self.mixing)[:, self.kept]

    def adjoint(self, y: Array) -> Array:
        whole = jnp.zeros((y.shape[0], size_of(self.shape)), y.dtype).at[:, self.kept].set(y)
        return (self._mixed(whole, self.mixing.T) * self.signs[None]).reshape(y.shape[0], *self.shape)

    def _mixed(self, flat: Array, mixing: Array) -> Array:
        """Q on ``(B, N)``; with G' its transpose, as H is symmetric."""
        m = mixing.shape[0]
        tall = flat.reshape(flat.shape[0], -1, m)  # (B, 2^a, m)
        return flatten(_walsh_hadamard(jnp.matmul(tall, mixing.T, precision=jax.lax.Precision.HIGHEST)))


def _walsh_hadamard(x: Array) -> Array:
    """H on the middle axis of ``(B, 2^a, m)``."""
    n, width = x.shape[1], 1
    while width < n:
        pairs = x.reshape(x.shape[0], n // (2 * width), 2, width, x.shape[2])
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        x = jnp.stack([first + second, first - second], axis=2).reshape(x.shape)
        width *= 2
    return x / jnp.sqrt(jnp.asarray(float(n), x.dtype))


def sensing(shape: tuple[int, ...], share: float = 0.25, seed: int = 0) -> CompressedSensing:
    """A share of the coefficients is measured.

    Args:
      shape: of one x0.
      share: M/N, above 0 and at most 1.
      seed: of signs, mixing and rows.

    Raises:
      ValueError: a share out of range, or so small that nothing is measured.

    >>> sensing((8, 8, 1), 0.25).measured
    (16,)
    """
    size = size_of(shape)
    if not 0 < share <= 1 or round(share * size) < 1:
        raise ValueError(f"the share that is measured is above 0 and at most 1, at least 1 of {size}, got {share}")
    draw = np.random.default_rng(seed)
    m = size // (size & -size)  # the odd part
    orthogonal, upper = np.linalg.qr(draw.standard_normal((m, m)))
    return CompressedSensing(
        shape,
        jnp.asarray(draw.choice([-1.0, 1.0], size), jnp.result_type(float)),
        jnp.asarray(orthogonal * np.sign(np.diag(upper))[None], jnp.result_type(float)),
        jnp.asarray(np.sort(draw.permutation(size)[: round(share * size)])),
    )
