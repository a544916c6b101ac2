"""On which devices a network's activations lie: those of their samples, whatever the weights' sharding.

A weight W that is split over the devices which hold the batch (fsdp) meets activations x split by sample. The compiler
may gather W, or split the result by W's axis and gather x; left to itself it does the latter in a transformer, in every
block: with n devices n times the activations, and the arithmetic of whole batches. So the step says where x lies, at
the edge of each block, and the compiler gathers the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

_samples = jax.make_user_context(default_value=None)


@contextmanager
def samples_over(sharding: NamedSharding) -> Iterator[None]:
    """Within it, `by_sample` splits the first axis as ``sharding`` does; a jitted function is traced for each alone.

    Args:
      sharding: of a batch: the first axis over devices (`jaxdiff.train.sharding.batch_sharding`).
    """
    with _samples(sharding):
        yield


def by_sample(x: Array) -> Array:
    """``x`` itself, ``(B, ...)``, and its gradient, each sample on its devices; as it is outside of `samples_over`.

    So too where the first axis does not split evenly, as under `jax.vmap` over samples.

    >>> by_sample(jax.numpy.ones((2, 3))).shape
    (2, 3)
    """
    sharding: NamedSharding | None = _samples.value
    if sharding is None:
        return x
    axes = sharding.spec[0]
    parts = math.prod(sharding.mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
    if parts == 1 or x.shape[0] % parts:
        return x
    whole = PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    placed: Array = jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, whole))
    return placed
