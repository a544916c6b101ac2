"""What a method of reconstruction is: elements of guidance and a sampler, made of a problem.

    elements, sampler = method.of(problem, process, sampler)

The elements are appended to a list of guidance and change the prediction; the sampler, the one that was given or one
around it, changes the steps. So every network, condition, guidance and grid goes with every method.

Each method says what it needs of the operator. What it does beside that need is not checked: a method for measurements
without noise takes noisy ones as if they were exact.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Literal

from jaxdiff.guidance import Guidance
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Problem
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.sampling import Sampler

Needs = Literal["differentiable", "linear", "pinv", "spectral"]
"""Of the operator: its derivative alone; that it is linear; a pseudo-inverse, linear or not; a spectral form."""


@record
class Method(abc.ABC):
    """A way to draw x0 given y; abstract. Its numbers are data of a jitted program."""

    needs: ClassVar[Needs] = "differentiable"
    """What it needs of the operator."""
    usual: ClassVar[str] = "ddim"
    """The sampler around which its paper has it, where none is given."""
    own_steps: ClassVar[bool] = False
    """Whether it is itself a sampler, so that none may be given."""

    def of(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        """The elements of guidance and the sampler that draw from p(x0 | y), as well as the method does.

        Args:
          problem: what was measured.
          process: the denoiser's process.
          sampler: whose steps are taken; of no meaning where the method has its own.

        Raises:
          ValueError: an operator or a noise that the method cannot take.
        """
        self.check(problem)
        return self.made(problem, process, sampler)

    @abc.abstractmethod
    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        """`of`, with a problem that was checked."""

    def check(self, problem: Problem) -> None:
        """Raises ValueError if the method cannot take the problem."""
        operator, name = problem.operator, type(self).__name__
        kind = type(operator).__name__
        if self.needs == "linear" and not operator.linear:
            raise ValueError(f"{name} needs a linear operator, and {kind} is not: dps takes any that has a derivative")
        if self.needs == "pinv" and not operator.invertible:
            raise ValueError(f"{name} needs a pseudo-inverse, and {kind} has none: dps takes any that has a derivative")
        if self.needs == "spectral" and not operator.spectral:
            raise ValueError(
                f"{name} needs the operator's singular values, and {kind} has none: pigdm takes any linear one"
            )


@record
class Measured(Guidance):
    """An element of guidance that looks at a measurement; abstract.

    Args:
      problem: what was measured.
    """

    problem: Problem

    def rows(self, cut: Rows) -> Measured:
        """The element of some of the samples: `jaxdiff.plan.rows_of`."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))
