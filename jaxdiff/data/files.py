"""Where the files of a set lie: paths, splits, and the source over a folder of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.decoding import decode
from jaxdiff.data.sources import DataError, Expected, Images, Source, digest, one_line

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


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


def find_split(path: Path, split: str, suffix: str) -> list[Path]:
    """The files of one split: `SPLIT.suffix`, `SPLIT-*.suffix` or `SPLIT/*.suffix`, in the folder or in its `data`
    folder.

    Args:
      path: the folder; or a file, which is "train", "all" and the split that its name begins with.
      split: its name, or "all" for every file.
      suffix: without the dot.

    Raises:
      DataError: there is no such split, or the folder has no such files.
    """
    if path.is_file():
        if split in ("train", "all") or path.stem.split("-")[0] == split:
            return [path]
        raise DataError(
            f"{path}: one file, which does not tell of a split {split!r}; point the path at that split's file or folder"
        )
    for folder in (path, path / "data"):
        files = sorted([*folder.glob(f"*.{suffix}"), *folder.glob(f"*/*.{suffix}")])
        splits = {file: file.parent.name if file.parent != folder else file.stem.split("-")[0] for file in files}
        chosen = [file for file in files if split in ("all", splits[file])]
        if chosen:
            return chosen
        if files and not (folder == path and (path / "data").is_dir()):
            raise DataError(f"{path}: no split {split!r}; it has {', '.join(sorted(set(splits.values())))}")
    raise DataError(f"{path}: no .{suffix} files, expected {split}.{suffix} or {split}-*.{suffix}")


class FolderReader:
    """Image files by class: `root/CLASS/**`, or `root/*` without labels."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root = root
        entries = [entry for entry in sorted(root.iterdir(), key=lambda e: e.name) if not entry.name.startswith(".")]
        classes = [entry for entry in entries if entry.is_dir()]
        loose = [entry.name for entry in entries if entry.is_file() and entry.suffix.lower() in _SUFFIXES]
        if classes and loose:
            raise DataError(
                f"{root}: has class folders and loose images ({loose[0]}, ...); move the images into class folders"
            )
        self.num_classes = len(classes) or None
        self._labels: NDArray[np.int64] | None = None
        self._files = loose
        if classes:
            found = [_images_under(root, folder) for folder in classes]
            for folder, files in zip(classes, found, strict=True):
                if not files:
                    raise DataError(
                        f"{folder}: class folder without images "
                        f"(kinds: {' '.join(sorted(_SUFFIXES))}); fill it or remove it"
                    )
            self._files = [file for files in found for file in files]
            self._labels = np.repeat(np.arange(len(classes)), [len(files) for files in found])
        self.identity = digest(np.array(self._files, dtype=str)) + str(self.num_classes)

    @property
    def files(self) -> list[Path]:
        """Of each record, in their order."""
        return [self._root / name for name in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        try:
            data = (self._root / self._files[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot be read ({one_line(error)}); replace or remove it") from error
        return decode(data, self.where(index)), None if self._labels is None else int(self._labels[index])

    def where(self, index: int, /) -> str:
        return f"{self._root / self._files[index]} (row {index})"


def _images_under(root: Path, folder: Path) -> list[str]:
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names if not name.startswith("."))
    return sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in _SUFFIXES)


def open_folder(
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
) -> Source:
    """A folder of images by class: `PATH/SPLIT/CLASS/*.png`, or `PATH/CLASS/*.png` where there are no splits.

    Class folders in order of their names are labels 0, 1, ...; files are read on access, in order of their names.
    Images that lie in the folder itself make a set without labels.

    Args:
      path: the folder.
      split: the sub-folder; a folder without a sub-folder `train` is "train" and "all".
      image_size, channels, num_classes, resize, skip_bad: as in `open_parquet`.

    Raises:
      DataError: the folder or split is missing, empty, or not what was asked for.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         (Path(folder) / name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(Path(folder, name, "1.png"))
    ...     source = open_folder(folder)
    ...     len(source), source.image_shape, source.num_classes, source[1]["label"]
    (2, (8, 8, 3), 2, 1)
    """
    root = given_path(path, "folder", "a folder with one sub-folder of images for each class")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, expected a folder with one sub-folder of images for each class")
    splits = [name for name in ("train", "validation", "val", "test") if (root / name).is_dir()]
    if (root / split).is_dir():
        root = root / split
    elif splits or split not in ("train", "all"):
        raise DataError(
            f"{root}: no split {split!r}; it has {', '.join(splits) or 'class folders only, which are train'}"
        )
    reader = FolderReader(root)
    if len(reader) == 0:
        raise DataError(f"{root}: no images, expected one sub-folder of images for each class")
    if num_classes is not None and reader.num_classes is not None and reader.num_classes > num_classes:
        raise DataError(
            f"{root}: {reader.num_classes} class folders, expected at most {num_classes}; "
            "set num_classes or remove some"
        )
    return Images(reader, Expected(image_size, channels, num_classes, resize, skip_bad))
