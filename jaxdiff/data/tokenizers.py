"""Tokenizers: captions to ids of one length, on the host.

    caption -> pieces w_1 ... w_m -> [begin, id(w_1), ..., id(w_m), end, padding, ..., padding]     (1)

A caption that is too long loses its last pieces, never its end. Ours learn their pieces from the training captions: the
ids 0 to 3 are padding, unknown, begin and end; the rest are the pieces by falling frequency, equally frequent ones in
the order of their characters. So a vocabulary is decided by the captions alone, in whatever order they are read.

**The splitting rule.** Text is brought to lower case and Unicode's normal form C. White space, control and format
characters separate, and are left out. Of what remains `Characters` takes each character, and one blank for what
separates; `Words` takes

  - a longest run of letters, marks and digits as one word ("été", "हिन्दी", "3d");
  - every other character (punctuation, symbols, pictures) as a word by itself, with the marks that follow it.

So "don't" is three words, and a caption in a script without blanks is one: use `Characters` or a file there. Padding of
any length means the same to a network, which masks it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import reprlib
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.clip_files import MERGES, VOCABULARY, clip_tokenizer
from jaxdiff.data.foreign import other_kind
from jaxdiff.data.sources import DataError, one_line
from jaxdiff.spec import Condition, Spec, whole

PADDING, UNKNOWN, BEGIN, END = range(4)
_SPECIAL = 4  # so many
_SEPARATORS = {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs"}  # Unicode's categories


class Encoder(Protocol):
    """What makes numbers of captions: a tokenizer, or what keeps the states of a frozen network (with a ``spec``)."""

    def encode(self, texts: Sequence[str]) -> Any:
        """Arrays of B captions, the batch first: one, or a dict of them."""
        ...


class Tokenizer(Encoder, Protocol):
    """Captions to ids. Any object of this form will do; one that a configuration stores is a frozen dataclass.

    Attributes:
      length: ids of each caption, L.
      size: ids are 0 to size - 1.
      padding: the id after a caption's end.
      null: the ids of the empty caption, L of them.
    """

    @property
    def length(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def null(self) -> tuple[int, ...]: ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Ids ``(B, L)`` of B captions, by equation (1)."""
        ...

    def ids(self, text: str) -> list[int]:
        """All ids of one caption, neither cut nor padded."""
        ...

    def unknown_in(self, text: str) -> list[str]:
        """The pieces of a caption that have no id of their own."""
        ...


def spec_of(tokenizer: Any) -> Condition:
    """What a tokenizer, or another `Encoder`, gives of one caption.

    >>> spec_of(Words(4, size=9))
    Spec(shape=(4,), dtype='int32', low=0, high=8, null=(2, 3, 0, 0))
    """
    own: Condition | None = getattr(tokenizer, "spec", None)
    return own or Spec((tokenizer.length,), "int32", 0, tokenizer.size - 1, null=tokenizer.null)


LearnedKind = TypeVar("LearnedKind", bound="Learned")


@dataclasses.dataclass(frozen=True)
class Learned(ABC):
    """What `Words` and `Characters` share: a vocabulary that is learned. Arguments as there."""

    length: int
    size: int
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole("length", self.length, 2)
        whole("size", self.size, _SPECIAL + 1)
        pieces = tuple(self.vocabulary)
        object.__setattr__(self, "vocabulary", pieces)
        if not all(isinstance(piece, str) for piece in pieces) or len(set(pieces)) < len(pieces):
            raise ValueError("vocabulary: expected different texts, each once")
        if len(pieces) > self.size - _SPECIAL:
            raise ValueError(
                f"size: {self.size} ids do not hold {len(pieces)} pieces and the {_SPECIAL} ids of padding, unknown, "
                f"begin and end: raise it to {len(pieces) + _SPECIAL}"
            )

    @abstractmethod
    def pieces(self, text: str) -> list[str]:
        """The pieces of one caption, by the splitting rule."""

    @property
    def padding(self) -> int:
        """0."""
        return PADDING

    @property
    def null(self) -> tuple[int, ...]:
        """Begin, end, padding."""
        return tuple(self.encode([""])[0].tolist())

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: _SPECIAL + number for number, piece in enumerate(self.vocabulary)}

    def noted(self, saved: Any) -> Any:
        """With the vocabulary that a saved tokenizer has learned, where it is of the same kind."""
        return saved if not self.vocabulary and self == _unlearned(saved) else self

    def resolved(self: LearnedKind, texts: Callable[[], Iterable[str]]) -> LearnedKind:
        """With a vocabulary: its own, or that of the training captions."""
        return self if self.vocabulary else self.learned(texts())

    def learned(self: LearnedKind, texts: Iterable[str]) -> LearnedKind:
        """With the vocabulary of some captions: the most frequent pieces, ``size - 4`` at most.

        Raises:
          ValueError: captions without a piece, or one text in the place of several.
        """
        counts = Counter(piece for text in _several(texts) for piece in self.pieces(_checked(text)))
        if not counts:
            raise ValueError("vocabulary: the captions are empty, so there is nothing to learn: give some that are not")
        ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return dataclasses.replace(self, vocabulary=tuple(ordered[: self.size - _SPECIAL]))

    def ids(self, text: str) -> list[int]:
        """Begin, the caption's pieces, end.

        Raises:
          ValueError: before a vocabulary is learned, unless the caption is empty.
        """
        known, pieces = self._ids, self.pieces(_checked(text))
        if pieces and not known:
            raise ValueError(
                "vocabulary: nothing is learned yet, so each piece would be unknown: training learns it of its "
                "captions, and learned([...]) of others"
            )
        return [BEGIN, *(known.get(piece, UNKNOWN) for piece in pieces), END]

    def unknown_in(self, text: str) -> list[str]:
        """The pieces of a caption that the vocabulary lacks."""
        return [piece for piece in self.pieces(_checked(text)) if piece not in self._ids]

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Ids ``(B, length)``, by equation (1)."""
        return _padded([self.ids(text) for text in _several(texts)], self.length, self.padding)


@dataclasses.dataclass(frozen=True)
class Words(Learned):
    """Words of the training captions, by the splitting rule above.

    Args:
      length: ids of a caption, begin and end among them; at least 2.
      size: most ids, the four special ones among them; the network's `Text` takes as many (its ``vocabulary``).
      vocabulary: the words, as training has learned them; (): not yet.

    Raises:
      ValueError: a length or size out of range, or a vocabulary that does not fit.

    >>> words = Words(8, size=100).learned(["A three, above a four.", "a four"])
    >>> words.vocabulary
    ('a', 'four', ',', '.', 'above', 'three')
    >>> words.encode(["a three above a seven", ""]).tolist()
    [[2, 4, 9, 8, 4, 1, 3, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    >>> words.unknown_in("a three above a seven")
    ['seven']
    """

    def pieces(self, text: str) -> list[str]:
        """Words and signs."""
        found: list[str] = []
        last = ""  # what the last piece is, as long as it may go on
        for character, kind in _normal(text):
            if kind in _SEPARATORS:
                last = ""
            elif last and (kind[0] == "M" or (kind[0] in "LN" and last == "word")):
                found[-1] += character
            else:
                found.append(character)
                last = "word" if kind[0] in "LNM" else "sign"
        return found


@dataclasses.dataclass(frozen=True)
class Characters(Learned):
    """Characters of the training captions, lower case, one blank for all that separates. Arguments as `Words`.

    >>> letters = Characters(8, size=20).learned(["Abba", "  a  b"])
    >>> letters.vocabulary, letters.encode(["A  cab"]).tolist()
    (('a', 'b', ' '), [[2, 4, 6, 1, 4, 5, 3, 0]])
    """

    def pieces(self, text: str) -> list[str]:
        """Characters; neither the first nor the last is a blank."""
        spaced = "".join(" " if kind in _SEPARATORS else character for character, kind in _normal(text))
        return list(" ".join(spaced.split()))


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A file of the package `tokenizers`: the `tokenizer.json` of CLIP, T5 and others. `pip install tokenizers`.

    The file says how a caption begins and ends.

    Args:
      path: of the file, or of the folder that holds `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.
      length: ids of a caption, those that the file adds among them: 77 for CLIP.
      padding: the id after the end: of CLIP its end 49407 (Stable Diffusion 1), or 0 (Stable Diffusion 2); of T5 0.
      checksum: of the file, noted when training began; another file is refused.
      special: tokens of its vocabulary that are special beside its own: "!" where that is CLIP's padding.

    Raises:
      ValueError: a length or padding out of range.
      DataError: when it is used: no such file, another one than noted, or the package is not there.
    """

    path: str
    length: int
    padding: int = 0
    checksum: str | None = None
    special: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))
        whole("length", self.length, 2)
        whole("padding", self.padding, 0)

    def noted(self, saved: Any) -> Any:
        """With the checksum that a saved tokenizer has noted, where nothing else is asked for."""
        same = isinstance(saved, TokenizerFile) and (self.length, self.padding) == (saved.length, saved.padding)
        return dataclasses.replace(self, checksum=saved.checksum) if same and self.checksum is None else self

    def resolved(self, texts: Callable[[], Iterable[str]]) -> TokenizerFile:
        """With the checksum of its file."""
        return dataclasses.replace(self, checksum=self._file.checksum)

    @functools.cached_property
    def _file(self) -> _Opened:  # held: its file may be gone by the time a prompt comes
        return _opened(self.path, self.checksum, self.length, self.special)

    def knows(self, word: str) -> bool:
        """Whether a piece or an added token of the file is this word."""
        return self._file.whole.token_to_id(word) is not None

    @property
    def size(self) -> int:
        """The ids of the file, those that were added among them."""
        return int(self._file.whole.get_vocab_size(with_added_tokens=True))

    @property
    def null(self) -> tuple[int, ...]:
        """What the file makes of the empty caption."""
        return tuple(self.encode([""])[0].tolist())

    def ids(self, text: str) -> list[int]:
        """All ids of one caption."""
        found: list[int] = self._file.whole.encode(_checked(text)).ids
        return found

    def unknown_in(self, text: str) -> list[str]:
        """The parts of a caption that the file has no id for; a file that falls back on bytes knows all."""
        opened = self._file
        found = opened.whole.encode(_checked(text))
        places = zip(found.ids, found.special_tokens_mask, found.offsets, strict=True)
        return [text[first:end] for number, special, (first, end) in places if number == opened.unknown and not special]

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Ids ``(B, length)``; the file's own rule cuts, and keeps its end."""
        return _padded(
            [self._file.cutting.encode(_checked(text)).ids for text in _several(texts)], self.length, self.padding
        )


def _unlearned(tokenizer: Any) -> Any:
    return dataclasses.replace(tokenizer, vocabulary=()) if isinstance(tokenizer, Learned) else tokenizer


def _normal(text: str) -> Iterator[tuple[str, str]]:
    """The characters of a text in its normal form, each with its category in Unicode."""
    return ((each, unicodedata.category(each)) for each in unicodedata.normalize("NFC", text.lower()))


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"text: a caption is text, got {reprlib.repr(text)}")
    return text


def _several(texts: Iterable[str]) -> Iterable[str]:
    """Captions; refused is one by itself, whose letters would be taken for captions."""
    if isinstance(texts, str):
        raise ValueError(f"texts: expected a list of captions, got one text: give [{reprlib.repr(texts)}]")
    return texts


def _padded(captions: Sequence[Sequence[int]], length: int, padding: int) -> NDArray[np.int32]:
    """Equation (1): each cut before its last id, and padded."""
    rows = np.full((len(captions), length), padding, np.int32)
    for row, ids in zip(rows, captions, strict=True):
        kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        row[: len(kept)] = kept
    return rows


class _Opened(NamedTuple):
    whole: Any
    cutting: Any
    unknown: int | None
    checksum: str


@functools.lru_cache(maxsize=8)
def _opened(path: str, checksum: str | None, length: int, special: tuple[str, ...] = ()) -> _Opened:
    """A file of the package `tokenizers`, without its own padding: as it is, and cutting to a length."""
    try:
        package = importlib.import_module("tokenizers")
    except ImportError as error:
        raise DataError("tokenizer: a TokenizerFile needs the package tokenizers: pip install tokenizers") from error
    file = Path(path).expanduser()
    folder, file = file, (file / "tokenizer.json" if file.is_dir() else file)
    of_clip = not file.exists() and (folder / VOCABULARY).is_file()
    try:
        content = (
            b"".join((folder / name).read_bytes() for name in (VOCABULARY, MERGES)) if of_clip else file.read_bytes()
        )
        found = hashlib.sha256(content).hexdigest()[:16]
        make = (
            (lambda: clip_tokenizer(package, folder)) if of_clip else (lambda: package.Tokenizer.from_buffer(content))
        )
        both = [make() for _ in range(2)]
    except OSError as error:
        raise DataError(f"tokenizer.path: {error.filename or file}: {error.strerror}") from error
    except Exception as error:  # the package raises Exception itself
        if of_clip:
            raise DataError(f"tokenizer.path: {folder} is no tokenizer of CLIP: {one_line(error)}") from error
        why = other_kind(content[:72]) or f"is no file of the package tokenizers: {one_line(error)}"
        raise DataError(f"tokenizer.path: {file} {why}") from error
    if checksum not in (None, found):
        raise DataError(f"tokenizer.path: {file} is another file than this run began with: bring that one back")
    for each in both:
        each.add_special_tokens([package.AddedToken(name, normalized=False) for name in special])
        each.no_padding()
        each.no_truncation()
    both[1].enable_truncation(length)
    model = json.loads(both[0].to_str())["model"]
    unknown = model.get("unk_id")
    if unknown is None and model.get("unk_token") is not None:
        unknown = both[0].token_to_id(model["unk_token"])
    return _Opened(both[0], both[1], unknown, found)
