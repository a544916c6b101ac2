"""The smallest run that is worth loading, trained once for all tests: `trained` and `tiny_run` in tests/conftest.py."""

from __future__ import annotations

import fcntl
from pathlib import Path

import train

TINY = (
    *("--network.width", "8", "--network.multipliers", "1", "2", "--network.blocks", "1", "--train.batch_size", "16"),
    *("--train.log_every", "1", "--sample.steps", "3", "--sample.num", "10", "--optimizer.schedule", "constant"),
)


def train_once(shared: Path) -> Path:
    """The run's folder in a folder shared by several processes: who comes first trains it, the others wait."""
    folder, done = shared / "trained" / "digits", shared / "trained" / "done"
    folder.parent.mkdir(exist_ok=True)
    with (shared / "trained" / "waiting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            train.main(["--workdir", str(folder), "--train.steps", "2", "--train.sample_every", "2", *TINY])
            done.touch()
    return folder
