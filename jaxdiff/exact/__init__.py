"""Denoisers in closed form: what a perfect network would return, with the densities that belong to them.

They are exact problems for samplers, likelihoods and parameterizations: for research, teaching and tests.

    GaussianDenoiser        independent coordinates; the probability flow too       jaxdiff.exact.gaussian
    FullGaussianDenoiser    any covariance; the probability flow too                jaxdiff.exact.gaussian
    MixtureDenoiser         a mixture of Gaussians with independent coordinates     jaxdiff.exact.mixture
    EmpiricalDenoiser       a data set itself, bare or smoothed                     jaxdiff.exact.empirical
    MixturePosterior        of the last two, given a linear measurement             jaxdiff.exact.posterior

Exact means to the rounding of x's dtype, on every device: float32 with float32 samples, and float64 under x64. Matrix
products ask for `jax.lax.Precision.HIGHEST`, since the default on TPU rounds their factors to bfloat16 (8 bits) and on
GPU to TF32 (11 bits). What rounding of x itself costs where sigma is small is at the top of `jaxdiff.exact.empirical`.
"""

from jaxdiff.exact.empirical import EmpiricalDenoiser
from jaxdiff.exact.gaussian import FullGaussianDenoiser, GaussianDenoiser
from jaxdiff.exact.mixture import MixtureDenoiser
from jaxdiff.exact.posterior import MixturePosterior

__all__ = ["EmpiricalDenoiser", "FullGaussianDenoiser", "GaussianDenoiser", "MixtureDenoiser", "MixturePosterior"]
