"""A run's folder that is moved, removed or replaced while the run trains.

Open files go with a folder that is moved, and whatever is opened by its name comes to lie where it was: half of the run
here, half of it there. So the folder of the checkpoints is looked at before anything is written by name. A save that
is going on at that moment ends where it was begun.
"""

from __future__ import annotations

from pathlib import Path


class Place:
    """Remembers which folder stands at a path.

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
        self._inode = folder.stat().st_ino

    def lost(self) -> str | None:
        """One line for people where another folder or none stands there; None where it is the same."""
        try:
            there: int | None = self._folder.stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            there = None
        except OSError:  # a file system that does not answer: whoever writes will be told
            return None
        if there == self._inode:
            return None
        return (
            f"{self._folder.parent} was moved, removed or replaced while the run was training: nothing more is written "
            "there; the same command with --workdir and the folder's new place goes on from its last checkpoint"
        )
