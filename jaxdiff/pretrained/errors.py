"""A person's mistake with published weights, told in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxdiff.launch.errors import ConfigError


class PretrainedError(ConfigError):
    """Published weights that cannot be read, or are not what was expected. The message is one line, for the user."""


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
