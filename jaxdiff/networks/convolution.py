"""Convolutions: XLA's, and with gradients that are fast in loops on a CPU.

Micro-batches and several steps at a call are loops; in them JAX's own gradients take up to 20 times as long
(docs/performance.md), so a CPU does without them.

The gradients of y = x * k, of height h and stride s and with l zeros before the image, are convolutions again. With dy
the cotangent of y, k' the kernel turned by half a circle with inputs and outputs exchanged,

    dx = (dy, s - 1 zeros between its pixels) * k'                                                   (1)
    dk = x^T * (dy^T, s - 1 zeros between its pixels)                                                (2)

where x^T has the inputs in the place of the samples and these in the place of the channels, and dy^T is a kernel of the
result's size, from samples to outputs. In (1) h - 1 - l zeros stand before dy, in (2) l before x^T, and after them as
many as give the size of x and of k.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(x: Array, kernel: Array, stride: int, padding: Pads, *, in_order: bool = False) -> Array:
    """A convolution in ``x``'s dtype: ``(B, H, W, inputs)`` by ``(h, w, inputs, outputs)``.

    Args:
      x: the image.
      kernel: of any dtype.
      stride: along height and width.
      padding: zeros before and after, by height and width.
      in_order: the gradients are convolutions of arrays whose axes stand as here, (1) and (2). JAX's own name the axes
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
    """The differential's two parts, each as the transpose of (1) or (2): what JAX makes of it in turn is (1) or (2)."""
    x, kernel = primals
    dx, d_kernel = tangents
    y = _in_order(x, kernel, stride, padding)
    sizes = list(zip(x.shape[1:3], kernel.shape[:2], y.shape[1:3], padding, strict=True))
    reach = [(after - 1) * stride + 1 for _, _, after, _ in sizes]  # of the result's pixels, among the image's

    def of_image(dy: Array) -> Array:  # (1)
        edges = [(k - 1 - lo, n + lo - r) for (n, k, _, (lo, _)), r in zip(sizes, reach, strict=True)]
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        return _plain(dy, turned, 1, _pair(edges), (stride, 1))

    def of_kernel(dy: Array) -> Array:  # (2)
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
