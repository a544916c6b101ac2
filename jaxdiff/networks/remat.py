"""What the backward pass computes again rather than keeps (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost", https://arxiv.org/abs/1604.06174).

The gradient of y = f(x) needs what f computed on its way. For a network of blocks,

    "none"   everything that the blocks' derivatives ask for is kept
    "dots"   the results of convolutions and of matrix products with weights are kept; what lies between them
             (normalisations, activations, attention over the tokens) is computed again: little time, much memory
    "full"   only what enters a block is kept: least memory, about a third more time (one more forward pass)

The gradients are the same but for the order of floating-point operations.

Blocks under a `jax.lax.scan` save this memory everywhere. Blocks in a row save it where XLA orders operations by
memory, as on GPUs (not measured). On a CPU it computes again too early, even with its memory-saving scheduler: next to
nothing is saved (docs/performance.md). There micro-batches, `train.accumulate`, save a U-Net's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "full", "dots"]
Block = TypeVar("Block", bound=Callable[..., Any])
_CONVOLUTION = "convolution"
_nothing = jax.make_user_context(default_value=False)


def check_remat(remat: str) -> None:
    """Refuses what is not a `Remat`.

    >>> check_remat("some")
    Traceback (most recent call last):
    ...
    ValueError: remat='some' must be one of none, full, dots
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat={remat!r} must be one of {', '.join(get_args(Remat))}")


def convolved(x: Array) -> Array:
    """Marks the result of a convolution, which "dots" keeps: ``x`` itself."""
    return checkpoint_name(x, _CONVOLUTION)


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Within it, `recomputed` gives blocks back as they are: for counting what a network has to compute."""
    with _nothing(True):
        yield


def recomputed(block: Block, remat: Remat, *, scanned: bool = False) -> Block:
    """A block of a network whose derivative computes again what ``remat`` says. Weights may be closed over.

    Args:
      block: any function of arrays.
      remat: "none", "full" or "dots".
      scanned: it is the body of a `jax.lax.scan`, where XLA has no chance to merge the second computation with the
        first, and need not be kept from it.

    >>> import jax.numpy as jnp
    >>> jax.grad(recomputed(jnp.sin, "full"))(0.0)
    Array(1., dtype=float32, weak_type=True)
    """
    if remat == "none" or _nothing.value:
        return block
    policies = jax.checkpoint_policies
    kept = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(_CONVOLUTION)
    )
    made: Any = jax.checkpoint(block, prevent_cse=not scanned, policy=kept if remat == "dots" else None)
    return made
