"""Nothing is kept twice: the step writes over the state, and a restored state is the only one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train import (
    Checkpoints,
    Ema,
    batch_sharding,
    compile_step,
    create_sharded_state,
    make_mesh,
    make_optimizer,
    state_template,
)
from tests.train.standins import Data, Loss, Net


def _parts(state_dtype: Any = "float32") -> Any:
    optimizer, _ = make_optimizer(lr=1e-2, steps=100, state_dtype=state_dtype)
    return Net(width=1024), optimizer, Loss(), jax.random.key(0), make_mesh(data=1)


def _bytes(tree: Any) -> int:
    keys = jax.dtypes.prng_key
    return sum(
        leaf.size * (8 if jax.dtypes.issubdtype(leaf.dtype, keys) else leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize(("state_dtype", "accumulate"), [("float32", 1), ("float32", 4), ("bfloat16", 1), ("int8", 1)])
def test_the_step_writes_over_the_state(state_dtype: Any, accumulate: int) -> None:
    """Every buffer of the new state is one of the old state's; only the metrics are new."""
    parts = _parts(state_dtype)
    template = state_template(*parts)
    net, optimizer, loss, _, mesh = parts
    step: Any = compile_step(
        net=net, loss=loss, optimizer=optimizer, ema=Ema(), template=template, accumulate=accumulate
    )
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=batch_sharding(mesh))
        for name, value in next(Data()).items()
    }
    sizes = step.lower(template, batch).compile().memory_analysis()
    assert sizes.alias_size_in_bytes == _bytes(template)
    assert sizes.output_size_in_bytes - sizes.alias_size_in_bytes < 1000  # the metrics


def _buffers(arrays: list[jax.Array]) -> dict[int, int]:
    """Bytes of their buffers by address: an array and its shards are several views of one."""
    arrays = [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in arrays]
    return {array.unsafe_buffer_pointer(): array.nbytes for array in arrays}


def _added(before: dict[int, int], after: dict[int, int]) -> int:
    return sum(size for address, size in after.items() if address not in before)


def test_a_restored_state_is_there_once(tmp_path: Path) -> None:
    parts = _parts()
    template = state_template(*parts)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, create_sharded_state(*parts))
        checkpoints.wait()
        before = _buffers(jax.live_arrays())
        state, _ = checkpoints.restore(template)
        with_state = _buffers(jax.live_arrays())
        assert _added(before, with_state) <= 1.01 * _bytes(state) + 1000
        _, weights = checkpoints.restore_weights(jax.eval_shape(parts[0].init, jax.random.key(0)))
        assert _added(with_state, _buffers(jax.live_arrays())) <= 1.01 * _bytes(weights) + 1000
    np.testing.assert_array_equal(weights["in"]["kernel"], state.ema["ema"]["in"]["kernel"])
