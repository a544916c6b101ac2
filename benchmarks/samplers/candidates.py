"""Which of diffusers' schedulers are tried: every deterministic one, all its options, on its own grids or a given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.samplers.schedulers import RHO_MAX, Candidate, chain


def _solvers(process: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(scheduler, output, options) of those that step x = alpha y."""
    data = "sample"
    for final in (True, False):
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            yield "DPMSolverMultistep", data, {"solver_order": order, "solver_type": kind, "lower_order_final": final}
    for order in (2, 3, 4):  # UniPC divides by zero in a last step to 0 of an order above 1: its orders must fall
        for kind in ("bh1", "bh2"):
            yield "UniPCMultistep", data, {"solver_order": order, "solver_type": kind}
    yield "DPMSolverMultistep", data, {"solver_order": 1}
    yield "UniPCMultistep", data, {"solver_order": 1, "solver_type": "bh2"}
    yield "DPMSolverMultistep", data, {"solver_order": 3, "euler_at_final": True}
    for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
        options = {"solver_order": order, "solver_type": kind, "lower_order_final": True}
        yield "DPMSolverSinglestep", data, options
    if process == "Flow":  # the forms that end at a small sigma would end at the chain's, not the flow's
        return
    for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
        options = {"solver_order": order, "solver_type": kind, "final_sigmas_type": "sigma_min"}
        yield "DPMSolverMultistep", data, options
        noise = {**options, "algorithm_type": "dpmsolver"}
        yield "DPMSolverMultistep", "epsilon", noise
        yield "DPMSolverSinglestep", "epsilon", {**noise, "lower_order_final": True}
    for order in (2, 3):
        for final in (True, False):
            yield "DEISMultistep", "epsilon", {"solver_order": order, "lower_order_final": final}
    for order in (2, 3, 4):
        for kind in ("bh1", "bh2"):
            options = {"solver_order": order, "solver_type": kind, "final_sigmas_type": "sigma_min"}
            yield "UniPCMultistep", data, options
            yield "UniPCMultistep", "epsilon", {**options, "predict_x0": False}


_GRIDS: Mapping[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


def _halved(n: int) -> int:
    return (n + 1) // 2


def _sigma_solvers() -> Iterator[tuple[str, str, dict[str, Any], Callable[[int], int]]]:
    yield "EulerDiscrete", "sample", {}, lambda n: n
    yield "HeunDiscrete", "sample", {}, _halved
    yield "KDPM2Discrete", "epsilon", {}, _halved
    for order in (2, 3, 4):
        yield "LMSDiscrete", "sample", {"order": order}, lambda n: n


def own_grids() -> Iterator[Candidate]:
    """Every scheduler on its own grids."""
    for kind in ("VP", "wide"):
        common: dict[str, Any] = {"trained_betas": chain(kind)}
        for grid, chosen in _GRIDS.items():
            label = f"{grid}, {kind} chain"
            for scheduler, output, options in _solvers("VP"):
                if scheduler == "DPMSolverSinglestep" and grid == "trailing":
                    continue
                plain = scheduler == "DPMSolverSinglestep" and grid == "linspace"  # its one spacing, no option
                whole = common | options | ({} if plain else chosen) | {"prediction_type": output}
                yield Candidate(scheduler, "VP", output, whole, label)
            for scheduler, output, options, steps in _sigma_solvers():
                whole = common | chosen | {"prediction_type": output}
                yield Candidate(scheduler, "EDM", output, whole, label, steps, options)
        for grid in ("linspace", "trailing"):
            label, spacing = f"{grid}, {kind} chain", common | {"timestep_spacing": grid}
            yield Candidate("DDIM", "VP", "epsilon", spacing | {"clip_sample": False, "set_alpha_to_one": True}, label)
            skipped = spacing | {"skip_prk_steps": True, "set_alpha_to_one": True}
            yield Candidate("PNDM", "VP", "epsilon", skipped, label, lambda n: n - 1)
    for schedule in ("karras", "exponential"):
        common = {"sigma_min": 0.002, "sigma_max": RHO_MAX, "sigma_schedule": schedule}
        yield Candidate("EDMEuler", "EDM", "epsilon", common, schedule)
        for final in (True, False):
            for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")):
                options = {"solver_order": order, "solver_type": kind, "lower_order_final": final}
                yield Candidate("EDMDPMSolverMultistep", "EDM", "epsilon", common | options, schedule)
    for shift in (1, 2, 4, 8, 16):
        label, train = f"flow, shift {shift}", 1 + int(RHO_MAX) // shift
        # What the DPM-Solvers make of T training steps; UniPC and FlowMatchEuler begin at 1 by themselves.
        given = functools.partial(_falling, 1.0 - 1.0 / train)
        for scheduler, output, options in _solvers("Flow"):
            flow = {"flow_shift": float(shift), "use_flow_sigmas": True, "prediction_type": output}
            if scheduler == "UniPCMultistep":
                yield Candidate(scheduler, "Flow", output, options | flow, label, sigmas=given)
            else:
                flow["num_train_timesteps"] = train
                yield Candidate(scheduler, "Flow", output, options | flow, label)
        options = {"shift": float(shift)}
        yield Candidate("FlowMatchEulerDiscrete", "Flow", "flow_prediction", options, label, sigmas=given)
    for scheduler, output, options in _solvers("Flow"):
        if scheduler == "UniPCMultistep":
            for kind in ("VP", "wide"):
                flow = {"trained_betas": chain(kind), "use_flow_sigmas": True, "use_karras_sigmas": True}
                whole = options | flow | {"prediction_type": output}
                yield Candidate(scheduler, "Flow", output, whole, f"karras, {kind} chain")


def _falling(first: float, n: int) -> NDArray[np.float64]:
    return first * np.arange(n, 0, -1) / n


def on_grid(rhos: NDArray[np.float64], label: str = "jaxdiff's grid") -> Iterator[Candidate]:
    """Every scheduler on a given grid, falling from 80: the last step is to 0, or to almost 0 where it cannot."""
    common: dict[str, Any] = {"trained_betas": chain("wide")}
    for scheduler, output, options in _solvers("VP"):
        whole = common | options | {"prediction_type": output}
        yield Candidate(scheduler, "VP", output, whole, label, rhos=rhos)
    for scheduler, output, options, steps in _sigma_solvers():
        whole = common | {"prediction_type": output}
        yield Candidate(scheduler, "EDM", output, whole, label, steps, options, rhos)
    yield Candidate("DDIM", "VP", "epsilon", {"clip_sample": False, "timestep_spacing": "linspace"}, label, rhos=rhos)
    skipped = {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "linspace"}
    yield Candidate("PNDM", "VP", "epsilon", skipped, label, lambda n: n - 1, rhos=rhos)
    yield Candidate("IPNDM", "VP", "v_prediction", {}, label, rhos=rhos)
    common = {"sigma_min": 0.002, "sigma_max": RHO_MAX, "sigma_schedule": "karras"}
    yield Candidate("EDMEuler", "EDM", "epsilon", common, label, rhos=rhos)
    for final in (True, False):
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            options = {"solver_order": order, "solver_type": kind, "lower_order_final": final}
            yield Candidate("EDMDPMSolverMultistep", "EDM", "epsilon", common | options, label, rhos=rhos)
    for scheduler, output, options in _solvers("Flow"):
        flow = {"use_flow_sigmas": True, "prediction_type": output}
        if scheduler == "UniPCMultistep":
            flow |= {"trained_betas": chain("wide"), "use_karras_sigmas": True}
        yield Candidate(scheduler, "Flow", output, options | flow, label, rhos=rhos)
    yield Candidate("FlowMatchEulerDiscrete", "Flow", "flow_prediction", {}, label, rhos=rhos)
    yield Candidate("FlowMatchHeunDiscrete", "Flow", "flow_prediction", {}, label, _halved, rhos=rhos)
