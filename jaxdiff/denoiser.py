"""Denoisers: functions of (x, t, cond) that return a `Prediction`.

Everything that samples, guides or evaluates takes a denoiser and knows nothing of what stands behind it: a network
(`NetworkDenoiser`), a closed form (`jaxdiff.exact`), or another denoiser changed (`jaxdiff.guidance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import per_sample
from jaxdiff.parameterization import Parameterization
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record

Cond = Mapping[str, Array]
"""What a sample is conditioned on: arrays with the batch first, such as ``{"label": (B,) int32}``."""

Denoise = Callable[[Array, ArrayLike], Prediction]
"""A denoiser with its condition bound, as samplers receive it: ``denoise(x, t)``."""


class Denoiser(Protocol):
    """``(x, t, cond=None) -> Prediction``; x ``(B, ...)``, t ``()`` or ``(B,)`` in [0, 1]."""

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction: ...


class Net(Protocol):
    """A network as pure functions: see `jaxdiff.networks.functional`."""

    def apply(
        self, params: Any, x: Array, t: Array, cond: Cond | None = None, *, key: Array | None = None
    ) -> Array: ...


@record
class NetworkDenoiser:
    """The denoiser that a network's output stands for.

    Args:
      net: the pure network; static, so two equal ones share a trace.
      params: its parameters.
      process: the process it was trained on.
      parameterization: what it sees and returns.
    """

    net: Net = field(pytree_node=False)
    params: Any
    process: Process
    parameterization: Parameterization

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        net_x, net_t = self.parameterization.condition(self.process, x, t)
        output = self.net.apply(self.params, net_x, per_sample(net_t, x), cond)
        return self.parameterization.read(self.process, x, t, output.astype(x.dtype))
