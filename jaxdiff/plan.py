"""A batch of samples that is ready to be drawn, and the program that draws it.

A `Plan` is a pytree whose numbers are data: another weight of guidance, other conditions, times, keys or parameters
compile nothing. `jaxdiff.model` makes plans.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.denoiser import Denoiser, NetworkDenoiser
from jaxdiff.guidance import Clipped, Guidance, apply
from jaxdiff.inverse import Known, noised, remaining
from jaxdiff.networks.placement import samples_over
from jaxdiff.noise import Noise, sample_keys, step_noise
from jaxdiff.record import field, record
from jaxdiff.sampling import Keep, integrate, sample


@record
class Plan:
    """One batch of samples, ready to be drawn; see the top of `jaxdiff.model`.

    Args:
      plain: the network's denoiser.
      sampler: the method.
      ts: ``(n,)`` falling times.
      cond: conditions ``(B, ...)`` by name; {} where there are none.
      guide: elements of guidance.
      nulls: what stands for "no condition" in guidance.
      codec: of the data.
      x: samples at ``ts[0]`` to start from ``(B, ...)``; None: drawn from the prior.
      shape: of one x; static.
      bounds: that predictions are limited to; static.
      support: ``(x, cond) -> x``, the projection of noise onto where the data lies; static. None: the whole space.
      ends: whether the last denoising is taken; without it samples are x at the last time; static.
    """

    plain: NetworkDenoiser
    sampler: Any
    ts: Array
    cond: dict[str, Any]
    guide: tuple[Guidance, ...]
    nulls: dict[str, Any]
    codec: Any
    x: Array | None = None
    shape: tuple[int, ...] = field(default=(), pytree_node=False)
    bounds: tuple[float, float] | None = field(default=None, pytree_node=False)
    support: Callable[[Array, Any], Array] | None = field(default=None, pytree_node=False)
    ends: bool = field(default=True, pytree_node=False)

    @property
    def denoise(self) -> Denoiser:
        """The denoiser with its guidance, limited to the bounds."""
        process = self.plain.process
        guided = apply(self.guide, self.plain, process, self.nulls)
        apart = any(getattr(element, "apart", False) for element in self.guide)
        return guided if self.bounds is None else Clipped(guided, process, *self.bounds, apart=apart)

    def init(self, keys: Array) -> Array:
        """x at the first time ``(B, ...)``."""
        if self.x is not None:
            return self.x
        return self._projected(self.plain.process.prior_sample(keys, self.shape, self.ts[0]))

    def finish(self, x0: Array) -> dict[str, Any]:
        """The stored record of x0."""
        decoded: dict[str, Any] = self.codec.decode(x0, self.cond)
        return decoded

    def noise(self, keys: Array | None, x: Array) -> Noise:
        """Noise of the steps: `jaxdiff.noise.step_noise`, projected as the first x is."""
        drawn = step_noise(keys, x)
        return drawn if self.support is None else lambda t, s, salt=0: self._projected(drawn(t, s, salt))

    def _projected(self, x: Array) -> Array:
        return x if self.support is None else self.support(x, self.cond)


@functools.partial(jax.jit, static_argnames=("decode", "keep", "sharding"))
def draw(
    plan: Plan, keys: Array, *, decode: bool = True, keep: Keep | None = None, sharding: NamedSharding | None = None
) -> tuple[Any, Any, Array]:
    """Samples of a plan.

    Args:
      plan: of B samples.
      keys: ``(B,)``, one a sample.
      decode: give the stored record, else x0; static.
      keep: what to give beside the samples (`jaxdiff.sampling.Keep`); static.
      sharding: of the batch; static. None: not split.

    Returns:
      The record, or x0 ``(B, ...)``; what was kept, () without ``keep``; and which samples are finite ``(B,)``.
    """
    plan, keys = split_over(plan, keys, sharding)
    with contextlib.nullcontext() if sharding is None else samples_over(sharding):
        start: tuple[Any, ...] = (plan.sampler, plan.denoise, keys, plan.init(keys), plan.ts, plan.cond or None)
        noise = plan.noise
        kept: Any = ()
        if not plan.ends:
            x0 = integrate(*start, noise=noise)[0]
        elif keep is None:
            x0 = sample(*start, noise=noise)
        else:
            x0, kept = sample(*start, noise=noise, keep=keep)
        drawn = (plan.finish(x0) if decode else x0), kept, jnp.isfinite(x0.reshape(x0.shape[0], -1)).all(axis=1)
    return gathered(drawn, sharding)


@functools.partial(jax.jit, static_argnames=("sharding",))
def integrated(plan: Plan, ts: Array, *, sharding: NamedSharding | None = None) -> Array:
    """x at the last of some times from the plan's x at their first, by its sampler; ``sharding`` as in `draw`."""
    plan, _ = split_over(plan, None, sharding)
    with contextlib.nullcontext() if sharding is None else samples_over(sharding):
        x = integrate(plan.sampler, plan.denoise, None, jnp.asarray(plan.x), ts, plan.cond or None)[0]
    return gathered(x, sharding)


def split_over(plan: Plan, keys: Array | None, sharding: NamedSharding | None) -> tuple[Plan, Any]:
    if sharding is None:
        return plan, keys
    keys, cond, nulls, x = jax.lax.with_sharding_constraint((keys, plan.cond, plan.nulls, plan.x), sharding)
    return dataclasses.replace(plan, cond=cond, nulls=nulls, x=x), keys


def gathered(tree: Any, sharding: NamedSharding | None) -> Any:
    """Whole on every device, so that every host can read all of it."""
    whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
    return tree if whole is None else jax.lax.with_sharding_constraint(tree, whole)


def rows_of(plan: Plan, rows: slice, size: int, n: int) -> Plan:
    """The plan of some of its n samples, filled up to ``size`` by its last."""

    def cut(leaf: Any) -> Array:
        part = jnp.asarray(leaf[rows])
        return jnp.concatenate([part, jnp.repeat(part[-1:], size - len(part), axis=0)]) if len(part) < size else part

    parts = jax.tree.map(cut, (plan.cond, plan.nulls, plan.x))

    def weight(leaf: Any) -> Any:
        return cut(leaf) if np.ndim(leaf) and len(leaf) == n else leaf

    weights = tuple(element.rows(weight) for element in plan.guide)
    cond, nulls, x = parts
    return dataclasses.replace(plan, cond=cond, nulls=nulls, x=x, guide=weights)


def in_batches(
    plan: Plan,
    key: Array,
    n: int,
    size: int,
    *,
    start: int,
    program: Callable[..., Any],
    decode: bool,
    keep: Keep | None,
    sharding: NamedSharding | None,
) -> tuple[Any, Any]:
    """The n samples of a plan, so many at a time, and what was kept.

    Raises:
      ValueError: samples that are to be decoded and are not finite.
    """
    parts = []
    for first in range(0, n, size):
        mine = rows_of(plan, slice(first, first + size), size, n)
        keys = sample_keys(key, start + first, size)
        found = program(mine, keys, decode=decode, keep=keep, sharding=sharding)
        parts.append(jax.tree.map(np.asarray, found))
    given, kept, finite = joined(parts, n)
    if decode and not finite.all():  # as bytes they would be silent black squares
        raise ValueError(
            f"{int((~finite).sum())} of {n} samples are not finite: the sampler or the network diverged; "
            "decode=False gives them as they are"
        )
    return given, kept


def joined(parts: list[Any], n: int) -> tuple[Any, Any, NDArray[np.bool_]]:
    """The first n samples of all batches; what was kept has its steps before the samples."""

    def join(axis: int) -> Callable[..., NDArray[Any]]:
        return lambda *leaves: np.take(np.concatenate(leaves, axis), np.arange(n), axis)

    given, kept, finite = zip(*parts, strict=True)
    return jax.tree.map(join(0), *given), jax.tree.map(join(1), *kept), join(0)(*finite)


def from_image(
    plan: Plan, keys: Array, image: ArrayLike | None, strength: float | None = None, mask: ArrayLike | None = None
) -> Plan:
    """The plan of samples that begin as an image with noise on it, or keep a part of it.

    Args:
      plan: of n samples.
      keys: ``(n,)``.
      image: see `encoded`; None: the plan as it is.
      strength: see `jaxdiff.inverse.sdedit`; None: 0.8, with a mask 1.
      mask: see `mask_of`.

    Raises:
      ValueError: a plan that has an x, or an argument that does not fit it.
    """
    if image is None:
        if mask is not None or strength is not None:
            raise ValueError(f"{'mask' if strength is None else 'strength'} is of an image: give image=... too")
        return plan
    if plan.x is not None:
        raise ValueError("image and x are both what samples begin as: give one of them")
    x0 = encoded(plan.codec, plan.shape, image, len(keys))
    ts = remaining(plan.ts, (0.8 if mask is None else 1.0) if strength is None else strength)
    guide = plan.guide
    if mask is not None:
        guide = (*guide, Known(x0, jnp.asarray(mask_of(plan.codec, plan.shape, mask, len(keys)))))
    return dataclasses.replace(plan, ts=ts, guide=guide, x=noised(plan.plain.process, x0, ts[0], keys))


def check_part(start: float | None, end: float | None, *, begun: bool, pictured: bool) -> None:
    """Checks which part of the way from noise to data is asked for.

    Args:
      start, end: see `part_of`.
      begun: whether there is an x to go on from.
      pictured: whether samples begin as a picture.

    Raises:
      ValueError: a share out of range, a start that is not before the end, or nothing to go on from.
    """
    for name, share in (("denoising_start", start), ("denoising_end", end)):
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1):
            raise ValueError(f"{name} is a share of the way above 0 and below 1, such as 0.8, got {share!r}")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"denoising_start={start} is not below denoising_end={end}: nothing is left between them")
    if start is not None and pictured:
        raise ValueError("denoising_start goes on from x, and image begins anew: leave one of them out")
    if start is not None and not begun:
        raise ValueError(f"denoising_start goes on from what a call with denoising_end={start} gave: give it as x=...")


def part_of(plan: Plan, start: float | None, end: float | None, *, pictured: bool = False) -> Plan:
    """The plan of a part of the way, of which several models may each take one.

    A time t of the grid is evaluated after the share s of the way where t < 1 - s, and before it else (1e-6 apart is
    equal). What is evaluated before an end comes to x at the first time after it, which a start goes on from.

    Args:
      plan: whose x, with a start, is at that time.
      start, end: shares, above 0 and below 1; None: the whole way.
      pictured: whether that x is a picture with noise on it.

    Raises:
      ValueError: what `check_part` says, or no time in the part.
    """
    check_part(start, end, begun=plan.x is not None, pictured=pictured)
    if start is None and end is None:
        return plan
    ts = np.asarray(plan.ts)
    first = 0 if start is None else int((ts >= 1 - start - 1e-6).sum())
    last = len(ts) if end is None else int((ts >= 1 - end - 1e-6).sum())
    if not first < last or (end is not None and last == len(ts)):
        asked = [f"{name}={s}" for name, s in (("denoising_start", start), ("denoising_end", end)) if s is not None]
        raise ValueError(f"{' and '.join(asked)} leaves no part of the {len(ts)} times: take more steps, or another")
    return dataclasses.replace(plan, ts=plan.ts[first : None if end is None else last + 1], ends=end is None)


def encoded(codec: Any, shape: tuple[int, ...], image: ArrayLike, n: int) -> Array:
    """x0 ``(n, ...)`` of an image as it is stored, such as uint8 ``(H, W, C)``, or of n of them.

    Raises:
      ValueError: another size or type.
    """
    one, stored = _stored(codec, shape), np.asarray(image)
    if stored.shape not in (one.shape, (n, *one.shape)) or stored.dtype != one.dtype:
        size = "x".join(map(str, one.shape))
        raise ValueError(
            f"image is {one.dtype} {size}, or {n} of them, got {stored.dtype} {stored.shape}: resize it, or where the "
            "model takes one give its size"
        )
    x0: Array = codec.encode({"x": jnp.asarray(np.broadcast_to(stored, (n, *one.shape)))})["x"]
    return x0


def mask_of(codec: Any, shape: tuple[int, ...], mask: ArrayLike, n: int) -> NDArray[np.float32]:
    """A mask ``(H, W)`` of pixels, or n of them, at the size of x: ``(n, h, w, 1)``. A latent has the mask of the first
    of its pixels, as in diffusers.

    Raises:
      ValueError: another size, or numbers other than 0 and 1.
    """
    found, sides = np.asarray(mask), _stored(codec, shape).shape[:2]
    if found.shape not in (sides, (n, *sides)) or not np.isin(found, (0, 1)).all():
        numbers = f" from {found.min():g} to {found.max():g}" if found.size and found.dtype.kind in "biuf" else ""
        raise ValueError(
            f"mask is {'x'.join(map(str, sides))} of 0 (kept) and 1 (drawn anew), or {n} of them, got "
            f"{found.shape}{numbers}"
        )
    rows, columns = sides[0] // shape[0], sides[1] // shape[1]
    return np.broadcast_to(found, (n, *sides))[:, ::rows, ::columns, None].astype(np.float32)


def stored_shape(codec: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one decoded sample, such as (H, W, C) in pixels.

    Args:
      codec: of the data.
      shape: of one x0.
    """
    return _stored(codec, shape).shape


def _stored(codec: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Of one decoded sample."""
    one = jax.eval_shape(codec.decode, jax.ShapeDtypeStruct((1, *shape), jnp.float32))["x"]
    return jax.ShapeDtypeStruct(one.shape[1:], one.dtype)
