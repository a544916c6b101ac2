"""From a file's tensors to the parameters of a network, a tensor at a time, straight into their place.

Before anything is read, names and shapes of both sides are compared, and what does not fit is listed: nothing of a
network is ever left at random. Then each array of ours is made of its tensors on the host, in the dtype asked for, and
put on its devices; of a row of stacked blocks one block at a time, into an array that lies there already. So the host
holds one block's array beside the parameters.

Of tensors that are split over hosts each host reads as many rows as any other. Where devices hold rows of a published
tensor, these are theirs; where they hold columns of it, the devices exchange what their hosts have read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from jax.sharding import Sharding
from numpy.typing import NDArray

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.axes import Axes
from jaxdiff.pretrained.files.naming import Leaf, Naming
from jaxdiff.pretrained.files.tensors import Tensors, floating

_LISTED = 6  # names of a list in a message
Rows = Callable[[str, tuple[int, int] | None], NDArray[Any]]


def load_params(
    shapes: Mapping[str, Any],
    naming: Naming,
    tensors: Tensors,
    *,
    dtype: str | None = "float32",
    shardings: Mapping[str, Any] | Sharding | None = None,
    where: str = "",
    missing: bool = False,
    extra: bool = False,
) -> dict[str, Any]:
    """The parameters of a network, from published tensors.

    Args:
      shapes: what `jaxdiff.networks.Functional.init` makes, as shapes (`jax.eval_shape`).
      naming: their names.
      tensors: to read.
      dtype: of floating numbers; None: each as it is stored.
      shardings: one for all, or a tree of them; None: the first device.
      where: the folder or file, for messages.
      missing: whether leaves may be left out: those whose tensors are not there, or have another shape, stay as they
        stand in ``shapes``.
      extra: whether tensors may be left over.

    Raises:
      PretrainedError: tensors that are missing, that are left over, or that have another shape; all by name.
    """
    dtype = floating(dtype)
    _check_fixed(naming, tensors, where)
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(shapes), sep="/")
    leaves = {path: naming.leaf(path, leaf.shape) for path, leaf in flat.items()}
    stored = {naming.newer(name): name for name in tensors}
    params: dict[str, Any] = {}
    if missing:
        params = {path: flat[path] for path, leaf in leaves.items() if not _is_there(leaf, tensors, stored)}
        leaves = {path: leaf for path, leaf in leaves.items() if path not in params}
    _compare(leaves, naming, tensors, stored, where, extra=extra)
    spread = traverse_util.flatten_dict(dict(shardings), sep="/") if isinstance(shardings, Mapping) else None
    for path, leaf in leaves.items():
        sharding: Any = shardings if spread is None else spread[path]
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        kept = tensors[stored[leaf.names[0]]].dtype
        wanted = kept if dtype is None or not jnp.issubdtype(kept, jnp.floating) else dtype

        def read(name: str, rows: tuple[int, int] | None, leaf: Leaf = leaf) -> NDArray[Any]:
            cut, shape = leaf.cut, leaf.tensor
            if cut is not None and cut.axis == 0:
                first, last = rows or (0, cut.stop - cut.start)
                rows, cut = (cut.start + first, cut.start + last), None
            whole = tensors.read(stored[name], rows)
            whole = whole.reshape((whole.shape[0], *shape[1:]) if shape else ())  # without axes of length 1 at the end
            return whole if cut is None else whole.take(range(cut.start, cut.stop), axis=cut.axis)

        try:
            params[path] = _put(leaf, read, np.dtype(wanted), sharding, flat[path].shape)
        except PretrainedError as error:
            told = str(error)
            raise PretrainedError(
                told if told.startswith(tuple(map(str, tensors.files))) else f"{where}: {told}"
            ) from error
    return dict(traverse_util.unflatten_dict(params, sep="/"))


def _compare(
    leaves: Mapping[str, Leaf],
    naming: Naming,
    tensors: Tensors,
    stored: Mapping[str, str],
    where: str,
    *,
    extra: bool = False,
) -> None:
    wanted = {name: leaf.tensor for leaf in leaves.values() for name in leaf.names}
    missing = [name for name in wanted if name not in stored]
    known = wanted.keys() | naming.copies.keys() | naming.tables.keys()
    left = [] if extra else [name for name in stored if name not in known and not naming.is_unused(name)]
    shapes = {name: (tensors[stored[name]].shape, shape) for name, shape in wanted.items() if name in stored}
    other = [f"{name} is {has}, expected {shape}" for name, (has, shape) in shapes.items() if not _fits(has, shape)]
    said = [
        f"{len(names)} {what}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for what, names in (("tensors are missing", missing), ("are not known", left), ("have another shape", other))
        if names
    ]
    kinds = {name: tensors[stored[name]].dtype for name in wanted if name in stored}
    if wrong := [name for name, kind in kinds.items() if not jnp.issubdtype(kind, jnp.floating)]:
        said.append(f"{len(wrong)} are not floating numbers: {wrong[0]} is {kinds[wrong[0]]}")
    if said:
        raise PretrainedError(
            f"{where or tensors.files[0]}: the weights do not fit the configuration: {'; '.join(said)}"
        )


def _is_there(leaf: Leaf, tensors: Tensors, stored: Mapping[str, str]) -> bool:
    return all(name in stored and _fits(tensors[stored[name]].shape, leaf.tensor) for name in leaf.names)


def _check_fixed(naming: Naming, tensors: Tensors, where: str) -> None:
    """Checks the tensors that are not read: computed tables, and tensors that repeat another one."""
    for name, make in naming.tables.items():
        if name not in tensors:
            continue
        table, stored = make(), tensors.read(name).astype(np.float32)
        if table.shape != stored.shape or not np.allclose(stored, table, atol=1e-2):
            raise PretrainedError(f"{where or tensors.files[0]}: {name} is another table than the one that is computed")
    for copy, of in naming.copies.items():
        if copy in tensors and of in tensors and not np.array_equal(tensors.read(copy), tensors.read(of)):
            raise PretrainedError(
                f"{where or tensors.files[0]}: {copy} is not {of}, which it repeats in what was published"
            )


def _fits(has: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether shapes agree; 1x1 convolutions and linear maps are one."""
    return (
        has == wanted
        or (has[: len(wanted)] == wanted and set(has[len(wanted) :]) == {1})
        or (wanted[: len(has)] == has and set(wanted[len(has) :]) == {1})
    )


def _put(leaf: Leaf, read: Rows, dtype: np.dtype, sharding: Sharding, shape: tuple[int, ...]) -> Array:
    """An array of ours on its devices."""
    if leaf.blocks is None:
        return _array(leaf, leaf.names, read, dtype, sharding)
    inner = _of_block(sharding)
    made = jnp.zeros(shape, dtype, device=sharding)
    for number, names in enumerate(leaf.groups()):
        made = _with_block(made, _array(leaf, names, read, dtype, inner), number)
    return made


@functools.partial(jax.jit, donate_argnums=0)
def _with_block(whole: Array, block: Array, number: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(whole, block, number, 0)


def _of_block(sharding: Sharding) -> Sharding:
    """The sharding of one block of a row, whose first axis is on every device."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return sharding


def _array(leaf: Leaf, names: tuple[str, ...], read: Rows, dtype: np.dtype, sharding: Sharding) -> Array:
    """One block of a leaf, or a leaf that is no row of blocks. Of it each host reads the rows that its devices hold,
    where those are rows of the tensors too, or else its share of the rows."""
    shape = leaf.shape
    along = leaf.axes.leading(0 if leaf.parts is None else 1)
    held = sharding.addressable_devices_indices_map(shape).values()
    first, last = 0, shape[along] if along is not None else 0
    if along is not None:
        ranges = [index[along].indices(shape[along]) for index in held if index is not None]
        first, last = min(r[0] for r in ranges), max(r[1] for r in ranges)
    part = along is not None and (first, last) != (0, shape[along])
    if not part and (exchanged := _exchanged(leaf, names, read, dtype, sharding)) is not None:
        return exchanged
    rows, size = (
        ((first, last), (*shape[:along], last - first, *shape[along + 1 :]))
        if part and along is not None
        else (None, shape)
    )
    parts = [read(name, rows) for name in names]
    with np.errstate(over="ignore"):  # which is refused in words
        whole = leaf.axes.to_ours(parts[0] if leaf.parts is None else np.stack(parts), size).astype(dtype)
    del parts
    _check_finite(whole, names)

    def local(index: tuple[slice, ...] | None) -> NDArray[Any]:
        assert index is not None
        if part and along is not None:
            start, stop, _ = index[along].indices(shape[along])
            index = (*index[:along], slice(start - first, stop - first), *index[along + 1 :])
        return whole[index]

    return jax.make_array_from_callback(shape, sharding, local)


def _exchanged(leaf: Leaf, names: tuple[str, ...], read: Rows, dtype: np.dtype, sharding: Sharding) -> Array | None:
    """As `_array`, for devices of several hosts that hold columns of the tensors: each host reads its share of their
    rows, and the devices exchange them. None: one host holds all, or the rows do not divide evenly."""
    if sharding.is_fully_addressable or not isinstance(sharding, jax.sharding.NamedSharding):
        return None
    over = tuple(axis for axes in sharding.spec if axes for axis in ((axes,) if isinstance(axes, str) else axes))
    theirs = leaf.axes.theirs(leaf.shape)[0 if leaf.parts is None else 1 :]
    if not over or not theirs or theirs[0] % math.prod(sharding.mesh.shape[axis] for axis in over):
        return None
    by_rows = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(over))

    def rows_of(name: str, index: tuple[slice, ...] | None) -> NDArray[Any]:
        assert index is not None
        first, last, _ = index[0].indices(theirs[0])
        with np.errstate(over="ignore"):
            found = read(name, (first, last)).astype(dtype)
        _check_finite(found, (name,))
        return found

    parts = [jax.make_array_from_callback(theirs, by_rows, functools.partial(rows_of, name)) for name in names]
    axes = leaf.axes
    return _exchange(axes.pattern, tuple(axes.sizes.items()), leaf.parts is None, leaf.shape, sharding)(parts)


@functools.cache
def _exchange(
    pattern: str, sizes: tuple[tuple[str, int], ...], alone: bool, shape: tuple[int, ...], sharding: Sharding
) -> Callable[[Sequence[Array]], Array]:
    """The program that makes an array of ours from its tensors, both spread over the devices."""
    axes = Axes(pattern, dict(sizes))
    return jax.jit(lambda parts: axes.to_ours(parts[0] if alone else jnp.stack(parts), shape), out_shardings=sharding)


def _check_finite(found: NDArray[Any], names: tuple[str, ...]) -> None:
    if found.size and not (np.isfinite(found.max()) and np.isfinite(found.min())):
        more = f", or one of {len(names)} beside it," if len(names) > 1 else ""
        raise PretrainedError(
            f"{names[0]}{more} holds numbers that are not finite in {found.dtype}: fetch the file again"
        )
