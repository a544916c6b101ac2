"""Meshes and rules; the same losses on 1 and on 8 simulated devices, however the state is split."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.train import batch_sharding, check_batch_size, leaf_spec, make_mesh, put_batch

TWENTY_STEPS = """
import json, sys
import jax, numpy as np
jax.config.update("jax_numpy_rank_promotion", "raise")
from jaxdiff.train import *
from tests.train.standins import Data, Loss, Net

def losses(data, fsdp, accumulate):
    net, loss, (optimizer, schedule) = Net(), Loss(), make_optimizer(lr=1e-2, steps=100, warmup=2)
    parts = net, optimizer, loss, jax.random.key(0), make_mesh(data=data, fsdp=fsdp)
    template, state = state_template(*parts), create_sharded_state(*parts)
    step = compile_step(net=net, loss=loss, optimizer=optimizer, ema=Ema(), template=template, accumulate=accumulate)
    stream, found = Data(), []
    for _ in range(20):
        state, metrics = step(state, put_batch(next(stream), batch_sharding(parts[-1])))
        found.append(float(metrics["loss"]))
    kernel = state.ema["ema"]["out"]["kernel"]
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    return {
        "losses": found,
        "spec": str(tuple(kernel.sharding.spec)),
        "held": sum(leaf.addressable_shards[0].data.size for leaf in leaves),
        "history": state.history["sum"].tolist(),
        "norm": float(np.linalg.norm(np.asarray(kernel))),
    }

print(json.dumps([losses(*case) for case in json.loads(sys.argv[1])]))
"""


def _twenty_steps(run_python: Any, devices: int, cases: list[tuple[int, int, int]]) -> list[dict]:
    done = run_python("-c", TWENTY_STEPS, json.dumps(cases), devices=devices)
    return json.loads(done.stdout.splitlines()[-1])


def test_one_and_eight_devices_give_the_same_losses(run_python: Any) -> None:
    (one,) = _twenty_steps(run_python, 1, [(1, 1, 1)])
    cases = [(8, 1, 1), (1, 8, 1), (2, 4, 2)]
    for case, eight in zip(cases, _twenty_steps(run_python, 8, cases), strict=True):
        np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5, err_msg=str(case))
        np.testing.assert_allclose(eight["history"], one["history"], rtol=1e-5)
        np.testing.assert_allclose(eight["norm"], one["norm"], rtol=1e-5)
        fsdp = case[1]
        assert eight["spec"] == ("(None, 'fsdp')" if fsdp > 1 else "()")
        # Everything but the optimizer's two counts splits here: 16 and the width are multiples of 8.
        assert eight["held"] <= one["held"] / fsdp + 2


nightly = pytest.mark.nightly
MAKING = """
import json, math, sys
import jax
from jaxdiff.networks import UNet, dit, functional
from jaxdiff.train import create_sharded_state, make_mesh, make_optimizer, state_template
from tests.train.standins import Loss

NETWORKS = {
    "DiT of 3 blocks": dit("B", depth=3),
    "DiT-XL/2": dit("XL", 2),
    "U-Net": UNet(32, 3, width=64, multipliers=(1, 2), blocks=1, num_classes=10),
}

def sizes(name, mesh, dtype):
    parts = functional(NETWORKS[name]), make_optimizer(lr=1e-4, steps=9, state_dtype=dtype)[0], Loss()
    mesh = make_mesh(*mesh)
    template = state_template(*parts, jax.random.key(0), mesh)
    made = jax.jit(lambda key: create_sharded_state(*parts, key, mesh)).lower(jax.random.key(0)).compile()
    memory = made.memory_analysis()
    leaves = [leaf for leaf in jax.tree.leaves(template) if leaf.ndim]
    return {
        "part": sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves),
        "whole": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "made": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }

print(json.dumps([sizes(*case) for case in json.loads(sys.argv[1])]))
"""


@pytest.mark.parametrize(
    ("devices", "cases"),
    [
        (
            8,
            [
                ("DiT of 3 blocks", (1, 8, 1), "float32"),
                ("DiT of 3 blocks", (1, 4, 2), "int8"),
                ("U-Net", (1, 8, 1), "float32"),
            ],
        ),
        pytest.param(
            8, [("DiT-XL/2", (1, 8, 1), "float32"), ("DiT-XL/2", (1, 4, 2), "float32")], id="XL on 8", marks=nightly
        ),
        pytest.param(64, [("DiT-XL/2", (1, 64, 1), "float32")], id="XL on 64", marks=nightly),
    ],
)
def test_a_device_makes_its_part_of_the_state_and_nothing_else(run_python: Any, devices: int, cases: list[Any]) -> None:
    """Parameters, average and moments, by the compiler's account: not even one layer's noise beside them."""
    done = run_python("-c", MAKING, json.dumps(cases), devices=devices)
    for case, sizes in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        small = 10_000  # step, key, history and guard, which are whole everywhere
        assert sizes["part"] < 0.3 * sizes["whole"], case
        assert abs(sizes["made"] - sizes["part"]) < small, (case, sizes)
        assert sizes["temporaries"] < small, (case, sizes)


def test_leaf_spec_takes_the_largest_divisible_axis() -> None:
    assert tuple(leaf_spec((3, 3, 64, 32), 4)) == (None, None, "fsdp")
    assert tuple(leaf_spec((30, 8), 4)) == (None, "fsdp")
    assert tuple(leaf_spec((8, 8), 4)) == (None, "fsdp")
    assert tuple(leaf_spec((3, 5), 4)) == () == tuple(leaf_spec((), 4)) == tuple(leaf_spec((8, 8), 1))


def test_mesh_sizes_are_checked() -> None:
    count = jax.device_count()
    assert make_mesh().shape == {"data": count, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match="one may be -1"):
        make_mesh(-1, -1)
    with pytest.raises(ValueError, match="one may be -1"):
        make_mesh(0)
    with pytest.raises(ValueError, match=f"does not divide {count}"):
        make_mesh(-1, fsdp=7 * count)
    with pytest.raises(ValueError, match=f"needs {3 * count} devices, there are {count}"):
        make_mesh(3 * count)


def test_a_mesh_that_cuts_a_side_of_the_torus(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise NotImplementedError("the physical topology is not a product of these")  # as JAX does on a TPU

    whole = make_mesh()
    monkeypatch.setattr(jax, "make_mesh", refuses)
    assert make_mesh() == whole


def test_a_batch_that_does_not_split_names_the_fix() -> None:
    mesh = jax.sharding.AbstractMesh((4, 2, 1), ("data", "fsdp", "tensor"))
    check_batch_size(16, mesh, 2)
    with pytest.raises(
        ValueError, match=r"batch_size 30 .* over 8 devices: use a multiple of 8, such as 24 or 32, or fewer"
    ):
        check_batch_size(30, mesh)
    with pytest.raises(ValueError, match="8 devices and 3 micro-batches: use a multiple of 24, such as 24 or 48"):
        check_batch_size(16, mesh, 3)


def test_put_batch_needs_no_implicit_transfer() -> None:
    sharding = batch_sharding(make_mesh(data=1))
    batch = {"x": np.ones((4, 2, 2, 1), np.float32), "label": np.arange(4, dtype=np.int32)}
    with jax.transfer_guard("disallow"):
        placed = put_batch(batch, sharding)
    assert placed["x"].sharding == sharding
    np.testing.assert_array_equal(placed["label"], batch["label"])
