"""Runge-Kutta methods on the probability-flow ODE, in four variables.

With the denoiser's pair at (x, t) the flow is (equation 4 of `jaxdiff.process`; Song et al. 2021, equation 13)

    "t":        dx/dt = alpha'(t) x0(x, t) + sigma'(t) eps(x, t).                                        (1)

In y = x/alpha and rho = sigma/alpha it is (Karras et al. 2022, equations 3, 4; Song et al. 2021 DDIM, equation 14)

    "rho":      dy/d rho = eps(alpha y, t),                                                              (2)
    "log_rho":  dy/d ln rho = rho eps(alpha y, t),                                                       (3)

and in z = x/n, n^2 = alpha^2 + sigma^2, with the angle phi = arctan rho (Salimans & Ho 2022, appendix D),

    "angle":    dz/d phi = cos(phi) eps(n z, t) - sin(phi) x0(n z, t).                                   (4)

All are the same curve, but a step of a method is another: Euler in rho is DDIM, Heun in rho Karras' algorithm 1. Only
(1) knows the process' pace, and a chain's pace jumps at its times; the others depend on rho alone, so that a method
keeps its order on any process and any grid. (2) and (3) need alpha > 0, (3) also sigma > 0; (1) needs finite
derivatives; (4) is finite from pure noise to data. -ln rho is lambda of the exponential methods.

A stage between t and s stands at the time whose rho is the stage's, through `Process.time_of_log_snr`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State, refuse_infinite_velocity, refuse_no_signal
from jaxdiff.sampling.tableau import CLASSIC4, EULER, HEUN2, Tableau

Variable = Literal["t", "rho", "log_rho", "angle"]


def check_variable(variable: str) -> None:
    """Refuses a name that is none."""
    if variable not in get_args(Variable):
        names = [f'"{name}"' for name in get_args(Variable)]
        raise ValueError(f"variable is to be {', '.join(names[:-1])} or {names[-1]}, got {variable!r}")


def refuse_times(process: Process, variable: Variable, ts: ArrayLike, name: str) -> None:
    """Refuses known times at which the variable's equation is not finite."""
    if variable == "t":
        refuse_infinite_velocity(process, ts, name)
    elif variable in ("rho", "log_rho"):
        refuse_no_signal(process, ts, f"{name} in {variable}")
    if variable == "log_rho" and not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((process, ts))):
        with jax.ensure_compile_time_eval():
            noiseless = np.asarray(process.sigma(np.asarray(ts))) == 0
        if noiseless.any():
            raise ValueError(
                f"sigma({np.asarray(ts)[noiseless][0]}) = 0 for {type(process).__name__}: {name} in log_rho has no "
                'finite step where there is no noise. Stay above t = 0 (the grids of jaxdiff.grid do), or use "angle"'
            )


def place(process: Process, variable: Variable, t: Array) -> tuple[Array, Array]:
    """What x is divided by, and the variable of integration, at times of any shape."""
    if variable == "t":
        return jnp.ones_like(t), t
    alpha, sigma = process.alpha(t), process.sigma(t)
    if variable == "angle":
        return jnp.sqrt(jnp.square(alpha) + jnp.square(sigma)), jnp.arctan2(sigma, alpha)
    rho = sigma / alpha
    return alpha, jnp.log(rho) if variable == "log_rho" else rho


def time_at(process: Process, variable: Variable, position: Array) -> Array:
    """The time at which the variable of integration has this value."""
    if variable == "t":
        return position
    if variable == "log_rho":
        return process.time_of_log_snr(-2.0 * position)
    rho = jnp.tan(position) if variable == "angle" else position
    return process.time_of_log_snr(-2.0 * jnp.log(rho))


def slope(process: Process, variable: Variable, denoise: Denoise, y: Array, t: Array) -> Array:
    """The right-hand sides of (1) to (4); y in the variable's scale, t ``()`` or ``(B,)``."""
    if variable == "t":
        return denoise(y, t).velocity(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if variable == "angle":
        norm = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
        given = denoise(expand(norm, y) * y, t)
        return expand(alpha / norm, y) * given.eps - expand(sigma / norm, y) * given.x0
    eps = denoise(expand(alpha, y) * y, t).eps
    return expand(sigma / alpha, y) * eps if variable == "log_rho" else eps


def combine(weights: Sequence[float], slopes: Sequence[Array]) -> Array:
    """sum_i w_i k_i, the zeros left out."""
    first, *others = (w * k for w, k in zip(weights, slopes, strict=False) if w != 0)
    for term in others:
        first = first + term
    return first


def stage_slopes(
    process: Process,
    variable: Variable,
    tableau: Tableau,
    denoise: Denoise,
    y: Array,
    times: tuple[Array, Array],
    start: Array,
    h: Array,
    stages: int,
    first: Array | None = None,
) -> list[Array]:
    """The first ``stages`` k_i of equation (1) of `jaxdiff.sampling.tableau`.

    Args:
      y: the samples in the variable's scale.
      times: those of the step's ends, ``()`` or ``(B,)``; stages at c = 0 and c = 1 stand at them exactly.
      start, h: the variable at the step's beginning, and its change; shaped as the times.
      first: k_1, where it is known.
    """
    slopes = [slope(process, variable, denoise, y, times[0]) if first is None else first]
    for row, c in zip(tableau.a[: stages - 1], tableau.c[1:stages], strict=True):
        time = times[int(c)] if c in (0.0, 1.0) else time_at(process, variable, start + c * h)
        slopes.append(slope(process, variable, denoise, y + expand(h, y) * combine(row, slopes), time))
    return slopes


def runge_kutta_step(
    process: Process, variable: Variable, tableau: Tableau, denoise: Denoise, x: Array, t: Array, s: Array
) -> Array:
    """x at t to x at s by one step of the tableau."""
    (scale, start), (scale_s, end) = (place(process, variable, time) for time in (t, s))
    y, h = x / scale, end - start
    slopes = stage_slopes(process, variable, tableau, denoise, y, (t, s), start, h, tableau.stages)
    return scale_s * (y + h * combine(tableau.b, slopes))


@record
class RungeKutta(Sampler):
    """Any explicit Runge-Kutta method. Its tableau's order and stages; either direction.

    Args:
      process: the process.
      tableau: one of `jaxdiff.sampling.tableau`, or your own; static.
      variable: "t", "rho", "log_rho" or "angle", equations (1) to (4); static.

    >>> from jaxdiff import Flow, GaussianDenoiser, integrate, uniform_times
    >>> from jaxdiff.sampling.tableau import KUTTA3
    >>> exact, x = GaussianDenoiser(Flow(), 0.0, 0.5), jnp.ones((1, 2))
    >>> reached, _ = integrate(RungeKutta(Flow(), KUTTA3), exact, None, x, uniform_times(Flow(), 20, t_min=0.1))
    >>> bool(jnp.allclose(reached, exact.flow(x, 1.0, 0.1), rtol=1e-3))
    True
    """

    tableau: Tableau = field(pytree_node=False)
    variable: Variable = field(default="angle", pytree_node=False)

    def __post_init__(self) -> None:
        check_variable(self.variable)

    def check(self, ts: ArrayLike) -> None:
        refuse_times(self.process, self.variable, ts, "RungeKutta")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        return runge_kutta_step(self.process, self.variable, self.tableau, denoise, x, t, s), state


@record
class Euler(Sampler):
    """Euler's method on equation (1). Order 1; one evaluation a step; either direction."""

    def check(self, ts: ArrayLike) -> None:
        refuse_times(self.process, "t", ts, "Euler")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        return runge_kutta_step(self.process, "t", EULER, denoise, x, t, s), state


@record
class Heun(Sampler):
    """Heun's method, the explicit trapezoid, in the noise level: Karras et al. 2022, algorithm 1, for any process.
    Order 2; two evaluations a step; either direction.

    Args:
      process: the process.
      variable: "rho", equation (2), their sigma; "t", equation (1), is the one that steps from alpha = 0 for flows with
        a finite velocity; or another; static.

    >>> from jaxdiff import GaussianDenoiser, KarrasVE, karras_times, sample, sample_keys
    >>> process, keys = KarrasVE(), sample_keys(jax.random.key(0), 0, 4)
    >>> ts = karras_times(process, 18)  # 17 steps of two evaluations and a last denoising: 35
    >>> sample(Heun(process), GaussianDenoiser(process, 0.0, 0.5), None, process.prior_sample(keys, (2,)), ts).shape
    (4, 2)
    """

    variable: Variable = field(default="rho", pytree_node=False)

    def __post_init__(self) -> None:
        check_variable(self.variable)

    def check(self, ts: ArrayLike) -> None:
        refuse_times(self.process, self.variable, ts, "Heun")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        return runge_kutta_step(self.process, self.variable, HEUN2, denoise, x, t, s), state


@record
class DPM2(Sampler):
    """The midpoint method on equation (2), its middle halfway in log-SNR. Order 2; two evaluations a step; either
    direction.

        rho_m = sqrt(rho_t rho_s),  y_m = y + (rho_m - rho_t) eps(y, t),  y_s = y + (rho_s - rho_t) eps(y_m, m).   (5)

    It is DPM-Solver-2 (Lu et al. 2022, algorithm 1) written in (y, rho), and what samplers for Karras' models call
    dpm2. On one step the geometric mean is off the arithmetic by O(h^2), which leaves the order; over long steps, where
    rho falls by a large factor, it stands where eps changes. The plain midpoint is `RungeKutta` of `MIDPOINT`.
    """

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "DPM2")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        process = self.process
        middle = process.time_of_log_snr(0.5 * (process.log_snr(t) + process.log_snr(s)))
        (scale, rho), (_, rho_m), (scale_s, rho_s) = (place(process, "rho", time) for time in (t, middle, s))
        y = x / scale
        y_m = y + (rho_m - rho) * slope(process, "rho", denoise, y, t)
        return scale_s * (y + (rho_s - rho) * slope(process, "rho", denoise, y_m, middle)), state


@record
class RK4(Sampler):
    """The classical Runge-Kutta method (Kutta 1901). Order 4; four evaluations a step; either direction.

    Args:
      process: the process.
      variable: "t", "rho", "log_rho" or "angle", equations (1) to (4); static.
    """

    variable: Variable = field(default="angle", pytree_node=False)

    def __post_init__(self) -> None:
        check_variable(self.variable)

    def check(self, ts: ArrayLike) -> None:
        refuse_times(self.process, self.variable, ts, "RK4")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        return runge_kutta_step(self.process, self.variable, CLASSIC4, denoise, x, t, s), state
