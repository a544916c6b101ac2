"""diffusers' schedulers, step for step as they are: tables for `jaxdiff.pretrained.schedulers.steps`.

They repeat diffusers' results, faults included. For anything else choose jaxdiff's samplers, which have none of these
faults, each tested beside the original:

- DDIM and PNDM step from i to i - T//n, whatever the spacing of the steps; PNDM evaluates the second step twice.
- DDIM limits x0, and keeps the noise of the x0 that was not limited.
- DDPM with fixed_large adds noise where its last index is not 0.
- DPM-Solver++, UniPC, DEIS and SA-Solver round what the network is told with Karras' noise levels, and cut it off with
  others. Where two told indices at the beginning are one, diffusers fails, and jaxdiff refuses.
- DPM-Solver++ of third order has half of its last term, and in its SDE form a last term that does not vanish with h.
  Singlestep of third order by midpoints has no such term.
- DEIS and SA-Solver end at the chain's first noise level, not at 0; with other levels than the chain's the last call of
  the network changes nothing. A solver of a flow that ends at ``sigma_min`` ends at the chain's.
- TCD ends at the chain's first noise level, and does not limit its range.
- Euler with log_linear interpolation tells indices of other levels than it takes, and does not end at 0.
- begun later, LMS takes the weights of answers that it has not, and PNDM repeats its first step with the answer of the
  second.
- a flow's static shift is applied twice, to the ends of the noise levels and to the levels between.
- all but Heun, DDIM, DDPM and LCM ignore clip_sample, and each class the fields of another
  (`jaxdiff.pretrained.schedulers.fields`).

The state is x = alpha x0 + sigma eps (`chain_steps`, `solvers`, `stochastic_adams`). Of Euler and its like it is
x = x0 + s eps, and the network sees x / sqrt(s^2 + 1) (`level_steps`); of flows it is x = (1 - s) x0 + s eps
(`flow_steps`).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxdiff.pretrained.errors import as_pretrained_error
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers import chain_steps, flow_steps, level_steps, solvers, stochastic_adams
from jaxdiff.pretrained.schedulers.chains import Asked
from jaxdiff.pretrained.schedulers.fields import class_of, own
from jaxdiff.pretrained.schedulers.steps import StepTable

SCHEDULERS: dict[str, Callable[[Fields, Asked], StepTable]] = {
    "DDIMScheduler": chain_steps.ddim,
    "DDIMInverseScheduler": chain_steps.ddim_inverse,
    "DDPMScheduler": chain_steps.ddpm,
    "PNDMScheduler": chain_steps.pndm,
    "LCMScheduler": chain_steps.lcm,
    "TCDScheduler": chain_steps.tcd,
    "EulerDiscreteScheduler": level_steps.euler,
    "EulerAncestralDiscreteScheduler": level_steps.euler_ancestral,
    "HeunDiscreteScheduler": level_steps.heun,
    "LMSDiscreteScheduler": level_steps.lms,
    "KDPM2DiscreteScheduler": level_steps.kdpm2,
    "KDPM2AncestralDiscreteScheduler": level_steps.kdpm2_ancestral,
    "DPMSolverSDEScheduler": level_steps.dpm_solver_sde,
    "DPMSolverMultistepScheduler": solvers.dpm_solver,
    "DPMSolverSinglestepScheduler": solvers.dpm_solver_singlestep,
    "UniPCMultistepScheduler": solvers.unipc,
    "DEISMultistepScheduler": stochastic_adams.deis,
    "SASolverScheduler": stochastic_adams.sa_solver,
    "EDMEulerScheduler": level_steps.edm_euler,
    "EDMDPMSolverMultistepScheduler": solvers.edm_dpm_solver,
    "CMStochasticIterativeScheduler": level_steps.consistency,
    "FlowMatchEulerDiscreteScheduler": flow_steps.flow_euler,
    "FlowMatchHeunDiscreteScheduler": flow_steps.flow_heun,
    "FlowMatchLCMScheduler": flow_steps.flow_lcm,
}
"""Classes of diffusers that are followed step by step."""


_OF_TWO = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "FlowMatchHeunDiscreteScheduler",
)


def evaluations(fields: Fields) -> int:
    """How many evaluations a step of a scheduler has; its last one may have fewer.

    >>> evaluations(Fields({"_class_name": "HeunDiscreteScheduler"}))
    2
    """
    return 2 if class_of(fields) in _OF_TWO else 1


def table(
    fields: Fields,
    n: int,
    *,
    eta: float = 0.0,
    tokens: int | None = None,
    even: bool = False,
    begin: int = 0,
    share: float = 1.0,
    indices: tuple[int, ...] = (),
) -> StepTable:
    """The steps of a scheduler, by its configuration.

    Args:
      fields: of its `scheduler_config.json`.
      n: steps.
      eta: noise of DDIM and TCD, from 0 to 1.
      tokens: of the image, which decide a flow's dynamic shift.
      even: see `jaxdiff.pretrained.schedulers.chains.Asked`.
      begin: the step that is begun with, of n from 0 on.
      share, indices: see `jaxdiff.pretrained.schedulers.chains.Asked`.

    Raises:
      PretrainedError: a class, or a field, that jaxdiff does not follow step by step.

    >>> steps = table(Fields({"_class_name": "DDIMScheduler"}), 4)
    >>> steps.told.tolist()
    [750.0, 500.0, 250.0, 0.0]
    """
    name, fields = class_of(fields), own(fields)
    fields.ignore("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    if fields.get("thresholding", False):
        fields.refuse("thresholding", "is true, which jaxdiff does not follow")
    with as_pretrained_error(fields.where):
        made = SCHEDULERS[name](fields, Asked(n, eta, tokens, even, begin, share, indices))
    fields.done()
    return made.part(begin * evaluations(fields))
