"""Evaluations of a network that reuse features of those before.

The features deep inside a network change slowly along a sampler's path. A cache keeps them from one evaluation to the
next, so that most evaluations compute a part of the network. It is an approximation, whose error is to be measured
(`benchmarks/speed_vs_error.py`), and a field of a denoiser:

    denoise = dataclasses.replace(denoise, cache=DeepCache(every=3))

Count a denoiser's evaluations k = 0, 1, ...; those with k mod N = 0 are full.

DeepCache (Ma, Fang, Wang 2023, https://arxiv.org/abs/2312.00858), for a U-Net. Its up path has one stage for each skip
connection; let u be what enters the up stage of the m-th skip connection from outside. Between full evaluations only
what lies around it is computed, with u from the last full one:

    skips_1..m = the first m features on the way down,    y = the last m up stages of (u, skips_m..1).     (1)

First-block cache (the criterion of https://github.com/chengzeyi/ParaAttention; TeaCache, Liu et al. 2024,
https://arxiv.org/abs/2411.19108, decides likewise by the change of an input), for a transformer. With h_0 the tokens
that enter, h_1 those after the first block, h_L after the last, and r = h_1 - h_0 its value now, r' at the last full
evaluation,

    h_L = h_1 + (h_L - h_1)'         if  mean|r - r'| < threshold mean|r'|,
          all blocks                 else.                                                               (2)

TaylorSeer (Liu et al. 2025, "From Reusing to Forecasting", https://arxiv.org/abs/2503.06923), for a transformer. With
F the output of a block's attention or perceptron, its finite differences over the last full evaluations, N apart, and
0 < j < N evaluations after the last,

    D^0 F = F,     D^i F = D^{i-1} F - (D^{i-1} F)',                                                     (3)
    F(j) = sum_{i <= m} (j/N)^i/i! D^i F.                                                               (4)

Differences of an order for which there were too few full evaluations are taken as 0. (4) is Taylor's polynomial with
backward differences for derivatives, exact to first order; the polynomial through the last m + 1 values is Newton's,

    F(j) = sum_{i <= m} u (u + 1) ... (u + i - 1)/i! D^i F,     u = j/N.                                (5)

Both count evaluations, not times, as the paper does: F is forecast as a function of k. That is smooth on any of
`jaxdiff.grid`'s grids, evenly spaced or not, under a method of one evaluation a step. Under one of more (Heun, RK4) it
is not, for the last of one step stands at the same time as the first of the next: a forecast of any order then errs by
O(h), as reuse does.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, mean_features
from jaxdiff.denoiser import Cond, Memory
from jaxdiff.networks.dit import DiTModule, Told
from jaxdiff.networks.functional import Functional, Params
from jaxdiff.networks.lora import LoRA
from jaxdiff.networks.unet import UNetModule
from jaxdiff.record import field, record
from jaxdiff.spec import complete


class Remembered(NamedTuple):
    """The memory of a cache.

    Attributes:
      features: what is reused.
      evaluations: so far.
      full: of these, those of the whole network.
    """

    features: Any
    evaluations: Array
    full: Array


@record
class FeatureCache(abc.ABC):
    """A way to reuse features; abstract.

    A cache counts the evaluations of one call of the network, whatever the sampler does with them, and of whatever
    batch it is called with: under `ClassifierFree` of both branches.
    """

    def begin(self, net: Functional, params: Params, x: Array, t: Array, cond: Cond | None) -> Memory:
        """Before the first evaluation."""
        cond = _conditions(net, cond, x)
        shapes = jax.eval_shape(lambda x, t: self._full(self._module(net, params), x, t, cond)[1], x, t)
        features = self._empty(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        return Remembered(features, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def apply(
        self, net: Functional, params: Params, x: Array, t: Array, cond: Cond | None, memory: Remembered
    ) -> tuple[Array, Remembered]:
        """An evaluation: the network's output ``(B, ...)`` float32, and the memory after it."""
        cond = _conditions(net, cond, x)
        output, features, full = self._evaluate(self._module(net, params), x, t, cond, memory)
        return output.astype(jnp.float32), Remembered(features, memory.evaluations + 1, memory.full + full)

    @abc.abstractmethod
    def _module(self, net: Functional, params: Params) -> Any:
        """The module, if it is of a kind that this cache knows."""

    @abc.abstractmethod
    def _full(self, module: Any, x: Array, t: Array, cond: Cond) -> tuple[Array, Any]:
        """The whole network, and its features."""

    def _empty(self, features: Any) -> Any:
        """What is kept before the first evaluation, from zeros like the features."""
        return features

    @abc.abstractmethod
    def _evaluate(self, module: Any, x: Array, t: Array, cond: Cond, memory: Remembered) -> tuple[Array, Any, Array]:
        """Output, features, and whether all of the network was computed."""


def _conditions(net: Any, cond: Cond | None, x: Array) -> Cond:
    return complete(net.cond, cond, x.shape[0])


def _known_module(net: Any, params: Params, kind: type, name: str, needs: str) -> Any:
    module = net.module(params) if isinstance(net, Functional | LoRA) else net
    if not isinstance(module, kind):
        raise ValueError(f"{name} is a cache of a {needs}, got a {type(module).__name__}")
    return module


def _check_every(every: ArrayLike) -> None:
    if isinstance(every, jax.core.Tracer):
        return
    value = np.asarray(every)
    if value.ndim or not np.issubdtype(value.dtype, np.integer) or value < 1:
        raise ValueError(f"every is to be a whole number, 1 or more (1 reuses nothing), got {every!r}")


def _unet_around(
    module: UNetModule, x: Array, t: Array, cond: Cond, outer: int, deep: Array | None
) -> tuple[Array, Array]:
    """Equation (1) with m = ``outer`` and u = ``deep``; None: compute it, that is, all of the network. Also returns
    u."""
    downs = [step for level in module.down for step in (*level.stages, level.resample) if step is not None]
    ups = [
        (stage, level.resample if i == len(level.stages) - 1 else None)
        for level in module.up
        for i, stage in enumerate(level.stages)
    ]
    if not 1 <= outer < len(ups):
        raise ValueError(
            f"this network has {len(ups)} skip connections: outer is to be 1 to {len(ups) - 1}, got {outer}"
        )
    embedding = module.embed(x, t, cond)

    def rise(h: Array, stages: list[Any]) -> Array:
        for stage, resample in stages:
            h = stage(jnp.concatenate([h, skips.pop()], axis=-1), embedding, None)
            h = h if resample is None else resample(h, embedding, None)
        return h

    h = module.enter(x, cond)
    skips = [h]
    for step in downs if deep is None else downs[: outer - 1]:
        h = step(h, embedding, None)
        skips.append(h)
    inner = len(ups) - outer
    if deep is None:
        h = module.middle_out(module.middle_in(h, embedding, None), embedding, None)
        deep = rise(h, ups[:inner])
    return module.leave(rise(deep, ups[inner:])), deep


@record
class DeepCache(FeatureCache):
    """Equation (1): all of a U-Net at every N-th evaluation, its outermost stages at the others.

    Args:
      every: N, 1 or more; data. 1 reuses nothing.
      outer: m, how many skip connections are computed each time, 1 to all but one; static. 1 is the fastest; the up
        path's levels have ``blocks + 1`` each.

    Raises:
      ValueError: ``every`` below 1; (when called) a network that is no U-Net, or has not that many connections.

    >>> from jaxdiff import DDIM, Eps, Flow, NetworkDenoiser, V, log_snr_times, sample
    >>> from jaxdiff.networks import UNet, functional
    >>> net = functional(UNet(8, in_channels=1, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=()))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> denoise = NetworkDenoiser(net, params, Flow(), V(), cache=DeepCache(every=3))
    >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> jax.jit(sample)(DDIM(Flow()), denoise, None, x, log_snr_times(Flow(), 6)).shape
    (2, 8, 8, 1)
    """

    every: ArrayLike = 3
    outer: int = field(default=1, pytree_node=False)

    def __post_init__(self) -> None:
        _check_every(self.every)

    def _module(self, net: Functional, params: Params) -> UNetModule:
        module: UNetModule = _known_module(net, params, UNetModule, "DeepCache", "U-Net")
        return module

    def _full(self, module: UNetModule, x: Array, t: Array, cond: Cond) -> tuple[Array, Array]:
        return _unet_around(module, x, t, cond, self.outer, None)

    def _evaluate(
        self, module: UNetModule, x: Array, t: Array, cond: Cond, memory: Remembered
    ) -> tuple[Array, Array, Array]:
        due = memory.evaluations % self.every == 0
        output, deep = jax.lax.cond(
            due,
            lambda: self._full(module, x, t, cond),
            lambda: _unet_around(module, x, t, cond, self.outer, memory.features),
        )
        return output, deep, due


def _blocks(module: DiTModule) -> tuple[Any, Any]:
    """The graph of a block, and the parameters of all of them, ``(depth, ...)``."""
    return nnx.split(module.blocks)


def _through(module: DiTModule, tokens: Array, c: Told, begin: int, end: int) -> Array:
    """The tokens after the blocks ``begin`` to ``end - 1``."""
    graph, stacked = _blocks(module)

    def block(tokens: Array, i: Array) -> tuple[Array, None]:
        params = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stacked)
        return nnx.merge(graph, params)(tokens, c, None), None

    return jax.lax.scan(block, tokens, jnp.arange(begin, end))[0]  # by number: a slice would copy the weights


@record
class FirstBlock(FeatureCache):
    """Equation (2): all of a transformer where its first block's part has changed, else that block alone.

    Each sample decides for itself, so that its result depends on no other; the work is saved when none of the batch
    needs it. With ``together`` the means in (2) are over the batch, and all do the same: faster for large batches,
    whose samples then depend on each other.

    Args:
      threshold: the relative change below which the rest is reused, 0 or more; data. 0 reuses nothing.
      together: one decision for the batch; static.

    Raises:
      ValueError: a negative threshold; (when called) a network that is no transformer of at least two blocks.
    """

    threshold: ArrayLike = 0.1
    together: bool = field(default=False, pytree_node=False)

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, jax.core.Tracer) and not np.all(np.asarray(self.threshold) >= 0):
            raise ValueError(f"threshold is to be 0 or more, got {self.threshold}")

    def _module(self, net: Functional, params: Params) -> DiTModule:
        module: DiTModule = _known_module(net, params, DiTModule, "FirstBlock", "diffusion transformer (DiT)")
        if module.config.depth < 2:
            raise ValueError("FirstBlock needs a transformer of at least two blocks, this has one")
        return module

    def _full(self, module: DiTModule, x: Array, t: Array, cond: Cond) -> tuple[Array, tuple[Array, Array]]:
        tokens, c = module.enter(x, t, cond)
        first = _through(module, tokens, c, 0, 1)
        last = _through(module, first, c, 1, module.config.depth)
        return module.leave(last, c, x), (first - tokens, last - first)

    def _evaluate(
        self, module: DiTModule, x: Array, t: Array, cond: Cond, memory: Remembered
    ) -> tuple[Array, tuple[Array, Array], Array]:
        tokens, c = module.enter(x, t, cond)
        first = _through(module, tokens, c, 0, 1)
        part = first - tokens
        before, rest = memory.features
        change, size = (mean_features(jnp.abs(a).astype(jnp.float32)) for a in (part - before, before))
        if self.together:
            change, size = (jnp.broadcast_to(a.mean(), a.shape) for a in (change, size))
        due = ~(change < self.threshold * size) | (memory.evaluations == 0)  # (B,)

        def full() -> tuple[Array, tuple[Array, Array]]:
            computed = _through(module, first, c, 1, module.config.depth)
            mine = expand(due, tokens)
            last = jnp.where(mine, computed, first + rest)
            return last, (jnp.where(mine, part, before), jnp.where(mine, computed - first, rest))

        last, features = jax.lax.cond(due.any(), full, lambda: (first + rest, (before, rest)))
        return module.leave(last, c, x), features, due.any()


@record
class TaylorSeer(FeatureCache):
    """Equations (3) and (4): all of a transformer at every N-th evaluation, forecasts of its blocks at the others.

    A forecast evaluation computes embeddings, gates and sums. What is kept is ``2 (order + 1)`` arrays of tokens a
    block; with ``whole`` the sum of all blocks' contributions is forecast at once, gates and all, which keeps
    ``order + 1`` in all (forecasting at the last block alone: Guan et al. 2025, https://arxiv.org/abs/2508.02240).

    Args:
      every: N, 1 or more; data. 1 reuses nothing.
      order: m, 0 or more; static. 0 is plain reuse.
      newton: equation (5) for (4); static.
      whole: forecast the sum; static.

    Raises:
      ValueError: ``every`` below 1 or a negative order; (when called) a network that is no transformer.
    """

    every: ArrayLike = 3
    order: int = field(default=1, pytree_node=False)
    newton: bool = field(default=False, pytree_node=False)
    whole: bool = field(default=False, pytree_node=False)

    def __post_init__(self) -> None:
        _check_every(self.every)
        if isinstance(self.order, bool) or not isinstance(self.order, int) or self.order < 0:
            raise ValueError(f"order is to be an integer, 0 or more, got {self.order!r}")

    def _module(self, net: Functional, params: Params) -> DiTModule:
        module: DiTModule = _known_module(net, params, DiTModule, "TaylorSeer", "diffusion transformer (DiT)")
        return module

    def _full(self, module: DiTModule, x: Array, t: Array, cond: Cond) -> tuple[Array, Any]:
        tokens, c = module.enter(x, t, cond)
        last, features = self._all_blocks(module, tokens, c)
        return module.leave(last, c, x), features

    def _all_blocks(self, module: DiTModule, tokens: Array, c: Told) -> tuple[Array, Any]:
        graph, stacked = _blocks(module)

        def block(tokens: Array, params: Any) -> tuple[Array, Any]:
            tokens, parts = nnx.merge(graph, params).traced(tokens, c, None)
            return tokens, None if self.whole else parts

        last, parts = jax.lax.scan(block, tokens, stacked)
        return last, last - tokens if self.whole else parts

    def _empty(self, features: Any) -> Any:
        return (features,) * (self.order + 1)

    def _evaluate(
        self, module: DiTModule, x: Array, t: Array, cond: Cond, memory: Remembered
    ) -> tuple[Array, Any, Array]:
        tokens, c = module.enter(x, t, cond)
        due = memory.evaluations % self.every == 0

        def keeping() -> tuple[Array, Any]:
            last, newest = self._all_blocks(module, tokens, c)
            return last, self._differences(newest, memory.features, memory.full)

        def plain() -> tuple[Array, Any]:
            return _through(module, tokens, c, 0, module.config.depth), memory.features

        def full() -> tuple[Array, Any]:
            # What is never reused is not kept: nor do XLA's fusions around it then change the last bit of the output.
            return jax.lax.cond(jnp.asarray(self.every) == 1, plain, keeping)

        def forecast() -> tuple[Array, Any]:
            u = (memory.evaluations % self.every) / jnp.asarray(self.every, jnp.float32)
            given = forecast_of(memory.features, u, self.newton)
            if self.whole:
                return tokens + given, memory.features
            graph, stacked = _blocks(module)

            def block(tokens: Array, layer: tuple[Any, Any]) -> tuple[Array, None]:
                params, parts = layer
                return nnx.merge(graph, params).joined(tokens, c, parts), None

            return jax.lax.scan(block, tokens, (stacked, given))[0], memory.features

        last, features = jax.lax.cond(due, full, forecast)
        return module.leave(last, c, x), features, due

    def _differences(self, newest: Any, before: tuple[Any, ...], known: Array) -> tuple[Any, ...]:
        """Equation (3) after ``known`` earlier full evaluations."""
        differences = [newest]
        for i, old in enumerate(before[:-1], 1):
            fresh = jax.tree.map(lambda now, then, i=i: jnp.where(known >= i, now - then, 0.0), differences[-1], old)
            differences.append(fresh)
        return tuple(differences)


def forecast_of(differences: tuple[Any, ...], u: ArrayLike, newton: bool = False) -> Any:
    """Equation (4), or (5), u evaluations' intervals after the last.

    >>> squares = (jnp.array([9.0]), jnp.array([5.0]), jnp.array([2.0]))  # of 1, 2, 3: newest, first, second difference
    >>> forecast_of(squares, 1.0, newton=True), forecast_of(squares, 1.0)
    (Array([16.], dtype=float32), Array([15.], dtype=float32))
    """
    weights = [jnp.ones(())]
    for i in range(1, len(differences)):
        weights.append(weights[-1] * ((u + i - 1) if newton else u) / i)

    def combined(*orders: Array) -> Array:
        return sum((w.astype(d.dtype) * d for w, d in zip(weights[1:], orders[1:], strict=True)), start=orders[0])

    return jax.tree.map(combined, *differences)
