"""Runge-Kutta methods for a flow and the integral of its divergence.

A point is (z, integral); a field gives both slopes, which depend on z and the angle alone. `FixedSteps` takes the same
steps for all samples; `AdaptiveSteps` gives each sample steps, an error and an angle of its own, so that no sample's
result depends on which others share its batch.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, mean_features, sum_features
from jaxdiff.record import field, record
from jaxdiff.sampling.adaptive import LEAST_ERROR, step_factor
from jaxdiff.sampling.tableau import CLASSIC4, DORMAND_PRINCE, Tableau

Field = Callable[[Array, Array], tuple[Array, Array]]
"""(z, phi) to (dz/dphi, its divergence), phi ``()`` or ``(B,)``."""

WARP = 7.0
"""Fixed steps are uniform in phi^(1/7): geometric near the data, gentle at the noise end (as Karras et al. 2022,
equation 5, do in sigma)."""


class Point(NamedTuple):
    """z ``(B, ...)`` and the integral ``(B,)``; their slopes too."""

    z: Array
    integral: Array


def _advance(point: Point, h: Array, weights: Sequence[float], slopes: Sequence[Point]) -> Point:
    """point + h sum_i weights_i slopes_i, h ``()`` or ``(B,)``."""

    def part(y: Array, *ks: Array) -> Array:
        used = [weight * k for weight, k in zip(weights, ks, strict=True) if weight != 0.0]
        return y + expand(h.astype(y.dtype), y) * sum(used[1:], start=used[0])

    return jax.tree.map(part, point, *slopes)


def _slopes(tableau: Tableau, flow: Field, point: Point, phi: Array, h: Array, first: Point | None) -> list[Point]:
    """The k_i of equation (1) of `jaxdiff.sampling.tableau`."""
    slopes = [Point(*flow(point.z, phi)) if first is None else first]
    for row, c in zip(tableau.a, tableau.c[1:], strict=True):
        slopes.append(Point(*flow(_advance(point, h, row, slopes).z, phi + c * h)))
    return slopes


@record
class Solver(abc.ABC):
    """How a flow is integrated; abstract."""

    @abc.abstractmethod
    def run(self, flow: Field, z: Array, first: Array, last: Array) -> tuple[Point, Array]:
        """From z at angle ``first`` to ``last``: the last point, and the evaluations of each sample ``(B,)``."""


@record
class FixedSteps(Solver):
    """An explicit Runge-Kutta method over steps uniform in phi^(1/7). Its tableau's order and stages.

    Args:
      steps: how many; static.
      tableau: of `jaxdiff.sampling.tableau`, or your own; static.

    Raises:
      ValueError: fewer than one step.
    """

    steps: int = field(default=64, pytree_node=False)
    tableau: Tableau = field(default=CLASSIC4, pytree_node=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is at least 1, got {self.steps}")

    def run(self, flow: Field, z: Array, first: Array, last: Array) -> tuple[Point, Array]:
        low, high = jnp.power(first, 1.0 / WARP), jnp.power(last, 1.0 / WARP)
        angles = jnp.power(low + jnp.linspace(0.0, 1.0, self.steps + 1) * (high - low), WARP)
        angles = angles.at[0].set(first).at[-1].set(last)

        def body(point: Point, between: tuple[Array, Array]) -> tuple[Point, None]:
            phi, h = between[0], between[1] - between[0]
            return _advance(point, h, self.tableau.b, _slopes(self.tableau, flow, point, phi, h, None)), None

        point, _ = jax.lax.scan(body, Point(z, jnp.zeros(z.shape[:1], z.dtype)), (angles[:-1], angles[1:]))
        return point, jnp.full(z.shape[0], self.steps * len(self.tableau.b))


@record
class AdaptiveSteps(Solver):
    """An embedded pair, step by step for each sample, its order and stages those of the tableau.

    A step is taken where the root mean square of the error of z against atol + rtol |z|, and the error of the integral
    a dimension against atol + rtol, are both at most 1. The next step's length follows from these by equation (2) of
    `jaxdiff.sampling.adaptive`. Samples that have arrived stand still, in their place in the batch. A sample whose
    slope is not finite where it stands, whose next step vanishes in rounding or would pass ``max_evaluations``, goes no
    further, and its integral is NaN: its evaluations tell which. The loop has no reverse-mode derivative.

    Args:
      rtol, atol: tolerances, positive; data.
      max_evaluations: the bound of each sample; data.
      tableau: the pair; static.

    Raises:
      ValueError: a tableau without embedded weights.
    """

    rtol: ArrayLike = 1e-4
    atol: ArrayLike = 1e-4
    max_evaluations: ArrayLike = 10_000
    tableau: Tableau = field(default=DORMAND_PRINCE, pytree_node=False)

    def __post_init__(self) -> None:
        if self.tableau.embedded is None:
            raise ValueError("AdaptiveSteps needs an embedded pair, such as DORMAND_PRINCE or BOGACKI_SHAMPINE")

    def run(self, flow: Field, z: Array, first: Array, last: Array) -> tuple[Point, Array]:
        tableau, n, size = self.tableau, z.shape[0], math.prod(z.shape[1:])
        reused = tableau.first_same_as_last
        cost = len(tableau.b) - reused
        assert tableau.embedded is not None
        difference = [b - low for b, low in zip(tableau.b, tableau.embedded, strict=True)]

        def going(walk: _Walk) -> Array:
            return walk.steps & (walk.phi < last) & (walk.spent + cost <= self.max_evaluations)

        def body(walk: _Walk) -> _Walk:
            active, left, point = going(walk), last - walk.phi, walk.point
            h = jnp.where(active, jnp.minimum(walk.h, left), 0.0)
            slopes = _slopes(tableau, flow, point, walk.phi, h, walk.slope)
            end = _advance(point, h, tableau.b, slopes)
            wrong = _advance(jax.tree.map(jnp.zeros_like, point), h, difference, slopes)
            scale = self.atol + self.rtol * jnp.maximum(jnp.abs(point.z), jnp.abs(end.z))
            of_z = jnp.sqrt(mean_features(jnp.square(wrong.z / scale)))
            of_integral = jnp.abs(wrong.integral) / (size * (jnp.asarray(self.atol) + self.rtol))
            error = jnp.maximum(of_z, of_integral).astype(h.dtype)
            error = jnp.where(jnp.isfinite(error), error, jnp.inf)
            taken = active & (error <= 1.0)
            factor = step_factor(tableau, error, walk.error)

            def chosen(new: Array, old: Array) -> Array:
                return jnp.where(expand(taken, new), new, old)

            phi = chosen(jnp.where(h >= left, last, walk.phi + h), walk.phi)
            length = jnp.where(active, h * factor, walk.h)
            finite = jnp.isfinite(sum_features(slopes[0].z)) & jnp.isfinite(slopes[0].integral)
            return _Walk(
                jax.tree.map(chosen, end, point),
                jax.tree.map(chosen, slopes[-1], walk.slope) if reused else None,
                phi,
                length,
                chosen(jnp.maximum(error, LEAST_ERROR), walk.error),
                walk.spent + jnp.where(active, cost, 0),
                walk.steps & finite & (phi + length != phi),
            )

        phi = jnp.broadcast_to(first, (n,))
        start = _Walk(
            Point(z, jnp.zeros((n,), z.dtype)),
            Point(*flow(z, phi)) if reused else None,
            phi,
            jnp.minimum(0.5 * phi, last - phi),  # the flow changes on the scale of the angle itself
            jnp.ones_like(phi),
            jnp.full(n, int(reused)),
            jnp.ones(n, bool),
        )
        end = jax.lax.while_loop(lambda walk: going(walk).any(), body, start)
        return end.point._replace(integral=jnp.where(end.phi >= last, end.point.integral, jnp.nan)), end.spent


class _Walk(NamedTuple):
    """Where each sample of an adaptive method is: its point, the slope there, angle, next step, last error, evaluations
    and whether it can step on ``(B,)``."""

    point: Point
    slope: Point | None
    phi: Array
    h: Array
    error: Array
    spent: Array
    steps: Array
