"""A tokenizer with words beside its file's, which an encoder has learned afterwards.

    text = piece, word, piece, ...  ->  [begin, ids(piece), first, first + 1, ..., ids(piece), ..., end]     (1)

The longest word that begins at a place is taken, whatever the case of its letters, as CLIP's texts are of lower case.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.tokenizers import TokenizerFile


@dataclass(frozen=True)
class AddedWord:
    """A word, and its ids.

    Args:
      word: as it stands in a text.
      first: its first id.
      ids: how many, one after the other.
    """

    word: str
    first: int
    ids: int = 1


@dataclass(frozen=True)
class WithWords:
    """A tokenizer with words more: equation (1).

    Args:
      tokenizer: the file's.
      words: beside it.

    Raises:
      ValueError: no word, or an empty one.
    """

    tokenizer: TokenizerFile
    words: tuple[AddedWord, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        if not self.words or not all(each.word for each in self.words):
            raise ValueError(f"words: expected some that are not empty, got {self.words}")

    def noted(self, saved: Any) -> Any:
        """With the checksum that saved ones have noted, where they are of the same words."""
        if not isinstance(saved, WithWords) or saved.words != self.words:
            return self
        return dataclasses.replace(self, tokenizer=self.tokenizer.noted(saved.tokenizer))

    def resolved(self, texts: Callable[[], Iterable[str]]) -> WithWords:
        """With the checksum of the file."""
        return dataclasses.replace(self, tokenizer=self.tokenizer.resolved(texts))

    @property
    def path(self) -> str:
        """Of the file."""
        return self.tokenizer.path

    @property
    def length(self) -> int:
        """Ids of a caption."""
        return self.tokenizer.length

    @property
    def size(self) -> int:
        """Ids are 0 to size - 1."""
        return max(self.tokenizer.size, *(each.first + each.ids for each in self.words))

    @property
    def padding(self) -> int:
        """The id after the end."""
        return self.tokenizer.padding

    @property
    def null(self) -> tuple[int, ...]:
        """The ids of the empty caption."""
        return self.tokenizer.null

    @functools.cached_property
    def _split(self) -> re.Pattern[str]:
        longest = sorted((re.escape(each.word) for each in self.words), key=len, reverse=True)
        return re.compile(f"({'|'.join(longest)})", re.IGNORECASE)

    def ids(self, text: str) -> list[int]:
        """All ids of one caption, neither cut nor padded."""
        known = {each.word.lower(): range(each.first, each.first + each.ids) for each in self.words}
        begin, *_, end = self.tokenizer.ids("")
        found = [begin]
        for at, piece in enumerate(self._split.split(text)):
            found += known[piece.lower()] if at % 2 else self.tokenizer.ids(piece)[1:-1]
        return [*found, end]

    def knows(self, word: str) -> bool:
        """Whether a word has an id of its own."""
        return self.tokenizer.knows(word) or word.lower() in {each.word.lower() for each in self.words}

    def unknown_in(self, text: str) -> list[str]:
        """The parts of a caption that have no id."""
        return [part for piece in self._split.split(text)[::2] for part in self.tokenizer.unknown_in(piece)]

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Ids ``(B, length)``; a caption that is too long loses its last ids but the end."""
        rows = np.full((len(texts), self.length), self.padding, np.int32)
        for row, ids in zip(rows, map(self.ids, texts), strict=True):
            kept = ids if len(ids) <= self.length else [*ids[: self.length - 1], ids[-1]]
            row[: len(kept)] = kept
        return rows
