"""Captions of the images of a folder: a `.txt` beside each, or `metadata.jsonl` or `metadata.csv`.

The metadata are those of the Hub's ImageFolder: a line an image, with `file_name`, its path from where the metadata
lie, and another field that is the caption, or in JSON a list of captions. They lie in the folder of the split, in
folders within it, or above it, where they may name the images of other splits too; then a `.txt` is no caption. The
metadata are read when the set is opened, a `.txt` when its record is.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.data.expected import Expected
from jaxdiff.data.sources import DataError, as_text, one_line
from jaxdiff.spec import Spec

METADATA = ("metadata.jsonl", "metadata.csv")
_SAY = "; write them, set skip_bad (data.skip_bad) to leave those images out, or leave text out of the conditions"


class FolderCaptions:
    """The captions of a folder's images, by the names of the images.

    Args:
      root: the folder of the split.
      images: names from there.
      others: the folder's other files.
      above: the folder above the split's; None: there are no splits.
      expected: what was asked for.

    Attributes:
      spec: of a caption; None: there are none.
      files: that hold them.
      has_fields: whether they lie in metadata, where a field has a name.
      lost: lines of the metadata that cannot be used, and why, with ``skip_bad``.

    Raises:
      DataError: images without a caption, metadata that are damaged, have no captions or name a file that is missing;
        with ``skip_bad`` those are left out.
    """

    def __init__(
        self, root: Path, images: Sequence[str], others: Sequence[str], above: Path | None, expected: Expected
    ) -> None:
        self._root, self.spec = root, None
        self._told: dict[str, Any] = {}  # of each image: its caption in the metadata
        self._beside = self.has_fields = False
        self.files: list[Path] = []
        self.lost: list[str] = []
        if not expected.captions:
            return
        tables = [root / name for name in others if Path(name).name in METADATA]
        tables += [table for name in METADATA if above is not None and (table := above / name).is_file()]
        several = False
        for table in tables:
            for name, caption, place in _entries(table, expected, self.lost):
                if name in self._told:
                    raise DataError(f"{place}: {name} is named twice; give it a list of captions (metadata.jsonl)")
                self._told[name] = caption
                several |= isinstance(caption, list)
        self.files, self.has_fields = tables, bool(tables)
        known = {os.path.normpath(root / name) for name in images}
        for name in [name for name in self._told if name not in known]:
            del self._told[name]  # of another split, or
            if not os.path.isfile(name):
                why = f"{name}: is named in the metadata, and there is no such file; fetch it, or remove its line"
                if not expected.skip_bad:
                    raise DataError(why)
                self.lost.append(why)
        has = set(self._told)
        if not tables:
            texts = {name for name in others if name.endswith(".txt")}
            beside = {name: text for name in images if (text := str(Path(name).with_suffix(".txt"))) in texts}
            self._beside, has = bool(beside), {os.path.normpath(root / name) for name in beside}
            self.files = [root / text for text in beside.values()]
        lacking = [name for name in images if os.path.normpath(root / name) not in has]
        if not self.files or (tables and not self._told):
            return
        self.spec = Spec((None,) if several else (), "str")
        if lacking and not expected.skip_bad:
            where = f"in {tables[0]}" if tables else f"{Path(lacking[0]).stem}.txt beside it"
            raise DataError(
                f"{root / lacking[0]}: has no caption, expected one {where} ({len(lacking)} of {len(images)} images "
                f"have none){_SAY}"
            )

    def text(self, name: str) -> Any:
        """The caption of an image, or its list of captions; None where it has none."""
        path = self._root / name
        if not self._beside:
            return self._told.get(os.path.normpath(path))
        path = path.with_suffix(".txt")
        try:
            return caption_file(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({one_line(error)}); replace or remove it") from error


def _entries(table: Path, expected: Expected, lost: list[str]) -> Iterator[tuple[str, Any, str]]:
    """Of each line of some metadata: the path of the image, its caption, and the place, for messages."""
    try:
        content = table.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({one_line(error)}); write it again") from error
    rows = _lines(content) if table.suffix == ".jsonl" else _rows(table, as_text(content, str(table)))
    for number, read in rows:
        place = f"{table} line {number}"
        try:
            row = read(place)
            file, name = row.get("file_name"), expected.caption_name([*row], place, "field")
            if not isinstance(file, str) or not file:
                raise DataError(f"{place}: no file_name; it has {', '.join(row) or 'nothing'}")
            if name is None:
                raise DataError(
                    f"{place}: no caption; it has {', '.join(row)}, expected text or caption; set text (data.text) to "
                    "the field of captions, or leave text out of the conditions"
                )
        except DataError as error:
            if not expected.skip_bad:
                raise
            lost.append(str(error))
        else:
            yield os.path.normpath(table.parent / file), row[name], place


def caption_file(content: bytes, where: str) -> str:
    """The caption that a `.txt` holds: the whole, without the blanks around it.

    >>> caption_file(b" a cat\\r\\n", "1.txt")
    'a cat'
    """
    return as_text(content, where).removeprefix("\ufeff").strip()


_Row = Callable[[str], dict[str, Any]]  # by its place, for messages


def _lines(content: bytes) -> Iterator[tuple[int, _Row]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, functools.partial(json_object, line)


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """An object in JSON, by its names.

    Raises:
      DataError: with the place, where it is none.
    """
    try:
        row = json.loads(as_text(line, place))
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply; write it again") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON ({one_line(error)}); write it again") from error
    if not isinstance(row, dict):
        raise DataError(f"{place} is a {type(row).__name__}, expected an object")
    return row


def _held(row: dict[str, Any], _: str) -> dict[str, Any]:
    return row


def _rows(table: Path, text: str) -> Iterator[tuple[int, _Row]]:
    """The rows of CSV, each with the number of its last line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, functools.partial(_held, {str(key): value for key, value in row.items()})
    except csv.Error as error:
        raise DataError(
            f"{table} line {reader.reader.line_num}: is not CSV ({one_line(error)}); write it again"
        ) from error
