"""Files of safetensors, read a tensor at a time and written.

The format (https://github.com/huggingface/safetensors): eight bytes, the length n of the header as a little-endian
number; n bytes of JSON, ``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}``; the
numbers, row by row, begin and end counted from the header's end. A set in several files has an index,
``NAME.safetensors.index.json``, whose ``weight_map`` says where each tensor lies.

A tensor is read by `os.pread` into memory of its own: mapped pages of a file would count as memory beside the arrays
made of them, and a checkpoint would need twice its size.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.foreign import other_kind, read_json
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.tensors import Tensors

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER = 100_000_000  # bytes: the format's own limit
_AT_ONCE = 2**30  # bytes that one call reads: Linux gives no more than 2 GiB


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
      file: that holds it.
      start: of its numbers, from the file's begin.
      dtype: of its numbers.
      shape: of it.
    """

    file: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafeTensors(Tensors):
    """The tensors of one file, or of several, by name.

    Args:
      files: to read; a name may stand in one of them only.

    Raises:
      PretrainedError: a file that is missing, is damaged, or is another kind of file.
    """

    def __init__(self, *files: Path) -> None:
        self.files = files
        self.metadata: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        for file in files:
            places, metadata = _header(file)
            if twice := sorted(set(places) & set(self._places)):
                raise PretrainedError(f"{file}: {twice[0]} stands in {self._places[twice[0]].file.name} too")
            self._places |= places
            self.metadata |= metadata

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """A tensor, in memory of its own.

        Args:
          name: of it.
          rows: first and last + 1 along its first axis; None: all.
        """
        file, start, dtype, shape = self[name]
        if rows is not None:
            row = math.prod(shape[1:]) * dtype.itemsize
            start, shape = start + rows[0] * row, (rows[1] - rows[0], *shape[1:])
        made = np.empty(shape, dtype)
        read_bytes(file, start, memoryview(made.reshape(-1).view(np.uint8)), name)  # type: ignore[arg-type]
        return made


def read_bytes(file: Path, start: int, to: memoryview, name: str) -> None:
    """Fills memory with what stands in a file.

    Args:
      file: to read.
      start: of the bytes, from its begin.
      to: is filled.
      name: of the tensor, for messages.

    Raises:
      PretrainedError: a file that cannot be read, or ends too early.
    """
    try:
        number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while to:
                got = os.preadv(number, [to[:_AT_ONCE]], start)
                if got == 0:
                    raise PretrainedError(f"{file}: ends before {name} does: fetch it again")
                to, start = to[got:], start + got
        finally:
            os.close(number)
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from error


def open_safetensors(folder: Path, stem: str, variant: str | None = None) -> SafeTensors | None:
    """The tensors of ``folder/stem.safetensors``, or of the files that its index names; None: there are none.

    Args:
      folder: that holds them.
      stem: ``diffusion_pytorch_model`` of diffusers, ``model`` of transformers.
      variant: ``fp16``, ...: of files ``stem.fp16.safetensors``. None: the plain ones, or else the only variant.

    Raises:
      PretrainedError: a file that is missing or damaged; several variants, none of which was asked for.
    """
    found: dict[Any, Path] = {}
    for kind in ("safetensors.index", "safetensors"):
        for file in sorted(folder.glob(f"{stem}*.json" if "index" in kind else f"{stem}*.safetensors")):
            if "-of-" not in file.name and (name := _variant(file.name, stem)) is not False:
                found.setdefault(name, file)
    if not found:
        return None
    if variant not in found:
        names = sorted(name for name in found if name)
        if variant is not None or len(names) != 1:
            raise PretrainedError(
                f"{folder}: there is no variant {variant!r}; there are {', '.join(names) or 'the plain files alone'}"
                if variant is not None
                else f"{folder}: several variants, {', '.join(names)}: say which, variant={names[0]!r}"
            )
        variant = names[0]
    file = found[variant]
    return SafeTensors(file) if file.suffix == ".safetensors" else SafeTensors(*_indexed(file))


def _variant(name: str, stem: str) -> str | bool | None:
    """The variant in a file's name: None for the plain one; False: it is no file of this stem."""
    rest = name.removeprefix(stem)
    for end in (".safetensors.index.json", ".safetensors"):
        if rest == end:
            return None
        if rest.startswith(".") and rest.endswith(end):
            return rest[1 : -len(end)]
    if rest.startswith(".safetensors.index.") and rest.endswith(".json"):
        return rest[len(".safetensors.index.") : -len(".json")]
    return False


def _indexed(index: Path) -> list[Path]:
    names = names_of(index)
    files = [index.parent / name for name in names]
    if missing := [file for file in files if file.name in names and not file.is_file()]:
        raise PretrainedError(
            f"{missing[0]} is missing ({len(missing)} of the {len(files)} files of {index.name}): fetch it"
        )
    if outside := [file for file in files if file.resolve().parent != index.parent.resolve() and not file.is_symlink()]:
        raise PretrainedError(f"{index}: {outside[0]} lies outside of its folder")
    return files


def names_of(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
      PretrainedError: an index that cannot be read.
    """
    try:
        names = read_json(index)["weight_map"].values()
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("weight_map names no files")
        return sorted(set(names))
    except OSError as error:
        raise PretrainedError(f"{index}: cannot be read ({error.strerror})") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise PretrainedError(f"{index}: has no weight_map of tensors' names to files: fetch it again") from error
    except ValueError as error:
        raise PretrainedError(f"{index}: {error}") from error


def _header(file: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """The places of a file's tensors, and what is said of all."""
    try:
        with open(file, "rb") as opened:
            whole, head = os.fstat(opened.fileno()).st_size, opened.read(8)
            why = other_kind(head + opened.read(64))
            if why is not None:
                raise PretrainedError(f"{file}: {why}")
            opened.seek(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(_HEADER, whole - 8):
                raise PretrainedError(f"{file}: is no safetensors file, or is cut off: fetch it again")
            header = json.loads(opened.read(length), object_pairs_hook=_once)
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, PretrainedError):
            raise
        why = str(error) if type(error) is ValueError else type(error).__name__
        raise PretrainedError(f"{file}: its header is damaged ({why}): fetch it again") from error
    if not isinstance(header, dict) or not isinstance(said := header.pop("__metadata__", {}), dict):
        raise PretrainedError(f"{file}: its header is damaged (no object of tensors by name): fetch it again")
    places: dict[str, Place] = {}
    for name, entry in header.items():
        places[name] = place = _place(file, 8 + length, name, entry)
        if place.start + place.size > whole:
            cut = f"it has {whole:,} bytes and {name} ends at {place.start + place.size:,}"
            raise PretrainedError(f"{file}: is cut off, {cut}: fetch it again")
    held = sorted((place.start, place.start + place.size, name) for name, place in places.items() if place.size)
    for (_, end, one), (begin, _, other) in itertools.pairwise(held):
        if begin < end:
            raise PretrainedError(f"{file}: its header is damaged ({one} and {other} overlap): fetch it again")
    return places, {str(name): str(value) for name, value in said.items()}


def _place(file: Path, base: int, name: str, entry: Any) -> Place:
    """Where a tensor lies, as the header says it; ``base``: where the numbers begin."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        why = f"{name} lacks dtype, shape or two data_offsets"
        raise PretrainedError(f"{file}: its header is damaged ({why}): fetch it again") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PretrainedError(
            f"{file}: {name} is of {dtype!r}, which jaxdiff does not read; it reads {', '.join(DTYPES)}"
        )
    place = Place(file, base, DTYPES[dtype], shape)
    numbers = (begin, end, *shape)
    if any(type(each) is not int or each < 0 for each in numbers) or end - begin != place.size:
        why = f"{name} of shape {shape} in bytes {begin} to {end}"
        raise PretrainedError(f"{file}: its header is damaged ({why}): fetch it again")
    return place._replace(start=base + begin)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose names stand in it once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands in it twice")
    return found


def write_safetensors(
    file: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file of tensors; it is there whole or not at all.

    Args:
      file: to write.
      tensors: by name. Of a mapping that makes each when it is asked for, and has ``described``, one is held at a time
        (`jaxdiff.pretrained.files.writing.Published`).
      metadata: texts by name; ``{"format": "pt"}`` is what diffusers and transformers expect.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    if hasattr(tensors, "described"):
        described = tensors.described()
    else:
        described = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    for name, (dtype, shape) in described.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = file.with_name(f"{file.name}.partial")
    try:
        with open(partial, "wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for name in tensors:
                opened.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
