"""What is expected of the fragile APIs in `jaxdiff.compat`: a release that moves one fails here."""

from __future__ import annotations

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import compat


@pytest.mark.parametrize("name", compat.HOMES)
def test_each_is_where_it_was(name: str) -> None:
    assert getattr(compat, name) is getattr(compat, name) and name in compat.__all__


def test_one_that_has_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for home in (("jax.experimental", "gone.thing"), ("jax.gone", None)):
        monkeypatch.setitem(compat.HOMES, "gone", home)
        where = "jax.experimental.gone.thing" if home[1] else "jax.gone"
        with pytest.raises(ImportError, match=rf"^jax {jax.__version__} has no {where}, which jaxdiff needs"):
            compat.gone  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compat.nothing  # noqa: B018


def test_a_trace_differs_from_none() -> None:
    """`jaxdiff.denoiser` asks whether it still is where a memory was made."""
    outside = compat.get_opaque_trace_state()
    inside = []

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        inside.append(compat.get_opaque_trace_state())
        return x

    traced(jnp.zeros(()))
    assert outside == compat.get_opaque_trace_state() and inside[0] != outside


def test_a_new_folder_of_compiled_programs_counts_after_a_reset(tmp_path: Path) -> None:
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        compat.compilation_cache.reset_cache()
        jax.jit(lambda x: x * 3.25 + 1)(jnp.arange(3.0)).block_until_ready()
        assert any(tmp_path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compat.compilation_cache.reset_cache()


def test_one_process_agrees_with_itself() -> None:
    """Of one process: its own value, without the axis of processes. (Of several: tests/parallel.)"""
    value = np.arange(3)
    assert np.array_equal(compat.multihost_utils.process_allgather(value).reshape(-1), value)
    assert int(compat.multihost_utils.broadcast_one_to_all(np.int32(7))) == 7
    compat.multihost_utils.sync_global_devices("here")


def test_devices_are_arranged() -> None:
    arranged = compat.mesh_utils.create_device_mesh((1, 1), jax.devices()[:1], allow_split_physical_axes=True)
    assert arranged.shape == (1, 1) and arranged[0, 0] == jax.devices()[0]


def test_a_check_inside_a_trace_raises_outside() -> None:
    def checked(x: jax.Array) -> jax.Array:
        compat.checkify.check(x > 0, "x is {x}", x=x)
        return x

    error, _ = jax.jit(compat.checkify.checkify(checked))(jnp.float32(-1.0))
    with pytest.raises(compat.checkify.JaxRuntimeError, match="x is -1"):
        compat.checkify.check_error(error)


def test_the_kernel_for_tpus_takes_what_it_is_given() -> None:
    kernel = compat.tpu_flash_attention
    assert list(inspect.signature(kernel.flash_attention).parameters)[:3] == ["q", "k", "v"]
    assert {"sm_scale", "block_sizes"} <= set(inspect.signature(kernel.flash_attention).parameters)
    blocks = {"block_b", "block_q", "block_k_major", "block_k"}
    blocks |= {f"block_{row}_dkv" for row in ("q_major", "k_major", "k", "q")}
    blocks |= {f"block_{row}_dq" for row in ("k_major", "k", "q")}
    assert blocks == set(inspect.signature(kernel.BlockSizes).parameters)


def test_a_step_is_written_beside_and_renamed() -> None:
    """`Summed` adds its sums in `finalize`, when a step is whole and not yet named; a failed save leaves the suffix."""
    kind = compat.AtomicRenameTemporaryPath
    assert inspect.iscoroutinefunction(kind.create) and inspect.iscoroutinefunction(kind.finalize)
    methods = (kind.create, kind.finalize, kind.get, kind.get_final)
    assert all(list(inspect.signature(method).parameters) == ["self"] for method in methods)
    assert compat.TMP_DIR_SUFFIX == ".orbax-checkpoint-tmp"
