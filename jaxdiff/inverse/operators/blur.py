"""Blur: a circular convolution, y = k * x0, each channel by itself.

With F the unitary Fourier transform of the two sides and K that of the kernel (not scaled),

    y = F' K F x0,      A' = F' conj(K) F,      s = |K|,      A+ = F' (conj(K)/|K|^2) F,             (1)

the last where |K| > 1e-3 max |K|: what is left of other frequencies is hardly more than rounding. They count as not
measured in A+ and in the spectral form, s = 0, so that A A+ A = A holds up to that share of x0.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.inverse.operators.base import Operator, check_image
from jaxdiff.record import record

SMALLEST = 1e-3
"""Frequencies that are weakened to less than this share of the strongest one count as not measured."""


@record
class Blur(Operator):
    """Equation (1) for any kernel.

    Args:
      shape: (H, W, C) of one image.
      kernel: k ``(h, w)``, its centre at (h // 2, w // 2), not larger than the image; with the sum 1 brightness is
        kept. Data.

    Raises:
      ValueError: a kernel that is no matrix, or larger than the image.

    >>> still = Blur((4, 4, 1), jnp.array([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> bool(jnp.allclose(still(x), x, atol=1e-5))
    True
    """

    kernel: Array
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rows, columns, _ = check_image(self.shape, "blur")
        size = jnp.shape(self.kernel)
        if len(size) != 2 or not (1 <= size[0] <= rows and 1 <= size[1] <= columns):
            raise ValueError(f"a blur's kernel is (h, w), at most {rows}x{columns}, got {size}")

    @property
    def transfer(self) -> Array:
        """K ``(1, H, W, 1)``."""
        rows, columns, _ = self.shape
        kernel = jnp.asarray(self.kernel, jnp.result_type(float))
        spread = jnp.zeros((rows, columns), kernel.dtype).at[: kernel.shape[0], : kernel.shape[1]].set(kernel)
        centred = jnp.roll(spread, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
        return jnp.fft.fft2(centred)[None, :, :, None]

    def __call__(self, x: Array) -> Array:
        return self.from_spectrum(self.transfer * self.to_spectrum(x))

    def adjoint(self, y: Array) -> Array:
        return self.from_spectrum(self.transfer.conj() * self.to_spectrum(y))

    def pinv(self, y: Array) -> Array:
        size = jnp.square(self.singular_values)
        inverse = jnp.where(size > 0, self.transfer.conj() / jnp.where(size > 0, size, 1), 0)
        return self.from_spectrum(inverse * self.to_spectrum(y))

    @property
    def singular_values(self) -> Array:
        size = jnp.abs(self.transfer)
        return jnp.where(size > SMALLEST * size.max(), size, 0)

    def to_spectrum(self, x: Array) -> Array:
        return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")

    def from_spectrum(self, parts: Array) -> Array:
        return jnp.fft.ifft2(parts, axes=(1, 2), norm="ortho").real


def gaussian_blur(shape: tuple[int, ...], std: float = 3.0) -> Blur:
    """A Gaussian kernel, cut off at four deviations or where the image ends.

    Args:
      shape: (H, W, C) of one image.
      std: the deviation in pixels, positive.

    Raises:
      ValueError: a deviation that is not positive.

    >>> round(float(gaussian_blur((9, 9, 1), 1.0).kernel.sum()), 6)
    1.0
    """
    rows, columns, _ = check_image(shape, "blur")
    if not std > 0:
        raise ValueError(f"the deviation of a Gaussian blur is positive, in pixels, got {std}")

    def along(side: int) -> np.ndarray:
        reach = min(int(np.ceil(4 * std)), (side - 1) // 2)
        weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / std))
        return np.asarray(weights / weights.sum())

    return Blur(shape, jnp.asarray(np.outer(along(rows), along(columns)), jnp.result_type(float)))
