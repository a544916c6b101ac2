"""Guidance as functions of denoisers."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond
from jaxdiff.guidance import SparseGuidance
from jaxdiff.prediction import from_x0
from jaxdiff.record import record

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


@record
class Labelled:
    """A denoiser of Gaussian data about a fifth of the label (0 for label 10), of deviation 1/2; notes its rows."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        assert cond is not None
        jax.debug.callback(ROWS.append, x.shape[0])
        label = cond["label"].reshape(-1, 1)
        mean = jnp.where(label == 10, 0.0, 0.2 * label)
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return from_x0(self.process, x, t, mean + gain * (x - alpha * mean))


ROWS: list[int] = []
COND = {"label": jnp.array([1, 2, 3])}
TIMES = jd.log_snr_times(PROCESS, 9)
START = jax.random.normal(jax.random.key(0), (3, 2))


@jax.jit
def drawn(denoise: object, x: jax.Array) -> jax.Array:
    return jd.sample(jd.DDIM(PROCESS), denoise, None, x, TIMES, COND)  # type: ignore[arg-type]


def rows(denoise: object) -> tuple[jax.Array, list[int]]:
    """Samples, and the rows of each call."""
    ROWS.clear()
    samples = jax.block_until_ready(drawn(denoise, START))
    jax.effects_barrier()
    return samples, list(ROWS)


def test_branches_together_or_one_after_the_other() -> None:
    together, once = rows(jd.ClassifierFree(Labelled(PROCESS), 3.0, {"label": 10}))
    apart, twice = rows(jd.ClassifierFree(Labelled(PROCESS), 3.0, {"label": 10}, sequential=True))
    np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-6)
    assert once == [6] * 9 and twice == [3] * 18


def test_interval_leaves_the_null_branch_out() -> None:
    """Equation (2), by hand; outside the null branch is not evaluated."""
    guided = jd.ClassifierFree(Labelled(PROCESS), 3.0, {"label": 10})
    rho = PROCESS.sigma(TIMES) / PROCESS.alpha(TIMES)
    low, high = float(rho[6]) * 1.001, float(rho[2]) * 1.001
    found, calls = rows(SparseGuidance(guided, PROCESS, rho_min=low, rho_max=high))
    assert calls == [3, 3, 6, 6, 6, 6, 3, 3, 3]
    x = START
    for i, t in enumerate(TIMES):
        given = (guided if 2 <= i < 6 else guided.denoise)(x, t, COND)
        if i + 1 < len(TIMES):
            x = PROCESS.alpha(TIMES[i + 1]) * given.x0 + PROCESS.sigma(TIMES[i + 1]) * given.eps
    np.testing.assert_allclose(found, given.x0, rtol=1e-4, atol=1e-5)
    everywhere, _ = rows(SparseGuidance(guided, PROCESS))
    np.testing.assert_allclose(everywhere, rows(guided)[0], rtol=1e-6)

    times = jnp.array([TIMES[0], TIMES[3], TIMES[8]])  # one a sample
    mixed = SparseGuidance(guided, PROCESS, rho_min=low, rho_max=high)(START, times, COND)
    np.testing.assert_allclose(mixed.x0[1], guided(START, times, COND).x0[1], rtol=1e-5)
    np.testing.assert_allclose(mixed.x0[::2], guided.denoise(START, times, COND).x0[::2], rtol=1e-5)


def test_the_null_branch_is_reused() -> None:
    """Every k-th evaluation computes it; k = 1 is plain guidance; the error grows with k; the pair stays one of x."""
    for sequential in (False, True):
        guided = jd.ClassifierFree(Labelled(PROCESS), 3.0, {"label": 10}, sequential=sequential)
        plain, errors = rows(guided)[0], []
        both, one = ([3, 3], [3]) if sequential else ([6], [3])
        for every in (1, 2, 4):
            samples, calls = rows(SparseGuidance(guided, PROCESS, every))
            assert calls == [row for i in range(9) for row in (one if i % every else both)]
            errors.append(float(jnp.abs(samples - plain).max()))
        assert errors[0] < 1e-6 and 0.1 < errors[1] < errors[2], errors
    rho = PROCESS.sigma(TIMES) / PROCESS.alpha(TIMES)
    within = {"rho_min": float(rho[6]) * 1.001, "rho_max": float(rho[2]) * 1.001}
    together = jd.ClassifierFree(Labelled(PROCESS), 3.0, {"label": 10})
    assert rows(SparseGuidance(together, PROCESS, 3, **within))[1] == [3, 3, 6, 3, 3, 6, 3, 3, 3]  # counted from within
    sparse = SparseGuidance(guided, PROCESS, 2)
    memory = sparse.begin(START, COND)
    for t in TIMES[:2]:
        given, memory = sparse.recall(START, t, COND, memory)
    np.testing.assert_allclose(PROCESS.perturb(given.x0, given.eps, TIMES[1]), START, rtol=1e-4, atol=1e-5)
    assert int(memory.computed) == 1


def test_sparse_guidance_refuses_what_means_nothing() -> None:
    guided = jd.ClassifierFree(by_label, 2.0, {"label": 10})
    for every in (0, 1.5, jnp.array([1, 2])):
        with pytest.raises(ValueError, match="every is to be a whole number, 1 or more"):
            SparseGuidance(guided, PROCESS, every)
    with pytest.raises(ValueError, match=r"0 <= rho_min < rho_max, got 2\.0 and 1\.0"):
        SparseGuidance(guided, PROCESS, rho_min=2.0, rho_max=1.0)
