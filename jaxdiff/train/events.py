"""TensorBoard's event files, written at once.

tensorboardX's own `SummaryWriter` writes from a thread, which a full disk ends, and the program then waits for it for
ever; here an error is raised where it can be answered.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

_FLUSH_SECONDS = 30.0


class Events:
    """Writes one event file.

    Args:
        folder: where; made when missing.
        start: the first step to come: TensorBoard forgets those from it on in older files of the folder.

    Raises:
        OSError: by every method; the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     events = Events(Path(folder), start=1)
        ...     events.number("loss", 0.5, 1)
        ...     events.close()
        ...     len(list(Path(folder).iterdir()))
        1
    """

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        self._writer.write_event(
            Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.START))
        )

    def number(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`."""
        self._add(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """An image, uint8 (H, W, C)."""
        self._add(Event(wall_time=time.time(), step=step, summary=image(name, pixels, dataformats="HWC")))

    def _add(self, event: Event) -> None:
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def close(self) -> None:
        """Writes what is left; closed even where that fails."""
        try:
            self._writer.close()
        except OSError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Closes a file that can no longer be written."""
        with contextlib.suppress(OSError):  # of what was left to write: its error is known
            self._writer._py_recordio_writer.close()
