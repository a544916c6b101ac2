"""Autoguidance: a second network, worse than the first, is led away from.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507. With D_1
the denoiser and D_0 a worse one of the same process and data (an earlier checkpoint, a smaller network, a shorter
average of the weights), both told the same condition,

    D = D_1 + (w - 1) (D_1 - D_0).                                                                   (1)

w = 1 is D_1 bit for bit. Both err towards samples that the data have not, D_0 by more; their difference says which way
that is, and (1) goes back further. What D_0 knows of the condition it does not take away, so the samples stay diverse
where classifier-free guidance makes them alike. Behind other guidance G, (1) is G + (w - 1) (D_1 - D_0).

D_0 is data of a program: another one of the same shapes compiles nothing. Written as text, it is named by where it
lies, and read by the run that samples (`jaxdiff.runs.Run.sample`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance.away import away, finite
from jaxdiff.guidance.base import Guidance, Nulls, Read, finite_weights
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class Autoguidance(Guidance):
    """Autoguidance: away from a second network that is worse, such as an earlier checkpoint.

    Args:
      weight: w of equation (1), ``()`` or one a sample ``(B,)``; data. 1 is what stands before it.
      denoise: D_0, of the same process, its weights being data; None: it is named by what follows.
      run: folder of the run that it is of; None: the same run. Static.
      step: of its checkpoint; None: the newest. Static.
      average: of its weights, by name, "none" for those of the last step; "": the first. Static.

    Raises:
      ValueError: a weight that is none; no D_0, or one given twice; (when sampling) a name that nobody has read.

    >>> Autoguidance(2.0, run="runs/small")
    Autoguidance(weight=2.0, denoise=None, run='runs/small', step=None, average='')
    >>> Autoguidance(2.0)
    Traceback (most recent call last):
    ...
    ValueError: autoguidance needs a worse network: run=runs/small, or step=500 or average=short of the same run
    """

    weight: ArrayLike
    denoise: Any = None
    run: str | None = field(default=None, pytree_node=False)
    step: int | None = field(default=None, pytree_node=False)
    average: str = field(default="", pytree_node=False)

    def __post_init__(self) -> None:
        finite("weight", self.weight)
        named = (self.run, self.step, self.average) != (None, None, "")
        if self.denoise is None and not named:
            raise ValueError(
                "autoguidance needs a worse network: run=runs/small, or step=500 or average=short of the same run"
            )
        if self.denoise is not None and (named or not callable(self.denoise)):
            raise ValueError(
                f"autoguidance takes a denoiser or the name of one, got a {type(self.denoise).__name__} and "
                f"run={self.run!r}, step={self.step!r}, average={self.average!r}"
            )

    def resolved(self, read: Read | None) -> Autoguidance:
        """With the denoiser that is named."""
        if self.denoise is not None:
            return self
        if read is None:
            raise ValueError(
                "this model cannot load a second network: give the denoiser itself, Autoguidance(2.0, "
                "jaxdiff.load('runs/small').denoise)"
            )
        found = read(self.run, step=self.step, average=self.average or None, alike=True)
        return dataclasses.replace(self, denoise=found.denoise, run=None, step=None, average="")

    def check(self, n: int) -> None:
        finite_weights(self.weight, n)

    def rows(self, part: Callable[[Any], Any]) -> Autoguidance:
        return dataclasses.replace(self, weight=part(self.weight))

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        if self.denoise is None:
            raise ValueError("the second network is not loaded yet: jaxdiff.guidance.resolved does it")
        return away(denoise, plain, self.denoise, jnp.asarray(self.weight) - 1.0, "autoguidance")
