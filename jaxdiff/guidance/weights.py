"""Weights of guidance that depend on the time.

Guidance weighs most where it helps. With w the weight of the whole way, and the mean of w(t) over t kept (Wang et al.
2024, "Analysis of Classifier-Free Guidance Weight Schedulers", https://arxiv.org/abs/2404.13040, table 1; their omega
is w - 1),

    linear:   w(t) = 1 + (w - 1) 2 (1 - t)                                                           (1)
    cosine:   w(t) = 1 + (w - 1) (1 + cos(pi t))                                                     (2)

both 1 where the sample is noise and largest at the data. A weight may also be given at levels rho = sigma/alpha of the
noise, in straight lines over ln rho between them (`ByNoise`), which means the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process
from jaxdiff.record import field, record

Weight = Callable[[Process, ArrayLike], Array]
"""``(process, t) -> w``, ``()`` or one a sample."""


@record
class Rising:
    """Equations (1) and (2): a weight that rises from 1 at t = 1.

    Args:
      weight: w, ``()`` or one a sample ``(B,)``; data.
      shape: "linear" or "cosine"; static.

    >>> float(Rising(3.0, "linear")(None, 0.5)), float(Rising(3.0, "cosine")(None, 0.0))
    (3.0, 5.0)
    """

    weight: ArrayLike
    shape: Literal["linear", "cosine"] = field(default="linear", pytree_node=False)

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"a schedule of the weight is linear or cosine, got {self.shape!r}")

    def __call__(self, process: Process | None, t: ArrayLike) -> Array:
        t = jnp.asarray(t, jnp.result_type(float))
        share = 2.0 * (1.0 - t) if self.shape == "linear" else 1.0 + jnp.cos(jnp.pi * t)
        return 1.0 + (jnp.asarray(self.weight, t.dtype) - 1.0) * share


@record
class ByNoise:
    """A weight at some levels of noise, in straight lines over ln rho between them, constant beyond.

    Args:
      rho: levels sigma/alpha, rising, above 0; data.
      weight: one at each; data.

    Raises:
      ValueError: levels that do not rise, or not as many weights.

    >>> from jaxdiff import Flow
    >>> print(ByNoise((0.1, 10.0), (1.0, 3.0))(Flow(), 0.5))  # rho = 1 lies in the middle
    2.0
    """

    rho: tuple[ArrayLike, ...]
    weight: tuple[ArrayLike, ...]

    def __post_init__(self) -> None:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self.rho, self.weight))):
            return
        rho = np.asarray(self.rho)
        if len(self.rho) != len(self.weight) or not len(rho) or not (rho > 0).all() or not (np.diff(rho) > 0).all():
            raise ValueError(
                f"a weight by noise has rising levels sigma/alpha above 0 and a weight at each, got {self.rho} and "
                f"{self.weight}"
            )

    def __call__(self, process: Process, t: ArrayLike) -> Array:
        position = -0.5 * process.log_snr(t)
        levels = jnp.log(jnp.stack([jnp.asarray(rho, position.dtype) for rho in self.rho]))
        return jnp.interp(position, levels, jnp.stack([jnp.asarray(w, position.dtype) for w in self.weight]))


def weight_at(weight: ArrayLike | Weight, process: Process | None, t: ArrayLike, dtype: np.dtype) -> Array:
    """The weight at a time, of a number or a function.

    Raises:
      ValueError: a function, without the process that it is of.
    """
    if not callable(weight):
        return jnp.asarray(weight, dtype)
    if process is None:
        raise ValueError("a weight that depends on the time needs the process: guide by a list, guidance.apply")
    return jnp.asarray(weight(process, t), dtype)
