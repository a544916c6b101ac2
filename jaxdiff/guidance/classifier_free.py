"""Classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

It extrapolates from the unconditional prediction to the conditional one,

    eps_w = w eps(x, cond) + (1 - w) eps(x, null),                                                   (1)

and likewise x0, which is affine in eps. w = 1 is the plain conditional model (the paper's weight is w - 1), w = 0 the
unconditional one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guidance, Guided, Nulls
from jaxdiff.prediction import Prediction, mix
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class CFG(Guidance):
    """Classifier-free guidance: the conditional prediction, exaggerated against the one without a condition.

    Args:
      weight: w of equation (1), ``()`` or one a sample ``(B,)``; data. 1 is the plain model.
      sequential: the two branches one after the other, in less memory; else both in one call of twice the batch;
        static.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> CFG(2.0)(*[GaussianDenoiser(VP(), 0.0, 1.0)] * 2, VP(), {"label": 10}).null
    {'label': 10}
    """

    weight: ArrayLike
    sequential: bool = field(default=False, pytree_node=False)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        if isinstance(denoise, Guided):
            raise ValueError("cfg is to stand once in a list of guidance, and before interval and every")
        return ClassifierFree(denoise, self.weight, nulls, self.sequential)


class Branches(NamedTuple):
    """What the two branches remember, where each has a memory of its own."""

    given: Memory
    without: Memory


@record
class ClassifierFree(Guided):
    """A denoiser with classifier-free guidance, equation (1).

    Args:
      denoise: a denoiser trained with its condition dropped at random.
      weight: w, ``()`` or one a sample ``(B,)``; data, so changing it compiles nothing.
      null: for each condition that is guided, what stands for "no condition": a value that broadcasts to it, such as
        the null label's id, or one value a sample; a dict for a condition of several arrays.
      sequential: the branches one after the other, in less memory; else both in one call of twice the batch; static.

    A learned variance is the conditional branch's. Conditions without a null are given to both branches.

    Raises:
      ValueError: (when called) without ``cond``, without a condition that ``null`` names, or with a null of another
        form.
    """

    denoise: Denoiser
    weight: ArrayLike
    null: Mapping[str, Any]
    sequential: bool = field(default=False, pytree_node=False)

    @property
    def plain(self) -> Denoiser:  # type: ignore[override]
        """The conditional branch's denoiser."""
        return self.denoise

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.both(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        if self.sequential:
            return self.begin_apart(x, cond)
        given, without = self._conditions(cond)
        return begin(self.denoise, _joined(x, x), jax.tree.map(_joined, given, without))

    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        memories = Branches(*(begin(self.denoise, x, part) for part in self._conditions(cond)))
        return memories if jax.tree.leaves(memories) else ()

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        guided, _, memory = self.both(x, t, cond, memory)
        return guided, memory

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        with_cond, null = self._conditions(cond)
        weight = jnp.asarray(self.weight, x.dtype)
        if self.sequential or isinstance(memory, Branches):  # one memory a branch allows no call of both at once
            given, mine = recall(self.denoise, x, t, with_cond, memory[0] if memory else ())
            without, other = recall(self.denoise, x, t, null, memory[1] if memory else ())
            return mix(given, (1.0 - weight, without)), given, Branches(mine, other) if memory else ()
        t = jnp.asarray(t)
        times = t if t.ndim == 0 else _joined(t, t)
        joined, memory = recall(self.denoise, _joined(x, x), times, jax.tree.map(_joined, with_cond, null), memory)
        given, without = (jax.tree.map(lambda leaf, i=i: _branch(i, leaf), joined) for i in (0, 1))
        return mix(given, (1.0 - weight, without)), given, memory

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        given, mine = recall(self.denoise, x, t, cond, memory[0] if memory else ())
        return given, Branches(mine, memory[1]) if memory else ()

    def _conditions(self, cond: Cond | None) -> tuple[dict[str, Any], dict[str, Any]]:
        missing = [name for name in self.null if name not in (cond or {})]
        if cond is None or missing:
            raise ValueError(f"guidance needs cond with {sorted(self.null)}, got {sorted(cond) if cond else cond}")
        return dict(cond), {
            name: _null(name, value, self.null[name]) if name in self.null else value for name, value in cond.items()
        }


def _null(name: str, value: Any, null: Any) -> Any:
    made: tuple[Any, ...] = tuple(jax.tree.structure(part, is_leaf=lambda leaf: leaf is None) for part in (value, null))
    if made[0] != made[1]:
        raise ValueError(f"the null of cond[{name!r}] is to be made as the condition is, {made[0]}, got {made[1]}")

    def fit(value: Array, null: ArrayLike) -> Array:
        null = jnp.asarray(null, value.dtype)
        sizes = zip(null.shape[::-1], value.shape[::-1], strict=False)
        if null.ndim > value.ndim or any(size not in (1, wanted) for size, wanted in sizes):
            raise ValueError(f"the null of cond[{name!r}] has shape {null.shape}, which does not fit {value.shape}")
        return jnp.broadcast_to(null, value.shape)

    return jax.tree.map(fit, value, null)


def _joined(a: Array, b: Array) -> Array:
    # Both branches of a sample side by side: where a batch is split over devices, they stay where it is.
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])


def _branch(which: int, joined: Array) -> Array:
    return joined.reshape(-1, 2, *joined.shape[1:])[:, which]
