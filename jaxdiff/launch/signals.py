"""What a signal does to a command: it ends it at once, or it is answered by `Stop` where there is something to save.

Python answers Ctrl-C by an exception in whatever the main thread runs at that moment. At the start of a command this is
often the callback that JAX has registered with the garbage collector, and an exception in a callback is printed and
dropped: the command goes on. So a command gives SIGINT its default effect in its first line (`end_at_signals`): the
operating system ends the process, also amid a long call of compiled code. A shell sees the status 130 (SIGTERM: 143).
Nothing is at risk then: whatever a command writes is there whole or not at all, and a lock ends with its process.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

AT_ONCE = (signal.SIGINT, signal.SIGTERM)
"""Signals of a person or a scheduler, of which a second one ends the process at once."""
MAY_REPEAT = (signal.SIGHUP, signal.SIGUSR1)
"""A terminal that closes sends SIGHUP twice, and a scheduler's warning is followed by SIGTERM: those do no harm."""


def end_at_signals() -> None:
    """Has SIGINT end this process at once, outside of `Stop`; lines that are printed are written at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which `start_again` has blocked
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def end_with_command() -> None:
    """Has a worker process that is still starting say nothing where its command ends before it has told what to read.

    >>> end_with_command()  # does nothing elsewhere
    """
    told = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, EOFError) and not str(error).endswith("data was truncated"):
            told(kind, error, trace)

    if "--multiprocessing-fork" in sys.orig_argv:
        sys.excepthook = tell


class Stop:
    """Turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a flag, for the length of a `with`.

    After the first SIGINT or SIGTERM a second one of either kind has its default effect: the process ends at once.
    SIGHUP and SIGUSR1 may come again, and before SIGTERM. A SIGHUP that is ignored from the start stays so (nohup).
    The handlers that were there are restored at the end. Enter it after `jax.distributed.initialize`, which installs a
    SIGTERM handler of its own. Outside of the main thread, where Python allows no handlers, it does nothing.

    Args:
        what: what happens before the end, for the line that is said.
        say: gets one line when a signal comes.

    Attributes:
        signal: the first signal that came; None before.

    Example:
        >>> import os, signal
        >>> with Stop(say=print) as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.requested
        SIGTERM: finishing the step, then saving; once more to end at once
        True
    """

    SIGNALS = (*AT_ONCE, *MAY_REPEAT)

    def __init__(self, what: str = "finishing the step, then saving", say: Callable[[str], None] | None = None) -> None:
        self.signal: int | None = None
        self._what = what
        self._say = say or (lambda text: _write(f"\n{text}\n"))
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker has inherited the handler, not the loop
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        repeat = "send SIGTERM to end at once"
        if number in AT_ONCE:
            repeat = "once more to end at once"
            for each in AT_ONCE:
                signal.signal(each, signal.SIG_DFL)
        for each in MAY_REPEAT:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGHUP:
            _leave_a_closed_terminal()
        self.signal = self.signal or number
        self._say(f"{signal.Signals(number).name}: {self._what}; {repeat}")

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _write(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:  # the terminal is gone, and nobody is left to be told
        _leave_a_closed_terminal()


def _leave_a_closed_terminal() -> None:
    """Has stdout and stderr go nowhere where their terminal is closed: each line that is printed would be an error."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
