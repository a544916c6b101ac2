"""Adaptive Runge-Kutta on the probability-flow ODE: steps as long as a tolerance allows, sample by sample.

An embedded pair (`jaxdiff.sampling.tableau`) of orders p > q gives a step two results, y_s and y^_s, on the same
slopes. With z = x/sqrt(alpha^2 + sigma^2) for either, the error of the step is (Hairer, Norsett, Wanner 1993, equation
II.4.11)

    e = rms( (z_s - z^_s)/(atol + rtol max(|z_t|, |z_s|)) ),                                         (1)

the root mean square over one sample's coordinates. In z a sample has the data's size from noise to data whatever the
process, so one tolerance means the same on each, and early errors weigh as late ones. The step is accepted if e <= 1,
and goes on with y_s (local extrapolation). The next has the length (a PI controller: Gustafsson 1991; Soderlind 2003,
section 3, "PI 3 4"), with k = q + 1 and e' the error of the accepted step before, not below 1e-4,

    h <- h min(5, max(0.2, 0.9 e^(-0.7/k) e'^(0.4/k))),                                              (2)

and a rejected step is tried again, not longer, with 0.9 e^(-1/k) for the factor. The first length is Hairer's (their
section II.4, "starting step size"), |.| being the norm of (1) and L the whole interval:

    h_0 = 0.01 |z|/|z'|,   D = |z'(h_0) - z'(0)|/h_0,   h = min(100 h_0, (0.01/max(|z'|, D))^(1/p), L),    (3)

h_0 kept within 1e-5 L and 0.01 L.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler
from jaxdiff.sampling.ode import Variable, check_variable, combine, place, refuse_times, slope, stage_slopes, time_at
from jaxdiff.sampling.tableau import BOGACKI_SHAMPINE, Tableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
LEAST_ERROR = 1e-4  # of the accepted step before, in (2): a lucky step is no reason to shorten the next


class Progress(NamedTuple):
    """The state of `Adaptive`: one entry a sample.

    Attributes:
      h: the next step's length in the variable of integration; 0 before the first.
      error: e' of equation (2).
      evaluations: of the denoiser, so far.
      accepted, rejected: steps, so far.
    """

    h: Array
    error: Array
    evaluations: Array
    accepted: Array
    rejected: Array


class _Walk(NamedTuple):
    """Where each sample stands within a step of the grid."""

    y: Array
    z: Array
    position: Array
    time: Array
    first: Array
    running: Array
    arrived: Array
    progress: Progress


@record
class Adaptive(Sampler):
    """An embedded pair with a step length, an error and a time of each sample's own. Its tableau's order; as many
    evaluations as the tolerance asks for; either direction.

    Between two times of the grid a sample takes as many steps as it needs, ``Adaptive`` stopping at each time, so two
    times are the whole grid: ``jnp.array([t_max, t_min])``; more of them are places to look at. A sample that has
    arrived stands still until the last of the batch has; what it becomes, and what is counted, does not depend on the
    others. `integrate` returns the counts in the state, a `Progress`.

    A sample whose next step would pass ``max_evaluations``, whose step length vanishes in rounding, or whose slope is
    not finite, becomes NaN: never a point on the way. The loop has no reverse-mode derivative. Under `jax.vmap` all
    run as long as the longest.

    Args:
      process: the process.
      tableau: an embedded pair: `BOGACKI_SHAMPINE`, 3(2), `DORMAND_PRINCE`, 5(4), for tolerances below about 1e-4,
        `HEUN2`, 2(1), or your own; static.
      variable: the variable of integration, as `jaxdiff.sampling.ode`; static.
      rtol: relative tolerance of a step, positive; data. Float32 has about 1e-6 to give.
      atol: absolute tolerance of a step, positive, in units of the data; data.
      max_evaluations: of the denoiser, a sample, over all steps of the state; data.

    Raises:
      ValueError: a tableau without embedded weights, a tolerance or bound that is not positive.

    >>> from jaxdiff import VP, GaussianDenoiser, integrate
    >>> exact, x = GaussianDenoiser(VP(), 1.0, 0.5), jnp.array([[0.3], [-1.0]])
    >>> reached, progress = integrate(Adaptive(VP()), exact, None, x, jnp.array([1.0, 0.01]))
    >>> bool(jnp.allclose(reached, exact.flow(x, 1.0, 0.01), atol=1e-2)), progress.evaluations.shape
    (True, (2,))
    """

    own_steps: ClassVar[bool] = True
    tableau: Tableau = field(default=BOGACKI_SHAMPINE, pytree_node=False)
    rtol: ArrayLike = 1e-3
    atol: ArrayLike = 1e-3
    variable: Variable = field(default="angle", pytree_node=False)
    max_evaluations: ArrayLike = 10_000

    def __post_init__(self) -> None:
        check_variable(self.variable)
        if self.tableau.embedded is None:
            raise ValueError("an adaptive step needs a tableau with embedded weights, such as DORMAND_PRINCE")
        for name in ("rtol", "atol", "max_evaluations"):
            value = getattr(self, name)
            if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name} is to be positive, got {value}")

    def init(self, x: Array) -> Progress:
        none, zero = jnp.zeros(x.shape[0], jnp.int32), jnp.zeros(x.shape[0], jnp.result_type(float))
        return Progress(zero, jnp.ones_like(zero), none, none, none)

    def check(self, ts: ArrayLike) -> None:
        refuse_times(self.process, self.variable, ts, "Adaptive")

    def step(
        self, denoise: Denoise, noise: Noise, state: Progress, x: Array, t: Array, s: Array
    ) -> tuple[Array, Progress]:
        begin = jnp.broadcast_to(t, x.shape[:1])
        scale, start = place(self.process, self.variable, begin)
        scale_s, end = place(self.process, self.variable, s)
        y = x / expand(scale, x)
        first = slope(self.process, self.variable, denoise, y, begin)
        new, arrived = state.h == 0, start == end
        entry = 1 + new.astype(jnp.int32)  # the first slope, and that of equation (3)
        running = ~arrived & _finite(y) & _finite(first) & self._within_bound(state.evaluations + entry)
        h = jax.lax.cond(
            new.any(),
            lambda: jnp.where(new, self._first_length(denoise, y, first, begin, start, end - start), state.h),
            lambda: state.h,
        )
        progress = state._replace(h=h, evaluations=state.evaluations + jnp.where(running, entry, 0))
        walk = _Walk(y, _per_unit(self.process, x, begin), start, begin, first, running, arrived, progress)
        walk = jax.lax.while_loop(
            lambda walk: walk.running.any(), lambda walk: self._attempt(denoise, walk, s, end), walk
        )
        return jnp.where(expand(walk.arrived, x), scale_s * walk.y, jnp.nan), walk.progress

    def _attempt(self, denoise: Denoise, walk: _Walk, s: Array, end: Array) -> _Walk:
        """One step of every running sample, accepted or not."""
        tableau, process, progress = self.tableau, self.process, walk.progress
        assert tableau.embedded is not None
        left = end - walk.position
        last = progress.h >= jnp.abs(left)
        h = jnp.where(walk.running, jnp.where(last, left, jnp.sign(left) * progress.h), 0.0)
        position = jnp.where(last, end, walk.position + h)
        time = jnp.where(last, s, time_at(process, self.variable, position))
        time = jnp.where(walk.running, time, walk.time)

        slopes = stage_slopes(
            process, self.variable, tableau, denoise, walk.y, (walk.time, time), walk.position, h, len(tableau.c),
            walk.first,
        )  # fmt: skip
        y = walk.y + expand(h, walk.y) * combine(tableau.b, slopes)
        difference = [b - low for b, low in zip(tableau.b, tableau.embedded, strict=True)]
        scale = place(process, self.variable, time)[0]
        z, gap = (_per_unit(process, expand(scale, y) * part, time) for part in (y, combine(difference, slopes)))
        error = jnp.abs(h) * self._norm(gap, jnp.maximum(jnp.abs(walk.z), jnp.abs(z)))
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)

        accepted, rejected = walk.running & (error <= 1.0), walk.running & (error > 1.0)
        length = jnp.abs(h) * step_factor(tableau, error, progress.error)
        length = jnp.where(last & accepted, jnp.maximum(length, progress.h), length)  # cut short by the interval's end
        progress = Progress(
            jnp.where(walk.running, length, progress.h),
            jnp.where(accepted, jnp.maximum(error, LEAST_ERROR), progress.error),
            progress.evaluations + jnp.where(walk.running, len(tableau.c) - 1, 0),
            progress.accepted + accepted.astype(jnp.int32),
            progress.rejected + rejected.astype(jnp.int32),
        )
        arrived = walk.arrived | (accepted & last)
        y, z, following = (
            jnp.where(expand(accepted, y), new, old)
            for new, old in ((y, walk.y), (z, walk.z), (slopes[-1], walk.first))
        )  # slopes[-1] is the next k_1 where first_same_as_last
        position, time = jnp.where(accepted, position, walk.position), jnp.where(accepted, time, walk.time)
        running = walk.running & ~arrived & (position + jnp.sign(left) * progress.h != position)
        if tableau.first_same_as_last:
            running = running & self._within_bound(progress.evaluations)
        else:
            running = running & self._within_bound(progress.evaluations + accepted.astype(jnp.int32))
            fresh = running & accepted
            following = jax.lax.cond(
                fresh.any(), lambda: slope(process, self.variable, denoise, y, time), lambda: walk.first
            )
            following = jnp.where(expand(fresh, y), following, walk.first)
            progress = progress._replace(evaluations=progress.evaluations + fresh.astype(jnp.int32))
        return _Walk(y, z, position, time, following, running, arrived, progress)

    def _within_bound(self, evaluations: Array) -> Array:
        """Whether one more attempt is allowed after so many."""
        return evaluations + len(self.tableau.c) - 1 <= self.max_evaluations

    def _first_length(self, denoise: Denoise, y: Array, first: Array, t: Array, start: Array, interval: Array) -> Array:
        """Equation (3)."""
        process, scale, whole = self.process, place(self.process, self.variable, t)[0], jnp.abs(interval)
        z, z1 = (_per_unit(process, expand(scale, y) * part, t) for part in (y, first))
        size, speed = self._norm(z, jnp.abs(z)), self._norm(z1, jnp.abs(z))
        # not so short that no difference is left, nor so long that the start is out of sight
        h0 = jnp.clip(0.01 * size / jnp.maximum(speed, 1e-10), 1e-5 * whole, 0.01 * whole)
        signed = jnp.sign(interval) * h0
        time = time_at(process, self.variable, start + signed)
        there = slope(process, self.variable, denoise, y + expand(signed, y) * first, time)
        change = self._norm(_per_unit(process, expand(scale, y) * (there - first), t), jnp.abs(z))
        curvature = change / jnp.where(h0 > 0, h0, 1.0)
        h1 = (0.01 / jnp.maximum(jnp.maximum(speed, curvature), 1e-10)) ** (1.0 / self.tableau.order)
        h = jnp.minimum(jnp.minimum(100.0 * h0, h1), whole)
        return jnp.where(jnp.isfinite(h), h, 1e-3 * whole)

    def _norm(self, part: Array, size: Array) -> Array:
        """Equation (1)'s, of each sample: ``(B,)``."""
        scaled = part / (jnp.asarray(self.atol, part.dtype) + jnp.asarray(self.rtol, part.dtype) * size)
        return jnp.sqrt(jnp.mean(jnp.square(flatten(scaled)), axis=1))


def step_factor(tableau: Tableau, error: Array, before: Array) -> Array:
    """Equation (2): what the next step's length is of this one's, whose error was ``error``."""
    k = tableau.embedded_order + 1
    error = jnp.maximum(error, 1e-10)
    accepted = jnp.clip(SAFETY * error ** (-0.7 / k) * before ** (0.4 / k), SHRINK, GROW)
    return jnp.where(error <= 1.0, accepted, jnp.maximum(SAFETY * error ** (-1.0 / k), SHRINK))


def _per_unit(process: Process, x: Array, t: Array) -> Array:
    """z = x/sqrt(alpha^2 + sigma^2)."""
    return x / expand(jnp.sqrt(jnp.square(process.alpha(t)) + jnp.square(process.sigma(t))), x)


def _finite(x: Array) -> Array:
    return jnp.isfinite(flatten(x)).all(axis=1)
