"""Weights of another training as a start: all of them, or those that fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.train import (
    CheckpointError,
    Checkpoints,
    StructureError,
    create_sharded_state,
    read_weights,
    state_template,
    with_weights,
)
from tests.train.test_checkpoint import _parts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    state = create_sharded_state(*_parts())
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (1, 2):
            marked = jax.tree.map(lambda leaf, step=step: leaf + step, state.ema)
            checkpoints.save(step, dataclasses.replace(state, ema=marked))
    return folder


def test_all_weights_are_taken_and_nothing_else(run: Path) -> None:
    state, template = create_sharded_state(*_parts()), state_template(*_parts())
    for path, step in ((run, 2), (run / "checkpoints", 2), (run / "checkpoints" / "1", 1)):
        started = with_weights(state, read_weights(path, template.params))
        for new, average, own in zip(*map(jax.tree.leaves, (started.params, started.ema, state.params)), strict=True):
            np.testing.assert_array_equal(new, own + step)
            np.testing.assert_array_equal(new, average)
            assert new is not average and new.sharding == own.sharding
        assert int(started.step) == 0 and started.opt_state is state.opt_state
    plain = with_weights(state, read_weights(run, template.params, ema=False))
    np.testing.assert_array_equal(plain.params["in"]["kernel"], state.params["in"]["kernel"])


def test_what_fits_is_taken_and_the_rest_is_new_and_named(run: Path) -> None:
    template: Any = state_template(*_parts()).params
    other = jax.ShapeDtypeStruct((24,), template["out"]["bias"].dtype, sharding=template["out"]["bias"].sharding)
    changed = template | {"out": template["out"] | {"bias": other}, "more": {"scale": other}}
    with pytest.raises(StructureError, match="ema/more/scale is missing there"):
        read_weights(run, changed)
    said: list[str] = []
    found = read_weights(run, changed, partial=True, say=said.append)
    assert said == ["2 of 5 leaves are new: more/scale, out/bias (float32(16,) there, float32(24,) here)"]
    assert found["out"]["bias"] is found["more"]["scale"] is not None and isinstance(found["in"]["bias"], jax.Array)
    with pytest.raises(CheckpointError, match="no weights that fit: more/scale"):
        read_weights(run, {"more": {"scale": other}}, partial=True)


def test_a_path_without_checkpoints_says_so(run: Path, tmp_path: Path) -> None:
    long = Path("a" * 300)
    for path, what in (
        (tmp_path / "no", "there is no such folder"),
        (long, "there is no such folder"),
        (tmp_path, "holds no checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=f"{path}: {what}; expected the folder of a run"):
            read_weights(path, {})
