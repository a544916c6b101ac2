"""The loop around the step: data in, metrics out, checkpoints, signals.

What it takes care of, so that `train.py` reads as a story:

- The device is never left waiting for the host, nor the host running far ahead: while step n computes, a thread reads
  batch n + 1 and puts it on the devices (`jaxdiff.train.prefetch`); after dispatching step n the loop waits for step
  n - 2 (for step n itself on several simulated CPU devices, whose queued collectives can deadlock). Metrics stay on the
  device until a step is logged.
- The loop runs under `jax.transfer_guard("disallow")`: a transfer nobody asked for is an error, not a slow run.
  Callbacks, checkpoints and logging are outside of the guard.
- From the first step on SIGINT, SIGTERM, SIGHUP or SIGUSR1 ends the run after the step in progress with a checkpoint;
  before it there is nothing to save, and they end the process. A second SIGINT or SIGTERM ends the process at once
  (`jaxdiff.launch.signals`). Of several processes it is enough that one gets it: all stop after the same step
  (`jaxdiff.train.stopping`).
- Bad steps are skipped within the step (`jaxdiff.train.guard`). Too many in a row end the run, with the state from
  before them saved and their records named; a parameter that is not finite ends it before it can reach a checkpoint.
- A step is compiled once for each shape of its batches: once, or once for each bucket of sizes that the data have, when
  the first batch of it comes.
- With `steps_per_call` the devices take several steps at a call. Logging, checkpoints and callbacks come after the same
  steps as ever: before one that is due, the rest is taken by single steps. A signal is answered after the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdiff.launch.signals import Stop
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.flops import step_flops
from jaxdiff.train.metrics import MetricsLog, Progress, summarize
from jaxdiff.train.prefetch import Data, Prefetch
from jaxdiff.train.profile import StepTrace, Window
from jaxdiff.train.sharding import batch_sharding
from jaxdiff.train.skipped import SKIPPED, DivergedError, SkippedRow, rewound
from jaxdiff.train.state import TrainState
from jaxdiff.train.step import Given, several_steps
from jaxdiff.train.stopping import StopVote
from jaxdiff.train.throughput import Throughput, device_memory, host_memory, peak_of

Callback = Callable[[int, TrainState], None]


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


def train_loop(
    step_fn: Any,
    state: TrainState,
    data: Data,
    given: Given = Given(),
    *,
    steps: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    log_every: int = 100,
    save_every: int = 1000,
    callbacks: Sequence[tuple[int, Callback]] = (),
    steps_per_call: int = 1,
    max_skipped: int = 10,
    profile: Window | None = None,
    resume_command: str = "the same command",
) -> Outcome:
    """Train from the state's step to `steps`, or to a signal.

    Args:
        step_fn: from `compile_step`.
        state: where to start; its buffers are donated.
        data: gives batches of this process's part. With each checkpoint goes the `position` after the last batch that
            a step has used; when a signal or an error ends the loop, `data` itself may stand further.
        steps: steps of the whole run, those done before included.
        log: where logged steps go.
        checkpoints: where checkpoints go; the last step is always saved.
        log_every: steps between logged steps, at least 1; figures are means over them.
        save_every: steps between checkpoints, at least 1.
        callbacks: (n, f) calls `f(step, state)` after every n-th step and after the last (n = 0: never). It must not
            keep `state`.
        steps_per_call: steps that the devices take at one call, by `several_steps`; single ones where something is due
            before so many are done.
        max_skipped: bad steps in a row that end the run, as `compile_step` was told.
        profile: steps to trace, into the run's folder `profile`.
        resume_command: printed when a signal ends the run.

    Returns:
        An Outcome. After a signal, and at the end, the state is saved and on disk.

    Raises:
        SaveError: a checkpoint could not be written, and it was the last one or `checkpoints` is to stop on errors.
        DivergedError: too many steps were skipped in a row: their records are in the run's folder, and the state from
            before them is saved. Or a parameter is not finite; then nothing since the last checkpoint is saved.
    """
    if min(log_every, save_every, steps_per_call, max_skipped) < 1:
        raise ValueError(
            f"log_every is {log_every}, save_every {save_every}, steps_per_call {steps_per_call} and max_skipped "
            f"{max_skipped}; all must be at least 1"
        )
    start = step = int(state.step)
    lead = jax.process_index() == 0
    ahead = 0 if jax.default_backend() == "cpu" and jax.device_count() > 1 else 2
    placed = state.step.sharding
    if not isinstance(placed, NamedSharding):
        raise ValueError(f"the state lies on {placed}, not on a mesh; make it with create_sharded_state")
    assert isinstance(placed.mesh, Mesh)
    sharding = batch_sharding(placed.mesh)
    vote, stop, stopping = StopVote(placed.mesh, ahead), Stop(), False
    dues = [log_every, save_every, *(every for every, _ in callbacks if every)]
    pending: list[tuple[int, Mapping[str, jax.Array]]] = []  # of each call, how many steps and their metrics
    record: dict[str, Any] = {}
    row = SkippedRow(max_skipped)
    throughput = Throughput()
    compiled: dict[tuple[int, tuple[int, ...]], Callable[..., Any]] = {}  # of steps at a call, and the shape of x
    flops: dict[tuple[int, ...], float] = {}  # of a step, by the shape of x

    def steps_of_call(step: int) -> int:
        last = step + steps_per_call - 1
        whole = last < steps and all(step // every == last // every for every in dues)
        return steps_per_call if whole else 1

    def flush() -> None:
        # Fetching what the steps since the last flush reported is where the host waits for the device.
        nonlocal record
        if not pending:
            return
        fetched = _by_step(jax.device_get(pending))
        pending.clear()
        for number, metrics in enumerate(fetched, step - len(fetched) + 1):
            row.add(number, metrics)
        _refuse_non_finite(fetched, step - len(fetched) + 1, checkpoints)
        record = summarize(fetched) | throughput.rates()
        log.write(step, record)
        shown = {name: record[name] for name in ("accuracy",) if name in record}
        progress.update(step, loss=record["loss"], images_per_second=record["images_per_second"], **shown)
        if row.full:
            raise DivergedError(give_up())

    def save(*, here: bool) -> None:
        # A checkpoint that comes due amid skipped steps is that from before them: they can then be tried again.
        flush()
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        back = 0 if here else len(row.steps)
        begun = time.perf_counter()
        if back:
            saved, position = rewound(state, back, back), data.earlier(batches.position, back)
            checkpoints.save(step - back, saved, position, numbers)
        else:
            checkpoints.save(step, state, batches.position, numbers)
        throughput.blocked += time.perf_counter() - begun

    def give_up() -> str:
        # All steps since the row's first have changed nothing but counters, so the state from before it is still there.
        checkpoints.wait()
        before, kept = row.first - 1, checkpoints.latest()
        if kept is None or kept < before:
            saved = rewound(state, step - before, max_skipped)
            checkpoints.save(before, saved, data.earlier(batches.position, step - before))
            checkpoints.wait()
            kept = before
        since = [step - number + 1 for number in range(row.first, row.first + max_skipped)]
        records = [data.records(data.earlier(batches.position, back)) for back in since]
        if lead:
            row.write(log.folder, records, kept)
        return (
            f"{row.reason()}, and {max_skipped} steps in a row were skipped: training stopped. Their records are in "
            f"{log.folder / SKIPPED}; the checkpoint of step {kept} (in {checkpoints.folder}) is from before them, and "
            f"{resume_command} tries them again. Damaged data, a high learning rate or a short warm-up may be the cause"
        )

    with (
        Progress(steps, start, active=lead) as progress,
        contextlib.ExitStack() as answered,
        ThreadPoolExecutor(2) as compiler,
        Prefetch(data, sharding) as batches,
        StepTrace(profile if lead else None, log.folder / "profile", progress.say) as trace,
    ):
        while step < steps and not stopping:
            count = steps_of_call(step)
            throughput.run()
            with jax.transfer_guard("disallow"):
                begun = time.perf_counter()
                batch = batches.take(count)
                throughput.waited += time.perf_counter() - begun
                shape = batch[0]["x"].shape
                if (count, shape) not in compiled:
                    jax.block_until_ready(pending)
                    throughput.pause()
                    # In threads, so that signals are answered meanwhile: Python runs handlers in the main thread only,
                    # between two of its bytecodes.
                    making = compiler.submit(_compile, step_fn, state, batch, given, progress)
                    if not compiled:
                        throughput = Throughput()
                        throughput.peak = peak_of(list(placed.mesh.devices.flat))
                    if shape not in flops:
                        counting = compiler.submit(_count, step_fn, state, batch[0], given, throughput.peak)
                        flops[shape] = counting.result()
                    compiled[count, shape] = making.result()
                    throughput.run()
                if step + count < steps:
                    batches.begin(steps_of_call(step + count))
                if step == start:  # until here a signal ends the process: there is nothing to save yet
                    answered.enter_context(stop)
                trace.before(step, step + count, pending)
                state, metrics = compiled[count, shape](state, batch, given)
                pending.append((count, metrics))
                if len(pending) > ahead:
                    pending[-1 - ahead][1]["loss"].block_until_ready()
            step += count
            throughput.flops += count * flops[shape]
            throughput.images += count * shape[0]
            progress.advance(step)
            trace.after(step, metrics)

            if step % log_every == 0 or step == steps:
                flush()
                checkpoints.check()
            saves = step % save_every == 0 or step == steps
            due = [call for every, call in callbacks if every and (step % every == 0 or step == steps)]
            if saves or due:
                checkpoints.check()
                if saves:
                    save(here=step == steps)
                throughput.pause()
                for call in due:
                    call(step, state)
            stopping = vote.passed(stop.requested)
        stopped = step < steps
        if stopped and step > start:
            save(here=True)
        checkpoints.wait()
        if stopped:
            progress.say(f"stopped after step {step}; saved in {checkpoints.folder}; to go on: {resume_command}")
    throughput.pause()
    outcome = Outcome(state, step, stopped, throughput.overall(), host_memory(), device_memory())
    if lead:
        print(_closing_line(outcome, start), flush=True)
    return outcome


def _compile(
    step_fn: Any, state: TrainState, batch: tuple[Any, ...], given: Given, progress: Progress
) -> Callable[..., Any]:
    """Of a call with these batches; takes them in a tuple."""
    begun = time.perf_counter()
    if len(batch) == 1:
        single = step_fn.lower(state, *batch, given).compile()
        made: Callable[..., Any] = lambda state, batch, given: single(state, *batch, given)  # noqa: E731
    else:
        made = several_steps(step_fn, state).lower(state, batch, given).compile()
    several = "" if len(batch) == 1 else f" ({len(batch)} a call)"
    progress.say(f"compiled the training step{several} in {time.perf_counter() - begun:.1f} s")
    progress.begin()
    return made


def _count(step_fn: Any, state: TrainState, batch: Any, given: Given, peak: float) -> float:
    """FLOPs of a step. Tracing again takes seconds: only where those of the devices a second are known."""
    return math.nan if math.isnan(peak) else step_flops(step_fn, state, batch, given)


def _by_step(calls: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The metrics of each step: those of a call of several have a leading axis."""
    return [
        metrics if count == 1 else {name: value[n] for name, value in metrics.items()}
        for count, metrics in calls
        for n in range(count)
    ]


def _refuse_non_finite(fetched: Sequence[Mapping[str, Any]], first: int, checkpoints: Checkpoints) -> None:
    """Of what a step that was taken leaves behind; of a step that was skipped only the parameters say anything."""
    for step, metrics in enumerate(fetched, first):
        for name in sorted({"param_norm"} & metrics.keys() if metrics["in_a_row"] else metrics.keys()):
            value = metrics[name]
            if np.ndim(value) == 0 and not math.isfinite(value):
                checkpoints.wait()
                kept = checkpoints.latest()
                good = "there is no checkpoint yet" if kept is None else f"the last good checkpoint is of step {kept}"
                raise DivergedError(
                    f"{name} is {float(value)} at step {step}: training stopped, and {good} (in {checkpoints.folder}). "
                    "A lower learning rate, a longer warm-up or a smaller clip_norm may help"
                )


def _closing_line(outcome: Outcome, start: int) -> str:
    if outcome.step == start:
        return f"no step was trained: the run is at step {start}"
    device = "" if outcome.device_memory is None else f", {outcome.device_memory / 2**20:,.0f} MB on the fullest device"
    return (
        f"trained steps {start} to {outcome.step}: {outcome.images_per_second:,.0f} images/s, "
        f"peak memory {outcome.host_memory / 2**20:,.0f} MB{device}"
    )
