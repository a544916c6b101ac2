"""What Orbax prints of a failed save besides raising it, and how that is kept from the user.

On a full disk the first file that cannot be written ends a save, while threads still write others. These report to an
event loop that is closed by then, which ends in `sys.unraisablehook`; the errors of their futures, for which nobody
asks, are logged by asyncio; coroutines that were to follow are never awaited; and Orbax logs what it raises as well.
All of these are pages that say nothing beyond the exception, which `Checkpoints` tells in one line.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any


LASTING: list[contextlib.ExitStack] = []
"""What stays in force to the end of the process: a generator that nobody holds would be closed."""


@contextlib.contextmanager
def quiet_failed_saves(*, saves: bool) -> Iterator[None]:
    """Drops these within a `with`, and nothing else; then hooks, filters and loggers are as they were.

    Args:
        saves: whether the block saves: then all warnings of coroutines never awaited go, which do not say whose.

    Example:
        >>> before = sys.unraisablehook
        >>> with quiet_failed_saves(saves=False):
        ...     logging.getLogger("absl").filters[-1].__name__, sys.unraisablehook is before
        ('is_news', False)
        >>> sys.unraisablehook is before
        True
    """
    before, active = sys.unraisablehook, True

    def hook(raised: sys.UnraisableHookArgs) -> None:
        where = raised.exc_traceback and raised.exc_traceback.tb_frame.f_code.co_name
        ours = where == "call_soon_threadsafe" and str(raised.exc_value) == "Event loop is closed"
        if not (active and ours):
            before(raised)

    def is_news(record: logging.LogRecord) -> bool:  # one for each `with`: a logger has a filter once
        return _is_news(record)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    sys.unraisablehook = hook
    for logger in loggers:
        logger.addFilter(is_news)
    filters: Any = warnings.filters  # a list
    added: list[Any] = []
    if saves:
        warnings.filterwarnings("ignore", r"coroutine '\S+' was never awaited", RuntimeWarning)
        added = filters[:1]
    try:
        yield
    finally:
        active = False  # for whoever has put a hook around this one meanwhile
        if sys.unraisablehook is hook:
            sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(is_news)
        for entry in added:
            with contextlib.suppress(ValueError):  # somebody has removed it
                filters.remove(entry)


def _is_news(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        raised = record.exc_info[1] if record.exc_info else None
        # TensorStore's are ValueErrors that begin with the name of a status: RESOURCE_EXHAUSTED: Failed writing ...
        of_files = isinstance(raised, OSError) or re.match(r"[A-Z_]+: ", str(raised)) is not None
        return not (of_files and "never retrieved" in record.getMessage())
    return record.exc_info is None or "orbax" not in record.pathname
