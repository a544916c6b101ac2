"""What is printed of a failed save: nothing of Orbax's own tracebacks, and everything else as before."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from jaxdiff.train.aftermath import keep_to_itself


def test_a_thread_that_reports_to_a_closed_loop_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    keep_to_itself.cache_clear()
    keep_to_itself()
    loop = asyncio.new_event_loop()
    loop.close()
    try:
        loop.call_soon_threadsafe(print)
    except RuntimeError as error:
        assert error.__traceback__ is not None
        inner = error.__traceback__.tb_next  # as for a caller that is no Python
        sys.excepthook(RuntimeError, error, inner)
        assert capsys.readouterr().err == ""
        sys.excepthook(RuntimeError, error, error.__traceback__)
        assert "Event loop is closed" in capsys.readouterr().err
    sys.excepthook(ValueError, ValueError("of someone else"), None)
    assert "of someone else" in capsys.readouterr().err


def test_only_dropped_errors_of_files_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    keep_to_itself()
    log = logging.getLogger("asyncio")
    log.error("Future exception was never retrieved", exc_info=OSError(28, "No space left on device"))
    assert caplog.records == []
    log.error("Future exception was never retrieved", exc_info=ValueError("a mistake"))
    log.error("something else", exc_info=OSError(28, "No space left on device"))
    assert len(caplog.records) == 2
