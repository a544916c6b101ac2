"""Guidance by what a condition changes: the same denoiser with a condition and without it, at the same x.

A rule makes one prediction of those of several branches, each the denoiser with other conditions,

    p_0 = d(x, cond),   p_1 = d(x, null), ...,        p = rule(p_0, p_1, ...),                        (1)

of which p_0 is the plain one and p_1 has the null in the place of every condition that is guided. Rules are elements
of a list of guidance: `CFG`, and others that weigh the difference p_0 - p_1 otherwise. The branches are evaluated in
one batch, or one after the other in less memory.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guidance, Guided, Nulls, finite_weights
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record


class Contrast(Guidance):
    """A rule of equation (1); abstract. Its numbers are data.

    A subclass is a record with the fields `weight`, where 1 is the plain model, and `sequential`, whether the branches
    are evaluated one after the other (static).
    """

    name: ClassVar[str]
    """In messages."""
    weight: Any
    sequential: bool

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        if isinstance(denoise, Guided) and denoise.in_branches:  # with numbers of its own, one a sample
            return Contrasted(denoise, self.in_turn(), process, nulls)
        if isinstance(denoise, Guided):
            raise ValueError(
                f"{self.name} is to stand once in a list of guidance, before interval and every, and in the place of "
                "cfg where it is another rule"
            )
        return Contrasted(denoise, self, process, nulls)

    @property
    def conditional(self) -> bool:
        return True

    def check(self, n: int) -> None:
        finite_weights(self.weight, n)

    def in_turn(self) -> Contrast:
        """The same with its branches one after the other."""
        return dataclasses.replace(self, sequential=True)  # type: ignore[call-arg]

    def conditions(self, cond: Mapping[str, Any], null: Nulls) -> tuple[dict[str, Any], ...]:
        """The conditions of each branch.

        Args:
          cond: of the call.
          null: what stands for "no condition", by name.
        """
        return dict(cond), without(cond, null)

    def begin(self, x: Array) -> Memory:
        """What the rule remembers before the first evaluation."""
        return ()

    @abc.abstractmethod
    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        """Equation (1): the guided prediction of those of the branches, and the rule's memory after it."""


class Branches(NamedTuple):
    """What the branches remember, where each has a memory of its own."""

    each: tuple[Memory, ...]


class Remembered(NamedTuple):
    """The memory of `Contrasted`: the denoiser's, and its rule's."""

    network: Memory
    rule: Memory


@record
class Contrasted(Guided):
    """The denoiser that a rule makes of its branches, equation (1).

    A learned variance is the conditional branch's. Conditions without a null are given to every branch.

    Args:
      denoise: a denoiser trained with its condition dropped at random.
      rule: how the branches are combined.
      process: its process; None where the rule needs none.
      null: for each condition that is guided, what stands for "no condition": a value that broadcasts to it, such as
        the null label's id, or one value a sample; a dict for a condition of several arrays.

    Raises:
      ValueError: (when called) without ``cond``, without a condition that ``null`` names, or with a null of another
        form.
    """

    denoise: Denoiser
    rule: Contrast
    process: Process | None
    null: Mapping[str, Any]

    @property
    def plain(self) -> Denoiser:  # type: ignore[override]
        """The conditional branch's denoiser."""
        return self.denoise

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.both(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        if self.rule.sequential:
            return self.begin_apart(x, cond)
        branches = self._conditions(cond)
        return self._remembered(x, begin(self.denoise, _joined(*[x] * len(branches)), jax.tree.map(_joined, *branches)))

    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        memories = Branches(tuple(begin(self.denoise, x, part) for part in self._conditions(cond)))
        return self._remembered(x, memories if jax.tree.leaves(memories) else ())

    def _remembered(self, x: Array, network: Memory) -> Memory:
        memory = Remembered(network, self.rule.begin(x))
        return memory if jax.tree.leaves(memory) else ()

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        guided, _, memory = self.both(x, t, cond, memory)
        return guided, memory

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        branches = self._conditions(cond)
        network, mine = memory or Remembered((), self.rule.begin(x))
        if self.rule.sequential or isinstance(network, Branches):  # one memory a branch allows no call of all at once
            each = network.each if network else ((),) * len(branches)
            found = [recall(self.denoise, x, t, part, own) for part, own in zip(branches, each, strict=True)]
            parts: tuple[Prediction, ...] = tuple(prediction for prediction, _ in found)
            network = Branches(tuple(after for _, after in found)) if network else ()
        else:
            n, t_all = len(branches), jnp.asarray(t)
            t_all = t_all if t_all.ndim == 0 else _joined(*[t_all] * n)
            joined, network = recall(self.denoise, _joined(*[x] * n), t_all, jax.tree.map(_joined, *branches), network)
            parts = tuple(jax.tree.map(lambda leaf, i=i: _branch(i, n, leaf), joined) for i in range(n))
        guided, mine = self.rule.combine(self.process, x, t, parts, mine)
        return guided, parts[0], Remembered(network, mine) if memory else ()

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        if not memory:
            return recall(self.denoise, x, t, cond, ())
        network, mine = memory
        given, after = recall(self.denoise, x, t, cond, network.each[0] if network else ())
        return given, Remembered(Branches((after, *network.each[1:])) if network else (), mine)

    def _conditions(self, cond: Cond | None) -> tuple[dict[str, Any], ...]:
        missing = [name for name in self.null if name not in (cond or {})]
        if cond is None or missing:
            raise ValueError(f"guidance needs cond with {sorted(self.null)}, got {sorted(cond) if cond else cond}")
        return self.rule.conditions(cond, self.null)


def without(cond: Mapping[str, Any], null: Nulls) -> dict[str, Any]:
    """Conditions with the nulls in the place of those that have one, broadcast to them.

    Raises:
      ValueError: a null of another form.
    """
    return {name: _null(name, value, null[name]) if name in null else value for name, value in cond.items()}


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


def _joined(*branches: Array) -> Array:
    # The branches of a sample side by side: where a batch is split over devices, they stay where it is.
    n = len(branches)
    return jnp.stack(branches, axis=1).reshape(n * branches[0].shape[0], *branches[0].shape[1:])


def _branch(which: int, n: int, joined: Array) -> Array:
    return joined.reshape(-1, n, *joined.shape[1:])[:, which]
