"""A person's mistake, told in one line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be used. Its message is one line for the person who wrote it."""


@contextlib.contextmanager
def as_config_error(what: str) -> Iterator[None]:
    """Reports what the library refuses about a person's values as a `ConfigError`.

    >>> with as_config_error("network"):
    ...     raise ValueError("width is odd")
    Traceback (most recent call last):
    ...
    jaxdiff.launch.errors.ConfigError: network: width is odd
    """
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{what}: {error}") from error
    except MemoryError as error:
        raise ConfigError(f"{what}: too large for this machine's memory ({error})") from error


@contextlib.contextmanager
def silent_at_a_broken_pipe() -> Iterator[None]:
    """Ends the process with the status 141, as SIGPIPE would, where nobody reads its output any more.

    What is printed within the `with` is written at its end.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_broken(1):  # it was another pipe, such as a worker's
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # Python writes once more, at its own end
        raise SystemExit(128 + signal.SIGPIPE) from None


def _is_broken(pipe: int) -> bool:
    look = select.poll()
    look.register(pipe, 0)
    return any(seen & select.POLLERR for _, seen in look.poll(0))


def refuse_unknown(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Refuses the first name that is not known.

    Raises:
      ConfigError: with what is.

    >>> refuse_unknown("average", ["shrot"], ["short", "long"])
    Traceback (most recent call last):
    ...
    jaxdiff.launch.errors.ConfigError: there is no average 'shrot'; did you mean 'short'? (known: short, long)
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r}{suggestion(name, known)} (known: {', '.join(known)})")


def refuse_unknown_options(function: Callable[..., Any], options: Iterable[str], *others: Callable[..., Any]) -> None:
    """Refuses what a function does not take by name; the message names what others take beside it too.

    Raises:
      ConfigError: with what it takes.
    """
    parameters = [p for each in (*others, function) for p in inspect.signature(each).parameters.values()]
    refuse_unknown("option", options, list(dict.fromkeys(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)))


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'ddim'?"`` when one of the known names is close, else an empty text.

    >>> suggestion("dddim", ["ddpm", "ddim"]), suggestion("xyz", ["ddpm", "ddim"])
    ("; did you mean 'ddim'?", '')
    """
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
