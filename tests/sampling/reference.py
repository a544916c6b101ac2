"""What orders are measured with: reference solutions of the flow, and multistep methods that start from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

import jaxdiff as jd
from jaxdiff.denoiser import Denoise, Denoiser
from jaxdiff.noise import step_noise
from jaxdiff.sampling.base import State


def reference_path(process: jd.Process, denoise: Denoiser, x: Array, ts: Array, substeps: int) -> Array:
    """The flow through x at ts[0], ``(n, B, ...)`` at the n times, by the classical Runge-Kutta method on

        d(x/alpha)/d lambda = -rho eps,    rho = sigma/alpha = e^-lambda,

    with ``substeps`` steps, equal in lambda, between neighbours of ``ts``, which may rise or fall.
    """

    def slope(y: Array, lam: Array) -> Array:
        t = process.time_of_log_snr(2.0 * lam)
        return -jnp.exp(-lam) * denoise(process.alpha(t) * y, t).eps

    def between(y: Array, times: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, end = (0.5 * process.log_snr(t) for t in times)
        h = (end - begin) / substeps

        def step(i: Array, y: Array) -> Array:
            lam = begin + i * h
            k1 = slope(y, lam)
            k2 = slope(y + 0.5 * h * k1, lam + 0.5 * h)
            k3 = slope(y + 0.5 * h * k2, lam + 0.5 * h)
            k4 = slope(y + h * k3, lam + h)
            return y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

        y = jax.lax.fori_loop(0, substeps, step, y)
        return y, process.alpha(times[1]) * y

    _, xs = jax.lax.scan(between, x / process.alpha(ts[0]), (ts[:-1], ts[1:]))
    return jnp.concatenate([x[None], xs])


def seeded_state(sampler: jd.Sampler, denoise: Denoise, xs: Array, ts: Array) -> State:
    """The state that a sampler has at ts[-1] when every x it was given lay on the true path.

    It is made of steps from the true x at each time, what they return being discarded. A method of p values needs p - 1
    of them, `UniPC` with its corrector p; more do no harm.

    Args:
      sampler: the method.
      denoise: the denoiser.
      xs: ``(k, B, ...)``, the true path at ts[0] to ts[k - 1].
      ts: ``(k + 1,)`` times, the last one where sampling will go on.
    """

    def body(state: State, step: tuple[Array, Array, Array]) -> tuple[State, None]:
        return sampler.step(denoise, step_noise(None, xs[0]), state, *step)[1], None

    return jax.lax.scan(body, sampler.init(xs[0]), (xs, ts[:-1], ts[1:]))[0]
