"""Grey levels and densities: rounding back, masses, levels of known entropy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import jaxdiff as jd
from jaxdiff.codecs import to_model_range, to_uint8
from jaxdiff.likelihood import (
    Dequantiser,
    FixedSteps,
    GaussianDequantiser,
    UniformDequantiser,
    VariationalDequantiser,
    bits_per_dim,
    continuous_elbo,
    decoder_log_probability,
    discrete_vlb,
    log_likelihood,
)
from tests.likelihood.problems import keys_of


def halving(keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """q(u) = 2 u, by the square root of a uniform number."""
    u = jnp.sqrt(jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys))
    return u, jnp.log(2.0 * u).reshape(x.shape[0], -1).sum(axis=1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=4, max_size=4), st.integers(0, 1000))
def test_dequantised_levels_round_back(levels: list[int], seed: int) -> None:
    """Uniform noise stays in its level, the one that `to_uint8` rounds to: the scaling is the network's own."""
    x = jnp.asarray(to_model_range(np.array([levels], np.uint8)))
    for dequantiser in (UniformDequantiser(), VariationalDequantiser(halving)):
        y, _ = dequantiser.draw(keys_of(1, seed), x, 0.0)
        assert to_uint8(np.clip(y, -1, 1)).tolist() == [levels]


@pytest.mark.parametrize("level", [0, 77, 255])
def test_dequantised_densities_have_the_mass_of_the_level(level: int) -> None:
    """E[p(y) P(x | y)/q(y | x)] is the integral of p(y) P(x | y), whatever q: for noise within the level the mass that
    p has there."""
    x = jnp.full((40_000, 1), level / 127.5 - 1.0)
    centre, spread = level / 127.5 - 1.003, 0.006
    density = lambda y: norm.pdf(np.asarray(y)[:, 0], centre, spread)  # noqa: E731
    mass = np.diff(norm.cdf(np.array([level - 0.5, level + 0.5]) / 127.5 - 1.0, centre, spread))[0]
    dequantisers: list[tuple[Dequantiser, float]] = [
        (UniformDequantiser(), mass),
        (VariationalDequantiser(halving), mass),
    ]
    fine = np.linspace(centre - 8 * spread, centre + 8 * spread, 4001)[:, None].astype(np.float32)
    decoded = decoder_log_probability(jnp.full(fine.shape, x[0, 0]), jnp.asarray(fine), 0.004)
    decoder_mass = float((density(fine) * np.exp(decoded[:, 0])).sum() * (fine[1, 0] - fine[0, 0]))
    dequantisers.append((GaussianDequantiser(), decoder_mass))
    for dequantiser, expected in dequantisers:
        y, worth = dequantiser.draw(keys_of(len(x)), x, 0.004)
        terms = density(y) * np.exp(worth)
        assert abs(terms.mean() - expected) < 4.5 * terms.std() / math.sqrt(len(x)) + 1e-5 * expected


def test_the_decoder_is_a_distribution() -> None:
    values = jnp.asarray(to_model_range(np.arange(256, dtype=np.uint8)))
    for ratio in (0.002, 0.1, 3.0):
        for y in (-1.3, 0.1234, 1.0):
            log_probability = decoder_log_probability(values[:, None], jnp.full((256, 1), y), ratio)
            assert float(jnp.exp(log_probability).sum()) == pytest.approx(1.0, abs=1e-4)


GREYS = np.array([0, 60, 61, 255])


@pytest.mark.nightly
def test_grey_levels_of_known_entropy() -> None:
    """Four levels of equal odds are 2 bits. The exact denoiser's bounds are above that, and near."""
    process = jd.CosineVP()
    exact = jd.MixtureDenoiser(process, jnp.asarray(to_model_range(GREYS.astype(np.uint8)))[:, None], 0.0)
    x = jnp.tile(exact.means, (512, 1))
    keys = keys_of(len(x))

    @jax.jit
    def bounds(x: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
        found = {"elbo": continuous_elbo(exact, process, x, keys).total}
        found["vlb"] = discrete_vlb(exact, process, x, keys, ts=jd.log_snr_times(process, 400)).total
        for dequantiser in (UniformDequantiser(), GaussianDequantiser()):
            y, worth = dequantiser.draw(keys, x, 0.002)
            flow = log_likelihood(exact, process, y, solver=FixedSteps(128), divergence="exact", t_max=1.0)
            found[type(dequantiser).__name__] = bits_per_dim(flow.log_density + worth, x)
        return found

    for name, most in (("elbo", 0.15), ("vlb", 0.25), ("UniformDequantiser", 0.4), ("GaussianDequantiser", 0.15)):
        found = np.asarray(bounds(x, keys)[name])
        error = found.std() / math.sqrt(len(found))
        assert -4 * error < found.mean() - 2.0 < most + 4 * error, (name, found.mean(), error)
