"""PiGDM: the score of y, for x0 that is Gaussian given x.

Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
https://openreview.net/forum?id=9_gsMA8MRKQ. If x0 given x were N(x0(x), r^2 I), then y = A x0 + std n would be

    p(y | x) = N(A x0(x), r^2 A A' + std^2 I),                                                       (1)
    grad_x ln p(y | x) = J' A' (r^2 A A' + std^2 I)^-1 (y - A x0(x))                                 (2)

(their section 3.2), J = d x0/d x. With (2) of `jaxdiff.inverse.gradient` and d of `jaxdiff.inverse.update`,
p = 1/r^2,

    x0' = x0 + (sigma^2/alpha) J' d/r^2.                                                             (3)

For data of variance v in each direction x0 given x has

    r^2 = sigma^2 v/(alpha^2 v + sigma^2),                                                           (4)

their r_t with v = 1 (they have alpha = 1: r^2 = sigma^2/(1 + sigma^2)). For Gaussian data of the covariance v I all of
this is exact: x0' = E[x0 | x, y], and the flow of (3) draws from p(x0 | y). For others (4) is what is guessed; the
truth of J is not needed for it.

Where alpha/sigma < 1/200, as at alpha = 0, x says next to nothing of x0 and J is a difference of small numbers. There
r^2 I, which is the same for Gaussian data, stands for (sigma^2/alpha) J, so that x0' = x0 + d. Their algorithm 1
weights (2) in each step of DDIM in another way, by r^2 without noise; here (3) is what any sampler is given.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.base import Nulls
from jaxdiff.inverse.gradient import with_pull
from jaxdiff.inverse.method import Measured, Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.inverse.update import updated
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import RATIO_MAX, Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler


@record
class PiGDM(Method):
    """The score of the measurement, as if x0 were Gaussian given x.

    Equation (3). One evaluation and its reverse-mode derivative a step. Any linear operator; with singular values the
    inverse in (2) is exact, else by conjugate gradients. Exact for Gaussian data of the covariance v I, with noise and
    without.

    Args:
      variance: v of equation (4), that of one number of the data about its mean; data. 1 is the paper's.

    Raises:
      ValueError: a variance that is not positive.
    """

    variance: ArrayLike = 1.0
    needs: ClassVar[Needs] = "linear"

    def __post_init__(self) -> None:
        refuse_unless(lambda v: v > 0, "the data's variance is to be positive", variance=self.variance)

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        return (PseudoInverseGuided(problem, self.variance),), sampler

    def check(self, problem: Problem) -> None:
        super().check(problem)
        _ = problem.std


@record
class PseudoInverseGuided(Measured):
    """Equation (3), as an element of guidance.

    Args:
      problem: what was measured.
      variance: see `PiGDM`.
    """

    variance: ArrayLike

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return PseudoInversePart(denoise, process, self.problem, self.variance)


@record
class PseudoInversePart:
    """The denoiser of equation (3).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      problem: what was measured.
      variance: see `PiGDM`.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> from jaxdiff.inverse.operators import Mask
    >>> problem = Problem(Mask((2,), jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))
    >>> part = PseudoInversePart(GaussianDenoiser(VP(), 0.0, 1.0), VP(), problem, 1.0)
    >>> part(jnp.zeros((1, 2)), 0.5).x0.round(4).tolist()
    [[3.0, 0.0]]
    """

    denoise: Denoiser
    process: Process
    problem: Problem
    variance: ArrayLike

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        found, after, pull = with_pull(self.denoise, x, t, cond, memory)
        alpha, sigma = (expand(part, x) for part in (self.process.alpha(t), self.process.sigma(t)))
        precision = (jnp.square(alpha / sigma) + 1 / jnp.asarray(self.variance)).astype(x.dtype)
        d = updated(self.problem, found.x0, precision)
        told = alpha * RATIO_MAX > sigma
        scale = jnp.where(told, jnp.square(sigma) / jnp.where(told, alpha, 1) * precision, 0)
        return moved(self.process, t, found, jnp.where(told, scale * pull(d), d)), after
