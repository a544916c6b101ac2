"""The states of a frozen text encoder, kept: each caption goes through it once, and never again.

A set has few captions beside the steps that read them, so its different captions are encoded once, in the order of
their characters, and kept in files (`jaxdiff.data.encoded`): another caption, tokenizer, encoder or choice of states is
another folder. A pipeline then finds states where a tokenizer would give ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.encoded import Encoded
from jaxdiff.data.sources import DataError, digest
from jaxdiff.data.tokenizers import Tokenizer, spec_of
from jaxdiff.spec import Spec


class Captions:
    """The different captions of a set as a `Source`: their ids, under the name of what the encoder makes of them.

    Args:
      texts: captions, in any order, some of them more than once.
      tokenizer: what makes ids of them.

    >>> from jaxdiff.data import Words
    >>> captions = Captions(["b", "a", "b"], Words(3, size=9, vocabulary=("a", "b")))
    >>> captions.texts, captions.take(np.array([1]))["tokens"].tolist()
    (('a', 'b'), [[2, 5, 3]])
    """

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        self.texts, self.tokenizer, self.name = tuple(sorted(set(texts))), tokenizer, "captions"
        ids = spec_of(tokenizer)
        assert isinstance(ids, Spec)
        self.spec: Mapping[str, Spec] = {"tokens": ids}
        self.fingerprint = digest(np.array([repr((self.texts, tokenizer))]))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: NDArray[np.int64], /) -> dict[str, NDArray[Any]]:
        """Ids of some captions."""
        return {"tokens": self.tokenizer.encode([self.texts[index] for index in indices])}


class KeptText:
    """Captions to the states that are kept of them, in the place of a tokenizer.

    Args:
      captions: whose states they are.
      encoded: the states, from `jaxdiff.data.encoded.encode_once`.
      spec: of one caption's.
    """

    def __init__(self, captions: Captions, encoded: Encoded, spec: Mapping[str, Spec]) -> None:
        self.encoded, self.spec = encoded, dict(spec)
        self._rows = {text: row for row, text in enumerate(captions.texts)}

    def encode(self, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        """States of some captions.

        Raises:
          DataError: a caption that was not in the set when it was encoded.
        """
        if other := [text for text in texts if text not in self._rows]:
            raise DataError(
                f"{other[0]!r} is a caption that the set did not have when it was encoded: start the run again"
            )
        return self.encoded.take(np.array([self._rows[text] for text in texts], np.int64))
