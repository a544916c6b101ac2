"""A sampler and its times, chosen for a denoiser and a budget of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.grid import karras_times, log_snr_times, quadratic_times, trailing_times, uniform_times
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.sampling.ancestral import DDIM
from jaxdiff.sampling.base import Sampler, start
from jaxdiff.sampling.grid_search import (
    TeacherPath,
    as_arguments,
    end_probes,
    error_of,
    gits_times,
    no_noise,
    polish_times,
    teacher_path,
)
from jaxdiff.sampling.multistep import DPMpp2M
from jaxdiff.sampling.ode import Heun

Grid = Callable[..., Array]
"""``grid(process, n, t_max=..., t_min=...)``, one of `jaxdiff.grid`."""

GRIDS: Mapping[str, Grid] = {
    "log_snr": log_snr_times,
    "karras": karras_times,
    "uniform": uniform_times,
    "quadratic": quadratic_times,
    "trailing": trailing_times,
}


class Choice(NamedTuple):
    """What `choose` found.

    Attributes:
      sampler: the best method.
      ts: its times.
      names: of the sampler and the grid.
      error: mean over the batch of the root mean square error to the teacher.
      table: all errors, ``{(sampler, grid): error}``.
    """

    sampler: Sampler
    ts: Array
    names: tuple[str, str]
    error: float
    table: dict[tuple[str, str], float]


def evaluations_a_step(sampler: Sampler, x: Array, ts: ArrayLike) -> int:
    """How often a step evaluates the denoiser, by tracing one; both branches of a `jax.lax.cond` count.

    Raises:
      ValueError: the sampler draws noise.
    """
    calls = 0

    def counted(x: Array, t: ArrayLike) -> Prediction:
        nonlocal calls
        calls += 1
        return Prediction(x, x)

    times = jnp.asarray(ts, jnp.result_type(float))
    jax.eval_shape(lambda x: sampler.step(counted, no_noise, sampler.init(x), x, times[0], times[1])[0], x)
    return calls


def choose(
    denoise: Denoiser,
    process: Process,
    x: Array,
    budget: int,
    *,
    samplers: Mapping[str, Sampler] | None = None,
    grids: Mapping[str, Grid] = GRIDS,
    path: TeacherPath | None = None,
    cond: Cond | None = None,
    rounds: int = 8,
) -> Choice:
    """The sampler and times with the least error to the teacher among those that ``budget`` evaluations pay for.

    Each sampler, with as many times as the budget pays for (its evaluations a step, and one for the last denoising), is
    tried with each of ``grids`` and with the searched ones of `gits_times`: "gits", "gits_flat" (gamma = 1) and
    "gits_end" (with `end_probes`). Then the best of these is polished (`polish_times`), "polished". Judge the outcome
    on other noise than ``x``: a grid fits the samples that chose it a little better.

    Args:
      denoise: the denoiser.
      process: the process.
      x: noise at the path's first time, ``(B, ...)``, that of 64 `log_snr_times` where there is no ``path``. Some tens
        of samples suffice.
      budget: evaluations a sample, at least 1.
      samplers: deterministic methods by name; None is DDIM, DPMpp2M and Heun.
      grids: functions of `jaxdiff.grid` by name.
      path: the teacher's, if there is one already.
      cond: the condition, batch first.
      rounds: of polishing; 0 leaves it out.

    Raises:
      ValueError: no budget; a sampler that draws noise, or that refuses the times.

    >>> from jaxdiff import GaussianDenoiser, VE, sample_keys
    >>> process = VE()
    >>> x = process.prior_sample(sample_keys(jax.random.key(0), 0, 8), (2,), log_snr_times(process, 64)[0])
    >>> choice = choose(GaussianDenoiser(process, 0.0, 0.5), process, x, 6, samplers={"DDIM": DDIM(process)})
    >>> choice.names, len(choice.ts)
    (('DDIM', 'polished'), 6)
    """
    if budget < 1:
        raise ValueError(f"the last denoising is one evaluation, so the budget is at least 1, got {budget}")
    if samplers is None:
        samplers = {"DDIM": DDIM(process), "DPMpp2M": DPMpp2M(process), "Heun": Heun(process, "rho")}
    path = teacher_path(denoise, process, x, cond=cond) if path is None else path
    arguments, call = as_arguments(denoise)
    measure = jax.jit(lambda d, sampler, x, ts, x0, cond: error_of(sampler, call(d), x, ts, x0, cond))
    table: dict[tuple[str, str], float] = {}
    tried: dict[tuple[str, str], Array] = {}
    between = {"t_max": path.ts[0], "t_min": path.ts[-1]}
    probes = end_probes(denoise, process, path, jax.random.key(0), cond)
    for name, sampler in samplers.items():
        n = (budget - 1) // evaluations_a_step(sampler, x, path.ts) + 1
        candidates = {grid: times(process, n, **between) for grid, times in grids.items()}
        candidates |= {"gits": gits_times(path, n), "gits_flat": gits_times(path, n, 1.0)}
        candidates |= {"gits_end": gits_times(path, n, probes=probes)}
        for grid, ts in candidates.items():
            start(sampler, denoise, x, ts, cond)
            tried[name, grid] = ts
            table[name, grid] = float(measure(arguments, sampler, x, ts, path.x0, cond))
        if rounds:
            best = tried[min((names for names in table if names[0] == name), key=table.__getitem__)]
            ts = polish_times(sampler, denoise, path, best, cond, rounds=rounds)
            tried[name, "polished"] = ts
            table[name, "polished"] = float(measure(arguments, sampler, x, ts, path.x0, cond))
    names = min(table, key=table.__getitem__)
    return Choice(samplers[names[0]], tried[names], names, table[names], table)
