"""Guidance as functions of denoisers."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.denoiser import Cond

PROCESS = jd.VP()


def by_label(x: jax.Array, t: object, cond: Cond | None = None) -> jd.Prediction:
    """A denoiser whose eps is the label, its variance output too."""
    assert cond is not None
    eps = jnp.broadcast_to(cond["label"].reshape(-1, 1).astype(x.dtype), x.shape)
    alpha, sigma = PROCESS.alpha(0.5), PROCESS.sigma(0.5)
    return jd.Prediction((x - sigma * eps) / alpha, eps, eps)


def test_classifier_free_extrapolates() -> None:
    x, cond = jnp.ones((3, 2)), {"label": jnp.array([0, 1, 2])}
    for weight in (0.0, 1.0, 4.0, jnp.array([0.0, 1.0, 3.0])):
        got = jd.ClassifierFree(by_label, weight, {"label": 10})(x, jnp.asarray(0.5), cond)
        expected = 10 + jnp.broadcast_to(weight, (3,)) * (cond["label"] - 10.0)
        np.testing.assert_allclose(got.eps[:, 0], expected, rtol=1e-6)
        np.testing.assert_allclose(PROCESS.perturb(got.x0, got.eps, 0.5), x, rtol=1e-5)
        assert got.variance is not None
        np.testing.assert_array_equal(got.variance[:, 0], cond["label"])  # the conditional branch's
    plain = jd.ClassifierFree(by_label, 1.0, {"label": 10})(x, jnp.full(3, 0.5), cond)
    np.testing.assert_array_equal(plain.eps, by_label(x, 0.5, cond).eps)


def test_guidance_weight_is_data() -> None:

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(denoise: jd.ClassifierFree, x: jax.Array) -> jax.Array:
        return denoise(x, 0.5, {"label": jnp.arange(2)}).eps

    static = jax.tree_util.Partial(by_label)
    for weight in (1.0, 2.5, 7.0):
        run(jd.ClassifierFree(static, weight, {"label": 10}), jnp.zeros((2, 2)))


def test_guidance_without_a_condition_is_refused() -> None:
    guided = jd.ClassifierFree(by_label, 2.0, {"label": 10})
    for cond in (None, {"text": jnp.zeros((2, 4))}):
        with pytest.raises(ValueError, match=r"guidance needs cond with \['label'\]"):
            guided(jnp.zeros((2, 2)), 0.5, cond)


def test_clipped_limits_x0_and_keeps_x() -> None:
    exact = jd.GaussianDenoiser(PROCESS, 0.0, 5.0)
    x = jnp.linspace(-6, 6, 10).reshape(5, 2)
    got = jd.Clipped(exact, PROCESS)(x, 0.3)
    assert float(jnp.abs(got.x0).max()) == 1.0
    np.testing.assert_allclose(PROCESS.perturb(got.x0, got.eps, 0.3), x, rtol=1e-5)
    inside = jnp.abs(exact(x, 0.3).x0) < 1
    np.testing.assert_allclose(jnp.where(inside, got.eps - exact(x, 0.3).eps, 0.0), 0.0, atol=1e-5)
