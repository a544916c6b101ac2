"""The loop: exact restarts, signals to real processes, numbers that are not finite, callbacks, figures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.train import Checkpoints, DivergedError, Stop, compile_step, prefetch, put_batch
from tests.train import runs
from tests.train.runs import go

Start = Callable[..., subprocess.Popen[str]]


def _bits(state: Any) -> list[np.ndarray]:
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _same(a: Any, b: Any) -> None:
    for x, y in zip(_bits(a), _bits(b), strict=True):
        np.testing.assert_array_equal(x, y)


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, go(folder, 40, log_every=1).state


def test_a_restart_is_bit_for_bit_the_unbroken_run(tmp_path: Path, unbroken: tuple[Path, Any]) -> None:
    folder, expected = unbroken
    for steps in (7, 8, 25):
        go(tmp_path, steps, log_every=1)
    _same(go(tmp_path, 40, log_every=1).state, expected)
    exact = ("step", "loss", "grad_norm", "param_norm", "lr", "loss_by_noise")
    assert [[line[name] for name in exact] for line in _lines(tmp_path)] == [
        [line[name] for name in exact] for line in _lines(folder)
    ]


def test_a_restart_with_accumulation_is_bit_for_bit(tmp_path: Path) -> None:
    expected = go(tmp_path / "a", 8, accumulate=4).state
    go(tmp_path / "b", 5, accumulate=4)
    _same(go(tmp_path / "b", 8, accumulate=4).state, expected)


def test_going_on_from_an_older_checkpoint_cuts_the_metrics(tmp_path: Path, unbroken: tuple[Path, Any]) -> None:
    go(tmp_path, 12, log_every=1, save_every=5)
    os.rename(tmp_path / "checkpoints" / "12", tmp_path / "12")  # as if killed after step 12, before its checkpoint
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    _same(go(tmp_path, 40, log_every=1).state, unbroken[1])
    assert [line["step"] for line in _lines(tmp_path)] == list(range(1, 41))


def test_logs_callbacks_and_checkpoints_come_when_due(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[int, Any], None]:
        def call(step: int, state: Any) -> None:
            assert float(jnp.sum(state.ema["ema"]["in"]["bias"] * 1.5)) is not None  # implicit transfers are fine here
            assert int(state.step) == step
            called.append((name, step))

        return call

    callbacks = [(4, note("a")), (3, note("b")), (0, note("never"))]
    outcome = go(tmp_path, 10, log_every=3, save_every=4, callbacks=callbacks)
    assert called == [("b", 3), ("a", 4), ("b", 6), ("a", 8), ("b", 9), ("a", 10), ("b", 10)]
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 10]  # a checkpoint's step is logged as well
    assert lines[0].keys() == {
        *("step", "loss", "grad_norm", "param_norm", "loss_by_noise", "lr", "skipped"),
        *("images_per_second", "mfu", "input_wait", "save_blocked", "device_memory"),
    }
    assert len(lines[0]["loss_by_noise"]) == 8
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4, 8, 10]
    assert not outcome.stopped and outcome.step == 10
    assert outcome.images_per_second > 0 and outcome.host_memory > 2**20
    printed = capsys.readouterr().out
    assert "compiled the training step in" in printed
    assert "step 9/10  loss " in printed
    assert "trained steps 0 to 10: " in printed and "peak memory" in printed


def test_the_next_batch_is_on_its_way_while_a_step_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step n ends only when batch n + 1 has been put on the device, although every step is logged and saved."""
    steps, waits, placed = 5, list[bool](), [threading.Event() for _ in range(6)]
    made = iter(placed)

    def note_put(*arguments: Any) -> Any:
        batch = put_batch(*arguments)
        next(made).set()
        return batch

    def wait_for_the_next(step: Any) -> np.ndarray:
        waits.append(int(step) + 1 == steps or placed[int(step) + 1].wait(timeout=10))
        return np.zeros((), np.float32)

    def waiting(**parts: Any) -> Any:
        step = compile_step(**parts)

        def both(state: Any, batch: Any, given: Any) -> Any:
            new, metrics = step(state, batch)
            waited = jax.pure_callback(wait_for_the_next, metrics["loss"], state.step)
            return new, metrics | {"loss": metrics["loss"] + waited}

        return jax.jit(both)

    monkeypatch.setattr(prefetch, "put_batch", note_put)
    monkeypatch.setattr(runs, "compile_step", waiting)
    go(tmp_path, steps, log_every=1, save_every=1)
    assert waits == [True] * steps
    assert [event.is_set() for event in placed] == [True] * steps + [False]  # none is read in vain


def test_a_failed_read_comes_after_the_step_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: Any, whole: Any = runs.SlowData.__next__) -> Any:
        if data.position["batches"] == 3:
            raise OSError("batch 4 cannot be read")
        return whole(data)

    monkeypatch.setattr(runs.SlowData, "__next__", read)
    with pytest.raises(OSError, match="batch 4"):
        go(tmp_path, 5, log_every=1, save_every=1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 3


def test_figures_are_means_over_the_logged_steps(tmp_path: Path, unbroken: tuple[Path, Any]) -> None:
    go(tmp_path, 10, log_every=5)
    every = _lines(unbroken[0])
    for line, part in zip(_lines(tmp_path), (every[:5], every[5:10]), strict=True):
        assert line["loss"] == pytest.approx(np.mean([one["loss"] for one in part]))
        assert line["lr"] == part[-1]["lr"]


def test_a_finished_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = go(tmp_path, 3)
    again = go(tmp_path, 3)
    _same(again.state, first.state)
    assert math.isnan(again.images_per_second)
    assert "no step was trained: the run is at step 3" in capsys.readouterr().out


def test_a_parameter_that_is_not_finite_stops_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs.make_optimizer

    def exploding(**options: Any) -> Any:
        optimizer, schedule = made(**options)
        late = optax.scale_by_schedule(lambda n: jnp.where(n < 4, 1.0, jnp.inf))
        return optax.chain(optimizer, late), schedule

    monkeypatch.setattr(runs, "make_optimizer", exploding)
    with pytest.raises(DivergedError, match=r"param_norm is (nan|inf) at step 5: .*last good checkpoint is of step 3"):
        go(tmp_path, 20, save_every=3, log_every=10)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 3
    assert [line["step"] for line in _lines(tmp_path)] == [3]


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_every is 0"):
        go(tmp_path, 3, log_every=0)


def test_stop_does_nothing_outside_of_the_main_thread() -> None:
    entered = []
    thread = threading.Thread(target=lambda: entered.append(Stop().__enter__().requested))
    thread.start()
    thread.join()
    assert entered == [False]


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    processes = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.train.runs", *map(str, arguments)],
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def _wait_for(stream: Any, text: str) -> None:
    for line in stream:
        if text in line:
            return
    pytest.fail(f"ended without printing {text!r}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sigterm_saves_exits_0_and_the_rest_is_bit_for_bit(
    tmp_path: Path, start: Start, unbroken: tuple[Path, Any]
) -> None:
    # Under jax.distributed, whose own handler would swallow SIGTERM.
    process = start(tmp_path, "100000", "--pause", "0.02", "--coordinator", f"127.0.0.1:{_free_port()}")
    _wait_for(process.stdout, "step 3/100000")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "SIGTERM: finishing the step, then saving" in err
    assert f"go on: resume {tmp_path}" in out
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        stopped = checkpoints.latest()
    assert stopped is not None and 3 <= stopped < 40
    assert _lines(tmp_path)[-1]["step"] == stopped
    _same(go(tmp_path, 40, log_every=1).state, unbroken[1])


def test_a_second_signal_ends_at_once(tmp_path: Path, start: Start) -> None:
    process = start(tmp_path, "100000", "--hang", "600")
    _wait_for(process.stdout, "step 3/100000")
    process.send_signal(signal.SIGINT)
    _wait_for(process.stderr, "SIGINT: finishing the step")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT
    assert time.monotonic() - begun < 5
