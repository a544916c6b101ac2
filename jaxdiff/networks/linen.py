"""Flax Linen modules as networks.

A Linen module is called as ``module(x, t, cond, train)``: t is ``(B,)``, cond holds each condition that its ``cond``
declares (a mapping from names to `jaxdiff.spec.Spec`), and ``train`` turns its dropout on, whose keys it takes by
``self.make_rng("dropout")`` as `flax.linen.Dropout` does. All its variables are parameters: no running statistics.
Linen finds the shapes of its parameters by a call, so the shape of one sample is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import per_sample
from jaxdiff.spec import Specs, complete, shapes


@dataclass(frozen=True)
class LinenFunctional:
    """A Linen module as two pure functions; `jaxdiff.networks.functional` makes it. Fields as there.

    >>> from jaxdiff.networks import functional
    >>> class Gain(linen.Module):
    ...     @linen.compact
    ...     def __call__(self, x, t, cond, train):
    ...         return linen.Dropout(0.5, deterministic=not train)(linen.Dense(x.shape[-1])(x))
    >>> net = functional(Gain(), shape=(2,))
    >>> net.apply(net.init(jax.random.key(0)), jnp.zeros((3, 2)), 0.5).shape
    (3, 2)
    """

    build: linen.Module
    shape: tuple[int, ...]

    @property
    def cond(self) -> Specs:
        """What it takes beside x and t, by name."""
        declared: Specs = getattr(self.build, "cond", {})
        return declared

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters.

        Raises:
          ValueError: the module has variables that are no parameters.
        """
        x = jnp.zeros((1, *self.shape))
        cond = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(self.cond, 1))
        variables = self.build.init({"params": key}, x, jnp.zeros(1), cond, False)
        if others := sorted(set(variables) - {"params"}):
            raise ValueError(
                f"{type(self.build).__name__} has variables that are no parameters, {', '.join(others)}: they would be "
                "a second, hidden argument of the network. Use no running statistics"
            )
        params: dict[str, Any] = variables.get("params", {})
        return params

    def apply(
        self,
        params: Mapping[str, Any],
        x: Array,
        t: ArrayLike,
        cond: Mapping[str, Any] | None = None,
        *,
        key: Array | None = None,
    ) -> Array:
        """Runs the network: ``(B, ...)`` -> ``(B, ...)`` float32. Arguments as `Functional.apply`'s."""
        rngs = {} if key is None else {"dropout": key}
        given = complete(self.cond, cond, x.shape[0])
        output = self.build.apply({"params": params}, x, per_sample(t, x), given, key is not None, rngs=rngs)
        return jnp.asarray(output, jnp.float32)
