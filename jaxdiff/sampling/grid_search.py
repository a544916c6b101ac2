"""Times chosen for a denoiser: `jaxdiff.sampling.choose` chooses the sampler too.

In the scaled space y = x/alpha with rho = sigma/alpha, the probability flow of every process is dy/drho = eps, and one
step of DDIM from rho_i to rho_j is y_i + (rho_j - rho_i) eps_i, to rho = 0 the last denoising. Both searches weigh all
pairs of times of a fine grid and take the cheapest way through them by dynamic programming,

    V_1[i] = c[i, end],      V_k[i] = min_{j > i} c[i, j] + gamma V_{k-1}[j].                        (1)

GITS (Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling", section 4): c is the local error
of a step that starts on a teacher's path,

    c[i, j] = E |y_i + (rho_j - rho_i) eps_i - y_j|,      |.| the root mean square,                   (2)

and gamma, 1.15 in the authors' code, makes later errors, which no later step can mend, dearer. What becomes of an error
on the way to the end can be had too: with J_j the derivative of the path's end by y_j, and u ~ N(0, I),

    c[i, j] = E |J_j e_ij| = sqrt(pi/(2 D)) E |<w_j, e_ij>|,    w_j = J_j' u,    gamma = 1,           (3)

(<w, e> = <u, J e> is normal given e, with deviation the length of J e), all w_j of one u by a single sweep back along
the path (`end_probes`), w_i = w_j + (rho_j - rho_i) (d eps_i/dy)' w_j.

AYS (Sabour et al. 2024, "Align Your Steps"): by Girsanov's theorem the Kullback-Leibler divergence between the paths of
the reverse SDE and of the one whose x0 is frozen at the start of each step (`DDIM` at eta = 1) is at most sum c,

    c[i, j] = int_{rho_j}^{rho_i} E |D(y_rho) - D(y_{rho_i})|^2 rho^-3 drho,                          (4)

D the predicted x0, y_rho = x_0 + W(rho^2) one Brownian path through all noise levels; gamma = 1. It needs data, no
teacher. For the optimal denoiser E |D(y_rho) - D(y_{rho_i})|^2 is the fall of the mean squared error between the two.

Which: (2) and (3) lead to the flow's own end. (4) is a divergence, to which each octave of noise counts alike, however
faint: with it, begin from times that end where noise is visible, at rho = 0.03 or so. Any of them is a start for
`polish_times`, which moves the times one by one to lower the sampler's own error; multistep methods gain the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import mean_features, sum_features
from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.grid import log_snr_times
from jaxdiff.noise import salted_keys, white_noise
from jaxdiff.process import Process
from jaxdiff.sampling.base import Sampler, check_times, sample, start
from jaxdiff.sampling.multistep import DPMpp2M


class TeacherPath(NamedTuple):
    """A batch's way along the probability flow, in the scaled space.

    Attributes:
      ts: ``(M,)`` its times, falling.
      rho: ``(M,)`` sigma/alpha at them.
      y: ``(M, B, ...)`` the samples, x/alpha.
      eps: ``(M, B, ...)`` the predictions of the noise there.
      x0: ``(B, ...)`` the last denoising: what sampling should give.
    """

    ts: Array
    rho: Array
    y: Array
    eps: Array
    x0: Array


def noise_ratio(process: Process, ts: ArrayLike) -> Array:
    """rho = sigma/alpha."""
    return jnp.exp(-0.5 * process.log_snr(ts))


def time_of_ratio(process: Process, rho: ArrayLike) -> Array:
    """The inverse of `noise_ratio`, limited to [0, 1]."""
    return process.time_of_log_snr(-2.0 * jnp.log(rho))


def teacher_path(
    denoise: Denoiser,
    process: Process,
    x: Array,
    ts: ArrayLike | None = None,
    cond: Cond | None = None,
    *,
    sampler: Sampler | None = None,
    substeps: int = 4,
) -> TeacherPath:
    """Follows x along a fine grid and keeps what was predicted on the way: 2 M arrays like x.

    Args:
      denoise: the denoiser.
      process: the process.
      x: noise at ``ts[0]``, ``(B, ...)``; some tens of samples suffice.
      ts: ``(M,)`` falling times where alpha > 0; None is 64 of `log_snr_times`.
      cond: the condition, batch first.
      sampler: a deterministic method for the path; None is `DPMpp2M`.
      substeps: steps between two of the times; M (substeps + 1) evaluations in all.

    >>> from jaxdiff import GaussianDenoiser, Flow, sample_keys
    >>> process = Flow()
    >>> ts = log_snr_times(process, 32)
    >>> x = process.prior_sample(sample_keys(jax.random.key(0), 0, 8), (2,), ts[0])
    >>> path = teacher_path(GaussianDenoiser(process, 0.0, 0.5), process, x, ts)
    >>> gits_times(path, 5).shape
    (5,)
    """
    times = log_snr_times(process, 64) if ts is None else jnp.asarray(ts, jnp.result_type(float))
    method = DPMpp2M(process) if sampler is None else sampler
    start(method, denoise, x, times, cond)
    arguments, call = as_arguments(denoise)

    @jax.jit
    def follow(arguments: Any, method: Sampler, x: Array, ts: Array, cond: Cond | None) -> TeacherPath:
        bound = lambda x, t: call(arguments)(x, t, cond)  # noqa: E731
        process = method.process
        shares = jnp.arange(substeps + 1) / substeps
        log_snr = process.log_snr(ts)
        between = log_snr[:-1, None] + shares[None] * (log_snr[1:] - log_snr[:-1])[:, None]
        fine = process.time_of_log_snr(between).at[:, 0].set(ts[:-1]).at[:, -1].set(ts[1:])  # (M - 1, substeps + 1)

        def step(carry: tuple[Array, Any], pair: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
            x, state = carry
            return method.step(bound, no_noise, state, x, *pair), None

        def stretch(carry: tuple[Array, Any], row: Array) -> tuple[tuple[Array, Any], tuple[Array, Array]]:
            y, eps = carry[0] / process.alpha(row[0]), bound(carry[0], row[0]).eps
            return jax.lax.scan(step, carry, (row[:-1], row[1:]))[0], (y, eps)

        (last, _), (y, eps) = jax.lax.scan(stretch, (x, method.init(x)), fine)
        end = bound(last, ts[-1])
        y, eps = (
            jnp.concatenate([part, tail[None]]) for part, tail in ((y, last / process.alpha(ts[-1])), (eps, end.eps))
        )
        return TeacherPath(ts, noise_ratio(process, ts).astype(x.dtype), y, eps, end.x0)

    return follow(arguments, method, x, times, cond)


def end_probes(
    denoise: Denoiser, process: Process, path: TeacherPath, key: Array, cond: Cond | None = None, *, n: int = 2
) -> Array:
    """w of equation (3), ``(M + 1, n, B, ...)``: how n random directions u at the path's end look from each of its
    times, and from the end itself, by one sweep of M vector-Jacobian products a direction.

    Args:
      denoise: the denoiser, which is to have a reverse-mode derivative.
      process: the process.
      path: from `teacher_path`.
      key: for the directions, N(0, I).
      cond: the condition, batch first.
      n: how many directions a sample; static.
    """
    arguments, call = as_arguments(denoise)

    @jax.jit
    def sweep(arguments: Any, process: Process, path: TeacherPath, key: Array, cond: Cond | None) -> Array:
        directions = jax.random.normal(key, (n, *path.x0.shape), path.x0.dtype)
        strides = jnp.append(path.rho[1:], 0.0) - path.rho

        def back(probes: Array, k: Array) -> tuple[Array, Array]:
            alpha = process.alpha(path.ts[k]).astype(path.y.dtype)
            _, pull = jax.vjp(lambda y: call(arguments)(alpha * y, path.ts[k], cond).eps, path.y[k])
            probes = probes + strides[k] * jax.vmap(lambda w: pull(w)[0])(probes)
            return probes, probes

        probes = jax.lax.scan(back, directions, jnp.arange(len(path.ts)), reverse=True)[1]
        return jnp.concatenate([probes, directions[None]])

    return sweep(arguments, process, path, key, cond)


@jax.jit
def step_costs(path: TeacherPath, probes: Array | None = None) -> Array:
    """Equation (2), or (3) with ``probes``, ``(M, M + 1)``: from each time of the path to each later one, and last to
    rho = 0; infinite backwards."""
    targets = jnp.append(path.rho, 0.0)
    truth = jnp.concatenate([path.y, path.x0[None]])

    def from_one(i: Array) -> Array:
        def to_one(j: Array) -> Array:
            error = path.y[i] + (targets[j] - path.rho[i]) * path.eps[i] - truth[j]
            if probes is None:
                return jnp.sqrt(mean_features(jnp.square(error))).mean()
            seen = jax.vmap(lambda w: sum_features(w * error))(probes[j])
            return math.sqrt(math.pi / (2 * error[0].size)) * jnp.abs(seen).mean()

        return jax.lax.map(to_one, jnp.arange(len(targets)))

    costs = jax.lax.map(from_one, jnp.arange(len(path.rho)))
    return jnp.where(jnp.arange(len(path.rho))[:, None] < jnp.arange(len(targets))[None], costs, jnp.inf)


@partial(jax.jit, static_argnames="steps")
def cheapest_way(costs: Array, steps: int, coefficient: ArrayLike = 1.0) -> Array:
    """Equation (1): the cheapest way of ``steps`` steps from the first place to the last.

    Args:
      costs: ``(P - 1, P)``, c[i, j] of a step from place i to place j, infinite where j <= i.
      steps: how many, from 1 to P - 1; static.
      coefficient: gamma.

    Returns:
      ``(steps + 1,)`` places, rising from 0 to P - 1.

    Raises:
      ValueError: more steps than there are places to go to.

    >>> costs = jnp.array([[jnp.inf, 1.0, 3.0, 9.0], [jnp.inf, jnp.inf, 1.0, 4.0], [jnp.inf, jnp.inf, jnp.inf, 1.0]])
    >>> cheapest_way(costs, 2).tolist()
    [0, 2, 3]
    """
    places = costs.shape[1]
    if costs.shape[0] != places - 1 or not 1 <= steps < places:
        raise ValueError(f"costs of shape (P - 1, P) allow 1 to P - 1 steps, got {costs.shape} and {steps}")

    def earlier(value: Array, _: None) -> tuple[Array, Array]:
        onward = costs + coefficient * jnp.append(value, jnp.inf)[None]
        return onward.min(axis=1), onward.argmin(axis=1)

    _, choices = jax.lax.scan(earlier, costs[:, -1], None, length=steps - 1)
    _, way = jax.lax.scan(lambda place, choice: (choice[place], place), jnp.zeros((), int), choices[::-1])
    last = choices[0, way[-1]] if steps > 1 else jnp.zeros((), int)
    return jnp.concatenate([way, jnp.stack([last, jnp.asarray(places - 1, last.dtype)])])


def gits_times(
    path: TeacherPath,
    n: int,
    coefficient: ArrayLike | None = None,
    *,
    probes: Array | None = None,
    free_end: bool = True,
) -> Array:
    """n of the path's times by equations (1) and (2), or (3), for n evaluations with a method of one a step.

    Args:
      path: from `teacher_path`.
      n: how many times, the first one the path's; at most M.
      coefficient: gamma; None is 1.15, or 1 with probes.
      probes: from `end_probes`, for equation (3).
      free_end: whether the last time, whence x0 is denoised, is chosen too; else it is the path's.
    """
    if coefficient is None:
        coefficient = 1.15 if probes is None else 1.0
    costs = step_costs(path, probes)
    if not free_end:
        return path.ts[cheapest_way(costs[:-1, :-1], n - 1, coefficient)] if n > 1 else path.ts[:1]
    return path.ts[cheapest_way(costs, n, coefficient)[:-1]]


def ays_costs(
    denoise: Denoiser, process: Process, keys: Array, data: Array, ts: ArrayLike, cond: Cond | None = None
) -> Array:
    """Equation (4) between the times of a fine grid, ``(M - 1, M)``, infinite backwards: summed over coordinates, in
    nats. M arrays like ``data`` are held.

    Args:
      denoise: the denoiser.
      process: the process.
      keys: one key a sample, `sample_keys`.
      data: ``(B, ...)`` data points.
      ts: ``(M,)`` falling times where alpha and sigma are positive, fine enough for the trapezoidal rule.
      cond: the condition, batch first.
    """
    times = jnp.asarray(ts, jnp.result_type(float))
    check_times(process, times)
    arguments, call = as_arguments(denoise)

    @jax.jit
    def estimate(arguments: Any, process: Process, keys: Array, data: Array, ts: Array, cond: Cond | None) -> Array:
        rho = noise_ratio(process, ts)
        # one Brownian path, from the data's end: steps of variance rho_k^2 - rho_{k+1}^2
        steps = jnp.sqrt(jnp.square(rho) - jnp.append(jnp.square(rho[1:]), 0.0)).astype(data.dtype)

        def rise(y: Array, k: Array) -> tuple[Array, Array]:
            folded = salted_keys(keys, k)
            y = y + steps[k] * white_noise(folded, data.shape[1:], data.dtype)
            return y, call(arguments)(process.alpha(ts[k]).astype(data.dtype) * y, ts[k], cond).x0

        _, predicted = jax.lax.scan(rise, data, jnp.arange(len(ts)), reverse=True)  # (M, B, ...)
        weight = 0.5 * (rho[1:] ** -2 - rho[:-1] ** -2)  # int rho^-3 drho over each cell

        def from_one(i: Array) -> Array:
            change = jax.lax.map(lambda d: sum_features(jnp.square(d - predicted[i])).mean(), predicted)
            cells = jnp.where(jnp.arange(len(ts) - 1) >= i, 0.5 * weight * (change[1:] + change[:-1]), 0.0)
            return jnp.append(0.0, jnp.cumsum(cells))

        costs = jax.lax.map(from_one, jnp.arange(len(ts) - 1))
        return jnp.where(jnp.arange(len(ts) - 1)[:, None] < jnp.arange(len(ts))[None], costs, jnp.inf)

    return estimate(arguments, process, keys, data, times, cond)


def ays_times(
    denoise: Denoiser,
    process: Process,
    keys: Array,
    data: Array,
    n: int,
    ts: ArrayLike | None = None,
    cond: Cond | None = None,
) -> Array:
    """n of the times ``ts`` (None is 64 of `log_snr_times`), with both ends, by equations (1) and (4). Arguments as
    `ays_costs`."""
    times = log_snr_times(process, 64) if ts is None else jnp.asarray(ts, jnp.result_type(float))
    if n < 2:
        raise ValueError(f"both ends of the grid stay, so n is at least 2, got {n}")
    return times[cheapest_way(ays_costs(denoise, process, keys, data, times, cond), n - 1)]


def interpolate_times(process: Process, ts: ArrayLike, n: int) -> Array:
    """The same grid with n times: log-SNR linear between those of ``ts`` (Sabour et al. 2024, section 4), ends kept.

    >>> from jaxdiff.schedule import Flow
    >>> [f"{t:.3f}" for t in interpolate_times(Flow(), jnp.array([0.99, 0.5, 0.01]), 5)]
    ['0.990', '0.909', '0.500', '0.091', '0.010']
    """
    ts = jnp.asarray(ts, jnp.result_type(float))
    if n < 2 or len(ts) < 2:
        raise ValueError(f"a grid is interpolated from two times or more to two or more, got {len(ts)} and n = {n}")
    places = jnp.linspace(0.0, len(ts) - 1.0, n)
    log_snr = jnp.interp(places, jnp.arange(float(len(ts))), process.log_snr(ts))
    return process.time_of_log_snr(log_snr).at[0].set(ts[0]).at[-1].set(ts[-1])


def error_of(sampler: Sampler, denoise: Denoiser, x: Array, ts: Array, x0: Array, cond: Cond | None = None) -> Array:
    """Mean over the batch of the root mean square difference between `sample` and ``x0``, for a deterministic
    sampler."""
    return jnp.sqrt(mean_features(jnp.square(sample(sampler, denoise, None, x, ts, cond) - x0))).mean()


def polish_times(
    sampler: Sampler,
    denoise: Denoiser,
    path: TeacherPath,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    rounds: int = 8,
) -> Array:
    """Moves each time but the first between its neighbours, in ln rho, where that lowers the sampler's error on the
    path's samples. The last time moves within the path.

    Args:
      sampler: a deterministic method.
      denoise: the denoiser.
      path: the teacher's, whose first time is ``ts[0]``.
      ts: ``(n,)`` times to begin with.
      cond: the condition, batch first.
      rounds: each tries two places a time, 2 (n - 1) samplings; one that helps nowhere halves the moves.
    """
    process = sampler.process
    arguments, call = as_arguments(denoise)
    x = process.alpha(path.ts[0]).astype(path.y.dtype) * path.y[0]
    first = path.ts[0]

    @jax.jit
    def measure(arguments: Any, sampler: Sampler, x: Array, ln_rho: Array, x0: Array, cond: Cond | None) -> Array:
        times = time_of_ratio(sampler.process, jnp.exp(ln_rho)).at[0].set(first)
        return error_of(sampler, call(arguments), x, times, x0, cond)

    places = np.array(jnp.log(noise_ratio(process, ts)), np.float64)
    least = float(jnp.log(path.rho[-1]))
    attempt = lambda places: float(measure(arguments, sampler, x, jnp.asarray(places), path.x0, cond))  # noqa: E731
    best, move = attempt(places), 0.3
    for _ in range(rounds):
        before = best
        for i in range(1, len(places)):
            for sign in (1.0, -1.0):
                other = places[i - 1] if sign > 0 else places[i + 1] if i + 1 < len(places) else least
                tried = places.copy()
                tried[i] += move * (other - tried[i])
                error = attempt(tried)
                if error < best:
                    best, places = error, tried
        move = 0.5 * move if best > 0.99 * before else move
    return time_of_ratio(process, jnp.exp(jnp.asarray(places, jnp.result_type(float)))).at[0].set(first)


def no_noise(t: Array, s: Array, salt: ArrayLike = 0) -> Array:
    """The noise of a method that is to draw none."""
    raise ValueError("this sampler draws noise: a grid is searched for deterministic methods, which repeat themselves")


def as_arguments(denoise: Denoiser) -> tuple[list[Any], Callable[[list[Any]], Denoiser]]:
    """A denoiser as arguments of a jitted function, and back: its arrays are then no constants of the program. A plain
    function has none."""
    leaves, tree = jax.tree.flatten(denoise)
    known = [leaf if callable(leaf) else None for leaf in leaves]
    passed = [None if callable(leaf) else leaf for leaf in leaves]
    return passed, lambda passed: jax.tree.unflatten(
        tree, [given if fixed is None else fixed for given, fixed in zip(passed, known, strict=True)]
    )
