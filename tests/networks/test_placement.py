"""`jaxdiff.networks.placement`; that a step on many devices then gathers weights only: `tests/test_scaling.py`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdiff.networks.placement import by_sample, samples_over
from jaxdiff.train import make_mesh
from jaxdiff.train.sharding import batch_sharding


def test_by_sample_splits_the_first_axis_where_it_can() -> None:
    mesh = jax.sharding.AbstractMesh((2, 2, 1), ("data", "fsdp", "tensor"))

    def constraints(rows: int) -> list[Any]:
        with samples_over(batch_sharding(mesh)):
            traced = jax.make_jaxpr(by_sample)(jnp.zeros((rows, 3)))
        return [e.params["sharding"].spec for e in traced.jaxpr.eqns if e.primitive.name == "sharding_constraint"]

    assert constraints(8) == [PartitionSpec(("data", "fsdp"), PartitionSpec.UNCONSTRAINED)]
    assert constraints(6) == []
    assert not jax.make_jaxpr(by_sample)(jnp.zeros((8, 3))).jaxpr.eqns
    with samples_over(batch_sharding(make_mesh(data=1))):  # one device: the program is as it was
        assert not jax.make_jaxpr(by_sample)(jnp.zeros((8, 3))).jaxpr.eqns
