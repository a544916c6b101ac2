"""Bad records left out, once and for all, before training.

What is left out must not depend on what a run happens to read when, or no order of records could be promised. So all
records are read once, beforehand, and those that cannot be used (damaged, empty, of another size or channel count, a
label out of range) are taken out of the set. What is left is a set like any other: every record of it is seen once an
epoch, and its fingerprint tells which were left out, so that a run goes on only with exactly the same ones.

Reading all takes as long as an epoch of decoding. Its result is kept in the user's cache folder until a file changes
(by the names of `jaxdiff.data.decoded`). Of Parquet, a file that cannot be opened at all is left out whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxdiff.data.decoded import cache_folder, hashes, locked, remove
from jaxdiff.data.sources import DataError, Say, Source, Subset, name_of, one_line, take, to_stderr

_SHOWN = 5
_CHUNK = 256  # records that one thread reads in a row


def verify(source: Source, limit: int = 10) -> None:
    """Reads every record of a source; for once after a download, since it takes as long as an epoch of reading.

    Args:
      source: what to check.
      limit: stop after this many bad records.

    Raises:
      DataError: with every bad record found, at most `limit`.

    >>> from jaxdiff.data import open_digits
    >>> verify(open_digits())
    """
    found: list[str] = []
    for index in range(len(source)):
        try:
            take(source, [index])
        except DataError as error:
            found.append(str(error))
            if len(found) == limit:
                break
    if found:
        count = f"{len(found)} or more bad records" if len(found) == limit else f"bad records: {len(found)}"
        raise DataError(f"{name_of(source)}: {count}: " + " | ".join(found))


def without_bad(
    source: Source, *, keep: bool = True, folder: str | os.PathLike[str] | None = None, say: Say = to_stderr
) -> Source:
    """The records of a source that can be used; says how many are left out, and which.

    Args:
      source: opened with ``skip_bad``, or any other.
      keep: keep what was found for the next time, where the records are files.
      folder: where; None: `jaxdiff.data.decoded.cache_folder`.
      say: gets a line for what is left out, and one when all records are read.

    Raises:
      DataError: none can be used.

    >>> import tempfile
    >>> from PIL import Image
    >>> from jaxdiff.data import open_folder
    >>> with tempfile.TemporaryDirectory() as data:
    ...     for name in ("1.png", "2.png", "3.png"):
    ...         Image.new("RGB", (8, 8)).save(Path(data, name))
    ...     _ = Path(data, "2.png").write_bytes(b"")
    ...     len(without_bad(open_folder(data, skip_bad=True), keep=False, say=lambda text: None))
    2
    """
    lost: list[str] = getattr(source, "lost", [])
    has_files = bool(getattr(source, "files", ()))
    bad = _kept(source, folder, say) if keep and has_files else _read_all(source, say)
    if len(bad) == len(source):
        raise DataError(f"{name_of(source)}: none of its {len(source)} records can be used")
    if bad or lost:
        listed = [*lost, *bad.values()]
        more = f" | and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        files = f"{len(lost)} files and " if lost else ""
        say(
            f"WARNING: {name_of(source)}: {files}{len(bad):,} of {len(source):,} records are bad and left out: "
            + " | ".join(listed[:_SHOWN])
            + more
        )
    return Subset(source, [index for index in range(len(source)) if index not in bad]) if bad else source


def _kept(source: Source, folder: str | os.PathLike[str] | None, say: Say) -> dict[int, str]:
    """The bad records as found before, or now."""
    try:
        folder = cache_folder() if folder is None else Path(folder)
        place, state = hashes(source)
        name = re.sub(r"\W+", "_", Path(name_of(source)).name)[:50]
        file = folder / f"{name}-{place}-{state}.bad.json"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}-{place}.lock", "w") as lock:
            locked(lock, source, say)
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # not there, or not whole
                return {int(index): str(why) for index, why in json.loads(file.read_text(encoding="utf-8")).items()}
            bad = _read_all(source, say)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(bad), encoding="utf-8")
            partial.replace(file)
            remove(old for old in folder.glob(f"{name}-{place}-*.bad.json") if old != file)  # of other states
            return bad
    except OSError as error:
        say(f"{name_of(source)}: which records are bad cannot be kept in {folder} ({one_line(error)})")
        return _read_all(source, say)


def _read_all(source: Source, say: Say) -> dict[int, str]:
    say(f"{name_of(source)}: reading all {len(source):,} records once, to leave out bad ones")

    def part(start: int) -> list[tuple[int, str]]:
        return list(_bad(source, range(start, min(start + _CHUNK, len(source)))))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow lets others run meanwhile
        return {index: why for found in pool.map(part, range(0, len(source), _CHUNK)) for index, why in found}


def _bad(source: Source, indices: range) -> Iterator[tuple[int, str]]:
    for index in indices:
        try:
            take(source, [index])
        except DataError as error:
            yield index, str(error)
