"""Files of Flax's serialization, `*.msgpack`, read a tensor at a time.

The format (https://github.com/msgpack/msgpack/blob/master/spec.md, and `flax.serialization`): nested maps whose leaves
are of extension type 1, the bytes of ``[shape, name of the dtype, numbers row by row]``. An array of more than 2^30
bytes is a map ``{"__msgpack_chunked_array__": true, "shape": {"0": n, ...}, "chunks": {"0": part, ...}}``. A tensor's
name is its keys, joined by "/".

Nothing but these kinds is known here, and nothing is ever run. The maps are walked once, past the numbers, to note
where each tensor lies; it is read when it is asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.foreign import other_kind
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.safetensors import names_of, read_bytes
from jaxdiff.pretrained.files.tensors import Tensors

_DTYPES = {name: np.dtype(name) for name in ("float64", "float32", "float16", "bool", "uint8")} | {
    **{f"int{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ARRAY, _SCALAR = 1, 3  # extension types
_CHUNKED = "__msgpack_chunked_array__"
_DEEPEST = 64  # maps within maps
_LONGEST = 4096  # bytes of a name


class Pieces(NamedTuple):
    """Where a tensor lies.

    Attributes:
      file: that holds it.
      starts: of each piece of its numbers, from the file's begin.
      sizes: of each piece, in bytes.
      dtype: of its numbers.
      shape: of it.
    """

    file: Path
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype
    shape: tuple[int, ...]


class Msgpack(Tensors):
    """The tensors of one file of Flax, or of several, by name.

    Where all have one more axis before those of a network, and that is one length for all, they were saved as they lay
    on several devices; the first copy is taken.

    Args:
      files: to read.

    Raises:
      PretrainedError: a file that is missing, is damaged, or is another kind of file.
    """

    def __init__(self, *files: Path) -> None:
        self.files = files
        self._places: dict[str, Pieces] = {}
        for file in files:
            found = _walked(file)
            if twice := sorted(set(found) & set(self._places)):
                raise PretrainedError(f"{file}: {twice[0]} stands in {self._places[twice[0]].file.name} too")
            self._places |= found
        if self._places and all(name.startswith("params/") for name in self._places):
            self._places = {name.removeprefix("params/"): place for name, place in self._places.items()}
        copies = {place.shape[:1] for name, place in self._places.items() if name.endswith("/bias")}
        wide = all(len(place.shape) == 2 for name, place in self._places.items() if name.endswith("/bias"))
        self._copies = wide and len(copies) == 1

    def __getitem__(self, name: str) -> Pieces:
        place = self._places[name]
        return place._replace(shape=place.shape[1:]) if self._copies else place

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """A tensor, in memory of its own: see `jaxdiff.pretrained.files.tensors.Tensors.read`."""
        file, starts, sizes, dtype, shape = self[name]
        start, stop = 0, math.prod(shape) * dtype.itemsize
        if rows is not None:
            row = math.prod(shape[1:]) * dtype.itemsize
            start, stop, shape = rows[0] * row, rows[1] * row, (rows[1] - rows[0], *shape[1:])
        made = np.empty(shape, dtype)
        left, at = memoryview(made.reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type]
        for begin, size in zip(starts, sizes, strict=True):
            first, last = max(start, at), min(stop, at + size)
            if first < last:
                read_bytes(file, begin + first - at, left[first - start : last - start], name)
            at += size
        return made


def open_msgpack(folder: Path, stem: str) -> Msgpack | None:
    """The tensors of ``folder/stem.msgpack``, or of the files that its index names; None: there are none.

    Args:
      folder: that holds them.
      stem: ``diffusion_flax_model`` of diffusers, ``flax_model`` of transformers.

    Raises:
      PretrainedError: a file that is missing or damaged.
    """
    index = folder / f"{stem}.msgpack.index.json"
    if (folder / f"{stem}.msgpack").is_file():
        return Msgpack(folder / f"{stem}.msgpack")
    if not index.is_file():
        return None
    files = [folder / Path(name).name for name in names_of(index)]
    if missing := [file for file in files if not file.is_file()]:
        raise PretrainedError(
            f"{missing[0]} is missing ({len(missing)} of the {len(files)} files of {index.name}): fetch it"
        )
    return Msgpack(*files)


class _Damaged(ValueError):
    """Something that the format does not have here."""


def _walked(file: Path) -> dict[str, Pieces]:
    try:
        with open(file, "rb") as opened:
            if (why := other_kind(opened.read(72))) is not None:
                raise PretrainedError(f"{file}: {why}")
            opened.seek(0)
            reader = _Reader(opened, file)
            found = dict(reader.tensors())
            if opened.tell() != reader.whole:
                raise _Damaged(f"{reader.whole - opened.tell():,} bytes too many")
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from error
    except _Damaged as error:
        raise PretrainedError(f"{file}: no file of Flax, or damaged, or cut off ({error}): fetch it again") from error
    return found


class _Reader:
    """A walk through an open file."""

    def __init__(self, opened: BinaryIO, file: Path) -> None:
        self._opened, self._file = opened, file
        self.whole = os.fstat(opened.fileno()).st_size

    def tensors(self, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Pieces]]:
        """The tensors of the value that begins here."""
        kind, size = self._head()
        name = "/".join(path)
        if kind == "ext":
            yield name, self._array(size, name)
        elif kind == "map":
            if len(path) > _DEEPEST:
                raise _Damaged(f"more than {_DEEPEST} maps within each other")
            for number in range(size):
                key = self._text()
                if number == 0 and key == _CHUNKED:
                    yield name, self._chunked(size, name)
                    return
                yield from self.tensors((*path, key))
        else:
            raise _Damaged(f"{name or 'the whole'} is a {kind}, expected arrays in maps")

    def _chunked(self, entries: int, name: str) -> Pieces:
        if entries != 3 or self._head()[0] != "true" or self._text() != "shape":
            raise _Damaged(f"{name} is in chunks of another kind")
        kind, size = self._head()
        shape = {_counted(self._text()): self._number() for _ in range(size)} if kind == "map" else {}
        if self._text() != "chunks":
            raise _Damaged(f"{name} is in chunks of another kind")
        chunks = {_counted(key): piece for key, piece in self.tensors()}
        if not chunks or sorted(shape) != list(range(len(shape))) or sorted(chunks) != list(range(len(chunks))):
            raise _Damaged(f"{name} lacks chunks")
        parts = [chunks[number] for number in sorted(chunks)]
        dims = tuple(shape[axis] for axis in sorted(shape))
        if sum(math.prod(part.shape) for part in parts) != math.prod(dims):
            raise _Damaged(f"{name} of shape {dims} in chunks of {[part.shape for part in parts]}")
        starts, sizes = (tuple(each[0] for each in column) for column in zip(*(p[1:3] for p in parts), strict=True))
        return Pieces(self._file, starts, sizes, parts[0].dtype, dims)

    def _array(self, size: int, name: str) -> Pieces:
        """An extension of so many bytes, of which the type comes next."""
        code, end = self._byte(), self._opened.tell() + size
        if code not in (_ARRAY, _SCALAR):
            raise _Damaged(f"{name} is of the extension type {code}, which is no array")
        if self._head() != ("array", 3):
            raise _Damaged(f"{name} is no array")
        kind, axes = self._head()
        if kind != "array" or axes > 32:
            raise _Damaged(f"{name} has no shape")
        shape = tuple(self._number() for _ in range(axes))
        dtype = _DTYPES.get(said := self._text())
        if dtype is None:
            raise _Damaged(f"{name} is of {said!r}, expected {', '.join(_DTYPES)}")
        kind, count = self._head()
        start = self._opened.tell()
        if kind not in ("bin", "str") or count != math.prod(shape) * dtype.itemsize or start + count != end:
            raise _Damaged(f"{name} of shape {shape} in {count} bytes")
        self._skip(count)
        return Pieces(self._file, (start,), (count,), dtype, shape)

    def _head(self) -> tuple[str, int]:
        """The kind of the value that begins here, and its length, value or number of entries."""
        byte = self._byte()
        if byte < 0x80:
            return "number", byte
        for first, last, kind in ((0x80, 0x8F, "map"), (0x90, 0x9F, "array"), (0xA0, 0xBF, "str")):
            if first <= byte <= last:
                return kind, byte - first
        if byte not in _HEADS:
            raise _Damaged(f"the byte {byte:#x}")
        kind, length = _HEADS[byte]
        if kind == "ext" and length < 0:
            return kind, -length
        return kind, int.from_bytes(self._bytes(length), "big")

    def _text(self) -> str:
        kind, size = self._head()
        if kind not in ("str", "bin") or size > _LONGEST:
            raise _Damaged(f"a {kind} in the place of a name")
        return self._bytes(size).decode("utf-8", "replace")

    def _number(self) -> int:
        kind, value = self._head()
        if kind != "number":
            raise _Damaged(f"a {kind} in the place of a number")
        return value

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, size: int) -> bytes:
        found = self._opened.read(size)
        if len(found) < size:
            raise _Damaged("it ends too early")
        return found

    def _skip(self, size: int) -> None:
        if self._opened.tell() + size > self.whole:
            raise _Damaged("it ends too early")
        self._opened.seek(size, os.SEEK_CUR)


def _counted(text: str) -> int:
    """The number that a key of chunks is."""
    if not text.isdecimal():
        raise _Damaged(f"{text!r} in the place of a number")
    return int(text)


_HEADS: dict[int, tuple[str, int]] = {  # of each first byte: the kind, and the bytes of its length or value
    0xC0: ("nil", 0),
    0xC2: ("false", 0),
    0xC3: ("true", 0),
    **{0xC4 + n: ("bin", 2**n) for n in range(3)},
    **{0xC7 + n: ("ext", 2**n) for n in range(3)},
    0xCA: ("real", 4),
    0xCB: ("real", 8),
    **{0xCC + n: ("number", 2**n) for n in range(4)},
    **{0xD4 + n: ("ext", -(2**n)) for n in range(5)},  # of this many bytes
    **{0xD9 + n: ("str", 2**n) for n in range(3)},
    **{0xDC + n: ("array", 2 ** (n + 1)) for n in range(2)},
    **{0xDE + n: ("map", 2 ** (n + 1)) for n in range(2)},
}
