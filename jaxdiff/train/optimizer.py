"""The optimizer: global-norm clipping, AdamW, and a learning rate that warms up and then stays, or falls.

With n the steps done, w the warm-up, N the run's length, and f the share of the peak left at the end:

    (1)  warm-up       lr n / w                                          n < w  (w = 0: none)
    (2)  constant      lr
    (3)  cosine        lr (f + (1 - f) (1 + cos(pi (n - w) / (N - w))) / 2)
    (4)  inverse_sqrt  lr / sqrt(max(n / r, 1))                          r = decay_start, by default w

Weight decay is AdamW's (Loshchilov and Hutter 2019): decoupled, times the learning rate. It acts on matrices and
convolution kernels only; biases, norm scales and leaves of one axis or none are left alone (`decays`).

Adam keeps two numbers a parameter, the moments; in 16 or 8 bits they are `jaxdiff.train.low_precision`'s.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from jaxdiff.train.low_precision import StateDtype, scale_by_short_adam

ScheduleName = Literal["constant", "cosine", "inverse_sqrt"]
_NEVER_DECAYED = ("bias", "scale")


def make_schedule(
    lr: float,
    *,
    steps: int,
    schedule: ScheduleName = "constant",
    warmup: int = 0,
    final_fraction: float = 0.0,
    decay_start: int | None = None,
) -> optax.Schedule:
    """Learning rate as a function of the steps done, equations (1) to (4).

    Args:
        lr: peak learning rate, above 0.
        steps: length N of the run, at least 1 (used by cosine).
        schedule: "constant", "cosine" or "inverse_sqrt".
        warmup: steps w of linear warm-up from 0, at least 0; a shorter run ends within it.
        final_fraction: f, the share of `lr` left at step N (cosine), in [0, 1].
        decay_start: r, the step from which inverse_sqrt falls; None: max(warmup, 1).

    Returns:
        `step -> learning rate`, float32 ().

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> rate = make_schedule(1e-3, steps=1000, schedule="cosine", warmup=100)
        >>> [round(float(rate(n)), 6) for n in (0, 50, 100, 550, 1000)]
        [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    if lr <= 0:
        raise ValueError(f"lr is {lr}; it must be above 0, for instance 1e-3")
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; it must be at least 0")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"final_fraction is {final_fraction}; it must be in [0, 1]")
    start = max(warmup, 1) if decay_start is None else decay_start
    if start < max(warmup, 1):
        raise ValueError(
            f"decay_start is {decay_start}; it must be at least 1 and not within the {warmup} steps of warm-up"
        )
    match schedule:
        case "constant":
            body: optax.Schedule = optax.constant_schedule(lr)
        case "cosine":
            body = optax.cosine_decay_schedule(lr, max(steps - warmup, 1), alpha=final_fraction)
        case "inverse_sqrt":
            # join_schedules counts from the end of the warm-up, (4) from the run's start.
            body = lambda n: lr * jax.lax.rsqrt(jnp.maximum((jnp.asarray(n, jnp.float32) + warmup) / start, 1.0))  # noqa: E731
        case _:
            raise ValueError(f"schedule is {schedule!r}; expected 'constant', 'cosine' or 'inverse_sqrt'")
    if warmup == 0:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), body], [warmup])


def decays(params: Any) -> Any:
    """Which leaves weight decay acts on: those of two axes or more that are not named `bias` or `scale`.

    The name counts as well as the shape because blocks that are scanned over are stacked: their biases have two axes.

    Example:
        >>> import jax.numpy as jnp
        >>> decays({"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros((4, 3))}, "gain": jnp.zeros(3)})
        {'dense': {'bias': False, 'kernel': True}, 'gain': False}
    """

    def decide(path: tuple[Any, ...], leaf: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        return leaf.ndim >= 2 and name not in _NEVER_DECAYED

    return jax.tree_util.tree_map_with_path(decide, params)


def make_optimizer(
    *,
    lr: float,
    steps: int,
    schedule: ScheduleName = "constant",
    warmup: int = 0,
    final_fraction: float = 0.0,
    decay_start: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    state_dtype: StateDtype = "float32",
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clip, then AdamW at a scheduled rate. Any other optax transformation can stand in its place.

    Args:
        lr, steps, schedule, warmup, final_fraction, decay_start: see `make_schedule`.
        b1, b2: Adam's decay rates, in [0, 1).
        eps: Adam's epsilon, above 0.
        weight_decay: decoupled weight decay, at least 0; 0 is plain Adam.
        clip_norm: largest global norm of a gradient, above 0; None: no clipping.
        state_dtype: of Adam's moments: "float32", 8 bytes a parameter; "bfloat16", 4; "int8", about 2
            (`jaxdiff.train.low_precision`).

    Returns:
        The transformation, and the schedule (for the log).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, rate = make_optimizer(lr=1e-3, steps=100, warmup=10)
        >>> opt_state = optimizer.init({"w": jnp.zeros((2, 2))})
        >>> round(float(rate(10)), 6)
        0.001
    """
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ValueError(f"b1 and b2 are {b1} and {b2}; both must be in [0, 1)")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
    if eps <= 0:
        raise ValueError(f"eps is {eps}; it must be above 0")
    if clip_norm is not None and clip_norm <= 0:
        raise ValueError(f"clip_norm is {clip_norm}; it must be above 0, or None for no clipping")
    if state_dtype not in get_args(StateDtype):
        raise ValueError(f"state_dtype is {state_dtype!r}; expected {', '.join(map(repr, get_args(StateDtype)))}")
    rate = make_schedule(
        lr, steps=steps, schedule=schedule, warmup=warmup, final_fraction=final_fraction, decay_start=decay_start
    )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    if state_dtype == "float32":
        return optax.chain(clip, optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decays)), rate
    adamw = optax.chain(
        scale_by_short_adam(b1, b2, eps, state_dtype=state_dtype),
        optax.add_decayed_weights(weight_decay, decays),
        optax.scale_by_learning_rate(rate),
    )
    return optax.chain(clip, adamw), rate
