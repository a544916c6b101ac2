"""Convolutions: XLA's, and 3x3 ones with 16 products for 36, by Winograd's minimal algorithm (Lavin & Gray 2016, "Fast
Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308, section 4.1).

Of four neighbouring numbers d and three weights g, F(2, 3) makes two results with four products,

    y = A^T [(G g) * (B^T d)]                                                                        (1)

    B^T d = (d_0 - d_2, d_1 + d_2, d_2 - d_1, d_1 - d_3)
    G g   = (g_0, (g_0 + g_1 + g_2)/2, (g_0 - g_1 + g_2)/2, g_2)
    A^T m = (m_0 + m_1 + m_2, m_1 - m_2 - m_3)

and rows of rows likewise, for tiles of 4x4 that overlap by two: Y = A^T [(G g G^T) * (B^T d B)] A. With channels the
products at each of the 16 places are a matrix product of all tiles with (inputs, outputs). The rounding error in
float32 is 1.6 times that of the convolution itself.

It pays where nothing but the result is wanted. Under differentiation of any kind it is the usual convolution, whose
gradients XLA computes: a training step with the forward pass done so was measured and not faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

EDGES = ((1, 1), (1, 1))  # one pixel on all sides


def convolve(x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    """A convolution in ``x``'s dtype: ``(B, H, W, inputs)`` by ``(h, w, inputs, outputs)``.

    >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 3)), 1, ((1, 0), (1, 0))).shape
    (1, 4, 4, 3)
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_jvp
def winograd(x: Array, kernel: Array) -> Array:
    """A convolution of stride 1 with one pixel of zeros around the image, by equation (1) in both directions.

    Args:
      x: ``(B, H, W, inputs)``, H and W even.
      kernel: ``(3, 3, inputs, outputs)``, of the same dtype.

    Returns:
      ``(B, H, W, outputs)``.

    Raises:
      ValueError: H or W is odd.

    >>> winograd(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)))[0, :, :, 0].tolist()
    [[8.0, 12.0, 12.0, 8.0], [12.0, 18.0, 18.0, 12.0], [12.0, 18.0, 18.0, 12.0], [8.0, 12.0, 12.0, 8.0]]
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"winograd makes tiles of 2x2: height and width are to be even, got {x.shape[1:3]}")
    batch, height, width, inputs = x.shape
    rows, columns, outputs = height // 2, width // 2, kernel.shape[3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    padded = padded.reshape(batch, rows + 1, 2, columns + 1, 2, inputs)  # tile (r, c) begins at [r, 0, c, 0]

    def place(i: int, j: int) -> Array:
        return padded[:, i // 2 : i // 2 + rows, i % 2, j // 2 : j // 2 + columns, j % 2]

    along = [_inputs([place(i, j) for i in range(4)]) for j in range(4)]
    tiles = [_inputs([along[j][i] for j in range(4)]) for i in range(4)]
    weights = [_weights(list(row)) for row in zip(*(_weights(list(kernel[:, j])) for j in range(3)), strict=True)]
    products = [[jnp.einsum("brci,io->brco", tiles[i][j], weights[i][j]) for j in range(4)] for i in range(4)]
    down = [_outputs([products[i][j] for i in range(4)]) for j in range(4)]
    across = [_outputs([down[j][a] for j in range(4)]) for a in range(2)]
    y = jnp.stack([jnp.stack(pair, axis=3) for pair in across], axis=2)  # (batch, rows, 2, columns, 2, outputs)
    return y.reshape(batch, height, width, outputs)


def _inputs(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]  # B^T d


def _weights(g: Sequence[Array]) -> list[Array]:
    return [g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]]  # G g


def _outputs(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]  # A^T m


def _usual_with_tangent(
    primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Array, Array]:
    # Of what does not change, no product with zeros is computed.
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

    def of_moving(*values: Array) -> Array:
        x, kernel = (values[moving.index(i)] if i in moving else primals[i] for i in range(2))
        return convolve(x, kernel, 1, EDGES)

    y, dy = jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])
    return y, dy


winograd.defjvp(_usual_with_tangent, symbolic_zeros=True)
