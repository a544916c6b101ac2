"""A tokenizer with words beside its file's, which an encoder has learned afterwards.

    text = piece, word, piece, ...  ->  [begin, ids(piece), first, first + 1, ..., ids(piece), ..., end]     (1)

The longest word that begins at a place is taken, whatever the case of its letters, as CLIP's texts are of lower case.

In a tokenizer's folder a word S of k ids is k added tokens, as diffusers' ``load_textual_inversion`` names them; they
stand in `tokenizer_config.json` (``added_tokens_decoder``), older ones in `added_tokens.json`, and in `tokenizer.json`
where that is there:

    S -> first,    S_1 -> first + 1,    ...,    S_(k-1) -> first + k - 1                                          (2)
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.clip_files import CONFIG, VOCABULARY, read_object
from jaxdiff.data.tokenizers import TokenizerFile

WHOLE, _ADDED = "tokenizer.json", "added_tokens.json"


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


def words_of(folder: Path) -> tuple[AddedWord, ...]:
    """The words that a folder of CLIP's tokenizer has beside its vocabulary: equation (2).

    Args:
      folder: with `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is not what it should be, or the ids of a word do not stand one after another.
    """
    whole = read_object(folder, WHOLE)
    found = _in_whole(whole) | _in_config(folder) | read_object(folder, _ADDED)
    vocabulary = _vocabulary(folder, whole)
    tokens = {name: number for name, number in found.items() if name not in vocabulary}
    if wrong := [name for name, number in tokens.items() if type(number) is not int]:
        raise ValueError(f"the id of its added token {wrong[0]!r} is {tokens[wrong[0]]!r}, expected a whole number")
    return _grouped(tokens)


def files_with_words(folder: Path, words: Sequence[AddedWord]) -> dict[str, dict[str, Any]]:
    """The files of a tokenizer's folder that say its words, by their names, with other words: equation (2).

    Args:
      folder: of CLIP's tokenizer.
      words: all that it shall have beside its vocabulary.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is not what it should be, or these words would be read as others.
    """
    tokens = {name: number for word in words for name, number in _named(word).items()}
    if _grouped(tokens) != tuple(words):
        raise ValueError(f"{' and '.join(repr(each.word) for each in words)} would be read as one word: rename one")
    whole = read_object(folder, WHOLE)
    first = 1 + max(_vocabulary(folder, whole).values())
    if sorted(tokens.values()) != [*range(first, first + len(tokens))]:
        raise ValueError(f"its vocabulary ends at id {first - 1}, and its words have the ids {[*tokens.values()]}")
    told = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    decoder = {str(number): {"content": name, **told} for name, number in tokens.items()}
    config = read_object(folder, CONFIG)
    found = {CONFIG: {**config, "added_tokens_decoder": {**(config.get("added_tokens_decoder") or {}), **decoder}}}
    if whole:
        others = [each for each in whole.get("added_tokens") or () if each["content"] not in tokens]
        added = [{"id": number, "content": name, **told} for name, number in tokens.items()]
        found[WHOLE] = {**whole, "added_tokens": [*others, *added]}
    return found


def _named(word: AddedWord) -> dict[str, int]:
    names = [word.word, *(f"{word.word}_{i}" for i in range(1, word.ids))]
    return {name: word.first + i for i, name in enumerate(names)}


def _grouped(tokens: Mapping[str, int]) -> tuple[AddedWord, ...]:
    """The words of added tokens, in the order of their ids."""
    words = []
    for name, number in sorted(tokens.items(), key=lambda each: each[1]):
        ids = 1
        while f"{name}_{ids}" in tokens:
            ids += 1
        words.append(AddedWord(name, number, ids))
    later = {name for word in words for name in [*_named(word)][1:]}
    words = [word for word in words if word.word not in later]
    for word in words:
        if wrong := [name for name, number in _named(word).items() if tokens[name] != number]:
            raise ValueError(f"the ids of its tokens {word.word!r} and {wrong[0]!r} do not stand one after another")
    return tuple(words)


def _vocabulary(folder: Path, whole: Mapping[str, Any]) -> Mapping[str, Any]:
    model = whole.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if whole and not isinstance(found, dict):
        raise ValueError(f"{WHOLE} has no vocabulary")
    return found if isinstance(found, dict) else read_object(folder, VOCABULARY)


def _in_whole(whole: Mapping[str, Any]) -> dict[str, Any]:
    tokens = whole.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(
        isinstance(each, dict) and {"content", "id"} <= {*each} for each in tokens
    ):
        raise ValueError(f"added_tokens of {WHOLE} is no list of tokens with their ids")
    return {str(each["content"]): each["id"] for each in tokens if not each.get("special", True)}


def _in_config(folder: Path) -> dict[str, Any]:
    decoder = read_object(folder, CONFIG).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(
        isinstance(each, dict) and "content" in each for each in decoder.values()
    ):
        raise ValueError(f"added_tokens_decoder of {CONFIG} is no object of tokens by their ids")
    found = {str(each["content"]): number for number, each in decoder.items() if not each.get("special", True)}
    return {name: int(number) if number.isdecimal() else number for name, number in found.items()}
