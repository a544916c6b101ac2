"""Inverse problems and edits: samples that go with a picture, a part of one, or any measurement.

Operators (`jaxdiff.inverse.operators`) say what was measured, a `Problem` has y and its noise, and a `Method` makes of
it the guidance and the sampler that draw x0 given y. `jaxdiff.reconstruction.reconstruct` does it for a model.
"""

from jaxdiff.inverse.ddnm import DDNM, Consistent
from jaxdiff.inverse.editing import edit, interpolate, slerp, variations
from jaxdiff.inverse.inverted import Inverted
from jaxdiff.inverse.method import Measured, Method
from jaxdiff.inverse.problem import Gaussian, MeasurementNoise, Poisson, Problem, measure
from jaxdiff.inverse.replacement import Known, KnownPart
from jaxdiff.inverse.sdedit import noised, remaining

__all__ = [
    "DDNM",
    "Consistent",
    "Gaussian",
    "Inverted",
    "Known",
    "KnownPart",
    "Measured",
    "MeasurementNoise",
    "Method",
    "Poisson",
    "Problem",
    "edit",
    "interpolate",
    "measure",
    "noised",
    "remaining",
    "slerp",
    "variations",
]
