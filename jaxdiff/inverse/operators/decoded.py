"""A measurement of pictures, of a model in latents: y = A(D(z)), D the decoder.

D is not linear, so A D is not, and it has no pseudo-inverse; what A has is used by `jaxdiff.inverse.psld`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jax import Array

from jaxdiff.inverse.operators.base import Operator, Rows
from jaxdiff.record import record


@record
class Decoded(Operator):
    """Equation y = A(D(z)).

    Args:
      shape: of one sample's latents.
      of_pixels: A, an operator on pictures.
      codec: of the model: ``pixels(z)`` is D, pictures in A's units, and ``latents(u)`` the encoder's mean; both of
        batches and differentiable. Its weights are data.

    >>> import jax.numpy as jnp
    >>> from jaxdiff.inverse.operators import Box
    >>> class Halved:
    ...     def pixels(self, z): return 2 * z
    ...     def latents(self, u): return u / 2
    >>> Decoded((2, 2, 1), Box((2, 2, 1), 2), Halved())(jnp.ones((1, 2, 2, 1))).ravel().tolist()
    [2.0]
    """

    of_pixels: Operator
    codec: Any
    linear: ClassVar[bool] = False
    invertible: ClassVar[bool] = False

    def __call__(self, x: Array) -> Array:
        return self.of_pixels(self.codec.pixels(x))

    def seen(self, y: Array) -> Array:
        return self.of_pixels.seen(y)

    def rows(self, cut: Rows) -> Decoded:
        return dataclasses.replace(self, of_pixels=self.of_pixels.rows(cut))
