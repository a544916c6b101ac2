"""Bad records left out, once and for all, before training.

What is left out must not depend on what a run happens to read when, or no order of records could be promised. So all
records are read once, beforehand, and those that cannot be used (damaged, empty, of another size or channel count, a
label out of range) are taken out of the set. What is left is a set like any other: every record of it is seen once an
epoch, and its fingerprint tells which were left out, so that a run goes on only with exactly the same ones.

Reading all takes as long as an epoch of decoding. Its result is kept in the user's cache folder until a file changes
(by the names of `jaxdiff.data.decoded`). Of Parquet, a file that cannot be opened at all is left out whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from jaxdiff.data.kept import kept, of_all
from jaxdiff.data.sources import DataError, Say, Source, name_of, take, to_stderr
from jaxdiff.data.subset import Subset

_SHOWN = 5


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
    >>> from pathlib import Path
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
    bad = _found(source, folder, say) if keep else _read_all(source, say)
    if len(bad) == len(source):
        raise DataError(f"{name_of(source)}: none of its {len(source)} records can be used")
    if bad or lost:
        listed = [*lost, *bad.values()]
        more = f" | and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        files = f"{len(lost)} files or entries and " if lost else ""
        say(
            f"WARNING: {name_of(source)}: {files}{len(bad):,} of {len(source):,} records are bad and left out: "
            + " | ".join(listed[:_SHOWN])
            + more
        )
    return Subset(source, [index for index in range(len(source)) if index not in bad]) if bad else source


def _found(source: Source, folder: str | os.PathLike[str] | None, say: Say) -> dict[int, str]:
    """The bad records as found before, or now."""

    def read(held: Any) -> dict[int, str]:
        return {int(index): str(why) for index, why in held.items()}

    options: dict[str, Any] = {"what": "which records are bad", "folder": folder, "say": say}
    return kept(source, "bad", lambda: _read_all(source, say), read, **options)


def _read_all(source: Source, say: Say) -> dict[int, str]:
    say(f"{name_of(source)}: reading all {len(source):,} records once, to leave out bad ones")
    return dict(of_all(source, lambda records: list(_bad(source, records))))


def _bad(source: Source, indices: range) -> Iterator[tuple[int, str]]:
    for index in indices:
        try:
            take(source, [index])
        except DataError as error:
            yield index, str(error)
