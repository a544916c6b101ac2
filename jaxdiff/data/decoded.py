"""A set decoded once: its pixels in one memory-mapped file of the user's cache folder.

To decode a small PNG or JPEG takes tens of times as long as to copy its pixels, and training reads each image hundreds
of times. So `decode_once` writes the records of a small set, in their order, to a NumPy file of

    {x: uint8 (H, W, C), label: int32}     (what the source's spec names)

and reads batches from there in one call. Captions stand behind all records in the same file, UTF-8, NUL between several
of a record; the record says where. The file is NAME-PLACE-STATE.npy: PLACE is a hash of what was asked for (the files'
paths, the spec), STATE of what the files hold (the source's fingerprint, and each file's size and times). A file that
changes is thus met under another STATE, and what was kept of that PLACE is removed.

A file is there whole or not at all: it is written under a name that nobody reads, synced, and renamed. Processes that
want the same one take turns by a lock, which ends with its holder; where the file system has no locks, each writes its
own and the last one stays, which is the same. Where there is no room or no folder, the source stays as it is, and one
line says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

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
from jaxdiff.data.subset import Subset

_VERSION = 2  # of what the file holds; another one is another PLACE
_CHUNK_BYTES = 2**20  # decoded at a time by each thread
_SPARE = 100 * 10**6  # bytes that are left free on the disk
_PLACE = np.dtype([("start", "<i8"), ("size", "<i8")])  # of a record's captions, from the end of all records


def cache_folder() -> Path:
    """Where decoded sets are kept: ``jaxdiff/decoded`` in the user's cache folder, beside the compiled programs.

    Raises:
      OSError: the user has no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdiff" / "decoded"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error


def decode_once(
    source: Source, *, limit: int, folder: str | os.PathLike[str] | None = None, say: Say = to_stderr
) -> Source:
    """The same records, decoded now or before; or the source itself, where that does not pay or cannot be kept.

    Args:
      source: one that decodes files; any other is returned as it is.
      limit: most bytes of decoded records; a larger set is returned as it is.
      folder: where they are kept; None: `cache_folder`.
      say: gets one line when a set is decoded, and when it cannot be kept.

    Raises:
      DataError: an image that cannot be decoded, as reading it would say.

    >>> import tempfile
    >>> from PIL import Image
    >>> from jaxdiff.data import open_folder
    >>> with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as kept:
    ...     for name in ("1.png", "2.png"):
    ...         Image.new("RGB", (8, 8)).save(Path(data, name))
    ...     source = open_folder(data)
    ...     decoded = decode_once(source, limit=10**6, folder=kept, say=lambda text: None)
    >>> type(decoded).__name__, decoded.fingerprint == source.fingerprint, len(decoded), decoded.spec["x"].shape
    ('Decoded', True, 2, (8, 8, 3))
    """
    if isinstance(source, Subset) and source.indices is None:  # one file, whichever conditions a run reads
        inner = decode_once(source.source, limit=limit, folder=folder, say=say)
        names = [name for name in source.spec if name != "x"]
        return source if inner is source.source else Subset(inner, names=names, bounds=source.bounds)
    if not getattr(source, "files", ()):
        return source
    kind = _kind(source)
    if decoded_bytes(source) > limit:
        return source
    try:
        folder = cache_folder() if folder is None else Path(folder)
        place, state = hashes(source)
        name = re.sub(r"\W+", "_", Path(name_of(source)).name)[:50]
        file = folder / f"{name}-{place}-{state}.npy"
        rows = mapped(file, kind, len(source))
        if rows is None:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{name}-{place}.lock", "w") as lock:
                has_lock = locked(lock, name_of(source), say)
                rows = mapped(file, kind, len(source))  # another process may have written it meanwhile
                if rows is None:
                    _write(file, f"{name}-{place}-", source, kind, has_lock, say)
                    rows = mapped(file, kind, len(source))
            if rows is None:
                raise OSError(errno.EIO, "what was written does not read back")
    except OSError as error:
        where = "" if folder is None else f" in {folder}"
        say(f"{name_of(source)}: decoded images cannot be kept{where} ({one_line(error)}); each access decodes anew")
        return source
    return Decoded(source, file, rows)


class Decoded:
    """A `Source` over a file of decoded records; made by `decode_once`. Fields as `Source`."""

    def __init__(self, source: Source, file: Path, rows: NDArray[Any]) -> None:
        self.name, self.classes, self.spec = name_of(source), classes_of(source), dict(source.spec)
        self.fingerprint = fingerprint(source)
        self._file, self._count, self._kind = file, len(source), rows.dtype
        self._hold(rows)

    def _hold(self, rows: NDArray[Any]) -> None:
        # As plain bytes, a row a record: NumPy copies these whole, and structured records field by field.
        self._bytes = np.asarray(rows).view(np.uint8).reshape(self._count, self._kind.itemsize)
        self._texts = _mapped_texts(self._file, rows)

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: a mapped array would be copied whole, so each opens the file again.
        return {**self.__dict__, "_bytes": None, "_texts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        rows = mapped(self._file, self._kind, self._count)
        if rows is None:
            raise DataError(f"{self.name}: {self._file} is gone, though this run reads from it; start the run again")
        self._hold(rows)

    def __len__(self) -> int:
        return self._count

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Several records: one copy of their bytes."""
        rows = self._bytes.take(indices, axis=0).view(self._kind)[:, 0]
        return {
            name: self._read(rows["text"]) if spec.is_text else np.ascontiguousarray(rows[name])
            for name, spec in self.spec.items()
        }

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The captions of several records."""
        return self._read(self._bytes.view(self._kind)[:, 0]["text"][indices])

    def _read(self, places: NDArray[Any]) -> NDArray[Any]:
        found = np.empty(len(places), object)
        for row, (start, size) in enumerate(places.tolist()):
            text = self._texts[start : start + size].tobytes().decode()
            found[row] = tuple(text.split("\0")) if self.spec["text"].shape else text
        return found


def decoded_bytes(source: Source) -> int:
    """What a source's records take when they are decoded, without their captions."""
    return len(source) * _kind(source).itemsize


def _kind(source: Source) -> np.dtype[Any]:
    of = {name: _PLACE if spec.is_text else np.dtype(spec.dtype) for name, spec in source.spec.items()}
    shapes = {name: () if spec.is_text else spec.shape for name, spec in source.spec.items()}
    return np.dtype([(name, of[name].newbyteorder("<"), shapes[name]) for name in of])


def hashes(source: Any) -> tuple[str, str]:
    """PLACE and STATE, of the files of a source."""
    name = name_of(source)
    where = os.path.abspath(name) if os.path.exists(name) else name
    paths = [os.path.abspath(file) for file in source.files]
    asked = (_VERSION, where, paths, len(source), sorted(source.spec.items()))
    held = (fingerprint(source), state_of(source))
    place, state = (hashlib.blake2b(repr(text).encode(), digest_size=8).hexdigest() for text in (asked, held))
    return place, state


def state_of(source: Any) -> list[tuple[int, int, int]]:
    """Size and times of each of a source's files; none where it has none."""
    found = [os.stat(path) for path in getattr(source, "files", ())]
    return [(file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in found]


def mapped(file: Path, kind: np.dtype[Any], count: int) -> NDArray[Any] | None:
    """The records of a file, mapped; None where it is not there, or not what it should be."""
    try:
        rows = np.lib.format.open_memmap(file, mode="r")
        size = file.stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    whole = rows.dtype == kind and rows.shape == (count,) and size == rows.offset + rows.nbytes + _text_bytes(rows)
    return rows if whole else None


def _text_bytes(rows: NDArray[Any]) -> int:
    """How many bytes of captions stand behind the records."""
    last = rows[-1:]["text"][0] if "text" in (rows.dtype.names or ()) and len(rows) else (0, 0)
    return int(last[0]) + int(last[1])


def _mapped_texts(file: Path, rows: Any) -> NDArray[np.uint8]:
    """The captions behind the records."""
    size = _text_bytes(rows)
    return np.memmap(file, np.uint8, "r", rows.offset + rows.nbytes, (size,)) if size else np.zeros(0, np.uint8)


def locked(lock: IO[str], name: str, say: Say, does: str = "reads") -> bool:
    """Waits for its turn; whether the file system has locks. Closing the file gives the lock back."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"{name}: waiting for another process that {does} it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _write(file: Path, prefix: str, source: Source, kind: np.dtype[Any], has_lock: bool, say: Say) -> None:
    """Decodes all records into ``file``, and removes what was kept before under the same prefix."""
    folder, size = file.parent, len(source) * kind.itemsize
    if has_lock:  # whoever left these was killed
        remove(folder.glob(f"{prefix}*.partial"))
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise OSError(errno.ENOSPC, f"{size / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")
    say(f"{name_of(source)}: decoding {len(source):,} images once; their {size / 1e6:,.0f} MB are kept in {folder}")
    handle, partial = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=".partial")
    try:
        with open(handle, "wb") as out, contextlib.closing(_decode(source, kind)) as chunks:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (len(source),)}
            np.lib.format.write_array_header_1_0(out, header)
            captions, start = [], 0
            for rows, texts in chunks:
                if texts:
                    sizes = np.array([len(text) for text in texts])
                    rows["text"]["start"], rows["text"]["size"] = start + np.cumsum(sizes) - sizes, sizes
                    start += int(sizes.sum())
                    captions += texts
                out.write(rows.view(np.uint8).data)
            out.writelines(captions)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    except BaseException:
        remove([Path(partial)])
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    remove(old for old in folder.glob(f"{prefix}*.npy") if old != file)


def remove(files: Iterable[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):  # what cannot be removed only takes room
            file.unlink()


_Part = tuple[NDArray[Any], list[bytes]]  # records, and their captions


def _decode(source: Source, kind: np.dtype[Any]) -> Generator[_Part]:
    """The records in their order, some at a time; decoded in threads, since Pillow lets others run meanwhile."""
    each = max(1, _CHUNK_BYTES // kind.itemsize)
    threads = min(4, os.cpu_count() or 1)

    def chunk(start: int) -> _Part:
        count = min(each, len(source) - start)
        rows, texts = np.empty(count, kind), list[bytes]()
        for name, array in take(source, np.arange(start, start + count)).items():
            if source.spec[name].is_text:
                texts = [(text if isinstance(text, str) else "\0".join(text)).encode() for text in array]
            else:
                rows[name] = array
        return rows, texts

    pending: deque[Future[_Part]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for start in range(0, len(source), each):
            pending.append(pool.submit(chunk, start))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
