"""A trace of a few steps by `jax.profiler`, for XProf, TensorBoard or https://ui.perfetto.dev."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax


class Window(NamedTuple):
    """Steps first .. last, both included, counted from 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """From ``"100:110"``.

        Raises:
            ValueError: it is not of that form, or empty.

        Example:
            >>> Window.parse("100:110")
            Window(first=100, last=110)
        """
        match = re.fullmatch(r"(\d+):(\d+)", text)
        window = cls(*map(int, match.groups())) if match else None
        if window is None or not 1 <= window.first <= window.last:
            raise ValueError(f"{text!r} is not a range of steps; the first is 1, and 100:110 is the 11 from 100 to 110")
        return window


class StepTrace:
    """Traces the steps of a window into a folder. Use it in a `with`, which ends a trace that is still open.

    Args:
        window: which steps; None: none. Where one call takes several steps, whole calls are traced.
        folder: where.
        say: gets a line when the trace is written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, StepTrace(Window(2, 3), Path(folder), say=print) as trace:
        ...     for step in range(4):
        ...         trace.before(step, step + 1, jax.numpy.zeros(()))
        ...         trace.after(step + 1, jax.numpy.ones(()))    # doctest: +ELLIPSIS
        traced steps 2 to 3: /...
    """

    def __init__(self, window: Window | None, folder: Path, say: Callable[[str], None]) -> None:
        self._window, self._folder, self._say = window, folder, say
        self._begun: int | None = None

    def before(self, step: int, after: int, earlier: object) -> None:
        """Call before a call that goes from `step` steps to `after`; the arrays `earlier` are waited for."""
        if self._window is None or self._begun is not None or after < self._window.first or step >= self._window.last:
            return
        jax.block_until_ready(earlier)
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(str(self._folder))
        self._begun = step + 1

    def after(self, step: int, result: object) -> None:
        """Call after it, with what it gave."""
        if self._window is None or self._begun is None or step < self._window.last:
            return
        jax.block_until_ready(result)
        self._end(step)

    def _end(self, step: int) -> None:
        jax.profiler.stop_trace()
        self._say(f"traced steps {self._begun} to {step}: {self._folder}")
        self._window = self._begun = None

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun is not None:
            jax.profiler.stop_trace()
        elif self._window is not None:
            self._say(f"no trace: steps {self._window.first} to {self._window.last} were not run")
