"""What is printed of a failed save: nothing of Orbax's own tracebacks, and everything else as before."""

from __future__ import annotations

import asyncio
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tensorstore

from jaxdiff.train.failed_save import quiet_failed_saves


def test_who_reports_to_a_closed_loop_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: said.append(str(raised.exc_value)))
    pair: tuple[Any, Any] = tensorstore.Promise.new()
    promise, future = pair

    async def wait() -> None:
        await future

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))  # now it waits
    quiet_failed_saves.cache_clear()
    quiet_failed_saves(saves=False)
    loop.close()
    promise.set_result(None)
    assert said == []
    sys.unraisablehook(SimpleNamespace(exc_value=ValueError("of someone else"), exc_traceback=None))
    assert said == ["of someone else"]
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_only_dropped_errors_of_files_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    quiet_failed_saves(saves=False)
    log = logging.getLogger("asyncio")
    log.error("Future exception was never retrieved", exc_info=OSError(28, "No space left on device"))
    log.error("Task exception was never retrieved", exc_info=ValueError("RESOURCE_EXHAUSTED: Error opening a driver"))
    assert caplog.records == []
    log.error("Future exception was never retrieved", exc_info=ValueError("a mistake"))
    log.error("something else", exc_info=OSError(28, "No space left on device"))
    assert len(caplog.records) == 2
