"""The whole way from noise to data."""

from __future__ import annotations

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.noise import NoiseSource, step_noise
from jaxdiff.sampling.base import Sampler, sample
from jaxdiff.sampling.keep import Keep


def sample_path(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Array | None,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    noise: NoiseSource = step_noise,
) -> tuple[Array, Array]:
    """As `sample`, keeping the way: ``(xs, x0)`` with xs ``(n, B, ...)``, the samples at each of the n times."""
    every = Keep(tuple(range(np.size(ts))))
    x0, kept = sample(sampler, denoise, keys, x, ts, cond, noise=noise, keep=every)
    return kept.x, x0
