"""Grey: one weighted mean of the channels, y = sum_c w_c x_c.

A A' = |w|^2 I: one singular value beside 0. Its inverse problem is colourisation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.inverse.operators.base import OneValue, check_image
from jaxdiff.record import record

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of ITU-R BT.601, which JPEG takes."""


@record
class Grey(OneValue):
    """Equation y = sum_c w_c x_c.

    Args:
      shape: (H, W, C) of one image, C above 1.
      weights: w ``(C,)``, not all 0; with the sum 1 a grey picture keeps its brightness. Data.

    Raises:
      ValueError: no image of several channels, or weights that are not one a channel.

    >>> grey = Grey((1, 1, 2), jnp.array([0.25, 0.75]))
    >>> grey(jnp.array([[[[4.0, 8.0]]]])).ravel().tolist()
    [7.0]
    """

    weights: ArrayLike

    def __post_init__(self) -> None:
        channels = check_image(self.shape, "grey")[2]
        if channels < 2 or jnp.shape(self.weights) != (channels,):
            raise ValueError(
                f"grey is of images with several channels and one weight a channel, got {channels} channels and "
                f"weights of shape {jnp.shape(self.weights)}"
            )

    @property
    def value(self) -> Array:
        return jnp.sqrt(jnp.square(jnp.asarray(self.weights)).sum())

    def __call__(self, x: Array) -> Array:
        return (x * self._spread(x)).sum(axis=-1, keepdims=True)

    def adjoint(self, y: Array) -> Array:
        return y * self._spread(y)

    def _spread(self, x: Array) -> Array:
        return jnp.asarray(self.weights, x.dtype).reshape(1, 1, 1, -1)


def luma(shape: tuple[int, ...]) -> Grey:
    """The brightness of red, green and blue, `LUMA`."""
    channels = check_image(shape, "grey")[2]
    if channels != 3:
        raise ValueError(f"grey is of red, green and blue, got {channels} channels: colourise takes their mean")
    return Grey(shape, jnp.asarray(LUMA, jnp.float32))


def mean_of_channels(shape: tuple[int, ...]) -> Grey:
    """The plain mean of the channels, as DDRM's and DDNM's colourisation measures."""
    channels = check_image(shape, "colourise")[2]
    return Grey(shape, jnp.full(channels, 1.0 / channels))
