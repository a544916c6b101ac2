"""Where the files of a set lie: paths, splits, and the source over a folder of images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.decoding import decode, size_of
from jaxdiff.data.expected import ANYTHING, Expected
from jaxdiff.data.maps import SUFFIX, maps_beside, read_map
from jaxdiff.data.metadata import METADATA, FolderCaptions
from jaxdiff.data.readers import ImageSource
from jaxdiff.data.sources import DataError, Say, digest, one_line, spread, to_stderr

IMAGES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".jp2"}
IMAGES |= {".ppm", ".pgm"}
_SPLITS = {"train": {"train", "training"}, "validation": {"validation", "val", "valid"}, "test": {"test", "testing"}}
_DIGESTED, _HEAD = 64, 2**16  # files, and bytes of each, that a folder's fingerprint reads


def given_path(path: str | os.PathLike[str] | None, name: str, what: str) -> Path:
    """The path, which must be given and exist.

    Raises:
      DataError: saying what should lie there.
    """
    if path is None:
        raise DataError(f"{name}: no path given; set path (data.path) to {what}")
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected {what}")
    return path


def split_of(name: str) -> str | None:
    """The split that a file or folder of this name is; None where the name is no split's.

    >>> split_of("Training"), split_of("val"), split_of("cats")
    ('train', 'validation', None)
    """
    return next((split for split, names in _SPLITS.items() if name.lower() in names), None)


def _is_split(name: str, asked: str) -> bool:
    return name == asked or (split_of(asked) is not None and split_of(name) == split_of(asked))


def natural(name: str) -> list[tuple[int, int, str]]:
    """What to sort names by, so that numbers in them count: 2 before 10.

    >>> sorted(["10", "b", "2", "a10", "a9"], key=natural)
    ['2', '10', 'a9', 'a10', 'b']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts]


def find_split(path: Path, split: str, suffix: str) -> list[Path]:
    """The files of one split, in order: `SPLIT.suffix`, `SPLIT-*.suffix` or `SPLIT/*.suffix`, in the folder or in one
    folder of it (`data`, `default`).

    Args:
      path: the folder; or a file, which is "train", "all" and the split that its name begins with.
      split: its name, or "all" for every file.
      suffix: without the dot.

    Raises:
      DataError: there is no such split, it lies in two places, a part of it is missing, or the folder has no such
        files.
    """
    if path.is_file():
        if split in ("train", "all") or _is_split(path.stem.split("-")[0], split):
            return [path]
        raise DataError(
            f"{path}: one file, which does not tell of a split {split!r}; point the path at that split's file or folder"
        )
    depths = [pattern for each in ("*", "*/*", "*/*/*") for pattern in (f"{each}.{suffix}", f"{each}.{suffix.upper()}")]
    files = sorted({file for pattern in depths for file in path.glob(pattern)}, key=lambda file: natural(str(file)))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise DataError(f"{path}: no .{suffix} files, expected {split}.{suffix} or {split}-*.{suffix}")
    found = {file: _named_split(file, path, split) for file in files}
    chosen = [file for file in files if split == "all" or _is_split(found[file], split)]
    if not chosen:
        raise DataError(f"{path}: no split {split!r}; it has {', '.join(sorted(set(found.values())))}")
    for name in sorted({found[file] for file in chosen}):
        places = sorted({str(file.parent.relative_to(path)) for file in chosen if found[file] == name})
        if len(places) > 1:
            raise DataError(
                f"{path}: split {name!r} lies in several places ({', '.join(places)}); point the path at one of them"
            )
    return chosen


def _named_split(file: Path, root: Path, split: str) -> str:
    """The split of a file: what its name begins with, or the folder it lies in."""
    first = re.split(r"[-_.]", file.stem)[0] if split_of(re.split(r"[-_.]", file.stem)[0]) else file.stem.split("-")[0]
    inside = file.parent != root and split_of(first) is None and first != split
    return file.parent.name if inside else first


def missing_parts(files: list[Path]) -> list[str]:
    """Names of the files that a set of numbered parts lacks: of NAME-00000-of-00003, or of 0000, 0001, ...

    >>> missing_parts([Path("train-00000-of-00003.parquet"), Path("train-00002-of-00003.parquet")])
    ['train-00001-of-00003.parquet']
    >>> missing_parts([Path("train/0000.parquet"), Path("train/0002.parquet")])
    ['0001.parquet']
    """
    lacking: list[str] = []
    for folder in dict.fromkeys(file.parent for file in files):
        names = {file.name for file in files if file.parent == folder}
        counted = [match for name in names if (match := re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\..*)", name))]
        for start, width, of, total, end in sorted({(m[1], len(m[2]), m[3], m[4], m[5]) for m in counted}):
            wanted = [f"{start}{n:0{width}}{of}{total}{end}" for n in range(int(total))]
            lacking += [name for name in wanted if name not in names]
        plain = [match for name in names if (match := re.fullmatch(r"(\d{4,})(\..*)", name))]
        if plain:
            last, width, end = max(int(m[1]) for m in plain), len(plain[0][1]), plain[0][2]
            lacking += [name for n in range(last) if (name := f"{n:0{width}}{end}") not in names]
    return lacking


class FolderReader:
    """Image files by class: `root/CLASS/**`, or `root/*` without labels. Links are followed.

    Args:
      root: the folder of the split.
      expected: what was asked for.
      above: the folder above it, where there are splits: metadata of all may lie there.
      say: gets a line for files that are left out.
    """

    def __init__(
        self, root: Path, expected: Expected = ANYTHING, above: Path | None = None, say: Say = to_stderr
    ) -> None:
        labelled = expected.labelled
        self.name = str(root)
        self._root = root
        entries = [entry for entry in sorted(root.iterdir(), key=lambda e: natural(e.name)) if _shown(entry.name)]
        folders = [entry for entry in entries if entry.is_dir()]
        loose = [entry.name for entry in entries if not entry.is_dir()]
        other = [name for name in loose if Path(name).suffix.lower() not in IMAGES]
        loose = [name for name in loose if name not in set(other)]
        if folders and loose:
            raise DataError(
                f"{root}: has class folders and loose images ({loose[0]}, ...); move the images into class folders"
            )
        self.classes = tuple(folder.name for folder in folders) if folders and labelled else None
        self.num_classes = len(folders) if folders and labelled else None
        self._labels: NDArray[np.int64] | None = None
        self._maps: dict[str, str] = {}  # by the image's name
        self.lost: list[str] = []
        self._files = self._without_maps(loose, expected)
        if folders:
            under = [_files_under(root, folder) for folder in folders]
            found = [[name for name in names if Path(name).suffix.lower() in IMAGES] for names in under]
            every = {*self._without_maps([name for names in found for name in names], expected)}
            found = [[name for name in names if name in every] for names in found]
            other += [name for names in under for name in names if Path(name).suffix.lower() not in IMAGES]
            for folder, files in zip(folders, found, strict=True):
                if not files and labelled:
                    raise DataError(
                        f"{folder}: class folder without images "
                        f"(kinds: {' '.join(sorted(IMAGES))}); fill it or remove it"
                    )
            self._files = [file for files in found for file in files]
            if labelled:
                self._labels = np.repeat(np.arange(len(folders)), [len(files) for files in found])
        self._captions = FolderCaptions(root, self._files, other, above, expected)
        self.captions, self.has_fields = self._captions.spec, self._captions.has_fields
        self.lost += self._captions.lost
        read = {str(file) for file in self._captions.files}
        other = [name for name in other if str(root / name) not in read and Path(name).name not in METADATA]
        if other:
            kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in other)
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            say(f"{root}: {len(other)} files are no images and are left out ({listed}; the first: {other[0]})")
        self.identity = self._identity()

    def _without_maps(self, names: list[str], expected: Expected) -> list[str]:
        """The images among some names; the maps beside them are noted."""
        maps, alone = maps_beside(names)
        if not maps:
            return names
        images = [name for name in names if not name.endswith(SUFFIX)]
        if not expected.mapped:
            return images
        self._maps = maps
        lacking = [name for name in images if name not in maps]
        why = [
            f"{self._root / name}: has no map, expected {Path(name).with_suffix(SUFFIX).name} beside it "
            f"({len(lacking)} of {len(images)} images have none); add it, set skip_bad (data.skip_bad) to leave those "
            "images out, or leave map out of the conditions"
            for name in lacking
        ]
        why += [
            f"{self._root / name}: is a map, and there is no image beside it; fetch it, or remove the map"
            for name in alone
        ]
        if why and not expected.skip_bad:
            raise DataError(why[0])
        self.lost += why
        return [name for name in images if name in maps]

    def _identity(self) -> str:
        """Of the files' names and sizes, and of the first bytes of some."""
        sizes, heads = [_size(file) for file in self.files], []
        chosen = [self._files[index] for index in spread(len(self), _DIGESTED)] if len(self) else []
        for name in [*chosen, *(self._maps[name] for name in chosen if self._maps)]:
            if _size(self._root / name) >= 0:
                with open(self._root / name, "rb") as file:
                    heads.append(np.frombuffer(file.read(_HEAD), np.uint8))
        return digest(np.array(self._files, dtype=str), np.array(sizes, np.int64), *heads) + str(self.num_classes)

    @property
    def files(self) -> list[Path]:
        """Of each record, in their order; then those of the maps and the captions."""
        names = [*self._files, *(self._maps[name] for name in self._files if self._maps)]
        return [self._root / name for name in names] + self._captions.files

    @property
    def has_maps(self) -> bool:
        """Whether there is a map beside each image."""
        return bool(self._maps)

    def map(self, index: int, /) -> NDArray[np.uint8]:
        """The ids (H, W) of a record's map."""
        return read_map(self._root / self._maps[self._files[index]])

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        try:
            data = (self._root / self._files[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot be read ({one_line(error)}); replace or remove it") from error
        return decode(data, self.where(index)), None if self._labels is None else int(self._labels[index])

    def size(self, index: int, /) -> tuple[int, int]:
        try:
            with open(self._root / self._files[index], "rb") as file:
                return size_of(file, self.where(index))
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot be read ({one_line(error)}); replace or remove it") from error

    def text(self, index: int, /) -> Any:
        return self._captions.text(self._files[index])

    def where(self, index: int, /) -> str:
        return f"{self._root / self._files[index]} (row {index})"


def _shown(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _files_under(root: Path, folder: Path) -> list[str]:
    """The files below a folder, in order of their names; linked folders too, but none within itself."""
    return sorted((file.relative_to(root).as_posix() for file in _walk(folder, ())), key=natural)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if _shown(entry.name):
            if entry.is_dir():
                yield from _walk(folder / entry.name, (*above, real))
            else:
                yield folder / entry.name


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link that leads nowhere: the record is refused when it is read
        return -1


def open_folder(
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
    """A folder of images by class: `PATH/SPLIT/CLASS/*.png`, or `PATH/CLASS/*.png` where there are no splits.

    Class folders in natural order of their names (2 before 10) are labels 0, 1, ..., and the source's `classes`; files
    are read on access, in order of their names. Images that lie in the folder itself make a set without labels.
    Captions are a `.txt` beside each image, or `metadata.jsonl` or `.csv` with `file_name` and `text`
    (`jaxdiff.data.metadata`). Maps of classes are a `.map.png` beside each image (`jaxdiff.data.maps`).

    Args:
      path: the folder.
      split: the sub-folder, in any case: train is also training, validation also val and valid, test also testing. A
        folder without splits is "train" and "all".
      image_size, channels, num_classes, resize, skip_bad, conditions: as in `open_parquet`.
      text: name of the field of captions in the metadata; None: text, or else caption.

    Raises:
      DataError: the folder or split is missing, empty, or not what was asked for.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         (Path(folder) / name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(Path(folder, name, "1.png"))
    ...     source = open_folder(folder)
    ...     len(source), source.spec["x"].shape, source.classes, source.take(np.array([1]))["label"]
    (2, (8, 8, 3), ('cat', 'dog'), array([1], dtype=int32))
    """
    expected = Expected(image_size, channels, num_classes, resize, skip_bad, conditions, text)
    what = "a folder of images" + (", each with its caption" if conditions and expected.captions else "")
    what = "a folder with one sub-folder of images for each class" if expected.labelled else what
    root = given_path(path, "folder", what)
    if not root.is_dir():
        raise DataError(f"{root}: is a file, expected {what}")
    whole, root = root, _split_folder(root, split)
    reader = FolderReader(root, expected, None if root == whole else whole)
    if text is not None and expected.captions and not reader.has_fields:
        raise DataError(
            f"{root}: no {' or '.join(METADATA)} with the field {text}; write one, or leave text (data.text) out"
        )
    if len(reader) == 0:
        raise DataError(f"{root}: no images, expected {what}")
    if num_classes is not None and reader.num_classes is not None and reader.num_classes > num_classes:
        raise DataError(
            f"{root}: {reader.num_classes} class folders, expected at most {num_classes}; "
            "set num_classes or remove some"
        )
    return ImageSource(reader, expected)


def _split_folder(root: Path, split: str) -> Path:
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and _shown(entry.name))
    order = list(_SPLITS)
    splits = sorted((name for name in folders if split_of(name)), key=lambda name: order.index(str(split_of(name))))
    chosen = [name for name in folders if name == split] or [name for name in splits if _is_split(name, split)]
    if len(chosen) > 1:
        raise DataError(f"{root}: split {split!r} could be {' or '.join(chosen)}; rename one of them")
    if chosen:
        return root / chosen[0]
    if splits and len(splits) < len(folders) and "train" not in map(split_of, splits):
        other = next(name for name in folders if name not in splits)
        raise DataError(
            f"{root}: {splits[0]} is named like a split and {other} like a class; "
            "put the class folders into a folder train, or rename one of them"
        )
    if splits or split not in ("train", "all"):
        raise DataError(
            f"{root}: no split {split!r}; it has {', '.join(splits) or 'class folders only, which are train'}"
        )
    return root
