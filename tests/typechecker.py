"""The type checker of tests/test_types.py, named on jaxtyping's command line: beartype on functions and methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, runtime_checkable

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy


def functions_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, but for two things that mypy checks.

    Not `__init__`: JAX rebuilds a pytree's dataclass from tracers, specs and bare objects. Nor an argument that is a
    Protocol: an example may pass as much of one as it uses.
    """
    if function.__name__ == "__init__":
        return function
    annotations = function.__annotations__
    for name, annotation in annotations.items():
        annotations[name] = Any if is_protocol(annotation) else annotation
        for argument in get_args(annotation):
            if is_protocol(argument):  # beside None, say: beartype needs to ask isinstance
                runtime_checkable(argument)
    return checked(function)


def is_protocol(annotation: Any) -> bool:
    return isinstance(annotation, type) and getattr(annotation, "_is_protocol", False)
