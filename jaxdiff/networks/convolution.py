"""Convolutions: XLA's, and for a CPU two things that pay there (docs/performance.md). By Winograd's algorithm an
evaluation of the full U-Net takes 0.81 to 0.86 of the time with 16 images. With their axes in order, gradients within
loops (micro-batches, several steps at a call) are up to 20 times as fast.

3x3 convolutions have 16 products for 36 by Winograd's minimal algorithm (Lavin & Gray 2016, "Fast Algorithms for
Convolutional Neural Networks", https://arxiv.org/abs/1509.09308, section 4.1).
Of four neighbouring numbers d and three weights g, F(2, 3) makes two results with four products,

    y = A^T [(G g) * (B^T d)]                                                                        (1)

    B^T d = (d_0 - d_2, d_1 + d_2, d_2 - d_1, d_1 - d_3)
    G g   = (g_0, (g_0 + g_1 + g_2)/2, (g_0 - g_1 + g_2)/2, g_2)
    A^T m = (m_0 + m_1 + m_2, m_1 - m_2 - m_3)

and rows of rows likewise, for tiles of 4x4 that overlap by two: Y = A^T [(G g G^T) * (B^T d B)] A. With channels the
products at each of the 16 places are a matrix product of all tiles with (inputs, outputs). The rounding error in
float32 is 1.6 times that of the convolution itself.

It pays where nothing but the result is wanted. Under differentiation of any kind it is the usual convolution: a
training step with the forward pass done so was measured and not faster.

The gradients of y = x * k, of height h and stride s and with l zeros before the image, are convolutions again. With dy
the cotangent of y, k' the kernel turned by half a circle with inputs and outputs exchanged,

    dx = (dy, s - 1 zeros between its pixels) * k'                                                   (2)
    dk = x^T * (dy^T, s - 1 zeros between its pixels)                                                (3)

where x^T has the inputs in the place of the samples and these in the place of the channels, and dy^T is a kernel of the
result's size, from samples to outputs. In (2) h - 1 - l zeros stand before dy, in (3) l before x^T, and after them as
many as give the size of x and of k.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxdiff.networks.backend import Machine, in_order

EDGES = ((1, 1), (1, 1))  # one pixel on all sides

WINOGRAD_CHANNELS, WINOGRAD_PIXELS = 64, 1024
"""Fewest channels, of inputs and of outputs, and fewest pixels of a batch for Winograd's convolution."""

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(x: Array, kernel: Array, stride: int, padding: Pads, *, in_order: bool = False) -> Array:
    """A convolution in ``x``'s dtype: ``(B, H, W, inputs)`` by ``(h, w, inputs, outputs)``.

    Args:
      x: the image.
      kernel: of any dtype.
      stride: along height and width.
      padding: zeros before and after, by height and width.
      in_order: the gradients are convolutions of arrays whose axes stand as here, (2) and (3). JAX's own name the axes
        in another order, which XLA on a CPU puts right except within loops: there it computes them 20 times as slowly.

    >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 3)), 1, ((1, 0), (1, 0))).shape
    (1, 4, 4, 3)
    """
    return (_in_order if in_order else _plain)(x, kernel.astype(x.dtype), stride, padding)


def _plain(x: Array, kernel: Array, stride: int, padding: Pads, dilations: tuple[int, int] = (1, 1)) -> Array:
    image, window = dilations
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        lhs_dilation=(image, image),
        rhs_dilation=(window, window),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _in_order(x: Array, kernel: Array, stride: int, padding: Pads) -> Array:
    return _plain(x, kernel, stride, padding)


def _in_order_with_tangent(
    stride: int, padding: Pads, primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Any]:
    """The differential's two parts, each as the transpose of (2) or (3): what JAX makes of it in turn is (2) or (3)."""
    x, kernel = primals
    dx, d_kernel = tangents
    y = _in_order(x, kernel, stride, padding)
    sizes = list(zip(x.shape[1:3], kernel.shape[:2], y.shape[1:3], padding, strict=True))
    reach = [(after - 1) * stride + 1 for _, _, after, _ in sizes]  # of the result's pixels, among the image's

    def of_image(dy: Array) -> Array:  # (2)
        edges = [(k - 1 - lo, n + lo - r) for (n, k, _, (lo, _)), r in zip(sizes, reach, strict=True)]
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        return _plain(dy, turned, 1, _pair(edges), (stride, 1))

    def of_kernel(dy: Array) -> Array:  # (3)
        edges = [(lo, k - 1 + r - n - lo) for (n, k, _, (lo, _)), r in zip(sizes, reach, strict=True)]
        by_input = _plain(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), 1, _pair(edges), (1, stride))
        return by_input.transpose(1, 2, 0, 3)

    parts = [
        jax.linear_transpose(gradient, y)(tangent)[0]
        for gradient, tangent in ((of_image, dx), (of_kernel, d_kernel))
        if not isinstance(tangent, SymbolicZero)
    ]
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


_in_order.defjvp(_in_order_with_tangent, symbolic_zeros=True)


def _pair(edges: list[tuple[int, int]]) -> Pads:
    return edges[0], edges[1]


def by_winograd(machine: Machine, x: Any, kernel: Any) -> bool:
    """Whether a 3x3 convolution of stride 1 is `winograd`, with 16 products for 36.

    What it saves in products it spends on copies of the image and of the kernel: it takes many channels and many pixels
    to pay (docs/performance.md). In float32, where `in_order` holds.

    Args:
      machine: where it will run.
      x, kernel: ``(B, H, W, inputs)`` and ``(3, 3, inputs, outputs)``: arrays, or anything with their shape and dtype.

    >>> x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 8, 8, 256), (3, 3, 256, 256)))
    >>> by_winograd(Machine("cpu"), x, kernel), by_winograd(Machine("cuda"), x, kernel)
    (True, False)
    """
    batch, height, width, inputs = x.shape
    return (
        in_order(machine)
        and x.dtype == jnp.float32
        and height % 2 == width % 2 == 0
        and min(inputs, kernel.shape[3]) >= WINOGRAD_CHANNELS
        and isinstance(batch, int)
        and batch * height * width >= WINOGRAD_PIXELS
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


winograd.defjvp(functools.partial(_in_order_with_tangent, 1, EDGES), symbolic_zeros=True)
