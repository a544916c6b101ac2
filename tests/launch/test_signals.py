"""Signals to real processes: at the start they end it, in the loop they save; what may repeat, and what is ignored."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxdiff.launch.signals import Stop
from jaxdiff.train import Checkpoints
from tests.faults.processes import Life, Training
from tests.faults.starts import ENDLESS, interrupts, struck


@pytest.mark.parametrize(
    "options",
    [pytest.param((), id="threads"), pytest.param(("--data.workers", "2"), id="workers", marks=pytest.mark.nightly)],
)
def test_ctrl_c_in_the_start_ends_or_saves(options: tuple[str, ...], tmp_path: Path) -> None:
    tally = interrupts(tmp_path, 3, *options)
    assert (tally.kept, tally.faults) == (3, [])


@pytest.mark.nightly
@pytest.mark.parametrize("options", [(), ("--data.workers", "2")], ids=["threads", "workers"])
def test_ctrl_c_at_forty_moments_of_the_start(options: tuple[str, ...], tmp_path: Path) -> None:
    tally = interrupts(tmp_path, 40, *options)
    assert (tally.kept, tally.faults) == (40, [])


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_among_workers_save(number: signal.Signals, tmp_path: Path) -> None:
    training = Training(tmp_path / "run", (*ENDLESS, "--data.workers", "2"), group=True)
    with training.start() as life:
        life.until(lambda: "step 2/" in life.out)
        assert struck(training, life, number) == []
    assert "stopped after step" in life.out


@pytest.mark.parametrize("start", [("jaxdiff",), ("-m", "jaxdiff")], ids=" ".join)
def test_ctrl_c_amid_the_imports_of_the_command(start: tuple[str, ...], tmp_path: Path, repository: Path) -> None:
    script = tmp_path / "jaxdiff"  # as pip writes it
    script.write_text(
        "import sys\nfrom jaxdiff.commands import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    before = start if start[0] == "-m" else (str(script),)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with Life([sys.executable, *before, "runs", str(tmp_path)], tmp_path / "log", environment) as life:
        assert life.until(lambda: "jaxlib" in Path(f"/proc/{life.process.pid}/maps").read_text())
        life.send(signal.SIGINT)
        assert life.end() == -signal.SIGINT
    assert (life.out, life.err) == ("", "")


def test_a_worker_whose_command_has_ended_says_nothing(run_python: Any, tmp_path: Path) -> None:
    """The process ends while it hands over what a pipe does not hold, and the worker imports: as at Ctrl-C."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, threading\n"
        "from jaxdiff.commands import main\n"
        "if __name__ == '__main__':\n"
        "    threading.Timer(0.3, os._exit, [0]).start()\n"
        "    multiprocessing.get_context('spawn').Process(target=print, args=('x' * 2**20,)).start()\n"
    )
    done = run_python(script, timeout=100)
    assert (done.stdout, done.stderr) == ("", "")


# --- The flag


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in Stop.SIGNALS]
    with pytest.raises(RuntimeError), Stop(say=lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        raise RuntimeError
    assert [signal.getsignal(number) for number in Stop.SIGNALS] == before


def test_a_warning_may_come_twice_and_before_sigterm() -> None:
    said: list[str] = []
    with Stop(say=said.append) as stop:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)  # of which the second and the third are ignored, and so is the last
        assert stop.signal == signal.SIGUSR1
    assert [line.split(":")[0] for line in said] == ["SIGUSR1", "SIGTERM"]
    assert "send SIGTERM to end at once" in said[0] and "once more to end at once" in said[1]


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(say=lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


# --- The loop, in a process


ON_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # its standard input is the terminal that controls it
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Not by preexec_fn, which forks: a process in which JAX has threads warns of that."""


def training(folder: Path, repository: Path, *before: str, **options: object) -> subprocess.Popen[bytes]:
    run = ["-u", "-m", "tests.train.runs", str(folder), "100000", "--pause", "0.05"]
    return subprocess.Popen([sys.executable, *before, *run], cwd=repository, **options)  # type: ignore[call-overload]


def newest(folder: Path) -> int | None:
    with Checkpoints(folder / "checkpoints", readonly=True) as checkpoints:
        return checkpoints.latest()


def test_a_terminal_that_is_closed_saves(tmp_path: Path, repository: Path) -> None:
    """Its process writes to the terminal every 50 ms, before and after, where each write is an error by then."""
    mine, theirs = pty.openpty()
    process = training(
        tmp_path,
        repository,
        "-c",
        ON_TERMINAL,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},  # one line a step, in place of a bar
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    with process, open(mine, "rb", buffering=0) as screen:
        while b"step 3/100000" not in seen:
            seen += screen.read(4096)
        screen.close()
        assert process.wait(60) == 0, seen
    saved = newest(tmp_path)
    assert saved is not None and saved >= 3


def test_a_schedulers_warning_saves_also_where_sigterm_follows(tmp_path: Path, repository: Path) -> None:
    with training(tmp_path, repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        seen = ""
        while "step 3/100000" not in seen:
            seen += process.stdout.readline().decode()
        for number in (signal.SIGUSR1, signal.SIGTERM):
            process.send_signal(number)
        seen += process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0 and "SIGUSR1: finishing the step, then saving" in seen, seen
    (stopped,) = re.findall(r"stopped after step (\d+); saved", seen)
    assert newest(tmp_path) == int(stopped)
