"""Guidance: a list of elements, each a change from denoiser to denoiser. None of them touches a network or a sampler.

`apply` folds a list; `CFG` and `ClassifierGuidance` guide, `Interval` and `Reuse` say where and how often. `Clipped`
limits predictions to the data's range.
"""

from jaxdiff.guidance.base import Function, Guidance, Guided, Nulls, Read, apply, nulls_of, resolved
from jaxdiff.guidance.classifier import ClassifierGuidance
from jaxdiff.guidance.classifier_free import CFG, ClassifierFree
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.guidance.interval import Interval
from jaxdiff.guidance.reuse import Reuse

__all__ = [
    "CFG",
    "ClassifierFree",
    "ClassifierGuidance",
    "Clipped",
    "Function",
    "Guidance",
    "Guided",
    "Interval",
    "Nulls",
    "Read",
    "Reuse",
    "apply",
    "nulls_of",
    "resolved",
]
