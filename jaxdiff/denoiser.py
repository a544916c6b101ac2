"""Denoisers: functions of (x, t, cond) that return a `Prediction`.

Everything that samples, guides or evaluates takes a denoiser and knows nothing of what stands behind it: a network
(`NetworkDenoiser`), a closed form (`jaxdiff.exact`), or another denoiser changed (`jaxdiff.guidance`).

A denoiser may remember something from one evaluation to the next, such as features of its network
(`jaxdiff.networks.caching`) or what a branch of a guidance gave. It stays a pure function: with

    memory = denoise.begin(x, cond)
    prediction, memory = denoise.recall(x, t, cond, memory)

the memory is an argument and a result, which the loops of `jaxdiff.sampling` carry from step to step. Called without,
it evaluates everything. A denoiser without these two methods remembers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import per_sample
from jaxdiff.compat import get_opaque_trace_state
from jaxdiff.parameterization import Parameterization
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.spec import Specs

Cond = Mapping[str, Any]
"""What a sample is conditioned on: arrays, or small trees of arrays, the batch first, such as ``{"label": (B,)}``."""

Denoise = Callable[[Array, ArrayLike], Prediction]
"""A denoiser with its condition bound, as samplers receive it: ``denoise(x, t)``."""

Memory = Any
"""What a denoiser remembers between evaluations: a pytree of arrays of fixed shapes; ``()`` is nothing."""


class Denoiser(Protocol):
    """``(x, t, cond=None) -> Prediction``; x ``(B, ...)``, t ``()`` or ``(B,)`` in [0, 1]."""

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction: ...


class Net(Protocol):
    """A network as pure functions: see `jaxdiff.networks.functional`.

    Attributes:
      cond: what it takes beside x and t, by name.
    """

    @property
    def cond(self) -> Specs: ...

    def apply(
        self, params: Any, x: Array, t: Array, cond: Cond | None = None, *, key: Array | None = None
    ) -> Array: ...


class NetCache(Protocol):
    """Evaluations of a network that reuse features of those before: see `jaxdiff.networks.caching`."""

    def begin(self, net: Any, params: Any, x: Array, t: Array, cond: Cond | None) -> Memory: ...

    def apply(
        self, net: Any, params: Any, x: Array, t: Array, cond: Cond | None, memory: Memory
    ) -> tuple[Array, Memory]: ...


def begin(denoise: Denoiser, x: Array, cond: Cond | None = None) -> Memory:
    """The memory of a denoiser before its first evaluation at samples like x."""
    starts = getattr(denoise, "begin", None)
    return () if starts is None else starts(x, cond)


def recall(denoise: Denoiser, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
    """An evaluation with the memory of those before, and the memory after it. Without a memory, a full one."""
    recalls = getattr(denoise, "recall", None) if jax.tree.leaves(memory) else None
    return (denoise(x, t, cond), memory) if recalls is None else recalls(x, t, cond, memory)


class Bound:
    """A denoiser with its condition bound and its memory at hand, for one step of a sampler: `Denoise`.

    Args:
      denoise, cond: the two.
      memory: what it remembers at the beginning; the attribute of this name, what it does after the calls so far.
      watch: is called with (x, t, prediction) of each evaluation.

    Raises:
      ValueError: (when called) it remembers something, and is called inside a loop or a branch that the sampler began:
        what it would remember there could not leave it.
    """

    def __init__(
        self,
        denoise: Denoiser,
        cond: Cond | None,
        memory: Memory = (),
        watch: Callable[[Array, ArrayLike, Prediction], None] | None = None,
    ):
        self.denoise, self.cond, self.memory, self.watch = denoise, cond, memory, watch
        self._place = get_opaque_trace_state()

    def holding(self, memory: Memory) -> Bound:
        """The same with another memory, for the place in the program where this is called."""
        return Bound(self.denoise, self.cond, memory, self.watch)

    def __call__(self, x: Array, t: ArrayLike) -> Prediction:
        if jax.tree.leaves(self.memory) and get_opaque_trace_state() != self._place:
            raise ValueError(
                "this sampler evaluates the denoiser inside a loop or a branch of its own, where features are not kept "
                "from one evaluation to the next: take the cache, guidance's `every` or apg off, or a sampler whose "
                "step evaluates it directly (not Adaptive, Restart, AnnealedLangevinDynamics or PredictorCorrector)"
            )
        prediction, self.memory = recall(self.denoise, x, t, self.cond, self.memory)
        if self.watch is not None:
            self.watch(x, t, prediction)
        return prediction


@record
class NetworkDenoiser:
    """The denoiser that a network's output stands for.

    Args:
      net: the pure network; static, so two equal ones share a trace.
      params: its parameters.
      process: the process it was trained on.
      parameterization: what it sees and returns.
      cache: features to reuse from one evaluation to the next, `jaxdiff.networks.caching`; None: none. Put it in with
        ``dataclasses.replace(denoise, cache=DeepCache(every=3))``.
      anew: for weights that are split over devices: each evaluation gathers them anew. Otherwise the compiler gathers
        all of them before a loop of evaluations, and every device holds them whole. Static.
    """

    net: Net = field(pytree_node=False)
    params: Any
    process: Process
    parameterization: Parameterization

    cache: NetCache | None = None
    anew: bool = field(default=False, pytree_node=False)

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        net_x, net_t = self.parameterization.condition(self.process, x, t)
        output = self.net.apply(self._weights(x), net_x, per_sample(net_t, x), cond)
        return self.parameterization.read(self.process, x, t, output.astype(x.dtype))

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        if self.cache is None:
            return ()
        net_x, net_t = self.parameterization.condition(self.process, x, jnp.full((), 0.5))
        return self.cache.begin(self.net, self._weights(x), net_x, per_sample(net_t, x), cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        if self.cache is None:
            raise ValueError("this denoiser has no cache to recall from: call it plainly")
        net_x, net_t = self.parameterization.condition(self.process, x, t)
        output, memory = self.cache.apply(self.net, self._weights(x), net_x, per_sample(net_t, x), cond, memory)
        return self.parameterization.read(self.process, x, t, output.astype(x.dtype)), memory

    def _weights(self, x: Array) -> Any:
        return _after(self.params, jax.lax.stop_gradient(x)) if self.anew else self.params


@jax.custom_jvp
def _after(params: Any, x: Array) -> Any:
    """``params``, which the compiler cannot have before x."""
    return jax.lax.optimization_barrier((params, x))[0]


@_after.defjvp
def _(primals: tuple[Any, Array], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    return _after(*primals), tangents[0]
