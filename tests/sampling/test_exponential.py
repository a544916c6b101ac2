"""The weights of exponential methods: against quadrature, in float32, and where places are missing."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxdiff.sampling.exponential import exponential_means, lagrange_weights


def test_means_are_the_integrals() -> None:
    """Equation (6) of the module against quadrature, both precisions, at small, large and infinite z."""
    means = jax.jit(exponential_means, static_argnums=1)
    with jax.enable_x64(True):
        for z in (-40.0, -8.5, -7.9, -1.0, -1e-5, 0.0, 1e-4, 0.5, 7.9, 8.1, 40.0):
            shift = max(z, 0.0)
            part = lambda k: quad(  # noqa: E731
                lambda u: math.exp((1 - u) * z - shift) * u**k,  # noqa: B023
                0,
                1,
                points=(0.03, 0.2, 0.8, 0.97),
                epsabs=0,
                epsrel=1e-12,
            )[0]
            truth = np.array([part(k) for k in range(1, 5)]) / part(0)
            np.testing.assert_allclose(means(jnp.asarray(z), 4), truth, rtol=1e-11, err_msg=str(z))
            single = means(jnp.asarray(z, jnp.float32), 4)
            assert single.dtype == jnp.float32
            np.testing.assert_allclose(single, truth, rtol=1e-6, err_msg=str(z))
        np.testing.assert_array_equal(means(jnp.asarray(-jnp.inf), 4)[:2], [1.0, 1.0])
        np.testing.assert_array_equal(means(jnp.asarray(jnp.inf), 4)[:2], [0.0, 0.0])


@pytest.mark.parametrize("kind", ["x0", "eps", "rho", "corrector"])
def test_float32_weights_are_accurate(kind: str) -> None:
    """Weights in float32 against float64 at the same places: steps of 1e-4 to 10, neighbours' ratios 0.1 to 10."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, 0))
    def weights(places: jax.Array, begin: jax.Array, end: jax.Array) -> jax.Array:
        step = end - begin
        means = exponential_means(-step if kind in ("x0", "corrector") else step, 4)
        if kind == "rho":
            means = 1.0 / jnp.arange(2.0, 6.0, dtype=places.dtype)
        if kind == "corrector":
            places = jnp.concatenate([end[None], places])
        return lagrange_weights(places, begin, end, means)

    ratios = [*itertools.product((0.1, 0.5, 1.0, 3.0, 10.0), repeat=3)]
    steps = np.array([1e-4, 1e-3, 1e-2, 0.1, 1.0, 3.0, 10.0])
    lengths = steps[:, None, None] * np.array(ratios)[None]  # each ratio to the step itself
    before = np.float32(0.3) - np.cumsum(lengths, axis=2).astype(np.float32)
    ends = np.broadcast_to((0.3 + steps[:, None]).astype(np.float32), before.shape[:2])
    flat, ends = before.reshape(-1, 3), ends.reshape(-1)
    single = weights(jnp.asarray(flat), jnp.float32(0.3), jnp.asarray(ends))
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = weights(
            jnp.asarray(flat, jnp.float64), jnp.asarray(np.float64(np.float32(0.3))), jnp.asarray(ends, jnp.float64)
        )
        error = np.abs(np.asarray(single, np.float64) - np.asarray(double)) / np.abs(double).max(axis=1, keepdims=True)
    assert error.max() < (1e-5 if kind == "corrector" else 2e-6), error.max()


def test_weights_where_places_are_missing() -> None:
    """A place at infinity drops out, one given twice counts once, an infinite or empty step has no weights."""
    one, half = jnp.asarray(1.0), 1.0 / jnp.arange(2.0, 5.0)
    compiled = jax.jit(lagrange_weights)
    weights = lambda places, end=one: np.asarray(  # noqa: E731
        compiled(jnp.array(places), jnp.asarray(0.0), jnp.asarray(end), half)
    )
    two = weights([-1.0, -2.5])
    np.testing.assert_allclose(weights([-1.0, -jnp.inf, -2.5])[[0, 2]], two, rtol=1e-6)
    np.testing.assert_allclose(weights([-1.0, -1.0, -2.5])[[0, 2]], two, rtol=1e-6)
    assert weights([-1.0, -jnp.inf, -2.5])[1] == weights([-1.0, -1.0, -2.5])[1] == 0.0
    for end in (jnp.inf, -jnp.inf, 0.0):
        np.testing.assert_array_equal(weights([-1.0, -2.0, -jnp.inf], end), np.zeros(3))
