"""Sampling as one jitted function: from keys to images, whatever the sampler, the guidance and the devices."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.compiled import Kept
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.guidance import ClassifierFree, Clipped, SparseGuidance
from jaxdiff.networks.placement import samples_over
from jaxdiff.sampling import sample


@functools.partial(jax.jit, static_argnames=("shape", "clip", "sharding"))
def generate(
    denoise: NetworkDenoiser,
    sampler: Any,
    keys: Array,
    ts: Array,
    cond: Mapping[str, Array] | None,
    weight: Array | None,
    null: Mapping[str, Array] | None,
    sparse: tuple[Array | None, Array, Array] | None = None,
    *,
    shape: tuple[int, ...],
    clip: bool,
    sharding: NamedSharding | None,
) -> Array:
    """From noise to images, ``(B, *shape)``. Everything but the last three is data: other values do not compile again.

    Args:
      denoise: the network's denoiser.
      sampler: from `jaxdiff.sampling`.
      keys: ``(B,)``, one a sample.
      ts: ``(n,)`` times, falling.
      cond: leaves ``(B,)``.
      weight: of guidance, ``()``; None: no guidance.
      null: what stands for no condition, where guided.
      sparse: ``every``, ``rho_min`` and ``rho_max`` of `SparseGuidance`; None: guidance everywhere.
      shape: of one sample.
      clip: limit the predicted image to [-1, 1] at every step.
      sharding: of the batch; None: not split.
    """
    if sharding is not None:
        keys, cond = jax.lax.with_sharding_constraint((keys, cond), sharding)
    process = denoise.process
    guided: Any = denoise
    if weight is not None and null is not None:
        guided = ClassifierFree(denoise, weight, null, sequential=sparse is not None and denoise.cache is not None)
        guided = guided if sparse is None else SparseGuidance(guided, process, *sparse)
    if clip:
        guided = Clipped(guided, process)
    with contextlib.nullcontext() if sharding is None else samples_over(sharding):
        images = sample(sampler, guided, keys, process.prior_sample(keys, shape, ts[0]), ts, cond)
    if sharding is not None:  # whole on every device, so that every host can read all of it
        images = jax.lax.with_sharding_constraint(images, NamedSharding(sharding.mesh, PartitionSpec()))
    return images


def generate_kept(folder: str, *arguments: Any, **static: Any) -> Array:
    """`generate` by a program that a folder keeps compiled (`jaxdiff.compiled`)."""
    images: Array = _kept(folder)(generate, arguments, static)
    return images


@functools.lru_cache(maxsize=8)
def _kept(folder: str) -> Kept:
    return Kept(folder)
