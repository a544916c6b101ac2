"""Phase retrieval: the sizes of the Fourier coefficients of an image with zeros around it.

    y = |F P x0|                                                                                     (1)

P puts the image in the middle of zeros, each side ``factor`` times as long, and F is the unitary Fourier transform of
the sides. A is not linear. y is the same for x0, for -x0, and, where its support is not full, for shifts and the
half-turn of x0: what is found is one of them.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.inverse.operators.base import Operator, check_image
from jaxdiff.record import field, record


@record
class PhaseRetrieval(Operator):
    """Equation (1).

    Args:
      shape: (H, W, C) of one image.
      factor: how much longer the sides are, 1 or more; static.
      low: the value of x0 that counts as darkness: x0 - low is what is measured. -1: images in [-1, 1] as brightness
        from 0 on, without which the sign of x0 is open. Data.

    Raises:
      ValueError: a factor below 1.

    >>> PhaseRetrieval((4, 4, 1), 2.0).measured
    (8, 8, 1)
    """

    factor: float = field(default=2.0, pytree_node=False)
    low: ArrayLike = -1.0
    linear: ClassVar[bool] = False
    invertible: ClassVar[bool] = False
    pictured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_image(self.shape, "phase")
        if not self.factor >= 1:
            raise ValueError(f"the sides grow by a factor of 1 or more, got {self.factor}")

    def __call__(self, x: Array) -> Array:
        ends = [(0, 0)]
        for side in self.shape[:2]:
            more = round(self.factor * side) - side
            ends.append((more // 2, more - more // 2))
        padded = jnp.pad(x - jnp.asarray(self.low, x.dtype), [*ends, (0, 0)])
        found = jnp.fft.fft2(padded, axes=(1, 2), norm="ortho")
        square = jnp.square(found.real) + jnp.square(found.imag)
        return jnp.sqrt(jnp.where(square > 0, square, 1)) * (square > 0)  # a derivative of 0 where y = 0
