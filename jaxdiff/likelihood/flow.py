"""The likelihood of the probability flow.

Any Gaussian process is the cosine process at another pace and another scale. With

    z = x/n,   n = sqrt(alpha^2 + sigma^2),   phi = arctan(sigma/alpha) in (0, pi/2],                 (1)

z = cos(phi) x_0 + sin(phi) eps, and the probability flow and the log density along it are (Salimans & Ho 2022, appendix
D; Chen et al. 2018, "Neural Ordinary Differential Equations", equation 8; Song et al. 2021, equation 39)

    dz/dphi = v(z, phi) = cos(phi) eps - sin(phi) x_0,        d ln p(z)/dphi = -div v.               (2)

Both are finite wherever the process ends: at alpha = 0 (phi = pi/2), where x/alpha and drift are not, and where VP's
sigma' is infinite. A density moves between scales by ln p(x) = ln p(z) - D ln n, so with y = x/alpha = z/cos(phi), in
the units of the data,

    ln p(y) = ln p_1(x_1) + D ln(n_1 cos(phi_0)) + integral of div v from phi_0 to phi_1.            (3)

p_1 is the process's prior at t_max and phi_0 belongs to t_min, where sigma/alpha = rho > 0: (3) is the density of
x_0 + rho eps, rho = 0.002 by default, and data are taken to be draws of it (Song et al. 2021, appendix C, in their code
at t = 1e-5). `jaxdiff.likelihood.GaussianDequantiser` instead adds that noise and pays for it.

The divergence is the trace of J = dv/dz: exactly, D forward-mode derivatives, or for a random e with E[e e^T] = I
(Hutchinson 1990; Grathwohl et al. 2019, FFJORD, equation 7)

    div v = E[e^T J e],   variance (J symmetric): 2 (|J|^2 - sum_i J_ii^2) for signs e_i = +-1,       (4)
                          2 |J|^2 for normal e_i.

e is drawn once a sample and kept along the path, so that the estimate is unbiased and the path smooth. Signs are never
worse, and exact where J is diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.likelihood.angle import angle, refuse_blind, time_limits, time_of_angle
from jaxdiff.likelihood.solvers import AdaptiveSteps, Field, Solver
from jaxdiff.noise import salted_keys
from jaxdiff.process import Process

Divergence = Literal["exact", "rademacher", "gaussian"]
PROBE = 0x70726F62  # "prob"; see `jaxdiff.noise`
BY_ERROR = AdaptiveSteps()


class FlowLikelihood(NamedTuple):
    """What `log_likelihood` returns.

    Attributes:
      log_density: equation (3), nats, ``(B,)``; NaN where an adaptive method could not arrive: at its bound of
        evaluations, or before it where the denoiser is not finite.
      latent: x at t_max, where the flow takes the data.
      evaluations: of the denoiser with its derivative, ``(B,)``.
    """

    log_density: Array
    latent: Array
    evaluations: Array


def flow_velocity(denoise: Denoiser, process: Process, cond: Cond | None = None) -> Callable[[Array, ArrayLike], Array]:
    """Equation (2): v(z, phi), with phi ``()`` or ``(B,)``, of a denoiser of any process."""

    def velocity(z: Array, phi: ArrayLike) -> Array:
        phi = jnp.asarray(phi)
        t = time_of_angle(process, phi)
        norm, cosine, sine = (
            expand(part.astype(z.dtype), z)
            for part in (jnp.hypot(process.alpha(t), process.sigma(t)), jnp.cos(phi), jnp.sin(phi))
        )
        prediction = denoise(norm * z, t, cond)
        return (cosine * prediction.eps - sine * prediction.x0).astype(z.dtype)

    return velocity


def with_divergence(velocity: Callable[[Array, ArrayLike], Array], probes: Array | None, chunk: int = 64) -> Field:
    """A velocity with its divergence, equation (4).

    Args:
      velocity: ``(z, phi) -> dz/dphi``, sample by sample: no sample sees another of the batch.
      probes: ``(K, B, ...)`` random directions, of which the mean is taken; None: the exact trace.
      chunk: basis directions at once, for the exact trace.
    """

    def flow(z: Array, phi: Array) -> tuple[Array, Array]:
        if probes is not None and probes.shape[0] == 1:
            v, change = jax.jvp(lambda z: velocity(z, phi), (z,), (probes[0],))
            return v, sum_features(probes[0] * change)
        v, push = jax.linearize(lambda z: velocity(z, phi), z)
        if probes is not None:
            return v, jax.vmap(lambda e: sum_features(e * push(e)))(probes).mean(axis=0)
        if z.shape[0] == 0:  # no samples, which `jax.lax.map` cannot cut into chunks
            return v, jnp.zeros(0, z.dtype)
        size = math.prod(z.shape[1:])

        def entry(i: Array) -> Array:
            e = jnp.zeros((size,), z.dtype).at[i].set(1.0)
            change = push(jnp.broadcast_to(e.reshape(1, *z.shape[1:]), z.shape))
            return change.reshape(z.shape[0], size)[:, i]

        return v, jax.lax.map(entry, jnp.arange(size), batch_size=min(chunk, size)).sum(axis=0)

    return flow


def draw_probes(keys: Array, x: Array, count: int, divergence: Divergence) -> Array:
    """``(count, B, ...)`` probes of equation (4), from each sample's own key."""

    def draw(key: Array) -> Array:
        if divergence == "rademacher":
            return jax.random.rademacher(key, (count, *x.shape[1:]), x.dtype)
        return jax.random.normal(key, (count, *x.shape[1:]), x.dtype)

    return jax.vmap(draw, out_axes=1)(salted_keys(keys, PROBE))


def log_likelihood(
    denoise: Denoiser,
    process: Process,
    x: Array,
    keys: Array | None = None,
    cond: Cond | None = None,
    *,
    solver: Solver = BY_ERROR,
    divergence: Divergence = "rademacher",
    probes: int = 1,
    t_min: ArrayLike | None = None,
    t_max: ArrayLike | None = None,
    prior: Callable[[Array, Array], Array] | None = None,
) -> FlowLikelihood:
    """ln p(x) of the probability flow, equations (1)-(4), in the units of the data.

    Args:
      denoise: the denoiser.
      process: its process.
      x: real-valued data ``(B, ...)``: dequantise grey levels first, `bits_per_dim` turns the result into bits.
      keys: ``(B,)``, one a sample, for the probes; None for the exact divergence.
      cond: the condition, batch first.
      solver: `AdaptiveSteps`, by default of tolerance 1e-4: as many steps as the error asks for, on data of any width;
        or `FixedSteps`, whose error nothing tells, and which has a reverse-mode derivative.
      divergence: "exact" (D derivatives at each evaluation: small D), "rademacher" or "gaussian"; static.
      probes: directions whose estimates are averaged, at least 1; static.
      t_min: where x is taken to be, `jaxdiff.process.Process.min_time` by default; sigma(t_min) > 0.
      t_max: where the prior is; by default the process's `max_time`.
      prior: ``(x, t) -> (B,)`` log density at t_max; by default ``process.prior_log_density``, which leaves the mean
        out.

    Returns:
      A `FlowLikelihood`.

    Raises:
      ValueError: ends that are out of order or without noise; a denoiser made of eps where alpha(t_max) = 0; probes
        without keys; an unknown divergence.

    >>> from jaxdiff import CosineVP, GaussianDenoiser
    >>> process = CosineVP()
    >>> exact = GaussianDenoiser(process, 0.0, 0.5)
    >>> x = jnp.array([[0.3, -0.4]])
    >>> found = log_likelihood(exact, process, x, divergence="exact").log_density
    >>> print(f"{found[0]:.3f} {exact.log_density(x, 0.0)[0]:.3f}")
    -0.952 -0.952
    """
    if divergence not in ("exact", "rademacher", "gaussian"):
        raise ValueError(f'divergence is to be "exact", "rademacher" or "gaussian", got {divergence!r}')
    if probes < 1:
        raise ValueError(f"probes is at least 1, got {probes}")
    if divergence != "exact" and keys is None:
        raise ValueError(
            'a random divergence needs keys, one a sample: sample_keys(key, 0, batch); or divergence="exact"'
        )
    first, last = time_limits(process, t_min, t_max)
    refuse_blind(denoise, process, x, last, cond)
    directions = None if keys is None or divergence == "exact" else draw_probes(keys, x, probes, divergence)
    flow = with_divergence(flow_velocity(denoise, process, cond), directions)
    begin, end = angle(process, first), angle(process, last)
    norm = jnp.hypot(process.alpha(last), process.sigma(last))
    (z, integral), spent = solver.run(flow, jnp.cos(begin).astype(x.dtype) * x, begin, end)
    latent = norm.astype(x.dtype) * z
    prior_log_density = (process.prior_log_density if prior is None else prior)(latent, last)
    size = math.prod(x.shape[1:])
    scale = (jnp.log(norm) + jnp.log(jnp.cos(begin))).astype(x.dtype)
    return FlowLikelihood(prior_log_density + size * scale + integral, latent, spent)
