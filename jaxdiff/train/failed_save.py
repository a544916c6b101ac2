"""What Orbax prints of a failed save besides raising it, and how that is kept from the user.

On a full disk the first file that cannot be written ends a save, while threads still write others. These report to an
event loop that is closed by then, which ends in `sys.unraisablehook`; the errors of their futures, for which nobody
asks, are logged by asyncio; coroutines that were to follow are never awaited; and Orbax logs what it raises as well.
All of these are pages that say nothing beyond the exception, which `Checkpoints` tells in one line.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
import warnings


@functools.cache  # once a process
def quiet_failed_saves(*, saves: bool) -> None:
    """Drops these from now on, and nothing else.

    Args:
        saves: whether this process saves: then all warnings of coroutines never awaited go, which do not say whose.

    Example:
        >>> quiet_failed_saves(saves=False)
        >>> logging.getLogger("absl").filters[-1].__name__
        '_is_news'
    """
    if saves:
        quiet_failed_saves(saves=False)
        warnings.filterwarnings("ignore", r"coroutine '\S+' was never awaited", RuntimeWarning)
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    before = sys.unraisablehook

    def hook(raised: sys.UnraisableHookArgs) -> None:
        where = raised.exc_traceback and raised.exc_traceback.tb_frame.f_code.co_name
        if where != "call_soon_threadsafe" or str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        raised = record.exc_info[1] if record.exc_info else None
        # TensorStore's are ValueErrors that begin with the name of a status: RESOURCE_EXHAUSTED: Failed writing ...
        of_files = isinstance(raised, OSError) or re.match(r"[A-Z_]+: ", str(raised)) is not None
        return not (of_files and "never retrieved" in record.getMessage())
    return record.exc_info is None or "orbax" not in record.pathname
