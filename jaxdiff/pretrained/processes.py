"""The process that a published scheduler is of, and how jaxdiff samples from it where nothing else is said.

A `scheduler_config.json` says more than the steps of diffusers (`jaxdiff.pretrained.schedulers`): it says the noise
that the network was trained on, what it predicts and what it is told about time.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.discrete import DiscreteVP
from jaxdiff.model import Defaults
from jaxdiff.parameterization import X0, Eps, Parameterization, ScaledTime, TimeIndex, V, Velocity
from jaxdiff.pretrained.chains import chain
from jaxdiff.pretrained.fields import Fields
from jaxdiff.process import Process
from jaxdiff.schedule import Flow


def process_of(fields: Fields) -> tuple[Process, Parameterization, Defaults]:
    """The process that a scheduler's configuration is of, what the network predicts and is told, and a way to sample.

    Raises:
      PretrainedError: a schedule or a prediction that jaxdiff does not know.

    >>> process, parameterization, _ = process_of(Fields({"_class_name": "DDIMScheduler"}))
    >>> type(process).__name__, type(parameterization).__name__
    ('DiscreteVP', 'Eps')
    """
    name = str(fields.values.get("_class_name"))
    if "FlowMatch" in name:
        return (
            Flow(),
            Velocity(time=ScaledTime(1000.0)),
            Defaults("euler", 28, functools.partial(_flow_times, fields), clip=False),
        )
    defaults = {"LCM": (0.00085, 0.012, "scaled_linear"), "Heun": (0.00085, 0.012, "linear")}
    betas = next((each for key, each in defaults.items() if key in name), (1e-4, 0.02, "linear"))
    on = chain(Fields(fields.values, fields.where), betas=betas)
    kinds: dict[str, Any] = {"epsilon": Eps, "sample": X0, "v_prediction": V}
    return (
        DiscreteVP(on.betas),
        kinds[on.kind](time=TimeIndex(on.length)),
        Defaults("dpmpp_2m", 25, "uniform", clip=False),
    )


def _flow_times(fields: Fields, process: Process, n: int) -> Array:
    """A flow's own times: its noise levels, shifted as its scheduler says, and once only."""
    shift = fields.get("shift", 1.0)
    level = np.linspace(1.0, 1 / n, n)
    return jnp.asarray(shift * level / (1 + (shift - 1) * level), jnp.float32)
