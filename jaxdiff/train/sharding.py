"""Where arrays live: a named mesh, and one rule each for batches and states.

    axis      what is split over it
    data      batches
    fsdp      batches, and every array of the state by its largest axis that can be split (`leaf_spec`)
    tensor    attention and perceptrons, by the table `TENSOR` (Shoeybi et al. 2019, "Megatron-LM",
              https://arxiv.org/abs/1909.08053, section 3): one half of two products by its outputs, the other by its
              inputs, so that a block adds up partial results once after attention and once after the perceptron, and
              no weight ever leaves its device

The table is by the names of parameters, so it holds for the optimizer's moments and the EMA as well; in a U-Net it
finds the attention, and convolutions stay whole. A batch is not split over tensor: devices that differ in this axis
alone compute on the same rows, and where they belong to several processes, these read the same rows (`batch_part`).

Everything is `jax.jit` with `NamedSharding`; the compiler adds the communication. Mesh axes are Auto: nothing in the
library names a device axis outside this file.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.compat import mesh_utils
from jaxdiff.train.state import Initial, Loss, Network, TrainState, create_state

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Axes = tuple[str | None, ...]
TENSOR: tuple[tuple[str, Axes], ...] = (  # pattern in a parameter's path -> its last axes
    (r"attention/qkv/kernel", (None, None, "tensor")),  # (width, 3, heads x depth): whole heads
    (r"attention/qkv/bias", (None, "tensor")),
    (r"attention/out/kernel", ("tensor", None)),
    (r"/(expand|gate)/kernel", (None, "tensor")),
    (r"/expand/bias", ("tensor",)),
    (r"/contract/kernel", ("tensor", None)),
)


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
    if len({device.process_index for device in used}) < len({device.process_index for device in devices}):
        raise ValueError(
            f"{asked} leaves out processes: with {len({device.process_index for device in devices})} of them all "
            f"{len(devices)} devices take part; set one size to -1"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=used)
    except NotImplementedError:  # of a TPU's torus: sizes that are not products of its sides
        arranged = mesh_utils.create_device_mesh(sizes, used, allow_split_physical_axes=True)
        return Mesh(arranged, AXES, axis_types=kinds)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of every leaf of a batch: the leading axis over data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.lru_cache(maxsize=8)
def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which rows of each batch this process reads: part p of P equal parts, in their order.

    P is the number of processes, or less where the tensor axis spans several: those then read the same rows.

    Args:
        mesh: from `make_mesh`.

    Returns:
        (p, P).

    Raises:
        ValueError: the processes' devices do not hold equal parts, each wholly their own.

    Example:
        >>> batch_part(make_mesh())
        (0, 1)
    """
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    held = [row for part in parts for row in part]
    if len(held) != len(set(held)) or len({len(part) for part in parts}) > 1:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise ValueError(
            f"a mesh of {sizes} does not give {len(rows)} processes equal parts of a batch; "
            "let tensor be a divisor, or a multiple, of each process's devices"
        )
    here = rows.get(jax.process_index(), set())
    return (parts.index(tuple(sorted(here))), len(parts))


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


def put_batch(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, Any]:
    """Put this process's part of a batch on its devices, as part of the global batch.

    Args:
        batch: leaves (B / P, ...), numpy, with P from `batch_part`; a condition may be a dict of them.
        sharding: from `batch_sharding`.

    Returns:
        Global arrays (B, ...).

    Raises:
        ValueError: the batch does not split over the devices.

    Example:
        >>> import numpy as np
        >>> put_batch({"x": np.zeros((4, 8, 8, 1), np.float32)}, batch_sharding(make_mesh(data=1)))["x"].shape
        (4, 8, 8, 1)
    """
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)
    parts = batch_part(mesh)[1]
    check_batch_size(len(jax.tree.leaves(dict(batch))[0]) * parts, mesh)
    # With several processes JAX counts even this transfer as an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(sharding, leaf, (len(leaf) * parts, *leaf.shape[1:])),
            dict(batch),
        )


def leaf_spec(shape: tuple[int, ...], fsdp: int, *, tensor: int = 1, path: str = "") -> PartitionSpec:
    """How an array of the state is split: by the first row of `TENSOR` that is in its path, then the largest axis left
    that `fsdp` divides (the last of equals). Where `tensor` or `fsdp` divides no such axis, it splits nothing.

    Args:
        shape: of the array.
        fsdp, tensor: sizes of the mesh.
        path: names on the way to it, joined by "/".

    Example:
        >>> tuple(leaf_spec((3, 3, 64, 128), 4)), tuple(leaf_spec((3,), 4))
        ((None, None, None, 'fsdp'), ())
        >>> tuple(leaf_spec((12, 384, 1536), 2, tensor=4, path="blocks/expand/kernel"))
        (None, 'fsdp', 'tensor')
    """
    axes: list[str | None] = [None] * len(shape)
    last = next((rule for pattern, rule in TENSOR if tensor > 1 and re.search(pattern, path)), ())
    if len(last) <= len(shape):
        for axis, name in enumerate(last, len(shape) - len(last)):
            if name is not None and shape[axis] % tensor == 0:
                axes[axis] = name
    divisible = [axis for axis, size in enumerate(shape) if axes[axis] is None and size % fsdp == 0 and size > 0]
    if fsdp > 1 and divisible:
        axes[max(divisible, key=lambda axis: (shape[axis], axis))] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def split_sharding(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings by `leaf_spec`.

    Args:
        tree: parameters, their EMA or an optimizer's state: arrays, or anything with a shape.
        mesh: from `make_mesh`.
    """

    def split(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = leaf_spec(leaf.shape, mesh.shape["fsdp"], tensor=mesh.shape["tensor"], path=names)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(split, tree)


def check_heads(network: Any, mesh: Mesh | AbstractMesh) -> None:
    """Refuse a tensor axis that would cut through the heads of a network's attention.

    Args:
        network: a configuration; one without `heads` passes.
        mesh: the mesh.

    Raises:
        ValueError: tensor does not divide the number of heads.

    Example:
        >>> from jaxdiff.networks import DiT
        >>> check_heads(DiT(heads=6), jax.sharding.AbstractMesh((1, 1, 4), AXES))
        Traceback (most recent call last):
        ...
        ValueError: tensor=4 does not divide the 6 heads of attention: use a divisor, such as 3, or another number of
            heads
    """
    heads, tensor = getattr(network, "heads", None), mesh.shape["tensor"]
    if tensor > 1 and isinstance(heads, int) and not getattr(network, "head_width", None) and heads % tensor:
        near = max(divisor for divisor in range(1, tensor) if heads % divisor == 0)
        raise ValueError(
            f"tensor={tensor} does not divide the {heads} heads of attention: use a divisor, such as {near}, or "
            "another number of heads"
        )


def state_sharding(state: TrainState, mesh: Mesh) -> TrainState:
    """A TrainState of shardings: parameters, EMA and optimizer by `leaf_spec`; step, key, history and guard whole on
    every device.

    Args:
        state: a TrainState of arrays or of their shapes (`jax.eval_shape`).
        mesh: from `make_mesh`.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    return TrainState(
        step=whole,  # type: ignore[arg-type]
        params=split_sharding(state.params, mesh),
        ema=split_sharding(state.ema, mesh),
        opt_state=split_sharding(state.opt_state, mesh),
        key=whole,  # type: ignore[arg-type]
        history=jax.tree.map(lambda _: whole, state.history),
        guard=jax.tree.map(lambda _: whole, state.guard),
    )


def state_template(
    net: Network, optimizer: optax.GradientTransformation, loss: Loss, key: jax.Array, mesh: Mesh, **options: Any
) -> TrainState:
    """The state's shapes, dtypes and shardings, without making it: what `compile_step` and `Checkpoints.restore` ask
    for.

    Args:
        net, optimizer, loss, key, options: see `create_state`.
        mesh: from `make_mesh`.

    Returns:
        A TrainState of `jax.ShapeDtypeStruct`, each with its sharding.
    """
    shapes = jax.eval_shape(lambda k: create_state(net, optimizer, loss, k, **options), key)
    return _placed(shapes, state_sharding(shapes, mesh))


def params_template(net: Initial, mesh: Mesh) -> Any:
    """Likewise of a network's parameters alone: what `Checkpoints.restore_weights` asks for.

    Args:
        net: the network.
        mesh: from `make_mesh`.

    Returns:
        A nested dict of `jax.ShapeDtypeStruct`, each with its sharding.

    Example:
        >>> import types, jax.numpy as jnp
        >>> net = types.SimpleNamespace(init=lambda key: {"w": jnp.zeros((8, 8))})
        >>> params_template(net, make_mesh(data=1))["w"].shape
        (8, 8)
    """
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return _placed(shapes, split_sharding(shapes, mesh))


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def create_sharded_state(
    net: Network, optimizer: optax.GradientTransformation, loss: Loss, key: jax.Array, mesh: Mesh, **options: Any
) -> TrainState:
    """`create_state` on the mesh: every device makes its own part only, so the whole never has to fit on one.

    Args:
        net, optimizer, loss, key, options: see `create_state`.
        mesh: from `make_mesh`.

    Example:
        >>> import types, jax, jax.numpy as jnp, optax
        >>> net = types.SimpleNamespace(init=lambda key: {"w": jax.random.normal(key, (8, 8))})
        >>> loss = types.SimpleNamespace(init=lambda: ())
        >>> state = create_sharded_state(net, optax.adam(1e-3), loss, jax.random.key(0), make_mesh())
        >>> state.params["w"].shape
        (8, 8)
    """
    template = state_template(net, optimizer, loss, key, mesh, **options)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    return jax.jit(lambda k: create_state(net, optimizer, loss, k, **options), out_shardings=shardings)(key)
