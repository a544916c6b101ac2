"""What the type of a configuration's field allows, and how a person is told of it."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

_SAID = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "no value",
    Path: "a path",
    type(None): "None",
}
_KINDS: dict[Any, tuple[type, ...]] = {int: (Integral,), float: (Real,), str: (str,)}


def allows(hint: Any, value: Any) -> bool:
    """Whether a value is of a field's type; NumPy's numbers are numbers, and lists will do for tuples.

    >>> allows(int, 2.5), allows(float | None, 2), allows(int, True), allows(tuple[str, ...], "down")
    (False, True, False, False)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(allows(each, value) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple | list) and all(allows(inner[0], each) for each in value)
    if is_numbers_by_name(hint):
        return isinstance(value, Mapping) and all(allows(str, k) and allows(float, v) for k, v in value.items())
    if hint in _KINDS:
        return isinstance(value, _KINDS[hint]) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def described(hint: Any) -> str:
    """What a field takes, in words.

    >>> described(float | None), described(Literal["a", "b"])
    ('a number or None', 'one of a, b')
    """
    if hint in _SAID:
        return _SAID[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if is_numbers_by_name(hint):
        return "NAME=NUMBER, several or none, such as label=0.1"
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"several of: {described(inner[0])}" if inner[1:] == (...,) else " then ".join(map(described, inner))
    if inner:
        return " or ".join(map(described, inner))
    return f"a {getattr(hint, '__name__', hint)}"


def is_numbers_by_name(hint: Any) -> bool:
    """Whether it is a mapping from names to numbers."""
    return typing.get_origin(hint) in (dict, Mapping) and typing.get_args(hint) == (str, float)
