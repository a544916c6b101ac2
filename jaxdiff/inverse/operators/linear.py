"""Any linear function of a sample as an operator.

Its adjoint is `jax.linear_transpose`. Its pseudo-inverse is by conjugate gradients on the normal equations, begun at 0,

    A+ y = lim x_k,      x_k in span{A'y, (A'A) A'y, ...},                                           (1)

which lies in the row space, so that what it converges to is the pseudo-inverse and not just one solution. It stops
where |A'(y - A x_k)| <= tolerance |A'y|.

That the function is linear is checked when the operator is made, on random x and z and numbers c:

    A(x + z) = A(x) + A(z),      A(c x) = c A(x).                                                    (2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.inverse.operators.base import Operator
from jaxdiff.record import field, record

CHECKED_TO = 1e-3
"""Largest relative difference in equation (2): rounding of float32, not a curve."""


@record
class Linear(Operator):
    """A linear function with its adjoint and pseudo-inverse.

    Args:
      shape: of one x0.
      function: ``(parameters, x (B, ...)) -> y (B, ...)``, each sample by itself; static.
      parameters: a tree of its arrays; data.
      tolerance: where conjugate gradients stop, positive; data.
      iterations: most of their steps; static.

    Raises:
      ValueError: a function that is not linear by equation (2), or does not keep the batch.

    >>> tail = Linear((4,), lambda _, x: x[:, 2:])
    >>> tail.pinv(jnp.array([[5.0, 7.0]])).tolist()
    [[0.0, 0.0, 5.0, 7.0]]
    >>> Linear((4,), lambda _, x: x**2)
    Traceback (most recent call last):
    ...
    ValueError: the function is not linear: A(x + z) differs from A(x) + A(z) by 63% of it; take it as a Differentiable
    """

    function: Callable[[Any, Array], Array] = field(pytree_node=False)
    parameters: Any = ()
    tolerance: float = 1e-5
    iterations: int = field(default=100, pytree_node=False)
    pictured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self.parameters)):
            return
        draw = np.random.default_rng(0)
        x, z = (jnp.asarray(draw.standard_normal((2, *self.shape)), jnp.result_type(float)) for _ in range(2))
        with jax.ensure_compile_time_eval():
            at_x, at_z = self(x), self(z)
            if at_x.ndim < 1 or at_x.shape[0] != 2:
                raise ValueError(f"the function is of batches, (B, ...) to (B, ...): of 2 samples it made {at_x.shape}")
            for text, found, wanted in (
                ("A(x + z) differs from A(x) + A(z)", self(x + z), at_x + at_z),
                ("A(-3 x) differs from -3 A(x)", self(-3.0 * x), -3.0 * at_x),
            ):
                apart = float(jnp.linalg.norm((found - wanted).ravel()))
                size = float(jnp.linalg.norm(wanted.ravel()))
                if not apart <= CHECKED_TO * size + 1e-30:
                    share = "more than all" if size == 0 or not np.isfinite(apart) else f"{apart / size:.0%}"
                    raise ValueError(
                        f"the function is not linear: {text} by {share} of it; take it as a Differentiable"
                    )

    def __call__(self, x: Array) -> Array:
        return self.function(self.parameters, x)

    def pinv(self, y: Array) -> Array:
        return jax.vmap(self._solved)(y)

    def _solved(self, y: Array) -> Array:
        """Equation (1) of one sample."""
        right = self.adjoint(y[None])[0]
        found, _ = jax.scipy.sparse.linalg.cg(
            lambda x: self.adjoint(self(x[None]))[0], right, tol=self.tolerance, maxiter=self.iterations
        )
        return found


@record
class Differentiable(Operator):
    """Any function of a sample, with nothing but its derivative.

    Args:
      shape: of one x0.
      function: ``(parameters, x (B, ...)) -> y (B, ...)``, each sample by itself; static.
      parameters: a tree of its arrays; data.

    >>> Differentiable((4,), lambda _, x: x**2)(jnp.full((1, 4), 3.0)).tolist()
    [[9.0, 9.0, 9.0, 9.0]]
    """

    function: Callable[[Any, Array], Array] = field(pytree_node=False)
    parameters: Any = ()
    linear: ClassVar[bool] = False
    invertible: ClassVar[bool] = False
    pictured: ClassVar[bool] = False

    def __call__(self, x: Array) -> Array:
        return self.function(self.parameters, x)
