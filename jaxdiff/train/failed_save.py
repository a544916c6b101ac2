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
from typing import Any


class quiet_failed_saves:  # no generator: that would be closed when nobody holds it
    """Drops these within a `with`, and nothing else; then hooks, filters and loggers are as they were.

    Args:
        saves: whether the block saves: then all warnings of coroutines never awaited go, which do not say whose.

    Example:
        >>> before = sys.unraisablehook
        >>> with quiet_failed_saves(saves=False):
        ...     sys.unraisablehook is before
        False
        >>> sys.unraisablehook is before
        True
    """

    def __init__(self, *, saves: bool) -> None:
        self._saves, self._active = saves, False
        self._loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
        self._added: list[Any] = []

    def __enter__(self) -> None:
        self._before, self._active = sys.unraisablehook, True
        self._hook = self._unraisable  # one object: a bound method is a new one each time
        sys.unraisablehook = self._hook
        for logger in self._loggers:
            logger.addFilter(self)
        if self._saves:
            warnings.filterwarnings("ignore", r"coroutine '\S+' was never awaited", RuntimeWarning)
            self._added = list(warnings.filters[:1])

    def __exit__(self, *exception: object) -> None:
        self._active = False  # for whoever has put a hook around this one meanwhile
        if sys.unraisablehook is self._hook:
            sys.unraisablehook = self._before
        for logger in self._loggers:
            logger.removeFilter(self)
        filters: Any = warnings.filters  # a list
        for entry in self._added:
            with contextlib.suppress(ValueError):  # somebody has removed it
                filters.remove(entry)

    def _unraisable(self, raised: sys.UnraisableHookArgs) -> None:
        where = raised.exc_traceback and raised.exc_traceback.tb_frame.f_code.co_name
        ours = where == "call_soon_threadsafe" and str(raised.exc_value) == "Event loop is closed"
        if not (self._active and ours):
            self._before(raised)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a logger's record is news."""
        return _is_news(record)


def _is_news(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        raised = record.exc_info[1] if record.exc_info else None
        # TensorStore's are ValueErrors that begin with the name of a status: RESOURCE_EXHAUSTED: Failed writing ...
        of_files = isinstance(raised, OSError) or re.match(r"[A-Z_]+: ", str(raised)) is not None
        return not (of_files and "never retrieved" in record.getMessage())
    told = record.exc_info is not None or "Metadata file does not exist" in record.getMessage()
    return not (told and "orbax" in record.pathname)
