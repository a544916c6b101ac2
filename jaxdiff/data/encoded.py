"""A set encoded once: what a frozen encoder makes of its records, in files that training reads in their place.

An encoder costs about as much as a step of the network that is trained on what it gives, and it would give the same in
every epoch. So `encode_once` runs it over the records once, in their order, and keeps what comes of it in a folder
NAME-STATE: STATE is a hash of the source's fingerprint and its files' state, and of the encoder's key (its weights'
checksum, what it makes). Other data or other weights are thus another folder, and nothing stale is ever read. In it,
part k holds the records [k n, (k + 1) n):

    000000.npy     {x: float16 (h, w, 2 c), label: int32, ...}      arrays, one row a record
    000000.json    {"text": [...]}                                  of records with text

Each part is there whole or not at all: it is written under a name that nobody reads, synced, and renamed; and it is a
function of its records alone. So a run that is killed while it encodes goes on with the first part that is not there,
and ends with the same files, bit for bit. Process p of P encodes the parts k with k mod P = p; all of them read all, so
they share the folder. Processes of one machine that want the same parts take turns by a lock, which ends with its
holder.

Moments are kept in float16, half of float32's room: a number y is rounded by at most 2^-11 |y|. With the log-variance's
half, a latent z = mu + s eps is off by at most 2^-11 |mu| + 2^-12 |log s^2| s |eps|, far below s itself for what
autoencoders give (s is 1% of z's standard deviation or more, and 2^-11 is 0.05%).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.decoded import cache_folder, locked, mapped, remove, state_of
from jaxdiff.data.sources import (
    DataError,
    Records,
    Say,
    Source,
    classes_of,
    fingerprint,
    name_of,
    one_line,
    take,
    to_stderr,
)
from jaxdiff.spec import Spec

Encode = Callable[[Records], Mapping[str, Any]]
"""What is kept of some records: arrays by name, in the place of those of these names. It is given ``batch`` records."""

_VERSION = 1  # of what the files hold
_PART_BYTES = 64 * 2**20
_SPARE = 100 * 10**6  # bytes that are left free on the disk
_OTHERWISE = "name another data.cache_folder, or set data.cache_latents off to encode each batch in its step"


def cache_name(source: Source, key: str) -> str:
    """NAME-STATE, the same in all processes that read the same files; where each has its own copy of them, whose times
    differ, one process's name is to be used in all."""
    state = repr((_VERSION, key, len(source), sorted(source.spec.items()), fingerprint(source), state_of(source)))
    name = re.sub(r"\W+", "_", Path(name_of(source)).name)[:50]
    return f"{name}-{hashlib.blake2b(state.encode(), digest_size=8).hexdigest()}"


class Encoded:
    """A `Source` over the files of `encode_once`. Fields as `Source`.

    Args:
      source: whose records are encoded.
      spec: of what the encoder makes.
      folder: of the files.
      rows: records in a part; None: as many as have `_PART_BYTES`.
    """

    def __init__(self, source: Source, spec: Mapping[str, Spec], folder: Path, rows: int | None = None) -> None:
        self.name, self.classes, self.fingerprint = name_of(source), classes_of(source), fingerprint(source)
        self.spec: dict[str, Spec] = {**source.spec, **spec}
        self.folder, self._count = folder, len(source)
        self.kind = np.dtype(
            [
                (k, np.dtype(each.dtype).newbyteorder("<"), each.shape)
                for k, each in self.spec.items()
                if not each.is_text
            ]
        )
        self.text = [name for name, each in self.spec.items() if each.is_text]
        self.rows = max(1, _PART_BYTES // self.kind.itemsize) if rows is None else rows
        self._parts: dict[int, tuple[NDArray[Any], dict[str, list[Any]]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": {}}  # a worker process opens the files again

    def __len__(self) -> int:
        return self._count

    def records(self, part: int) -> range:
        """The numbers of the records in a part."""
        return range(part * self.rows, min((part + 1) * self.rows, self._count))

    @property
    def parts(self) -> range:
        """All of them."""
        return range(-(-self._count // self.rows))

    def opened(self, part: int) -> tuple[NDArray[Any], dict[str, list[Any]]] | None:
        """The arrays and the texts of a part; None where it is not there, or not what it should be."""
        if part not in self._parts:
            file = self.folder / f"{part:06d}.npy"
            rows = mapped(file, self.kind, len(self.records(part)))
            if rows is None:
                return None
            texts: dict[str, list[Any]] = {}
            if self.text:
                try:
                    texts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
                except (OSError, ValueError):  # not there, or not whole: both files are written anew
                    return None
            self._parts[part] = np.asarray(rows).view(np.uint8).reshape(len(rows), self.kind.itemsize), texts
        return self._parts[part]

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Several records: one copy of their bytes for each part that has some."""
        indices = np.asarray(indices, np.int64)
        indices = np.where(indices < 0, indices + self._count, indices)
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._count):
            raise IndexError(f"{self.name} has {self._count} records")
        found = np.empty((len(indices), self.kind.itemsize), np.uint8)
        texts = {name: np.empty(len(indices), object) for name in self.text}
        parts, within = np.divmod(indices, self.rows)
        for part in np.unique(parts):
            opened, here = self.opened(int(part)), np.flatnonzero(parts == part)
            if opened is None:
                raise DataError(
                    f"{self.name}: {self.folder / f'{part:06d}.npy'} is gone, or other processes wrote it elsewhere: "
                    "start the run again; several processes need one data.cache_folder"
                )
            found[here] = opened[0][within[here]]
            for name in self.text:
                for row in here:
                    text = opened[1][name][within[row]]
                    texts[name][row] = tuple(text) if isinstance(text, list) else text
        rows = found.view(self.kind)[:, 0]
        return {
            name: texts[name] if each.is_text else np.ascontiguousarray(rows[name]) for name, each in self.spec.items()
        }


def encode_once(
    source: Source,
    encode: Encode,
    spec: Mapping[str, Spec],
    *,
    name: str,
    batch: int = 64,
    folder: str | os.PathLike[str] | None = None,
    part: tuple[int, int] = (0, 1),
    rows: int | None = None,
    say: Say = to_stderr,
) -> Encoded:
    """The records as an encoder gives them, now or before. Of several processes each does its part, and returns before
    the others may be ready: let them meet before they read.

    Args:
      source: the records.
      encode: the encoder; what it gives is a function of each record by itself.
      spec: of what it gives.
      name: from `cache_name`.
      batch: records that ``encode`` is given at a time: always so many, the last ones filled up by their last.
      folder: where folders of this kind are kept; None: ``jaxdiff/latents`` in the user's cache folder.
      part: (p, P), which of P parts of the work is done here.
      rows: records in a file; None: 64 MB of them.
      say: gets one line when there is something to encode.

    Raises:
      DataError: what is encoded is not finite, by the record's number; files that cannot be kept.

    >>> from jaxdiff.data import from_arrays
    >>> source = from_arrays(np.arange(10, dtype=np.float32)[:, None])
    >>> spec, half = {"x": Spec((1,), "float16")}, lambda records: {"x": records["x"] / 2}
    >>> with tempfile.TemporaryDirectory() as kept:
    ...     options = {"name": cache_name(source, "half"), "batch": 4, "folder": kept, "rows": 6}
    ...     encoded = encode_once(source, half, spec, **options, say=print)  # doctest: +ELLIPSIS
    ...     encoded.take(np.array([9, 2]))["x"].tolist()
    arrays: encoding 10 records once, 0 of 2 parts are there; 0 MB are kept in ...
    [[4.5], [1.0]]
    """
    try:
        above = cache_folder().parent / "latents" if folder is None else Path(folder).expanduser()
        encoded = Encoded(source, spec, above / name, rows)
        mine = [each for each in encoded.parts if each % part[1] == part[0]]
        if all(encoded.opened(each) is not None for each in mine):
            return encoded
        encoded.folder.mkdir(parents=True, exist_ok=True)
        with open(above / f"{name}-{part[0]}.lock", "w") as lock:
            if locked(lock, source, say, "encodes"):  # whoever left these was killed
                remove(file for each in mine for file in encoded.folder.glob(f"{each:06d}.*.partial"))
            missing = [each for each in mine if encoded.opened(each) is None]
            if missing:
                _check_room(encoded, missing)
                megabytes = len(source) * encoded.kind.itemsize / 1e6
                say(
                    f"{name_of(source)}: encoding {len(source):,} records once, {len(mine) - len(missing)} of "
                    f"{len(mine)} parts are there; {megabytes:,.0f} MB are kept in {encoded.folder}"
                )
                for each, arrays, texts in _encoded(source, encode, encoded, missing, batch):
                    _write(encoded.folder / f"{each:06d}", arrays, texts)
    except OSError as error:
        where = "" if folder is None else f" in {folder}"
        raise DataError(
            f"{name_of(source)}: what is encoded cannot be kept{where} ({one_line(error)}): {_OTHERWISE}"
        ) from error
    return encoded


def _check_room(encoded: Encoded, missing: list[int]) -> None:
    size = sum(len(encoded.records(each)) for each in missing) * encoded.kind.itemsize
    free = shutil.disk_usage(encoded.folder).free
    if free < size + _SPARE:
        raise OSError(errno.ENOSPC, f"{size / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")


def _encoded(
    source: Source, encode: Encode, encoded: Encoded, parts: list[int], batch: int
) -> Iterator[tuple[int, NDArray[Any], dict[str, list[Any]]]]:
    """Parts one after the other; records are read ahead in threads, since decoding images lets others run meanwhile."""

    def read(records: range) -> Records:
        return take(source, np.minimum(np.arange(records.start, records.start + batch), records.stop - 1))

    starts = [
        range(start, min(start + batch, encoded.records(each).stop))
        for each in parts
        for start in encoded.records(each)[::batch]
    ]
    pool, pending, ahead = ThreadPoolExecutor(min(4, os.cpu_count() or 1)), deque[Future[Records]](), iter(starts)

    def more() -> None:
        for records in ahead:
            pending.append(pool.submit(read, records))
            return

    try:
        for _ in range(8):
            more()
        for each in parts:
            arrays = np.empty(len(encoded.records(each)), encoded.kind)
            texts: dict[str, list[Any]] = {name: [] for name in encoded.text}
            for start in encoded.records(each)[::batch]:
                records = pending.popleft().result()
                more()
                count = min(batch, encoded.records(each).stop - start)
                made = {**records, **encode(records)}
                for name in encoded.kind.names or ():
                    arrays[name][start % encoded.rows :][:count] = _checked(
                        np.asarray(made[name])[:count], name, encoded, start
                    )
                for name in encoded.text:
                    texts[name] += made[name][:count].tolist()
            yield each, arrays, texts
    finally:
        pool.shutdown(cancel_futures=True)


def _checked(array: NDArray[Any], name: str, encoded: Encoded, start: int) -> NDArray[Any]:
    kind = np.dtype(encoded.spec[name].dtype)
    if kind.kind != "f":
        return array
    with np.errstate(over="ignore"):
        array = array.astype(kind)
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{encoded.name} row {start + int(np.argmin(finite))}: the encoder gives {name} that is not finite in "
            f"{kind}: look at the record and at the encoder's weights"
        )
    return array


def _write(file: Path, arrays: NDArray[Any], texts: dict[str, list[Any]]) -> None:
    if texts:  # first: the arrays say that the part is there
        _whole(file.with_suffix(".json"), lambda out: out.write(json.dumps(texts).encode()))

    def write(out: IO[bytes]) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(arrays.dtype), "fortran_order": False, "shape": arrays.shape}
        np.lib.format.write_array_header_1_0(out, header)
        out.write(arrays.view(np.uint8).data)

    _whole(file.with_suffix(".npy"), write)


def _whole(file: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """A file that is there whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f"{file.stem}.", suffix=".partial")
    try:
        with open(handle, "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
