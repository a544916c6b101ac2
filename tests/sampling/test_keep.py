"""States and predictions at chosen steps."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.denoiser import Cond
from jaxdiff.noise import step_noise
from jaxdiff.record import record

PROCESS = jd.VP()
EXACT = jd.GaussianDenoiser(PROCESS, 1.0, 0.5)
TIMES = jd.log_snr_times(PROCESS, 9, t_max=0.95)
KEYS = jd.sample_keys(jax.random.key(0), 0, 4)
START = PROCESS.prior_sample(KEYS, (3,), TIMES[0])

SAMPLERS = [
    jd.DDIM(PROCESS),
    jd.DDIM(PROCESS, 1.0),
    jd.UniPC(PROCESS),
    jd.Heun(PROCESS, "rho"),
    jd.EDMStochastic(PROCESS),  # evaluates elsewhere
    jd.Adaptive(PROCESS, rtol=1e-2, atol=1e-2),  # in a loop of its own, with a time of each sample's
    jd.AnnealedLangevinDynamics(PROCESS, steps=2),  # at the time of arrival
    jd.Restart(jd.DPMpp2M(PROCESS), rho_min=0.5, rho_max=2.0),
]


def by_hand(sampler: jd.Sampler, ts: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """The state at each time, and x0."""
    noise = step_noise(KEYS, START)
    step = jax.jit(lambda state, x, t, s: sampler.step(EXACT, noise, state, x, t, s))
    x, state, states = START, sampler.init(START), [START]
    for t, s in itertools.pairwise(ts):
        x, state = step(state, x, t, s)
        states.append(x)
    return states, EXACT(x, ts[-1]).x0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}")
def test_kept_is_what_stepping_by_hand_gives(sampler: jd.Sampler) -> None:
    states, last = by_hand(sampler, TIMES)
    at = (4, 0, -1, 7)
    keep = jd.Keep(at, prediction=True)
    x0, kept = jax.jit(lambda x: jd.sample(sampler, EXACT, KEYS, x, TIMES, keep=keep))(START)
    np.testing.assert_allclose(x0, last, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x0, jd.sample(sampler, EXACT, KEYS, START, TIMES), rtol=1e-4, atol=1e-5)
    for row, i in enumerate(at):
        np.testing.assert_allclose(kept.x[row], states[i], rtol=1e-4, atol=1e-5)
        there = EXACT(states[i], TIMES[i])
        np.testing.assert_allclose(kept.prediction.x0[row], there.x0, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(kept.prediction.eps[row], there.eps, rtol=1e-3, atol=1e-4)
    assert kept.prediction.variance is None


@pytest.mark.parametrize("sampler", [SAMPLERS[2], SAMPLERS[4]], ids=["seen", "evaluated"])
def test_a_traced_number_of_steps(sampler: jd.Sampler) -> None:
    """One program for all; the last time is that of the number; times that were not visited are NaN."""
    keep = jd.Keep((0, 3, 8), prediction=True)
    run = jax.jit(lambda n: jd.sample(sampler, EXACT, KEYS, START, TIMES, num_steps=n, keep=keep))
    for n in (0, 3, 5, 8):
        states, last = by_hand(sampler, TIMES[: n + 1])
        x0, kept = run(n)
        np.testing.assert_allclose(x0, last, rtol=1e-4, atol=1e-5)
        for row, i in enumerate(keep.at):
            if i <= n:
                np.testing.assert_allclose(kept.x[row], states[i], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(kept.prediction.x0[row], EXACT(states[i], TIMES[i]).x0, rtol=1e-4, atol=1e-5)
            else:
                assert all(bool(jnp.isnan(leaf[row]).all()) for leaf in jax.tree.leaves(kept))
    assert run._cache_size() == 1  # type: ignore[attr-defined]


ROWS: list[int] = []


@record
class Counted:
    """Counts its evaluations."""

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        jax.debug.callback(lambda _: ROWS.append(1), x[0, 0])
        return EXACT(x, t)


def test_predictions_cost_nothing_where_the_sampler_makes_them() -> None:
    for sampler, without, more in ((jd.UniPC(PROCESS), 9, 0), (jd.EDMStochastic(PROCESS), 17, 2)):
        for keep, calls in ((None, without), (jd.Keep((0, 4, -1), prediction=True), without + more)):
            ROWS.clear()
            options: dict[str, Any] = {} if keep is None else {"keep": keep}
            jax.block_until_ready(jd.sample(sampler, Counted(), KEYS, START, TIMES, **options))
            jax.effects_barrier()
            assert len(ROWS) == calls


def test_memory_is_that_of_the_rows_whatever_the_number_of_steps() -> None:
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def temporaries(n: int, at: tuple[int, ...] | None) -> int:
        ts, keep = jd.log_snr_times(PROCESS, n), None if at is None else jd.Keep(at, prediction=True)
        options: dict[str, Any] = {} if keep is None else {"keep": keep}
        run = jax.jit(lambda x: jd.sample(jd.UniPC(PROCESS), EXACT, None, x, ts, **options))
        memory: Any = run.lower(x).compile().memory_analysis()
        return int(memory.temp_size_in_bytes)

    size, at = 64 * 64 * 4, (0, 3, 6)
    few, many = temporaries(9, at), temporaries(129, at)
    assert many - few < size, (few, many)  # of 120 steps more, each 3 arrays of that size
    assert many - temporaries(129, None) < 3 * 2 * (len(at) + 1) * size  # the rows, once more where they are returned


def test_sample_path_keeps_all() -> None:
    states, last = by_hand(jd.UniPC(PROCESS), TIMES)
    xs, x0 = jd.sample_path(jd.UniPC(PROCESS), EXACT, KEYS, START, TIMES)
    np.testing.assert_allclose(xs, jnp.stack(states), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x0, last, rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda x: jd.sample_path(jd.DDIM(PROCESS), EXACT, None, x, TIMES)[0][4].sum())(START)
    by_steps = jax.grad(lambda x: jd.integrate(jd.DDIM(PROCESS), EXACT, None, x, TIMES[:5])[0].sum())(START)
    np.testing.assert_allclose(slope, by_steps, rtol=1e-4)


def test_under_debug_both_are_watched() -> None:
    keep = jd.Keep((0, 2), prediction=True)
    x0, kept = jd.sample(jd.DDIM(PROCESS), EXACT, None, START, TIMES, debug=True, keep=keep)
    assert kept.prediction is not None
    assert bool(jnp.isfinite(x0).all()) and bool(jnp.isfinite(kept.prediction.x0).all())
    with pytest.raises(FloatingPointError, match="is not finite"):
        jd.sample(jd.DDIM(PROCESS), EXACT, None, START.at[1].set(jnp.nan), TIMES, debug=True, keep=keep)


def test_what_cannot_be_kept_is_refused() -> None:
    at: Any
    options: Any
    for at, message in (
        ((0.5,), "keep.at is to be indices of times"),
        ((), "there is nothing to keep"),
    ):
        with pytest.raises(ValueError, match=message):
            jd.Keep(at)
    with pytest.raises(ValueError, match="there is nothing to keep"):
        jd.Keep((1,), x=False)
    for at, options, message in (
        ((9,), {}, "keep.at has 9; there are 9 times: indices are to be from -9 to 8"),
        ((-10,), {}, "keep.at has -10"),
        ((8, -1), {}, r"keep.at has time -1 twice, in \(8, -1\)"),
        ((-1,), {"num_steps": 3}, "indices are to be from 0 to 8 where num_steps is given"),
    ):
        with pytest.raises(ValueError, match=message):
            jd.sample(jd.DDIM(PROCESS), EXACT, None, START, TIMES, keep=jd.Keep(at), **options)
