"""Variational bounds against closed forms on Gaussian data."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.codecs import to_model_range
from jaxdiff.likelihood import (
    ProposeLogSNR,
    ProposeTime,
    continuous_elbo,
    discrete_vlb,
    learn_proposal,
    prior_kl,
)
from jaxdiff.likelihood.angle import angle
from jaxdiff.prediction import Prediction
from jaxdiff.variational import learned_log_variance, vlb_term
from tests.likelihood.problems import POINTS, keys_of
from tests.tables import DISCRETE, NO_SIGNAL_AT_END, PROCESSES, every_process, gaussian


def gaussian_data(exact: jd.GaussianDenoiser, n: int) -> jax.Array:
    return jnp.asarray(exact.mean)[None] + jnp.asarray(exact.std)[None] * jax.random.normal(jax.random.key(5), (n, 2))


def close(found: jax.Array, expected: ArrayLike, *, errors: float = 5.0) -> None:
    """The mean of the samples (the last axis) is as expected, within its standard error."""
    values = np.asarray(found)
    mean, error = values.mean(axis=-1), values.std(axis=-1) / math.sqrt(values.shape[-1])
    assert (np.abs(mean - np.asarray(expected)) <= errors * error + 1e-6).all(), (mean, expected, error)


@pytest.mark.parametrize("name", every_process())
def test_terms_of_a_chain_on_gaussian_data(name: str) -> None:
    """Each term has its closed form, (SNR_s - SNR_t) E|x_0 - x^_0|^2/2 and its like, and they sum to the total."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact = gaussian(process)
        ts, x = jd.log_snr_times(process, 6), gaussian_data(exact, 4000)

        @jax.jit
        def run(x: jax.Array, keys: jax.Array) -> tuple:
            small = discrete_vlb(exact, process, x, keys, ts=ts, levels=None)
            return small, discrete_vlb(exact, process, x, keys, ts=ts, variance="fixed_large", levels=None)

        small, large = run(x, keys_of(len(x)))
        np.testing.assert_allclose(small.total, small.prior + small.terms.sum(axis=0), rtol=1e-9)
        np.testing.assert_allclose(large.terms[-1], small.terms[-1], rtol=1e-9)
        bits = 1.0 / (2 * math.log(2))
        alpha2, sigma2 = jnp.square(process.alpha(ts))[:, None], jnp.square(process.sigma(ts))[:, None]
        std2 = jnp.square(exact.std)[None]
        left = std2 * sigma2 / (alpha2 * std2 + sigma2)  # var(x_0 | x_t), (n, 2)
        close(small.x0_mse, left.mean(axis=1))
        close(small.eps_mse, (alpha2 / sigma2 * left).mean(axis=1))
        snr = jnp.exp(process.log_snr(ts))
        close(small.terms[:-1], 0.5 * (snr[1:] - snr[:-1]) * left.sum(axis=1)[:-1] * bits)
        w, v = process.posterior(ts[1:], ts[:-1])[2], process.transition(ts[1:], ts[:-1])[1]
        wider = 0.5 * (snr[1:] - snr[:-1]) * left.sum(axis=1)[:-1] * w / v + (w / v - 1 - jnp.log(w / v))
        close(large.terms[:-1], wider * bits)
        decoder = 0.5 * (left[-1].sum() * snr[-1] + 2 * jnp.log(2 * math.pi / snr[-1]))
        close(small.terms[-1], decoder * bits)
        mean2 = jnp.square(exact.mean) + jnp.square(exact.std)
        prior2 = jnp.square(process.prior_std(ts[0]))
        prior = 0.5 * ((alpha2[0] * mean2 + sigma2[0]) / prior2 - 1 - jnp.log(sigma2[0] / prior2)).sum()
        close(small.prior, prior * bits)


def test_the_chains_bound_falls_to_the_entropy() -> None:
    """With more steps the gap to the data's entropy closes like 1/T; below it the bound never is."""
    process = jd.VP()
    exact = gaussian(process)
    x = gaussian_data(exact, 4000)
    entropy = 0.5 * jnp.log(2 * math.pi * math.e * jnp.square(exact.std)).mean() / math.log(2)

    def gap(steps: int) -> tuple[float, float]:
        ts = jd.log_snr_times(process, steps)
        find = jax.jit(lambda x, keys: discrete_vlb(exact, process, x, keys, ts=ts, levels=None).total)
        total = np.asarray(find(x, keys_of(len(x))))
        return float(total.mean() - entropy), float(total.std() / math.sqrt(len(total)))

    gaps = [gap(n) for n in (65, 129, 257)]
    for (coarse, _), (fine, error) in itertools.pairwise(gaps):
        assert fine == pytest.approx(coarse / 2, rel=0.15, abs=4 * error)
    assert gaps[-1][0] > -4 * gaps[-1][1]


def test_a_chain_agrees_with_the_training_loss() -> None:
    """A learned variance's terms are those of `vlb_term`, in the mean; at its ends it is a fixed one; a subset of times
    is a shorter chain."""
    process = jd.DiscreteVP(jd.cosine_betas(20))
    base = gaussian(process)
    x0 = jnp.asarray(to_model_range(np.random.default_rng(0).integers(0, 256, (3000, 2)).astype(np.uint8)))
    keys = keys_of(len(x0))

    def learned(output: float) -> Callable[..., Prediction]:
        return lambda x, t, cond=None: base(x, t)._replace(variance=jnp.full_like(x, output))

    find = functools.partial(discrete_vlb, process=process, x0=x0, keys=keys)
    run = jax.jit(lambda: [find(learned(u), variance="learned").terms for u in (-1.0, 0.3, 1.0)])
    low, middle, high = run()
    np.testing.assert_allclose(low, find(base).terms, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(high[:-1], find(base, variance="fixed_large").terms[:-1], rtol=1e-4, atol=1e-5)
    for i, k in enumerate((20, 11, 1)):
        t = jnp.asarray(k / 20)
        eps = jax.random.normal(jax.random.key(i), x0.shape)
        term = vlb_term(process, x0, eps, learned(0.3)(process.perturb(x0, eps, t), t), (k - 1) / 20, t)
        found = middle[20 - k]
        spread = math.hypot(float(term.std()), float(found.std())) / math.sqrt(len(x0))
        assert abs(float(term.mean() - found.mean())) < 4.5 * spread + 1e-5
    part = jnp.array([20, 11, 3]) / 20
    short = find(learned(-1.0), variance="learned", ts=part)
    assert short.terms.shape == (3, len(x0)) and jnp.isfinite(short.total).all()
    # the strided chain's last variance is that of its own step before
    before = learned_log_variance(process, 0.0, 3 / 20, jnp.full((1, 2), -1.0), 11 / 20)
    np.testing.assert_allclose(jnp.exp(before), process.posterior(3 / 20, 11 / 20)[2], rtol=1e-4)


def test_the_bounds_refuse() -> None:
    process, x, keys = jd.VP(), jnp.zeros((1, 2)), keys_of(1)
    exact = gaussian(process)
    for keywords, message in (
        ({}, "in continuous time: pass the chain's times"),
        ({"ts": [0.5, 0.7]}, "are to fall"),
        ({"ts": [0.5, 0.0]}, "where sigma = 0"),
        ({"ts": [0.5], "variance": "small"}, "variance is to be"),
        ({"ts": [0.5], "variance": "learned"}, "gives none"),
    ):
        with pytest.raises(ValueError, match=message):
            discrete_vlb(exact, process, x, keys, **keywords)
    with pytest.raises(ValueError, match="draws is at least 1"):
        continuous_elbo(exact, process, x, keys, draws=0)
    with pytest.raises(ValueError, match="ProposeLogSNR is uniform in log-SNR"):
        continuous_elbo(gaussian(jd.Flow()), jd.Flow(), x, keys, t_max=1.0)


# --- The bound of the reverse SDE


@pytest.mark.parametrize("name", every_process())
def test_elbo_is_tight_for_the_exact_denoiser(name: str) -> None:
    """Its mean is that of ln p(x_0 + rho eps), whichever way times are drawn."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact, n = gaussian(process), 2000
        x = jnp.repeat(jnp.asarray(POINTS[:2]), n, axis=0)

        @jax.jit
        def run(x: jax.Array, keys: jax.Array) -> tuple[jax.Array, ...]:
            t_max = 1.0 if name in NO_SIGNAL_AT_END else None
            learned = learn_proposal(exact, process, x[::50], keys[::50], bins=16)
            find = functools.partial(continuous_elbo, exact, process, x, keys, draws=8, levels=None)
            return find().total, find(time=ProposeTime(), t_max=t_max).total, find(time=learned).total

        # E_eps ln p_y(x_0 + rho eps), p_y Gaussian of variance std^2 + rho^2
        t = process.min_time()
        ratio2 = jnp.square(process.sigma(t) / process.alpha(t))
        variance = (jnp.square(exact.std) + ratio2)[None]
        terms = (
            jnp.log(2 * math.pi * variance)
            + (jnp.square(POINTS[:2] - jnp.asarray(exact.mean)[None]) + ratio2) / variance
        )
        truth = 0.5 * terms.mean(axis=1) / math.log(2)
        even, in_time, learned = (total.reshape(2, n) for total in run(x, keys_of(2 * n)))
        slack = 1e-3  # the prior leaves the mean out
        for found in (even, in_time, learned):
            error = found.std(axis=1) / math.sqrt(n)
            assert (jnp.abs(found.mean(axis=1) - truth) < 4.5 * error + slack).all(), (found.mean(axis=1), truth)
        assert learned.std(axis=1).mean() < 1.02 * even.std(axis=1).mean()
        if name not in DISCRETE | {"VE"}:
            assert even.std(axis=1).mean() < in_time.std(axis=1).mean()


def test_parts_of_the_elbo() -> None:
    process = jd.Flow()
    exact, x, keys = gaussian(process), jnp.asarray(POINTS, jnp.float32), keys_of(4)
    bound = continuous_elbo(exact, process, x, keys)
    np.testing.assert_allclose(bound.total, bound.prior + bound.reconstruction + bound.diffusion, rtol=1e-6)
    assert all(part.shape == (4,) and jnp.isfinite(part).all() for part in bound)
    alone = continuous_elbo(exact, process, x[1:2], keys[1:2])
    np.testing.assert_allclose(alone.total[0], bound.total[1], rtol=1e-5)
    assert (prior_kl(process, x, 0.5) > prior_kl(process, x, 0.9)).all()
    weights = ProposeLogSNR(jnp.array([0.2, 0.5, 0.3]))
    u = jnp.linspace(0.001, 0.999, 2001)
    low, high = jnp.asarray(0.01), jnp.asarray(0.99)
    t, slope = weights.draw(process, u, low, high)
    assert (jnp.diff(t) < 0).all()  # from low log-SNR to high
    np.testing.assert_allclose(slope.mean(), angle(process, high) - angle(process, low), rtol=5e-3)
