"""The law of what a stochastic sampler returns, exactly: mean and variance propagated through affine steps.

On Gaussian data the denoiser is affine in x, and so, whatever a sampler remembers and however many noises it draws, is
the whole integration in its start and its noises z_k,

    x = a + b x_start + sum_k c_k z_k,     so  E x = a + b E x_start,   Var x = b^2 Var x_start + sum_k c_k^2.     (1)

The coefficients are read off from one run of as many coordinates as there are terms: coordinates do not know of each
other, and each gets a unit of one noise alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.noise import Noise


def _count_draws(sampler: jd.Sampler, exact: jd.GaussianDenoiser, ts: Array) -> int:
    """How many times the code of one step calls for noise."""
    calls = 0

    def noise(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> Array:
        nonlocal calls
        calls += 1
        return jnp.zeros((1, 1))

    def step(x: Array) -> Array:
        return sampler.step(lambda x, t: exact(x, t), noise, sampler.init(x), x, ts[0], ts[1])[0]

    jax.eval_shape(step, jnp.zeros((1, 1)))
    return max(1, calls)


def propagate(
    sampler: jd.Sampler, exact: jd.GaussianDenoiser, ts: Array, num_steps: ArrayLike | None = None, loops: int = 1
) -> tuple[Array, Array]:
    """Mean and variance at the end of samples that start from the exact law at ts[0]: no Monte Carlo. To be jitted.

    Args:
      sampler: any whose steps are affine and treat coordinates alike; not one that takes norms, nor `Restart`.
      exact: with scalar mean and std.
      ts: ``(n,)``.
      num_steps: steps to take of them, which may be traced; all by default.
      loops: at least how often a step's draw is made in a loop, its salts counting on.
    """
    process, draws = sampler.process, _count_draws(sampler, exact, ts)
    width = 2 + (len(ts) - 1) * draws * loops
    start = process.alpha(ts[0]) * exact.mean
    std = jnp.sqrt(jnp.square(process.alpha(ts[0]) * exact.std) + jnp.square(process.sigma(ts[0])))
    x = jnp.broadcast_to(start, (1, width)).at[0, 1].add(std)

    def unit(i: ArrayLike) -> Noise:
        calls = 0

        def noise(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> Array:
            nonlocal calls
            place = 2 + (i * draws + calls) * loops + jnp.asarray(salt) % loops
            calls += 1
            return jax.nn.one_hot(place, width)[None]

        return noise

    def body(i: Array, carry: tuple) -> tuple:
        x, state = carry
        return sampler.step(lambda x, t: exact(x, t), unit(i), state, x, ts[i], ts[i + 1])

    last, _ = jax.lax.fori_loop(0, len(ts) - 1 if num_steps is None else num_steps, body, (x, sampler.init(x)))
    return last[0, 0], jnp.square(last[0, 1:] - last[0, 0]).sum()
