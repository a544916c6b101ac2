"""Edits of records: by inversion, between two of them, and around one.

An inversion follows the probability flow from a record x0 to noise under the conditions that describe it, c. Sampling
from that noise under others, c', changes what c and c' tell apart:

    x = flow(x0 -> t_1 | c),      x0' = flow(x -> 0 | c').                                           (1)

By DDIM both ways have errors of the steps (Song et al. 2021, https://arxiv.org/abs/2010.02502, section 5.4; edits:
Hertz et al. 2022, https://arxiv.org/abs/2208.01626). By a sampler whose steps are undone exactly (`EDICT`, `BELM`) c' =
c gives the record itself, with guidance too, so that no null text has to be fitted (Mokady et al. 2023,
https://arxiv.org/abs/2211.09794). Between two records (Song et al. 2021, appendix D.5) noise is turned, as its norm is
that of a Gaussian: with theta the angle between x and y,

    slerp(x, y, w) = sin((1 - w) theta)/sin(theta) x + sin(w theta)/sin(theta) y.                    (2)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.grid import log_snr_times
from jaxdiff.inverse.inverted import Inverted
from jaxdiff.inverse.sdedit import remaining

Model = Any
"""`jaxdiff.model.Model`, or what has one, such as a run."""
Cond = Mapping[str, Any] | None


def edit(
    model: Model,
    record: Mapping[str, Any],
    from_cond: Cond = None,
    to_cond: Cond = None,
    *,
    method: Any = "belm",
    strength: float = 1.0,
    steps: int = 50,
    ts: ArrayLike | None = None,
    guide: Any = (),
    **options: Any,
) -> Any:
    """Equation (1): the record as the model draws it under other conditions.

    Args:
      model: a `jaxdiff.model.Model` or a run.
      record: as stored, the batch first, ``{"x": (B, ...)}``.
      from_cond: conditions that describe it.
      to_cond: those of the edit, one value for all or one a sample.
      method: ``"belm"`` and ``"edict"`` undo their steps exactly, ``"ddim"`` up to its error; or another sampler
        without noise. `BELM` wants steps in rho that shrink, as those of the grids log_snr and karras do.
      strength: how much of the way to noise is taken, from 0 (the record as it is) to 1.
      steps: times of the grid log_snr.
      ts: falling times in its place.
      guide: guidance, the same on both ways.
      options: of `Model.sample`, such as ``decode``.

    Returns:
      A record of B samples.

    Raises:
      ValueError: a strength out of range, a sampler that draws noise, or conditions that the model does not know.

    >>> from jaxdiff import Flow, NetworkDenoiser, Velocity
    >>> from jaxdiff.codecs import Points
    >>> from jaxdiff.model import Model
    >>> from jaxdiff.networks import MLP, functional
    >>> net = functional(MLP(width=8, depth=1, num_classes=3))
    >>> model = Model(NetworkDenoiser(net, net.init(jax.random.key(0)), Flow(), Velocity()), Points((2,)))
    >>> record = {"x": np.array([[0.5, -0.25]], np.float32)}
    >>> same = edit(model, record, {"label": 1}, {"label": 1}, steps=20)["x"]
    >>> bool(np.abs(same - record["x"]).max() < 1e-4)
    True
    """
    walked = _walked(model, steps, ts, strength)
    if len(walked) == 1 and strength == 0:
        method = "belm"  # of no step: only its end, x/alpha, counts
    found = model.invert(record, from_cond, sampler=method, ts=walked, guide=guide)
    return _onwards(model, found, to_cond, method, walked, guide, options)


def interpolate(
    model: Model,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    weights: Sequence[float] | ArrayLike = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    first_cond: Cond = None,
    second_cond: Cond = None,
    method: Any = "belm",
    strength: float = 1.0,
    steps: int = 50,
    ts: ArrayLike | None = None,
    guide: Any = (),
    **options: Any,
) -> Any:
    """Records between two: noise by equation (2), conditions that are vectors by their weighted mean.

    Args:
      first, second: one record each, ``{"x": (1, ...)}``.
      weights: of the second, ``(n,)`` from 0 to 1: n samples.
      first_cond, second_cond: conditions that describe them, one value each. Those that are whole numbers or text have
        no middle and are to be the same.
      model, method, strength, steps, ts, guide, options: as `edit`.

    Returns:
      A record of n samples.

    Raises:
      ValueError: weights out of range, conditions without a middle, or as `edit`.

    >>> from jaxdiff import Flow, NetworkDenoiser, Velocity
    >>> from jaxdiff.codecs import Points
    >>> from jaxdiff.model import Model
    >>> from jaxdiff.networks import MLP, functional
    >>> net = functional(MLP(width=8, depth=1))
    >>> model = Model(NetworkDenoiser(net, net.init(jax.random.key(0)), Flow(), Velocity()), Points((2,)))
    >>> first, second = ({"x": np.full((1, 2), value, np.float32)} for value in (-0.5, 0.5))
    >>> interpolate(model, first, second, [0.0, 0.5, 1.0], steps=20)["x"].shape
    (3, 2)
    """
    w = np.asarray(weights, np.float32)
    if w.ndim != 1 or not len(w) or not ((w >= 0) & (w <= 1)).all():
        raise ValueError(f"weights are a list of numbers from 0 (the first record) to 1 (the second), got {weights!r}")
    sizes = [len(each["x"]) for each in (first, second)]
    if sizes != [1, 1]:
        raise ValueError(f"an interpolation is between two records of one sample each, got {sizes[0]} and {sizes[1]}")
    if strength == 0:
        raise ValueError("strength is above 0: between records as they are there is no noise to turn")
    walked = _walked(model, steps, ts, strength)
    ends = [
        model.invert(record, cond, sampler=method, ts=walked, guide=guide)
        for record, cond in ((first, first_cond), (second, second_cond))
    ]

    def between(x: Any, y: Any) -> Any:
        if not np.ndim(x):
            return x
        begin, end = (jnp.repeat(jnp.asarray(each), len(w), axis=0) for each in (x, y))
        return slerp(begin, end, w)

    if isinstance(ends[0], Inverted):
        x, state = jax.tree.map(between, *((end.x, end.state) for end in ends))
        found: Any = dataclasses.replace(ends[0], x=x, state=state)
    else:
        found = between(*ends)
    return _onwards(model, found, mixed(first_cond, second_cond, w), method, walked, guide, options)


def variations(
    model: Model,
    record: Mapping[str, Any],
    key: Any,
    n: int,
    cond: Cond = None,
    *,
    strength: float = 0.5,
    **options: Any,
) -> Any:
    """n records like one, by noise of their own on it (`jaxdiff.inverse.sdedit`).

    Args:
      model: as `edit`.
      record: one record, ``{"x": (1, ...)}``.
      key: a `jax.random.key`, or a seed; sample i is that of `Model.sample`.
      n: how many.
      cond: conditions.
      strength: from 0 (the record as it is) to 1 (fresh samples).
      options: of `Model.sample`.

    Raises:
      ValueError: several records, or as `Model.sample`.
    """
    if len(record["x"]) != 1:
        raise ValueError(f"variations are of one record, got {len(record['x'])}: take them one after the other")
    return model.sample(key, n, cond, image=np.asarray(record["x"])[0], strength=strength, **options)


def slerp(x: Array, y: Array, w: ArrayLike) -> Array:
    """Equation (2), a sample at a time; the straight line where the two are parallel.

    Args:
      x, y: ``(B, ...)``.
      w: ``()`` or ``(B,)``, 0 gives x and 1 gives y.

    >>> print(slerp(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]]), 0.5).round(4))
    [[2.1213 2.1213]]
    """
    a, b = flatten(x), flatten(y)
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    cosine = jnp.where(norms > 0, (a * b).sum(axis=1) / jnp.where(norms > 0, norms, 1), 1)
    theta = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    w = jnp.broadcast_to(jnp.asarray(w, x.dtype), theta.shape)
    sine = jnp.sin(theta)
    apart = sine > 1e-3
    weights = (
        jnp.where(apart, jnp.sin(angle * theta) / jnp.where(apart, sine, 1.0), angle).astype(x.dtype)
        for angle in (1 - w, w)
    )
    first, second = (expand(weight, x) for weight in weights)
    return first * x + second * y


def mixed(first: Cond, second: Cond, weights: Any) -> dict[str, Any] | None:
    """Conditions between two, one a weight: weighted means of vectors and of other real numbers.

    Args:
      first, second: conditions of one sample, by name.
      weights: ``(n,)``, of the second.

    Raises:
      ValueError: other names, or values that differ and have no middle.

    >>> mixed({"style": [0.0, 1.0], "label": 3}, {"style": [1.0, 1.0], "label": 3}, [0.25])["style"].tolist()
    [[0.25, 1.0]]
    """
    if sorted(first or {}) != sorted(second or {}):
        raise ValueError(
            f"both ends of an interpolation have the same conditions, got {sorted(first or {})} and "
            f"{sorted(second or {})}"
        )
    w = np.asarray(weights, np.float32)

    def middle(name: str, a: Any, b: Any) -> Any:
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind == b.dtype.kind == "f" and a.shape == b.shape:
            by = w.reshape(-1, *(1 for _ in a.shape))
            return (1 - by) * a[None] + by * b[None]
        if a.shape != b.shape or not (a == b).all():
            raise ValueError(
                f"{name} {a.tolist()!r} and {b.tolist()!r} have no middle: give vectors of real numbers, or the same"
            )
        return np.repeat(a[None], len(w), axis=0)

    if not first or not second:
        return None

    def is_value(value: Any) -> bool:  # a list is one
        return not isinstance(value, Mapping)

    return {
        name: jax.tree.map(functools.partial(middle, name), first[name], second[name], is_leaf=is_value)
        for name in first
    }


def _walked(model: Model, steps: int, ts: ArrayLike | None, strength: float) -> Array:
    """The times of the way, the last one alone where the strength is 0."""
    times = log_snr_times(model.process, steps) if ts is None else jnp.asarray(ts, jnp.result_type(float))
    walked = remaining(times, strength)
    return walked if len(walked) else times[-1:]


def _onwards(
    model: Model, found: Any, cond: Cond, method: Any, ts: Array, guide: Any, options: Mapping[str, Any]
) -> Any:
    exact = isinstance(found, Inverted)
    way = {} if exact else {"sampler": method, "ts": ts}
    return model.sample(0, len(found.x if exact else found), cond, x=found, guide=guide, **way, **options)
