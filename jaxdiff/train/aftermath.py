"""What Orbax prints of a failed save besides raising it, and how that is kept from the user.

On a full disk the first file that cannot be written ends a save, while threads still write others. These report to an
event loop that is closed by then, through `sys.excepthook`; the errors of their futures, for which nobody asks, are
logged by asyncio; and Orbax logs what it raises as well. All of these are pages of tracebacks that say nothing beyond
the exception, which `Checkpoints` tells in one line.
"""

from __future__ import annotations

import functools
import logging
import sys
from types import TracebackType


@functools.cache  # once a process
def keep_to_itself() -> None:
    """Drops these from now on, and nothing else.

    Example:
        >>> keep_to_itself()
        >>> logging.getLogger("absl").filters[-1].__name__
        '_is_news'
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # No frame of anybody's Python stands above: a thread of compiled code has called.
        at_once = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
        if not (kind is RuntimeError and at_once and str(error) == "Event loop is closed"):
            before(kind, error, trace)

    sys.excepthook = hook


def _is_news(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        raised = record.exc_info[1] if record.exc_info else None
        return not (isinstance(raised, OSError) and "never retrieved" in record.getMessage())
    return record.exc_info is None or "orbax" not in record.pathname
