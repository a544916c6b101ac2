"""Arrays of an `.npz` file, memory-mapped where they lie in it uncompressed. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.sources import DataError, one_line


def keys_of(path: Path) -> list[str]:
    """The names of the arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path}: not an .npz file, or damaged ({one_line(error)}); write it again with np.savez"
        ) from error


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def header_of(path: str, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array of an `.npz`."""
    with _reading(path, key), zipfile.ZipFile(path) as archive, archive.open(key + ".npy") as file:
        shape, _, kind = _HEADERS[np.lib.format.read_magic(file)](file)
        return shape, kind


def read_array(path: str, key: str) -> NDArray[Any]:
    """An array of an `.npz`, memory-mapped where it is stored uncompressed."""
    with _reading(path, key), zipfile.ZipFile(path) as archive:
        member = archive.getinfo(key + ".npy")
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if member.compress_type == zipfile.ZIP_STORED and version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                if 0 not in shape and not dtype.hasobject:
                    start = _data_offset(path, member) + file.tell()
                    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def _reading(path: str, key: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(
            f"{path}: array {key!r} cannot be read ({one_line(error)}); write it again with np.savez, without objects"
        ) from error


def _data_offset(path: str, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, whose name and extra field vary in length."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra
