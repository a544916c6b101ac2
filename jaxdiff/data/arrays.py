"""Sources over arrays: the embedded digits, `.npz` files, arrays at hand.

Arrays are data of any shape, the records first: uint8 is bytes 0..255 (images, and what is stored like them), floats
are real values. An array stored uncompressed in its `.npz` (`np.savez`) is memory-mapped and read page by page; a
compressed one (`np.savez_compressed`) is held in memory. Captions are an array of strings (unicode, or bytes in UTF-8),
(N,), or (N, m) for m captions a record.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxdiff.data.expected import ANYTHING, Expected
from jaxdiff.data.files import find_split, given_path
from jaxdiff.data.labels import check_labels, label_spec
from jaxdiff.data.maps import MAP, check_size, is_map
from jaxdiff.data.npz import header_of, keys_of, read_array
from jaxdiff.data.readers import digested
from jaxdiff.data.sources import DataError, Records, digest, fitting, spread, texts_fitting
from jaxdiff.data.transforms import center_crop_nearest, center_crop_resize
from jaxdiff.spec import Spec, as_array

_DIGITS = Path(__file__).with_name("digits.npz")
_DATA_KEYS = ("images", "image", "x", "points", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets", "arr_1")
_CLASS_KEYS = ("classes", "class_names")


class ArraySource:
    """A `Source` over arrays, in memory or mapped: the data ``"x"`` and any number of conditions.

    Args:
      arrays: ``(N, ...)`` by name.
      name: for messages.
      expected: what was asked for.
      low: least value of the data, where they are floats; None: no bound.
      high: largest value.
      classes: names of the classes.
      mapped: the file that arrays are mapped from, and their keys in it.

    Raises:
      DataError: arrays that are empty, of different lengths, of other types, or not what was asked for.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        name: str,
        expected: Expected = ANYTHING,
        low: float | None = None,
        high: float | None = None,
        classes: Sequence[str] | None = None,
        mapped: tuple[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.name, self._mapped = name, mapped
        self._arrays = {key: _as_images(array) if key == "x" else array for key, array in arrays.items()}
        x = self._arrays["x"]
        if x.ndim < 2:
            hint = "; x[:, None] makes each number a record" if x.ndim else ""
            raise DataError(f"{name}: x has shape {x.shape}, expected (N, ...): one row a record{hint}")
        if not len(x):
            raise DataError(f"{name}: the set is empty, expected at least one record")
        self._size = _check_data(name, x, expected)
        self.spec = {"x": _spec(name, "x", x, low, high)}
        if self._size is not None:
            self.spec["x"] = Spec((self._size, self._size, x.shape[3]), "uint8", 0, 255)
        count = expected.num_classes or (len(classes) if classes else None)
        if expected.num_classes is not None and "label" not in arrays:
            raise DataError(
                f"{name}: has no labels, num_classes={expected.num_classes} was asked; "
                "leave num_classes out to train without labels"
            )
        for key, array in arrays.items():
            if key == "label":
                self._arrays[key], found = check_labels(
                    array, count, records=len(x), name=name, where=self.where, strict=not expected.skip_bad
                )
                self.spec[key] = label_spec(found)
            elif key != "x":
                if array.shape[:1] != x.shape[:1]:
                    raise DataError(
                        f"{name}: {key} has shape {array.shape}, expected one row for each of {len(x)} records"
                    )
                if key == "text" and array.dtype.kind in "USO":
                    self.spec[key] = self._text_spec(array)
                    continue
                self.spec[key] = _spec(name, key, array, None, None)
                if is_map(key, array) and x.dtype == np.uint8 and x.ndim == 4:
                    check_size(array.shape[1:], x.shape[1:], self.where(0))
                    self.spec[key] = dataclasses.replace(self.spec[key], shape=self.spec["x"].shape[:2])
                if array.dtype.kind == "f" and array.ndim < 3 and not expected.skip_bad:  # larger ones as they are read
                    fitting(name, key, self.spec[key], array, np.arange(len(array)))
        self.classes = None if classes is None else tuple(str(each) for each in classes)
        some = spread(len(x), 64)
        numbers = [key for key in sorted(self._arrays) if key not in ("x", "label") and not self.spec[key].is_text]
        others = [self._arrays[key][some] for key in numbers]
        if "text" in self.spec and self.spec["text"].is_text:
            every = digested(len(x))
            chosen = self._arrays["text"][every] if expected.skip_bad else self.texts(every)
            others.append(np.frombuffer(repr(chosen.tolist()).encode(), "u1"))
        labels = [self._arrays["label"].astype(np.int64)] if "label" in arrays else []
        identity = digest(x[:: max(1, len(x) // 16)], *labels, *others)
        counted = int(self.spec["label"].high or 0) + 1 if labels else None
        self.fingerprint = digest(np.frombuffer(repr((len(x), self.spec["x"].shape, counted, identity)).encode(), "u1"))

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: a mapped array would be copied whole, so each opens the file again.
        kept = {key: array for key, array in self._arrays.items() if not isinstance(array, np.memmap)}
        return {**self.__dict__, "_arrays": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._mapped:
            path, keys = self._mapped
            lost = [key for key in self.spec if key not in self._arrays]
            again = {key: read_array(path, keys[key]) for key in lost}
            self._arrays |= {key: _as_images(array) if key == "x" else array for key, array in again.items()}

    def __len__(self) -> int:
        return len(self._arrays["x"])

    def take(self, indices: NDArray[np.int64], /) -> Records:
        with np.errstate(over="ignore"):  # `fitting` tells of what is then infinite
            found = {
                key: self.texts(indices) if spec.is_text else self._arrays[key][indices].astype(spec.dtype, copy=False)
                for key, spec in self.spec.items()
            }
        if self._size is not None:
            found["x"] = np.stack([center_crop_resize(image, self._size) for image in found["x"]])
            if MAP in found and is_map(MAP, found[MAP]):
                found[MAP] = np.stack([center_crop_nearest(ids, self._size) for ids in found[MAP]])
        return {key: np.ascontiguousarray(array) for key, array in found.items()}

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The captions of several records."""
        return texts_fitting(self.name, "text", self.spec["text"], self._arrays["text"][indices], indices)

    def _text_spec(self, array: NDArray[Any]) -> Spec:
        if array.ndim > 2:
            raise DataError(f"{self.name}: text has shape {array.shape}, expected (N,), or (N, m) for m captions each")
        several = array.ndim == 2 or (array.dtype == object and any(isinstance(row, list | tuple) for row in array))
        return Spec((None,) if several else (), "str")

    def where(self, index: int) -> str:
        """The place of a record, for messages."""
        return f"{self.name} row {index}"


def _as_images(x: NDArray[Any]) -> NDArray[Any]:
    return x[..., None] if x.dtype == np.uint8 and x.ndim == 3 else x


def _check_data(name: str, x: NDArray[Any], expected: Expected) -> int | None:
    """Refuses what was not asked for; gives the side to bring images to, where they have another."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(f"{name}: x is {x.dtype}, expected floats, or uint8 in 0..255 (images): cast it")
    channels, size = expected.channels, expected.image_size
    images = x.dtype == np.uint8 and x.ndim == 4
    if images and channels != x.shape[3] and x.shape[1] in (1, 3, 4) and min(x.shape[2:]) > 4:
        raise DataError(
            f"{name}: images have shape {x.shape}, channels first as it seems; "
            f"store images.transpose(0, 2, 3, 1), or set channels={x.shape[3]} (data.channels) if they are not"
        )
    if channels not in (None, x.shape[-1]):
        has = f"{'images have' if images else 'x has'} {x.shape[-1]} channel{'s' * (x.shape[-1] > 1)}"
        wanted = f"{channels} channel{'s' * (channels != 1)}"
        how = f"set channels={x.shape[-1]} (data.channels) or convert them"
        raise DataError(f"{name} row 0: {has}, expected {wanted}; {how}")
    if size is None or x.shape[1:3] == (size, size):
        return None
    if x.ndim != 4:
        raise DataError(f"{name}: image_size is of images (N, H, W, C), and x has shape {x.shape}; leave it out")
    height, width = x.shape[1:3]
    if not expected.resize or x.dtype != np.uint8:
        how = "set resize (data.resize) to crop and resize, or " if x.dtype == np.uint8 else ""
        raise DataError(f"{name} row 0: image is {height}x{width}, expected {size}x{size}; {how}leave image_size out")
    return size


def _spec(name: str, key: str, array: NDArray[Any], low: float | None, high: float | None) -> Spec:
    shape, kind = array.shape[1:], array.dtype.kind
    if array.dtype == np.uint8 and (key == "x" or shape):
        if low is not None or high is not None:
            raise DataError(f"{name}: low and high are of float data, and {key} is uint8, 0..255: leave them out")
        return Spec(shape, "uint8", 0, 255)
    if kind == "f":
        try:
            return Spec(shape, "float32", low, high)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
    if kind not in "iub":
        raise DataError(f"{name}: {key} is {array.dtype}, expected numbers; leave it out")
    bounds = (None, None) if shape else (int(array.min()), int(array.max()))
    return Spec(shape, "int32", *bounds)


def from_arrays(
    x: ArrayLike,
    label: ArrayLike | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    **conditions: ArrayLike,
) -> ArraySource:
    """A source over arrays at hand.

    Args:
      x: the data, uint8 or floats, ``(N, ...)``; uint8 ``(N, H, W)`` are grey images.
      label: integers ``(N,)`` or ``(N, 1)`` in [0, num_classes), or None.
      low: least value of float data; with ``high``, what is drawn is clipped to the two. None: no bound.
      high: largest value of float data.
      num_classes: None: as many as ``classes``, or the largest label + 1.
      classes: names of the classes, in order of their labels.
      name: for messages.
      conditions: further conditions by name, ``(N, ...)``; ``text`` are captions: N of them, or N lists of them.

    Raises:
      DataError: for other shapes or types.

    >>> source = from_arrays(np.zeros((5, 8, 8, 3), np.uint8), np.arange(5), width=np.ones((5, 1), np.float32))
    >>> len(source), {name: (spec.shape, spec.dtype) for name, spec in source.spec.items()}
    (5, {'x': ((8, 8, 3), 'uint8'), 'label': ((), 'int32'), 'width': ((1,), 'float32')})
    """
    arrays = {"x": x, **({} if label is None else {"label": label}), **conditions}
    expected = Expected(num_classes=num_classes)
    try:
        held = {key: _as_captions(array) if key == "text" else as_array(key, array) for key, array in arrays.items()}
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    if classes is not None and label is None:
        raise DataError(f"{name}: classes name the labels, and there are none: give label=..., or leave classes out")
    return ArraySource(held, name=name, expected=expected, low=low, high=high, classes=classes)


def _as_captions(value: Any) -> NDArray[Any]:
    """Texts, or lists of texts, one a record, as objects; what begins with a number is tokens."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(rows, list | tuple):
        raise ValueError(f"text is {reprlib.repr(value)}, expected a list of captions, one a record")
    first = rows[0] if rows else 0
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, int | float):
        return as_array("text", value)
    held = np.empty(len(rows), object)
    held[:] = rows
    return held


def open_digits(
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
) -> ArraySource:
    """The 1,797 handwritten digits (8x8, grey, ten classes) that lie in the package: no download.

    Stored values v = 0..16 become grey levels u = round(255 v / 16); v = round(16 u / 255) recovers them. The split is
    fixed and stratified: 1,438 for training, 359 for tests (DIGITS_LICENSE.md: origin, licence, how the file was made).

    Args:
      path: there is none to give.
      split: "train", "test" or "all".
      image_size, channels, num_classes, resize, skip_bad, conditions, text: as in `open_parquet`.

    >>> source = open_digits()
    >>> len(source), source.spec["x"].shape, len(source.classes)
    (1438, (8, 8, 1), 10)
    >>> first = source.take(np.array([0]))["x"][0]
    >>> np.round(first[0, :, 0] * (16 / 255)).astype(int).tolist()
    [0, 0, 5, 13, 9, 1, 0, 0]
    """
    if path is not None:
        raise DataError(
            f"digits: lie in the package, got path={str(path)!r}; leave the path out, or choose another source"
        )
    if text is not None:
        raise DataError(f"digits: have no captions, got text={text!r}; leave it out, or choose another source")
    if split not in ("train", "test", "all"):
        raise DataError(f"digits: no split {split!r}; it has train, test, all")
    with np.load(_DIGITS, allow_pickle=False) as file:
        values, labels, test = file["images"], file["labels"], file["test"]
    chosen = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
    grey = np.rint(values[chosen] * (255 / 16)).astype(np.uint8)
    expected = Expected(image_size, channels, num_classes, resize, skip_bad, conditions, text)
    arrays = {"x": grey, **({"label": labels[chosen]} if expected.labelled else {})}
    return ArraySource(arrays, name="digits", expected=expected, classes="0123456789" if expected.labelled else None)


def open_npz(
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
) -> ArraySource:
    """Arrays from an `.npz` file: images, points, latents, signals, and what they are conditioned on.

    The data, uint8 or floats ``(N, ...)``, lie under the key images, image, x, points, data or arr_0; integer labels,
    which may be absent, under labels, label, y, targets or arr_1; either with the split before or after it
    (`train_images`, `x_train`). Captions are strings under text or caption, (N,), or (N, m) for m of each. Every other
    array of numbers with N rows is a condition of its own name. Text under classes or class_names names the classes.

    Args:
      path: the file, or a folder that holds `train.npz`, `test.npz`.
      split: which of them. A file without splits is its own only one: "train", "all", or the name that the file begins
        with.
      image_size, channels, num_classes, resize, skip_bad, conditions, text: as in `open_parquet`.

    Raises:
      DataError: the file or split is missing, damaged, or not what was asked for.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/set.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 1, 1, 2]))
    ...     source = open_npz(folder + "/set.npz")
    ...     len(source), source.spec["x"].shape, source.spec["label"].high
    (4, (8, 8, 1), 2)
    """
    expected = Expected(image_size, channels, num_classes, resize, skip_bad, conditions, text)
    path = given_path(path, "npz", expected.listed("an .npz file with images (N, H, W, C) uint8", "labels (N,)"))
    if path.is_dir():
        files = find_split(path, split, "npz")
        if len(files) > 1:
            raise DataError(
                f"{path}: split {split!r} is {len(files)} .npz files, expected one; point the path at one of them"
            )
        path = files[0]
    keys = keys_of(path)
    image_key, inside = _find(keys, _DATA_KEYS, split), True
    if image_key is None:
        if split_keys := [
            key for key in keys if any(f in key for f in _DATA_KEYS[:3]) and ("train" in key or "test" in key)
        ]:
            raise DataError(f"{path}: no split {split!r}; it has the arrays {', '.join(split_keys)}")
        find_split(path, split, "npz")  # a file without splits inside: is it the one that was asked for?
        image_key, inside = _find(keys, _DATA_KEYS, None), False
    if image_key is None:
        raise DataError(
            f"{path}: no array of images; it has {', '.join(keys) or 'none'}, expected one of {', '.join(_DATA_KEYS)}"
        )
    found = {"x": image_key}
    label_key = _find(keys, _LABEL_KEYS, split if inside else None)
    named = {"label" if key == label_key else _without(key, split) if inside else key: key for key in keys}
    caption = expected.caption_name([str(name) for name in named if name], str(path), "array")
    if caption is not None and header_of(str(path), named[caption])[1].kind in "USO":
        named["text"] = named.pop(caption)
    elif caption is not None and text is not None:
        raise DataError(f"{path}: array {named[caption]} is of numbers; set text (data.text) to an array of strings")
    for name, key in named.items():
        other = key in (image_key, *_CLASS_KEYS) or name is None or name in _DATA_KEYS
        if not other and (expected.conditions is None or name in expected.conditions):
            found[str(name)] = key
    rows = header_of(str(path), image_key)[0][:1]
    for name, key in [*found.items()]:
        shape, kind = header_of(str(path), key)
        captions = name == "text" and kind.kind in "USO"  # of another number, or objects: refused below
        if name not in ("x", "label") and not captions and (shape[:1] != rows or kind.kind not in "iufb"):
            del found[name]
    arrays = {name: read_array(str(path), key) for name, key in found.items()}
    names = next((read_array(str(path), key) for key in _CLASS_KEYS if key in keys and "label" in arrays), None)
    classes = None if names is None else [str(each) for each in names]
    return ArraySource(arrays, name=str(path), expected=expected, classes=classes, mapped=(str(path), found))


def _find(keys: list[str], names: tuple[str, ...], split: str | None) -> str | None:
    forms = [name if split is None else form for name in names for form in (f"{name}_{split}", f"{split}_{name}")]
    return next((form for form in forms if form in keys), None)


def _without(key: str, split: str) -> str | None:
    """The name of an array of this split; None for one of another."""
    for name in (key.removesuffix(f"_{split}"), key.removeprefix(f"{split}_")):
        if name != key:
            return name
    return None
