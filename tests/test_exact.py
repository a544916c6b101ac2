"""Closed-form denoisers against the score of their own densities and against integration."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate as quadrature
from scipy.stats import norm

import jaxdiff as jd
from tests.tables import PROCESSES, gaussian, mixture


@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_prediction_is_the_score_of_the_density(name: str, make: object) -> None:
    """eps = -sigma grad ln p_t (Tweedie), and x = alpha x0 + sigma eps."""
    assert callable(make)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact = make(process)
        for t in jd.log_snr_times(process, 5):
            x0 = jnp.array([[0.5, 0.1]] * 6)
            x = process.perturb(x0, jax.random.normal(jax.random.key(1), x0.shape), t)
            prediction = exact(x, t)
            score = jax.grad(lambda x, t=t: exact.log_density(x, t).sum())(x)
            np.testing.assert_allclose(prediction.score(process, t), score, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(process.perturb(prediction.x0, prediction.eps, t), x, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(exact(x, jnp.full(6, t)).x0, prediction.x0, rtol=1e-12)


def test_mixture_in_one_dimension_by_quadrature() -> None:
    process, t = jd.Flow(), 0.4
    means, stds, weights = np.array([-0.8, 0.5]), np.array([0.1, 0.3]), np.array([0.25, 0.75])
    exact = jd.MixtureDenoiser(process, jnp.array(means)[:, None], jnp.array(stds), jnp.log(jnp.array(weights)))
    for x in (-0.9, 0.0, 0.7):
        joint = lambda x0, x=x: (weights * norm.pdf(x0, means, stds)).sum() * norm.pdf(x, 0.6 * x0, 0.4)  # noqa: E731
        mass = quadrature.quad(joint, -4, 4, points=[-0.8, 0.5])[0]
        mean = quadrature.quad(lambda x0: x0 * joint(x0), -4, 4, points=[-0.8, 0.5])[0] / mass  # noqa: B023
        point = jnp.array([[x]])
        assert exact(point, t).x0.item() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert exact.log_density(point, t).item() == pytest.approx(np.log(mass), rel=1e-4)


def test_gaussian_flow_solves_the_probability_flow() -> None:
    with jax.enable_x64(True):
        process = jd.VP()
        exact = gaussian(process)
        x = jnp.array([[0.3, -1.0], [2.0, 0.5]])
        t = jnp.asarray(0.6)
        dx = jax.jacfwd(lambda s: exact.flow(x, t, s))(t)
        np.testing.assert_allclose(dx, exact(x, t).velocity(process, t), rtol=1e-10)
        np.testing.assert_allclose(exact.flow(exact.flow(x, t, 0.2), 0.2, t), x, rtol=1e-10)


def test_one_component_is_the_gaussian_and_data_have_their_moments() -> None:
    process = jd.CosineVP()
    single = jd.MixtureDenoiser(process, jnp.array([[0.7, -0.4]]), 0.3)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    reference = jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), 0.3)
    np.testing.assert_allclose(single(x, 0.5).x0, reference(x, 0.5).x0, rtol=1e-5)
    np.testing.assert_allclose(single.log_density(x, 0.5), reference.log_density(x, 0.5), rtol=1e-5)
    data = mixture(process).sample_data(jax.random.key(0), 20_000)
    np.testing.assert_allclose(data.mean(0), jnp.array([0.24, 0.1]), atol=0.03)
