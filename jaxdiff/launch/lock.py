"""A folder held by one process: an operating system's lock (`flock`) on a file in it.

The lock ends with the process, however that ends, so none is ever left over; what stands in the file only says who
holds it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO

from jaxdiff.launch.errors import ConfigError


def locked(file: Path) -> IO[str]:
    """The file of a lock, opened and locked: closing it gives its folder back.

    Raises:
      ConfigError: another process holds it.
    """
    lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115
    for patience in (0.1, 0.1, 0.0):  # whoever lists runs (`jaxdiff.runs.listing`) has it for an instant
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if patience:
                time.sleep(patience)
                continue
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ConfigError(
                f"{file.parent} is in use by {holder}: wait for it, end it, or choose another --workdir"
            ) from None
        except OSError as error:
            print(
                f"WARNING: {file.parent} cannot be locked ({error.strerror}): start no second run there",
                file=sys.stderr,
            )
            return lock
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock."""
    if not file.exists():
        return False
    with file.open("rb") as stream:
        try:
            # Shared, and let go at once: two who list runs do not see each other.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
