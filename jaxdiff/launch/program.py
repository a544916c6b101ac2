"""How a person has started this process, and so what to call a command, and the lines that start the next one."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

FILES = ("train.py", "sample.py", "evaluate.py")
"""The repository's files, each a command of its own."""


def program(name: str) -> str:
    """What a person calls a command here: ``train.py`` where that file was started, else ``jaxdiff train``.

    >>> program("train")
    'jaxdiff train'
    """
    return f"{name}.py" if _file() else f"jaxdiff {name}"


def is_command() -> bool:
    """Whether this process is ``jaxdiff`` or ``python -m jaxdiff``; known before anything of ours is imported.

    >>> is_command()
    False
    """
    module = sys.argv[0] == "-m" and any(each.split(".")[0] == "jaxdiff" for each in sys.orig_argv)
    return module or Path(sys.argv[0]).name == "jaxdiff"


def about(name: str, text: str | None) -> str | None:
    """The help of a command, which speaks of ``jaxdiff NAME``, in the words of whoever started its file."""
    return text.replace(f"jaxdiff {name}", f"python {name}.py") if text and _file() else text


def command(name: str, *arguments: str) -> str:
    """A line that starts a command in the way this process was started, to copy.

    Args:
      name: of the command.
      arguments: of it.

    >>> command("sample", "my runs/digits").partition("sample ")[2]
    "'my runs/digits'"
    """
    python = min(sys.executable, os.path.relpath(sys.executable), key=len)
    if file := _file(f"{name}.py"):
        return shlex.join([python, os.path.relpath(file), *arguments])
    started = Path(sys.argv[0])
    if started.name != "jaxdiff":  # of a notebook, or by python -m jaxdiff
        return shlex.join([python, "-m", "jaxdiff", name, *arguments])
    found = shutil.which("jaxdiff")
    found = "jaxdiff" if found and Path(found).samefile(started) else os.path.relpath(started)
    return shlex.join([found, name, *arguments])


def _file(name: str = "") -> Path | None:
    """The file that was started, or its neighbour of another name; None where it is none of `FILES`."""
    started = Path(sys.argv[0])
    file = started.with_name(name) if name and started.name in FILES else started
    return file if started.name in FILES and file.is_file() else None
