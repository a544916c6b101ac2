"""Guidance: functions from denoiser to denoiser. None of them touches a network or a sampler.

Classifier-free guidance (Ho & Salimans 2022) extrapolates from the unconditional prediction to the conditional one,

    eps_w = eps(x, null) + w (eps(x, cond) - eps(x, null)),                                          (1)

and likewise x0, which is affine in eps. w = 1 is the plain conditional model (the paper's weight is w - 1), w = 0 the
unconditional one.

Half of the evaluations are the unconditional branch's, and not all are needed. Guidance can be left out where the noise
is high or low (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724):

    w(rho) = w  if rho_min < rho <= rho_max,  else 1,      rho = sigma/alpha,                        (2)

and the difference of the branches, D = x0(x, cond) - x0(x, null), changes slowly, so that it can be computed at every
k-th evaluation alone and kept between (the "CFG-Cache" of Lv et al. 2024, FasterCache,
https://arxiv.org/abs/2410.19355, there with weights by frequency; Castillo et al. 2023, Adaptive Guidance,
https://arxiv.org/abs/2312.12487, and Dinh et al. 2024, Compress Guidance, https://arxiv.org/abs/2408.11194, likewise
leave out evaluations that only guidance needs):

    x0_w = x0(x, cond) + (w - 1) D,     eps_w = eps(x, cond) - (w - 1) (alpha/sigma) D.              (3)

It is kept in x0, where it is finite from alpha = 0 on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.prediction import Prediction, from_x0
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class ClassifierFree:
    """Equation (1).

    Args:
      denoise: a denoiser trained with its condition dropped at random.
      weight: w, ``()`` or one a sample ``(B,)``; data, so changing it compiles nothing.
      null: for each key of ``cond`` that is guided, what stands for "no condition": a value, such as the null label's
        id.
      sequential: the branches one after the other, in less memory; else both in one call of twice the batch; static.

    A learned variance is the conditional branch's. Keys of ``cond`` without a null are given to both branches.

    Raises:
      ValueError: (when called) without ``cond``, or without a key that ``null`` names.
    """

    denoise: Denoiser
    weight: ArrayLike
    null: Mapping[str, ArrayLike]
    sequential: bool = field(default=False, pytree_node=False)

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        with_cond, null = self._conditions(cond)
        if not self.sequential:
            return begin(self.denoise, _joined(x, x), _both(with_cond, null))
        memories = begin(self.denoise, x, with_cond), begin(self.denoise, x, null)
        return memories if jax.tree.leaves(memories) else ()

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        given, without, memory = self.branches(x, t, cond, memory)
        extra = expand(jnp.asarray(self.weight, x.dtype) - 1.0, x)
        x0, eps = (here + extra * (here - there) for here, there in zip(given[:2], without[:2], strict=True))
        return Prediction(x0, eps, given.variance), memory

    def branches(
        self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory = ()
    ) -> tuple[Prediction, Prediction, Memory]:
        """The conditional prediction, the unconditional one, and the memory after them."""
        with_cond, null = self._conditions(cond)
        if self.sequential:
            mine, other = memory or ((), ())
            given, mine = recall(self.denoise, x, t, with_cond, mine)
            without, other = recall(self.denoise, x, t, null, other)
            return given, without, (mine, other) if memory else ()
        t = jnp.asarray(t)
        times = t if t.ndim == 0 else _joined(t, t)
        both, memory = recall(self.denoise, _joined(x, x), times, _both(with_cond, null), memory)
        given, without = (Prediction(*jax.tree.map(functools.partial(_branch, which), tuple(both))) for which in (0, 1))
        return given, without, memory

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory = ()) -> tuple[Prediction, Memory]:
        """The conditional prediction alone; a memory is to be of branches one after the other."""
        mine, other = memory or ((), ())
        given, mine = recall(self.denoise, x, t, cond, mine)
        return given, (mine, other) if memory else ()

    def _conditions(self, cond: Cond | None) -> tuple[Cond, Cond]:
        missing = [name for name in self.null if name not in (cond or {})]
        if cond is None or missing:
            raise ValueError(f"guidance needs cond with {sorted(self.null)}, got {sorted(cond) if cond else cond}")
        null = {
            name: jnp.broadcast_to(jnp.asarray(self.null.get(name, value), value.dtype), value.shape)
            for name, value in cond.items()
        }
        return cond, null


def _joined(a: Array, b: Array) -> Array:
    # Both branches of a sample side by side: where a batch is split over devices, they stay where it is.
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])


def _branch(which: int, joined: Array) -> Array:
    return joined.reshape(-1, 2, *joined.shape[1:])[:, which]


def _both(cond: Cond, null: Cond) -> Cond:
    return {name: _joined(value, null[name]) for name, value in cond.items()}


class Difference(NamedTuple):
    """The memory of a `SparseGuidance` that reuses.

    Attributes:
      branches: of the guided denoiser.
      kept: D of equation (3).
      age: evaluations since the interval was entered; 0 outside of it, so that D is computed anew on entering.
      computed: of the null branch, so far.
    """

    branches: Memory
    kept: Array
    age: Array
    computed: Array


@record
class SparseGuidance:
    """Equations (2) and (3): guidance whose unconditional branch is evaluated only where and when it is needed.

    Elsewhere an evaluation costs the conditional branch alone. Without the loops of `jaxdiff.sampling` (called by
    itself) it reuses nothing.

    Args:
      guided: the guidance. If its denoiser has a cache, ``sequential``.
      process: the process.
      every: k, 1 or more; data. None: the unconditional branch at every evaluation within the interval.
      rho_min, rho_max: the interval of sigma/alpha, equation (2); data.

    Raises:
      ValueError: ``every`` below 1, an empty interval; (in a loop) a cache under guidance that is not sequential.
    """

    guided: ClassifierFree
    process: Process
    every: ArrayLike | None = None
    rho_min: ArrayLike = 0.0
    rho_max: ArrayLike = jnp.inf

    def __post_init__(self) -> None:
        known = [v for v in (self.every, self.rho_min, self.rho_max) if not isinstance(v, jax.core.Tracer)]
        if len(known) < 3:
            return
        every = np.asarray(1 if self.every is None else self.every)
        if every.dtype.kind not in "iu" or every.ndim or every < 1:
            raise ValueError(f"every is to be a whole number, 1 or more (1 reuses nothing), got {self.every!r}")
        low, high = float(np.asarray(self.rho_min)), float(np.asarray(self.rho_max))
        if not 0 <= low < high:
            raise ValueError(f"guidance needs 0 <= rho_min < rho_max, got {low} and {high}")

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self._evaluate(x, t, cond, (), jnp.zeros_like(x), self._inside(t).any())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        branches = begin(self.guided, x, cond)
        if jax.tree.leaves(branches) and not self.guided.sequential:
            raise ValueError("a cache under SparseGuidance needs ClassifierFree(..., sequential=True): one a branch")
        if self.every is None:
            return branches
        zero = jnp.zeros((), jnp.int32)
        return Difference(branches, jnp.zeros_like(x), zero, zero)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        wanted = self._inside(t).any()
        if self.every is None:
            given, branches, _ = self._evaluate(x, t, cond, memory, jnp.zeros_like(x), wanted)
            return given, branches
        due = wanted & (memory.age % self.every == 0)
        given, branches, kept = self._evaluate(x, t, cond, memory.branches, memory.kept, due)
        return given, Difference(branches, kept, jnp.where(wanted, memory.age + 1, 0), memory.computed + due)

    def _inside(self, t: ArrayLike) -> Array:
        rho = jnp.exp(-0.5 * self.process.log_snr(t))
        return (rho > self.rho_min) & (rho <= self.rho_max)

    def _evaluate(
        self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory, kept: Array, due: Array
    ) -> tuple[Prediction, Memory, Array]:
        def both() -> tuple[Prediction, Array, Array, Memory]:
            given, without, after = self.guided.branches(x, t, cond, memory)
            return given, given.x0 - without.x0, given.eps - without.eps, after

        def one() -> tuple[Prediction, Array, Array, Memory]:
            given, after = self.guided.alone(x, t, cond, memory)
            return given, kept, -expand(self.process.alpha(t) / self.process.sigma(t), x) * kept, after

        given, apart, apart_eps, memory = jax.lax.cond(due, both, one)
        weight = jnp.where(self._inside(t), jnp.asarray(self.guided.weight, x.dtype), 1.0)
        extra = expand(weight - 1.0, x)
        return Prediction(given.x0 + extra * apart, given.eps + extra * apart_eps, given.variance), memory, apart


@record
class Clipped:
    """Limits x0 to the data's range and lets eps follow (Ho et al. 2020 clip so at every step).

    Args:
      denoise: any denoiser.
      process: its process.
      low: least value of the data.
      high: largest value of the data.
    """

    denoise: Denoiser
    process: Process
    low: ArrayLike = -1.0
    high: ArrayLike = 1.0

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        given, memory = recall(self.denoise, x, t, cond, memory)
        clipped = jnp.clip(given.x0, self.low, self.high)
        return from_x0(self.process, x, t, clipped)._replace(variance=given.variance), memory
