"""The samplers of configurations of version 0.1.0, a name and flat options, in today's words."""

from __future__ import annotations

from typing import Any

_LEGACY: dict[str, dict[str, str]] = {
    "ddpm": {"variance": "variance={}"},
    "ddim": {"eta": "eta={}"},
    "adaptive": {"tolerance": "tolerance={}"},
    **{name: {"order": "order={}"} for name in ("dpm_solver", "unipc", "deis", "lms", "ipndm")},
    **{
        name: {"tau": "tau={}"}
        for name in ("euler_maruyama", "reverse_diffusion", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
    },
    "sa_solver": {"order": "order={}", "tau": "tau={}"},
    "euler_ancestral": {"tau": "eta={}"},
    "edm_stochastic": {"churn": "gamma={}"},
    "predictor_corrector": {
        "snr": "snr={}",
        "langevin_steps": "steps={}",
        "tau": "predictor=reverse_diffusion(tau={})",
    },
    "annealed_langevin": {"langevin_steps": "steps={}"},
}
"""Which options a sampler had, and how they are written now."""
_LEGACY_DEFAULTS: dict[str, Any] = {
    "eta": 0.0,
    "variance": "fixed_large",
    "tau": 1.0,
    "tolerance": 1e-3,
    "snr": 0.16,
    "churn": 0.15625,
}


def legacy(name: str, **flat: Any) -> str:
    """A sampler and its flat options, as version 0.1.0 wrote them, in today's words.

    Args:
      name: the sampler.
      flat: the options, all of a configuration's or some: order, eta, variance, tau, tolerance, snr, langevin_steps,
        churn. Those that the sampler did not have, None, and the defaults of that version are left out.

    >>> legacy("sa_solver", order=2, tau=0.5, eta=0.0), legacy("predictor_corrector", tau=0.5), legacy("ddim", eta=0.0)
    ('sa_solver:order=2,tau=0.5', 'predictor_corrector:predictor=reverse_diffusion(tau=0.5)', 'ddim')
    """
    written = [
        form.format(flat[option])
        for option, form in _LEGACY.get(name, {}).items()
        if flat.get(option) is not None and flat[option] != _LEGACY_DEFAULTS.get(option)
    ]
    return f"{name}:{','.join(written)}" if written else name
