"""Frozen dataclasses that are pytrees: what processes, samplers, denoisers and losses are.

Their fields are leaves, so numbers in them are data of a `jax.jit`; those marked ``field(pytree_node=False)`` are
static.

`flax.struct.dataclass` does the same by `jax.tree_util.register_dataclass`, and is not used here: in JAX 0.10 to 0.12
the tree structures of two such classes compare equal when their fields are alike, whatever the classes
(``jax.tree.structure(A()) == jax.tree.structure(B())``), so that a jitted function can, by chance of hashing, run the
program it compiled for the other class: `SubVP`'s sigma for `VP`. Structures registered by `register_pytree_with_keys`
compare by class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def field(*, pytree_node: bool = True, derived: Callable[[Any], Any] | None = None, **options: Any) -> Any:
    """A dataclass field; static where ``pytree_node`` is False. ``options`` as `dataclasses.field`.

    ``derived`` says how it follows from the others (with ``init=False``): it is then no leaf, so that a gradient and
    `dataclasses.replace` have one source of truth.
    """
    return dataclasses.field(metadata={"pytree_node": pytree_node, "derived": derived}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree. Change a field by `dataclasses.replace`.

    Rebuilding one from its leaves, as every JAX transformation does, calls neither ``__init__`` nor ``__post_init__``:
    the leaves may be tracers or placeholders.

    >>> @record
    ... class Line:
    ...     slope: float
    ...     name: str = field(default="line", pytree_node=False)
    >>> jax.tree.map(lambda leaf: 2 * leaf, Line(3.0))
    Line(slope=6.0, name='line')
    >>> @record
    ... class Curve:
    ...     slope: float
    ...     name: str = field(default="line", pytree_node=False)
    >>> jax.tree.structure(Line(3.0)) == jax.tree.structure(Curve(3.0))
    False
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    derived = {f.name: f.metadata.get("derived") for f in dataclasses.fields(made)}  # type: ignore[arg-type]
    for name, follows in derived.items():
        if follows is not None:
            setattr(made, name, property(follows))
    fields = [f for f in dataclasses.fields(made) if derived[f.name] is None]  # type: ignore[arg-type]
    data = [f.name for f in fields if f.metadata.get("pytree_node", True)]
    static = [f.name for f in fields if not f.metadata.get("pytree_node", True)]

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in data]
        return leaves, tuple(getattr(value, name) for name in static)

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in data], tuple(getattr(value, name) for name in static)

    def unflatten(statics: tuple[Any, ...], leaves: Any) -> T:
        value = object.__new__(made)
        for name, part in zip([*static, *data], [*statics, *leaves], strict=True):
            object.__setattr__(value, name, part)
        return value

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def as_tree(function: Any) -> Any:
    """A function as a pytree: one that has arrays (a `record`) as it is, so that they are data; another static.

    >>> jax.tree.leaves(as_tree(abs)), as_tree(abs)(-1.0)
    ([], 1.0)
    """
    opaque = jax.tree_util.all_leaves([function]) and callable(function)
    return jax.tree_util.Partial(function) if opaque else function
