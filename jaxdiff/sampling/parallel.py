"""Sampling parallel in time: Picard iteration on the steps of a one-step method (ParaDiGMS).

Shih, Belkhale, Ermon, Sadigh, Anari 2023, "Parallel Sampling of Diffusion Models", https://arxiv.org/abs/2305.16317.

Let x_{j+1} = S_j(x_j) be the steps of a method on the grid, z = x/n with n^2 = alpha^2 + sigma^2, and S_j written in z
too. A solution is a fixed point of the sums of its increments (their equation 6),

    z_{j+1}^{k+1} = z_0 + sum_{i <= j} (S_i(z_i^k) - z_i^k),                                         (1)

whose terms need no one another: all S_i are evaluated at once. After k iterations the first k points are exact, and the
others mostly converge sooner. The iteration runs over a window of W points (their algorithm 1): a point is done when
all before it have moved by no more than the tolerance,

    rms(z_i^{k+1} - z_i^k) <= tolerance,     i < j,                                                  (2)

for then its increments were taken where they belong; the first always is. The window slides on by as many, and begins
its new points at its last. Here each sample has a window of its own, so that what it becomes depends on no other.

In z, as on the adaptive sampler's, a sample has the data's size from noise to data, so one tolerance means the same
everywhere (the paper scales it by the noise of a DDPM step); for data of unit variance z is constant along the flow, so
that the first guess is all but the answer. Noise of a stochastic step is a function of the sample's key and the step's
times (`jaxdiff.noise`), so every iteration sees the same: the fixed point is the sequential sample, stochastic or not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from jaxdiff.broadcast import mean_features
from jaxdiff.denoiser import Cond, Denoise, Denoiser
from jaxdiff.noise import NoiseSource, step_noise
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.sampling.base import Sampler, promoted, start


class _Window(NamedTuple):
    """Where each sample's window stands.

    Attributes:
      z: ``(W + 1, B, ...)``, the points; the first is done.
      begin: ``(B,)``, which point of the grid the first is.
      iterations: ``(B,)``, so far.
    """

    z: Array
    begin: Array
    iterations: Array


def sample_parallel(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Array | None,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    window: int,
    tolerance: ArrayLike = 1e-3,
    noise: NoiseSource = step_noise,
    sharding: NamedSharding | None = None,
) -> tuple[Array, Array]:
    """As `sample`, in fewer evaluations one after the other, each of a batch up to ``window`` times as large.

    It pays where a larger batch costs less than as many evaluations: few samples, many devices.

    Args:
      sampler: a one-step method: `DDIM`, `Euler`, `DDPM`, `Heun`, ...; what it evaluates within a step it still does
        one after the other.
      denoise: the denoiser; what it could remember (a cache, a branch of guidance) is not reused.
      keys, x, ts, cond, noise: as `sample`.
      window: W, how many steps are evaluated at once, at least 1; static. More than there are is taken as all.
      tolerance: equation (2), in units of the data, 0 or more; data, ``()`` or ``(B,)``. 0 iterates until nothing
        moves, at most n - 1 times.
      sharding: how the ``window * B`` evaluations are laid on devices, its first axis; None: as it comes.

    Returns:
      ``(B, ...)``, the expected x0 at the last time, and ``(B,)``, the iterations that each sample took: `sample` takes
      n - 1.

    Raises:
      ValueError: as `sample`; a method that remembers steps (multistep, adaptive); a window below 1; a negative
        tolerance.

    >>> from jaxdiff import DDIM, VP, GaussianDenoiser, log_snr_times, sample
    >>> process, x = VP(), jax.random.normal(jax.random.key(0), (4, 2))
    >>> exact, ts = GaussianDenoiser(process, 1.0, 0.5), log_snr_times(process, 50)
    >>> x0, iterations = sample_parallel(DDIM(process), exact, None, x, ts, window=49)
    >>> error = jnp.abs(x0 - sample(DDIM(process), exact, None, x, ts)).max()
    >>> bool(error < 1e-2), bool((iterations < 25).all())
    (True, True)
    """
    start(sampler, denoise, x, ts, cond)
    _check(sampler, x, window, tolerance)
    x, grid = promoted(x, ts)
    process, steps, batch = sampler.process, grid.shape[0] - 1, x.shape[0]
    width = min(window, steps)
    if steps == 0:
        return denoise(x, grid[0], cond).x0, jnp.zeros(batch, jnp.int32)
    sizes = _sizes(process, grid)
    advance = _steps(sampler, denoise, noise, sharding)
    tolerances = jnp.broadcast_to(jnp.asarray(tolerance, jnp.float32), (batch,))

    def iterate(at: _Window) -> _Window:
        places = at.begin[None] + jnp.arange(width, dtype=jnp.int32)[:, None]  # (W, B)
        inside = places < steps
        here = jnp.minimum(places, steps - 1)
        old = at.z[:-1]
        size, size_after = (_over(sizes[i], old) for i in (here, here + 1))
        moved = advance(keys, size * old, grid[here], grid[here + 1], cond) / size_after - old
        new = at.z[:1] + jnp.cumsum(jnp.where(_over(inside, old), moved, 0.0), axis=0)
        change = jnp.sqrt(jax.vmap(mean_features)(jnp.square(new - at.z[1:])))
        settled = jnp.cumprod((change <= tolerances[None]) | ~inside, axis=0)  # finite or not: NaN settles nothing
        running = at.begin < steps
        stride = jnp.where(running, jnp.minimum(1 + settled[:-1].sum(axis=0, dtype=jnp.int32), steps - at.begin), 0)
        points = jnp.concatenate([at.z[:1], new])
        rows = jnp.minimum(jnp.arange(width + 1)[:, None] + stride[None], width)
        z = jnp.take_along_axis(points, _over(rows, points), axis=0)
        return _Window(
            jnp.where(_over(running[None], z), z, at.z), at.begin + stride, at.iterations + running.astype(jnp.int32)
        )

    first = jnp.broadcast_to(x / sizes[0], (width + 1, *x.shape))
    none = jnp.zeros(batch, jnp.int32)
    last = jax.lax.while_loop(lambda at: (at.begin < steps).any(), iterate, _Window(first, none, none))
    return denoise(sizes[-1] * last.z[0], grid[-1], cond).x0, last.iterations


def _sizes(process: Process, grid: Array) -> Array:
    """n at the times."""
    return jnp.sqrt(jnp.square(process.alpha(grid)) + jnp.square(process.sigma(grid)))


def _over(values: Array, x: Array) -> Array:
    """Values of some leading axes of x, with axes of length one for the others."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def _check(sampler: Sampler, x: Array, window: int, tolerance: ArrayLike) -> None:
    if jax.tree.leaves(jax.eval_shape(sampler.init, x)):
        raise ValueError(
            f"{type(sampler).__name__} remembers earlier steps, which parallel steps cannot: take a one-step method, "
            "such as DDIM, DDPM, Euler or Heun"
        )
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window is to be a whole number, 1 or more, got {window!r}")
    if not isinstance(tolerance, jax.core.Tracer) and not np.all(np.asarray(tolerance) >= 0):
        raise ValueError(f"tolerance is to be 0 or more, got {tolerance}")


def _steps(sampler: Sampler, denoise: Denoiser, noise: NoiseSource, sharding: NamedSharding | None) -> Any:
    """``(keys (B,), x (W, B, ...), t (W, B), s (W, B), cond) -> (W, B, ...)``: a step of each, each evaluation of them
    all in one call."""

    def laid(tree: Any) -> Any:
        return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)

    @custom_vmap
    def evaluate(x: Array, t: Array, cond: Cond | None) -> tuple[Array, ...]:
        return _present(denoise(x[None], t[None], _row(cond)))

    @evaluate.def_vmap  # the rows become the batch of one call, in place of a mapped call of batches of one
    def _(size: int, mapped: Any, x: Array, t: Array, cond: Cond | None) -> tuple[tuple[Array, ...], Any]:
        x, t, cond = jax.tree.map(
            lambda leaf, is_mapped: leaf if is_mapped else jnp.broadcast_to(leaf, (size, *leaf.shape)),
            (x, t, cond),
            tuple(mapped),
        )
        parts = _present(denoise(laid(x), t, cond))
        parts = tuple(part[:, None] for part in parts)
        return parts, (True,) * len(parts)

    def one(key: Array | None, x: Array, t: Array, s: Array, cond: Cond | None) -> Array:
        def given(x: Array, t: ArrayLike) -> Prediction:
            return Prediction(*evaluate(x[0], jnp.asarray(t), cond))

        single: Denoise = given
        drawn = noise(None if key is None else key[None], x[None])
        return sampler.step(single, drawn, (), x[None], t, s)[0][0]

    def all_of(keys: Array | None, x: Array, t: Array, s: Array, cond: Cond | None) -> Array:
        width, batch = t.shape
        rows = jnp.tile(jnp.arange(batch), width)
        keys, cond = jax.tree.map(lambda leaf: leaf[rows], (keys, cond))
        flat = laid(x.reshape(width * batch, *x.shape[2:]))
        out = jax.vmap(one)(keys, flat, t.reshape(-1), s.reshape(-1), cond)
        return out.reshape(x.shape)

    return all_of


def _present(prediction: Prediction) -> tuple[Array, ...]:
    return tuple(part for part in prediction if part is not None)


def _row(cond: Cond | None) -> Cond | None:
    return None if cond is None else {name: value[None] for name, value in cond.items()}
