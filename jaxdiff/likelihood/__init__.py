"""Likelihoods: the probability flow (`flow`), variational bounds (`bounds`), and what turns grey levels into densities
and densities into bits per dimension (`dequantise`)."""

from jaxdiff.likelihood.bounds import (
    ContinuousBound,
    DiscreteBound,
    ProposeLogSNR,
    ProposeTime,
    TimeProposal,
    continuous_elbo,
    discrete_vlb,
    learn_proposal,
    prior_kl,
)
from jaxdiff.likelihood.dequantise import (
    Dequantiser,
    GaussianDequantiser,
    UniformDequantiser,
    VariationalDequantiser,
    bits_per_dim,
    decoder_log_probability,
)
from jaxdiff.likelihood.flow import FlowLikelihood, log_likelihood
from jaxdiff.likelihood.solvers import AdaptiveSteps, FixedSteps, Solver

__all__ = [
    "AdaptiveSteps",
    "ContinuousBound",
    "Dequantiser",
    "DiscreteBound",
    "FixedSteps",
    "FlowLikelihood",
    "GaussianDequantiser",
    "ProposeLogSNR",
    "ProposeTime",
    "Solver",
    "TimeProposal",
    "UniformDequantiser",
    "VariationalDequantiser",
    "bits_per_dim",
    "continuous_elbo",
    "decoder_log_probability",
    "discrete_vlb",
    "learn_proposal",
    "log_likelihood",
    "prior_kl",
]
