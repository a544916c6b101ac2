"""The fields of a published configuration: each is used, is known to have one value, or is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        return tuple(value) if isinstance(value, list) else value

    def only(self, **allowed: Any) -> None:
        """Refuses fields that have another value than the one that is known here.

        Args:
          allowed: the values, which are also the defaults; a tuple of several, the first being the default.
        """
        for name, values in allowed.items():
            several = values if isinstance(values, tuple) else (values,)
            value = self.get(name, several[0])
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


def read_fields(file: Path) -> Fields:
    """The fields of a file of JSON.

    Raises:
      PretrainedError: no such file, or no JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{file} is no JSON ({type(error).__name__}: {error}): fetch it again") from error
    if not isinstance(values, dict):
        raise PretrainedError(f"{file} is a {type(values).__name__}, expected an object of fields")
    return Fields(values, str(file))
