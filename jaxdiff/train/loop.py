"""The loop around the step: data in, metrics out, checkpoints, signals.

What it takes care of, so that `train.py` reads as a story:

- The device is never left waiting for the host, nor the host running far ahead: while step n computes, a thread reads
  batch n + 1 and puts it on the devices (`jaxdiff.train.prefetch`); after dispatching step n the loop waits for step
  n - 2 (for step n itself on several simulated CPU devices, whose queued collectives can deadlock). Metrics stay on the
  device until a step is logged.
- The loop runs under `jax.transfer_guard("disallow")`: a transfer nobody asked for is an error, not a slow run.
  Callbacks, checkpoints and logging are outside of the guard.
- A first SIGINT or SIGTERM ends the run after the step in progress with a checkpoint; a second ends the process at
  once. Of several processes it is enough that one gets it: all agree on the step (`jaxdiff.train.agreement`).
- A loss, gradient or parameter that is not finite ends the run before it can reach a checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdiff.train.agreement import Agreement
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.metrics import MetricsLog, Progress, summarize
from jaxdiff.train.prefetch import Data, Prefetch
from jaxdiff.train.sharding import batch_sharding
from jaxdiff.train.state import TrainState

Callback = Callable[[int, TrainState], None]


class DivergedError(Exception):
    """Training produced a number that is not finite; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a loop ended.

    Attributes:
        state: the last state.
        step: its step.
        stopped: ended by a signal, before the last step.
        images_per_second: over the steps, without compilation, callbacks and checkpoints; NaN when no step was timed.
        host_memory, device_memory: peak bytes of this process, and of its fullest device (None where the backend does
            not tell).
    """

    state: TrainState
    step: int
    stopped: bool
    images_per_second: float
    host_memory: int
    device_memory: int | None


class Stop:
    """Turns the first SIGINT or SIGTERM into a flag, for the length of a `with`.

    A second signal of either kind has its default effect: the process ends at once. The handlers that were there are
    restored at the end. Enter it after `jax.distributed.initialize`, which installs a SIGTERM handler of its own.
    Outside of the main thread, where Python allows no handlers, it does nothing.

    Args:
        say: gets one line when the first signal comes.

    Example:
        >>> import os, signal
        >>> with Stop(say=print) as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.requested
        SIGTERM: finishing the step, then saving; once more to end at once
        True
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self._say = say or (lambda text: os.write(2, f"\n{text}\n".encode()))
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != self._owner:  # a forked worker has inherited the handler, not the loop
            os.kill(os.getpid(), number)
            return
        self.requested = True
        self._say(f"{signal.Signals(number).name}: finishing the step, then saving; once more to end at once")

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def train_loop(
    step_fn: Any,
    state: TrainState,
    data: Data,
    *,
    steps: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    log_every: int = 100,
    save_every: int = 1000,
    callbacks: Sequence[tuple[int, Callback]] = (),
    resume_command: str = "the same command",
) -> Outcome:
    """Train from the state's step to `steps`, or to a signal.

    Args:
        step_fn: from `compile_step`.
        state: where to start; its buffers are donated.
        data: gives batches of this process's part. With each checkpoint goes the `position` after the last batch that
            a step has used; when a signal or an error ends the loop, `data` itself may stand one batch further.
        steps: steps of the whole run, those done before included.
        log: where logged steps go.
        checkpoints: where checkpoints go; the last step is always saved.
        log_every: steps between logged steps, at least 1; figures are means over them.
        save_every: steps between checkpoints, at least 1.
        callbacks: (n, f) calls `f(step, state)` after every n-th step and after the last (n = 0: never). It must not
            keep `state`.
        resume_command: printed when a signal ends the run.

    Returns:
        An Outcome. After a signal, and at the end, the state is saved and on disk.

    Raises:
        DivergedError: a loss, gradient norm or parameter norm is not finite; nothing since the last checkpoint is
            saved.
    """
    if log_every < 1 or save_every < 1:
        raise ValueError(f"log_every is {log_every} and save_every {save_every}; both must be at least 1")
    start = step = int(state.step)
    lead = jax.process_index() == 0
    ahead = 0 if jax.default_backend() == "cpu" and jax.device_count() > 1 else 2
    placed = state.step.sharding
    if not isinstance(placed, NamedSharding):
        raise ValueError(f"the state lies on {placed}, not on a mesh; make it with create_sharded_state")
    assert isinstance(placed.mesh, Mesh)
    sharding = batch_sharding(placed.mesh)
    agreement, stopping = Agreement(placed.mesh, ahead), False
    pending: list[Mapping[str, jax.Array]] = []
    record: dict[str, Any] = {}
    clock = _Clock()
    compiled = None

    def flush() -> None:
        # Fetching what the steps since the last flush reported is where the host waits for the device.
        nonlocal record
        if not pending:
            return
        fetched = jax.device_get(pending)
        pending.clear()
        _refuse_non_finite(fetched, step - len(fetched) + 1, checkpoints)
        record = summarize(fetched) | clock.rates()
        log.write(step, record)
        progress.update(step, loss=record["loss"], images_per_second=record["images_per_second"])

    def save() -> None:
        flush()
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        checkpoints.save(step, state, batches.position, numbers)

    with (
        Progress(steps, start, active=lead) as progress,
        Stop() as stop,
        ThreadPoolExecutor(1) as compiler,
        Prefetch(data, sharding) as batches,
    ):
        while step < steps and not stopping:
            clock.run()
            with jax.transfer_guard("disallow"):
                begun = time.perf_counter()
                batch = batches.take()
                clock.waited += time.perf_counter() - begun
                if compiled is None:
                    # In a thread, so that signals are answered meanwhile: Python runs handlers in the main thread only,
                    # between two of its bytecodes.
                    compiled = compiler.submit(_compile, step_fn, state, batch, progress).result()
                    clock = _Clock()
                    clock.run()
                if step + 1 < steps:
                    batches.begin()
                state, metrics = compiled(state, batch)
                pending.append(metrics)
                if len(pending) > ahead:
                    pending[-1 - ahead]["loss"].block_until_ready()
            step += 1
            stopping = agreement.reached(stop.requested)
            clock.images += batch["image"].shape[0]
            progress.advance(step)

            if step % log_every == 0 or step == steps:
                flush()
            saves = step % save_every == 0 or step == steps
            due = [call for every, call in callbacks if every and (step % every == 0 or step == steps)]
            if saves or due:
                if saves:
                    save()
                clock.pause()
                for call in due:
                    call(step, state)
        stopped = step < steps
        if stopped and step > start:
            save()
        checkpoints.wait()
        if stopped:
            progress.say(f"stopped after step {step}; saved in {checkpoints.folder}; to go on: {resume_command}")
    clock.pause()
    outcome = Outcome(state, step, stopped, clock.overall(), *_peak_memory())
    if lead:
        print(_closing_line(outcome, start), flush=True)
    return outcome


def _compile(step_fn: Any, state: TrainState, batch: Any, progress: Progress) -> Callable[..., Any]:
    begun = time.perf_counter()
    compiled: Callable[..., Any] = step_fn.lower(state, batch).compile()
    progress.say(f"compiled the training step in {time.perf_counter() - begun:.1f} s")
    progress.begin()
    return compiled


def _refuse_non_finite(fetched: Sequence[Mapping[str, Any]], first: int, checkpoints: Checkpoints) -> None:
    for step, metrics in enumerate(fetched, first):
        for name in sorted(metrics, key=lambda name: name != "loss"):
            value = metrics[name]
            if np.ndim(value) == 0 and not math.isfinite(value):
                kept = checkpoints.latest()
                good = "there is no checkpoint yet" if kept is None else f"the last good checkpoint is of step {kept}"
                raise DivergedError(
                    f"{name} is {float(value)} at step {step}: training stopped, and {good} (in {checkpoints.folder}). "
                    "A lower learning rate, a longer warm-up or a smaller clip_norm may help"
                )


class _Clock:
    # Time spent training: without compilation, callbacks and checkpoints, with waiting for data.

    def __init__(self) -> None:
        self.images = 0
        self.waited = 0.0
        self._seconds = 0.0
        self._since: float | None = None
        self._reported = (0, 0.0, 0.0)

    def run(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def rates(self) -> dict[str, float]:
        # Since the last report.
        self.pause()
        images, seconds, waited = self._reported
        self._reported = (self.images, self._seconds, self.waited)
        spent = max(self._seconds - seconds, 1e-9)
        return {"images_per_second": (self.images - images) / spent, "input_wait": (self.waited - waited) / spent}

    def overall(self) -> float:
        return self.images / self._seconds if self._seconds else math.nan


def _peak_memory() -> tuple[int, int | None]:
    # ru_maxrss is in kilobytes, except on macOS, where it is in bytes.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    return host, max(peaks, default=None)


def _closing_line(outcome: Outcome, start: int) -> str:
    if outcome.step == start:
        return f"no step was trained: the run is at step {start}"
    device = "" if outcome.device_memory is None else f", {outcome.device_memory / 2**20:,.0f} MB on the fullest device"
    return (
        f"trained steps {start} to {outcome.step}: {outcome.images_per_second:,.0f} images/s, "
        f"peak memory {outcome.host_memory / 2**20:,.0f} MB{device}"
    )
