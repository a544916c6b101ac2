"""What a source of records is, and the one check of what it gives.

A source is anything with `spec`, a length and `take`. The records come as they are stored: bytes stay bytes, and a
codec (`jaxdiff.codecs`) makes of them what a network sees. `take` of this module reads from a source and checks the
records against its spec; everything that reads a source reads it through there.
"""

from __future__ import annotations

import hashlib
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from jaxdiff.spec import Spec

Records = dict[str, NDArray[Any]]
Say = Callable[[str], None]
_DIGESTED = 64  # records, where a source has no fingerprint of its own
_CAPTIONS = 1024  # read at a time


class DataError(ValueError):
    """Data that are missing, damaged or not what was asked for. The message is one line, for the user."""


class Source(Protocol):
    """Records by number, as they are stored. No base class is needed: any object with these three is a source.

    It may have besides:
      name: for messages; else the name of its class.
      fingerprint: text that is equal for equal records in equal order; else `fingerprint` makes one.
      classes: names of the classes, in order of their labels.
      files: the files that are decoded at each access; then the set can be decoded once (`decode_once`).
      texts: a method of the same argument as `take` that gives ``take(...)["text"]`` alone, for `captions`.
      sizes, at: methods of a set whose pictures have many sizes: `jaxdiff.data.in_buckets` says which.

    Attributes:
      spec: of one record: the data ``"x"``, and each condition by its name, such as ``"label"``.

    >>> class Ramps:
    ...     spec = {"x": Spec((16,), "float32")}
    ...     def __len__(self):
    ...         return 100
    ...     def take(self, indices):
    ...         return {"x": np.float32(indices)[:, None] * np.linspace(0, 1, 16, dtype=np.float32)}
    >>> take(Ramps(), [3, 5])["x"].shape
    (2, 16)
    """

    @property
    def spec(self) -> Mapping[str, Spec]: ...

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """The records of these numbers, the batch first."""
        ...


def name_of(source: Source) -> str:
    """A source's name, for messages."""
    return str(getattr(source, "name", type(source).__name__))


def classes_of(source: Source) -> tuple[str, ...] | None:
    """The names of a source's classes in order of their labels, where it knows them."""
    names: Sequence[str] | None = getattr(source, "classes", None)
    return None if names is None else tuple(names)


def num_classes(source: Source) -> int | None:
    """How many classes a source's labels tell apart; None without labels.

    >>> from jaxdiff.data import open_digits
    >>> num_classes(open_digits())
    10
    """
    label = source.spec.get("label")
    return None if label is None or label.high is None else int(label.high) + 1


def take(source: Source, indices: ArrayLike) -> Records:
    """Records of a source, checked against its spec.

    Args:
      source: where they come from.
      indices: (B,) whole numbers, at least one.

    Returns:
      Arrays ``(B, ...)`` by name, of the types that the spec names; text as objects ``(B,)``: str, or a tuple of str
      where a record has several.

    Raises:
      DataError: an array is missing, or has another shape, kind of number or range than the spec says; a condition that
        is not finite; text that `as_text` refuses. NaN in x passes: training skips it (`jaxdiff.train.guard`).

    >>> from jaxdiff.data import open_digits
    >>> records = take(open_digits(), [4, 2, 4])
    >>> records["x"].shape, str(records["x"].dtype), records["label"].tolist()
    ((3, 8, 8, 1), 'uint8', [4, 2, 4])
    """
    chosen = np.asarray(indices, np.int64)
    found = source.take(chosen)
    name = name_of(source)
    if not isinstance(found, Mapping):
        raise DataError(f"{name}: take gives {type(found).__name__}, expected a dict with {', '.join(source.spec)}")
    if missing := [key for key in source.spec if key not in found]:
        raise DataError(
            f"{name}: take gives {', '.join(found) or 'nothing'}, and its spec names {missing[0]} too; "
            "return it, or leave it out of the spec"
        )
    if unknown := [key for key in found if key not in source.spec]:
        raise DataError(f"{name}: take gives {unknown[0]}, which its spec does not name; add it to the spec")
    return {
        key: texts_fitting(name, key, spec, found[key], chosen)
        if spec.is_text
        else fitting(name, key, spec, np.asarray(found[key]), chosen)
        for key, spec in source.spec.items()
    }


def fitting(name: str, key: str, spec: Spec, array: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """One array of some records as its spec says, for `take`.

    Args:
      name: of the source; key: of the array; spec: its own.
      array: ``(B, ...)``.
      indices: the records' numbers.

    Raises:
      DataError: as `take`.
    """
    wanted = (len(indices), *spec.shape)
    same = array.ndim == len(wanted) and all(w in (None, s) for w, s in zip(wanted, array.shape, strict=True))
    if not same:
        raise DataError(
            f"{name}: {key} of records {_listed(indices)} has shape {array.shape}, expected "
            f"({', '.join('any' if w is None else str(w) for w in wanted)}): one row a record, each as its spec says"
        )
    kind = np.dtype(spec.dtype)
    if array.dtype.kind != kind.kind and not (array.dtype.kind in "iu" and kind.kind in "iu"):
        raise DataError(
            f"{name}: {key} of records {_listed(indices)} is {array.dtype}, its spec says {kind}; "
            f"return {key}.astype({str(kind)!r}), or change the spec"
        )
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(kind, copy=False)
        if key != "x" and not np.isfinite(array).all():
            row = indices[int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))]
            raise DataError(f"{name} row {row}: {key} {not_finite(kind)}")
    low, high = spec.low, spec.high
    if kind.kind in "iu" and array.dtype != kind:
        bounds = np.iinfo(kind)
        low = bounds.min if low is None else max(low, bounds.min)
        high = bounds.max if high is None else min(high, bounds.max)
    if kind == np.uint8 and array.dtype == kind and (low or 0) <= 0 and (high is None or high >= 255):
        return array
    bad = np.zeros(len(array), bool)
    for outside in ([] if low is None else [array < low]) + ([] if high is None else [array > high]):
        outside = outside if spec.null is None else outside & (array != spec.null)
        bad |= outside.reshape(len(array), -1).any(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        value = array[row] if array.ndim == 1 else f"between {array[row].min():g} and {array[row].max():g}"
        also = "" if spec.null is None else f" or {spec.null}"
        raise DataError(f"{name} row {indices[row]}: {key} {value}, expected {_range(low, high)}{also}; fix the record")
    return array if array.dtype == kind else array.astype(kind)


def texts_fitting(name: str, key: str, spec: Spec, found: Any, indices: NDArray[np.int64]) -> NDArray[Any]:
    """The text of some records as their spec says, for `take`: objects ``(B,)``, str or tuple of str.

    Raises:
      DataError: as `take`; a record that has a list of texts, and none in it.
    """
    rows = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(rows, list | tuple) or len(rows) != len(indices):
        has = f"has {len(rows)} rows" if isinstance(rows, list | tuple) else f"is {type(found).__name__}"
        raise DataError(f"{name}: {key} of records {_listed(indices)} {has}, expected {len(indices)}: one row a record")
    found = np.empty(len(indices), object)
    for row, (value, index) in enumerate(zip(rows, indices, strict=True)):
        found[row] = as_caption(value, f"{name} row {index}: {key}", bool(spec.shape))
    return found


def as_caption(value: Any, where: str, several: bool) -> str | tuple[str, ...]:
    """The text of a record, or its several texts; where there are several, one alone is a list of one.

    Raises:
      DataError: as `as_text`; of several: none.
    """
    if not several:
        return as_text(value, where)
    if not isinstance(value, list | tuple | np.ndarray):
        return (as_text(value, where),)
    if not len(value):
        raise DataError(f"{where} is an empty list, expected at least one text; store [''] for none")
    return tuple(as_text(each, where) for each in value)


def as_text(value: Any, where: str) -> str:
    """A text of a set: str, or bytes in UTF-8. The empty one is good.

    Args:
      value: what is stored.
      where: the record and the name of the text, for messages.

    Raises:
      DataError: it is missing or of another type, is not UTF-8 or holds the character NUL.

    >>> as_text("grün".encode(), "cat.txt"), as_text("", "dog.txt")
    ('grün', '')
    >>> as_text("grün".encode("latin-1"), "cat.txt")
    Traceback (most recent call last):
    jaxdiff.data.sources.DataError: cat.txt is not UTF-8 (byte 2 is 0xfc): save it as UTF-8
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            found = f"byte {error.start} is 0x{error.object[error.start]:02x}"
            raise DataError(f"{where} is not UTF-8 ({found}): save it as UTF-8") from error
    if not isinstance(value, str):
        has = "is missing" if value is None else f"is {reprlib.repr(value)}"
        raise DataError(f"{where} {has}, expected a text; store an empty one for none")
    if "\0" in value:
        raise DataError(f"{where} holds the character NUL (at {value.index(chr(0))}), which is no text: remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half of a surrogate pair, which is no text: save it as UTF-8") from error
    return str(value)


def texts(source: Source, indices: ArrayLike) -> NDArray[Any]:
    """The texts of some records, without what else they hold where the source has a method `texts`.

    Returns:
      Objects ``(B,)``: str, or a tuple of str where a record has several.

    Raises:
      DataError: the source has none, or one that `as_text` refuses.
    """
    spec, chosen = source.spec.get("text"), np.asarray(indices, np.int64)
    if spec is None or not spec.is_text:
        has = ", ".join(name for name in source.spec if name != "x") or "none"
        raise DataError(f"{name_of(source)}: has no captions; its conditions: {has}")
    own = getattr(source, "texts", None)
    if own is None:
        return take(source, chosen)["text"]
    return texts_fitting(name_of(source), "text", spec, own(chosen), chosen)


def captions(source: Source) -> Iterator[str]:
    """Every caption of a source once, in order of the records; of several, each.

    No image is decoded where the source has a method `texts`, as those that read files do.

    Raises:
      DataError: as `texts`.

    >>> from jaxdiff.data import from_arrays
    >>> list(captions(from_arrays(np.zeros((3, 2), np.float32), text=["a cat", "", "a dog"])))
    ['a cat', '', 'a dog']
    """
    for start in range(0, len(source), _CAPTIONS):
        for text in texts(source, np.arange(start, min(start + _CAPTIONS, len(source)))):
            yield from ((text,) if isinstance(text, str) else text)


def not_finite(kind: DTypeLike) -> str:
    """What is said of a record that is NaN or infinite, or that is when its numbers are made ``kind``.

    >>> not_finite("float32")
    'is not finite in float32, which ends at 3.4e+38: fix the record, scale it, or leave it out'
    """
    largest = float(np.finfo(kind).max)
    return f"is not finite in {np.dtype(kind)}, which ends at {largest:.2g}: fix the record, scale it, or leave it out"


def _listed(indices: NDArray[np.int64]) -> str:
    shown = ", ".join(str(index) for index in indices[:3])
    return shown + (", ..." if len(indices) > 3 else "")


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low:g}" if high is None else f"at most {high:g}"
    return f"{low:g}..{high:g}"


def fingerprint(source: Source) -> str:
    """A source's own fingerprint; or one of its length, its spec and some of its records.

    >>> class Zeros:
    ...     spec = {"x": Spec((2,))}
    ...     def __len__(self): return 9
    ...     def take(self, indices): return {"x": np.zeros((len(indices), 2), np.float32)}
    >>> fingerprint(Zeros()) == fingerprint(Zeros()), len(fingerprint(Zeros()))
    (True, 24)
    """
    own = getattr(source, "fingerprint", None)
    if own is not None:
        return str(own)
    records = take(source, spread(len(source), _DIGESTED)) if len(source) else {}
    arrays = [
        np.array([repr(array.tolist())]) if array.dtype == object else array for _, array in sorted(records.items())
    ]
    return digest(np.array([repr((len(source), sorted(source.spec.items())))]), *arrays)


def spread(records: int, most: int) -> NDArray[np.int64]:
    """The numbers of at most so many records, evenly over all of them.

    >>> spread(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, records - 1, min(records, most)).round().astype(np.int64))


def digest(*arrays: NDArray[np.generic]) -> str:
    """Hexadecimal hash of the bytes of some arrays."""
    state = hashlib.blake2b(digest_size=12)
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
