"""Guidance: a list of elements, each a change from denoiser to denoiser. None of them touches a network or a sampler.

`apply` folds a list; `CFG` guides, `Interval` and `Reuse` say where and how often. `Clipped` limits predictions to the
data's range.
"""

from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance.base import Guidance, Guided, Nulls, apply, nulls_of
from jaxdiff.guidance.classifier_free import CFG, ClassifierFree
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.guidance.interval import Interval
from jaxdiff.guidance.reuse import Reuse
from jaxdiff.process import Process

__all__ = ["CFG", "ClassifierFree", "Clipped", "Guidance", "Guided", "Interval", "Nulls", "Reuse", "apply", "nulls_of"]


def SparseGuidance(
    guided: ClassifierFree,
    process: Process,
    every: int | Array | None = None,
    rho_min: ArrayLike = 0.0,
    rho_max: ArrayLike = float("inf"),
) -> Denoiser:
    """`Reuse` and `Interval` as `jaxdiff.generate` still names them."""
    reused = guided if every is None else Reuse(every)(guided, guided.plain, process, {})
    return Interval(rho_min, rho_max)(reused, guided.plain, process, {})
