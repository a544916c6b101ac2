"""The losses of an autoencoder against integrals, NumPy and explicit gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.autoencoding import adaptive_weight, codebook_loss, critic_loss, kl_divergence, perceptual, perplexity
from jaxdiff.autoencoding.losses import generator_loss, pixels


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 0.2), (-1.5, 3.0)])
def test_kl_is_the_integral(mean: float, variance: float) -> None:
    """KL(p | q) = integral of p ln(p/q), by the trapezium rule in float64."""
    z = np.linspace(-30, 30, 200_001)
    log_p = -0.5 * (z - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    log_q = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    expected = np.trapezoid(np.exp(log_p) * (log_p - log_q), z)
    found = kl_divergence(jnp.full((2, 3), mean), jnp.full((2, 3), np.log(variance)))
    np.testing.assert_allclose(found, [3 * expected] * 2, rtol=1e-5, atol=1e-6)


def test_distances() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(pixels(x, y, "l1"), np.abs(x - y).mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(pixels(x, y, "l2"), np.square(x - y).mean((1, 2, 3)), rtol=1e-6)


def test_the_codebook_loss_pulls_each_to_the_other() -> None:
    m, e = jax.random.normal(jax.random.key(0), (2, 5, 4))

    def loss(m: Any, e: Any) -> Any:
        return codebook_loss(m, e, 0.25).sum()

    by_m, by_e = jax.grad(loss, (0, 1))(m, e)
    np.testing.assert_allclose(by_e, 2 * (e - m) / 4, rtol=1e-5)
    np.testing.assert_allclose(by_m, 0.25 * 2 * (m - e) / 4, rtol=1e-5)


def test_perceptual_against_numpy() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 2, 4, 4, 3)).astype(np.float32)

    def unit(f: Any) -> Any:
        return f / np.sqrt(np.square(f).sum(-1, keepdims=True))

    expected = sum(
        np.square(unit(f(x)) - unit(f(y))).sum(-1).mean((1, 2)) for f in (lambda a: a, lambda a: a[:, ::2, ::2] ** 3)
    )
    found = perceptual(x, y, lambda a: [a, a[:, ::2, ::2] ** 3])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    flat = jax.grad(lambda y: perceptual(jnp.zeros((1, 2, 2, 3)), y, lambda a: [a]).sum())(jnp.zeros((1, 2, 2, 3)))
    assert np.isfinite(flat).all()  # features that are all zero have no direction


def test_hinge() -> None:
    real, fake = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype(np.float32)
    expected = 0.5 * np.maximum(0, 1 - real).mean((1, 2)) + 0.5 * np.maximum(0, 1 + fake).mean((1, 2))
    np.testing.assert_allclose(critic_loss(real, fake), expected, rtol=1e-6)
    np.testing.assert_allclose(generator_loss(fake), -fake.mean((1, 2)), rtol=1e-5, atol=1e-7)


def test_adaptive_weight_is_clipped_and_constant() -> None:
    nll, generator = jnp.full((3, 3), 1e6), jnp.zeros((3, 3))
    assert float(adaptive_weight(nll, generator)) == 1e4
    assert float(adaptive_weight(generator, nll)) == 0
    assert not jax.grad(lambda a: adaptive_weight(a, nll))(nll).any()


def test_perplexity() -> None:
    assert float(perplexity(jnp.ones(8))) == pytest.approx(8)
    assert float(perplexity(jnp.array([0.0, 5.0, 0.0]))) == pytest.approx(1)
