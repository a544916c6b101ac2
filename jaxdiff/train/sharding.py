"""Where arrays live: a named mesh, and one rule each for batches and states.

    axis      what is split over it
    data      batches
    fsdp      batches, and every array of the state by its largest divisible axis (`leaf_spec`)
    tensor    nothing yet

Everything is `jax.jit` with `NamedSharding`; the compiler adds the communication. Mesh axes are Auto: nothing in the
library names a device axis outside this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.train.state import Loss, Network, TrainState, create_state

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: list[jax.Device] | None = None) -> Mesh:
    """Arrange the devices as data x fsdp x tensor.

    Args:
        data, fsdp, tensor: sizes, at least 1; one of them may be -1: whatever devices are left.
        devices: the devices to use; None: all (with sizes that ask for fewer, the first ones).

    Returns:
        A Mesh with axes "data", "fsdp", "tensor", all Auto.

    Raises:
        ValueError: sizes that do not fit the devices.

    Example:
        >>> mesh = make_mesh()
        >>> mesh.axis_names
        ('data', 'fsdp', 'tensor')
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    asked = f"a mesh of data={data}, fsdp={fsdp}, tensor={tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"{asked}: sizes are at least 1, and one may be -1 (what is left)")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if len(devices) % fixed:
            raise ValueError(f"{asked} does not fit {len(devices)} devices: {fixed} does not divide {len(devices)}")
        sizes[sizes.index(-1)] = len(devices) // fixed
    elif fixed > len(devices):
        raise ValueError(
            f"{asked} needs {fixed} devices, there are {len(devices)}; set one size to -1 to use what there is"
        )
    used = devices[: math.prod(sizes)]
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=used)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of every leaf of a batch: the leading axis over data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, accumulate: int = 1) -> None:
    """Refuse, before anything compiles, a batch that does not split evenly.

    Args:
        batch_size: images a step over all processes.
        mesh: the mesh.
        accumulate: micro-batches a step.

    Raises:
        ValueError: `batch_size` is no multiple of devices x accumulate; the message names sizes that are.

    Example:
        >>> check_batch_size(64, make_mesh(data=1))
        >>> check_batch_size(10, make_mesh(data=1), accumulate=4)
        Traceback (most recent call last):
        ...
        ValueError: batch_size 10 does not split evenly over 1 device and 4 micro-batches: use a multiple of 4, such as
            8 or 12
    """
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    unit = devices * accumulate
    if batch_size < 1 or batch_size % unit:
        near = max(batch_size // unit, 1) * unit
        parts = f"{devices} device{'s' if devices > 1 else ''}"
        parts += f" and {accumulate} micro-batches" if accumulate > 1 else ""
        fewer = ", or fewer devices (for instance --mesh.data 1)" if devices > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not split evenly over {parts}: "
            f"use a multiple of {unit}, such as {near} or {near + unit}{fewer}"
        )


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Put this process's part of a batch on its devices, as part of the global batch.

    Args:
        batch: leaves (B / process_count, ...), numpy.
        sharding: from `batch_sharding`.

    Returns:
        Global arrays (B, ...).

    Raises:
        ValueError: the batch does not split over the devices.

    Example:
        >>> import numpy as np
        >>> put_batch({"image": np.zeros((4, 8, 8, 1), np.float32)}, batch_sharding(make_mesh(data=1)))["image"].shape
        (4, 8, 8, 1)
    """
    check_batch_size(len(next(iter(batch.values()))) * jax.process_count(), sharding.mesh)
    # With several processes JAX counts even this transfer as an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def leaf_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The rule of fsdp: split the largest axis that `fsdp` divides (the last of equals); no such axis: keep whole.

    Example:
        >>> tuple(leaf_spec((3, 3, 64, 128), 4)), tuple(leaf_spec((3,), 4))
        ((None, None, None, 'fsdp'), ())
    """
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0 and size > 0]
    if fsdp == 1 or not divisible:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*([None] * chosen), "fsdp")


def state_sharding(state: TrainState, mesh: Mesh) -> TrainState:
    """A TrainState of shardings: parameters, EMA and optimizer by `leaf_spec`; step, key, history and guard whole on
    every device.

    Args:
        state: a TrainState of arrays or of their shapes (`jax.eval_shape`).
        mesh: from `make_mesh`.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf_spec(leaf.shape, mesh.shape["fsdp"])), tree)

    return TrainState(
        step=whole,  # type: ignore[arg-type]
        params=split(state.params),
        ema=split(state.ema),
        opt_state=split(state.opt_state),
        key=whole,  # type: ignore[arg-type]
        history=jax.tree.map(lambda _: whole, state.history),
        guard=jax.tree.map(lambda _: whole, state.guard),
    )


def state_template(
    net: Network, optimizer: optax.GradientTransformation, loss: Loss, key: jax.Array, mesh: Mesh
) -> TrainState:
    """The state's shapes, dtypes and shardings, without making it: what `compile_step` and `Checkpoints.restore` ask
    for.

    Args:
        net, optimizer, loss, key: see `create_state`.
        mesh: from `make_mesh`.

    Returns:
        A TrainState of `jax.ShapeDtypeStruct`, each with its sharding.
    """
    shapes = jax.eval_shape(lambda k: create_state(net, optimizer, loss, k), key)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_sharding(shapes, mesh),
    )


def create_sharded_state(
    net: Network, optimizer: optax.GradientTransformation, loss: Loss, key: jax.Array, mesh: Mesh
) -> TrainState:
    """`create_state` on the mesh: every device makes its own part only, so the whole never has to fit on one.

    Args:
        net, optimizer, loss, key: see `create_state`.
        mesh: from `make_mesh`.

    Example:
        >>> import types, jax, jax.numpy as jnp, optax
        >>> net = types.SimpleNamespace(init=lambda key: {"w": jax.random.normal(key, (8, 8))})
        >>> loss = types.SimpleNamespace(init=lambda: ())
        >>> state = create_sharded_state(net, optax.adam(1e-3), loss, jax.random.key(0), make_mesh())
        >>> state.params["w"].shape
        (8, 8)
    """
    template = state_template(net, optimizer, loss, key, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    return jax.jit(lambda k: create_state(net, optimizer, loss, k), out_shardings=shardings)(key)
