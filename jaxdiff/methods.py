"""Names of methods: the one place where text becomes a sampler, a grid, guidance or a cache.

A method is written as its name and its numbers, the same in a configuration, on the command line and in Python:

    unipc    unipc:2    unipc:order=2,corrector=false    restart:inner=heun(variable=rho),repeats=3
    cfg:2    interval:0.2,5    every:3    deepcache:3    taylorseer:4,order=2,whole

Numbers stand in the order of the row's fields, or by name; a switch alone is true; a number that is itself a sampler
has its own in parentheses. A row is a class or a function: its signature is what can be written. To add a method is to
add a row, ``SAMPLERS["mine"] = Mine``. From Python the object itself may stand for its name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from jaxdiff.grid import karras_times, log_snr_times, quadratic_times, trailing_times, uniform_times
from jaxdiff.guidance import CFG, Guidance, Interval, Reuse
from jaxdiff.networks.caching import DeepCache, FeatureCache, FirstBlock, TaylorSeer
from jaxdiff.process import Process
from jaxdiff.sampling import (
    DDIM,
    DDPM,
    DEIS,
    DPM2,
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
    Restart,
    ReverseDiffusion,
    Sampler,
    SASolver,
    UniPC,
)
from jaxdiff.sampling.ode import Variable

Grid = Callable[[Process, int], Array]
"""Times ``(n,)`` of a process, falling."""


# --- rows that are not simply a class


def _ddim(process: Process, eta: float = 0.0) -> Sampler:
    """DDIM. Order 1; one evaluation a step; eta is its noise, 1 as much as DDPM."""
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
    "restart": _restart,
}
"""Samplers: rows take the process, then their numbers."""

GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform_times,
    "log_snr": log_snr_times,
    "karras": karras_times,
    "quadratic": quadratic_times,
    "trailing": trailing_times,
}
"""Grids of times: rows take the process and n, then their numbers."""

GUIDANCE: dict[str, Callable[..., Guidance]] = {"cfg": CFG, "interval": Interval, "every": Reuse}
"""Elements of a list of guidance."""

CACHES: dict[str, Callable[..., FeatureCache]] = {
    "deepcache": DeepCache,
    "taylorseer": TaylorSeer,
    "firstblock": FirstBlock,
}
"""Ways to reuse a network's features from one evaluation to the next."""

CONTEXT = ("process", "n")
"""Parameters of a row that are no numbers of the method: the caller has them."""


# --- the parser


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
    return _made(SAMPLERS, text, "sampler", process=process)() if isinstance(text, str) else text


def parse_grid(text: str | Grid) -> Grid:
    """A grid by its name and numbers: a function of a process and the number of times.

    >>> from jaxdiff import Flow
    >>> [f"{t:.3f}" for t in parse_grid("karras:rho=3,t_max=0.9")(Flow(), 3)]
    ['0.900', '0.502', '0.001']
    """
    return _made(GRIDS, text, "grid") if isinstance(text, str) else text


def parse_guidance(texts: str | Iterable[Any]) -> tuple[Any, ...]:
    """A list of guidance by names and numbers, in order; see `jaxdiff.guidance.apply`.

    Args:
      texts: one or several; elements that are no text are left as they are.

    >>> parse_guidance(["cfg:2", "interval:0.2,5"])
    (CFG(weight=2.0, sequential=False), Interval(low=0.2, high=5.0))
    """
    elements = [texts] if isinstance(texts, str) else texts
    return tuple(_made(GUIDANCE, each, "guidance")() if isinstance(each, str) else each for each in elements)


def parse_cache(text: str | FeatureCache) -> FeatureCache:
    """A feature cache by its name and numbers.

    >>> parse_cache("taylorseer:4,order=2,whole")
    TaylorSeer(every=4, order=2, newton=False, whole=True)
    """
    return _made(CACHES, text, "cache")() if isinstance(text, str) else text


def times(sampler: Sampler, grid: str | Grid, n: int) -> Array:
    """The times that a sampler walks: a grid of n, or the two at which it begins and stops if it chooses its own steps.

    >>> from jaxdiff import Flow, UniPC
    >>> times(UniPC(Flow()), "log_snr", 5).shape, times(Adaptive(Flow()), "log_snr", 5).shape
    ((5,), (2,))
    """
    ts = parse_grid(grid)(sampler.process, n)
    return ts[jnp.array([0, -1])] if sampler.own_steps and n > 1 else ts


def describe(table: Mapping[str, Callable[..., Any]]) -> list[tuple[str, str]]:
    """Every name of a table with its numbers and their defaults, and what it is, for help texts.

    >>> dict(describe(GUIDANCE))["interval:low=0,high=inf"]
    'Guidance inside an interval of sigma/alpha alone; outside the plain prediction, at its cost.'
    """
    rows = []
    for name, row in table.items():
        numbers = ",".join(_shown(number) for number in _numbers(row).values())
        about = " ".join((inspect.getdoc(row) or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".") + "."
        rows.append((f"{name}:{numbers}" if numbers else name, about))
    return rows


def _made(table: Mapping[str, Callable[..., Any]], text: str, what: str, **context: Any) -> Callable[..., Any]:
    """The row of a text with its numbers, still to be called."""
    name, colon, rest = text.strip().partition(":")
    if name not in table:
        raise ValueError(f"there is no {what} {name!r}{_near(name, table)} (known: {', '.join(table)})")
    row = table[name]
    numbers = _numbers(row)
    try:
        given = _read(name, numbers, _split(rest), context) if colon else {}
        if missing := [key for key, number in numbers.items() if number.default is number.empty and key not in given]:
            raise ValueError(f"{name} needs {missing[0]}, for instance {name}:2")
        made = functools.partial(row, **context, **given)
        return made if what == "grid" else _tried(made)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error


def _tried(made: Callable[[], Any]) -> Callable[[], Any]:
    value = made()  # here, where what it refuses is told with its text
    return lambda: value


def _read(
    name: str, numbers: Mapping[str, inspect.Parameter], parts: list[str], context: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of a method, by name."""
    having = f"It has {','.join(map(_shown, numbers.values()))}" if numbers else "It has none"
    given: dict[str, Any] = {}
    for place, part in enumerate(parts):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and not (key in numbers and _kinds(numbers[key]) & {bool}):
            if place >= len(numbers):
                raise ValueError(f"{name} takes {len(numbers) or 'no'} numbers, {part!r} is one more. {having}")
            if len(given) < place or list(given) != list(numbers)[:place]:
                raise ValueError(f"{part!r} stands behind numbers with names: give it its name too. {having}")
            key, value = list(numbers)[place], key
        elif not equals:
            value = "true"
        if key not in numbers:
            raise ValueError(
                f"{name} has no number {key!r}{_near(key, numbers)}{'' if _near(key, numbers) else '.'} {having}"
            )
        if key in given:
            raise ValueError(f"{key} is given twice")
        given[key] = _value(key, numbers[key], value, context)
    return given


def _split(text: str) -> list[str]:
    """At commas outside of parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise ValueError("its parentheses do not match")
    return parts


def _numbers(row: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What of a row's signature a person can write, annotated with the types themselves."""
    if dataclasses.is_dataclass(row):  # an inherited field's annotation is in the words of its own module
        hints = typing.get_type_hints(row)
    else:
        made: Any = row.__init__ if inspect.isclass(row) else row
        while isinstance(made, functools.partial):
            made = made.func
        hints = typing.get_type_hints(made, vars(inspect.getmodule(row)) if inspect.getmodule(row) else None)
    found = {}
    for name, parameter in inspect.signature(row).parameters.items():
        number = parameter.replace(annotation=hints.get(name, float))
        if name not in CONTEXT and (_kinds(number) or _choices(number)):
            found[name] = number
    return found


def _flat(hint: Any) -> list[Any]:
    """The members of a union, of unions in it too."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [each for part in typing.get_args(hint) for each in _flat(part)]
    return [hint]


def _kinds(number: inspect.Parameter) -> set[type]:
    """The types of value that may be written: of bool, int, float, str, NoneType and Sampler."""
    members = _flat(number.annotation)
    if complex in members:  # ArrayLike: a number of the default's type
        whole = isinstance(number.default, int) and not isinstance(number.default, bool)
        members = [int if whole else float] + ([types.NoneType] if types.NoneType in members else [])
    if Sampler in members:
        return {Sampler}
    return {kind for kind in members if kind in (bool, int, float, str, types.NoneType)} - (
        set() if {bool, int, float, str} & set(members) else {types.NoneType}
    )


def _choices(number: inspect.Parameter) -> tuple[str, ...]:
    return tuple(
        c for part in _flat(number.annotation) if typing.get_origin(part) is Literal for c in typing.get_args(part)
    )


def _value(name: str, number: inspect.Parameter, text: str, context: Mapping[str, Any]) -> Any:
    kinds, choices = _kinds(number), _choices(number)
    if choices:
        if text not in choices:
            raise ValueError(f"{name} is to be {' or '.join(choices)}, got {text!r}")
        return text
    if Sampler in kinds:
        inner, bracket, rest = text.partition("(")
        if bracket and not rest.endswith(")"):
            raise ValueError(f"{name} is to be a sampler, such as unipc(order=2), got {text!r}")
        return parse_sampler(f"{inner}:{rest[:-1]}" if bracket else inner, context["process"])
    if types.NoneType in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                continue
            if not math.isnan(value):
                return value
    if str in kinds:
        return text
    wanted = "true or false" if bool in kinds else "a number" if float in kinds else "a whole number"
    raise ValueError(f"{name} is to be {wanted}{' or none' if types.NoneType in kinds else ''}, got {text!r}")


def _shown(number: inspect.Parameter) -> str:
    """A number with its default, as it is written; in capitals where it has none."""
    value = number.default
    if value is number.empty:
        return number.name.upper()
    if value is None or isinstance(value, bool):
        return f"{number.name}={str(value).lower()}"
    return f"{number.name}={value:g}" if isinstance(value, float | int) else f"{number.name}={value}"


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- the flat options of version 0.1.0

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
