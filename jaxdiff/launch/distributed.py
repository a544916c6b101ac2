"""One program in several processes: how they find each other, who goes first, and how one of them ends.

    train.py --distributed auto                                         under Slurm, Open MPI, Kubernetes, TPU pods
    train.py --distributed HOST:PORT --num_processes 4 --process_id 0   by hand: the same with 1, 2 and 3 elsewhere

The processes are JAX's own (`jax.distributed`): process 0 holds a coordination service at HOST:PORT, all others send it
heartbeats, and devices of all together are `jax.devices()`. What is added here is how they start and end:

- Who does not meet all the others within `--join_timeout` says so in one line and ends (JAX would abort).
- A process that ends by a mistake or an error leaves at once, without waiting for the others in JAX's exit barrier:
  they may wait for it in a collective operation. They notice: by a connection that breaks, or by heartbeats that stay
  away for `--peer_timeout` seconds, when JAX's runtime ends them with a message of its own and status 134.
- SIGTERM keeps its usual effect. JAX's preemption service would swallow it, and the training loop has its own answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn, TypeVar

import jax
import numpy as np

from jaxdiff import compat
from jaxdiff.launch.errors import ConfigError
from jaxdiff.launch.start import StartOptions

Value = TypeVar("Value")

AUTO = "auto"
GRACE = 5.0  # seconds that a process which fails waits for the others to have failed in the same way
EXIT_TIMEOUT = 7 * 24 * 3600  # seconds that a process which is done waits for the others to be done; heartbeats go on
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset) by|socket closed|coordination service|heartbeat|barrier (has )?failed", re.I
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions(StartOptions):
    """Options of the programs that run in several processes."""

    distributed: str | None = None
    """One of several processes: auto (Slurm, Open MPI, Kubernetes, TPU pods), or HOST:PORT of process 0."""
    num_processes: int | None = None
    """How many processes; with HOST:PORT."""
    process_id: int | None = None
    """Which of them this is, from 0; with HOST:PORT."""
    join_timeout: int = 300
    """Seconds to wait for all processes at the start."""
    peer_timeout: int = 60
    """Seconds of silence after which a process is taken for dead, and the others end."""


def join(options: ProcessOptions) -> None:
    """Starts JAX: with ``--distributed`` as one of several processes, before it is used otherwise.

    Raises:
      ConfigError: options that do not fit each other, nothing found by auto, a port that cannot be had, or no device.
    """
    _join(options)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # such as JAX_PLATFORMS=cuda, and no CUDA
        asked = os.environ.get("JAX_PLATFORMS")
        why = str(error) or "JAX finds no such device here; leave it out, or install JAX for it"
        raise ConfigError(f"{f'JAX_PLATFORMS={asked}' if asked else 'JAX'}: {why}") from error


def _join(options: ProcessOptions) -> None:
    address, count, index = options.distributed, options.num_processes, options.process_id
    for name in ("join_timeout", "peer_timeout"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name}: {getattr(options, name)} is out of range, it must be at least 1")
    if address is None:
        if count is not None or index is not None:
            raise ConfigError("--num_processes and --process_id go with --distributed HOST:PORT, which is missing")
        return
    if address == AUTO:
        if count is not None or index is not None:
            raise ConfigError(
                "--distributed auto finds the processes itself: leave out --num_processes and --process_id"
            )
        address = None
    else:
        _check_explicit(address, count, index)
    jax.config.update("jax_enable_preemption_service", False)
    with _limit(options):
        try:
            jax.distributed.initialize(
                address,
                count,
                index,
                cluster_detection_method=None if address is None else "deactivate",
                initialization_timeout=options.join_timeout + 60,  # ours comes first
                heartbeat_timeout_seconds=options.peer_timeout,
                shutdown_timeout_seconds=EXIT_TIMEOUT,
            )
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            if address is None and "defined" in str(error):
                raise ConfigError(
                    "--distributed auto: there is neither Slurm, Open MPI, Kubernetes nor a TPU pod around this "
                    "process; give --distributed HOST:PORT --num_processes N --process_id I"
                ) from error
            raise ConfigError(f"--distributed {options.distributed}: {error}") from error


def _check_explicit(address: str, count: int | None, index: int | None) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--distributed: {address!r} is neither auto nor HOST:PORT of process 0, such as 10.0.0.1:1234"
        )
    if count is None or index is None:
        raise ConfigError("--distributed HOST:PORT needs --num_processes N and --process_id I")
    if count < 1 or not 0 <= index < count:
        raise ConfigError(
            f"--process_id {index} of --num_processes {count}: there must be at least 1, and ids run from 0 to N - 1"
        )


@contextlib.contextmanager
def _limit(options: ProcessOptions) -> Iterator[None]:
    # JAX's own limit ends the process by an abort with a stack trace, and cannot be caught.
    def give_up() -> None:
        who = "process 0" if options.process_id else "the others"
        print(
            f"{os.path.basename(sys.argv[0])}: error: --distributed {options.distributed}: {who} did not answer within "
            f"{options.join_timeout} s (--join_timeout); are all started, and is the port open between them?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(options.join_timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def lead_first(what: str) -> Iterator[bool]:
    """Process 0 runs the block before the others do, whether it succeeds or not; gives whether this is process 0.

    Args:
      what: a name for the place in the program, the same in all processes.

    >>> with lead_first("folder") as lead:
    ...     lead
    True
    """
    lead = jax.process_index() == 0
    if not lead:
        meet(what)
    try:
        yield lead
    finally:
        if lead:
            meet(what)


def as_lead(value: Value) -> Value:
    """Process 0's value, in all processes; anything that JSON holds.

    >>> as_lead([3, 5])
    [3, 5]
    """
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(compat.multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    given: Value = json.loads(bytes(compat.multihost_utils.broadcast_one_to_all(np.resize(text, length))))
    return given


def meet(what: str) -> None:
    """All processes wait for each other; ``what`` as of `lead_first`."""
    if jax.process_count() > 1:
        compat.multihost_utils.sync_global_devices(what)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process is gone: the communication between devices broke.

    >>> is_lost_peer(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:17117"))
    False
    """
    return jax.distributed.is_initialized() and _LOST.search(str(error)) is not None


def leave_alone(program: str, error: BaseException, expected: bool) -> NoReturn:
    """Ends one of several processes by an error, without waiting for the others.

    Args:
      program: its name.
      error: what ended it.
      expected: a mistake, to be told in one line with status 2; anything else has status 1, and Ctrl-C 130.
    """
    if isinstance(error, KeyboardInterrupt):
        _exit(130)
    if is_lost_peer(error):
        reason = " ".join(str(error).split())[:200]
        print(
            f"{program}: error: process {jax.process_index()} of {jax.process_count()} has lost another process "
            f"({reason}); start all of them again with the same command to go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        _exit(1)
    if expected:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    goodbye.start()
    goodbye.join(GRACE)
    _exit(2 if expected else 1)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
