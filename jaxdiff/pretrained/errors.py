"""A person's mistake with published weights, told in one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdiff.data.sources import DataError
from jaxdiff.launch.errors import ConfigError


class PretrainedError(ConfigError):
    """Published weights that cannot be read, or are not what was expected. The message is one line, for the user."""


@contextlib.contextmanager
def as_pretrained_error(where: str) -> Iterator[None]:
    """Tells what the library refuses of a file's values as a `PretrainedError`.

    >>> with as_pretrained_error("config.json"):
    ...     raise ValueError("width is odd")
    Traceback (most recent call last):
    ...
    jaxdiff.pretrained.errors.PretrainedError: config.json: width is odd
    """
    try:
        yield
    except (ConfigError, DataError):
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise PretrainedError(f"{where}: {error}") from error


def path_of(value: Any, what: str) -> Path:
    """A path that a person has given.

    Args:
      value: text or a path.
      what: the argument, for the message.

    Raises:
      PretrainedError: something else.
    """
    if not isinstance(value, str | os.PathLike):
        raise PretrainedError(f"{what}: expected a path, as text or pathlib.Path, got {value!r}")
    return Path(value).expanduser()
