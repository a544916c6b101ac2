"""Two programs that take turns: a worker computes only while it is asked something, and its parent only waits.

A question is one line of JSON, ``{"do": method, ...arguments}``, and so is the answer, ``{"result": ...}`` or
``{"error": ...}``. Arrays go by file.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """What a worker was asked failed; its traceback is among the notes."""


def serve(side: Any) -> None:
    """Answers questions with the methods of ``side`` until the parent closes the pipe.

    What libraries print goes to the error stream, so that answers stand alone on the other.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"result": getattr(side, question.pop("do"))(**question)}
        except Exception as error:  # reported to the parent, which decides
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            answer = {"error": reason, "details": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """A process that runs a module of this package under `serve`.

    Args:
      module: its dotted name.
      environment: variables to add.

    Attributes:
      deadline: by `time.monotonic`, when a question that is still unanswered ends the process; None: never.
    """

    def __init__(self, module: str, environment: Mapping[str, str]):
        self.deadline: float | None = None
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The result of a method of the worker's.

        Raises:
          WorkerError: it raised an exception.
          RuntimeError: the process ended.
          TimeoutError: it was ended, at the deadline.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        if self.deadline is not None:
            left = max(0.0, self.deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                self.process.kill()
                self.process.wait()
                raise TimeoutError(f"{self.module} was still asked to {do} when its time was over")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} ended while asked to {do}: exit status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            error = WorkerError(answer["error"])
            error.add_note(answer["details"])
            raise error
        return answer["result"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended with a question unread
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30 if kind is None else 2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
