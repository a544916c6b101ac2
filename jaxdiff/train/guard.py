"""Which steps are not taken: a loss or gradient that is not finite, or a gradient far above the usual.

With g the norm of a step's gradient (before clipping) and l its loss,

    (1)  m    = median of the last 64 norms g of steps that were taken    (infinite until there are 33)
    (2)  bad  = l or g is not finite, or g > spike m
    (3)  r    = r + 1 if bad, else 0;  s = s + 1 if bad                   skipped in a row, and in all
    (4)  the step is taken if it is not bad and r < K                     K = max_skipped

A step that is not taken leaves parameters, average, optimizer and the loss's history as they are, bit for bit; only the
step's number, and with it the position in the data and the random numbers, moves on. At r = K everything stands still,
(3) included, until the host has seen it and ends the run: the state is then that from before the first of the K steps,
but for its counters, and `jaxdiff.train.skipped.rewound` gives it back.

(1) to (4) are a part of the training state, so a restart decides as the unbroken run would have. A median is not moved
by the few outliers that it is to find, and needs no memory of how long it has been collected.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdiff.record import record

NORMS = 64


@record
class Guard:
    """What (1) to (4) remember.

    Attributes:
        norms: float32 (64,), gradient norms of the last steps that were taken, the newest last; infinite where there
            are none yet.
        skipped: int32 (), s: steps skipped in all.
        in_a_row: int32 (), r: steps skipped since the last that was taken.
    """

    norms: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array


def new_guard() -> Guard:
    """That of a run which has seen nothing."""
    return Guard(jnp.full(NORMS, jnp.inf, jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def judge(
    guard: Guard, loss: jax.Array, grad_norm: jax.Array, *, spike: float | None, max_skipped: int
) -> tuple[jax.Array, Guard]:
    """Equations (1) to (4).

    Args:
        guard: from the step before.
        loss, grad_norm: of this step, ().
        spike: a norm of more than so many medians is bad, above 1; None: only what is not finite is.
        max_skipped: K, at least 1.

    Returns:
        Whether the step is taken, bool (), and the guard after it.

    Example:
        >>> guard = new_guard()
        >>> for norm in 40 * [1.0] + [9.0, float("nan"), 2.0, 9.0]:
        ...     taken, guard = judge(guard, jnp.zeros(()), jnp.asarray(norm), spike=5.0, max_skipped=10)
        >>> bool(taken), int(guard.skipped), int(guard.in_a_row), float(guard.norms[-1])
        (False, 3, 1, 2.0)
    """
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if spike is not None:
        usual = jnp.sort(guard.norms)[NORMS // 2]  # (1), infinite while most of them are
        bad |= (grad_norm > spike * usual) & (usual > 0)
    going = guard.in_a_row < max_skipped
    taken = going & ~bad
    counted = (going & bad).astype(jnp.int32)
    newest = jnp.concatenate([guard.norms[1:], grad_norm.astype(jnp.float32)[None]])
    after = Guard(
        norms=jnp.where(taken, newest, guard.norms),
        skipped=guard.skipped + counted,
        in_a_row=jnp.where(taken, 0, guard.in_a_row + counted),
    )
    return taken, after
