"""Guidance rescaled to the plain prediction's contrast (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample
Steps are Flawed", https://arxiv.org/abs/2305.08891, section 3.4).

Large weights raise the deviation of a sample's numbers. With std over all numbers of a sample,

    x0 = (phi std(x0_plain)/std(x0_guided) + 1 - phi) x0_guided.                                     (1)

The paper applies it to the network's output, whatever that is; here it is x0, so that it means the same under every
parameterization.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance.base import Changed, Guidance, Nulls, guided_from
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class Rescale(Guidance):
    """The guided prediction with the contrast of the plain one, equation (1).

    Args:
      phi: from 0 (as guided) to 1, ``()`` or one a sample ``(B,)``; data. The paper has 0.7.

    Raises:
      ValueError: phi out of range; (in a list) no guidance before it.

    >>> Rescale(2.0)
    Traceback (most recent call last):
    ...
    ValueError: rescale takes a share from 0 to 1, got 2.0
    """

    phi: ArrayLike = 0.7

    def __post_init__(self) -> None:
        if isinstance(self.phi, jax.core.Tracer):
            return
        if not ((np.asarray(self.phi) >= 0) & (np.asarray(self.phi) <= 1)).all():
            raise ValueError(f"rescale takes a share from 0 to 1, got {self.phi}")

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return Rescaled(guided_from(denoise, plain, "rescale"), process, self.phi)


@record
class Rescaled(Changed):
    """Equation (1).

    Args:
      guided: the guided denoiser.
      process: its process.
      phi: see `Rescale`.
    """

    phi: ArrayLike

    def changed(self, x: Array, t: ArrayLike, guided: Prediction, plain: Prediction) -> Prediction:
        ours, theirs = (flatten(part.x0).std(axis=1) for part in (guided, plain))
        ratio = jnp.where(ours > 0, theirs / jnp.where(ours > 0, ours, 1.0), 1.0) - 1.0
        by = expand(jnp.asarray(self.phi, x.dtype) * ratio, x) * guided.x0
        return moved(self.process, t, guided, by)
