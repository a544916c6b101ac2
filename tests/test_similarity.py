"""PSNR and SSIM against a direct transcription of Wang et al. 2004 in float64."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdiff.similarity import psnr, ssim


def pictures(bright: float, deviation: float, shape: tuple[int, ...] = (2, 14, 13, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.clip(bright + deviation * rng.normal(size=shape), 0, 255).round()
    return x.astype(np.uint8), np.clip(x + 10 * rng.normal(size=shape), 0, 255).round().astype(np.uint8)


def by_windows(x: np.ndarray, y: np.ndarray, peak: float = 255.0) -> np.ndarray:
    """Each window by itself: weighted means, variances and covariance."""
    places = np.arange(11) - 5
    weights = np.exp(-(places[:, None] ** 2 + places[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    x, y = x.astype(np.float64), y.astype(np.float64)
    batch, height, width, channels = x.shape
    found = np.zeros((batch, height - 10, width - 10, channels))
    for n, i, j, c in np.ndindex(found.shape):
        a, b = x[n, i : i + 11, j : j + 11, c], y[n, i : i + 11, j : j + 11, c]
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        found[n, i, j, c] = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        found[n, i, j, c] /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return found.mean((1, 2, 3))


@pytest.mark.parametrize(("bright", "deviation"), [(128, 60), (10, 15), (240, 2), (0, 0)])
def test_ssim_by_windows(bright: float, deviation: float) -> None:
    x, y = pictures(bright, deviation)
    np.testing.assert_allclose(ssim(x, y), by_windows(x, y), atol=2e-5)


def test_ssim_of_an_image_with_itself_and_with_its_negative() -> None:
    x, _ = pictures(128, 60)
    np.testing.assert_allclose(ssim(x, x), [1, 1], atol=1e-6)
    assert (np.asarray(ssim(x, 255 - x)) < 0).all()


def test_another_range_of_values() -> None:
    x, y = pictures(128, 60)
    np.testing.assert_allclose(ssim(x / 255.0, y / 255.0, peak=1.0), ssim(x, y), atol=1e-5)
    np.testing.assert_allclose(psnr(x / 255.0, y / 255.0, peak=1.0), psnr(x, y), rtol=1e-5)


def test_psnr() -> None:
    x, y = pictures(128, 60)
    error = np.square(x.astype(float) - y).mean((1, 2, 3))
    np.testing.assert_allclose(psnr(x, y), 10 * np.log10(255**2 / error), rtol=1e-5)
    assert np.isinf(psnr(x, x)).all()


def test_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)))
