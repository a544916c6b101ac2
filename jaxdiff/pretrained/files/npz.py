"""Archives of NumPy, `*.npz`, as a flat set of tensors by their published names, read a tensor at a time.

An archive is a zip file with a file ``NAME.npy`` for each tensor (https://numpy.org/doc/stable/reference/generated/
numpy.lib.format.html). What `numpy.savez` wrote lies there as it is, and is read in place, rows alone where rows are
asked for; what `numpy.savez_compressed` wrote is unpacked tensor by tensor. Objects are refused.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.safetensors import SafeTensors, read_bytes
from jaxdiff.pretrained.files.tensors import Tensors

_HEADER = 65_536  # bytes of a tensor's header at most
_LOCAL = 30  # bytes before the name of a file within a zip file

# NotImplementedError is zipfile's own, of a compression that it does not know
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, RuntimeError)


class Member(NamedTuple):
    """Where a tensor lies.

    Attributes:
      file: the archive.
      member: the file within it.
      start: of its numbers from the archive's begin; None: they are compressed.
      skipped: bytes of the member before its numbers.
      dtype: of its numbers.
      shape: of it.
      turned: whether its numbers lie column by column.
    """

    file: Path
    member: str
    start: int | None
    skipped: int
    dtype: np.dtype
    shape: tuple[int, ...]
    turned: bool


class Npz(Tensors):
    """The tensors of an archive by name.

    Args:
      file: to read.

    Raises:
      PretrainedError: a file that is missing, is damaged, is another kind, or holds what is no array of numbers.
    """

    def __init__(self, file: Path) -> None:
        self.files = (file,)
        self._places: dict[str, Member] = {}
        try:
            with zipfile.ZipFile(file) as archive, open(file, "rb") as opened:
                for each in archive.infolist():
                    place = _place(file, archive, opened, each)
                    self._places[each.filename.removesuffix(".npy")] = place
        except OSError as error:
            raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from error
        except PretrainedError:
            raise
        except _DAMAGE as error:
            raise PretrainedError(f"{file}: is no archive of NumPy, or is damaged ({error}): fetch it again") from error

    def __getitem__(self, name: str) -> Member:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """A tensor, in memory of its own: see `jaxdiff.pretrained.files.tensors.Tensors.read`."""
        file, member, start, skipped, dtype, shape, turned = self[name]
        if start is not None and not turned:
            if rows is not None:
                start += rows[0] * math.prod(shape[1:]) * dtype.itemsize
                shape = (rows[1] - rows[0], *shape[1:])
            made = np.empty(shape, dtype)
            read_bytes(file, start, memoryview(made.reshape(-1).view(np.uint8)), name)  # type: ignore[arg-type]
            return made
        try:
            with zipfile.ZipFile(file) as archive, archive.open(member) as opened:
                opened.read(skipped)
                content = opened.read(math.prod(shape) * dtype.itemsize)
            flat = np.frombuffer(content, dtype)
            whole = flat.reshape(shape[::-1]).T if turned else flat.reshape(shape)
        except (OSError, *_DAMAGE) as error:
            raise PretrainedError(f"{file}: {name} cannot be read ({error}): fetch it again") from error
        return whole if rows is None else whole[rows[0] : rows[1]]


def _place(file: Path, archive: zipfile.ZipFile, opened: io.BufferedReader, member: zipfile.ZipInfo) -> Member:
    name = member.filename
    if not name.endswith(".npy"):
        raise PretrainedError(f"{file}: holds {name}, expected arrays alone, NAME.npy")
    with archive.open(member) as within:
        head = io.BytesIO(within.read(_HEADER))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, turned, dtype = read(head)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise PretrainedError(f"{file}: {name.removesuffix('.npy')} is of {dtype}, expected numbers, such as float32")
    skipped, size = head.tell(), math.prod(shape) * dtype.itemsize
    if member.file_size != skipped + size:
        raise PretrainedError(
            f"{file}: {name} has {member.file_size:,} bytes, expected {skipped + size:,}: fetch it again"
        )
    start = None
    if member.compress_type == zipfile.ZIP_STORED:
        opened.seek(member.header_offset)
        local = opened.read(_LOCAL)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = member.header_offset + _LOCAL + lengths + skipped
    return Member(file, name, start, skipped, dtype, tuple(shape), bool(turned))


def open_tensors(file: Path) -> Tensors:
    """The tensors of one file, by its suffix: `.npz`, else safetensors.

    Args:
      file: to read.

    Raises:
      PretrainedError: a file that is missing, is damaged, or is another kind of file.
    """
    return Npz(file) if file.suffix == ".npz" else SafeTensors(file)
