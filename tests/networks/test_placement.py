"""`jaxdiff.networks.placement`; `tests/benchmarks/test_scaling.py`: a step on many devices gathers weights only."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdiff.networks.backend import present_machine
from jaxdiff.networks.placement import by_feature, by_sample, samples_over
from jaxdiff.train import make_mesh
from jaxdiff.train.sharding import batch_sharding

AUTO = (jax.sharding.AxisType.Auto,) * 3  # as jax.make_mesh has them, and not yet an AbstractMesh of jax 0.12


def test_by_sample_splits_the_first_axis_where_it_can() -> None:
    mesh = jax.sharding.AbstractMesh((2, 2, 1), ("data", "fsdp", "tensor"), axis_types=AUTO)

    def constraints(rows: int) -> list[Any]:
        with samples_over(batch_sharding(mesh)):
            traced = jax.make_jaxpr(by_sample)(jnp.zeros((rows, 3)))
        return [e.params["sharding"].spec for e in traced.jaxpr.eqns if e.primitive.name == "sharding_constraint"]

    assert constraints(8) == [PartitionSpec(("data", "fsdp"), PartitionSpec.UNCONSTRAINED)]
    assert constraints(6) == []
    assert not jax.make_jaxpr(by_sample)(jnp.zeros((8, 3))).jaxpr.eqns
    with samples_over(batch_sharding(make_mesh(data=1))):  # one device: the program is as it was
        assert not jax.make_jaxpr(by_sample)(jnp.zeros((8, 3))).jaxpr.eqns


def test_products_of_vectors_are_made_where_columns_lie() -> None:
    mesh = jax.sharding.AbstractMesh((2, 4, 1), ("data", "fsdp", "tensor"), axis_types=AUTO)

    def constraints(rows: int, features: int, inputs: int) -> list[Any]:
        with samples_over(batch_sharding(mesh)):
            traced = jax.make_jaxpr(lambda y: by_feature(y, inputs))(jnp.zeros((rows, features)))
        return [e.params["sharding"].spec for e in traced.jaxpr.eqns if e.primitive.name == "sharding_constraint"]

    by_columns = PartitionSpec(("data",), "fsdp")
    by_samples = PartitionSpec(("data", "fsdp"), PartitionSpec.UNCONSTRAINED)
    assert constraints(8, 64, 16) == [by_columns, by_samples]
    assert constraints(8, 62, 16) == [by_samples]  # columns that fsdp does not divide
    assert constraints(800, 64, 16) == [by_samples]  # vectors of more bytes than the matrix
    assert constraints(6, 64, 16) == []
    assert not jax.make_jaxpr(lambda y: by_feature(y, 16))(jnp.zeros((8, 64))).jaxpr.eqns


def test_an_attention_is_judged_by_a_devices_part_of_it() -> None:
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=AUTO)
    with samples_over(batch_sharding(mesh)):
        assert present_machine().parts == 8
    assert present_machine().parts == 1


GENERATE = """
import json, jax, jax.numpy as jnp
from benchmarks.speed.collectives import count
from jaxdiff import DDIM, VP
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.networks import DiT, functional
from jaxdiff.noise import sample_keys
from jaxdiff.parameterization import Eps
from jaxdiff.guidance import CFG
from jaxdiff.model import Plan, draw
from jaxdiff.train import batch_sharding, make_mesh, split_sharding

mesh = make_mesh(data=2, fsdp=4)
net = functional(DiT(in_channels=4, width=64, depth=3, heads=4, frequencies=16, num_classes=10))
shapes = jax.eval_shape(net.init, jax.random.key(0))
placed = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
denoise = NetworkDenoiser(net, jax.tree.map(placed, shapes, split_sharding(shapes, mesh)), VP(), Eps())
plan = Plan(
    denoise, DDIM(VP()), jnp.linspace(1.0, 1e-3, 11), {"label": jnp.zeros(64, jnp.int32)}, guide=(CFG(2.0),),
    nulls={"label": jnp.full(64, 10)}, codec=None, shape=(32, 32, 4),
)
lowered = draw.lower(plan, sample_keys(jax.random.key(0), 0, 64), decode=False, sharding=batch_sharding(mesh))
weights = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
print(json.dumps({"sent": count(lowered.compile().as_text(), 8, slices=True).sent, "weights": weights}))
"""


def test_sampling_with_split_weights_sends_weights_and_the_last_images(run_python: Any) -> None:
    """Left to itself the compiler sends 480 MB here, most of it activations, which are larger than the weights."""
    found = json.loads(run_python("-c", GENERATE, devices=8).stdout.splitlines()[-1])
    images = 4 * 64 * 32 * 32 * 4
    assert found["sent"] <= 11 * found["weights"] * 3 / 4 + images * 7 / 8
