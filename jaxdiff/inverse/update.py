"""What a linear measurement says of x0 where x0 is thought to be near a mean: the update of a Gaussian.

For x0 ~ N(m, r^2 I) and y = A x0 + std n, with p = 1/r^2,

    E[x0 | y]   = m + d,      d = r^2 A' (r^2 A A' + std^2 I)^-1 (y - A m)                           (1)
                d = V f V' A+ (y - A m),                 f = s^2/(s^2 + std^2 p)                     (2)
                (A'A + std^2 p I) d = A' (y - A m)                                                   (3)
    Cov[x0 | y] = V c V',                                c = 1/(p + s^2/std^2)                       (4)

m + d is also what minimises |y - A x|^2/std^2 + p |x - m|^2. Without noise d = A+ (y - A m), whatever p is. (2) is
taken where the operator has its singular values, else (3) by conjugate gradients, begun at 0 so that d stays in the row
space.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.inverse.problem import Problem

TOLERANCE, ITERATIONS = 1e-5, 50
"""Where conjugate gradients stop: |A'(residual)| against its beginning, and most steps."""


def updated(problem: Problem, mean: Array, precision: Array) -> Array:
    """d of equation (1), shaped like the mean.

    Args:
      problem: of a linear operator and Gaussian noise.
      mean: m ``(B, ...)``.
      precision: p, 0 or more, ``()``.

    >>> from jaxdiff.inverse.operators import Mask
    >>> from jaxdiff.inverse.problem import Gaussian
    >>> problem = Problem(Mask((2,), jnp.array([1, 0])), jnp.array([[3.0, 0.0]]), Gaussian(1.0))
    >>> updated(problem, jnp.zeros((1, 2)), jnp.asarray(2.0)).tolist()
    [[1.0, 0.0]]
    """
    operator, residual = problem.operator, problem.residual(mean)
    noise = (jnp.square(problem.std) * precision).astype(mean.dtype)
    if operator.spectral:

        def gain(s: Array) -> Array:
            square = jnp.square(s)
            return jnp.where(s > 0, square / jnp.where(s > 0, square + noise, 1), 0)

        return operator.filtered(gain, operator.pinv(residual))
    return jax.vmap(lambda one: _solved(problem, one, noise))(residual)


def _solved(problem: Problem, residual: Array, noise: Array) -> Array:
    """Equation (3) of one sample."""
    operator = problem.operator

    def normal(d: Array) -> Array:
        return operator.adjoint(operator(d[None]))[0] + noise * d

    right = operator.adjoint(residual[None])[0]
    return jax.scipy.sparse.linalg.cg(normal, right, tol=TOLERANCE, maxiter=ITERATIONS)[0]


def spread(problem: Problem, z: Array, precision: Array) -> Array:
    """A draw of deviation (4): V sqrt(c) V' z. The operator has its singular values.

    Args:
      problem: of a linear operator and Gaussian noise.
      z: standard normal ``(B, ...)``.
      precision: p, positive, ``()``.
    """
    std = problem.std

    def deviation(s: Array) -> Array:
        return std / jnp.sqrt(jnp.where(s > 0, jnp.square(std) * precision + jnp.square(s), 1))

    beside = jax.lax.rsqrt(precision)
    return problem.operator.filtered(lambda s: jnp.where(s > 0, deviation(s), beside), z)
