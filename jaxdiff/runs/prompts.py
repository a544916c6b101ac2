"""Prompts of a run: captions that a person gives, and those of training records that its pictures show."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxdiff.data.sources import spread
from jaxdiff.data.text import TEXT, count
from jaxdiff.data.tokenizers import Tokenizer

PROMPTS = "prompts.txt"
"""Beside the pictures of a training: the captions of their rows."""
_AT_ONCE = 64  # captions that a frozen encoder sees


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The encoder of text in `jaxdiff.model.Model`: captions to what the network takes.

    Args:
      tokenizer: of the run.
      codec: of the run; where it holds a frozen text encoder, that one makes states of the ids.
      mesh: the devices.
    """

    tokenizer: Tokenizer
    codec: Any
    mesh: Mesh

    def __call__(self, value: Any) -> Any:
        """Arrays of a caption, or of several, the batch first; other values as they are."""
        texts = captions(value)
        if texts is None:
            return value
        different = list(dict.fromkeys(texts))
        made: Any = self.tokenizer.encode(different)
        if hasattr(self.codec, "text"):
            whole = NamedSharding(self.mesh, PartitionSpec())
            parts = [_states(self.codec, made[at : at + _AT_ONCE], whole) for at in range(0, len(made), _AT_ONCE)]
            made = jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)
        place = {text: number for number, text in enumerate(different)}
        rows = place[value] if isinstance(value, str) else np.array([place[text] for text in texts])
        return jax.tree.map(lambda leaf: leaf[rows], made)

    def stored(self, value: Any, n: int) -> NDArray[Any] | None:
        """Text as a record of n samples stores it; None where no caption was given but arrays."""
        texts = [""] if value is None else captions(value)
        return None if texts is None else np.array(texts * n if len(texts) != n else texts)


def captions(value: Any) -> list[str] | None:
    """The captions that a person gives, one or several; None where they are no text.

    >>> captions("a cat"), captions(["a cat", "a dog"]), captions([3, 4])
    (['a cat'], ['a cat', 'a dog'], None)
    """
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(listed, str):
        return [listed]
    several = isinstance(listed, list | tuple) and any(isinstance(each, str) for each in listed)
    return list(listed) if several else None


@functools.partial(jax.jit, static_argnames=("whole",))
def _states(codec: Any, ids: Any, whole: NamedSharding) -> Any:
    return jax.lax.with_sharding_constraint(codec.text(ids), whole)


def rows_of_prompts(prompts: Sequence[Any], num: int | None) -> tuple[NDArray[np.int64], int | None]:
    """Which prompt each of some samples has, in a grid of one prompt a row.

    Args:
      prompts: at least one.
      num: samples in all; None: 10 a prompt.

    Returns:
      The number of its prompt for each sample, and the grid's columns (None where the rows would differ in length).

    >>> rows_of_prompts(["a cat", "a dog"], 4)
    (array([0, 0, 1, 1]), 2)
    """
    num = 10 * len(prompts) if num is None else num
    return np.arange(num) * len(prompts) // num, num // len(prompts) if num % len(prompts) == 0 else None


def shown_examples(examples: Mapping[str, NDArray[Any]], num: int) -> NDArray[np.int64]:
    """The examples that the rows of a training's picture show: as many as it has columns, evenly over all."""
    return spread(len(examples[TEXT]), max(1, math.isqrt(num)))


def write_prompts(folder: Path, prompts: Sequence[str]) -> None:
    """Writes the captions of a picture's rows beside it, one a line."""
    lines = "".join(f"{' '.join(text.split())}\n" for text in prompts)
    (folder / PROMPTS).write_text(lines, encoding="utf-8")


def doubts(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """What a person is told of prompts that do not fit a run: one line each."""
    if not (hasattr(tokenizer, "ids") and hasattr(tokenizer, "unknown_in")):
        return []
    counts, said = count(tokenizer, dict.fromkeys(prompts)), []
    if counts.cut:
        said.append(
            f"{counts.cut} of {counts.captions} prompts are longer than the run's captions and are cut to "
            f"{tokenizer.length} ids; the longest has {counts.longest}"
        )
    if counts.unknown:
        said.append(
            f"the run does not know {', '.join(map(repr, list(counts.unknown)[:10]))}: all unknown words are one"
        )
    return said
