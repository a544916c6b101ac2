"""Programs as several processes on this machine, each with simulated devices, that find each other on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEER_TIMEOUT = 10
LIMIT = 240.0  # seconds for anything to happen; never reached by tests that pass


def free_port(candidates: Sequence[int] = (0,)) -> int:
    """A port that nobody listens on: any, or the first such of some."""
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("none of these ports is free")


class Process:
    """A program whose output is read as it comes."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.out, self.err = list[str](), list[str]()
        pairs = ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pairs]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line)

    def wait(self, timeout: float = LIMIT) -> int:
        status = self.popen.wait(timeout)
        for reader in self._readers:
            reader.join(timeout=10)
        for stream in (self.popen.stdout, self.popen.stderr):
            assert stream is not None
            stream.close()
        return status

    @property
    def said(self) -> str:
        return f"--- stdout\n{''.join(self.out)}--- stderr\n{''.join(self.err)}"


class Group:
    """Processes of one program.

    Args:
        program: its command, without Python.
        processes: how many; one runs without `--distributed`.
        devices: simulated devices of each.
        environment: more variables.
    """

    def __init__(
        self,
        *program: str | Path,
        processes: int = 1,
        devices: int = 1,
        environment: dict[str, str] | None = None,
        flags: Sequence[str] | None = None,
    ) -> None:
        address = f"127.0.0.1:{free_port()}"
        # NPROC: with more simulated devices than cores, queued collectives can deadlock in a thread pool of `cores`.
        variables = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "32", "PYTHONUNBUFFERED": "1"}
        # Of a run that is started again, nothing is compiled twice.
        variables |= {"PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **(environment or {})}
        self.members = []
        for index in range(processes):
            joined = ["--distributed", address, "--num_processes", str(processes), "--process_id", str(index)]
            joined += ["--peer_timeout", str(PEER_TIMEOUT)]
            more = [] if processes == 1 else joined if flags is None else [*flags, address, str(processes), str(index)]
            self.members.append(Process([sys.executable, *map(str, program), *more], variables))

    def finish(self, timeout: float = LIMIT) -> list[str]:
        """Waits for all to end well; their standard outputs."""
        for number, member in enumerate(self.members):
            status = member.wait(timeout)
            assert status == 0, f"process {number} ended with {status}\n{member.said}"
        return ["".join(member.out) for member in self.members]

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for something to hold, while all live."""
        deadline = time.monotonic() + LIMIT
        while not holds():
            assert time.monotonic() < deadline, "it did not come to pass\n" + "\n".join(m.said for m in self.members)
            dead = [member for member in self.members if member.popen.poll() is not None]
            assert not dead, "ended too early\n" + "\n".join(member.said for member in dead)
            time.sleep(0.02)

    def send(self, number: signal.Signals, index: int) -> None:
        self.members[index].popen.send_signal(number)

    def kill(self) -> None:
        for member in self.members:
            if member.popen.poll() is None:
                member.popen.kill()
            member.wait()
