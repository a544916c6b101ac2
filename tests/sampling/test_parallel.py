"""Picard iteration: the sequential sample, in no more iterations than steps, each sample by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.sampling import sample_parallel
from tests.tables import mixture

PROCESS = jd.VP()
METHODS: dict[str, Callable[[jd.Process], jd.Sampler]] = {
    "DDIM": jd.DDIM,
    "Euler": jd.Euler,
    "Heun": lambda process: jd.Heun(process, "rho"),
    "DDPM": jd.DDPM,
}
STEPS = 12


def problem(batch: int = 5) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys, ts = jd.sample_keys(jax.random.key(0), 0, batch), jd.log_snr_times(PROCESS, STEPS + 1)
    return keys, PROCESS.prior_sample(keys, (2,), ts[0]), ts


@pytest.mark.parametrize("window", [STEPS + 5, 4])
def test_it_is_the_sequential_sample(window: int) -> None:
    """Without a tolerance, in at most as many iterations as steps, stochastic methods too."""
    with jax.enable_x64(True):
        process, (keys, x, ts) = jd.VP(), problem()
        exact = mixture(process)

        @jax.jit
        def both(keys: jax.Array, x: jax.Array, ts: jax.Array) -> dict[str, Any]:
            return {
                name: (
                    jd.sample(make(process), exact, keys, x, ts),
                    *sample_parallel(make(process), exact, keys, x, ts, window=window, tolerance=0.0),
                )
                for name, make in METHODS.items()
            }

        for name, (expected, found, iterations) in both(keys, x, ts).items():
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10, err_msg=name)
            assert iterations.shape == (5,) and (iterations <= STEPS).all() and (iterations > STEPS // 2).all(), name


def test_tolerance_trades_error_for_iterations() -> None:
    """The tolerance is data, one a sample if wanted."""
    _, x, ts = problem(64)
    exact = mixture(PROCESS)
    expected = jax.jit(jd.sample)(jd.DDIM(PROCESS), exact, None, x, ts)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(tolerance: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sample_parallel(jd.DDIM(PROCESS), exact, None, x, ts, window=STEPS, tolerance=tolerance)

    taken, errors = [], []
    for tolerance in (1e-4, 1e-2, 1e-1):
        x0, iterations = run(jnp.full(64, tolerance))
        taken.append(float(iterations.mean()))
        errors.append(float(jnp.abs(x0 - expected).max()))
        assert errors[-1] < 10 * tolerance
    assert taken == sorted(taken, reverse=True) and taken[0] < STEPS and taken[-1] < 0.7 * STEPS, taken
    mixed, iterations = run(jnp.where(jnp.arange(64) < 32, 1e-4, 1e-1))
    np.testing.assert_array_equal(mixed[:32], run(jnp.full(64, 1e-4))[0][:32])
    np.testing.assert_array_equal(mixed[32:], run(jnp.full(64, 1e-1))[0][32:])


def windowed(step: Callable[[int, Any], Any], z: Any, steps: int, window: int, tolerance: float) -> tuple[Any, int]:
    """Algorithm 1 of the paper for one sample, in its own words: the last point and the iterations."""
    points, begin, iterations = [z] * (window + 1), 0, 0
    while begin < steps:
        within = min(window, steps - begin)
        moved = [step(begin + j, points[j]) - points[j] for j in range(within)]
        new = [points[0] + sum(moved[:j], 0 * z) for j in range(within + 1)]
        error = [float(np.sqrt(np.mean((new[j] - points[j]) ** 2))) for j in range(within)]
        stride = next((j for j in range(1, within) if error[j] > tolerance), within)
        points = (new[stride:] + [new[-1]] * stride)[: window + 1] + [new[-1]] * (window - within)
        begin, iterations = begin + stride, iterations + 1
    return points[0], iterations


@pytest.mark.parametrize(("window", "tolerance"), [(4, 3e-2), (STEPS, 1e-2)])
def test_it_is_the_papers_algorithm(window: int, tolerance: float) -> None:
    """The same window slides as far in each iteration."""
    _, x, ts = problem(3)
    exact = mixture(PROCESS)
    size = np.asarray(jnp.sqrt(PROCESS.alpha(ts) ** 2 + PROCESS.sigma(ts) ** 2))
    euler = jax.jit(lambda x, t, s: jd.DDIM(PROCESS).step(exact, jd.step_noise(None, x), (), x, t, s)[0])

    def step(i: int, z: Any) -> Any:
        return np.asarray(euler(size[i] * z[None], ts[i], ts[i + 1]))[0] / size[i + 1]

    found, iterations = sample_parallel(jd.DDIM(PROCESS), exact, None, x, ts, window=window, tolerance=tolerance)
    for i in range(3):
        z, taken = windowed(step, np.asarray(x[i]) / size[0], STEPS, window, tolerance)
        assert int(iterations[i]) == taken < STEPS
        expected = exact(size[-1] * jnp.asarray(z)[None], ts[-1]).x0[0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)


def test_a_sample_depends_on_no_other() -> None:
    keys, x, ts = problem()
    exact = mixture(PROCESS)
    x0, iterations = sample_parallel(jd.DDPM(PROCESS), exact, keys, x, ts, window=6, tolerance=1e-2)
    part, some = sample_parallel(jd.DDPM(PROCESS), exact, keys[3:], x[3:], ts, window=6, tolerance=1e-2)
    np.testing.assert_allclose(part, x0[3:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(some, iterations[3:])


def test_data_of_unit_variance_need_one_iteration_a_window() -> None:
    """z is constant along the flow, so that the first guess is the answer."""
    _, x, ts = problem()
    exact = jd.GaussianDenoiser(PROCESS, 0.0, 1.0)
    _, iterations = sample_parallel(jd.Heun(PROCESS, "angle"), exact, None, x, ts, window=5, tolerance=1e-4)
    np.testing.assert_array_equal(iterations, -(-STEPS // 5))


def test_the_window_is_one_call() -> None:
    """Of window x batch rows, each with its time and condition; a last denoising besides."""
    _, x, ts = problem(3)
    calls: list[tuple[Any, Any, Any]] = []
    exact = jd.GaussianDenoiser(PROCESS, 0.0, 1.0)

    def denoise(x: jax.Array, t: Any, cond: Any = None) -> jd.Prediction:
        calls.append((x.shape, jnp.shape(t), cond["label"].shape))
        return exact(x, t)

    cond = {"label": jnp.arange(3)}
    jax.eval_shape(lambda x: sample_parallel(jd.DDIM(PROCESS), denoise, None, x, ts, cond, window=5), x)
    assert ((15, 2), (15,), (15,)) in calls
    assert {rows for (rows, _), _, _ in calls} == {1, 3, 15}  # one row: the trace that the batched call replaces


def test_eight_devices(run_python: Any) -> None:
    """The window split over devices gives the same samples in as many iterations."""
    code = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jaxdiff as jd
from jaxdiff.sampling import sample_parallel
from tests.sampling.test_parallel import PROCESS, problem
from tests.tables import mixture

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
keys, x, ts = problem(2)
seen = []

def denoise(x, t, cond=None):
    if x.shape[0] == 16:
        jax.debug.inspect_array_sharding(x, callback=lambda s: seen.append(s.num_devices))
    return mixture(PROCESS)(x, t)

def run(sharding):
    return jax.jit(
        lambda x: sample_parallel(jd.DDPM(PROCESS), denoise, keys, x, ts, window=8, tolerance=1e-2, sharding=sharding)
    )(x)

one, eight = run(None), run(NamedSharding(mesh, PartitionSpec("data")))
np.testing.assert_allclose(one[0], eight[0], rtol=1e-5, atol=1e-5)
np.testing.assert_array_equal(one[1], eight[1])
print("devices", max(seen))
"""
    assert "devices 8" in run_python("-c", code, devices=8).stdout


def test_what_does_not_fit_is_refused() -> None:
    _, x, ts = problem()
    exact = mixture(PROCESS)
    for sampler in (jd.DPMpp2M(PROCESS), jd.UniPC(PROCESS), jd.Adaptive(PROCESS)):
        with pytest.raises(ValueError, match="remembers earlier steps"):
            sample_parallel(sampler, exact, None, x, ts, window=4)
    with pytest.raises(ValueError, match="window is to be a whole number, 1 or more, got 0"):
        sample_parallel(jd.DDIM(PROCESS), exact, None, x, ts, window=0)
    with pytest.raises(ValueError, match="tolerance is to be 0 or more"):
        sample_parallel(jd.DDIM(PROCESS), exact, None, x, ts, window=4, tolerance=-1.0)
    with pytest.raises(ValueError, match="fall from noise to data"):
        sample_parallel(jd.DDIM(PROCESS), exact, None, x, ts[::-1], window=4)
