"""Several steps at a call of the devices: the same run, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.train import Checkpoints, batch_sharding, put_batch, several_steps
from tests.train import runs
from tests.train.runs import go
from tests.train.test_with_the_library import Run, batch

EXACT = ("step", "loss", "grad_norm", "param_norm", "lr", "loss_by_noise", "skipped")


def _bits(state: Any) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(dataclasses.replace(state, key=jax.random.key_data(state.key)))
    ]


def _same(a: Any, b: Any) -> None:
    for x, y in zip(_bits(a), _bits(b), strict=True):
        np.testing.assert_array_equal(x, y)


def _lines(folder: Path) -> list[list[Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in EXACT] for line in lines]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_the_same_at_any_number_of_steps_a_call(tmp_path: Path, accumulate: int) -> None:
    """Where logging, saving or a callback is due within a call, single steps lead there; a restart begins anywhere."""
    called: dict[str, list[int]] = {"one": [], "four": []}
    states = {}
    for name, steps_per_call in (("one", 1), ("four", 4)):
        for steps in (9, 23):
            states[name] = go(
                tmp_path / name,
                steps,
                log_every=10,
                save_every=7,
                callbacks=[(6, lambda step, state, name=name: called[name].append(step))],
                steps_per_call=steps_per_call,
                accumulate=accumulate,
                bad={5, 16},
            ).state
    _same(states["one"], states["four"])
    assert _lines(tmp_path / "one") == _lines(tmp_path / "four")
    assert called["one"] == called["four"] == [6, 9, 12, 18, 23]
    for name in called:
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            assert checkpoints.steps() == [14, 21, 23]


def test_calls_take_several_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    sizes = list[int]()
    made = runs.compile_step

    def noting(**parts: Any) -> Any:
        step = made(**parts)

        def both(state: Any, batch: Any, given: Any) -> Any:
            jax.debug.callback(lambda n: sizes.append(int(n)), state.step)
            return step(state, batch, given)

        return jax.jit(both)

    monkeypatch.setattr(runs, "compile_step", noting)
    go(tmp_path, 12, log_every=6, save_every=100, steps_per_call=3)
    jax.effects_barrier()
    assert sorted(sizes) == list(range(12))
    printed = capsys.readouterr().out
    assert "compiled the training step (3 a call) in" in printed and printed.count("compiled the") == 1


@pytest.mark.nightly
def test_a_network_of_the_library_is_the_same_bit_for_bit() -> None:
    one, many = Run(accumulate=2), Run(accumulate=2)
    losses = one.losses(0, 6)
    spread = batch_sharding(many.mesh)
    call = several_steps(many.step, many.state)
    found = list[float]()
    for first in (0, 3):
        many.state, metrics = call(many.state, tuple(put_batch(batch(n), spread) for n in range(first, first + 3)))
        found += [float(loss) for loss in metrics["loss"]]
    assert found == losses
    _same(one.state, many.state)


def test_a_signal_is_answered_after_the_call(tmp_path: Path) -> None:
    def stop(step: int, state: Any) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = go(tmp_path, 40, log_every=4, save_every=20, steps_per_call=4, callbacks=[(4, stop)])
    assert outcome.stopped and outcome.step == 8
    _same(go(tmp_path, 40, log_every=4, steps_per_call=4).state, go(tmp_path / "whole", 40).state)
