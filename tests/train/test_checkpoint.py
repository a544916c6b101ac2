"""Checkpoints: what is kept, exact restore, damage, and other structures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train import (
    CheckpointError,
    Checkpoints,
    StructureError,
    create_sharded_state,
    make_mesh,
    make_optimizer,
    state_template,
)
from tests.train.standins import Loss, Net


def _parts(width: int = 16, clip_norm: float | None = 1.0, impl: str | None = None) -> Any:
    optimizer, _ = make_optimizer(lr=1e-2, steps=100, clip_norm=clip_norm)
    return Net(width), optimizer, Loss(), jax.random.key(7, impl=impl), make_mesh(data=1)


@pytest.fixture(scope="module")
def state() -> Any:
    return create_sharded_state(*_parts())


def _at(state: Any, step: int) -> Any:
    return dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))


def _bits(tree: Any) -> list[np.ndarray]:
    plain = jax.tree.map(lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a, tree)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


def _same(a: Any, b: Any) -> None:
    assert str(jax.tree.structure(a)) == str(jax.tree.structure(b))
    for x, y in zip(_bits(a), _bits(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def _damage(folder: Path, step: int) -> None:
    for file in (folder / str(step)).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("impl", [None, "rbg"])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, impl: str | None) -> None:
    state = create_sharded_state(*_parts(impl=impl))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(3, _at(state, 3), {"batches": 5, "seed": [1, 2]})
    with Checkpoints(tmp_path) as checkpoints:
        restored, position = checkpoints.restore(state_template(*_parts(impl=impl)))
    _same(restored, _at(state, 3))
    assert position == {"batches": 5, "seed": [1, 2]}
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(f"{a.sharding}"), restored, state)


def test_the_latest_and_the_best_are_kept(tmp_path: Path, state: Any) -> None:
    with Checkpoints(tmp_path, keep=2, best="loss") as checkpoints:
        for step, loss in enumerate([5.0, 1.0, 3.0, float("nan"), 4.0], 1):
            checkpoints.save(step, state, metrics={"loss": loss})
            checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        checkpoints.save(5, state)  # there already: left as it is
        assert checkpoints.steps() == [2, 4, 5]
    with Checkpoints(tmp_path, keep=2, best="loss") as checkpoints:  # the best is known to a new process as well
        checkpoints.save(6, state, metrics={"loss": 2.0})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]


def test_weights_alone_need_no_optimizer(tmp_path: Path, state: Any) -> None:
    marked = dataclasses.replace(state, ema=jax.tree.map(lambda e: e + 1, state.ema))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, marked)
    template = jax.eval_shape(Net().init, jax.random.key(0))
    with Checkpoints(tmp_path, readonly=True) as checkpoints:
        _same(checkpoints.restore_weights(template)[1], marked.ema["ema"])
        _same(checkpoints.restore_weights(template, ema=False, step=1)[1], marked.params)


def test_a_saved_state_may_be_donated_at_once(tmp_path: Path) -> None:
    state = create_sharded_state(*_parts(width=512))
    before = _bits(state)
    spoil = jax.jit(
        lambda s: dataclasses.replace(s, params=jax.tree.map(lambda p: p * 0 - 1, s.params)), donate_argnums=0
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        spoil(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(state_template(*_parts(width=512)))
    for a, b in zip(_bits(restored), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_newest_is_reported_set_aside_and_written_again(tmp_path: Path, state: Any) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _at(state, step), step)
    _damage(tmp_path, 3)
    said: list[str] = []
    with Checkpoints(tmp_path, readonly=True, say=said.append) as checkpoints:  # a reader moves nothing
        checkpoints.restore_weights(jax.eval_shape(Net().init, jax.random.key(0)))
        assert checkpoints.steps() == [1, 2, 3]
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        restored, position = checkpoints.restore(state_template(*_parts()))
        assert (int(restored.step), position) == (2, 2)
        assert checkpoints.steps() == [1, 2] and (tmp_path / "3.damaged").is_dir()
        checkpoints.save(3, _at(state, 3), 3)
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        assert int(checkpoints.restore(state_template(*_parts()))[0].step) == 3
    assert sum("3 cannot be read" in line for line in said) == 2
    assert sum("going back to the checkpoint of step 2" in line for line in said) == 2


def test_a_half_written_step_is_ignored_and_gone_when_training_goes_on(tmp_path: Path, state: Any) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _at(state, 1))
    half = tmp_path / "2.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    with Checkpoints(tmp_path, readonly=True) as checkpoints:
        assert checkpoints.latest() == 1 and half.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert not half.exists()
        assert checkpoints.latest() == 1
        assert int(checkpoints.restore(state_template(*_parts()))[0].step) == 1


def test_none_readable_is_refused_not_started_afresh(tmp_path: Path, state: Any) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    _damage(tmp_path, 1)
    with Checkpoints(tmp_path, say=lambda text: None) as checkpoints:
        assert checkpoints.latest() == 1
        with pytest.raises(CheckpointError, match=r"can be read \(step 1: "):
            checkpoints.restore(state_template(*_parts()))
        assert checkpoints.latest() == 1


def test_missing_ones_say_what_there_is(tmp_path: Path, state: Any) -> None:
    with pytest.raises(CheckpointError, match="the folder does not exist"):
        Checkpoints(tmp_path / "nowhere", readonly=True)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            checkpoints.restore(state_template(*_parts()))
        checkpoints.save(4, state)
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 2 .* those of 4"):
            checkpoints.restore(state_template(*_parts()), 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 24}, r"params/in/bias is float32\(16,\) there and float32\(24,\) here"),
        ({"impl": "rbg"}, r"state/key is uint32\(2,\) there and uint32\(4,\) here"),
    ],
)
def test_another_structure_is_refused_by_its_first_leaf(
    tmp_path: Path, state: Any, other: dict[str, Any], message: str
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        with pytest.raises(StructureError, match=message):
            checkpoints.restore(state_template(*_parts(**other)))


def test_a_leaf_too_many_is_named(tmp_path: Path, state: Any) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        template = jax.eval_shape(Net().init, jax.random.key(0))
        template["extra"] = jax.ShapeDtypeStruct((3,), jnp.float32)
        with pytest.raises(StructureError, match=r"ema/extra is missing there and float32\(3,\) here"):
            checkpoints.restore_weights(template)
