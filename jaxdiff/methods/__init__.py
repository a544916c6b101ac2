"""Names of methods: the one place where text becomes a sampler, a grid, guidance or a cache.

A method is written as its name and its numbers, the same in a configuration, on the command line and in Python:

    unipc    unipc:2    unipc:order=2,corrector=false    restart:inner=heun(variable=rho),repeats=3
    cfg:2    cfg:label=2,style=1.5    and:label=5    interval:0.2,5    deepcache:3    taylorseer:4,order=2,whole

Numbers stand in the order of the row's fields, or by name; a switch alone is true; a number that is itself a sampler
has its own in parentheses. A row is a class or a function: its signature is what can be written. To add a method is to
add a row, ``SAMPLERS["mine"] = Mine``. From Python the object itself may stand for its name.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.denoiser import Denoiser
from jaxdiff.grid import karras_times, log_snr_times, quadratic_times, shifted_times, trailing_times, uniform_times
from jaxdiff.guidance import (
    APG,
    CFG,
    FDG,
    PAG,
    SEG,
    SLG,
    TCFG,
    And,
    Autoguidance,
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierGuidance,
    Dynamic,
    Function,
    Guidance,
    Interval,
    Rescale,
    Reuse,
    Rising,
    Static,
)
from jaxdiff.methods.legacy import legacy
from jaxdiff.methods.parser import describe, made, method
from jaxdiff.networks.caching import DeepCache, FeatureCache, FirstBlock, TaylorSeer
from jaxdiff.process import Process
from jaxdiff.sampling import (
    BELM,
    DDIM,
    DDPM,
    DEIS,
    DPM2,
    EDICT,
    IPNDM,
    LMS,
    RK4,
    TABLEAUX,
    Adaptive,
    AnnealedLangevin,
    AnnealedLangevinDynamics,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    DPMSolver,
    EDMStochastic,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Recurrent,
    Restart,
    ReverseDiffusion,
    Sampler,
    SASolver,
    UniPC,
)
from jaxdiff.sampling.ode import Variable

__all__ = [
    "CACHES",
    "GRIDS",
    "GUIDANCE",
    "SAMPLERS",
    "Grid",
    "describe",
    "guidance_of",
    "legacy",
    "parse_cache",
    "parse_grid",
    "parse_guidance",
    "parse_sampler",
    "times",
]

Grid = Callable[[Process, int], Array]
"""Times ``(n,)`` of a process, falling."""
Guide = str | float | Guidance | Callable[[Denoiser], Denoiser]
"""An element of guidance: its name with its numbers, the weight of `CFG`, an object, or any function of a denoiser."""


# --- rows that are not simply a class


def _ddim(process: Process, eta: float = 0.0) -> Sampler:
    """DDIM, with noise eta: 0 none, 1 as much as DDPM. Order 1; one evaluation a step."""
    return DDIM(process, eta or None)  # without noise, none is drawn


def _ddpm(process: Process, variance: Literal["fixed_small", "fixed_large", "learned"] = "fixed_large") -> Sampler:
    """DDPM's ancestral steps. Weak order 1; one evaluation a step."""
    return DDPM(process, variance)


def _adaptive(
    process: Process,
    tolerance: float = 1e-3,
    tableau: str = "bogacki_shampine",
    variable: Variable = "angle",
    max_evaluations: int = 10_000,
) -> Sampler:
    """An embedded Runge-Kutta pair whose steps are as long as the tolerance, relative and absolute, allows."""
    if tableau not in TABLEAUX:
        raise ValueError(f"tableau is to be one of {', '.join(TABLEAUX)}, got {tableau!r}")
    return Adaptive(process, TABLEAUX[tableau], tolerance, tolerance, variable, max_evaluations)


def _sa_solver(
    process: Process,
    order: int = 3,
    tau: float = 1.0,
    corrector_order: int | None = None,
    rho_min: float = 0.0,
    rho_max: float = math.inf,
) -> Sampler:
    """SA-Solver, a stochastic Adams predictor and corrector (of an order higher by one, or 0 for none)."""
    return SASolver(process, order, order + 1 if corrector_order is None else corrector_order, tau, rho_min, rho_max)


def _predictor_corrector(
    process: Process,
    snr: float = 0.16,
    steps: int = 1,
    predictor: Sampler | str = "reverse_diffusion",
    corrector: Literal["langevin", "annealed"] = "langevin",
) -> Sampler:
    """A step of any sampler, then Langevin steps at the time it arrived at."""
    kind = {"langevin": Langevin, "annealed": AnnealedLangevin}[corrector]
    return PredictorCorrector(parse_sampler(predictor, process), kind(snr, steps))


def _restart(
    process: Process,
    inner: Sampler | str = "dpmpp_2m",
    rho_min: float = 0.06,
    rho_max: float = 0.3,
    repeats: int = 2,
    steps: int = 2,
) -> Sampler:
    """Restarts around any sampler: back up to rho_max from rho_min, and down again."""
    return Restart(parse_sampler(inner, process), rho_min, rho_max, repeats, steps)


def _recurrent(process: Process, inner: Sampler | str = "ddpm", repeats: int = 1, jumps: int = 1) -> Sampler:
    """Each step of any sampler taken again, with the noise put back between: time for guidance to act."""
    return Recurrent(parse_sampler(inner, process), repeats, jumps)


# --- the tables

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "euler": Euler,
    "heun": Heun,
    "dpm2": DPM2,
    "rk4": RK4,
    "adaptive": _adaptive,
    "dpm_solver": DPMSolver,
    "dpmpp_2s": DPMpp2S,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_3m": DPMpp3M,
    "unipc": UniPC,
    "deis": DEIS,
    "lms": LMS,
    "ipndm": IPNDM,
    "edict": EDICT,
    "belm": BELM,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "predictor_corrector": _predictor_corrector,
    "annealed_langevin": AnnealedLangevinDynamics,
    "dpmpp_sde": DPMppSDE,
    "dpmpp_2m_sde": DPMpp2MSDE,
    "dpmpp_3m_sde": DPMpp3MSDE,
    "sa_solver": _sa_solver,
    "euler_ancestral": EulerAncestral,
    "edm_stochastic": EDMStochastic,
    "recurrent": _recurrent,
    "restart": _restart,
}
"""Samplers: rows take the process, then their numbers."""

GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform_times,
    "log_snr": log_snr_times,
    "karras": karras_times,
    "quadratic": quadratic_times,
    "trailing": trailing_times,
    "shifted": shifted_times,
}
"""Grids of times: rows take the process and n, then their numbers."""


def _cfg(
    weight: float | None = None,
    sequential: bool = False,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    **each: float,
) -> Guidance:
    """Classifier-free guidance; cfg:label=2,style=1.5 has a weight for each condition, in this order."""
    if weight is None and not each:
        raise ValueError("cfg needs weight, for instance cfg:2")
    if weight is not None and each:
        raise ValueError("cfg takes one weight, or one for each condition by its name: give one of them")
    if each and schedule != "constant":
        raise ValueError("a schedule is of one weight: leave it out, or the weights of each condition")
    if weight is None:
        return CFG(each, sequential)
    return CFG(weight if schedule == "constant" else Rising(weight, schedule), sequential)


def _and(weight: float = 1.0, **cond: str) -> Guidance:
    """Another condition joined to cfg before it, such as and:label=5,weight=1.5; it must hold too."""
    return And({name: _condition(value) for name, value in cond.items()}, weight)


def _not(weight: float = 1.0, **cond: str) -> Guidance:
    """A condition that samples are kept away from, beside cfg before it, such as not:label=5."""
    return And({name: _condition(value) for name, value in cond.items()}, -weight)


def _condition(text: str) -> Any:
    """A number where it is one, else the text, as a model's encoder takes it."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


GUIDANCE: dict[str, Callable[..., Guidance]] = {
    "cfg": _cfg,
    "and": _and,
    "not": _not,
    "apg": APG,
    "cfgpp": CFGPlusPlus,
    "cfgzero": CFGZeroStar,
    "tcfg": TCFG,
    "fdg": FDG,
    "classifier": ClassifierGuidance,
    "autoguidance": Autoguidance,
    "pag": PAG,
    "seg": SEG,
    "slg": SLG,
    "interval": Interval,
    "every": Reuse,
    "rescale": Rescale,
    "static": Static,
    "dynamic": Dynamic,
}
"""Elements of a list of guidance."""

CACHES: dict[str, Callable[..., FeatureCache]] = {
    "deepcache": DeepCache,
    "taylorseer": TaylorSeer,
    "firstblock": FirstBlock,
}
"""Ways to reuse a network's features from one evaluation to the next."""

# --- what is read from text


def parse_sampler(text: str | Sampler, process: Process) -> Sampler:
    """A sampler of a process by its name and numbers.

    Args:
      text: such as ``"unipc:order=2"``, or a sampler, which is returned.
      process: the process.

    Raises:
      ValueError: an unknown name or number, or a value that is none or out of its range: what is known is listed.

    >>> from jaxdiff import Flow
    >>> parse_sampler("unipc:2,corrector=false", Flow())
    UniPC(process=Flow(), order=2, variant='B2', corrector=False)
    >>> parse_sampler("restart:inner=unipc(order=2),repeats=1", Flow()).sampler.order
    2
    >>> parse_sampler("unipcc", Flow())
    Traceback (most recent call last):
    ...
    ValueError: there is no sampler 'unipcc'; did you mean 'unipc'? (known: ddpm, ...)
    >>> parse_sampler("unipc:oder=2", Flow())
    Traceback (most recent call last):
    ...
    ValueError: unipc:oder=2: unipc has no number 'oder'; did you mean 'order'? It has order=3,variant=B2,corrector=true
    """
    if not isinstance(text, str):
        if isinstance(text, type) or not hasattr(text, "step"):
            raise ValueError(
                f"a sampler is a name with its numbers, such as 'ddim', or an object, DDIM(process), got {text!r}"
            )
        return text
    return made(SAMPLERS, text, "sampler", lambda inner: parse_sampler(inner, process), process=process)


def parse_grid(text: str | Grid) -> Grid:
    """A grid by its name and numbers: a function of a process and the number of times.

    >>> from jaxdiff import Flow
    >>> bool((parse_grid("karras:3,t_max=0.9")(Flow(), 5) == karras_times(Flow(), 5, rho=3.0, t_max=0.9)).all())
    True
    """
    if not isinstance(text, str) and not callable(text):
        raise ValueError(f"a grid is a name, such as 'karras', or a function (process, steps) -> times, got {text!r}")
    return method(GRIDS, text, "grid") if isinstance(text, str) else text


def parse_guidance(texts: str | Iterable[Any]) -> tuple[Any, ...]:
    """A list of guidance by names and numbers, in order; see `jaxdiff.guidance.apply`.

    Args:
      texts: one or several; elements that are no text are left as they are.

    >>> parse_guidance(["cfg:2", "interval:0.2,5"])
    (CFG(weight=2.0, sequential=False), Interval(low=0.2, high=5.0))
    """
    elements = [texts] if isinstance(texts, str) else texts
    for each in elements:
        if isinstance(each, str) and each.strip().replace(".", "", 1).isdigit():
            raise ValueError(f"there is no guidance {each!r}; did you mean 'cfg:{each}'?")
    return tuple(made(GUIDANCE, each, "guidance") if isinstance(each, str) else each for each in elements)


def guidance_of(guide: Guide | Sequence[Guide]) -> list[Guidance]:
    """Guidance as a list of elements.

    Args:
      guide: an element, or several in order.

    Raises:
      ValueError: an unknown name or number, or what is no element.

    >>> guidance_of([2, "interval:0.2,5"])
    [CFG(weight=2.0, sequential=False), Interval(low=0.2, high=5.0)]
    """
    listed: Sequence[Any] = guide if isinstance(guide, tuple | list) else [guide]
    return [element for each in listed for element in _element(each)]


def _element(guide: Guide) -> list[Guidance]:
    if isinstance(guide, str):
        return list(parse_guidance([guide]))
    if isinstance(guide, Guidance):
        return [guide]
    if isinstance(guide, float | int | np.number | Array) and not isinstance(guide, bool) and np.ndim(guide) == 0:
        return [CFG(float(guide))]
    if not callable(guide) or isinstance(guide, type):
        raise ValueError(f"an element of guidance is a name, a weight, or a function of a denoiser, got {guide!r}")
    return [Function(guide)]


def parse_cache(text: str | FeatureCache) -> FeatureCache:
    """A feature cache by its name and numbers.

    >>> parse_cache("taylorseer:4,order=2,whole")
    TaylorSeer(every=4, order=2, newton=False, whole=True)
    """
    if not isinstance(text, str) and (isinstance(text, type) or not hasattr(text, "begin")):
        raise ValueError(f"a cache is a name with its numbers, such as 'deepcache:3', or an object, got {text!r}")
    return made(CACHES, text, "cache") if isinstance(text, str) else text


def times(sampler: Sampler, grid: str | Grid, n: int) -> Array:
    """The times that a sampler walks: a grid of n, or the two at which it begins and stops if it chooses its own steps.

    >>> from jaxdiff import Flow, UniPC
    >>> times(UniPC(Flow()), "log_snr", 5).shape, times(Adaptive(Flow()), "log_snr", 5).shape
    ((5,), (2,))
    """
    ts = parse_grid(grid)(sampler.process, n)
    return ts[jnp.array([0, -1])] if sampler.own_steps and n > 1 else ts
