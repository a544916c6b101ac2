"""How alike two images are: PSNR and SSIM, of values in [0, 255] by default.

With e the mean squared error and L the range of values,

    PSNR = 10 log10(L^2 / e)                                                                          (1)

Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III.B: with m,
s^2 and s_xy the means, variances and covariance within a window, weighted by an 11x11 Gaussian of deviation 1.5,

    SSIM = (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2)),               (2)
    c1 = (0.01 L)^2,   c2 = (0.03 L)^2

averaged over all windows that lie within the image, and over channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdiff.broadcast import mean_features

WINDOW, DEVIATION = 11, 1.5


def psnr(x: ArrayLike, y: ArrayLike, peak: float = 255.0) -> Float[Array, " batch"]:
    """Peak signal-to-noise ratio of each image, equation (1), in dB; infinite where the two are the same.

    Args:
      x, y: ``(B, H, W, C)``, numbers or bytes.
      peak: L, the range of values.

    >>> psnr(np.zeros((1, 2, 2, 1)), np.full((1, 2, 2, 1), 25.5)).tolist()
    [20.0]
    """
    error = jnp.asarray(x, jnp.float32) - jnp.asarray(y, jnp.float32)
    return 10.0 * jnp.log10(peak**2 / mean_features(jnp.square(error)))


def ssim(x: ArrayLike, y: ArrayLike, peak: float = 255.0) -> Float[Array, " batch"]:
    """Structural similarity of each image, equation (2): 1 where the two are the same.

    Args:
      x, y: ``(B, H, W, C)``, numbers or bytes; H and W at least 11.
      peak: L, the range of values.

    Raises:
      ValueError: images smaller than the window.

    >>> image = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3))
    >>> round(float(ssim(image, image)[0]), 6)
    1.0
    """
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    if x.ndim != 4 or x.shape != y.shape or min(x.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM takes two batches of images (batch, height, width, channel) of one shape and at least {WINDOW} "
            f"pixels a side, got {x.shape} and {y.shape}"
        )
    # Moments about the middle of the range: in float32 E[x^2] - E[x]^2 would lose a bright image's variance.
    a, b = x - peak / 2, y - peak / 2
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a, variance_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    mean_x, mean_y = mean_a + peak / 2, mean_b + peak / 2
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return mean_features(above / ((mean_x**2 + mean_y**2 + c1) * (variance_a + variance_b + c2)))


def _windowed(x: Array) -> Array:
    """Gaussian means over all windows within the images: ``(B, H - 10, W - 10, C)``."""
    places = np.arange(WINDOW) - WINDOW // 2
    bell = np.exp(-(places**2) / (2 * DEVIATION**2))
    weights = jnp.asarray(bell / bell.sum(), jnp.float32)
    batch, height, width, channels = x.shape
    flat = x.transpose(0, 3, 1, 2).reshape(batch * channels, height, width, 1)
    for kernel in (weights[:, None], weights[None, :]):
        flat = jax.lax.conv_general_dilated(
            flat,
            kernel[:, :, None, None],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
    return flat.reshape(batch, channels, *flat.shape[1:3]).transpose(0, 2, 3, 1)
