"""Parquet in the image layouts of Hugging Face `datasets`: a column `image` or `img` of {bytes, path} and, where there
are labels, `label`, `labels` or `fine_label`; where there are captions, `text` or `caption`, strings or lists of them.

What is held in memory: all labels; of images and captions, the encoded bytes of the row groups read last, up to 512 MiB
in each process. MNIST and CIFAR-10 fit whole and are read once. A larger set reads a row group whenever a record
outside of those is asked for, so its row groups should be small: about a hundred rows, as `datasets` writes them for
images.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jaxdiff.data.decoding import decode, size_of
from jaxdiff.data.expected import ANYTHING, Expected
from jaxdiff.data.files import find_split, given_path, missing_parts
from jaxdiff.data.labels import check_labels
from jaxdiff.data.readers import ImageSource
from jaxdiff.data.sources import DataError, digest, one_line
from jaxdiff.spec import Spec

CACHE_BYTES = 512 * 2**20
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")


class ParquetReader:
    """Rows of one or more Parquet files, in order of the files."""

    def __init__(self, files: list[Path], name: str, expected: Expected = ANYTHING) -> None:
        self.name = name
        self.lost: list[str] = []  # whole files that cannot be read, and why
        if missing := missing_parts(files):
            why = f"{name}: {missing[0]} is missing" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            if not expected.skip_bad:
                raise DataError(f"{why}; fetch it, or set skip_bad (data.skip_bad) to train without it")
            self.lost.append(why)
        self.files = files = self._readable(files) if expected.skip_bad else files
        self._groups: list[tuple[int, int]] = []  # of each row group: its file, its number there
        self._columns: list[str] = []  # of each file: its column of images
        self._texts: list[str | None] = []  # of each file: its column of captions
        first_of_group, first_of_file, sizes = [0], [0], list[int]()
        labels: list[NDArray[Any]] = []
        self.classes: tuple[str, ...] | None = None
        self.captions: Spec | None = None
        for number, path in enumerate(files):
            with _opened(path) as file:
                names = file.schema_arrow.names
                self._columns.append(_image_column(path, file.schema_arrow))
                self._texts.append(expected.caption_name(names, str(path), "column"))
                captions = _captions(path, file.schema_arrow, self._texts[-1])
                if number and captions != self.captions:
                    raise DataError(
                        f"{path}: column {self._texts[-1] or self._texts[0]} is of captions in some files and not in "
                        "others, or has one here and lists there; expected the same columns in each"
                    )
                self.captions = captions
                column = next((each for each in _LABELS if each in names), None) if expected.labelled else None
                if number and (column is not None) != bool(labels):
                    raise DataError(
                        f"{path}: column label is in some files and not in others; expected the same columns in each"
                    )
                if column is not None:
                    labels.append(_labels(path, file, column, expected.skip_bad))
                    classes = _class_names(path, file.schema_arrow, column)
                    if number and classes != self.classes:
                        raise DataError(
                            f"{path}: its classes are {_brief(classes)}, those of the files before "
                            f"{_brief(self.classes)}; write the files with the same classes"
                        )
                    self.classes = classes
                elif expected.num_classes is not None:
                    raise DataError(
                        f"{path}: no column label; it has {', '.join(names)}; "
                        f"num_classes={expected.num_classes} needs one: rename it"
                    )
                for group in range(file.num_row_groups):
                    part = file.metadata.row_group(group)
                    self._groups.append((number, group))
                    first_of_group.append(first_of_group[-1] + part.num_rows)
                    sizes.append(part.total_byte_size)
                first_of_file.append(first_of_group[-1])
        self._first_of_group, self._first_of_file = np.array(first_of_group), np.array(first_of_file)
        self._labels: NDArray[np.int32] | None = None
        self.num_classes: int | None = None
        if labels:
            count = expected.num_classes or (len(self.classes) if self.classes else None)
            self._labels, self.num_classes = check_labels(
                np.concatenate(labels),
                count,
                records=len(self),
                name=name,
                where=self.where,
                strict=not expected.skip_bad,
            )
            self.num_classes = len(self.classes) if self.classes else self.num_classes
        self.identity = digest(np.array(sizes), *([] if self._labels is None else [self._labels.astype(np.int64)]))
        self._reset()

    def _readable(self, files: list[Path]) -> list[Path]:
        good = []
        for path in files:
            try:
                _opened(path).close()
                good.append(path)
            except DataError as error:
                self.lost.append(str(error))
        if not good:
            raise DataError(f"{self.name}: none of its {len(files)} files can be read; the first: {self.lost[0]}")
        return good

    def _reset(self) -> None:
        self._cache: OrderedDict[tuple[int, str], Any] = OrderedDict()  # row group and column -> a pyarrow column
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cache", "_cached_bytes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._first_of_group[-1])

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        label = None if self._labels is None else int(self._labels[index])
        return decode(memoryview(self._bytes(index)), self.where(index)), label

    def size(self, index: int, /) -> tuple[int, int]:
        return size_of(io.BytesIO(self._bytes(index)), self.where(index))

    def _bytes(self, index: int) -> Any:
        value = self._value(index, self._columns)
        if not value.is_valid:
            raise DataError(
                f"{self.where(index)}: image has no bytes, only a path perhaps; embed the images in the Parquet file"
            )
        return value.as_buffer()

    def text(self, index: int, /) -> Any:
        return self._value(index, self._texts).as_py()

    def where(self, index: int, /) -> str:
        file = int(np.searchsorted(self._first_of_file, index, side="right")) - 1
        return f"{self.files[file]} row {index - int(self._first_of_file[file])}"

    def _value(self, index: int, columns: Sequence[str | None]) -> Any:
        """What a record has in one of the columns that are named for each file."""
        group = int(np.searchsorted(self._first_of_group, index, side="right")) - 1
        return self._group(group, str(columns[self._groups[group][0]]))[index - int(self._first_of_group[group])]

    def _group(self, group: int, name: str) -> Any:
        """A column of a row group, from the cache or the file: encoded images, or captions as bytes."""
        with self._lock:
            if (group, name) in self._cache:
                self._cache.move_to_end((group, name))
                return self._cache[group, name]
            file_number, number = self._groups[group]
            path = self.files[file_number]
            try:
                with _opened(path) as file:
                    column = file.read_row_group(number, columns=[name], use_threads=False).column(0)
                if name == self._texts[file_number]:  # as bytes: Arrow does not look whether they are UTF-8
                    several = self.captions is not None and self.captions.shape
                    column = column.cast(pa.list_(pa.binary()) if several else pa.binary())
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{path}: row group {number} is damaged ({one_line(error)}); fetch the file again"
                ) from error
            if pa.types.is_struct(column.type):
                column = pc.struct_field(column, "bytes")
            self._cache[group, name] = column
            self._cached_bytes += column.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
            return column


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file, or damaged ({one_line(error)}); fetch it again") from error


def _image_column(path: Path, schema: Any) -> str:
    """The name of the column of encoded images, as Parquet wants it asked for."""
    for name in _IMAGES:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]:
                return f"{name}.bytes"
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            raise DataError(f"{path}: column {name} is {kind}, expected a struct of bytes (an encoded image) and path")
    has = ", ".join(schema.names) or "none"
    raise DataError(f"{path}: no column image; it has {has}; expected a struct of bytes (an encoded image) and path")


def _captions(path: Path, schema: Any, name: str | None) -> Spec | None:
    """The spec of a column of captions."""
    if name is None:
        return None
    kind = schema.field(name).type
    several = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    each = kind.value_type if several else kind
    each = each.value_type if pa.types.is_dictionary(each) else each
    if not (pa.types.is_string(each) or pa.types.is_large_string(each) or pa.types.is_binary(each)):
        raise DataError(
            f"{path}: column {name} is {kind}, expected strings or lists of strings; set text (data.text) to the "
            "column of captions, or rename this one"
        )
    return Spec((None,) if several else (), "str")


def _labels(path: Path, file: Any, name: str, skip_bad: bool) -> NDArray[Any]:
    try:
        column = file.read(columns=[name], use_threads=False).column(name)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: column {name} is damaged ({one_line(error)}); fetch the file again") from error
    if column.null_count and skip_bad and pa.types.is_integer(column.type):
        column = pc.fill_null(pc.cast(column, pa.int64()), -1)  # out of range: its record is refused when it is read
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{path} row {row}: {name} is missing ({column.null_count} such rows), expected an integer")
    if not pa.types.is_integer(column.type):
        raise DataError(f"{path}: column {name} is {column.type}, expected integers; store class numbers 0, 1, 2, ...")
    return column.to_numpy()


def _class_names(path: Path, schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of the classes in the metadata that `datasets` writes; None where there are none."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        return tuple(map(str, json.loads(text)["info"]["features"][column]["names"])) or None
    except ValueError as error:
        raise DataError(
            f"{path}: its huggingface metadata are not JSON ({one_line(error)}); write the file again"
        ) from error
    except (KeyError, TypeError):
        return None  # a label that is a plain integer has no names


def _brief(classes: tuple[str, ...] | None) -> str:
    return "unnamed" if classes is None else f"{len(classes)} ({', '.join(classes[:3])}, ...)"


def open_parquet(
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
    """Images from Parquet in the layout of Hugging Face `datasets`.

    Args:
      path: a file; or a folder with `train.parquet`, `train-*.parquet` or `train/*.parquet` (and so on for other
        splits), in it or in one folder of it.
      split: which of them, or "all". A file is its own only split: "train", "all", or the name that it begins with.
      image_size: side of the square images, pixels; None: what they have.
      channels: of an image; None: 3 where there are colours, else 1. Grey images among coloured ones are given three
        equal channels; what is transparent is laid on white, unless 4 channels are asked for.
      num_classes: labels must lie in [0, num_classes); None: from the metadata, or else the largest label + 1.
      resize: bring images of other sizes to `image_size` (`center_crop_resize`), instead of refusing them.
      skip_bad: take what can be read, and leave bad records to be found by `without_bad`.
      conditions: names of the conditions to read; None: all, () none, so that labels nobody uses are not looked at.
      text: name of the column of captions, strings or lists of strings; None: text, or else caption.

    Raises:
      DataError: a file, split or column is missing, a file is damaged, the set is empty, or it is not what was asked
        for.

    >>> import io, tempfile
    >>> from PIL import Image
    >>> Image.new("RGB", (8, 8)).save(png := io.BytesIO(), "PNG")
    >>> table = pa.table({"image": [{"bytes": png.getvalue(), "path": None}] * 3, "label": [0, 1, 1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pq.write_table(table, folder + "/train.parquet")
    ...     source = open_parquet(folder)
    >>> len(source), source.spec["x"].shape, source.spec["label"].high
    (3, (8, 8, 3), 1)
    """
    expected = Expected(image_size, channels, num_classes, resize, skip_bad, conditions, text)
    what = expected.listed("Parquet with columns image {bytes, path}")
    root = given_path(path, "parquet", f"{what}: a file, or a folder with train.parquet and test.parquet")
    return ImageSource(ParquetReader(find_split(root, split, "parquet"), str(root), expected), expected)


def open_mnist(
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
    """MNIST (28x28, grey, ten classes) from Parquet under `path` or `path/mnist`; the options are those of
    `open_parquet`.

    >>> open_mnist()
    Traceback (most recent call last):
    jaxdiff.data.sources.DataError: mnist: no path given; set path (data.path) to the folder with mnist's train.parquet
    ...
    """
    return open_parquet(
        _folder_of("mnist", path),
        split=split,
        image_size=image_size or 28,
        channels=channels or 1,
        num_classes=num_classes or (10 if conditions is None or "label" in conditions else None),
        resize=resize,
        skip_bad=skip_bad,
        conditions=conditions,
        text=text,
    )


def open_cifar10(
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
    """CIFAR-10 (32x32, RGB, ten classes) from Parquet under `path` or `path/cifar10`; the options are those of
    `open_parquet`.

    >>> open_cifar10("no/such/folder")
    Traceback (most recent call last):
    jaxdiff.data.sources.DataError: no/such/folder: no such file or folder, expected the folder with cifar10's
    train.parquet ...
    """
    return open_parquet(
        _folder_of("cifar10", path),
        split=split,
        image_size=image_size or 32,
        channels=channels or 3,
        num_classes=num_classes or (10 if conditions is None or "label" in conditions else None),
        resize=resize,
        skip_bad=skip_bad,
        conditions=conditions,
        text=text,
    )


def _folder_of(name: str, path: str | os.PathLike[str] | None) -> Path:
    what = f"the folder with {name}'s train.parquet and test.parquet, or read it by its TFDS name, tfds:{name}"
    path = given_path(path, name, what)
    return path / name if (path / name).is_dir() else path
