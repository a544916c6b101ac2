"""What is printed of a failed save: nothing of Orbax's own tracebacks, and everything else as before."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import optax
import pytest
import tensorstore

from jaxdiff.compat import AtomicRenameTemporaryPath
from jaxdiff.train import (
    CheckpointError,
    Checkpoints,
    SaveError,
    create_sharded_state,
    make_mesh,
    read_weights,
    state_template,
)
from jaxdiff.train.failed_save import quiet_failed_saves
from tests.train.standins import Loss, Net


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
    with quiet_failed_saves(saves=False):
        loop.close()
        promise.set_result(None)
        assert said == []
        sys.unraisablehook(SimpleNamespace(exc_value=ValueError("of someone else"), exc_traceback=None))
        assert said == ["of someone else"]
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_only_dropped_errors_of_files_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("asyncio")
    with quiet_failed_saves(saves=False):
        log.error("Future exception was never retrieved", exc_info=OSError(28, "No space left on device"))
        log.error("Task exception was never retrieved", exc_info=ValueError("RESOURCE_EXHAUSTED: Error opening"))
        assert caplog.records == []
        log.error("Future exception was never retrieved", exc_info=ValueError("a mistake"))
        log.error("something else", exc_info=OSError(28, "No space left on device"))
        assert len(caplog.records) == 2
    log.error("Future exception was never retrieved", exc_info=OSError(28, "No space left on device"))
    assert len(caplog.records) == 3


def state() -> tuple[Any, ...]:
    filters = [list(logging.getLogger(name).filters) for name in ("absl", "asyncio")]
    return sys.unraisablehook, filters, list(warnings.filters)


def test_reading_and_saving_leave_hooks_and_loggers_as_they_were(tmp_path: Path) -> None:
    parts: Any = Net(), optax.sgd(0.1), Loss(), jax.random.key(0), make_mesh(data=1)
    with Checkpoints(tmp_path / "first"):  # imports, and what Orbax itself sets up, once
        pass
    before = state()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, create_sharded_state(*parts), {})
        assert state() != before
    assert state() == before
    read_weights(tmp_path / "checkpoints", state_template(*parts).params)
    assert state() == before
    with pytest.raises(CheckpointError):
        Checkpoints(tmp_path / "nothing", readonly=True)
    assert state() == before


def test_a_step_whose_folder_cannot_be_made_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax's threads would wait for the folder, and the end of the program for them."""

    async def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    parts: Any = Net(), optax.sgd(0.1), Loss(), jax.random.key(0), make_mesh(data=1)
    before = set(threading.enumerate())
    monkeypatch.setattr(AtomicRenameTemporaryPath, "create", full)
    with pytest.raises(SaveError, match=r"step 1 .*No space left on device"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, create_sharded_state(*parts), {})
        checkpoints.wait()
    waiting = [thread for thread in set(threading.enumerate()) - before if not thread.daemon]
    for thread in waiting:
        threading.Thread.join(thread, 5)  # Orbax's own raises what ended it
    assert [thread for thread in waiting if thread.is_alive()] == []


def test_scopes_that_do_not_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is left while the second is still in force, and the second ends with what the first has found."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    first, second = quiet_failed_saves(saves=False), quiet_failed_saves(saves=False)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    raised = SimpleNamespace(exc_value=ValueError("Event loop is closed"), exc_traceback=None)
    sys.unraisablehook(raised)
    assert said == [raised]
