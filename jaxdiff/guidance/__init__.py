"""Guidance: a list of elements, each a change from denoiser to denoiser. None of them touches a network or a sampler.

`apply` folds a list. Rules that contrast a condition with its absence (`Contrast`): `CFG` and, in its place, `APG`,
`CFGPlusPlus`, `CFGZeroStar`, `TCFG`, `FDG`. `And` joins other conditions to `CFG`. Behind them or alone, `Autoguidance`
leads away from a second network, `PAG`, `SEG` and `SLG` from the same one with some layers perturbed. `Interval` and
`Reuse` say where and how often; `Rescale`, `Static` and `Dynamic` keep samples in range. `Clipped` limits predictions
to the data's range.
"""

from jaxdiff.guidance.adaptive_projected import APG
from jaxdiff.guidance.autoguidance import Autoguidance
from jaxdiff.guidance.away import Away
from jaxdiff.guidance.base import Function, Guidance, Guided, Nulls, apply, nulls_of
from jaxdiff.guidance.classifier_free import CFG, And, ClassifierFree
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.guidance.contrast import Contrast, Contrasted, finite_weights
from jaxdiff.guidance.frequency import FDG
from jaxdiff.guidance.interval import Interval
from jaxdiff.guidance.manifold import CFGPlusPlus
from jaxdiff.guidance.perturbed_attention import PAG
from jaxdiff.guidance.rescale import Rescale
from jaxdiff.guidance.reuse import Reuse
from jaxdiff.guidance.skip_layer import SLG
from jaxdiff.guidance.smoothed_energy import SEG
from jaxdiff.guidance.tangential import TCFG
from jaxdiff.guidance.threshold import Dynamic, Static
from jaxdiff.guidance.weights import ByNoise, Rising
from jaxdiff.guidance.zero_star import CFGZeroStar

__all__ = [
    "APG",
    "CFG",
    "FDG",
    "PAG",
    "SEG",
    "SLG",
    "TCFG",
    "And",
    "Autoguidance",
    "Away",
    "ByNoise",
    "CFGPlusPlus",
    "CFGZeroStar",
    "ClassifierFree",
    "Clipped",
    "Contrast",
    "Contrasted",
    "Dynamic",
    "Function",
    "Guidance",
    "Guided",
    "Interval",
    "Nulls",
    "Rescale",
    "Reuse",
    "Rising",
    "Static",
    "apply",
    "finite_weights",
    "nulls_of",
]
