"""The captions of a source as a tokenizer sees them: as numbers, and counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.sources import Source, as_text, classes_of, name_of, take
from jaxdiff.data.tokenizers import Tokenizer, spec_of
from jaxdiff.spec import Spec

TEXT = "text"
"""The name of captions, in a source and in a network's conditions."""


class Tokenised:
    """A `Source` whose captions are numbers already: of each record the first one. Fields as `Source`.

    It shows what a training step is given; training itself draws a caption in each epoch (`jaxdiff.data.Pipeline`).

    Args:
      source: with text.
      tokenizer: what makes numbers of it.
    """

    def __init__(self, source: Source, tokenizer: Any) -> None:
        self.source, self.tokenizer = source, tokenizer
        self.name, self.classes = name_of(source), classes_of(source)
        ids = spec_of(tokenizer)
        assert isinstance(ids, Spec)
        self.spec: Mapping[str, Spec] = {**source.spec, TEXT: ids}

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: NDArray[np.int64], /) -> dict[str, Any]:
        """Records."""
        records = take(self.source, indices)
        return {**records, TEXT: self.tokenizer.encode(first_of(records[TEXT]))}


def first_of(texts: NDArray[Any]) -> list[str]:
    """The first caption of each of some records, as `jaxdiff.data.sources.texts` gives them."""
    return [text if isinstance(text, str) else text[0] for text in texts]


@dataclasses.dataclass(frozen=True)
class Counts:
    """How captions fit a tokenizer.

    Args:
      captions: how many.
      cut: of these, longer than its length.
      longest: ids of the longest.
      pieces: ids of all, begin and end among them.
      unknown: pieces without an id of their own, by text, with how often each came.
    """

    captions: int
    cut: int
    longest: int
    pieces: int
    unknown: Counter[str]

    def lines(self, length: int, *, whole: bool = True) -> list[str]:
        """What a person is told: nothing where all fit.

        Args:
          length: of the tokenizer.
          whole: whether these are all captions.

        >>> from jaxdiff.data import Words
        >>> print(count(Words(4, size=6).learned(["cat"]), ["cat", "a black cat"]).lines(4)[0])
        tokenizer.length: 1 of 2 captions is cut to 4 ids, the longest has 5: raise it, and the network's Text.length
        """
        looked = f"{self.captions:,} captions" + ("" if whole else " looked at")
        said = []
        if self.cut:
            verb = "is" if self.cut == 1 else "are"
            said.append(
                f"tokenizer.length: {self.cut:,} of {looked} {verb} cut to {length} ids, the longest has "
                f"{self.longest}: raise it, and the network's Text.length"
            )
        if self.unknown:
            shown = ", ".join(map(repr, sorted(self.unknown, key=lambda piece: (-self.unknown[piece], piece))[:5]))
            said.append(
                f"tokenizer.size: {self.unknown.total():,} of {self.pieces:,} pieces in {looked} are unknown, "
                f"such as {shown}: raise it, and the network's Text.vocabulary"
            )
        return said


def count(tokenizer: Tokenizer, texts: Iterable[str]) -> Counts:
    """How captions fit a tokenizer: which are cut, and which of their pieces are unknown."""
    lengths, unknown = [], Counter[str]()
    for text in texts:
        lengths.append(len(tokenizer.ids(text)))
        unknown.update(tokenizer.unknown_in(text))
    cut = sum(length > tokenizer.length for length in lengths)
    return Counts(len(lengths), cut, max(lengths, default=0), sum(lengths), unknown)


def given_captions(value: Any) -> list[str] | None:
    """The captions that a person gives, one or several; None where they are no text.

    >>> given_captions("a cat"), given_captions(["a cat", "a dog"]), given_captions([3, 4])
    (['a cat'], ['a cat', 'a dog'], None)
    """
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(listed, str):
        return [listed]
    several = isinstance(listed, list | tuple) and any(isinstance(each, str) for each in listed)
    return list(listed) if several else None


def encoded_once(value: Any, encode: Callable[[list[str]], Any]) -> Any:
    """What an encoder makes of captions, each different one once; the batch first, but for one caption alone.

    Args:
      value: a caption, or several; arrays are given back as they are.
      encode: arrays of captions, the batch first, in a tree.

    Raises:
      ValueError: nothing, one number, or what is no text.

    >>> encoded_once(["a", "bb", "a"], lambda texts: np.array([len(text) for text in texts])).tolist()
    [1, 2, 1]
    """
    texts = given_captions(value)
    if texts is None:
        if value is None or (not isinstance(value, Mapping) and (np.ndim(value) == 0 or np.size(value) == 0)):
            raise ValueError(f"text: expected a caption, or a list of captions, got {value!r}")
        return value
    different = list(dict.fromkeys(as_text(text, TEXT) if isinstance(text, str) else text for text in texts))
    place = {text: number for number, text in enumerate(different)}
    rows = place[value] if isinstance(value, str) else np.array([place[text] for text in texts])
    return jax.tree.map(lambda leaf: leaf[rows], encode(different))


def stored_captions(value: Any, n: int) -> NDArray[Any] | None:
    """Text as a record of n samples stores it; None where no caption was given but arrays.

    >>> stored_captions("a cat", 2).tolist(), stored_captions(None, 1).tolist()
    (['a cat', 'a cat'], [''])
    """
    texts = [""] if value is None else given_captions(value)
    return None if texts is None else np.array(texts * n if len(texts) != n else texts)
