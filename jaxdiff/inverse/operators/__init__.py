"""Operators: what was measured of a sample, with its adjoint, pseudo-inverse and spectral form where it has them."""

from jaxdiff.inverse.operators.base import OneValue, Operator
from jaxdiff.inverse.operators.blur import Blur, gaussian_blur
from jaxdiff.inverse.operators.decoded import Decoded
from jaxdiff.inverse.operators.downsampling import Box, Separable, bicubic
from jaxdiff.inverse.operators.grey import Grey, luma, mean_of_channels
from jaxdiff.inverse.operators.jpeg import Quantise, jpeg
from jaxdiff.inverse.operators.linear import Differentiable, Linear
from jaxdiff.inverse.operators.mask import Mask, box_mask, outside, random_mask
from jaxdiff.inverse.operators.phase import PhaseRetrieval
from jaxdiff.inverse.operators.sensing import CompressedSensing, sensing

__all__ = [
    "Blur",
    "Box",
    "CompressedSensing",
    "Decoded",
    "Differentiable",
    "Grey",
    "Linear",
    "Mask",
    "OneValue",
    "Operator",
    "PhaseRetrieval",
    "Quantise",
    "Separable",
    "bicubic",
    "box_mask",
    "gaussian_blur",
    "jpeg",
    "luma",
    "mean_of_channels",
    "outside",
    "random_mask",
    "sensing",
]
