"""Configurations as JSON and back, without executing anything.

    a dataclass     {"type": "jaxdiff.VP", "beta_min": 0.1, "beta_max": 20.0}     by import path
    an array        {"array": [0.0001, 0.00012], "dtype": "float64"}
    a tuple         a list
    a mapping       {"label": 0.1}                                                its keys are text

A type is looked up only in the modules that the caller trusts, by default `jaxdiff` alone, and only dataclasses are
made. Fields that an object derives from its others are not stored.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

TRUSTED = ("jaxdiff",)
KEYWORDS = {"type", "array"}
"""Names that a mapping's keys cannot have: they tell what else an object of JSON is."""
MOVED = {"jaxdiff.study.ScoreField": "jaxdiff.evaluate.ScoreField"}
"""Names in configurations that older versions have saved -> where the class stands now."""


class StoredTypeError(ValueError):
    """A value that cannot be stored, or stored text that may not or cannot be read. The message is one line."""


def to_json(value: Any) -> Any:
    """What `json.dumps` takes, from dataclasses, arrays, tuples and plain values.

    Raises:
      StoredTypeError: something else is inside, for instance a function.

    >>> from jaxdiff import VP
    >>> to_json(VP(beta_max=10.0))
    {'type': 'jaxdiff.VP', 'beta_min': 0.1, 'beta_max': 10.0}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if "<" in kind.__qualname__:
            raise StoredTypeError(
                f"{kind.__qualname__} cannot be stored: define the class at the top level of a module"
            )
        unbound = {"parent", "name"} if isinstance(value, linen.Module) else set()
        stored = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init and f.name not in unbound}
        kept = {name: item for name, item in stored.items() if not _is_derived(kind, stored, name)}
        return {"type": _public_path(kind)} | {name: to_json(item) for name, item in kept.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return array.item() if array.ndim == 0 else {"array": array.tolist(), "dtype": array.dtype.name}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) and name not in KEYWORDS for name in value):
        return {name: to_json(item) for name, item in value.items()}
    raise StoredTypeError(
        f"{value!r} cannot be stored in a configuration: use numbers, text, tuples, arrays and dataclasses"
    )


def _is_derived(kind: type, stored: dict[str, Any], name: str) -> bool:
    # A table with a default that the object makes again when it is left out.
    has_default = any(f.name == name and f.default is not dataclasses.MISSING for f in dataclasses.fields(kind))
    if not has_default or not isinstance(stored[name], np.ndarray | jax.Array) or np.ndim(stored[name]) == 0:
        return False
    remade = getattr(kind(**{key: item for key, item in stored.items() if key != name}), name)
    return remade is not None and np.array_equal(np.asarray(remade), np.asarray(stored[name]), equal_nan=True)


def _public_path(kind: type) -> str:
    # The shortest path that leads to the class: `jaxdiff.networks.UNet` outlives a move within jaxdiff.networks.
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:n]) for n in range(1, len(parts)))
    public = (name for name in packages if getattr(sys.modules.get(name), kind.__qualname__, None) is kind)
    return f"{next(public, kind.__module__)}.{kind.__qualname__}"


def from_json(data: Any, trusted: Sequence[str] = TRUSTED) -> Any:
    """The inverse of `to_json`; lists become tuples.

    Args:
      data: from `json.loads`.
      trusted: modules whose dataclasses may be made, with their sub-modules. They are imported; nothing else is run.

    Raises:
      StoredTypeError: a type that is not trusted, does not exist, is no dataclass, or does not take the stored fields.

    >>> from_json({"type": "jaxdiff.VP", "beta_min": 0.1, "beta_max": 10.0})
    VP(beta_min=0.1, beta_max=10.0)
    >>> from_json({"type": "os.system"})
    Traceback (most recent call last):
    ...
    jaxdiff.config.serialize.StoredTypeError: type 'os.system' is not from jaxdiff: ...
    """
    if isinstance(data, list):
        return tuple(from_json(item, trusted) for item in data)
    if not isinstance(data, dict):
        return data
    if set(data) == {"array", "dtype"}:
        try:
            return np.asarray(data["array"], np.dtype(data["dtype"]))
        except (TypeError, ValueError) as error:
            raise StoredTypeError(f"a stored array cannot be read: {error}") from None
    if not KEYWORDS & set(data):
        return {name: from_json(item, trusted) for name, item in data.items()}
    kind = _find(data.get("type"), trusted)
    arguments = {name: from_json(item, trusted) for name, item in data.items() if name != "type"}
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise StoredTypeError(f"{data['type']} cannot be made from its stored fields: {error}") from error


def _find(path: Any, trusted: Sequence[str]) -> type:
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise StoredTypeError(f"{path!r} is not the import path of a class")
    module, _, name = MOVED.get(path, path).rpartition(".")
    if not _within(module, trusted):
        raise StoredTypeError(
            f"type {path!r} is not from {' or '.join(trusted)}: name its module as trusted (--trust) if you know it"
        )
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise StoredTypeError(f"there is no {path}: {error}") from None
    # A trusted module may have imported anything: what it merely imported is not its own.
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and _within(kind.__module__, trusted)):
        raise StoredTypeError(f"{path} is not a dataclass of {' or '.join(trusted)}")
    return kind


def _within(module: str, trusted: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in trusted)


def dumps(value: Any) -> str:
    """JSON text for people: indented, lists of plain values on one line."""
    return layout(to_json(value))


def layout(stored: Any) -> str:
    """As `dumps`, of what `to_json` has given."""
    text = json.dumps(stored, indent=2)
    # A line break never stands inside a JSON string, so this touches the layout only.
    return re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", lambda match: "[" + re.sub(r"\n *", " ", match[1]) + "]", text) + "\n"


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The fields in which the JSON of two objects differs: dotted name -> (old, new), None where a side has none.

    >>> from jaxdiff import VP
    >>> differences(to_json(VP()), to_json(VP(beta_max=10.0)))
    {'beta_max': (20.0, 10.0)}
    """
    first, second = dict(_leaves(old)), dict(_leaves(new))
    both = {name: (first.get(name), second.get(name)) for name in sorted(first.keys() | second.keys())}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and "array" not in data:
        for name, item in data.items():
            yield from _leaves(item, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, data


def types_in(data: Any) -> Iterator[str]:
    """The classes that `to_json`'s result names, by import path.

    >>> list(types_in([{"type": "jaxdiff.VP", "inner": {"type": "jaxdiff.VE"}}]))
    ['jaxdiff.VP', 'jaxdiff.VE']
    """
    if isinstance(data, dict):
        if isinstance(data.get("type"), str):
            yield data["type"]
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from types_in(item)
