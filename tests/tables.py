"""The tables of conformance: every process, parameterization and sampler, by name. A new one gains its tests by a row
here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxdiff as jd
from jaxdiff.sampling import BELM, EDICT
from tests.covers import cover

PROCESSES: dict[str, Callable[[], jd.Process]] = {
    "VP": jd.VP,
    "SubVP": jd.SubVP,
    "CosineVP": jd.CosineVP,
    "SigmoidVP": jd.SigmoidVP,
    "SigmoidVP_skewed": lambda: jd.SigmoidVP(0.0, 3.0, 0.5),
    "VE": jd.VE,
    "KarrasVE": jd.KarrasVE,
    "Flow": jd.Flow,
    "Shifted_flow": lambda: jd.Shifted(jd.Flow(), 3.0),
    "ShiftedSNR_cosine": lambda: jd.ShiftedSNR(jd.CosineVP(), 2.0),
    "DiscreteVP_linear": lambda: jd.DiscreteVP(jd.linear_betas(1000)),
    "DiscreteVP_cosine": lambda: jd.DiscreteVP(jd.cosine_betas(1000)),
    "DiscreteVP_zero_snr": lambda: jd.DiscreteVP(jd.rescale_zero_terminal_snr(jd.scaled_linear_betas(1000))),
}
DISCRETE = {name for name in PROCESSES if name.startswith("DiscreteVP")}
NO_SIGNAL_AT_END = {
    "CosineVP",
    "SigmoidVP",
    "SigmoidVP_skewed",
    "Flow",
    "Shifted_flow",
    "ShiftedSNR_cosine",
    "DiscreteVP_zero_snr",
}  # alpha(1) = 0
EXPLODING = {"VE", "KarrasVE"}  # alpha = 1
ONE_OF_A_FAMILY = {"SubVP", "CosineVP", "KarrasVE", "Flow", "DiscreteVP_zero_snr"}


def every_process() -> list[Any]:
    """Names for `parametrize`, of which one of each family always runs."""
    return [
        pytest.param(name, marks=() if name in ONE_OF_A_FAMILY else pytest.mark.nightly) for name in sorted(PROCESSES)
    ]


PARAMETERIZATIONS: dict[str, jd.Parameterization] = {
    "Eps": jd.Eps(),
    "X0": jd.X0(),
    "V": jd.V(),
    "Score": jd.Score(),
    "Velocity": jd.Velocity(),
    "Karras": jd.Karras(0.5),
}

SAMPLERS: dict[str, Callable[[jd.Process], jd.Sampler]] = {
    "DDPM_small": jd.DDPM,
    "DDPM_large": lambda process: jd.DDPM(process, "fixed_large"),
    "DDIM": jd.DDIM,
    "DDIM_half": lambda process: jd.DDIM(process, 0.5),
    "Euler": jd.Euler,
    "Heun": lambda process: jd.Heun(process, "t"),
    "Heun_rho": lambda process: jd.Heun(process, "rho"),
    "DPM2": jd.DPM2,
    "RK4": jd.RK4,
    "Adaptive": lambda process: jd.Adaptive(process, rtol=1e-4, atol=1e-4),
    "DPMSolver2": jd.DPMSolver,
    "DPMSolver3": lambda process: jd.DPMSolver(process, 3),
    "DPMpp2S": jd.DPMpp2S,
    "DPMpp2M": jd.DPMpp2M,
    "DPMpp3M": jd.DPMpp3M,
    "UniPC": jd.UniPC,
    "DEIS": jd.DEIS,
    "DEIS_log_rho": lambda process: jd.DEIS(process, 3, "log_rho"),
    "LMS": jd.LMS,
    "IPNDM": jd.IPNDM,
    "EDICT": EDICT,
    "BELM": BELM,
    "EulerMaruyama": jd.EulerMaruyama,
    "EulerMaruyama_half": lambda process: jd.EulerMaruyama(process, 0.5),
    "ReverseDiffusion": jd.ReverseDiffusion,
    "PredictorCorrector": lambda process: jd.PredictorCorrector(
        jd.ReverseDiffusion(process), jd.AnnealedLangevin(0.16)
    ),
    "DPMppSDE": jd.DPMppSDE,
    "DPMpp2MSDE": jd.DPMpp2MSDE,
    "DPMpp3MSDE": jd.DPMpp3MSDE,
    "SASolver": jd.SASolver,
    "EulerAncestral": jd.EulerAncestral,
    "EDMStochastic": jd.EDMStochastic,
    "Restart": lambda process: jd.Restart(jd.DPMpp2M(process)),
}
STOCHASTIC = {
    "DDPM_small",
    "DDPM_large",
    "DDIM_half",
    "EulerMaruyama",
    "EulerMaruyama_half",
    "ReverseDiffusion",
    "PredictorCorrector",
    "DPMppSDE",
    "DPMpp2MSDE",
    "DPMpp3MSDE",
    "SASolver",
    "EulerAncestral",
    "EDMStochastic",
    "Restart",
}
NEEDS_SIGNAL = {  # cannot start where alpha = 0
    "Heun_rho",
    "DPM2",
    "DPMSolver2",
    "DPMSolver3",
    "DEIS",
    "DEIS_log_rho",
    "LMS",
    "IPNDM",
    "EDICT",
    "BELM",
    "EulerMaruyama",
    "EulerMaruyama_half",
    "EDMStochastic",
}


def family(process_name: str) -> str:
    """What of a process a sampler's formulas can tell."""
    if process_name in DISCRETE:
        return "chain"
    if process_name in EXPLODING:
        return "no scale"
    return "no signal at the end" if process_name in NO_SIGNAL_AT_END else "signal throughout"


@functools.cache
def kind(sampler_name: str) -> tuple[bool, bool, bool]:
    """Whether a sampler draws noise, divides by alpha, and remembers earlier steps."""
    remembers = bool(jax.tree.leaves(SAMPLERS[sampler_name](jd.VP()).init(jnp.zeros((1, 2)))))
    return sampler_name in STOCHASTIC, sampler_name in NEEDS_SIGNAL, remembers


Facts = Callable[[str, str], Iterable[Hashable]]


def all_meet(process_name: str, sampler_name: str) -> Iterable[Hashable]:
    """Every sampler meets every family, and every process every kind of sampler."""
    return (family(process_name), sampler_name), (process_name, kind(sampler_name))


def each_meets_a_family(process_name: str, sampler_name: str) -> Iterable[Hashable]:
    """Every sampler meets every family, and every process is met."""
    return (family(process_name), sampler_name), process_name


def meetings(
    processes: Iterable[str] = PROCESSES, facts: Facts = all_meet, samplers: Iterable[str] = SAMPLERS
) -> list[tuple[str, str]]:
    """A cover of process x sampler by what a pair shows."""
    places, names = sorted(processes), sorted(samplers)
    # along the diagonals, so that of rows that show as much each process has its share
    rows = [(places[(i + j) % len(places)], name) for i in range(len(places)) for j, name in enumerate(names)]
    return cover(rows, lambda row: facts(*row))


def daily(rows: Iterable[tuple[Any, ...]], facts: Callable[..., Iterable[Hashable]]) -> list[Any]:
    """Rows for `parametrize`, of which a cover of these facts always runs and the others are nightly."""
    rows = list(rows)
    always = set(map(repr, cover(rows, lambda row: facts(*row))))
    return [pytest.param(*row, marks=() if repr(row) in always else pytest.mark.nightly) for row in rows]


MEANS = jnp.array([[1.0, 0.5], [-1.0, 0.3], [0.2, -1.2]])
STDS = jnp.array([0.2, 0.3, 0.25])
LOG_WEIGHTS = jnp.log(jnp.array([0.5, 0.3, 0.2]))


def mixture(process: jd.Process) -> jd.MixtureDenoiser:
    """Three Gaussians in the plane."""
    return jd.MixtureDenoiser(process, MEANS, STDS, LOG_WEIGHTS)


def gaussian(process: jd.Process) -> jd.GaussianDenoiser:
    """A Gaussian in the plane, its coordinates unlike."""
    return jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), jnp.array([0.5, 0.2]))
