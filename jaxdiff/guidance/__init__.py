"""Guidance: a list of elements, each a change from denoiser to denoiser. None of them touches a network or a sampler.

`apply` folds a list. Rules that contrast a condition with its absence (`Contrast`): `CFG` and, in its place, `APG`,
`CFGPlusPlus`, `CFGZeroStar`, `TCFG`, `FDG`. `And` joins other conditions to `CFG`. Behind them or alone, `Autoguidance`
leads away from a second network, and `PAG`, `SEG` and `SLG` from the same one with some layers perturbed;
`ClassifierGuidance` asks a classifier, `Universal` any differentiable loss on x0. `Interval` and `Reuse` say where and
how often; `Rescale`, `Static` and `Dynamic` keep samples in range. `Clipped` limits predictions to the data's range.
"""

from jaxdiff.guidance.adaptive_projected import APG
from jaxdiff.guidance.autoguidance import Autoguidance
from jaxdiff.guidance.away import Away
from jaxdiff.guidance.base import Function, Guidance, Guided, Nulls, Read, apply, finite_weights, nulls_of, resolved
from jaxdiff.guidance.classifier import ClassifierGuidance
from jaxdiff.guidance.classifier_free import CFG, And, ClassifierFree
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.guidance.contrast import Contrast, Contrasted
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
from jaxdiff.guidance.universal import ByLoss, OnPixels, SquaredError, Universal, on_pixels
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
    "ByLoss",
    "ByNoise",
    "CFGPlusPlus",
    "CFGZeroStar",
    "ClassifierFree",
    "ClassifierGuidance",
    "Clipped",
    "Contrast",
    "Contrasted",
    "Dynamic",
    "Function",
    "Guidance",
    "Guided",
    "Interval",
    "Nulls",
    "OnPixels",
    "Read",
    "Rescale",
    "Reuse",
    "Rising",
    "SquaredError",
    "Static",
    "Universal",
    "apply",
    "finite_weights",
    "nulls_of",
    "on_pixels",
    "resolved",
]
