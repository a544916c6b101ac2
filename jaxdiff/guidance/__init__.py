"""Guidance: a list of elements, each a change from denoiser to denoiser. None of them touches a network or a sampler.

`apply` folds a list; `CFG` guides, `Interval` and `Reuse` say where and how often. `Universal` guides by any
differentiable loss on x0. `Clipped` limits predictions to the data's range.
"""

from jaxdiff.guidance.base import Function, Guidance, Guided, Nulls, apply, nulls_of
from jaxdiff.guidance.classifier_free import CFG, ClassifierFree
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.guidance.interval import Interval
from jaxdiff.guidance.reuse import Reuse
from jaxdiff.guidance.universal import ByLoss, OnPixels, SquaredError, Universal, on_pixels

__all__ = [
    "CFG",
    "ByLoss",
    "ClassifierFree",
    "Clipped",
    "Function",
    "Guidance",
    "Guided",
    "Interval",
    "Nulls",
    "OnPixels",
    "Reuse",
    "SquaredError",
    "Universal",
    "apply",
    "nulls_of",
    "on_pixels",
]
