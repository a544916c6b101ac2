"""Inverse problems and edits: samples that go with a picture, a part of one, or any measurement.

Operators (`jaxdiff.inverse.operators`) say what was measured, a `Problem` has y and its noise, and a `Method` makes of
it the guidance and the sampler that draw x0 given y. `jaxdiff.reconstruction.reconstruct` does it for a model. Pictures
larger than a network knows are drawn in windows (`tiles`).
"""

from jaxdiff.inverse.daps import DAPS
from jaxdiff.inverse.ddnm import DDNM, Consistent, DDNMPlus
from jaxdiff.inverse.ddrm import DDRM
from jaxdiff.inverse.diffpir import DiffPIR
from jaxdiff.inverse.dps import DPS
from jaxdiff.inverse.editing import edit, interpolate, slerp, variations
from jaxdiff.inverse.ilvr import ILVR
from jaxdiff.inverse.inverted import Inverted
from jaxdiff.inverse.mcg import MCG
from jaxdiff.inverse.method import Measured, Method
from jaxdiff.inverse.pigdm import PiGDM
from jaxdiff.inverse.problem import Gaussian, MeasurementNoise, Poisson, Problem, measure
from jaxdiff.inverse.psld import PSLD
from jaxdiff.inverse.reconstruction_guidance import ReconstructionGuidance
from jaxdiff.inverse.repaint import RePaint
from jaxdiff.inverse.replacement import Known, KnownPart
from jaxdiff.inverse.sdedit import noised, remaining
from jaxdiff.inverse.tiles import Region, Tiles, hann
from jaxdiff.inverse.twisted import TDS, Twisted
from jaxdiff.inverse.twists import GaussianTwist, InpaintingTwist, LikelihoodTwist, Twist

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "ILVR",
    "MCG",
    "PSLD",
    "TDS",
    "Consistent",
    "DDNMPlus",
    "DiffPIR",
    "Gaussian",
    "GaussianTwist",
    "InpaintingTwist",
    "Inverted",
    "Known",
    "KnownPart",
    "LikelihoodTwist",
    "Measured",
    "MeasurementNoise",
    "Method",
    "PiGDM",
    "Poisson",
    "Problem",
    "RePaint",
    "ReconstructionGuidance",
    "Region",
    "Tiles",
    "Twist",
    "Twisted",
    "edit",
    "hann",
    "interpolate",
    "measure",
    "noised",
    "remaining",
    "slerp",
    "variations",
]
