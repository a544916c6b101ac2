"""Samplers around another's steps, as methods of reconstruction have them.

After a step to s, the part of x that A sees may be replaced by a measurement at the noise of s (Song et al. 2021,
https://arxiv.org/abs/2011.13456, appendix I.4; Choi et al. 2021; Lugmayr et al. 2022; Chung et al. 2022):

    x <- x + A+ (alpha_s y + sigma_s A z - A x),      z ~ N(0, I)                                    (1)

which keeps x in the null space of A and makes A x a draw of A x_s given A x0 = y.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array
from jax.typing import ArrayLike

from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Problem
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State

PROJECT = 0x70726F6A  # "proj"
"""Salt of z in equation (1)."""


@record
class Around(Sampler):
    """A sampler around another's steps; abstract.

    Args:
      sampler: the other.
      problem: what was measured.
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.sampler.process)
    sampler: Sampler
    problem: Problem

    def check(self, ts: ArrayLike) -> None:
        self.sampler.check(ts)

    def noise_level(self) -> ArrayLike:
        return 1.0

    def init(self, x: Array) -> State:
        return self.sampler.init(x)

    def rows(self, cut: Rows) -> Any:
        """The sampler of some of the samples: `jaxdiff.plan.rows_of`."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))


def refuse_own_steps(sampler: Sampler, name: str) -> None:
    """Raises ValueError if a sampler chooses its steps itself, so that nothing can be done between them."""
    if sampler.own_steps:
        raise ValueError(
            f"{name} acts after each step of a grid, and {type(sampler).__name__} chooses its steps itself: take "
            "another sampler, such as ddpm"
        )


def projected(problem: Problem, process: Process, x: Array, s: Array, z: Array) -> Array:
    """Equation (1).

    Args:
      problem: of an operator with a pseudo-inverse.
      process: the process.
      x: at s ``(B, ...)``.
      s: the time.
      z: standard normal, like x.
    """
    operator = problem.operator
    seen = process.alpha(s) * problem.y.astype(x.dtype) + process.sigma(s) * operator(z)
    return x + operator.pinv(seen - operator(x))
