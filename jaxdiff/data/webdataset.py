"""WebDataset: pairs of an image and its caption in tar files, read at random without unpacking them.

A sample is what has one key, the path of a file up to the first dot of its name:

    KEY.jpg (png, webp, ...) with KEY.txt, or with KEY.json, an object that has the caption;  KEY.cls, a label.

Where the bytes of each file lie is noted once, in an index that is kept in the user's cache folder under a hash of the
tar files' paths, sizes and times; of a few megabytes it is made anew each time. To read a record is then one `pread` of
its image and one of its text, and any order costs the same. In memory is the index alone, some hundred bytes a pair.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.decoded import cache_folder, locked, remove
from jaxdiff.data.decoding import decode, size_of
from jaxdiff.data.expected import Expected
from jaxdiff.data.files import IMAGES, find_split, given_path, missing_parts, natural, split_of
from jaxdiff.data.labels import check_labels
from jaxdiff.data.metadata import caption_file, json_object
from jaxdiff.data.readers import ImageSource
from jaxdiff.data.sources import DataError, Say, digest, one_line, spread, to_stderr
from jaxdiff.spec import Spec

_VERSION = 1  # of the index
_LAYOUT = "pairs KEY.jpg (png, webp, ...) and KEY.txt, or KEY.json with the caption"
_PLACE = [("start", "<i8"), ("size", "<i8")]  # size -1: there is none
_PARTS = ("image", "txt", "json")
_SMALL = 2**23  # bytes of all tar files, up to which the index is not kept
_OPEN = 64  # tar files held open by each process
_PROBED = 16  # captions in JSON, to see whether they are lists


class TarReader:
    """Pairs in tar files, in order of the files and within each.

    Args:
      shards: the tar files.
      name: for messages.
      expected: what was asked for.
      folder: where the index is kept; None: `jaxdiff.data.decoded.cache_folder`.
      say: gets a line when an index is made, and when it cannot be kept.

    Raises:
      DataError: a tar file is missing, damaged or has no pairs; an image without a caption, a text without an image.
    """

    def __init__(
        self, shards: list[Path], name: str, expected: Expected, folder: Path | None = None, say: Say = to_stderr
    ) -> None:
        self.name, self._expected = name, expected
        self.lost: list[str] = []  # what cannot be used, and why
        if missing := missing_parts(shards):
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            self._lose(
                f"{name}: {missing[0]} is missing{more}; fetch it, or set skip_bad (data.skip_bad) to train without it"
            )
        self.files, self._states = [], []
        for shard in shards:
            try:
                self._states.append(_state(shard))
                self.files.append(shard)
            except OSError as error:  # a link that leads nowhere
                self._lose(f"{shard}: cannot be read ({one_line(error)}); fetch it again")
        self._rows, faults = _index(self, folder, say)
        for fault in faults:
            self._lose(fault)
        image, text = (self._rows[part]["size"] >= 0 for part in ("image", "txt"))
        fields = self._rows["json"]["size"] >= 0
        if expected.text is not None and expected.captions and not fields.any():
            raise DataError(
                f"{name}: no KEY.json with the field {expected.text}; write them, or leave text (data.text) out"
            )
        text |= fields
        if not image.any():
            raise DataError(f"{name}: no images among its {len(image)} keys, expected {_LAYOUT}")
        if expected.captions and (alone := np.flatnonzero(text & ~image)).size:
            self._lose(
                f"{self.where(int(alone[0]))}: a text without an image ({alone.size} of {len(image)} keys); write the "
                "tar file again, or set skip_bad (data.skip_bad) to leave it out"
            )
        self._rows = self._rows[image]
        self.captions = self._spec(text[image])
        self.classes: tuple[str, ...] | None = None
        self.num_classes: int | None = None
        self._labels: NDArray[np.int32] | None = None
        if expected.labelled and (self._rows["label"] >= 0).any():
            self._labels, self.num_classes = check_labels(
                self._rows["label"],
                expected.num_classes,
                records=len(self),
                name=name,
                where=self.where,
                strict=not expected.skip_bad,
            )
        self.identity = digest(self._rows)

    def _lose(self, why: str) -> None:
        if not self._expected.skip_bad:
            raise DataError(why)
        self.lost.append(why)

    def _spec(self, has: NDArray[np.bool_]) -> Spec | None:
        """The spec of the captions; refused where images lack them."""
        expected = self._expected
        if not expected.captions:
            return None
        if not has.any():
            if expected.conditions is None and expected.text is None and (self._rows["label"] >= 0).any():
                return None
            raise DataError(
                f"{self.name}: {len(has)} images and no caption, expected {_LAYOUT}; for images alone leave text out "
                "of the conditions"
            )
        if not (has.all() or expected.skip_bad):
            lacking = np.flatnonzero(~has)
            raise DataError(
                f"{self.where(int(lacking[0]))}: an image without a caption ({lacking.size} of {len(has)} images); "
                "write its .txt, or set skip_bad (data.skip_bad) to leave it out"
            )
        probed = np.flatnonzero(has)[spread(int(has.sum()), _PROBED)]
        return Spec((None,) if any(self._is_list(int(index)) for index in probed) else (), "str")

    def _is_list(self, index: int) -> bool:
        try:
            return isinstance(self.text(index), list)
        except DataError:  # met again when it is read
            return False

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        label = None if self._labels is None else int(self._labels[index])
        return decode(self._bytes(index, "image"), self.where(index)), label

    def size(self, index: int, /) -> tuple[int, int]:
        return size_of(io.BytesIO(self._bytes(index, "image")), self.where(index))

    def text(self, index: int, /) -> Any:
        row, asked = self._rows[index], self._expected.text is not None
        if row["txt"]["size"] >= 0 and not (asked and row["json"]["size"] >= 0):
            return caption_file(self._bytes(index, "txt"), f"{self.where(index)}: txt")
        if row["json"]["size"] < 0:
            return None
        where = f"{self.where(index)}: json"
        fields = json_object(self._bytes(index, "json"), where)
        name = self._expected.caption_name([*fields], where, "field")
        if name is None:
            raise DataError(
                f"{where} has no caption; it has {', '.join(fields) or 'nothing'}; set text (data.text) to the "
                "field of captions"
            )
        return fields[name]

    def where(self, index: int, /) -> str:
        row = self._rows[index]
        return f"{self.files[row['shard']]} key {row['key'].decode(errors='replace')}"

    def _bytes(self, index: int, part: str) -> bytes:
        row = self._rows[index]
        (start, size), shard = row[part].tolist(), int(row["shard"])
        try:
            handle = _opened(self.files[shard], self._states[shard])  # held: who else reads may drop it meanwhile
            found = os.pread(handle.number, size, start)
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot be read ({one_line(error)})") from error
        if len(found) != size:
            raise DataError(f"{self.where(index)}: the tar file ends before it; fetch the file again")
        return found


class _Handle:
    """A file that is open for as long as somebody reads from it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


State = tuple[int, int]


@functools.lru_cache(maxsize=_OPEN)  # of each process: one that is started has none
def _opened(path: Path, state: State) -> _Handle:
    handle = _Handle(path)
    found = os.fstat(handle.number)
    if (found.st_size, found.st_mtime_ns) != state:
        raise DataError(f"{path}: has changed since this run began to read it; start the run again")
    return handle


def _state(path: Path) -> State:
    """Size and time of a file, by which its index is known."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _index(reader: TarReader, folder: Path | None, say: Say) -> tuple[NDArray[Any], list[str]]:
    """A row for each key of all tar files, and what is wrong with them: as kept before, or made now."""
    states = reader._states
    if sum(size for size, _ in states) <= _SMALL:
        return _made(reader.files)
    place, state = (
        hashlib.blake2b(repr(text).encode(), digest_size=8).hexdigest()
        for text in ((_VERSION, [os.path.abspath(file) for file in reader.files]), states)
    )
    name = re.sub(r"\W+", "_", Path(reader.name).name)[:50]
    try:
        folder = cache_folder() if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}-{place}-{state}.index.npz"
        with open(folder / f"{name}-{place}.lock", "w") as lock:
            locked(lock, reader.name, say)
            kept = _kept(file)
            if kept is None:
                say(
                    f"{reader.name}: reading the names in {len(states)} tar files once; their index is kept in {folder}"
                )
                kept = _made(reader.files)
                handle, partial = tempfile.mkstemp(dir=folder, prefix=f"{name}-{place}-", suffix=".partial")
                try:
                    with open(handle, "wb") as out:
                        np.savez(out, rows=kept[0], faults=np.array(kept[1], dtype=str))
                    os.replace(partial, file)
                except BaseException:
                    remove([Path(partial)])
                    raise
                remove(old for old in folder.glob(f"{name}-{place}-*.index.npz") if old != file)
            return kept
    except OSError as error:
        say(f"{reader.name}: the index of its tar files cannot be kept in {folder} ({one_line(error)})")
        return _made(reader.files)


def _kept(file: Path) -> tuple[NDArray[Any], list[str]] | None:
    """An index as it was kept; None where it is not there, or not whole."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as held:
            rows, faults = held["rows"], held["faults"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (rows, faults.tolist()) if rows.dtype.names == _kind(1).names else None


def _kind(longest: int) -> np.dtype[Any]:
    places = [(part, _PLACE) for part in _PARTS]
    return np.dtype([("shard", "<i4"), *places, ("label", "<i8"), ("key", f"S{longest}")])


def _made(shards: Sequence[Path]) -> tuple[NDArray[Any], list[str]]:
    faults: list[str] = []
    parts = [_of_shard(number, shard, faults) for number, shard in enumerate(shards)]
    rows = np.zeros(sum(map(len, parts)), _kind(max((part.dtype["key"].itemsize for part in parts), default=1)))
    start = 0
    for part in parts:
        rows[start : start + len(part)] = part
        start += len(part)
    return rows, faults


def _of_shard(number: int, shard: Path, faults: list[str]) -> NDArray[Any]:
    """The rows of one tar file."""
    keys = _keys(shard, faults)
    rows = np.zeros(len(keys), _kind(max((len(key.encode(errors="replace")) for key in keys), default=1)))
    for row, (key, parts) in zip(rows, keys.items(), strict=True):
        row["shard"], row["key"], row["label"] = number, key.encode(errors="replace"), parts.get("label", -1)
        for part in _PARTS:
            row[part] = parts.get(part, (0, -1))
    return rows


def _keys(shard: Path, faults: list[str]) -> dict[str, dict[str, Any]]:
    """Where the parts of each key of a tar file lie."""
    keys: dict[str, dict[str, Any]] = {}
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as file:
            for member in file:
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, kind = base.partition(".")
                part = "image" if f".{kind.lower()}" in IMAGES else kind.lower()
                if not member.isfile() or not stem or part not in (*_PARTS, "cls"):
                    continue
                parts = keys.setdefault(folder + slash + stem, {})
                where = f"{shard} key {folder}{slash}{stem}"
                if member.offset_data + member.size > size:
                    faults.append(f"{where}: .{kind} is cut off; fetch the tar file again")
                elif part == "cls":
                    held = file.extractfile(member)
                    assert held is not None, "of a file"
                    try:
                        parts["label"] = int(held.read())
                    except ValueError as error:
                        faults.append(f"{where}: .cls is no label ({one_line(error)}), expected a whole number")
                elif part in parts:
                    faults.append(f"{where}: has two files of {part}; write one alone, or another key")
                else:
                    parts[part] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        faults.append(
            f"{shard}: is damaged, or no tar file without compression ({one_line(error)}); fetch it again, or unpack it"
        )
    return keys


def _shards(root: Path, split: str) -> list[Path]:
    """The tar files of a split: named by it, or lying in its folder; where none names a split, all are train."""
    if root.is_file():
        return find_split(root, split, "tar")
    files = sorted({*root.glob("*.tar"), *root.glob("*/*.tar")}, key=lambda file: natural(str(file)))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts)]
    if not files:
        raise DataError(f"{root}: no .tar files, expected tar files with {_LAYOUT}")
    splits = [_split(file, root) for file in files]
    wanted = split_of(split) or split
    chosen = [file for file, each in zip(files, splits, strict=True) if wanted == "all" or each == wanted]
    if not chosen and wanted == "train" and not any(splits):
        return files
    if not chosen:
        has = sorted({each or "train" for each in splits})
        raise DataError(f"{root}: no split {split!r}; it has {', '.join(has)}")
    return chosen


def _split(file: Path, root: Path) -> str | None:
    parts = [*re.split(r"[-_.]", file.stem), *file.relative_to(root).parent.parts]
    return next((split for part in parts if (split := split_of(part))), None)


def open_webdataset(
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
    conditions: Sequence[str] | None = None,
    text: str | None = None,
) -> ImageSource:
    """Images and captions from tar files in the layout of WebDataset.

    Args:
      path: a tar file without compression; or a folder of them, in it or in its folders.
      split: those whose name has it, as in `set-train-0000.tar`, or that lie in its folder; where no file names a
        split, all are "train".
      image_size, channels, num_classes, resize, skip_bad, conditions: as in `open_parquet`.
      text: name of the field of captions in `KEY.json`, which then comes before `KEY.txt`; None: text, or else caption.

    Raises:
      DataError: a file or split is missing, damaged, or not what was asked for; images without captions, or captions
        without images.

    >>> import io, tarfile, tempfile
    >>> from PIL import Image
    >>> Image.new("RGB", (8, 8)).save(png := io.BytesIO(), "PNG")
    >>> def add(file, name, content):
    ...     member = tarfile.TarInfo(name)
    ...     member.size = len(content)
    ...     file.addfile(member, io.BytesIO(content))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(folder + "/0000.tar", "w") as file:
    ...         add(file, "a.png", png.getvalue())
    ...         add(file, "a.txt", b"a black square")
    ...     source = open_webdataset(folder)
    ...     source.take(np.array([0]))["text"].tolist()
    ['a black square']
    """
    root = given_path(path, "webdataset", f"a tar file, or a folder of tar files, with {_LAYOUT}")
    expected = Expected(image_size, channels, num_classes, resize, skip_bad, conditions, text)
    reader = TarReader(_shards(root, split), str(root), expected)
    if num_classes is not None and reader.num_classes is None:
        raise DataError(f"{root}: no labels (KEY.cls), and num_classes={num_classes} needs them")
    return ImageSource(reader, expected)
