"""What was found by reading all records of a set once: kept in the user's cache folder until a file changes.

The names are those of `jaxdiff.data.decoded`. Processes that want the same take turns by a lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from jaxdiff.data.decoded import cache_folder, hashes, locked, remove
from jaxdiff.data.sources import Say, Source, name_of, one_line

Found = TypeVar("Found")
_CHUNK = 256  # records that one thread reads in a row


def kept(
    source: Source,
    kind: str,
    make: Callable[[], Found],
    read: Callable[[Any], Found],
    *,
    what: str,
    folder: str | os.PathLike[str] | None,
    say: Say,
) -> Found:
    """What ``make`` gives, now or before.

    Args:
      source: whose records are read; without files, nothing is kept.
      kind: of what is found: a part of its file's name.
      make: gives what JSON holds.
      read: the same of what JSON held; a ValueError, TypeError or AttributeError: it is made anew.
      what: it is, for messages.
      folder: where; None: `jaxdiff.data.decoded.cache_folder`.
      say: gets a line where it cannot be kept.
    """
    if not getattr(source, "files", ()):
        return make()
    try:
        folder = cache_folder() if folder is None else Path(folder)
        place, state = hashes(source)
        name = re.sub(r"\W+", "_", Path(name_of(source)).name)[:50]
        file = folder / f"{name}-{place}-{state}.{kind}.json"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}-{place}.lock", "w") as lock:
            locked(lock, name_of(source), say)
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # not there, or not whole
                return read(json.loads(file.read_text(encoding="utf-8")))
            found = make()
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(found), encoding="utf-8")
            partial.replace(file)
            remove(old for old in folder.glob(f"{name}-{place}-*.{kind}.json") if old != file)  # of other states
            return found
    except OSError as error:
        say(f"{name_of(source)}: {what} cannot be kept in {folder} ({one_line(error)})")
        return make()


def of_all(source: Source, read: Callable[[range], list[Found]]) -> Iterator[Found]:
    """What a function finds of some records in a row, over all records in their order; in threads, since Pillow lets
    others run meanwhile."""

    def part(start: int) -> list[Found]:
        return read(range(start, min(start + _CHUNK, len(source))))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for found in pool.map(part, range(0, len(source), _CHUNK)):
            yield from found
