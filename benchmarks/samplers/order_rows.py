"""The methods whose orders are measured: every deterministic one with all its options, and the stochastic ones."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import get_args

import jax.numpy as jnp

from jaxdiff import DDIM, DDPM, DPMpp2M, Euler, EulerMaruyama, Heun, Process, Sampler
from jaxdiff.sampling.adams import DEIS, IPNDM, LMS, Basis
from jaxdiff.sampling.adaptive import Adaptive
from jaxdiff.sampling.belm import BELM
from jaxdiff.sampling.edict import EDICT
from jaxdiff.sampling.exponential_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE, SASolver
from jaxdiff.sampling.karras import EDMStochastic, EulerAncestral
from jaxdiff.sampling.multistep import DPMpp3M
from jaxdiff.sampling.ode import DPM2, RK4, RungeKutta, Variable
from jaxdiff.sampling.sde import ReverseDiffusion
from jaxdiff.sampling.singlestep import DPMpp2S, DPMSolver
from jaxdiff.sampling.tableau import BOGACKI_SHAMPINE, DORMAND_PRINCE, HEUN2, TABLEAUX
from jaxdiff.sampling.unipc import UniPC

LIKE_DDIM = "DDIM; order 1 of DPMSolver, UniPC without corrector, DEIS, LMS, IPNDM"


@dataclasses.dataclass(frozen=True)
class Row:
    """A deterministic method.

    Args:
      name: with its options.
      family: the line of the shorter table.
      make: the sampler of a process.
      order: its order, for multistep methods from a history on the true path.
      started: its order from the first steps it has by itself.
      multistep: whether it has a history.
      in_t: whether it steps or interpolates in t, in which a discrete chain is not smooth.
      grid: the steps are uniform in the log-SNR or in rho = sigma/alpha.
    """

    name: str
    family: str
    make: Callable[[Process], Sampler]
    order: int
    started: int
    multistep: bool = False
    in_t: bool = False
    grid: str = "log_snr"


def deterministic() -> Iterator[Row]:
    """All of them."""
    yield Row("DDIM", LIKE_DDIM, DDIM, 1, 1)
    yield Row("Euler", "Euler", Euler, 1, 1, in_t=True)
    yield Row("EDICT", "EDICT", EDICT, 1, 1)
    yield Row("BELM", "BELM", BELM, 2, 2, multistep=True)
    for variable in get_args(Variable):
        yield _in_variable("Heun", lambda p, v: Heun(p, v), 2, variable)
    yield Row("DPM2", "DPM2", DPM2, 2, 2)
    for variable in get_args(Variable):
        yield _in_variable("RK4", lambda p, v: RK4(p, v), 4, variable)
    for name, tableau in TABLEAUX.items():
        family, make = f"RungeKutta, tableaux of order {tableau.order}", functools.partial(RungeKutta, tableau=tableau)
        yield Row(f"RungeKutta({name})", family, make, tableau.order, tableau.order)
    for order in (1, 2, 3):
        name = f"DPMSolver({order})"
        family = LIKE_DDIM if order == 1 else name
        yield Row(name, family, functools.partial(DPMSolver, order=order), order, order)
    yield Row("DPMpp2S", "DPMpp2S", DPMpp2S, 2, 2)
    yield Row("DPMpp2M", "DPMpp2M", DPMpp2M, 2, 2, multistep=True)
    yield Row("DPMpp3M", "DPMpp3M", DPMpp3M, 3, 2, multistep=True)
    for corrector in (False, True):
        for order in (1, 2, 3, 4):
            for variant in ("B1", "B2"):
                yield _unipc(order, variant, corrector)
    for basis in get_args(Basis):
        for order in (1, 2, 3, 4):
            yield _deis(order, basis)
    for kind, grid in ((LMS, "log_snr"), (IPNDM, "rho")):
        for order in (1, 2, 3, 4):
            name, where = f"{kind.__name__}({order})", ", steps equal in rho" if grid == "rho" else ""
            family = LIKE_DDIM if order == 1 else name + where
            values: Callable[[Process], Sampler] = functools.partial(kind, order=order)
            yield Row(name, family, values, order, min(order, 2), multistep=True, grid=grid)


def _in_variable(name: str, make: Callable[[Process, Variable], Sampler], order: int, variable: Variable) -> Row:
    in_t = variable == "t"
    family = f"{name} in t" if in_t else f"{name} in rho, log_rho, angle"
    return Row(f"{name}({variable})", family, lambda p: make(p, variable), order, order, in_t=in_t)


def _unipc(p: int, variant: str, corrector: bool) -> Row:
    order = p + corrector
    return Row(
        f"UniPC({p}, {variant}{'' if corrector else ', no corrector'})",
        LIKE_DDIM if order == 1 else f"UniPC({p}), B1 and B2{'' if corrector else ', no corrector'}",
        lambda process: UniPC(process, p, variant, corrector),  # type: ignore[arg-type]
        order,
        min(order, 3 if corrector else 2),
        multistep=True,
    )


def _deis(order: int, basis: Basis) -> Row:
    in_t = basis == "t" and order > 1
    family = LIKE_DDIM if order == 1 else f"DEIS({order}) in {'t' if in_t else 'rho, log_rho'}"
    make = lambda p: DEIS(p, order, basis)  # noqa: E731
    return Row(f"DEIS({order}, {basis})", family, make, order, min(order, 2), multistep=True, in_t=in_t)


@dataclasses.dataclass(frozen=True)
class AdaptiveRow:
    """An embedded pair and the tolerances it is run at.

    Args:
      name: of the tableau.
      make: the sampler of a process, whose tolerances are replaced.
      order: the error falls as evaluations^-order, and as the tolerance.
      exponents: the tolerances are ten to these.
    """

    name: str
    make: Callable[[Process], Adaptive]
    order: int
    exponents: tuple[float, ...]


ADAPTIVE = (
    AdaptiveRow("Adaptive(heun2)", lambda p: Adaptive(p, HEUN2, max_evaluations=1_000_000), 2, (-3, -4, -5, -6, -7)),
    AdaptiveRow(
        "Adaptive(bogacki_shampine)",
        lambda p: Adaptive(p, BOGACKI_SHAMPINE, max_evaluations=1_000_000),
        3,
        (-3, -4, -5, -6, -7, -8, -9),
    ),
    AdaptiveRow(
        "Adaptive(dormand_prince)",
        lambda p: Adaptive(p, DORMAND_PRINCE, max_evaluations=1_000_000),
        5,
        (-4, -5, -6, -7, -8, -9, -10, -11),
    ),
)


@dataclasses.dataclass(frozen=True)
class StochasticRow:
    """A stochastic method.

    Args:
      name: with its options.
      make: the sampler of a process for n steps.
      weak: its weak order.
      strong: its strong order along one Brownian path of the reverse SDE; None where its noise is not that path's.
      in_t: whether it takes the process' pace in t, which for a discrete chain jumps.
    """

    name: str
    make: Callable[[Process, int], Sampler]
    weak: int
    strong: int | None = None
    in_t: bool = False


STOCHASTIC = (
    StochasticRow("DDPM", lambda p, n: DDPM(p), 1, 1),
    StochasticRow("DDPM(fixed_large)", lambda p, n: DDPM(p, "fixed_large"), 1, 1),
    StochasticRow("DDIM(eta=0.5)", lambda p, n: DDIM(p, 0.5), 1),
    StochasticRow("EulerAncestral", lambda p, n: EulerAncestral(p), 1, 1),
    StochasticRow("EulerMaruyama", lambda p, n: EulerMaruyama(p), 1, 1, in_t=True),
    StochasticRow("EulerMaruyama(tau=sqrt 2)", lambda p, n: EulerMaruyama(p, math.sqrt(2.0)), 1, in_t=True),
    StochasticRow("ReverseDiffusion", lambda p, n: ReverseDiffusion(p), 1, 1),
    StochasticRow("ReverseDiffusion(tau=0)", lambda p, n: ReverseDiffusion(p, 0.0), 1),
    StochasticRow("ReverseDiffusion(tau=0.5)", lambda p, n: ReverseDiffusion(p, 0.5), 1),
    StochasticRow("DPMppSDE", lambda p, n: DPMppSDE(p), 2, 1),
    StochasticRow("DPMppSDE(tau=0.5)", lambda p, n: DPMppSDE(p, 0.5), 2),
    StochasticRow("DPMpp2MSDE", lambda p, n: DPMpp2MSDE(p), 2, 1),
    StochasticRow("DPMpp2MSDE(heun)", lambda p, n: DPMpp2MSDE(p, 1.0, "heun"), 2, 1),
    StochasticRow("DPMpp3MSDE", lambda p, n: DPMpp3MSDE(p), 2, 1),
    StochasticRow("SASolver", lambda p, n: SASolver(p), 2, 1),
    StochasticRow("SASolver(1, 0)", lambda p, n: SASolver(p, 1, 0), 1, 1),
    StochasticRow("SASolver(1, 2)", lambda p, n: SASolver(p, 1, 2), 2, 1),
    StochasticRow("EDMStochastic(gamma=4/n)", lambda p, n: EDMStochastic(p, jnp.asarray(4.0 / n), 0.0, jnp.inf), 2),
)
"""tau (eta) is 1 where none is named. Not here: `AnalyticDDPM`, exact on the Gaussian data of the weak order;
`PredictorCorrector`, `AnnealedLangevinDynamics` and `Restart`, whose error does not fall with the grid's steps."""

QUICK = {
    "DDIM", "Euler", "EDICT", "BELM", "Heun(rho)", "DPMpp2M", "DPMpp3M", "UniPC(3, B2)", "DEIS(3, log_rho)", "IPNDM(4)",
    "RK4(angle)", "Adaptive(bogacki_shampine)", "DDPM", "EulerMaruyama", "DPMpp2MSDE",
}  # fmt: skip
