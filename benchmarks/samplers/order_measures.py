"""How orders are measured.

*Deterministic.* A mixture's flow in the plane from rho = sigma/alpha = 2 to 0.1, float64. In y = x/alpha and rho the
flow is one curve for all processes (equation 2 of `jaxdiff.sampling.ode`), so one reference, `reference_path` on VE,
judges them all: e = rms(y - y*)/rms(y*) at the end. All numbers of steps run at once, each twice: from a history on the
true path, the first `SEEDS` steps being given its points, and from the method's own start.

*Weak.* Mean and variance of Gaussian data from rho = e^2 to e^-2, by `propagate`, against the true ones.

*Strong.* Samples of the mixture from rho = 3 to 0.5, each along its own Brownian path (`brownian_noise`), against a
fine solution along the same path.

An order is the mean slope over the finest three doublings of the steps that stand above rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.samplers.order_rows import AdaptiveRow, Row, StochasticRow
from jaxdiff import (
    VE,
    GaussianDenoiser,
    MixtureDenoiser,
    Process,
    Sampler,
    integrate,
    log_snr_times,
    sample_keys,
)
from jaxdiff.noise import brownian_noise, step_noise
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.choose import evaluations_a_step
from tests.sampling.propagation import propagate
from tests.sampling.reference import reference_path
from tests.tables import mixture

SEEDS = 4
FLOOR, WEAK_FLOOR = 3e-13, 1e-12
COUNTS = {"log_snr": tuple(20 * 2**k for k in range(8)), "rho": tuple(20 * 2**k for k in range(9))}
WEAK_COUNTS, STRONG_COUNTS, STRONG_STEPS = (40, 80, 160, 320), (16, 32, 64, 128), 4096
HIGH, LOW = 2.0, 0.1


def slope(counts: Sequence[float], errors: Sequence[float], floor: float = FLOOR, doublings: int = 3) -> float:
    """The order that errors fall with: over the finest doublings before the first error at rounding. NaN where fewer
    than two errors are above it.

    >>> slope((10, 20, 40, 80, 160), (1e-2, 2.5e-3, 6.25e-4, 1.5625e-4, 1e-14))
    2.0
    """
    clear = next((k for k, error in enumerate(errors) if not error > floor), len(errors))
    first = max(0, clear - 1 - doublings)
    if clear - first < 2:
        return math.nan
    last = clear - 1
    return math.log(errors[first] / errors[last]) / math.log(counts[last] / counts[first])


def ratios(grid: str, n: int, before: int = 0) -> np.ndarray:
    """rho at n steps from 2 to 0.1, preceded by as many more."""
    u = np.arange(-before, n + 1) / n
    return HIGH + u * (LOW - HIGH) if grid == "rho" else HIGH * (LOW / HIGH) ** u


def times_of(process: Process, rho: np.ndarray) -> Array:
    return process.time_of_log_snr(-2.0 * jnp.log(jnp.asarray(rho)))


@functools.cache
def start() -> np.ndarray:
    """y at rho = 2."""
    x0 = jnp.array([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]])
    return np.asarray(x0 + HIGH * jax.random.normal(jax.random.key(0), x0.shape))


_path = jax.jit(jax.vmap(reference_path, (None, None, None, 0, None)), static_argnums=4)


@functools.cache
def truth() -> np.ndarray:
    """y at rho = 0.1."""
    process = VE()
    ts = times_of(process, np.array([[HIGH, LOW]]))
    return np.asarray(_path(process, mixture(process), start(), ts, 10_000)[0, -1])


@functools.cache
def history(grid: str, counts: tuple[int, ...]) -> np.ndarray:
    """y on the true path at the `SEEDS` times before rho = 2 and at it, for each number of steps: ``(counts, SEEDS + 1,
    ...)``."""
    process = VE()
    rho = np.stack([ratios(grid, n, SEEDS)[SEEDS::-1] for n in counts])
    return np.asarray(_path(process, mixture(process), start(), times_of(process, rho), 200))[:, ::-1]


@jax.jit
def _ends(sampler: Sampler, exact: MixtureDenoiser, paths: Array, grids: Array, begins: Array, ends: Array) -> Array:
    """x at ``grids[:, ends]`` from ``begins``, steps before `SEEDS` being given the path: one lane a row."""

    def lane(path: Array, ts: Array, begin: Array, end: Array) -> Array:
        def body(i: Array, carry: tuple) -> tuple:
            x, state = carry
            x = jnp.where(i <= SEEDS, path[jnp.minimum(i, SEEDS)], x)
            return sampler.step(lambda x, t: exact(x, t), step_noise(None, x), state, x, ts[i], ts[i + 1])

        return jax.lax.fori_loop(begin, end, body, (path[SEEDS], sampler.init(path[SEEDS])))[0]

    return jax.vmap(lane)(paths, grids, begins, ends)


def _errors(process: Process, x: Array, t: Array) -> list[float]:
    """e of each of several ends x at t."""
    y, true = np.asarray(x / process.alpha(t)), truth()
    return np.sqrt(np.square(y - true).mean(axis=(1, 2)) / np.square(true).mean()).tolist()


def measure(row: Row, process: Process) -> dict[str, Any]:
    """Errors and orders of a deterministic method."""
    counts, sampler, exact = COUNTS[row.grid], row.make(process), mixture(process)
    rho = [np.pad(ratios(row.grid, n, SEEDS), (0, counts[-1] - n), mode="edge") for n in counts]
    grids, ends = times_of(process, np.stack(rho)), SEEDS + np.array(counts)
    paths = process.alpha(grids[:, : SEEDS + 1])[..., None, None] * history(row.grid, counts)
    lanes = (paths, grids, np.full(len(counts), SEEDS), ends)
    if row.multistep:
        seeded_lanes = (paths, grids, np.zeros_like(ends), ends)
        lanes = jax.tree.map(lambda *both: jnp.concatenate(both), seeded_lanes, lanes)
    errors = _errors(process, _ends(sampler, exact, *lanes), grids[0, -1])
    seeded, started = errors[: len(counts)], errors[-len(counts) :]
    return {
        "name": row.name,
        "counts": counts,
        "evaluations_a_step": evaluations_a_step(sampler, jnp.asarray(start()), grids[0, SEEDS : SEEDS + 2]),
        "seeded": seeded,
        "started": started,
        "order": row.order,
        "slope": slope(counts, seeded),
        "order_as_started": row.started,
        "slope_as_started": slope(counts, started),
        "judged": not (row.in_t and process.steps is not None),
    }


@jax.jit
def _adapted(sampler: Sampler, exact: MixtureDenoiser, x: Array, ts: Array) -> tuple[Array, Array]:
    x, progress = integrate(sampler, exact, None, x, ts)
    return x, progress.evaluations.mean()


def measure_adaptive(row: AdaptiveRow, process: Process) -> dict[str, Any]:
    """Errors and evaluations of an adaptive method by tolerance."""
    sampler, exact, ts = row.make(process), mixture(process), times_of(process, np.array([HIGH, LOW]))
    x = process.alpha(ts[0]) * start()
    tolerances, errors, evaluations = [10.0**k for k in row.exponents], [], []
    for tolerance in tolerances:
        end, count = _adapted(dataclasses.replace(sampler, rtol=tolerance, atol=tolerance), exact, x, ts)
        errors += _errors(process, end[None], ts[-1])
        evaluations.append(float(count))
    return {
        "name": row.name,
        "tolerances": tolerances,
        "errors": errors,
        "evaluations": evaluations,
        "order": row.order,
        "slope": slope(evaluations, errors, doublings=len(errors)),
    }


_propagated = jax.jit(propagate)


def measure_weak(row: StochasticRow, process: Process) -> dict[str, Any]:
    """Errors of mean and variance on Gaussian data; the order is the lesser of the two."""
    exact = GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.5))
    t_max, t_min = process.time_of_log_snr(-4.0), process.time_of_log_snr(4.0)
    alpha, sigma = process.alpha(t_min), process.sigma(t_min)
    true, errors = np.array([0.7, 0.25 + jnp.square(sigma / alpha)]), []
    for n in WEAK_COUNTS:
        ts = pad_times(log_snr_times(process, n + 1, t_max=t_max, t_min=t_min), WEAK_COUNTS[-1] + 1)
        mean, variance = _propagated(row.make(process, n), exact, ts, n)
        errors.append(np.abs(np.array([mean / alpha, variance / jnp.square(alpha)]) - true).tolist())
    slopes = [slope(WEAK_COUNTS, of, WEAK_FLOOR) for of in np.transpose(errors)]
    return {
        "name": row.name,
        "counts": WEAK_COUNTS,
        "mean": [e[0] for e in errors],
        "variance": [e[1] for e in errors],
        "order": row.weak,
        "slope": float(np.nanmin(slopes)),
        "judged": not (row.in_t and process.steps is not None),
    }


@jax.jit
def _followed(sampler: Sampler, exact: MixtureDenoiser, keys: Array, x: Array, ts: Array, n: int) -> Array:
    source = functools.partial(brownian_noise, depth=16)
    return integrate(sampler, exact, keys, x, ts, num_steps=n, noise=source)[0] / exact.process.alpha(ts[-1])


def measure_strong(rows: Sequence[StochasticRow], process: Process, paths: int = 256) -> list[dict[str, Any]]:
    """Mean distances to one fine solution along the same Brownian paths (Kloeden & Platen 1992, equation 9.6.3)."""
    exact, keys = mixture(process), sample_keys(jax.random.key(0), 0, paths)
    t_max, t_min = times_of(process, np.array([3.0, 0.5]))
    noise = jax.random.normal(jax.random.key(2), (paths, 2))
    x = process.perturb(exact.sample_data(jax.random.key(1), paths), noise, t_max)

    def solution(row: StochasticRow, n: int) -> np.ndarray:
        ts = pad_times(log_snr_times(process, n + 1, t_max=t_max, t_min=t_min), STRONG_STEPS + 1)
        return np.asarray(_followed(row.make(process, n), exact, keys, x, ts, n))

    found = []
    fine = solution(next(row for row in rows if row.name == "DPMpp2MSDE"), STRONG_STEPS)
    for row in rows:
        if row.strong is None:
            continue
        errors = [float(np.linalg.norm(solution(row, n) - fine, axis=1).mean()) for n in STRONG_COUNTS]
        found.append(
            {
                "name": row.name,
                "counts": STRONG_COUNTS,
                "errors": errors,
                "order": row.strong,
                "slope": slope(STRONG_COUNTS, errors),
                "judged": not (row.in_t and process.steps is not None),
            }
        )
    return found
