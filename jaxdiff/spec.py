"""What an array is: its shape, its type, its range, and what stands for its absence.

A `Spec` describes one named array, the batch axis left out. A source says so what its records hold, a codec what it
makes of them, a network what it takes. The data itself is the array ``"x"``; every other name is a condition. A
condition is one `Spec`, or a dict of them (a text: its tokens, their mask, a pooled vector) that is given and dropped
as one.

Every condition c that can be dropped has a value that stands for "no condition", its null:

    c' = null  where dropped,  else c,                                                               (1)

broadcast to the shape of c. The network is trained on c' (Ho & Salimans 2022, section 3.1) and evaluated at the null
by guidance. The value is the network's own, written down once, in its spec.
"""

from __future__ import annotations

import functools
import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Spec:
    """One named array, the batch axis left out. Hashable, so a static argument of `jax.jit`.

    Args:
      shape: of one sample; None for an axis whose length varies from batch to batch.
      dtype: NumPy's name of it; or ``"str"``: text as a source stores it, one a record (shape ``()``) or several
        (``(None,)``). Text has no bounds and no null, and stays on the host: tokens are made of it.
      low: least value; None: no bound.
      high: largest value; None: no bound. With both bounds, predictions of the data are clipped to them.
      null: what stands for "no condition": a number, or one number for each entry of the last axis; None: the
        condition cannot be dropped. It may lie outside of the bounds.

    Raises:
      ValueError: an unknown dtype, bounds that are no numbers, an empty range, a null that does not broadcast to the
        shape or fit the dtype, or text with bounds, a null or another shape.

    >>> Spec((), "int32", 0, 9, null=10)  # one of ten classes; the eleventh id means "no class"
    Spec(shape=(), dtype='int32', low=0, high=9, null=10)
    """

    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    null: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        try:
            kind = jnp.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"dtype: {self.dtype!r} is no type of numbers, for instance 'float32'") from error
        object.__setattr__(self, "dtype", "str" if kind.kind == "U" else kind.name)
        if any(size is not None and size < 0 for size in self.shape):
            raise ValueError(f"shape: {self.shape} has a negative size")
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, Real) or math.isnan(bound)):
                raise ValueError(f"{name} is to be a number or None, got {reprlib.repr(bound)}")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.is_text and (self.shape not in ((), (None,)) or (self.low, self.high, self.null) != (None, None, None)):
            raise ValueError("text has the shape () or (None,), no bounds and no null; tokens have them")
        if self.null is None:
            return
        if isinstance(self.null, Sequence):
            object.__setattr__(self, "null", tuple(self.null))
            if not self.shape or self.shape[-1] != len(self.null):
                raise ValueError(f"null has {len(self.null)} numbers, the last axis of {self.shape} has another length")
        wanted = np.asarray(self.null)
        if not np.array_equal(wanted, wanted.astype(kind)) and jnp.issubdtype(kind, jnp.integer):
            raise ValueError(f"null {self.null} is no {self.dtype}")

    @property
    def clip(self) -> tuple[float, float] | None:
        """The bounds, where there are both."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def is_text(self) -> bool:
        """Whether it is text, as a source stores it."""
        return self.dtype == "str"


Condition = Spec | Mapping[str, Spec]
"""One named condition: an array, or several that belong together."""

Specs = Mapping[str, Condition]
"""Arrays by name."""


def droppable(condition: Condition) -> bool:
    """Whether a condition has a null: each of its arrays, where it has several."""
    return all(spec.null is not None for spec in _arrays(condition))


def null_of(condition: Condition, batch: int) -> Any:
    """A condition's null for a batch, of equation (1): arrays ``(batch, ...)``; axes that vary have length 1.

    Raises:
      ValueError: it has none.

    >>> null_of(Spec((2,), "float32", null=(0.0, -1.0)), 1).tolist()
    [[0.0, -1.0]]
    """

    def make(spec: Spec) -> Array:
        if spec.null is None:
            raise ValueError("has no null: it cannot be left out")
        shape = (batch, *(1 if size is None else size for size in spec.shape))
        return jnp.broadcast_to(jnp.asarray(spec.null, spec.dtype), shape)

    return _map(make, condition)


def shapes(specs: Specs, batch: int) -> dict[str, Any]:
    """The arrays of a batch as `jax.ShapeDtypeStruct`, for tracing; axes that vary have length 1.

    Raises:
      ValueError: text, which cannot be traced.

    >>> shapes({"label": Spec((), "int32")}, 4)
    {'label': ShapeDtypeStruct(shape=(4,), dtype=int32)}
    """

    def one(spec: Spec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *(1 if size is None else size for size in spec.shape)), spec.dtype)

    if text := [name for name, each in specs.items() if any(spec.is_text for spec in _arrays(each))]:
        raise ValueError(f"{text[0]} is text, which no jitted step takes: give a tokenizer that makes numbers of it")
    return {name: _map(one, condition) for name, condition in specs.items()}


def fits(given: Condition, taken: Condition) -> bool:
    """Whether arrays of one condition have the shapes of another, in which None is any size.

    >>> fits(Spec((8, 4)), Spec((None, 4))), fits({"tokens": Spec((8, 4))}, Spec((8, 4)))
    (True, False)
    """
    if isinstance(given, Spec) and isinstance(taken, Spec):
        sizes = zip(given.shape, taken.shape, strict=False)
        return len(given.shape) == len(taken.shape) and all(want in (None, size) for size, want in sizes)
    if isinstance(given, Spec) or isinstance(taken, Spec) or set(given) != set(taken):
        return False
    return all(fits(given[name], taken[name]) for name in given)


def shape_of(condition: Condition) -> str:
    """A condition's shape, for messages; of several arrays each by its name."""
    if isinstance(condition, Spec):
        return str(condition.shape)
    return ", ".join(f"{name} {spec.shape}" for name, spec in condition.items())


def drop(specs: Specs, cond: Mapping[str, Any], dropped: Mapping[str, Array]) -> dict[str, Any]:
    """Equation (1) for each condition by itself.

    Args:
      specs: of the network.
      cond: values, the batch first.
      dropped: for some of the conditions, which samples lose it, ``(B,)`` bool.

    Raises:
      ValueError: a condition without a null is to be dropped.

    >>> specs = {"label": Spec((), "int32", 0, 9, null=10)}
    >>> drop(specs, {"label": np.uint8([3, 4])}, {"label": jnp.array([True, False])})["label"].tolist()
    [10, 4]
    """

    def one(name: str, condition: Condition) -> Any:
        mask = dropped[name]

        def where(spec: Spec, value: ArrayLike) -> Array:
            if spec.null is None:
                raise ValueError(f"cond[{name!r}] has no null, so it cannot be dropped: set its spec's null")
            value = jnp.asarray(value).astype(spec.dtype)  # first: a null of 256 is no uint8
            return _where(mask, jnp.asarray(spec.null, spec.dtype), value)

        return _map(where, condition, cond[name])

    return {**cond, **{name: one(name, condition) for name, condition in specs.items() if name in dropped}}


def replaced(cond: dict[str, Any], dropped: dict[str, Array], nulls: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Equation (1) with given nulls, trees of arrays ``(1, ...)``. The second result is what is still to be dropped.

    >>> replaced({"a": jnp.zeros((2, 1))}, {"a": jnp.array([True, False])}, {"a": jnp.ones((1, 1))})[0]["a"].tolist()
    [[1.0], [0.0]]
    """
    found = dict(cond)
    for name in (each for each in dropped if each in nulls):  # in their order: every process traces the same
        found[name] = jax.tree.map(functools.partial(_where, dropped[name]), nulls[name], cond[name])
    return found, {name: mask for name, mask in dropped.items() if name not in nulls}


def _where(mask: Array, null: Array, value: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (value.ndim - 1)), null, value)


def complete(specs: Specs, cond: Mapping[str, Any] | None, batch: int) -> dict[str, Any]:
    """The conditions as a network takes them: checked, of their dtypes, and the null where one is left out.

    Shapes are checked, values are not: they may be traced (`check` looks at values).

    Args:
      specs: what the network takes.
      cond: what is given, the batch first; None: nothing.
      batch: its size.

    Raises:
      ValueError: a condition that the network does not know, that it needs, or of another shape or kind of number.

    >>> complete({"label": Spec((), "int32", 0, 9, null=10)}, None, 2)["label"].tolist()
    [10, 10]
    """
    given = {} if cond is None else cond
    if unknown := sorted(set(given) - set(specs)):
        takes = f"takes the conditions {sorted(specs)}" if specs else "is unconditional"
        raise ValueError(f"this network {takes}, got cond with {unknown}")
    if missing := [name for name, each in specs.items() if name not in given and not droppable(each)]:
        raise ValueError(
            f"this network needs cond with {sorted(missing)}, which cannot be left out, got {sorted(given)}"
        )

    def fit(name: str, condition: Condition) -> Any:
        def one(spec: Spec, value: ArrayLike) -> Array:
            array = jnp.asarray(value)
            _check_form(f"cond[{name!r}]", spec, array.shape, array.dtype, batch)
            return array.astype(spec.dtype)

        return _map(one, condition, given[name]) if name in given else null_of(condition, batch)

    return {name: fit(name, condition) for name, condition in specs.items()}


def check(specs: Specs, values: Mapping[str, Any], n: int) -> dict[str, Any]:
    """A person's values for n samples: one each, or one for all. Their numbers are looked at.

    Args:
      specs: what is taken.
      values: by name.
      n: samples.

    Returns:
      NumPy arrays ``(n, ...)`` of the specs' dtypes.

    Raises:
      ValueError: an unknown name, another shape, a number out of range (the null is in it), or not finite.

    >>> check({"label": Spec((), "int32", 0, 9, null=10)}, {"label": 3}, 2)
    {'label': array([3, 3], dtype=int32)}
    >>> check({"label": Spec((), "int32", 0, 9)}, {"label": [-1]}, 1)
    Traceback (most recent call last):
    ...
    ValueError: label -1 is out of range: from 0 to 9
    """
    if unknown := [name for name in values if name not in specs]:
        takes = f"the conditions are {sorted(specs)}" if specs else "there are no conditions"
        raise ValueError(f"{unknown[0]}: {takes}: leave it out")

    def one(name: str, spec: Spec, value: ArrayLike) -> NDArray[Any]:
        array = as_array(name, value)
        _check_kind(name, spec, array.dtype, "" if array.dtype != object else type(value).__name__)
        if array.ndim == len(spec.shape):
            array = np.broadcast_to(array, (n, *array.shape))
        if array.ndim and array.shape[0] != n:
            raise ValueError(f"{name} has {array.shape[0]} rows for {n} samples: pass one value, or one a sample")
        _check_form(name, spec, array.shape, array.dtype, n)
        with np.errstate(over="ignore"):
            made = array.astype(spec.dtype)
        _check_range(name, spec, array, made)
        return made

    return {
        name: _map(lambda spec, value, name=name: one(name, spec, value), specs[name], value)
        for name, value in values.items()
    }


def whole(name: str, value: Any, least: int = 1) -> int:
    """A person's whole number.

    Raises:
      ValueError: another number or another thing, or one below ``least``.

    >>> whole("n", np.int64(3))
    3
    >>> whole("n", 2.5)
    Traceback (most recent call last):
    ...
    ValueError: n must be a whole number of at least 1, got 2.5
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool | np.bool_) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {reprlib.repr(value)}")
    return number


def as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """A person's value as an array.

    Raises:
      ValueError: lists of unequal lengths.

    >>> as_array("x", [[1.0], [1.0, 2.0]])
    Traceback (most recent call last):
    ...
    ValueError: x has rows of unequal lengths, expected an array: bring them to one length
    """
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} has rows of unequal lengths, expected an array: bring them to one length") from error


def finite(name: str, value: ArrayLike, shape: tuple[int | None, ...], what: str) -> Any:
    """A person's real numbers; a `jax.Array` stays where it is.

    Args:
      name: for messages.
      value: the numbers.
      shape: what they have; None for the batch, at least one.
      what: they are, for messages.

    Raises:
      ValueError: another shape, other things than real numbers, NaN or an infinite one.
    """
    array = value if isinstance(value, Array) else as_array(name, value)
    fits = len(array.shape) == len(shape) and all(s == w if w else s for s, w in zip(array.shape, shape, strict=True))
    if not fits:
        sizes = ", ".join("n" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, expected ({sizes}): {what}")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    if bad := int((~jnp.isfinite(array)).sum()):
        raise ValueError(f"{name} is NaN or infinite in {bad} of its {array.size} numbers")
    return array


def _check_form(name: str, spec: Spec, shape: tuple[int, ...], dtype: Any, batch: int) -> None:
    fits = len(shape) == 1 + len(spec.shape) and shape[0] == batch
    fits = fits and all(want is None or size == want for size, want in zip(shape[1:], spec.shape, strict=True))
    if not fits:
        sizes = [str(batch), *("any" if size is None else str(size) for size in spec.shape)]
        wanted = ", ".join(sizes) + "," * (len(sizes) == 1)
        raise ValueError(f"{name} has shape {tuple(shape)}, expected ({wanted}): the batch first")
    _check_kind(name, spec, dtype)


def _check_kind(name: str, spec: Spec, dtype: Any, told: str = "") -> None:
    if jnp.issubdtype(spec.dtype, jnp.integer) and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name} must be whole numbers ({spec.dtype}), got {told or dtype}")
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise ValueError(f"{name} must be numbers ({spec.dtype}), got {told or dtype}")


def _check_range(name: str, spec: Spec, array: NDArray[Any], made: NDArray[Any]) -> None:
    low, high = -math.inf if spec.low is None else spec.low, math.inf if spec.high is None else spec.high
    good = np.isfinite(array) & np.isfinite(made) & (array >= low) & (array <= high)
    if spec.null is not None:
        good |= array == np.asarray(spec.null)
    if not good.all():
        wrong = array[~good].flat[0].item()
        bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
        allowed = ", ".join(["it must be finite", *bounds]) if len(bounds) < 2 else f"from {low:g} to {high:g}"
        null = f", or {spec.null} for none" if spec.null is not None else ""
        raise ValueError(f"{name} {wrong} is out of range: {allowed}{null}")


def _arrays(condition: Condition) -> list[Spec]:
    return [condition] if isinstance(condition, Spec) else list(condition.values())


def _map(function: Callable[..., Any], condition: Condition, *values: Any) -> Any:
    if isinstance(condition, Spec):
        return function(condition, *values)
    for value in values:
        if not isinstance(value, Mapping) or set(value) != set(condition):
            found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"a condition of several arrays is a dict with {sorted(condition)}, got {found}")
    return {name: function(spec, *(value[name] for value in values)) for name, spec in condition.items()}
