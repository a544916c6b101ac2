"""Guidance: a list of elements, each a change from denoiser to denoiser. None of them touches a network or a sampler.

`apply` folds a list; `CFG` guides, `Interval` and `Reuse` say where and how often. `Clipped` limits predictions to the
data's range.
"""

from jaxdiff.guidance.autoguidance import Autoguidance
from jaxdiff.guidance.away import Away
from jaxdiff.guidance.base import Function, Guidance, Guided, Nulls, apply, nulls_of
from jaxdiff.guidance.classifier_free import CFG, ClassifierFree
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.guidance.interval import Interval
from jaxdiff.guidance.perturbed_attention import PAG
from jaxdiff.guidance.reuse import Reuse
from jaxdiff.guidance.skip_layer import SLG
from jaxdiff.guidance.smoothed_energy import SEG

__all__ = [
    "CFG",
    "PAG",
    "SEG",
    "SLG",
    "Autoguidance",
    "Away",
    "ClassifierFree",
    "Clipped",
    "Function",
    "Guidance",
    "Guided",
    "Interval",
    "Nulls",
    "Reuse",
    "apply",
    "nulls_of",
]
