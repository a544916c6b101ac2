"""Samplers: the contract and the loops (`base`), and the methods."""

from jaxdiff.sampling.ancestral import DDIM, DDPM
from jaxdiff.sampling.base import Sampler, check_times, integrate, sample, sample_path
from jaxdiff.sampling.multistep import DPMpp2M
from jaxdiff.sampling.ode import Euler, Heun
from jaxdiff.sampling.sde import EulerMaruyama

__all__ = [
    "DDIM",
    "DDPM",
    "DPMpp2M",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Sampler",
    "check_times",
    "integrate",
    "sample",
    "sample_path",
]
