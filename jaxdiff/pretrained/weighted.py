"""Weights in prompts: ``"a (red:1.3) heart, [blurry]"``.

Parentheses multiply the weight of what they hold by 1.1, or by the number after a colon; brackets divide it by 1.1; a
backslash before one of these signs takes it as it is. With h_j the states of a text's tokens and w_j the weights of the
words that they come from,

    h'_j = w_j h_j  (sum_j h_j) / (sum_j w_j h_j),     the sums over tokens and channels of a text    (1)

so that the mean of all states stays (the rule of AUTOMATIC1111's web interface, from which most published prompts with
weights come). Begin, end and padding have the weight 1. Where all weights are 1, the states stay bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

_SIGN = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
_STEP = 1.1


def parse(text: str) -> list[tuple[str, float]]:
    """The parts of a text, and their weights.

    Raises:
      ValueError: a parenthesis or bracket that is not closed, or not opened.

    >>> parse("a (red:1.3) heart [blue] \\\\(c\\\\)")
    [('a ', 1.0), ('red', 1.3), (' heart ', 1.0), ('blue', 0.909), (' (c)', 1.0)]
    """
    parts: list[list[Any]] = []
    opened: list[tuple[str, int]] = []

    def close(sign: str, factor: float) -> None:
        if not opened or opened[-1][0] != sign:
            shut = ")" if sign == "(" else "]"
            raise ValueError(f"text: {text!r} closes a {shut!r} that it does not open; as a sign itself it is \\{shut}")
        for part in parts[opened.pop()[1] :]:
            part[1] *= factor

    for found in _SIGN.finditer(text):
        piece = found[0]
        if piece in "([":
            opened.append((piece, len(parts)))
        elif found[1] is not None and opened and opened[-1][0] == "(":
            close("(", float(found[1]))
        elif piece == ")":
            close("(", _STEP)
        elif piece == "]":
            close("[", 1 / _STEP)
        else:
            parts.append([piece[1:] if piece[0] == "\\" and len(piece) > 1 else piece, 1.0])
    if opened:
        raise ValueError(
            f"text: {text!r} opens a {opened[-1][0]!r} that it does not close; as a sign itself it is \\{opened[-1][0]}"
        )
    joined: list[tuple[str, float]] = []
    for piece, weight in parts:
        rounded = round(weight, 3)
        if joined and joined[-1][1] == rounded:
            joined[-1] = (joined[-1][0] + piece, rounded)
        else:
            joined.append((piece, rounded))
    return joined


def plain(text: str) -> str:
    """A text without its weights.

    >>> plain("a (red:1.3) heart")
    'a red heart'
    """
    return "".join(piece for piece, _ in parse(text))


def weighted_ids(tokenizer: Any, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids of texts and the weight of each, both ``(B, L)``. Each part of a text is split into tokens by itself.

    Args:
      tokenizer: a `jaxdiff.data.tokenizers.TokenizerFile`.
      texts: with weights.
    """
    empty = tokenizer.ids("")
    begin, end = empty[:-1], empty[-1:]
    ids = np.full((len(texts), tokenizer.length), tokenizer.padding, np.int32)
    weights = np.ones(ids.shape, np.float32)
    room = tokenizer.length - len(empty)
    for row, text in enumerate(texts):
        inner: list[int] = []
        of: list[float] = []
        for piece, weight in parse(text):
            more = tokenizer.ids(piece)[len(begin) : -1]
            inner += more
            of += [weight] * len(more)
        whole = [*begin, *inner[:room], *end]
        ids[row, : len(whole)] = whole
        weights[row, len(begin) : len(begin) + len(of[:room])] = of[:room]
    return ids, weights


@jax.jit
def weigh(tokens: Array, weights: ArrayLike) -> Array:
    """Equation (1).

    Args:
      tokens: ``(B, L, width)``.
      weights: ``(B, L)``.
    """
    w = jnp.asarray(weights)[:, :, None]
    scaled = w * tokens
    before, after = (each.mean(axis=(1, 2), keepdims=True) for each in (tokens, scaled))
    return jnp.where((w == 1).all(axis=1, keepdims=True), tokens, scaled * (before / after))
