"""Bits per dimension of a data set under a trained run, by `jaxdiff.likelihood`.

A method is a record that takes a batch to one number an image: the flow's likelihood, the bound of the reverse SDE, the
bound of a chain. Each batch is one jitted call, split over the run's devices; image i's noise is decided by the seed
and its place in the split alone.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxdiff.config import ConfigError, as_config_error
from jaxdiff.data.sources import Source, name_of, take
from jaxdiff.denoiser import Cond, NetworkDenoiser
from jaxdiff.evaluate.metric import EvaluateOptions, MetricError, Result, refuse_other_run
from jaxdiff.grid import log_snr_times, uniform_times
from jaxdiff.likelihood import (
    AdaptiveSteps,
    Dequantiser,
    FixedSteps,
    GaussianDequantiser,
    ProposeLogSNR,
    ProposeTime,
    Solver,
    TimeProposal,
    UniformDequantiser,
    bits_per_dim,
    continuous_elbo,
    discrete_vlb,
    learn_proposal,
    log_likelihood,
)
from jaxdiff.likelihood.bounds import Variance
from jaxdiff.likelihood.flow import Divergence
from jaxdiff.networks.placement import samples_over
from jaxdiff.parameterization import LearnedVariance
from jaxdiff.record import field, record
from jaxdiff.runs.run import Run
from jaxdiff.spec import Spec, complete, droppable
from jaxdiff.train import batch_sharding

CHAIN = 256
"""Times of the chain for a process in continuous time, where none are asked for."""


@record
class Method(abc.ABC):
    """From a batch to one number an image; abstract."""

    @abc.abstractmethod
    def __call__(self, denoise: NetworkDenoiser, x: Array, keys: Array, cond: Cond | None) -> dict[str, Array]:
        """``{"bpd": (B,), ...}``: bits per dimension, and what else is known, batch first."""


@record
class FlowBits(Method):
    """`jaxdiff.likelihood.log_likelihood`; grey levels are dequantised first."""

    solver: Solver
    dequantiser: Dequantiser | None
    divergence: Divergence = field(pytree_node=False)
    probes: int = field(pytree_node=False)

    def __call__(self, denoise: NetworkDenoiser, x: Array, keys: Array, cond: Cond | None) -> dict[str, Array]:
        process = denoise.process
        worth = jnp.zeros(x.shape[:1], x.dtype)
        y = x
        if self.dequantiser is not None:
            t = process.min_time()
            y, worth = self.dequantiser.draw(keys, x, process.sigma(t) / process.alpha(t))
        found = log_likelihood(
            denoise, process, y, keys, cond, solver=self.solver, divergence=self.divergence, probes=self.probes
        )
        return {"bpd": bits_per_dim(found.log_density + worth, x), "evaluations": found.evaluations}


@record
class ElboBits(Method):
    """`jaxdiff.likelihood.continuous_elbo`."""

    time: TimeProposal
    draws: int = field(pytree_node=False)
    levels: int | None = field(pytree_node=False)
    learned: bool = field(pytree_node=False)

    def __call__(self, denoise: NetworkDenoiser, x: Array, keys: Array, cond: Cond | None) -> dict[str, Array]:
        bound = continuous_elbo(
            denoise, denoise.process, x, keys, cond, draws=self.draws, time=self.time, levels=self.levels
        )
        return {"bpd": bound.total} | {name: part for name, part in bound._asdict().items() if name != "total"}

    def learn(self, denoise: NetworkDenoiser, x: Array, keys: Array, cond: Cond | None) -> ElboBits:
        """The method with the times of least variance for a batch."""
        return ElboBits(learn_proposal(denoise, denoise.process, x, keys, cond), self.draws, self.levels, False)


@record
class ChainBits(Method):
    """`jaxdiff.likelihood.discrete_vlb`."""

    ts: ArrayLike
    variance: Variance = field(pytree_node=False)
    levels: int | None = field(pytree_node=False)

    def __call__(self, denoise: NetworkDenoiser, x: Array, keys: Array, cond: Cond | None) -> dict[str, Array]:
        bound = discrete_vlb(
            denoise, denoise.process, x, keys, cond, ts=self.ts, variance=self.variance, levels=self.levels
        )
        over_times = {"terms": bound.terms, "x0_mse": bound.x0_mse, "eps_mse": bound.eps_mse}
        return {"bpd": bound.total, "prior": bound.prior} | {name: part.T for name, part in over_times.items()}


def methods(run: Run, options: EvaluateOptions, levels: int | None) -> dict[str, Method]:
    """The methods asked for, by the names they are reported under.

    Raises:
      ConfigError: options that contradict each other or are out of range.
    """
    made: dict[str, Method] = {}
    for name in dict.fromkeys(options.method):
        made |= METHODS[name](run, options, levels)
    return made


def _flow(run: Run, options: EvaluateOptions, levels: int | None) -> dict[str, Method]:
    if options.steps is not None and options.rtol is not None:
        raise ConfigError("--steps asks for fixed steps and --rtol for adaptive ones: give one of them")
    tolerance = 1e-4 if options.rtol is None else options.rtol
    if not 0 < tolerance < 1:
        raise ConfigError(f"--rtol: {tolerance} is out of range, it must be above 0 and below 1")
    solver: Solver = AdaptiveSteps(tolerance, tolerance) if options.steps is None else FixedSteps(options.steps)
    dequantiser: Dequantiser | None = None
    if levels is not None:
        dequantiser = UniformDequantiser(levels) if options.dequantise == "uniform" else GaussianDequantiser(levels)
    return {
        f"ode {estimator}": FlowBits(solver, dequantiser, estimator, options.probes)
        for estimator in dict.fromkeys(options.estimator)
    }


def _elbo(run: Run, options: EvaluateOptions, levels: int | None) -> dict[str, Method]:
    time: TimeProposal = ProposeTime() if options.time == "t" else ProposeLogSNR()
    return {"elbo": ElboBits(time, options.draws, levels, options.time == "learned")}


def _chain(run: Run, options: EvaluateOptions, levels: int | None) -> dict[str, Method]:
    process = run.process
    if options.chain is not None and options.chain < 1:
        raise ConfigError(f"--chain: {options.chain} is out of range, it must be at least 1")
    if process.steps is not None:
        ts = uniform_times(process, min(options.chain or process.steps, process.steps))
    else:
        ts = log_snr_times(process, options.chain or CHAIN)
    learned = isinstance(run.config.parameterization, LearnedVariance)
    variance: Variance = options.variance or ("learned" if learned else "fixed_small")
    return {f"vlb {variance}": ChainBits(ts, variance, levels)}


METHODS = {"ode": _flow, "elbo": _elbo, "vlb": _chain}
"""Name to ``(run, options, levels) -> {name in reports: Method}``."""


@functools.partial(jax.jit, static_argnames=("call", "sharding"))
def measure(
    call: Callable[..., Any],
    method: Method,
    denoise: NetworkDenoiser,
    x: Array,
    keys: Array,
    cond: Mapping[str, Any] | None,
    *,
    sharding: NamedSharding,
) -> Any:
    """What a method answers on a batch (``call`` is its ``__call__``), or learns there (`ElboBits.learn`). The batch is
    split over the devices, the result is whole on each. Numbers are data."""
    x, keys, cond = jax.lax.with_sharding_constraint((x, keys, cond), sharding)
    with samples_over(sharding):
        found = call(method, denoise, x, keys, cond)
    return jax.lax.with_sharding_constraint(found, NamedSharding(sharding.mesh, PartitionSpec()))


def bits(run: Run, source: Source, options: EvaluateOptions) -> Iterator[Result]:
    """Bits per dimension of a source's images under a run, one method after another.

    Images of 256 grey levels get the likelihood, or a bound on it, of the levels; real-valued data that of the density,
    on the scale on which they are stored.

    Yields:
      A `Result` after each batch of each method.

    Raises:
      ConfigError: options out of range, or that this run cannot follow.
      MetricError: a likelihood that is not finite.
    """
    refuse_other_run(run, "bpd")
    x = run.codec.spec["x"]
    if isinstance(x, Spec) and x.shape != source.spec["x"].shape:
        raise ConfigError(
            f"--metrics bpd (the default) is of data that a codec maps one to one; this run is of latents {x.shape} of "
            f"data {source.spec['x'].shape}: their likelihood says nothing of the images'. No other metric is of such "
            "a run; evaluate the run of its autoencoder, which has reconstruction"
        )
    for name, least in (("num", 1), ("batch_size", 1), ("probes", 1), ("steps", 1), ("draws", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: {value} is out of range, it must be at least {least}")
    count = min(options.num or len(source), len(source))
    indices = np.arange(count) * len(source) // count
    size = min(options.batch_size, count)
    levels = 256 if source.spec["x"].dtype == "uint8" else None
    key = jax.random.key(options.seed)
    chosen = methods(run, options, levels)
    begin = _read(run, source, indices[:size], options.labels)
    for name, method in chosen.items():
        with as_config_error(name):  # the run is known here, and a trace inside `measure` would not know its numbers
            jax.eval_shape(functools.partial(method, run.denoise), begin[0], _keys(key, indices[:size]), begin[1])
    split, full = batch_sharding(run.mesh), run.model.filled(size)
    whole = NamedSharding(run.mesh, PartitionSpec(None))
    scale = _scale_bits(run, source, indices[:1])
    for name, method in chosen.items():
        if isinstance(method, ElboBits) and method.learned:  # from these images alone, on any devices
            first_batch = begin[0], _keys(key, indices[:size]), begin[1]
            over = split if full == size else whole
            method = measure(ElboBits.learn, method, run.denoise, *first_batch, sharding=over)
        found: dict[str, list[np.ndarray]] = {}
        for first in range(0, count, size):
            part = indices[first : first + size]
            filled = np.pad(part, (0, full - len(part)), mode="edge")
            x, cond = _read(run, source, filled, options.labels)
            answer = measure(type(method).__call__, method, run.denoise, x, _keys(key, filled), cond, sharding=split)
            for entry, value in answer.items():
                found.setdefault(entry, []).append(np.asarray(value, np.float64)[: len(part)])
            yield _summary(f"bpd {name}", found, count, scale)


def _keys(key: Array, indices: np.ndarray) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(indices, jnp.uint32))


def _read(run: Run, source: Source, indices: np.ndarray, labels: bool) -> tuple[Array, dict[str, Any] | None]:
    """x0 and conditions of some records, as the network sees them."""
    encoded = run.codec.encode(take(source, indices))
    x = encoded.pop("x")
    specs = run.model.conditions
    if not specs:
        return x, None
    if not labels:
        if fixed := sorted(name for name in specs if not droppable(specs[name])):
            raise ConfigError(f"--no-labels: this run was trained without dropping {fixed[0]} (loss.dropout)")
        return x, run.model.given(len(indices), None)
    if missing := sorted(name for name in specs if name not in encoded):
        raise ConfigError(f"{name_of(source)} has no {missing[0]}: pass --no-labels for the model without conditions")
    return x, complete(specs, {name: encoded[name] for name in specs}, len(indices))


def _scale_bits(run: Run, source: Source, indices: np.ndarray) -> float:
    """log2 |d x0/d x| a dimension, of a codec that scales each number by itself: p(x) = p(x0) |d x0/d x|."""
    if source.spec["x"].dtype == "uint8":
        return 0.0
    x = jnp.asarray(take(source, indices)["x"], jnp.float32)
    slope = jax.jvp(lambda x: run.codec.encode({"x": x})["x"], (x,), (jnp.ones_like(x),))[1]
    return float(jnp.log2(jnp.abs(slope)).mean())


def _summary(name: str, found: dict[str, list[np.ndarray]], total: int, scale: float) -> Result:
    arrays = {entry: np.concatenate(parts) for entry, parts in found.items()}
    values = arrays.pop("bpd") - scale
    finite = np.isfinite(values)
    if not finite.all():
        raise MetricError(
            f"{name}: {int((~finite).sum())} of {len(values)} images have no finite likelihood. Where adaptive steps "
            "met their bound on evaluations, give a larger --rtol or fixed --steps; a diverged network has none"
        )
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    parts: dict[str, Any] = {entry: array.mean(axis=0).tolist() for entry, array in arrays.items()}
    return Result(name, "bits/dim", len(values), total, float(values.mean()), error, parts, values.tolist())
