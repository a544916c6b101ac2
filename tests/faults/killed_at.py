"""A program that kills itself at a chosen change of a file: `python -m tests.faults.killed_at N PATTERN train.py ...`.

Runs the program as `python train.py ...` would, and sends itself SIGKILL just before the N-th time that its Python code
creates, opens for writing, renames, cuts or removes something whose absolute path has a match of the regular expression
PATTERN, whichever thread does so. What compiled code writes (Orbax's arrays) is not counted: moments chosen by the
clock are for that.
"""

from __future__ import annotations

import itertools
import os
import re
import runpy
import signal
import sys
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an audit event is about to change; None where it changes none."""
    if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
        return None
    if not isinstance(arguments[0], str | bytes | os.PathLike):  # a file descriptor
        return None
    path = os.fsdecode(arguments[0])
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to a folder held open, as rmtree does it
        path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
    return os.path.abspath(path)


def main(number: int, pattern: str, program: list[str]) -> None:
    count = itertools.count(1)  # one step of C code: threads cannot come between

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = _changed(event, arguments)
        if path is not None and re.search(pattern, path) and next(count) == number:
            os.write(2, f"killed before {event} {path}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = program
    sys.path[0] = os.path.dirname(os.path.abspath(program[0]))  # as for a program started by its name
    sys.addaudithook(hook)
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
