"""A measurement with an end: workers that are started anew when they die, a clock, and a record always on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.report import say
from benchmarks.speed.pipes import Worker
from jaxdiff import __version__

MODULES = {"jax": "benchmarks.speed.device_jax", "torch": "benchmarks.speed.device_torch"}
LEAST_LEFT = 5.0  # seconds, with fewer of which nothing more is begun


class Session:
    """Workers, clock and record of one measurement.

    Args:
      out: file of the record; None: it is not written.
      limit: seconds in all.
      with_torch: whether PyTorch is measured too, where it is installed.
    """

    def __init__(self, out: Path | None, limit: float, with_torch: bool):
        self.out, self.begun = out, time.monotonic()
        self.end = self.begun + limit
        self.part_end = self.end
        self.workers: dict[str, Worker] = {}
        self.with_torch = with_torch and importlib.util.find_spec("torch") is not None
        self.record: dict[str, Any] = {"unfinished": [], "checks": [], "rows": [], "attention": [], "flags": []}
        self.record["origin"] = {
            "python": platform.python_version(),
            "jaxdiff": __version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "gpu": gpu_as_found(),
        }

    # --- Workers

    def start(self, name: str, flags: str = "") -> Worker:
        """A worker: "jax" and "torch", or another name for a JAX worker of its own with ``flags`` for XLA."""
        kept = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path(tempfile.gettempdir()) / "jaxdiff-compiled")
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the device is shared with PyTorch's process
            "XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), flags])),
            "JAX_COMPILATION_CACHE_DIR": kept,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        self.workers[name] = Worker(MODULES.get(name, MODULES["jax"]), {} if name == "torch" else environment)
        return self.workers[name]

    def worker(self, name: str, seconds: float | None = None) -> Worker:
        """The living worker of that name, which has until the part's end, or ``seconds``, to answer."""
        found = self.workers.get(name) or self.start(name)
        found.deadline = self.part_end if seconds is None else min(self.part_end, time.monotonic() + seconds)
        return found

    def bury(self) -> None:
        """Forgets the workers that have ended; the next question starts new ones."""
        for name, worker in list(self.workers.items()):
            if worker.process.poll() is not None:
                self.stop(name)

    def stop(self, name: str) -> None:
        """Ends a worker, and with it all that it holds on the device."""
        if worker := self.workers.pop(name, None):
            with suppress(OSError):
                worker.__exit__(TimeoutError, None, None)  # two seconds to go by itself

    def drop(self) -> None:
        """Has every worker forget its networks."""
        for name in list(self.workers):
            self.worker(name).ask("drop")

    # --- Time

    def left(self) -> float:
        """Seconds to the part's end."""
        return self.part_end - time.monotonic()

    def part(self, name: str, share: float, run: Callable[[], None]) -> None:
        """A part that may take so large a share of the time that is left."""
        begin = time.monotonic()
        self.part_end = begin + share * (self.end - begin)
        say(f"--- {name}: at most {self.left():.0f} s")
        self.attempt(name, run)
        self.record.setdefault("part_seconds", {})[name] = time.monotonic() - begin
        self.save()

    def attempt(self, title: str, run: Callable[[], None]) -> bool:
        """Runs a piece of a part. What stops it is recorded, and the next piece finds living workers."""
        if self.left() < LEAST_LEFT:
            self.unfinished(title, "no time was left", timed_out=True)
            self.save()
            return False
        try:
            run()
        except (Exception, SystemExit) as error:  # one piece must not cost the others; main exits with 1
            details = [*getattr(error, "__notes__", []), traceback.format_exc()]
            self.unfinished(title, f"{type(error).__name__}: {error}", isinstance(error, TimeoutError), details)
            return False
        finally:
            self.bury()
            self.save()
        return True

    def unfinished(self, title: str, why: str, timed_out: bool, details: list[str] | None = None) -> None:
        say(f"  {title}: not finished: {why.splitlines()[0][:300]}")
        self.record["unfinished"].append({"what": title, "why": why, "timed_out": timed_out, "details": details or []})

    # --- Record

    def save(self) -> None:
        self.record["seconds"] = time.monotonic() - self.begun
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            part = self.out.with_name(self.out.name + ".part")
            part.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
            part.replace(self.out)  # a run that is killed leaves the record of before

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.workers):
            self.stop(name)


def gpu_as_found() -> str | None:
    """Driver, clocks and limits as `nvidia-smi` tells them; nothing is set."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return f"{asked}: {done.stdout.strip()}"


def merged(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Several records of one machine as one: a later row stands for an earlier one of the same.

    >>> row = {"case": "a", "mode": "train", "batch": 1}
    >>> merged([{"rows": [row | {"x": 1}]}, {"rows": [row | {"x": 2}], "limits": {"matmul": 1.0}}])["rows"]
    [{'case': 'a', 'mode': 'train', 'batch': 1, 'x': 2}]
    """
    keys = {
        "rows": ("case", "mode", "batch"),
        "checks": ("name",),
        "attention": ("shape", "dtype", "pass", "form"),
        "flags": ("case", "flags"),
        "unfinished": ("what",),
    }
    whole: dict[str, Any] = {}
    for record in records:
        whole |= {name: value for name, value in record.items() if name not in keys}
    for name, fields in keys.items():
        rows = [row for record in records for row in record.get(name, [])]
        whole[name] = list({json.dumps([row.get(field) for field in fields]): row for row in rows}.values())
    return whole
