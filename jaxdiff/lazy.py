"""Names of a package that are imported when they are first asked for (PEP 562).

Checkpoints (Orbax), input pipelines (Grain), Parquet and the command line (tyro) take longer to import than JAX. Who
only samples or trains by hand does not wait for them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Type checkers do not see through it: import the same names under ``if TYPE_CHECKING`` too.

    Args:
      package: its ``__name__``.
      homes: the module of each name, without the package's name and a dot.

    >>> lazily("collections", {"Mapping": "abc"})("Mapping").__name__
    'Mapping'
    >>> lazily("collections", {})("Map")
    Traceback (most recent call last):
    ...
    AttributeError: module 'collections' has no attribute 'Map'
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # asked for once
        return value

    return attribute
