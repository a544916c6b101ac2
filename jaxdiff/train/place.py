"""A run's folder that is moved, removed or replaced while the run trains.

Open files go with a folder that is moved, and whatever is opened by its name comes to lie where it was: half of the run
here, half of it there. So the folder of the checkpoints is looked at before anything is written by name, and once more
before a checkpoint gets its name: one that is being written at that moment is given up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import weakref
from pathlib import Path

from jaxdiff.compat import TMP_DIR_SUFFIX


class Place:
    """Holds the folder that stands at a path.

    Args:
        folder: of the checkpoints, in the run's folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     (folder := Path(home, "run", "checkpoints")).mkdir(parents=True)
        ...     place = Place(folder)
        ...     before = place.lost()
        ...     _ = folder.parent.rename(Path(home, "other"))
        ...     before, "was moved, removed or replaced" in place.lost()
        (None, True)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = os.open(folder, os.O_RDONLY)  # goes with it; and no new folder gets its number
        weakref.finalize(self, os.close, self._held)

    def lost(self) -> str | None:
        """One line for people where another folder or none stands there; None where it is the same."""
        try:
            there: os.stat_result | None = self._folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            there = None
        except OSError:  # a file system that does not answer: whoever writes will be told
            return None
        if there is not None and os.path.samestat(there, os.fstat(self._held)):
            return None
        found = self._now()
        where = f"{found}, where it is now," if found else "the folder's new place"
        return (
            f"{self._folder.parent} was moved, removed or replaced while the run was training: nothing more is written "
            f"there; the same command with --workdir and {where} goes on from its last checkpoint"
        )

    def sweep(self) -> None:
        """Removes half-written checkpoints; and the folders, when empty, that these have made anew in a lost place."""
        for partial in self._folder.glob(f"*{TMP_DIR_SUFFIX}"):
            shutil.rmtree(partial, ignore_errors=True)
        if self.lost():
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                self._folder.parent.rmdir()

    def _now(self) -> Path | None:
        """Where the run's folder is; None where it is removed, or the operating system does not tell."""
        try:
            folder = Path(os.readlink(f"/proc/self/fd/{self._held}"))
            return folder.parent if os.path.samestat(folder.stat(), os.fstat(self._held)) else None
        except OSError:
            return None
