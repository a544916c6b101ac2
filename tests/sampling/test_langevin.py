"""Langevin correctors and annealed Langevin dynamics against the stationary laws of their steps."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.noise import step_noise
from jaxdiff.sampling.langevin import AnnealedLangevin, AnnealedLangevinDynamics, Langevin, PredictorCorrector
from tests.sampling.propagation import propagate
from tests.tables import LOG_WEIGHTS, MEANS, PROCESSES, STDS, mixture


def affine_map(step: Callable[[float, float], jax.Array], mean: float) -> tuple[float, float]:
    """a and c of a step x - mean -> a (x - mean) + c z; that it keeps the mean is asserted."""
    still, moved, pushed = (float(step(mean + x, z)) for x, z in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    assert still == pytest.approx(mean, rel=1e-9)
    return moved - mean, pushed - mean


@pytest.mark.parametrize("process_name", ["VP", "VE", "Flow"])
def test_a_steps_stationary_law(process_name: str) -> None:
    """At a fixed time the law that the step keeps is p_t's mean and n^2/(1 - epsilon/(2 n^2)): p_t as epsilon falls."""
    with jax.enable_x64(True):
        process, t = PROCESSES[process_name](), jnp.asarray(0.6)
        exact = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.5))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        marginal = (0.5 * alpha) ** 2 + sigma**2
        denoise = lambda x, t: exact(x, t)  # noqa: E731

        @jax.jit
        def correct(snr: float, x: float, z: float) -> jax.Array:
            noise = lambda t, s, salt=0: jnp.full((1, 1), z)  # noqa: E731
            return AnnealedLangevin(snr).correct(process, denoise, noise, jnp.full((1, 1), x), t, t)[0, 0]

        @jax.jit
        def walk(size: float, x: float, z: float) -> jax.Array:
            noise = lambda t, s, salt=0: jnp.full((1, 1), z)  # noqa: E731
            return AnnealedLangevinDynamics(process, size, 1).step(denoise, noise, (), jnp.full((1, 1), x), t, t)[0][
                0, 0
            ]

        for number in (0.5, 0.05):
            for step, epsilon in ((correct, 2.0 * (number * sigma) ** 2), (walk, 0.5 * number * sigma**2)):
                a, c = affine_map(functools.partial(step, number), 0.7 * alpha)
                stationary = c * c / (1.0 - a * a)
                assert stationary == pytest.approx(marginal / (1.0 - epsilon / (2.0 * marginal)), rel=1e-9)
        assert stationary == pytest.approx(marginal, rel=0.02)


def test_a_corrector_makes_a_predictors_law_right() -> None:
    """Mean and variance by exact propagation: 200 corrector steps undo what DDPM in 3 steps got wrong, up to their
    own bias; each of them draws its own noise."""
    with jax.enable_x64(True):
        process = jd.VP()
        exact = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.5))
        ts = jd.log_snr_times(process, 4, t_max=0.9, t_min=0.3)
        marginal = float((0.5 * process.alpha(0.3)) ** 2 + process.sigma(0.3) ** 2)
        r, sigma = float(process.alpha(ts[-2]) / process.alpha(ts[-1])), float(process.sigma(ts[-1]))
        epsilon = 2.0 * (r * 0.4 * sigma) ** 2
        sampler = PredictorCorrector(jd.DDPM(process), AnnealedLangevin(0.4, 200))
        mean, variance = jax.jit(propagate, static_argnames="loops")(sampler, exact, ts, loops=256)
        alone = jax.jit(propagate)(jd.DDPM(process), exact, ts)[1]
        assert float(mean) == pytest.approx(float(0.7 * process.alpha(0.3)), rel=1e-9)
        assert float(variance) == pytest.approx(marginal / (1.0 - epsilon / (2.0 * marginal)), rel=1e-3)
        assert abs(alone - marginal) > 1.3 * abs(variance - marginal)


def test_normed_steps_have_their_own_stationary_law() -> None:
    """In many dimensions the step (2) keeps n^2 (1 + snr^2): |score|^2 = d V/n^4 makes epsilon = 2 snr^2 n^4/V."""
    process, t = jd.VP(), jnp.asarray(0.4)
    exact = jd.GaussianDenoiser(process, 0.7, 0.5)
    marginal = float((0.5 * process.alpha(t)) ** 2 + process.sigma(t) ** 2)
    keys = jd.sample_keys(jax.random.key(0), 0, 32)
    x = 2.0 * jax.random.normal(jax.random.key(1), (32, 2048))

    @jax.jit
    def run(corrector: Langevin) -> jax.Array:
        return corrector.correct(process, lambda x, t: exact(x, t), step_noise(keys, x), x, t, t)

    for snr in (0.2, 0.4):
        found = np.asarray(run(Langevin(snr, 80))) - 0.7 * float(process.alpha(t))
        assert abs(found.mean()) < 0.02
        assert np.square(found).mean() == pytest.approx(marginal * (1.0 + snr**2), rel=0.02)


def test_norms_are_each_samples_own() -> None:
    """A sample far out in the batch changes nothing for the others, and a score of 0 nothing but no step."""
    process = jd.VE()
    exact, keys = jd.GaussianDenoiser(process, 0.0, 0.5), jd.sample_keys(jax.random.key(0), 0, 4)
    x = jax.random.normal(jax.random.key(1), (4, 32)).at[0].mul(1e4).at[1].set(0.0)
    corrector, t, s = Langevin(0.2, 1), jnp.asarray(0.5), jnp.asarray(0.45)

    @jax.jit
    def run(keys: jax.Array, x: jax.Array) -> jax.Array:
        return corrector.correct(process, lambda x, t: exact(x, t), step_noise(keys, x), x, t, s)

    whole = run(keys, x)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(whole[1], 0.0)
    np.testing.assert_allclose(whole[2:], run(keys[2:], x[2:]), rtol=1e-5)


def test_annealing_finds_the_mixtures_weights() -> None:
    """NCSN's way, few levels and many steps each, from the widest one: weights, means and widths, roughly."""
    process = jd.VE()
    ts = jd.log_snr_times(process, 10, t_max=process.time_of_log_snr(-2.0 * np.log(8.0)))
    keys = jd.sample_keys(jax.random.key(3), 0, 2000)

    @jax.jit
    def run(sampler: jd.Sampler, ts: jax.Array) -> jax.Array:
        return jd.sample(sampler, mixture(process), keys, process.prior_sample(keys, (2,), ts[0]), ts)

    samples = np.asarray(run(AnnealedLangevinDynamics(process), ts))
    distance = jnp.square(samples[:, None] - MEANS[None]).sum(-1)
    component = np.asarray(jnp.argmin(distance / jnp.square(STDS)[None], axis=1))
    for k in range(3):
        assert (component == k).mean() == pytest.approx(float(jnp.exp(LOG_WEIGHTS[k])), abs=0.08)
        np.testing.assert_allclose(samples[component == k].mean(0), MEANS[k], atol=0.08)
        np.testing.assert_allclose(samples[component == k].std(0), STDS[k], rtol=0.2)


def test_the_normed_corrector_keeps_a_law_in_many_dimensions() -> None:
    """With `Langevin` after each step of DDPM, 64 dimensions: mean and width of Gaussian data."""
    process = jd.VP()
    exact, ts = jd.GaussianDenoiser(process, 0.3, 0.5), jd.log_snr_times(process, 60)
    keys = jd.sample_keys(jax.random.key(0), 0, 200)
    sampler = PredictorCorrector(jd.DDPM(process), Langevin(0.1, 2))

    @jax.jit
    def run(sampler: jd.Sampler, denoise: jd.GaussianDenoiser, ts: ArrayLike) -> jax.Array:
        return jd.integrate(sampler, denoise, keys, process.prior_sample(keys, (64,)), ts)[0]

    found = np.asarray(run(sampler, exact, ts))
    assert found.mean() == pytest.approx(0.3, abs=0.01)
    assert found.std() == pytest.approx(0.5, rel=0.03)
