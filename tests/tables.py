"""The tables of conformance: every process, parameterization and sampler, by name. A new one gains its tests by a row
here."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

import jaxdiff as jd

PROCESSES: dict[str, Callable[[], jd.Process]] = {
    "VP": jd.VP,
    "SubVP": jd.SubVP,
    "CosineVP": jd.CosineVP,
    "SigmoidVP": jd.SigmoidVP,
    "SigmoidVP_skewed": lambda: jd.SigmoidVP(0.0, 3.0, 0.5),
    "VE": jd.VE,
    "KarrasVE": jd.KarrasVE,
    "Flow": jd.Flow,
    "DiscreteVP_linear": lambda: jd.DiscreteVP(jd.linear_betas(1000)),
    "DiscreteVP_cosine": lambda: jd.DiscreteVP(jd.cosine_betas(1000)),
    "DiscreteVP_zero_snr": lambda: jd.DiscreteVP(jd.rescale_zero_terminal_snr(jd.scaled_linear_betas(1000))),
}
DISCRETE = {name for name in PROCESSES if name.startswith("DiscreteVP")}
NO_SIGNAL_AT_END = {"CosineVP", "SigmoidVP", "SigmoidVP_skewed", "Flow", "DiscreteVP_zero_snr"}  # alpha(1) = 0

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
    "Heun": jd.Heun,
    "Heun_rho": lambda process: jd.Heun(process, "rho"),
    "EulerMaruyama": jd.EulerMaruyama,
    "DPMpp2M": jd.DPMpp2M,
}
STOCHASTIC = {"DDPM_small", "DDPM_large", "DDIM_half", "EulerMaruyama"}
NEEDS_SIGNAL = {"Heun_rho", "EulerMaruyama"}  # cannot start where alpha = 0

MEANS = jnp.array([[1.0, 0.5], [-1.0, 0.3], [0.2, -1.2]])
STDS = jnp.array([0.2, 0.3, 0.25])
LOG_WEIGHTS = jnp.log(jnp.array([0.5, 0.3, 0.2]))


def mixture(process: jd.Process) -> jd.MixtureDenoiser:
    """Three Gaussians in the plane."""
    return jd.MixtureDenoiser(process, MEANS, STDS, LOG_WEIGHTS)


def gaussian(process: jd.Process) -> jd.GaussianDenoiser:
    """A Gaussian in the plane, its coordinates unlike."""
    return jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), jnp.array([0.5, 0.2]))
