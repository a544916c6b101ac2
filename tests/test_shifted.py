"""Schedules shifted by resolution: the papers' formulas, and what a mean over pixels makes of noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

T = np.linspace(0.02, 0.98, 25)


@pytest.mark.parametrize("process", [jd.CosineVP(), jd.VP(), jd.SigmoidVP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("size", "base"), [(256, 64), (32, 64), (28, 28)])
def test_the_log_snr_of_simple_diffusion(process: jd.Process, size: int, base: int) -> None:
    """Hoogeboom et al. 2023, section 3: log SNR + 2 ln(base/size), variance preserved."""
    with jax.enable_x64(True):
        found = jd.at_resolution(process, size, base)
        np.testing.assert_allclose(
            found.log_snr(T), process.log_snr(T) + 2 * np.log(base / size), rtol=1e-10, atol=1e-10
        )
        np.testing.assert_allclose(found.log_snr(T), 2 * np.log(found.alpha(T) / found.sigma(T)), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.alpha(T) ** 2 + found.sigma(T) ** 2, 1.0, rtol=1e-12)
        np.testing.assert_allclose(found.time_of_log_snr(found.log_snr(T)), T, atol=1e-6)


def test_their_cosine_schedule() -> None:
    """Their appendix: -2 ln tan(pi t/2) + 2 ln(64/d), of which alpha^2 is the logistic function."""
    with jax.enable_x64(True):
        found = jd.at_resolution(jd.CosineVP(), 512)
        lam = -2 * np.log(np.tan(np.pi * T / 2)) + 2 * np.log(64 / 512)
        np.testing.assert_allclose(jnp.square(found.alpha(T)), 1 / (1 + np.exp(-lam)), rtol=1e-10)
        assert float(found.alpha(0.0)) == 1.0 and float(found.alpha(1.0)) == 0.0 and float(found.sigma(1.0)) == 1.0


def test_flows_are_shifted_in_time() -> None:
    """Esser et al. 2024, equation 23: t_m = sqrt(m/n) t/(1 + (sqrt(m/n) - 1) t) for m and n pixels."""
    with jax.enable_x64(True):
        found, root = jd.at_resolution(jd.Flow(), 1024, base=256), np.sqrt(1024**2 / 256**2)
        np.testing.assert_allclose(found.sigma(T), root * T / (1 + (root - 1) * T), rtol=1e-12)
        np.testing.assert_allclose(found.log_snr(T), jd.Flow().log_snr(T) - 2 * np.log(4), rtol=1e-11, atol=1e-11)


def test_a_mean_over_pixels_has_the_noise_of_the_small_picture() -> None:
    """x_t at d pixels, averaged over k x k and brought to the same variance, is x_t at d/k."""
    k, t = 4, 0.4
    small, large = jd.CosineVP(), jd.at_resolution(jd.CosineVP(), 64 * k)
    rng = np.random.default_rng(0)
    eps = rng.normal(size=(200, 16, k, 16, k)).mean(axis=(2, 4))
    noise = float(large.sigma(t)) / float(large.alpha(t)) * eps.std()
    np.testing.assert_allclose(noise, small.sigma(t) / small.alpha(t), rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jd.ShiftedSNR(jd.CosineVP(), 0.0), "shift is to be positive"),
        (lambda: jd.ShiftedSNR(jd.Flow(), 2.0), r"Flow does not preserve variance, .* shifted by Shifted"),
        (lambda: jd.ShiftedSNR(jd.DiscreteVP(jd.linear_betas(100)), 2.0), "a chain of 100 steps"),
        (lambda: jd.at_resolution(jd.VE(), 128), "VE neither preserves variance nor .* sigma_max is to be 2 times"),
        (lambda: jd.at_resolution(jd.CosineVP(), 0), "sides are positive, got size = 0"),
    ],
)
def test_what_cannot_be_shifted(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
