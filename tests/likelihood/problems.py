"""What the tests of likelihoods share: points of the plane, keys, and the exact answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

POINTS = np.array([[0.7, -0.4], [0.2, -0.1], [1.6, -0.9], [0.9, -0.45]])


def keys_of(n: int, seed: int = 0) -> jax.Array:
    return jd.sample_keys(jax.random.key(seed), 0, n)


def noisy_log_density(exact: jd.GaussianDenoiser | jd.MixtureDenoiser, y: jax.Array, t: jax.Array) -> jax.Array:
    """ln of the density of x_0 + (sigma/alpha) eps at y: the exact answer to `log_likelihood`."""
    alpha = exact.process.alpha(t)
    return exact.log_density(alpha * y, t) + y.shape[1] * jnp.log(alpha)
