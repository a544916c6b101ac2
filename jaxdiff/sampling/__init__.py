"""Samplers: the contract and the loops (`base`), the methods, and the search for a grid (`grid_search`, `choose`)."""

from jaxdiff.sampling.adams import DEIS, IPNDM, LMS
from jaxdiff.sampling.adaptive import Adaptive
from jaxdiff.sampling.ancestral import DDIM, DDPM, AnalyticDDPM, estimate_gamma
from jaxdiff.sampling.base import Sampler, check_times, integrate, pad_times, sample
from jaxdiff.sampling.belm import BELM
from jaxdiff.sampling.choose import Choice, choose
from jaxdiff.sampling.edict import EDICT
from jaxdiff.sampling.exponential_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE, SASolver
from jaxdiff.sampling.grid_search import ays_times, gits_times, interpolate_times, polish_times, teacher_path
from jaxdiff.sampling.karras import EDMStochastic, EulerAncestral, Restart
from jaxdiff.sampling.keep import Keep, Kept
from jaxdiff.sampling.langevin import AnnealedLangevin, AnnealedLangevinDynamics, Langevin, PredictorCorrector
from jaxdiff.sampling.multistep import DPMpp2M, DPMpp3M
from jaxdiff.sampling.ode import DPM2, RK4, Euler, Heun, RungeKutta
from jaxdiff.sampling.parallel import sample_parallel
from jaxdiff.sampling.particles import Particles, ParticleSampler, particle_keys, sample_particles
from jaxdiff.sampling.path import sample_path
from jaxdiff.sampling.recommended import recommended, recommended_times
from jaxdiff.sampling.recurrent import Recurrent
from jaxdiff.sampling.sde import EulerMaruyama, ReverseDiffusion
from jaxdiff.sampling.singlestep import DPMpp2S, DPMSolver
from jaxdiff.sampling.smoothed import Smoothed, SmoothedDenoiser
from jaxdiff.sampling.steered import Steered
from jaxdiff.sampling.tableau import BOGACKI_SHAMPINE, DORMAND_PRINCE, TABLEAUX, Tableau
from jaxdiff.sampling.tabulated import Tabulated
from jaxdiff.sampling.unipc import UniPC

__all__ = [
    "BELM",
    "BOGACKI_SHAMPINE",
    "DDIM",
    "DDPM",
    "DEIS",
    "DORMAND_PRINCE",
    "DPM2",
    "EDICT",
    "IPNDM",
    "LMS",
    "RK4",
    "TABLEAUX",
    "Adaptive",
    "AnalyticDDPM",
    "AnnealedLangevin",
    "AnnealedLangevinDynamics",
    "Choice",
    "DPMSolver",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp2S",
    "DPMpp3M",
    "DPMpp3MSDE",
    "DPMppSDE",
    "EDMStochastic",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "Heun",
    "Keep",
    "Kept",
    "Langevin",
    "ParticleSampler",
    "Particles",
    "PredictorCorrector",
    "Recurrent",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "SASolver",
    "Sampler",
    "Smoothed",
    "SmoothedDenoiser",
    "Steered",
    "Tableau",
    "Tabulated",
    "UniPC",
    "ays_times",
    "check_times",
    "choose",
    "estimate_gamma",
    "gits_times",
    "integrate",
    "interpolate_times",
    "pad_times",
    "particle_keys",
    "polish_times",
    "recommended",
    "recommended_times",
    "sample",
    "sample_parallel",
    "sample_particles",
    "sample_path",
    "teacher_path",
]
