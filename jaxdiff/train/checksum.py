"""Checksums of a state's leaves, the same on whatever devices and processes the leaves lie.

With b(x_i) the bits of element i as a whole number, and w_k(j) an odd number that belongs to place j of axis k,

    sum(x) = sum_i b(x_i) w_1(i_1) ... w_d(i_d)   mod 2^64                                            (1)

The sum of a leaf is that of its shards. On accelerators these make the sums, and eight bytes a leaf leave them; on CPUs
NumPy is faster and compiles nothing: each process adds up what it holds, and the sums of all are exchanged.
A changed bit changes (1) by 2^n times an odd number, which is never 0: every single flipped bit is seen, and other
damage but once in 2^32 times at most. The sums are against accidents; whoever can write files can write sums too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxdiff.compat import multihost_utils

FILES = "files.json"


class DamageError(Exception):
    """A part of a checkpoint that is not as it was written."""


def leaf_sums(leaves: Sequence[jax.Array]) -> list[str]:
    """The sum (1) of each leaf, 16 hexadecimal digits.

    Args:
        leaves: arrays of any numeric type, on any sharding. Where some lie on devices of several processes, all of
            these call it.

    Example:
        >>> import jax.numpy as jnp
        >>> leaf_sums([jnp.zeros((2, 2)), jnp.uint8(255)])
        ['0000000000000000', '00000000000000ff']
    """
    if any(device.platform != "cpu" for leaf in leaves for device in leaf.devices()):
        return device_sums(leaves)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy lets other threads run meanwhile
        sums = list(pool.map(_held, leaves))
    shared = [n for n, leaf in enumerate(leaves) if not leaf.is_fully_addressable]
    if shared:
        halves = np.array([divmod(sums[n], 2**32) for n in shared], np.uint32)
        everyone = np.asarray(multihost_utils.process_allgather(halves), np.uint64)  # (processes, leaves, 2)
        for n, (high, low) in zip(shared, everyone.sum(axis=0), strict=True):
            sums[n] = (int(high) * 2**32 + int(low)) % 2**64
    return [f"{each:016x}" for each in sums]


def device_sums(leaves: Sequence[jax.Array]) -> list[str]:
    """`leaf_sums` by the devices that the leaves lie on; all processes whose devices these are call it.

    Example:
        >>> import jax.numpy as jnp
        >>> device_sums([jnp.zeros((2, 2)), jnp.uint8(255)])
        ['0000000000000000', '00000000000000ff']
    """
    with jax.enable_x64(True), jax.transfer_guard("allow"):  # of the weights
        sums = [_device_sum(leaf, [_weights(*axis) for axis in enumerate(leaf.shape)]) for leaf in leaves]
        return [f"{int(each):016x}" for each in jax.device_get(sums)]


def text_sum(value: Any) -> str:
    """A checksum of a JSON value, the same before it is written and after it is read.

    Example:
        >>> text_sum({"a": (1, 2), "b": 3}) == text_sum({"b": 3, "a": [1, 2]})
        True
    """
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_file_sums(folder: Path) -> None:
    """Notes size and checksum of every file under a folder in its file `FILES`; not of files in the folder itself."""
    paths = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sums = pool.map(_of_file, paths)
        found = {path.relative_to(folder).as_posix(): each for path, each in zip(paths, sums, strict=True)}
    (folder / FILES).write_text(json.dumps({"files": found, "sum": text_sum(found)}, indent=0), encoding="utf-8")


def check_files(folder: Path, parts: Sequence[str], index: int = 0, count: int = 1) -> None:
    """Compares files with what `write_file_sums` has noted.

    Args:
        folder: where the notes are.
        parts: sub-folders to look into.
        index, count: which share of the files, of how many.

    Raises:
        DamageError: naming the first file that is not as it was.
    """
    try:
        noted = json.loads((folder / FILES).read_text(encoding="utf-8"))
        files = noted["files"]
    except OSError as error:
        raise DamageError(f"{FILES}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(f"{FILES} is damaged: {type(error).__name__}") from error
    if noted.get("sum") != text_sum(files):
        raise DamageError(f"{FILES}: its checksum does not fit")
    names = [name for name in sorted(files) if name.partition("/")[0] in parts][index::count]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _state_of_file(folder / name), names)
        for name, state in zip(names, found, strict=True):
            if isinstance(state, str):
                raise DamageError(f"{name}: {state}")
            if state != files[name]:
                size = "" if state[0] == files[name][0] else f", {state[0]} bytes of {files[name][0]}"
                raise DamageError(f"{name}: its checksum does not fit{size}")


def _state_of_file(path: Path) -> list[int] | str:
    try:
        return _of_file(path)
    except OSError as error:
        return error.strerror or type(error).__name__


def _of_file(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


@jax.jit
def _device_sum(leaf: jax.Array, weights: list[jax.Array]) -> jax.Array:
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * bits.dtype.itemsize}")).astype(jnp.uint64)
    for along in reversed(weights):
        bits = (bits * jnp.broadcast_to(along, bits.shape)).sum(-1)
    return bits


def _held(leaf: jax.Array) -> int:
    # Of several copies of a shard, one counts.
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return sum(_sum(np.asarray(shard.data), shard.index, leaf.shape) for shard in shards) % 2**64


def _sum(values: NDArray[Any], index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    if values.size == 0:
        return 0
    bits: Any = np.ascontiguousarray(values).view(np.dtype(f"u{values.dtype.itemsize}")).reshape(values.shape)
    with np.errstate(over="ignore"):
        for axis in reversed(range(len(shape))):
            weights = _weights(axis, shape[axis])[index[axis]]
            if axis:
                bits = np.einsum("ij,j->i", bits.reshape(-1, bits.shape[-1]), weights).reshape(bits.shape[:-1])
            else:
                bits = np.einsum("i,i->", bits, weights)
    return int(bits)


@functools.lru_cache(maxsize=1024)
def _weights(axis: int, size: int) -> NDArray[np.uint64]:
    # Philox's raw stream for the axis, which NumPy keeps the same for ever: place j has one number, whatever the size.
    return np.asarray(np.random.Philox(key=axis).random_raw(size), np.uint64) | np.uint64(1)
