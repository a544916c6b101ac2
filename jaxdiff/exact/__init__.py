"""Denoisers in closed form: what a perfect network would return, with the densities that belong to them.

They are exact problems for samplers, likelihoods and parameterizations: for research, teaching and tests.

    GaussianDenoiser        independent coordinates; the probability flow too       jaxdiff.exact.gaussian
    FullGaussianDenoiser    any covariance; the probability flow too                jaxdiff.exact.gaussian
    MixtureDenoiser         a mixture of Gaussians with independent coordinates     jaxdiff.exact.mixture
    EmpiricalDenoiser       a data set itself, bare or smoothed                     jaxdiff.exact.empirical
"""

from jaxdiff.exact.empirical import EmpiricalDenoiser
from jaxdiff.exact.gaussian import FullGaussianDenoiser, GaussianDenoiser
from jaxdiff.exact.mixture import MixtureDenoiser

__all__ = ["EmpiricalDenoiser", "FullGaussianDenoiser", "GaussianDenoiser", "MixtureDenoiser"]
