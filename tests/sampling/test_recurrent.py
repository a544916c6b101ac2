"""Steps taken again: the law stays, the evaluations are counted, and by hand they are the same."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.denoiser import Cond
from jaxdiff.inverse import KnownPart
from jaxdiff.methods import parse_sampler
from jaxdiff.noise import step_noise
from jaxdiff.sampling import Recurrent
from jaxdiff.sampling.recurrent import RECURRENT

PROCESS = jd.VP()
MEAN, DEVIATION = 0.5, 0.7
EXACT = jd.GaussianDenoiser(PROCESS, MEAN, DEVIATION)


def test_by_hand_and_without_repeats() -> None:
    keys = jd.sample_keys(jax.random.key(0), 0, 3)
    x, t, s = jax.random.normal(jax.random.key(1), (3, 2)), jnp.asarray(0.6), jnp.asarray(0.4)
    inner, noise = jd.DDPM(PROCESS), step_noise(keys, x)
    plain, _ = inner.step(EXACT, noise, (), x, t, s)
    none, _ = Recurrent(inner, 0).step(EXACT, noise, (), x, t, s)
    np.testing.assert_array_equal(none, plain)
    scale, variance = PROCESS.transition(s, t)
    for k in (1, 2):
        salt = jnp.uint32(RECURRENT * k % 2**32)
        raised = scale * plain + jnp.sqrt(variance) * noise(s, t, salt)
        plain, _ = inner.step(EXACT, lambda t, s, inner=0, salt=salt: noise(t, s, salt), (), raised, t, s)
        found, _ = Recurrent(inner, k).step(EXACT, noise, (), x, t, s)
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_the_law_stays_with_exact_steps() -> None:
    """`AnalyticDDPM` has the exact law of Gaussian data however few the steps, and so has the noise put back."""
    ts = jd.log_snr_times(PROCESS, 6)
    total = (PROCESS.alpha(ts) * DEVIATION) ** 2 + PROCESS.sigma(ts) ** 2
    keys = jd.sample_keys(jax.random.key(0), 0, 8192)
    x = PROCESS.prior_sample(keys, (2,), ts[0])
    inner = jd.AnalyticDDPM(PROCESS, ts, PROCESS.sigma(ts) ** 2 / total)
    plain, again = (jax.jit(jd.sample)(each, EXACT, keys, x, ts) for each in (inner, Recurrent(inner, 3)))
    for found in (plain, again):
        np.testing.assert_allclose(found.mean(), MEAN, atol=4 * DEVIATION / np.sqrt(2 * 8192))
        np.testing.assert_allclose(found.std(), DEVIATION, atol=4 * DEVIATION / np.sqrt(4 * 8192))
    assert abs(np.corrcoef(np.asarray(plain[:, 0]), np.asarray(again[:, 0]))[0, 1]) < 0.9  # they are other samples


def test_evaluations_and_multistep_history() -> None:
    """(repeats + 1) evaluations a step, and one at the end; a multistep method's past is the same each time."""
    calls: list[float] = []

    def counted(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return EXACT(x, t)

    ts, keys = jd.log_snr_times(PROCESS, 4), jd.sample_keys(jax.random.key(0), 0, 2)
    x = PROCESS.prior_sample(keys, (2,), ts[0])
    jax.block_until_ready(jax.jit(lambda x: jd.sample(Recurrent(jd.DPMpp2M(PROCESS), 2), counted, keys, x, ts))(x))
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(calls), sorted([*np.repeat(ts[:-1], 3), ts[-1]]), rtol=1e-6)
    inner = jd.DPMpp2M(PROCESS)
    first, past = inner.step(EXACT, step_noise(keys, x), inner.init(x), x, ts[0], ts[1])
    _, after = Recurrent(inner, 2).step(EXACT, step_noise(keys, x), past, first, ts[1], ts[2])
    assert after.places.shape == past.places.shape
    np.testing.assert_allclose(
        after.places[-1], inner.step(EXACT, step_noise(keys, x), past, x, ts[1], ts[2])[1].places[-1]
    )


@pytest.mark.nightly
def test_resampling_makes_replacement_see_the_known_part() -> None:
    """Two coordinates of correlation 0.95, the second known: RePaint's mean is nearer the posterior's than
    replacement's is."""

    def exact(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        covariance = jnp.array([[1.0, 0.95], [0.95, 1.0]])
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2))
        return jd.prediction.from_x0(PROCESS, x, t, x @ gain.T)

    keys, ts = jd.sample_keys(jax.random.key(0), 0, 512), jd.log_snr_times(PROCESS, 20)
    x = PROCESS.prior_sample(keys, (2,), ts[0])
    known = KnownPart(exact, PROCESS, jnp.full((1, 2), 1.5), jnp.array([[1.0, 0.0]]))
    errors = []
    for sampler in (jd.DDPM(PROCESS), Recurrent(jd.DDPM(PROCESS), 5)):
        found = jax.jit(lambda sampler: jd.sample(sampler, known, keys, x, ts))(sampler)
        np.testing.assert_array_equal(found[:, 1], jnp.full(512, 1.5))
        errors.append(float(jnp.abs(found[:, 0] - 0.95 * 1.5).mean()))
    assert errors[1] < 0.6 * errors[0], errors


def test_jumps_are_the_steps_of_a_finer_grid() -> None:
    keys, ts = jd.sample_keys(jax.random.key(2), 0, 3), jnp.array([0.8, 0.5, 0.2])
    x, fine = PROCESS.prior_sample(keys, (2,), ts[0]), jnp.linspace(0.8, 0.2, 7)
    divided = jd.sample(Recurrent(jd.DDIM(PROCESS), 0, 3), EXACT, keys, x, ts)
    np.testing.assert_allclose(divided, jd.sample(jd.DDIM(PROCESS), EXACT, keys, x, fine), rtol=1e-4, atol=1e-5)
    named: Any = parse_sampler("recurrent:inner=ddim,repeats=0,jumps=3", PROCESS)
    np.testing.assert_array_equal(jd.sample(named, EXACT, keys, x, ts), divided)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"repeats is to be a whole number, 0 \(none\) or more, got -1"):
        Recurrent(jd.DDIM(PROCESS), -1)
    with pytest.raises(ValueError, match="jumps are to be a whole number, 1 or more, got 0"):
        Recurrent(jd.DDIM(PROCESS), 1, 0)
    x = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="Recurrent draws noise, and its steps are those of falling times"):
        jd.integrate(Recurrent(jd.DDIM(PROCESS)), EXACT, None, x, jnp.array([0.2, 0.4]))
    chex.assert_equal(Recurrent(jd.DDIM(PROCESS), 0).noise_level(), 0.0)
