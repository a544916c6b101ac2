"""A full disk while training: told of, nothing lost, and training goes on or stops as configured.

The disk is a real `train.py`'s limit on the size of a file: every write beyond it fails as on a full disk, in whatever
thread and library it happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import train
from jaxdiff.train import MetricsLog
from tests.tiny_run import TINY

LIMIT = 100_000  # bytes: notes and metrics fit, a state does not


@contextlib.contextmanager
def training(folder: Path, repository: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "train.py", "--workdir", str(folder), *TINY, "--train.steps", "1000000"]
    command += ["--train.sample_every", "0", "--checkpoint.every", "3", "--checkpoint.keep", "1", *options]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=repository, text=True, **pipes) as run:  # type: ignore[call-overload]
        try:
            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                run.kill()


def until(run: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert run.poll() is None and time.monotonic() < deadline, run.stderr and run.stderr.read()
        time.sleep(0.02)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit())


def logged(folder: Path) -> int:
    whole = (folder / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    return int(json.loads(whole[-1])["step"]) if whole else 0


def limit(run: subprocess.Popen[str], size: int) -> None:
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_it_goes_on_and_saves_again_when_there_is_room(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, repository) as run:
        until(run, lambda: bool(saved(folder)))
        limit(run, LIMIT)
        time.sleep(0.5)
        full = logged(folder)
        before = saved(folder)
        until(run, lambda: logged(folder) > full + 9)  # three saves later
        kept = saved(folder)[-1]
        assert kept >= before[-1]
        limit(run, resource.RLIM_INFINITY)
        until(run, lambda: saved(folder)[-1:] > [kept])
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    warnings = [line for line in err.splitlines() if "could not be saved" in line]
    assert warnings and all("; the newest is that of step " in line and "goes on" in line for line in warnings), err
    assert all(" (File too large); " in line for line in warnings), warnings
    assert "Traceback" not in err, err
    assert list(folder.glob("checkpoints/*tmp*")) == [] and len(saved(folder)) <= 2  # the latest, and the best
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, saved(folder)[-1] + 1))


@pytest.mark.nightly
def test_it_stops_where_that_is_configured_and_goes_on_later(tmp_path: Path, repository: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    with training(folder, repository, "--checkpoint.on_error", "stop") as run:
        until(run, lambda: bool(saved(folder)))
        limit(run, LIMIT)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 2 and "Traceback" not in err, err
    (last,) = [line for line in err.splitlines() if line.startswith("train.py: error: ")]
    assert "the checkpoint of step " in last and "could not be saved" in last and " (File too large); " in last
    assert err.splitlines()[-1] == last, err
    *_, kept = saved(folder)
    assert f"the newest is that of step {kept}" in last
    again = ["--workdir", str(folder), *TINY, "--train.sample_every", "0", "--train.steps", str(kept + 1)]
    train.main(again)
    assert f"going on after step {kept}" in capsys.readouterr().out


def test_metrics_wait_for_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 1.0})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
        try:
            for step in range(2, 600):
                log.write(step, {"loss": 1.0})
            assert os.path.getsize(tmp_path / "metrics.jsonl") == 30
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.write(600, {"loss": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 601))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("cannot be written (File too large)" in line for line in said)
    assert "metrics.jsonl" in said[0] and "tensorboard" in said[1]
