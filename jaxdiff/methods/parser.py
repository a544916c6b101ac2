"""From text to a call: a name and its numbers, read by the signature of the name's row in a table."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from jax.typing import ArrayLike

from jaxdiff.sampling.base import Sampler

Row = TypeVar("Row")
_REST = "NAME"
"""Where a row takes names of the caller's own, such as conditions."""
CONTEXT = ("process", "n")
"""Parameters of a row that are no numbers of the method: the caller has them."""


def describe(table: Mapping[str, Callable[..., Any]]) -> list[tuple[str, str]]:
    """Every name of a table with its numbers and their defaults, and what it is, for help texts.

    >>> from jaxdiff.methods import GUIDANCE
    >>> dict(describe(GUIDANCE))["interval:low=0,high=inf"]
    'Guidance inside an interval of sigma/alpha alone; outside the plain prediction, at its cost.'
    """
    rows = []
    for name, row in table.items():
        numbers = ",".join(_shown(number) for number in _numbers(row).values())
        paragraph = " ".join((inspect.getdoc(row) or "").split("\n\n")[0].split())
        about = re.split(r"\. (?=[A-Z])", paragraph)[0].rstrip(".") + "."
        rows.append((f"{name}:{numbers}" if numbers else name, about))
    return rows


def method(
    table: Mapping[str, Callable[..., Row]], text: str, what: str, nested: Callable[[str], Any] | None = None
) -> Callable[..., Row]:
    """The row of a text with its numbers given; what `CONTEXT` names is still to be.

    Args:
      table: the rows by name.
      text: a name and its numbers.
      what: what the rows are, for messages.
      nested: makes a sampler of a text, for rows that take one.

    Raises:
      ValueError: an unknown name or number, or a value of another type; what is known is listed.
    """
    name, colon, rest = text.strip().partition(":")
    if name not in table:
        raise ValueError(f"there is no {what} {name!r}{_near(name, table)} (known: {', '.join(table)})")
    numbers = _numbers(table[name])
    with _told(text):
        given = _read(name, numbers, _split(rest), nested) if colon else {}
        if missing := [
            k for k, number in numbers.items() if number.default is number.empty and k not in (*given, _REST)
        ]:
            raise ValueError(f"{name} needs {missing[0]}, for instance {name}:2")
    return functools.partial(table[name], **given)


def made(
    table: Mapping[str, Callable[..., Row]],
    text: str,
    what: str,
    nested: Callable[[str], Any] | None = None,
    **context: Any,
) -> Row:
    """`method`, called. Raises also what the row itself refuses."""
    row = method(table, text, what, nested)
    with _told(text):
        return row(**context)


@contextlib.contextmanager
def _told(text: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error


def _read(
    name: str, numbers: Mapping[str, inspect.Parameter], parts: list[str], nested: Callable[[str], Any] | None
) -> dict[str, Any]:
    """The numbers of a method, by name."""
    having = f"It has {','.join(map(_shown, numbers.values()))}" if numbers else "It has none"
    given: dict[str, Any] = {}
    rest, numbers = numbers.get(_REST), {key: number for key, number in numbers.items() if key != _REST}
    for place, part in enumerate(parts):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and not (key in numbers and _kinds(numbers[key]) & {bool}):
            if place >= len(numbers):
                most = f"at most {len(numbers)} numbers" if numbers else "no numbers"
                raise ValueError(f"{name} takes {most}, {part!r} is one more. {having}")
            if len(given) < place or list(given) != list(numbers)[:place]:
                raise ValueError(f"{part!r} stands behind numbers with names: give it its name too. {having}")
            key, value = list(numbers)[place], key
        elif not equals:
            value = "true"
        number = numbers.get(key, rest if key.isidentifier() else None)
        if number is None:
            raise ValueError(
                f"{name} has no number {key!r}{_near(key, numbers)}{'' if _near(key, numbers) else '.'} {having}"
            )
        if key in given:
            raise ValueError(f"{key} is given twice")
        given[key] = _value(key, number, value, nested)
    return given


def _split(text: str) -> list[str]:
    """At commas outside of parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise ValueError("its parentheses do not match")
    return parts


def _numbers(row: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What of a row's signature a person can write, annotated with the types themselves."""
    made = row.__init__ if inspect.isclass(row) and not dataclasses.is_dataclass(row) else row
    hints = typing.get_type_hints(made.func if isinstance(made, functools.partial) else made)
    found = {}
    for name, parameter in inspect.signature(row).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found[_REST] = parameter.replace(annotation=hints.get(name, str), name=_REST)
            continue
        number = parameter.replace(annotation=hints.get(name, ArrayLike))
        if name not in CONTEXT and (_kinds(number) or _choices(number)):
            found[name] = number
    return found


def _flat(hint: Any) -> list[Any]:
    """The members of a union, of unions in it too."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [each for part in typing.get_args(hint) for each in _flat(part)]
    return [hint]


def _kinds(number: inspect.Parameter) -> set[type]:
    """The types of value that may be written: of bool, int, float, str, NoneType and Sampler."""
    members = _flat(number.annotation)
    if complex in members:  # ArrayLike: a number of the default's type
        whole = isinstance(number.default, int) and not isinstance(number.default, bool)
        members = [int if whole else float] + ([types.NoneType] if types.NoneType in members else [])
    if Sampler in members:
        return {Sampler}
    return {kind for kind in members if kind in (bool, int, float, str, types.NoneType)} - (
        set() if {bool, int, float, str} & set(members) else {types.NoneType}
    )


def _choices(number: inspect.Parameter) -> tuple[str, ...]:
    return tuple(
        c for part in _flat(number.annotation) if typing.get_origin(part) is Literal for c in typing.get_args(part)
    )


def _value(name: str, number: inspect.Parameter, text: str, nested: Callable[[str], Any] | None) -> Any:
    kinds, choices = _kinds(number), _choices(number)
    if choices:
        if text not in choices:
            raise ValueError(f"{name} is to be {' or '.join(choices)}, got {text!r}")
        return text
    if Sampler in kinds and nested is not None:
        inner, bracket, rest = text.partition("(")
        if bracket and not rest.endswith(")"):
            raise ValueError(f"{name} is to be a sampler, such as unipc(order=2), got {text!r}")
        return nested(f"{inner}:{rest[:-1]}" if bracket else inner)
    if types.NoneType in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                continue
            if not math.isnan(value):
                return value
    if str in kinds:
        return text
    wanted = "true or false" if bool in kinds else "a number" if float in kinds else "a whole number"
    raise ValueError(f"{name} is to be {wanted}{' or none' if types.NoneType in kinds else ''}, got {text!r}")


def _shown(number: inspect.Parameter) -> str:
    """A number with its default, as it is written; in capitals where it has none."""
    value = number.default
    if value is number.empty:
        return f"{_REST}=..." if number.name == _REST else number.name.upper()
    if value is None or isinstance(value, bool):
        return f"{number.name}={str(value).lower()}"
    return f"{number.name}={value:g}" if isinstance(value, float) else f"{number.name}={value}"


def _near(name: str, known: Iterable[str]) -> str:
    folded = {_folded(each): each for each in known}  # DPM++2M, UniPC(order=2), EulerMaruyama
    close = difflib.get_close_matches(_folded(name.partition("(")[0]), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _folded(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))
