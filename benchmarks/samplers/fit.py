"""Finds the grids and weights of `jaxdiff.sampling.recommended`, on the ``--dev`` problems.

    python -m benchmarks.samplers.fit 5 8 10 --data DIR --out fit.json
    python -m benchmarks.samplers.fit 5 8 10 15 20 --data DIR --check

in the environment of `benchmarks/samplers_vs_diffusers.py`, with `cma`. For n evaluations the unknowns are the grid
rho_0 > ... > rho_{n-1} in sigma/alpha, followed by 0, and for n up to `TABULATED` the weights B of
`jaxdiff.sampling.tabulated`, on the process smoothed by 0.15:

    ln rho_0 = min(a_0, ln 80),    ln rho_i = ln rho_{i-1} - e^{a_i},                                (1)
    B = B_U(rho) + C,    C_ij free for j < i,    C_ii = -sum_{j < i} C_ij,                           (2)

B_U being UniPC's with its corrector on that grid, got from the sampler itself, which is linear in the predictions of
x0 (`as_table`). Above `TABULATED`, C = 0. With e_k the mean over the problems of kind k of the logarithm of the error,
and T_k diffusers' best there,

    J = 1/4 ln sum_k exp 4 (e_k - ln T_k),                                                           (3)

a smooth maximum over the kinds, is brought down by Adam through the sampler and then by CMA-ES, which does not mind
that on images the error jumps where a sample falls into another basin.

The kinds: six mixtures; 256 starts on the digits; and, for CIFAR-10, whose full size is too slow to descend on, 256
starts on 5,000 training images averaged over blocks of 4 x 4 and scaled by 4, so that the distances between images are
as they were.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cma
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from benchmarks.report import say, write
from benchmarks.samplers.problems import RHO_MAX, WIDTH, Problem, empirical, images, load, referenced, scaled_space
from jaxdiff import Prediction, Sampler, integrate
from jaxdiff.data import open_cifar10
from jaxdiff.prediction import from_x0
from jaxdiff.sampling.recommended import FOURTH, GRIDS, WEIGHTS
from jaxdiff.sampling.smoothed import Smoothed, SmoothedDenoiser
from jaxdiff.sampling.tabulated import Tabulated
from jaxdiff.sampling.unipc import UniPC

TABULATED = 10
"""Evaluations up to which the weights are fitted too."""

KINDS = ("mixture", "digits", "cifar10 pooled")
TARGETS = {
    5: (0.060, 0.118, 0.34),
    8: (0.036, 0.049, 0.142),
    10: (0.018, 0.028, 0.08),
    15: (0.006, 0.008, 0.03),
    20: (0.0025, 0.003, 0.015),
}
"""T_k: the error of diffusers' best on each kind, about."""

STARTS = 256


def problems(data: Path, cache: Path) -> list[tuple[int, Problem, Any]]:
    """(kind, problem, dtype to work in)."""
    mixtures = [load("mixture", False, None, cache, variant) for variant in range(6)]
    digits = load("digits", False, None, cache, samples=STARTS)
    fine = images(open_cifar10(data, split="train"), 0, 5000).reshape(5000, 8, 4, 8, 4, 3)
    noise = np.random.default_rng(1400).standard_normal((STARTS, 8, 8, 3))
    pooled = referenced(KINDS[2], empirical(4.0 * fine.mean(axis=(2, 4))), noise, cache, f"pooled {STARTS} 1400")
    return [(0, problem, jnp.float64) for problem in mixtures] + [(1, digits, jnp.float32), (2, pooled, jnp.float32)]


def as_table(sampler: Sampler, ts: Array) -> Array:
    """B of `Tabulated`, of a sampler linear in the predictions of x0: each prediction is told apart by its time.

    >>> import jax.numpy as jnp
    >>> from jaxdiff import DDIM, Flow
    >>> bool(jnp.allclose(as_table(DDIM(Flow()), jnp.array([0.9, 0.5, 0.2])), jnp.eye(2), atol=1e-5))
    True
    """
    process, n = sampler.process, len(ts) - 1

    def unit(x: Array, t: ArrayLike) -> Prediction:
        return from_x0(process, x, t, jnp.eye(n, dtype=x.dtype)[jnp.argmin(jnp.abs(ts[:-1] - t))][None])

    x = jnp.zeros((1, n), ts.dtype)
    state, rows = sampler.init(x), []
    for t, s in itertools.pairwise(ts):
        ahead, state = sampler.step(unit, _silent, state, x, t, s)
        kept = process.sigma(s) / process.sigma(t)
        rows.append((ahead - kept * x)[0] / (process.alpha(s) - process.alpha(t) * kept))
        x = ahead
    return jnp.stack(rows)


def _silent(*_: Any) -> Array:
    raise AssertionError("a sampler with noise has no table")


def solver(unknowns: Array, n: int) -> tuple[Array, Array]:
    """Equations (1) and (2): the grid in sigma/alpha, and B."""
    start = jnp.minimum(unknowns[:1], jnp.log(RHO_MAX))
    rhos = jnp.exp(jnp.concatenate([start, start - jnp.cumsum(jnp.exp(unknowns[1:n]))]))
    weights = as_table(_unipc(n), _times(rhos))
    if n <= TABULATED:
        change = jnp.zeros((n, n), weights.dtype).at[np.tril_indices(n, -1)].set(unknowns[n:])
        weights = weights + change - jnp.diag(change.sum(axis=1))
    return rhos, weights


def unknowns_of(rhos: Sequence[float], weights: NDArray[np.float64] | None, n: int) -> NDArray[np.float64]:
    """The unknowns whose `solver` these are; None stands for UniPC's weights."""
    logs = np.log(rhos)
    grid = np.concatenate([logs[:1], np.log(-np.diff(logs))])
    if n > TABULATED:
        return grid
    change = np.zeros((n, n))
    if weights is not None:
        change = weights - np.asarray(as_table(_unipc(n), _times(np.array(rhos))))
    return np.concatenate([grid, change[np.tril_indices(n, -1)]])


def _unipc(n: int) -> Sampler:
    return UniPC(Smoothed(scaled_space(), WIDTH), order=3 if n < FOURTH else 4)


def _times(rhos: Array | NDArray[np.float64]) -> Array:
    return jnp.append(jnp.asarray(rhos), 0.0) / RHO_MAX


@functools.partial(jax.jit, static_argnames="dtype")
def _error(exact: Any, noise: Array, reference: Array, rhos: Array, weights: Array, dtype: Any) -> Array:
    process, ts = scaled_space(), _times(rhos).astype(dtype)
    sampler = Tabulated(Smoothed(process, WIDTH), weights.astype(dtype))
    x = (rhos[0] * noise).astype(dtype)
    x0 = integrate(sampler, SmoothedDenoiser(exact, Smoothed(process, WIDTH)), None, x, ts)[0]
    return jnp.sqrt(jnp.square(x0 - reference).reshape(len(noise), -1).mean(axis=1)).mean()


def logarithms(cases: Sequence[tuple[int, Problem, Any]], n: int) -> Callable[[Array], Array]:
    """The unknowns to e_k - ln T_k."""
    exacts = [problem.build(scaled_space(), dtype) for _, problem, dtype in cases]
    counts = np.bincount([kind for kind, _, _ in cases])

    def ratios(unknowns: Array) -> Array:
        rhos, weights = solver(unknowns, n)
        found = -jnp.log(jnp.array(TARGETS[n]))
        for (kind, problem, dtype), exact in zip(cases, exacts, strict=True):
            error = _error(exact, problem.noise, problem.reference, rhos, weights, dtype)
            found = found.at[kind].add(jnp.log(error) / counts[kind])
        return found

    return ratios


def objective(logarithms: Array) -> Array:
    """Equation (3)."""
    return jax.nn.logsumexp(4.0 * logarithms) / 4.0


def descend(
    ratios: Callable[[Array], Array], begin: NDArray[np.float64], n: int, steps: int
) -> tuple[NDArray[np.float64], float]:
    """Adam through the sampler: the best unknowns met, and their J."""
    schedule = optax.cosine_decay_schedule(0.03, max(steps, 1), 0.03)
    optimizer = optax.chain(optax.clip_by_global_norm(2.0), optax.adam(schedule))
    unknowns, call = jnp.asarray(begin), jax.value_and_grad(lambda unknowns: objective(ratios(unknowns)))
    state, best = optimizer.init(unknowns), (begin, float("inf"))
    for _ in range(steps):
        value, gradient = call(unknowns)
        if float(value) < best[1]:
            best = (np.asarray(unknowns), float(value))
        if not bool(jnp.isfinite(gradient).all()):
            raise FloatingPointError(f"the gradient of J for {n} evaluations is not finite at {unknowns}")
        updates, state = optimizer.update(gradient, state)
        unknowns = unknowns + updates
    return best


def evolve(
    ratios: Callable[[Array], Array], begin: NDArray[np.float64], generations: int, spread: float
) -> tuple[NDArray[np.float64], float]:
    """CMA-ES around the unknowns: the best met, and their J."""
    strategy = cma.CMAEvolutionStrategy(begin, spread, {"seed": 1, "maxiter": generations, "verbose": -9})
    while not strategy.stop():
        tried = strategy.ask()
        values = [float(objective(ratios(jnp.asarray(one)))) for one in tried]
        strategy.tell(tried, [value if np.isfinite(value) else 99.0 for value in values])
    return np.asarray(strategy.result.xbest), float(strategy.result.fbest)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=int, nargs="+", choices=sorted(TARGETS), help="the budgets")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samplers"), help="folder for reference solutions")
    parser.add_argument("--steps", type=int, default=300, help="of Adam")
    parser.add_argument("--generations", type=int, default=400, help="of CMA-ES")
    parser.add_argument("--spread", type=float, default=0.05, help="CMA-ES's first standard deviation")
    parser.add_argument("--begin", choices=["plain", "table"], default="plain", help="a geometric grid, or the table's")
    parser.add_argument("--check", action="store_true", help="only say what the tables give")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for grids and weights")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    cases, found = problems(options.data, options.cache), {}
    for n in options.evaluations:
        ratios = logarithms(cases, n)
        table = unknowns_of(GRIDS[n], _full(n) if n in WEIGHTS else None, n)
        say(_said(f"{n} evaluations, the table in jaxdiff", ratios(jnp.asarray(table))))
        if options.check:
            continue
        unknowns = table if options.begin == "table" else unknowns_of(np.geomspace(60.0, 0.15, n).tolist(), None, n)
        began = time.monotonic()
        for stage in (
            lambda start: descend(ratios, start, n, options.steps),  # noqa: B023
            lambda start: evolve(ratios, start, options.generations, options.spread),  # noqa: B023
        ):
            unknowns = stage(unknowns)[0]
            say(_said(f"{n} evaluations, {time.monotonic() - began:.0f} s", ratios(jnp.asarray(unknowns))))
        rhos, weights = solver(jnp.asarray(unknowns), n)
        found[n] = {
            "rhos": rhos.tolist(),
            "weights": weights.tolist() if n <= TABULATED else None,
            "ratios": np.exp(ratios(jnp.asarray(unknowns))).tolist(),
        }
        if options.out is not None:
            write(options.out, {"kinds": KINDS, "targets": TARGETS[n], "found": found}, ("jax", "numpy", "cma"))
    return 0


def _full(n: int) -> NDArray[np.float64]:
    weights = np.zeros((n, n))
    for i, row in enumerate(WEIGHTS[n]):
        weights[i, : i + 1] = row
    return weights


def _said(what: str, logarithms: Array) -> str:
    shares = ", ".join(f"{kind} {value:.3f}" for kind, value in zip(KINDS, np.exp(logarithms), strict=True))
    return f"{what}: J = {float(objective(logarithms)):.3f}; error over diffusers' best: {shares}"


if __name__ == "__main__":
    sys.exit(main())
