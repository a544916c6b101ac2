"""TensorFlow Datasets through `tfds.data_source`'s random access: no TensorFlow, no download.

Only sets prepared on disk as ArrayRecord are read. Preparing one needs TensorFlow, once; where it has not been done,
opening fails at once and names the command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.decoding import DECODE_ERRORS
from jaxdiff.data.expected import Expected
from jaxdiff.data.readers import ImageSource
from jaxdiff.data.sources import DataError, digest, one_line
from jaxdiff.spec import Spec


class TFDSReader:
    """Records of a prepared TFDS split."""

    def __init__(
        self,
        data: Any,
        name: str,
        identity: str,
        image: str,
        label: str | None,
        num_classes: int | None,
        files: list[Path],
        classes: tuple[str, ...] | None,
        captions: tuple[str, Spec, Any] | None,  # their feature, its spec, the set without its images
    ) -> None:
        self.name = name
        self.files = files
        self.num_classes, self.classes = num_classes, classes
        self.identity = identity
        self._data, self._image, self._label = data, image, label
        self.captions = None if captions is None else captions[1]
        self._captions = captions

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        example = self._example(self._data, index)
        return np.asarray(example[self._image]), None if self._label is None else int(example[self._label])

    def size(self, index: int, /) -> tuple[int, int]:
        height, width = self.read(index)[0].shape[:2]
        return height, width

    def text(self, index: int, /) -> Any:
        assert self._captions is not None, "asked for where there are captions"
        name, _, data = self._captions
        found = self._example(data, index)[name]
        return found.tolist() if isinstance(found, np.ndarray) else found

    def _example(self, data: Any, index: int) -> Any:
        try:
            return data[index]
        except (*DECODE_ERRORS, RuntimeError) as error:  # RuntimeError: ArrayRecord, of a damaged file
            raise DataError(
                f"{self.where(index)}: cannot be read ({one_line(error)}); prepare the data set again"
            ) from error

    def where(self, index: int, /) -> str:
        return f"{self.name} row {index}"


def open_tfds(
    name: str,
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
    """A data set of TensorFlow Datasets that lies prepared on disk as ArrayRecord.

    Args:
      name: its TFDS name, such as "cifar10" or "imagenet_resized/64x64".
      path: the TFDS data folder; None: TFDS's own default (~/tensorflow_datasets, or the environment variable
        TFDS_DATA_DIR).
      split: a TFDS split, slices included: "train", "train[:90%]".
      image_size, channels, num_classes, resize, skip_bad, conditions, text: as in `open_parquet`.

    Raises:
      DataError: no such data set or split, or it is not prepared: with the command that prepares it.

    >>> import tensorflow_datasets as tfds
    >>> with tfds.testing.mock_data(num_examples=5):
    ...     source = open_tfds("cifar10")
    >>> len(source), source.spec["x"].shape, len(source.classes)
    (5, (32, 32, 3), 10)
    """
    import tensorflow_datasets as tfds  # a second of import, for those who use it

    expected = Expected(image_size, channels, num_classes, resize, skip_bad, conditions, text)
    folder = None if path is None else str(Path(path).expanduser())
    shown = f"tfds:{name}"
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        hint = str(error).rpartition("Did you mean: ")[2].partition("?")[0] if "Did you mean: " in str(error) else ""
        raise DataError(
            f"{shown}: TFDS has no data set of this name, nor is one prepared under {folder or 'its data folder'}"
            + (f"; did you mean {hint.strip()}?" if hint else "; see `tfds.list_builders()`")
        ) from error
    except (ValueError, TypeError, ImportError, AssertionError) as error:
        raise DataError(f"{shown}: cannot be opened ({one_line(error)})") from error
    splits = list(builder.info.splits)
    try:
        data = builder.as_data_source(split)
    except NotImplementedError as error:  # what TFDS says when there are no ArrayRecord files
        state = f"is prepared as {builder.info.file_format.value}" if splits else "is not prepared"
        raise DataError(
            f"{shown}: {state} under {builder.data_path}, expected array_record; run: {_command(name, folder, splits)}"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        raise DataError(f"{shown}: no split {split!r}; it has {', '.join(splits)} ({one_line(error)})") from error
    features = builder.info.features
    image = next((key for key, feature in features.items() if isinstance(feature, tfds.features.Image)), None)
    if image is None:
        raise DataError(f"{shown}: no feature is an image; it has {', '.join(features)}")
    captions = expected.caption_name(list(features), shown, "feature")
    spec = None if captions is None else _caption_feature(shown, captions, features[captions])
    label, classes = _label_feature(shown, features, num_classes) if expected.labelled else (None, None)
    lengths = {key: info.shard_lengths for key, info in builder.info.splits.items()}
    identity = digest(np.array([builder.info.full_name, split, str(lengths)]))
    prepared = Path(builder.data_path)
    files = sorted(prepared.iterdir()) if prepared.is_dir() else []
    names = None if label is None else tuple(getattr(features[label], "names", None) or ()) or None
    undecoded = {key: tfds.decode.SkipDecoding() for key in features if isinstance(features[key], tfds.features.Image)}
    held = None
    if captions is not None and spec is not None:
        held = captions, spec, builder.as_data_source(split, decoders=undecoded)
    reader = TFDSReader(data, f"{shown} ({split})", identity, image, label, classes, files, names, held)
    return ImageSource(reader, expected)


def _caption_feature(shown: str, name: str, feature: Any) -> Spec:
    """The spec of a feature of captions: a text, or a sequence of texts."""
    import tensorflow_datasets as tfds

    several = isinstance(feature, tfds.features.Sequence)
    if not isinstance(feature.feature if several else feature, tfds.features.Text):
        raise DataError(
            f"{shown}: feature {name} is {type(feature).__name__}, expected Text or a Sequence of it; set text "
            "(data.text) to the feature of captions, or leave text out of the conditions"
        )
    return Spec((None,) if several else (), "str")


def _label_feature(shown: str, features: Any, expected: int | None) -> tuple[str | None, int | None]:
    """The feature `label` and its number of classes; (None, None) for a set without labels."""
    if "label" not in features:
        if expected is not None:
            raise DataError(
                f"{shown}: no feature label; it has {', '.join(features)}; "
                "leave num_classes out to train without labels"
            )
        return None, None
    feature = features["label"]
    if feature.shape != () or np.dtype(feature.np_dtype).kind not in "iu":
        raise DataError(
            f"{shown}: label is {feature.np_dtype} {feature.shape}, expected one integer; leave num_classes out"
        )
    classes = getattr(feature, "num_classes", None) or expected
    if classes is None:
        raise DataError(f"{shown}: does not tell how many classes it has; set num_classes")
    if expected is not None and classes > expected:
        raise DataError(
            f"{shown}: labels lie in 0..{classes - 1}, expected 0..{expected - 1}; set num_classes={classes}"
        )
    return "label", classes


def _command(name: str, folder: str | None, prepared_otherwise: list[str]) -> str:
    """What prepares the data: the `tfds build` program would need Apache Beam besides TensorFlow."""
    if prepared_otherwise:  # TFDS does not write a second format into the folder of another
        folder = f"{folder or '~/tensorflow_datasets'}_array_record"
    where = "" if folder is None else f"data_dir={folder!r}, "
    build = f"tfds.builder({name!r}, {where}file_format='array_record').download_and_prepare()"
    packages = "tensorflow tensorflow-datasets array_record importlib_resources"
    then = f", then set path (data.path) to {folder}" if prepared_otherwise else ""
    return f'pip install {packages} && python -c "import tensorflow_datasets as tfds; {build}"{then}'
