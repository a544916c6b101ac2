"""RePaint: the measured part from the measurement, and steps that are taken again.

Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models",
https://arxiv.org/abs/2201.09865, algorithm 1. After each step from t to s of DDPM the known part is drawn anew at the
noise of s (their equation 8; for any linear operator (1) of `jaxdiff.inverse.around`),

    x_s <- x_s + A+ (alpha_s y + sigma_s A z - A x_s).                                               (1)

The two parts then do not fit each other, so such steps are taken r times, with noise put on between
(`jaxdiff.inverse.time_travel`). r = 1 is the replacement of Song et al. 2021, and `ILVR` without an end. (1) of
`jaxdiff.inverse.ddnm` on each prediction changes nothing that (1) here does not overwrite where steps are linear in the
prediction, and makes the last denoising consistent.
"""

from __future__ import annotations

from typing import ClassVar

from jaxdiff.guidance import Guidance
from jaxdiff.inverse.around import refuse_own_steps
from jaxdiff.inverse.ddnm import Consistent
from jaxdiff.inverse.ilvr import ILVRSteps
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.inverse.time_travel import check_travel, travelling
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler


@record
class RePaint(Method):
    """The measured part from the measurement after each step, and steps that are taken again, equation (1).

    Linear operators. ``jumps * rounds`` evaluations a step of the grid. A measurement with noise is taken as if it had
    none.

    Args:
      rounds: r, how often a step is taken, 1 or more; static. The paper's 10.
      jumps: j, how many shorter ones it is divided into, 1 or more; static. The paper's 10, of 250 in all.

    Raises:
      ValueError: a number below 1; (made) a sampler that chooses its steps itself.
    """

    rounds: int = field(default=10, pytree_node=False)
    jumps: int = field(default=1, pytree_node=False)
    needs: ClassVar[Needs] = "linear"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        check_travel(self.rounds, self.jumps, "repaint")

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        refuse_own_steps(sampler, "repaint")
        return (Consistent(problem),), travelling(ILVRSteps(sampler, problem, 0.0), self.rounds, self.jumps)
