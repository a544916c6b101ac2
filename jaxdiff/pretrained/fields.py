"""The fields of a published configuration: each is used, is known to have one value, or is refused by its name."""

from __future__ import annotations

import math
import re
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

    def get(self, name: str, default: Any, *, like: Any = None, several: bool = False) -> Any:
        """A field; where it is left out, the default of its class.

        Args:
          name: of it.
          default: of its class; it says the kind of the field's values too.
          like: a value of their kind, of a field that may be null.
          several: whether a list may stand for one value: one for each level.

        Raises:
          PretrainedError: a value of another kind, or out of the range of its name (`_RANGES`).
        """
        self._used.add(name)
        if name not in self.values:
            return default
        value = self.values[name]
        value = tuple(value) if isinstance(value, list) else value
        if value is None and isinstance(default, bool):
            return False  # as Python, and so diffusers, has it
        if value == default == ():
            return ()
        kind = default if like is None else like
        if (value is not None or like is None) and (why := _wrong(name, value, kind, several)) is not None:
            self.refuse(name, f"is {short(self.values[name])}, {why}")
        return value

    @property
    def class_name(self) -> str | None:
        """The class that it names, in `_class_name` or first in `architectures`, without "Flax"; None: none.

        >>> Fields({"architectures": ["T5EncoderModel"]}).class_name
        'T5EncoderModel'
        """
        named = self.get("_class_name", None, like="")
        named = named or next(iter(self.get("architectures", None, like=("",)) or ()), None)
        return None if named is None else str(named).removeprefix("Flax")

    def sides(self, name: str = "sample_size") -> tuple[int, int] | None:
        """Height and width of what a network is of; None: it does not say.

        >>> Fields({"sample_size": 8}).sides()
        (8, 8)
        """
        self._used.add(name)
        value = self.values.get(name)
        value = tuple(value) if isinstance(value, list) else value
        pair = value if isinstance(value, tuple) else (value, value)
        if value is not None and (len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair)):
            self.refuse(name, f"is {short(value)}, expected a whole number of at least 1, or height and width")
        if value is not None and max(pair) > _MOST_SIDE:
            self.refuse(name, f"is {short(value)}, expected at most {_MOST_SIDE}")
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
                self.refuse(name, f"is {short(value)}; jaxdiff has {' or '.join(map(repr, several))} alone")

    def ignore(self, *names: str) -> None:
        """Fields that do not matter here."""
        self._used.update(names)

    def done(self) -> None:
        """Refuses what is left: fields that nobody has asked for."""
        left = [name for name in self.values if name not in self._used and not name.startswith("_")]
        if left:
            self.refuse(left[0], f"is {short(self.values[left[0]])}, which jaxdiff does not know")

    def refuse(self, name: str, why: str) -> None:
        """Raises: a field that cannot be followed."""
        raise PretrainedError(f"{self.where}: {name} {why}")


_MOST_SIDE = 8192
_TINY, _MOST = 1e-12, 1_000_000
_RANGES: tuple[tuple[str, float, float], ...] = (
    (r"single_layers|dual_attention|transformer_layers", 0, 256),
    (r"layers", 1, 256),
    (r"^num_train_timesteps$", 2, 100_000),
    (r"^sample_size$", 1, _MOST_SIDE),
    (r"^pos_embed_max_size$", 1, 1024),
    (r"^(freq_shift|steps_offset|downsample_padding|s_noise|disable_corrector)$|_token_id$", 0, 1_000_000),
    (r"^(shift_factor)$", -1_000_000, 1_000_000),
    (r"^(base|max)_shift$", -20, 20),
    (r"^(beta_start|beta_end|trained_betas|dropout)$", 0, 1),
    (r"^shift_terminal$", 0, 0.99),
    (r"(^|_)eps$|epsilon$", _TINY, 1),
    (r"^lambda_min_clipped$", -math.inf, 1_000_000),
)
"""Patterns of names, and the least and the most that such a number may be; the first that is found holds. A damaged
number is refused before it becomes a picture of NaN, or memory ends. Others are above 0, and at most a million."""
_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}


def _wrong(name: str, value: Any, kind: Any, several: bool) -> str | None:
    """What is wrong with a value beside one of its kind; None: nothing."""
    if several and isinstance(value, tuple):
        kind = (kind,)
    if not isinstance(kind, tuple):
        return _wrong_one(name, value, kind)
    if not isinstance(value, tuple):
        return "expected a list"
    if not value:
        return "expected a list of at least one"
    _, told = _KINDS[type(kind[0])]
    wrong = [why for why in (_wrong_one(name, one, kind[0]) for one in value) if why is not None]
    return None if not wrong else f"expected a list, each {told}" if told in wrong[0] else wrong[0]


def _wrong_one(name: str, value: Any, kind: Any) -> str | None:
    of, told = _KINDS[type(kind)]
    if not isinstance(value, of) or (isinstance(value, bool) and not isinstance(kind, bool)):
        return f"expected {told}"
    if isinstance(kind, bool | str):
        return None
    usual = (1 if isinstance(kind, int) else _TINY), _MOST
    least, most = next((range_ for pattern, *range_ in _RANGES if re.search(pattern, name)), usual)
    number: Any = value
    if math.isnan(number):
        return f"expected {told}"
    if number < least:
        return "expected a number above 0" if least == _TINY else f"expected at least {least:g}"
    return f"expected at most {most:.12g}" if number > most else None


def short(value: Any) -> str:
    """A value as a message has it.

    >>> short("x" * 100)[-6:]
    'xxx...'
    """
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
