"""The exact posterior of a mixture against quadrature, importance sampling, and limits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.exact import MixturePosterior

VP = jd.VP()


def prior_density(x: np.ndarray, means: Any, stds: Any, weights: Any) -> np.ndarray:
    """The density of a mixture at ``(n, D)``, in plain sums."""
    total = np.zeros(len(x))
    for mean, std, weight in zip(np.asarray(means), np.asarray(stds), np.asarray(weights), strict=True):
        std = np.broadcast_to(std, mean.shape)
        total += weight * np.exp(-0.5 * np.square((x - mean) / std).sum(1)) / np.prod(np.sqrt(2 * np.pi) * std)
    return total


def by_quadrature(x: np.ndarray, density: np.ndarray, a: Any, y: Any, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of density times likelihood on a grid of points."""
    mass = density * np.exp(-0.5 * np.square((np.asarray(y) - x @ np.asarray(a).T) / std).sum(1))
    mass /= mass.sum()
    mean = mass @ x
    return mean, (x - mean).T @ ((x - mean) * mass[:, None])


def test_quadrature_on_the_line() -> None:
    means, stds, weights = jnp.array([[-1.0], [0.5], [2.0]]), jnp.array([0.3, 0.8, 0.2]), np.array([0.5, 0.2, 0.3])
    prior = jd.MixtureDenoiser(VP, means, stds, jnp.log(weights) + 3.0)
    x = np.linspace(-6, 6, 20001)[:, None]
    density = prior_density(x, means, stds, weights)
    for std, y in ((0.1, 1.3), (0.7, 0.2), (3.0, -5.0)):
        found = MixturePosterior.of(prior, [[0.8]], [y], std)
        mean, covariance = by_quadrature(x, density, [[0.8]], [y], std)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5)
        mass = density * np.exp(-0.5 * np.square((y - 0.8 * x[:, 0]) / std))
        inside = (x[:, 0] > -0.5) & (x[:, 0] < 0.9)
        expected = mass[inside].sum() / mass.sum()
        np.testing.assert_allclose(found.mass([[1.0]], [-0.5], [0.9])[0], expected, atol=1e-3)


@pytest.mark.parametrize("stds", ["one", "one a component", "one a coordinate"])
@pytest.mark.parametrize("a", [[[1.0, -0.5]], [[1.0, 0.3], [0.2, 2.0]], [[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]])
def test_quadrature_in_the_plane(stds: str, a: Any) -> None:
    means = jnp.array([[1.0, 0.5], [-1.0, 0.3], [0.2, -1.2]])
    spread: Any = {"one": 0.4, "one a component": jnp.array([0.3, 0.5, 0.2]),
              "one a coordinate": jnp.array([[0.3, 0.6], [0.5, 0.2], [0.4, 0.4]])}[stds]  # fmt: skip
    each = np.broadcast_to(np.asarray(spread).reshape(-1, 1) if np.ndim(spread) < 2 else spread, (3, 2))
    weights = np.array([0.5, 0.3, 0.2])
    line = np.linspace(-4, 4, 801)
    x = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    density, y = prior_density(x, means, each, weights), np.asarray(a) @ np.array([0.4, -0.3])
    found = MixturePosterior.of(jd.MixtureDenoiser(VP, means, spread, jnp.log(weights)), a, y, 0.25)
    mean, covariance = by_quadrature(x, density, a, y, 0.25)
    np.testing.assert_allclose(found.mean, mean, atol=1e-4)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-4)
    assert np.exp(found.log_weights).sum() == pytest.approx(1, abs=1e-5)


def test_importance_sampling_in_five_dimensions() -> None:
    """Draws of the prior, weighted by the likelihood, and draws of the posterior have its mean and covariance."""
    rng = np.random.default_rng(0)
    prior = jd.MixtureDenoiser(VP, jnp.asarray(rng.normal(size=(4, 5))), jnp.array([0.4, 0.6, 0.5, 0.7]))
    a, y = rng.normal(size=(2, 5)), np.array([0.5, -1.0])
    found = MixturePosterior.of(prior, a, y, 0.8)
    x = np.asarray(prior.sample_data(jax.random.key(0), 200_000), np.float64)
    mass = np.exp(-0.5 * np.square((y - x @ a.T) / 0.8).sum(1))
    mass /= mass.sum()
    mean = mass @ x
    np.testing.assert_allclose(found.mean, mean, atol=4 * np.sqrt(np.square(mass).sum() * 0.7))
    np.testing.assert_allclose(found.covariance, (x - mean).T @ ((x - mean) * mass[:, None]), atol=0.02)
    drawn = np.asarray(found.sample(jax.random.key(1), 100_000))
    np.testing.assert_allclose(drawn.mean(0), found.mean, atol=0.012)
    np.testing.assert_allclose(np.cov(drawn.T), found.covariance, atol=0.015)
    u = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    low, high = np.quantile(drawn @ u.T, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(found.mass(u, low, high), 0.9, atol=0.006)


def test_without_noise_every_draw_is_consistent() -> None:
    rng = np.random.default_rng(1)
    prior = jd.MixtureDenoiser(VP, jnp.asarray(rng.normal(size=(3, 6))), 0.5)
    a = np.diag([1.0, 1, 0, 1, 0, 0])  # a mask, its rows of zeros with it
    y = a @ rng.normal(size=6)
    found = MixturePosterior.of(prior, a, y, 0.0)
    drawn = np.asarray(found.sample(jax.random.key(0), 500))
    np.testing.assert_allclose(drawn @ a.T, np.broadcast_to(y, (500, 6)), atol=2e-5)
    # of independent coordinates the others are as in the prior of each component, weighted by what is seen
    seen = np.array([0, 1, 3])
    log_w = -0.5 * np.square((y[seen] - np.asarray(prior.means)[:, seen]) / 0.5).sum(1)
    w = np.exp(log_w - np.logaddexp.reduce(log_w))
    np.testing.assert_allclose(np.exp(found.log_weights), w, rtol=1e-4)
    hidden = [2, 4, 5]
    np.testing.assert_allclose(np.asarray(found.mean)[hidden], w @ np.asarray(prior.means)[:, hidden], atol=1e-5)


def test_a_smoothed_data_set_is_a_mixture_and_much_noise_gives_the_prior() -> None:
    data = jax.random.normal(jax.random.key(0), (7, 2, 2, 1))
    empirical, one = jd.EmpiricalDenoiser(VP, data, 0.3), jd.MixtureDenoiser(VP, data, 0.3)
    a, y = jax.random.normal(jax.random.key(1), (3, 4)), jnp.array([0.1, -0.2, 0.3])
    first, second = (MixturePosterior.of(prior, a, y, 0.2) for prior in (empirical, one))
    for x, z in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(x, z, atol=1e-6)
    assert first.factors.shape == (1, 4, 4) and first.mean.shape == (2, 2, 1)
    assert first.sample(jax.random.key(0), 3).shape == (3, 2, 2, 1)
    wide = MixturePosterior.of(empirical, a, y, 1e4)
    np.testing.assert_allclose(wide.mean, data.mean(0), atol=1e-4)
    np.testing.assert_allclose(np.exp(wide.log_weights), 1 / 7, rtol=1e-3)
    # the denoiser itself is one: y = x_t/alpha is a measurement of all of x0 with noise sigma/alpha
    t, x = 0.3, jax.random.normal(jax.random.key(2), (1, 2, 2, 1))
    rho = float(VP.sigma(t) / VP.alpha(t))
    told = MixturePosterior.of(empirical, jnp.eye(4), x / VP.alpha(t), rho)
    np.testing.assert_allclose(told.mean, empirical(x, t).x0[0], atol=1e-4)


def test_what_is_refused() -> None:
    prior = jd.MixtureDenoiser(VP, jnp.zeros((2, 3)), 1.0)
    for matrix, y in ((jnp.eye(2), jnp.zeros(2)), (jnp.eye(3), jnp.zeros(2)), (jnp.zeros(3), jnp.zeros(3))):
        with pytest.raises(ValueError, match=r"a measurement of 3 numbers is a matrix \(M, 3\) and a y \(M,\), got"):
            MixturePosterior.of(prior, matrix, y, 0.1)
    with pytest.raises(ValueError, match="the noise's deviation is 0 or more, got -1"):
        MixturePosterior.of(prior, jnp.eye(3), jnp.zeros(3), -1.0)
