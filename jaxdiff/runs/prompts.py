"""Conditions that a person gives a run in words, names of classes and captions; and those of training records that its
pictures show."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxdiff.data.sources import spread
from jaxdiff.data.text import TEXT, count, encoded_once, stored_captions
from jaxdiff.data.tokenizers import Tokenizer
from jaxdiff.launch.errors import ConfigError
from jaxdiff.spec import as_array

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
        """Arrays of a caption, or of several, the batch first; arrays as they are.

        Raises:
          ValueError: nothing, one number, or what is no text.
        """
        return encoded_once(value, self._encoded)

    def _encoded(self, texts: list[str]) -> Any:
        made: Any = self.tokenizer.encode(texts)
        if not hasattr(self.codec, "text"):
            return made
        whole = NamedSharding(self.mesh, PartitionSpec())
        parts = [_states(self.codec, made[at : at + _AT_ONCE], whole) for at in range(0, len(made), _AT_ONCE)]
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)

    def stored(self, value: Any, n: int) -> NDArray[Any] | None:
        """Text as a record of n samples stores it; None where no caption was given but arrays."""
        return stored_captions(value, n)


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


def rows_of_labels(
    num_classes: int | None, num: int | None, labels: Sequence[int] = (), most: int = 20
) -> tuple[dict[str, NDArray[np.int32]] | None, int | None]:
    """Labels for a grid of one class a row.

    Args:
      num_classes: of the run; None: no labels.
      num: samples in all; None: 10 a class.
      labels: the classes to show; empty: all, or 10 spread over them where there are more than ``most``.

    Returns:
      The condition for `Run.sample` (None without labels), and the grid's columns (None where the rows would differ in
      length).

    Raises:
      ConfigError: labels for a run without, or out of range.

    >>> rows_of_labels(3, 6)
    ({'label': array([0, 0, 1, 1, 2, 2], dtype=int32)}, 2)
    """
    if num_classes is None:
        if labels:
            raise ConfigError("this run was trained without labels: leave the label out")
        return None, None
    for label in labels:
        if not 0 <= label <= num_classes:
            raise ConfigError(f"label {label} is out of range: this run knows the labels 0 to {num_classes - 1}")
    shown = labels or (
        range(num_classes) if num_classes <= most else np.linspace(0, num_classes - 1, 10).astype(int).tolist()
    )
    num = 10 * len(shown) if num is None else num
    rows = np.asarray(shown, np.int32)[np.arange(num) * len(shown) // num]
    return {"label": rows}, num // len(shown) if num % len(shown) == 0 else None


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


def labels(classes: Sequence[str], value: Any) -> Any:
    """Labels from names of classes; numbers as they are."""
    array = as_array("label", value)
    if array.dtype.kind not in "US":
        return value
    unknown = [str(name) for name in array.ravel() if str(name) not in classes]
    if unknown:
        raise ValueError(f"label: there is no class {unknown[0]!r}; there are {', '.join(classes[:20])}")
    return np.array([classes.index(str(name)) for name in array.ravel()], np.int32).reshape(array.shape)


def drawn_examples(examples: Mapping[str, NDArray[Any]], keys: Array) -> dict[str, NDArray[Any]]:
    """For each key the conditions of one example."""
    count = len(next(iter(examples.values())))
    which = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys))
    return {name: value[which] for name, value in examples.items()}
