"""Adam with its two moments in 16 or 8 bits: a quarter, or an eighth, of the memory goes to them that float32 takes.

Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1), with g the gradient of step n:

    (1)  m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) g^2
    (2)  update = [m / (1 - b1^n)] / (sqrt(v / (1 - b2^n)) + eps)

Here m and v are read from their short form, (1) and (2) are done in float32, and m and v are written back rounded.

**Rounding must be random.** A step moves v by (1 - b2)(g^2 - v), downwards by (1 - b2) v at most. bfloat16 has 8
significant bits: half of its spacing is at least 2^-9 of a value. So

    (3)  to the nearest, v can never fall while 1 - b2 < 2^-9, about 0.002, and b2 = 0.999 is usual:

one large gradient would hold the learning rate of its weight down for ever. With levels lo <= x <= hi,

    (4)  round(x) = hi with probability (x - lo) / (hi - lo), else lo,    E[round(x)] = x

lets the expectations of m and v follow (1) exactly, whatever the spacing (Gupta et al. 2015,
https://arxiv.org/abs/1502.02551, section 3). The randomness is a hash of (step, leaf, place): nothing more to store,
the same at any sharding, and a run that goes on draws what the unbroken one would have drawn.

**8 bits** (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", https://arxiv.org/abs/2110.02861,
section 2): values are stored by blocks of at most 256 neighbours, as codes of x / s, with s the largest |x| of the
block, float32. What counts for (2) is the relative error, so the levels are evenly spaced in the logarithm, where the
paper's dynamic tree is so by decades:

    (5)  m:  sign(c) 10^(-5 (127 - |c|) / 126),  c = 0 is 0        int8, spacing 9.6%, five decades and 0
    (6)  v:  10^(-8 (255 - c) / 255)                                uint8, spacing 7.5%, 3.7% of sqrt(v), eight decades

Smaller values of m round to 0 or the smallest level by (4). Smaller values of v are raised to the smallest level: no
zero stands in the denominator of (2) (the zero-point problem of Li et al. 2023, https://arxiv.org/abs/2309.01507,
section 4), and a raised v only shortens a step. The largest value of a block is exact.

What it costs: for spacing d, the noise of (4) has variance (1 - b2) v^2 d E|g^2/v - 1| a step, hence d/2 E|g^2/v - 1|
of v^2 when (1) has settled. The length of a step (2) then scatters by about half its root: 2% in bfloat16, 9% in 8
bits, without bias, on top of the gradient's own noise.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff.record import record

StateDtype = Literal["float32", "bfloat16", "int8"]
BLOCK = 256
SMALLEST = 4096  # leaves of fewer values stay float32 in 8-bit states, as in the authors' bitsandbytes
LEAST_BLOCK = 32  # as do those whose shape has no larger block: the scales would weigh more than the codes save


class _Levels(NamedTuple):
    """Equation (5) or (6): `top` is the code of 1, `spacing` the step of the natural logarithm."""

    top: int
    spacing: float


SIGNED = _Levels(127, 5 * math.log(10) / 126)
UNSIGNED = _Levels(255, 8 * math.log(10) / 255)


@record
class Blocks:
    """An array by blocks, (5) or (6): codes of its own shape, int8 with sign or uint8 without, and a scale a block."""

    codes: jax.Array
    scales: jax.Array


def block_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of the blocks of an array: whole last axes, and a part of the next, of at most 256 values.

    The blocks tile the array in its own shape, so codes are sharded like the parameter that they belong to.

    Example:
        >>> block_of((3, 3, 64, 128)), block_of((128, 1152)), block_of((512, 1009))
        ((1, 1, 2, 128), (1, 192), (1, 1))
    """
    sides, size = [1] * len(shape), 1
    for axis in reversed(range(len(shape))):
        sides[axis] = next(side for side in range(BLOCK // size, 0, -1) if shape[axis] % side == 0)
        size *= sides[axis]
        if sides[axis] < shape[axis]:
            break
    return tuple(sides)


def in_blocks(shape: tuple[int, ...]) -> bool:
    """Whether a leaf of this shape is stored in 8 bits; others stay float32.

    Example:
        >>> in_blocks((128, 128)), in_blocks((128,)), in_blocks((512, 1009))
        (True, False, False)
    """
    return math.prod(shape) >= SMALLEST and math.prod(block_of(shape)) >= LEAST_BLOCK


def rounding_bits(shape: tuple[int, ...], step: jax.Array | int, leaf: int) -> jax.Array:
    """Random bits, uint32 of `shape`: a hash of the step, the leaf's number and the place in the leaf.

    The hash is the finalizer of MurmurHash3 (Appleby 2011), applied twice. It is plain arithmetic, so that it fuses
    with the update; the generators of `jax.random` would write the bits to memory first.

    Example:
        >>> a, b = rounding_bits((4, 8), 1, 0), rounding_bits((4, 8), 2, 0)
        >>> a.dtype.name, bool((a != b).all())
        ('uint32', True)
    """
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    salt = _mix(jnp.asarray(step).astype(jnp.uint32) ^ _mix(jnp.uint32(leaf + 1)))
    return _mix(_mix(place) ^ salt)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """(4) for bfloat16: the 16 bits that are cut off carry over with their share as the probability.

    Args:
        x: float32, any shape.
        bits: uint32 of the same shape, random in the lower 16 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.full(4096, 1 + 2**-9)                          # a quarter of the way from 1 to 1 + 2^-7
        >>> rounded = to_bfloat16(x, rounding_bits(x.shape, 0, 0)).astype(jnp.float32)
        >>> sorted(set(rounded.tolist())), round(float((rounded > 1).mean()), 1)
        ([1.0, 1.0078125], 0.2)
    """
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carried = (whole + (bits & jnp.uint32(0xFFFF))) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(carried, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def to_blocks(x: jax.Array, bits: jax.Array, *, signed: bool) -> Blocks:
    """8 bits a value, (4) on the levels of (5) or (6).

    Args:
        x: float32 of any shape; not negative unless `signed`.
        bits: uint32 of the same shape, random in the lower 16 bits.
        signed: (5), else (6).

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[4.0, 0.0, -4.0]])
        >>> stored = to_blocks(x, rounding_bits(x.shape, 0, 0), signed=True)
        >>> stored.codes.tolist(), stored.scales.tolist(), from_blocks(stored).tolist()
        ([[127, 0, -127]], [[4.0]], [[4.0, 0.0, -4.0]])
    """
    top, spacing = SIGNED if signed else UNSIGNED
    block = block_of(x.shape)
    tiles = [part for side, size in zip(block, x.shape, strict=True) for part in (size // side, side)]
    scales = jnp.max(jnp.abs(x).reshape(tiles), axis=tuple(range(1, 2 * x.ndim, 2)))
    share = jnp.abs(x) / _spread(jnp.where(scales > 0, scales, 1.0), x.shape)
    lowest = 1 if signed else 0  # code of the smallest level; below it there is 0, which (6) does not keep
    code = jnp.clip(jnp.floor(top + jnp.log(share) / spacing), lowest - 1, top)
    low = jnp.where(code < lowest, 0.0, jnp.exp((code - top) * spacing))
    high = jnp.exp((code + 1 - top) * spacing)
    chance = ((bits & jnp.uint32(0xFFFF)).astype(jnp.float32) + 0.5) * 2.0**-16
    code = jnp.clip(code + (chance * (high - low) < share - low), 0, top)
    return Blocks((jnp.sign(x) * code).astype(jnp.int8) if signed else code.astype(jnp.uint8), scales)


def from_blocks(stored: Blocks) -> jax.Array:
    """The float32 values of (5) or (6)."""
    codes = stored.codes.astype(jnp.float32)
    if stored.codes.dtype == jnp.uint8:
        level = jnp.exp((codes - UNSIGNED.top) * UNSIGNED.spacing)
    else:
        level = jnp.sign(codes) * jnp.exp((jnp.abs(codes) - SIGNED.top) * SIGNED.spacing)
    return level * _spread(stored.scales, stored.codes.shape)


def _spread(scales: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Each block's scale at all of its places.
    apart = [part for count in scales.shape for part in (count, 1)]
    tiles = [part for count, size in zip(scales.shape, shape, strict=True) for part in (count, size // count)]
    return jnp.broadcast_to(scales.reshape(apart), tiles).reshape(shape)


def scale_by_short_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, state_dtype: Literal["bfloat16", "int8"]
) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, equations (1) and (2), whose state is kept short between the steps.

    Args:
        b1, b2: decay rates, in [0, 1).
        eps: epsilon, above 0.
        state_dtype: "bfloat16", or "int8": `Blocks` for the leaves that `in_blocks` chooses, float32 for the others.

    Returns:
        A transformation with a state of `optax.ScaleByAdamState`. Its first update equals `optax.scale_by_adam`'s.

    Raises:
        ValueError: another state_dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
        >>> state = scale_by_short_adam(state_dtype="int8").init(params)
        >>> state.nu["kernel"].codes.dtype.name, state.nu["kernel"].scales.shape, state.nu["bias"].dtype.name
        ('uint8', (16, 1), 'float32')
    """
    if state_dtype not in ("bfloat16", "int8"):
        raise ValueError(f"state_dtype is {state_dtype!r}; expected 'bfloat16' or 'int8' (float32 is optax's own)")

    def keep(x: jax.Array, bits: jax.Array, signed: bool) -> jax.Array | Blocks:
        if state_dtype == "bfloat16":
            return to_bfloat16(x, bits)
        return to_blocks(x, bits, signed=signed) if in_blocks(x.shape) else x

    def init(params: Any) -> optax.ScaleByAdamState:
        def zero(signed: bool) -> Any:
            # Zeros are kept as zeros. Only their shapes are asked for: XLA would compute the rest as it compiles.
            nothing = lambda p: keep(jnp.zeros(p.shape, jnp.float32), jnp.zeros(p.shape, jnp.uint32), signed)  # noqa: E731
            short = jax.eval_shape(lambda: jax.tree.map(nothing, params))
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), short)

        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zero(True), zero(False))

    def update(updates: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = state.count + 1
        grads, tree = jax.tree.flatten(updates)
        means, squares = (jax.tree.leaves(moment, is_leaf=_is_blocks) for moment in (state.mu, state.nu))
        steps, new_means, new_squares = [], [], []
        for leaf, (g, m, v) in enumerate(zip(grads, means, squares, strict=True)):
            m, v = _read(m), _read(v)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * jnp.square(g)
            steps.append(m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + eps))
            bits = rounding_bits(g.shape, count, leaf)
            new_means.append(keep(m, bits, True))
            new_squares.append(keep(v, bits >> 16, False))
        done = (jax.tree.unflatten(tree, leaves) for leaves in (new_means, new_squares))
        return jax.tree.unflatten(tree, steps), optax.ScaleByAdamState(count, *done)

    return optax.GradientTransformation(init, update)


def _is_blocks(value: Any) -> bool:
    return isinstance(value, Blocks)


def _read(stored: jax.Array | Blocks) -> jax.Array:
    return from_blocks(stored) if isinstance(stored, Blocks) else stored.astype(jnp.float32)
