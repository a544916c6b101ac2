"""The process that a published scheduler is of, and how jaxdiff samples from it where nothing else is said.

A `scheduler_config.json` says more than the steps of diffusers (`jaxdiff.pretrained.schedulers.classes`): it says the
noise that the network was trained on, what it predicts and what it is told about time.

    chains        `DiscreteVP` of its betas; noise, x0 or v; told the index
    flows         `Flow`; velocity; told T t
    EDM           `KarrasVE`; the preconditioning of Karras et al. 2022; told ln(sigma)/4
    v of sigma    `KarrasVE`; minus EDM's target of sigma_data = 1, which is (sigma x0 - eps)/sqrt(sigma^2 + 1) = -v:
                  "continuous" Euler with v_prediction (Stable Video Diffusion)
    consistency   `KarrasVE`; c_skip of sigma - sigma_min, so that x0 = x at sigma_min (Song et al. 2023, equation (5)
                  and appendix C); told 250 ln(sigma)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.discrete import DiscreteVP
from jaxdiff.grid import log_snr_times
from jaxdiff.model import Defaults
from jaxdiff.parameterization import (
    X0,
    Consistency,
    Eps,
    Extended,
    Karras,
    LogSigma,
    Parameterization,
    ScaledTime,
    TimeIndex,
    V,
    Velocity,
)
from jaxdiff.prediction import Prediction
from jaxdiff.pretrained.errors import as_pretrained_error
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chain_steps import taught_indices
from jaxdiff.pretrained.schedulers.chains import chain
from jaxdiff.pretrained.schedulers.fields import class_of, own
from jaxdiff.pretrained.schedulers.flow_steps import shift_of, shifted, stretched
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.schedule import Flow, KarrasVE

RENOISING = "sa_solver:order=1,corrector_order=0,tau=20"
"""x_s = alpha_s x0 + sigma_s z but for e^-400h of x, h half the log-SNR of a step: the steps of consistency models."""

_CLIPPED = ("DDIMScheduler", "DDPMScheduler")  # which limit x0, of pixels, where their configuration says nothing


def process_of(fields: Fields) -> tuple[Process, Parameterization, Defaults]:
    """The process that a scheduler's configuration is of, what the network predicts and is told, and a way to sample.

    Raises:
      PretrainedError: a class, a schedule or a prediction that jaxdiff does not know.

    >>> process, parameterization, _ = process_of(Fields({"_class_name": "DDIMScheduler"}))
    >>> type(process).__name__, type(parameterization).__name__
    ('DiscreteVP', 'Eps')
    """
    fields = own(fields)
    with as_pretrained_error(fields.where):
        return _process_of(class_of(fields), fields)


def _process_of(name: str, fields: Fields) -> tuple[Process, Parameterization, Defaults]:
    length = fields.get("num_train_timesteps", 1000)
    if name.startswith("FlowMatch") or fields.get("use_flow_sigmas", False):
        sampler, steps = (RENOISING, 4) if "LCM" in name else ("unipc:order=2", 28)
        grid = FlowTimes(fields.values, fields.where)
        dataclasses.replace(grid, tokens=1024)(Flow(), 2)  # refuses what it cannot follow
        return Flow(), Velocity(time=ScaledTime(float(length))), Defaults(sampler, steps, grid, clip=False)
    if name.startswith("EDM"):
        return _of_levels(fields, fields.get("sigma_data", 0.5))
    if name == "CMStochasticIterativeScheduler":
        return _consistency(fields)
    if fields.get("timestep_type", "discrete") == "continuous" and fields.get("prediction_type", "") == "v_prediction":
        on = chain(fields).levels
        ends = {"sigma_min": on[0], "sigma_max": on[-1], **{k: v for k, v in fields.values.items() if v is not None}}
        return _of_levels(Fields(ends, fields.where), 1.0)
    on_chain = chain(fields)
    kinds: dict[str, Any] = {"epsilon": Eps, "sample": X0, "v_prediction": V}
    clip = bool(fields.get("clip_sample", name in _CLIPPED))
    defaults = Defaults("unipc:order=2", 25, LogSNRTimes(), clip=clip)
    if name in ("LCMScheduler", "TCDScheduler"):
        sampler = RENOISING if name == "LCMScheduler" else "ddim"
        defaults = Defaults(sampler, 4, TaughtTimes(fields.get("original_inference_steps", 50)), clip=False)
    return DiscreteVP(on_chain.betas), kinds[on_chain.kind](time=TimeIndex(on_chain.length)), defaults


def _of_levels(fields: Fields, data: float) -> tuple[Process, Parameterization, Defaults]:
    """With the preconditioning of Karras et al. 2022."""
    least, most = float(fields.get("sigma_min", 0.002)), float(fields.get("sigma_max", 80.0))
    karras: Parameterization = Karras(data)
    if fields.get("prediction_type", "epsilon") == "v_prediction":
        karras = Negated(karras)
    process = KarrasVE(least, most, float(fields.get("rho", 7.0)))
    return process, karras, Defaults("unipc:order=2", 25, LogSNRTimes(most=most), clip=False)


def _consistency(fields: Fields) -> tuple[Process, Parameterization, Defaults]:
    least, most = float(fields.get("sigma_min", 0.002)), float(fields.get("sigma_max", 80.0))
    process = KarrasVE(least, most, float(fields.get("rho", 7.0)))
    read = Consistency(float(fields.get("sigma_data", 0.5)), least, time=LogSigma(250.0))
    return process, read, Defaults(RENOISING, 2, ConsistencyTimes(fields.get("num_train_timesteps", 40)))


# --- parameterizations of their own


@record
class Negated(Extended):
    """A network whose output is minus that of ``base``.

    Args:
      base: what minus the output is, and what the network is told about time.
    """

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return -self.base.target(process, x0, eps, t)

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return self.base.read(process, x, t, -output)


# --- times of their own


@dataclass(frozen=True)
class FlowTimes:
    """A flow's own times: n noise levels evenly from 1 to 1/(2n), shifted as its scheduler says, and once only. Up to 4
    end at 1/n: networks that were distilled for as many know these.

    Args:
      values: the scheduler's fields.
      where: their file, for messages.
      tokens: of the image, which decide a dynamic shift.
    """

    values: Mapping[str, Any]
    where: str = "scheduler_config.json"
    tokens: int | None = None

    def __call__(self, process: Process, n: int) -> Array:
        fields = Fields(self.values, self.where)
        factor = shift_of(fields, self.tokens) or fields.get("shift", fields.get("flow_shift", 1.0))
        level = shifted(np.linspace(1.0, 1 / n if n <= 4 else 0.5 / n, n), factor)
        return jnp.asarray(stretched(level, fields.get("shift_terminal", None, like=0.0)), jnp.float32)


@dataclass(frozen=True)
class LogSNRTimes:
    """Times evenly in log-SNR where a picture is decided: sigma/alpha from 80 to 0.03, as far as the chain goes there.
    A chain of zero terminal SNR begins at 200: its network was taught to begin with noise alone.

    Args:
      least: the last noise level.
      most: the first one.
    """

    least: float = 0.03
    most: float = 80.0

    def __call__(self, process: Process, n: int) -> Array:
        first, last = (process.time_of_log_snr(-2 * jnp.log(level)) for level in (self.most, self.least))
        first = jnp.where(process.alpha(1.0) == 0.0, process.max_time(), first)
        return log_snr_times(process, n, t_max=first, t_min=jnp.maximum(last, process.min_time()))


@dataclass(frozen=True)
class TaughtTimes:
    """n of the times of a chain that a student was distilled at.

    Args:
      original: how many of them there are.
    """

    original: int

    def __call__(self, process: Process, n: int) -> Array:
        steps = process.steps or 1000
        return jnp.asarray((taught_indices(steps, self.original, n) + 1) / steps, jnp.float32)


@dataclass(frozen=True)
class ConsistencyTimes:
    """n of the times of a consistency model, evenly on the process' own scale from its end.

    Args:
      length: how many it was trained at; the index 0 is the noise end.
    """

    length: int

    def __call__(self, process: Process, n: int) -> Array:
        return 1 - jnp.arange(n) * (self.length // n) / (self.length - 1)

    def checked(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Indices in the order in which they are visited.

        Raises:
          ValueError: what is no list of different indices.

        >>> ConsistencyTimes(40).checked([22, 0])
        (0, 22)
        """
        whole = isinstance(indices, list | tuple) and all(type(each) is int for each in indices)
        if not whole or not indices or min(indices) < 0 or max(indices) >= self.length:
            raise ValueError(f"timesteps is indices from 0 to {self.length - 1}, such as [22, 0], got {indices!r}")
        if len({*indices}) < len(indices):
            raise ValueError(f"timesteps has an index twice: {indices!r}")
        return tuple(sorted(indices))

    def at(self, indices: tuple[int, ...]) -> list[float]:
        """The times of indices."""
        return [1 - index / (self.length - 1) for index in indices]
