"""Twists: approximations of p(y | x_t) that can be computed, for `jaxdiff.inverse.twisted`, whose equations these are.

Of Gaussian data about the prediction x0(x_t), of deviation tau, x0 has given x_t about the variance

    V(rho) = 1/(1/rho^2 + 1/tau^2),      rho = sigma/alpha,                                          (5)

which is added to the variance of a Gaussian measurement. tau = 0 is equation (2) of `jaxdiff.inverse.twisted` to the
letter, infinity V = rho^2: the code of Wu et al. 2023, https://arxiv.org/abs/2306.17775, has both, and (5). Any of them
is exact in the limit of many particles; how many are needed is another matter.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import sum_features
from jaxdiff.denoiser import Cond
from jaxdiff.guidance.universal import each_sample, rows_of_function
from jaxdiff.inverse.operators import Mask
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Gaussian, Problem
from jaxdiff.process import refuse_unless
from jaxdiff.record import as_tree, record


@record
class Twist(abc.ABC):
    """ln p~(y | x_t) of a measurement or a class y; abstract. Differentiable in x0."""

    @abc.abstractmethod
    def __call__(self, x0: Array, cond: Cond | None, rho: ArrayLike) -> Array:
        """``(B,)``, of the prediction x0 ``(B, ...)`` at sigma/alpha = rho; of x0 itself where rho is 0."""

    def last(self, x0: Array, cond: Cond | None, rho: ArrayLike) -> tuple[Array, Array]:
        """ln p(y | x_N), and the samples, of the last denoising's x0: the first of the two cases above."""
        return self(x0, cond, 0.0), x0

    def rows(self, cut: Rows) -> Twist:
        """The same for some of the samples."""
        return self


def spread(rho: ArrayLike, tau: ArrayLike) -> Array:
    """V of equation (5).

    >>> [float(spread(rho, tau)) for rho, tau in ((1.0, 1.0), (2.0, jnp.inf), (2.0, 0.0), (0.0, 1.0))]
    [0.5, 4.0, 0.0, 0.0]
    """
    return 1.0 / (1.0 / jnp.square(jnp.asarray(rho, float)) + 1.0 / jnp.square(jnp.asarray(tau, float)))


def _log_normal(error: Array, variance: Array) -> Array:
    """ln N(error; 0, variance), each number by itself."""
    return -0.5 * (jnp.square(error) / variance + jnp.log(2 * math.pi * variance))


@record
class GaussianTwist(Twist):
    """A measurement with Gaussian noise, y = A(x0) + std n: p~ = N(y; A(x0(x_t)), std^2 + V(rho)).

    Args:
      problem: A, linear or not, y, and the deviation, above 0.
      tau: of equation (5), 0 or more; data.

    Raises:
      ValueError: a noise that is not Gaussian, or of deviation 0 (for a known part there is `InpaintingTwist`), or a
        negative tau.

    >>> from jaxdiff.inverse import Gaussian, Problem
    >>> from jaxdiff.inverse.operators import Linear
    >>> problem = Problem(Linear((2,), lambda _, x: x[:, :1]), jnp.ones((1, 1)), Gaussian(0.5))
    >>> bool(GaussianTwist(problem, 0.0)(jnp.zeros((1, 2)), None, 0.1) == problem.log_likelihood(jnp.zeros((1, 2))))
    True
    """

    problem: Problem
    tau: ArrayLike = 1.0

    def __post_init__(self) -> None:
        refuse_unless(lambda std: std > 0, "a twist by noise needs it to be positive", std=self.problem.std)
        refuse_unless(lambda tau: tau >= 0, "tau is to be 0 or more", tau=self.tau)

    def __call__(self, x0: Array, cond: Cond | None, rho: ArrayLike) -> Array:
        variance = jnp.square(self.problem.std) + spread(rho, self.tau)
        each = _log_normal(self.problem.residual(x0), variance.astype(x0.dtype))
        return sum_features(self.problem.operator.seen(each))

    def rows(self, cut: Rows) -> GaussianTwist:
        """The same for some of the samples."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))


@record
class InpaintingTwist(Twist):
    """A part of x0 is known without noise: p~ = N(y; x0(x_t), V(rho)) on it, the second of the two cases above.

    Args:
      problem: of a `Mask`, and y.
      tau: of equation (5), above 0, such as the data's deviation; data.

    Raises:
      ValueError: an operator that is no mask, or a tau that is not positive.
    """

    problem: Problem
    tau: ArrayLike = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.problem.operator, Mask):
            kind = type(self.problem.operator).__name__
            raise ValueError(f"a measurement without noise is to be of a mask, got {kind}: give noise above 0")
        refuse_unless(lambda tau: tau > 0, "tau is to be positive", tau=self.tau)

    def __call__(self, x0: Array, cond: Cond | None, rho: ArrayLike) -> Array:
        each = _log_normal(self.problem.residual(x0), spread(rho, self.tau).astype(x0.dtype))
        return sum_features(self.problem.operator.seen(each))

    def last(self, x0: Array, cond: Cond | None, rho: ArrayLike) -> tuple[Array, Array]:
        operator, y = self.problem.operator, self.problem.y.astype(x0.dtype)
        return self(x0, cond, rho), jnp.where(operator(jnp.ones_like(x0)) > 0, y, x0)

    def rows(self, cut: Rows) -> InpaintingTwist:
        """The same for some of the samples."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))


@record
class LikelihoodTwist(Twist):
    """Any likelihood: p~ = p(y | x0(x_t)), such as a classifier's.

    Args:
      log_likelihood: ``(x0, cond) -> (B,)``, ln p(y | x0) up to a constant: a function (static) or a `jaxdiff.record`
        whose arrays are data.
    """

    log_likelihood: Any

    def __post_init__(self) -> None:
        if not callable(self.log_likelihood) or isinstance(self.log_likelihood, type):
            raise ValueError(f"a likelihood is a function (x0, cond) -> one number a sample: {self.log_likelihood!r}")
        object.__setattr__(self, "log_likelihood", as_tree(self.log_likelihood))

    def __call__(self, x0: Array, cond: Cond | None, rho: ArrayLike) -> Array:
        return each_sample(self.log_likelihood(x0, cond), x0, "a likelihood")

    def rows(self, cut: Rows) -> LikelihoodTwist:
        """The same for some of the samples."""
        return dataclasses.replace(self, log_likelihood=rows_of_function(self.log_likelihood, cut))


@record
class OfProblem:
    """ln p(y | x0) of a problem, whatever its noise: for `LikelihoodTwist`.

    Args:
      problem: what was measured.
    """

    problem: Problem

    def __call__(self, x0: Array, cond: Cond | None) -> Array:
        return self.problem.log_likelihood(x0)

    def rows(self, cut: Rows) -> OfProblem:
        """The same for some of the samples."""
        return OfProblem(self.problem.rows(cut))


def twist_of(problem: Problem, tau: ArrayLike = 1.0) -> Twist:
    """The twist of a problem by its noise: Gaussian, none (of a mask), or another.

    Args:
      problem: what was measured.
      tau: of equation (5); of no meaning for noise that is not Gaussian.

    Raises:
      ValueError: a measurement without noise that is no mask's.

    >>> from jaxdiff.inverse.operators import Box
    >>> twist_of(Problem(Box((2, 2, 1), 2), jnp.zeros((1, 1, 1, 1))))
    Traceback (most recent call last):
    ...
    ValueError: a measurement without noise is to be of a mask, got Box: give noise above 0
    """
    noise = problem.noise
    if not isinstance(noise, Gaussian):
        return LikelihoodTwist(OfProblem(problem))
    known = not isinstance(noise.std, jax.core.Tracer)
    return InpaintingTwist(problem, tau) if known and not np.any(np.asarray(noise.std)) else GaussianTwist(problem, tau)
