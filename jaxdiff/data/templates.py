"""Captions for pictures that have none: sentences with a word in its place.

The word is learned of them (`jaxdiff.pretrained.adapters.inversion`), so they are many and say little beside it, as in
Gal et al. 2022, "An Image is Worth One Word", https://arxiv.org/abs/2208.01618, section 4. Every record has all of
them, and each epoch draws one (`jaxdiff.data.Pipeline`), by the seed: a run that goes on draws the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.sources import Records, Source, classes_of, digest, fingerprint, name_of, take
from jaxdiff.spec import Spec

TEXT = "text"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "a photo of a {}",
        "a photo of the {}",
        "a photo of one {}",
        "a photo of a small {}",
        "a photo of a large {}",
        "a photo of a clean {}",
        "a photo of a nice {}",
        "a good photo of a {}",
        "a bright photo of the {}",
        "a dark photo of the {}",
        "a close photo of a {}",
        "a cropped photo of the {}",
        "a picture of a {}",
        "a rendering of a {}",
        "a depiction of a {}",
        "an image of the {}",
        "the {} seen from the side",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a rendering in the style of {}",
        "a small painting in the style of {}",
        "a large painting in the style of {}",
        "a bright painting in the style of {}",
        "a dark painting in the style of {}",
        "a nice painting in the style of {}",
        "a cropped painting in the style of {}",
        "a detail of a painting in the style of {}",
        "the painting, in the style of {}",
    ),
}
"""By what the word stands for: a thing, or a manner of painting."""


class WithTemplates:
    """A `Source` whose records have captions. Fields as `Source`.

    Args:
      source: without text.
      templates: sentences, each with ``{}`` in the place of the word.
      word: put there.

    >>> from jaxdiff.data import open_digits
    >>> source = WithTemplates(open_digits(), TEMPLATES["object"], "<seven>")
    >>> source.take(np.array([0]))["text"][0][:2]
    ('a photo of a <seven>', 'a photo of the <seven>')
    """

    def __init__(self, source: Source, templates: Sequence[str], word: str) -> None:
        self.source, self.name, self.classes = source, name_of(source), classes_of(source)
        self.captions = tuple(each.replace("{}", word) for each in templates)
        self.spec: Mapping[str, Spec] = {**source.spec, TEXT: Spec((None,), "str")}
        self.fingerprint = digest(np.array([fingerprint(source), *self.captions]))
        self.files: Sequence[Any] = getattr(source, "files", ())

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Records, each with all captions."""
        return {**take(self.source, indices), TEXT: self.texts(indices)}

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The captions alone."""
        found = np.empty(len(indices), object)
        found[:] = [self.captions] * len(indices)
        return found
