"""A file that a command was asked for: tried before the work begins, and kept elsewhere where it cannot be written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdiff.launch.errors import ConfigError


def check_output(path: Path, option: str = "--out") -> None:
    """Tries to write where a file, or a folder of files, is to come; nothing is left there.

    Raises:
      ConfigError: that cannot be done, with the reason and the option's name.
    """
    if path.suffix and path.is_dir():
        raise ConfigError(f"{option}: {str(path)!r} is a folder, expected the name of a file")
    folder = path if path.is_dir() else path.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise ConfigError(f"{option}: {str(folder)!r} cannot be written ({error.strerror})") from error


def write_output(path: Path, write: Callable[[Path], Any], option: str = "--out") -> None:
    """Writes a file; where that fails, another of its name in the folder for temporary files.

    Args:
      path: the file.
      write: writes it to a path.
      option: that the file's name is from.

    Raises:
      ConfigError: it could not be written where it was asked for; the message says where it is instead.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_output(Path(folder, "a.txt"), lambda file: file.write_text("done"))
    ...     Path(folder, "a.txt").read_text()
    'done'
    """
    try:
        write(path)
    except OSError as error:
        said = f"{option}: {str(path)!r} cannot be written ({error.strerror})"
        try:
            kept = Path(tempfile.mkdtemp(prefix="jaxdiff-")) / path.name
            write(kept)
        except OSError as again:
            raise ConfigError(f"{said}, nor can the folder for temporary files ({again.strerror})") from error
        raise ConfigError(f"{said}; what was to stand there is in {kept}") from error
