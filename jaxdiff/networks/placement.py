"""On which devices a network's activations lie: those of their samples, whatever the weights' sharding.

A weight W that is split over the devices which hold the batch (fsdp) meets activations x split by sample. The compiler
may gather W, or split the result by W's axis and gather x; left to itself it does the latter in a transformer, in every
block: with n devices n times the activations, and the arithmetic of whole batches. So the step says where x lies, at
the edge of each block, and the compiler gathers the weights.

A matrix that acts on one vector a sample (modulation) is larger than all vectors of a batch: there it is these that
travel (`by_feature`), and the matrix stays where it is, in both directions.
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


def devices_of_a_batch() -> int:
    """Over how many devices the samples of a batch, and the heads of its attention, are split; 1 outside of
    `samples_over`.

    >>> devices_of_a_batch()
    1
    """
    sharding: NamedSharding | None = _samples.value
    return 1 if sharding is None else math.prod(sharding.mesh.shape.values())


def by_sample(x: Array) -> Array:
    """``x`` itself, ``(B, ...)``, and its gradient, each sample on its devices; as it is outside of `samples_over`.

    So too where the first axis does not split evenly, as under `jax.vmap` over samples.

    >>> by_sample(jax.numpy.ones((2, 3))).shape
    (2, 3)
    """
    sharding: NamedSharding | None = _samples.value
    if sharding is None or not _splits(x, sharding):
        return x
    whole = PartitionSpec(sharding.spec[0], *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    placed: Array = jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, whole))
    return placed


def by_feature(y: Array, inputs: int) -> Array:
    """``y`` itself, ``(B, F)``: of one vector a sample the products with a matrix, computed where its columns lie.

    The last axis of the batch's devices (fsdp) splits the features and not the samples; then each sample goes to its
    devices. Where that would move more than the matrix, and outside of `samples_over`, it is `by_sample` alone.

    Args:
      y: the products.
      inputs: length of the vectors that the matrix acted on.

    >>> by_feature(jax.numpy.ones((2, 6)), 3).shape
    (2, 6)
    """
    sharding: NamedSharding | None = _samples.value
    if sharding is None or not _splits(y, sharding):
        return y
    *others, last = _axes(sharding)
    (batch, features), over = y.shape, sharding.mesh.shape[last]
    rows = batch // parts_of(sharding)
    if over > 1 and features % over == 0 and rows * (over * inputs + features) < inputs * features:
        columns = NamedSharding(sharding.mesh, PartitionSpec(tuple(others), last))
        y = jax.lax.with_sharding_constraint(y, columns)
    return by_sample(y)


def parts_of(sharding: NamedSharding) -> int:
    """Into how many parts a batch is split."""
    return math.prod(sharding.mesh.shape[axis] for axis in _axes(sharding))


def _axes(sharding: NamedSharding) -> tuple[str, ...]:
    axes = sharding.spec[0]
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _splits(x: Array, sharding: NamedSharding) -> bool:
    parts = parts_of(sharding)
    return parts > 1 and x.shape[0] % parts == 0
