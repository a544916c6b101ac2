"""The fields of a published configuration: each is used, is known to have one value, or is refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.data.foreign import read_json
from jaxdiff.pretrained.errors import PretrainedError


class Fields:
    """The fields of a `config.json`.

    Args:
      values: as JSON has them. Those whose name begins with "_" are about the file, and count as used.
      where: the file, for messages.

    >>> fields = Fields({"act_fn": "gelu", "width": 3}, "config.json")
    >>> fields.get("width", 1), fields.get("depth", 2)
    (3, 2)
    >>> fields.only(act_fn="silu")
    Traceback (most recent call last):
    ...
    jaxdiff.pretrained.errors.PretrainedError: config.json: act_fn is 'gelu'; jaxdiff has 'silu' alone
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values, self.where = values, where
        self._used: set[str] = set()

    @property
    def used(self) -> frozenset[str]:
        """The names that have been asked for."""
        return frozenset(self._used)

    def get(self, name: str, default: Any) -> Any:
        """A field; where it is left out, the default of its class."""
        self._used.add(name)
        value = self.values.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        if name in self.values and (why := _wrong(name, value, default)) is not None:
            self.refuse(name, f"is {_short(self.values[name])}, {why}")
        return value

    def sides(self, name: str = "sample_size") -> tuple[int, int] | None:
        """Height and width of what a network is of; None: it does not say.

        >>> Fields({"sample_size": 8}).sides()
        (8, 8)
        """
        value = self.get(name, None)
        pair = value if isinstance(value, tuple) else (value, value)
        if value is not None and (len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair)):
            self.refuse(name, f"is {_short(value)}, expected a whole number of at least 1, or height and width")
        return None if value is None else pair

    def only(self, **allowed: Any) -> None:
        """Refuses fields that have another value than the one that is known here.

        Args:
          allowed: the values, which are also the defaults; a tuple of several, the first being the default.
        """
        for name, values in allowed.items():
            several = values if isinstance(values, tuple) else (values,)
            self._used.add(name)
            value = self.values.get(name, several[0])
            value = tuple(value) if isinstance(value, list) else value
            if value not in several:
                self.refuse(name, f"is {value!r}; jaxdiff has {' or '.join(map(repr, several))} alone")

    def ignore(self, *names: str) -> None:
        """Fields that do not matter here."""
        self._used.update(names)

    def done(self) -> None:
        """Refuses what is left: fields that nobody has asked for."""
        left = [name for name in self.values if name not in self._used and not name.startswith("_")]
        if left:
            self.refuse(left[0], f"is {self.values[left[0]]!r}, which jaxdiff does not know")

    def refuse(self, name: str, why: str) -> None:
        """Raises: a field that cannot be followed."""
        raise PretrainedError(f"{self.where}: {name} {why}")


_LISTS = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim", "num_attention_heads")
"""Fields of one number, for which a list may stand: one a level."""
_MOST = {"layers": 256, "num_train_timesteps": 100_000, "sample_size": 8192}
"""Parts of names, and more than any network has: a damaged number is to be refused before memory ends."""
_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}


def _wrong(name: str, value: Any, default: Any) -> str | None:
    """What is wrong with a value beside the default of its class; None: nothing."""
    each = value if isinstance(value, tuple) else (value,)
    for part, most in _MOST.items():
        if part in name and any(type(one) is int and one > most for one in each):
            return f"expected at most {most}"
    if isinstance(default, tuple):
        kinds = {type(one) for one in default}
        if not isinstance(value, tuple):
            return "expected a list"
        told = _KINDS.get(kinds.pop()) if len(kinds) == 1 else None
        wrong = told and any(isinstance(one, bool) or not isinstance(one, told[0]) for one in value)
        return f"expected a list, each {told[1]}" if told and wrong else None
    if default is None or value is None or (name in _LISTS and isinstance(value, tuple)):
        return None
    kinds_of, said = _KINDS[type(default)]
    if not isinstance(value, kinds_of) or (isinstance(value, bool) and not isinstance(default, bool)):
        return f"expected {said}"
    return "expected a number" if isinstance(value, float) and math.isnan(value) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_fields(file: Path) -> Fields:
    """The fields of a file of JSON.

    Raises:
      PretrainedError: no such file, or no JSON object.
    """
    try:
        values = read_json(file)
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PretrainedError(f"{file} {error}") from error
    if not isinstance(values, dict):
        raise PretrainedError(f"{file} is a {type(values).__name__}, expected an object of fields")
    return Fields(values, str(file))
