"""Texts with more padding, or with other numbers in it: a network must not tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def assert_padding_changes_no_bit(output: Callable[[Any], Any], text: Mapping[str, Any]) -> None:
    """Of a network's output by a text's tokens, mask and more: neither what stands in padding nor how much of it."""
    tokens, mask = (np.asarray(text[name]) for name in ("tokens", "mask"))
    expected = output(text)
    assert (mask == 0).any()
    rubbish = np.where(mask[..., None] == 0, np.float32(1e30), tokens)
    np.testing.assert_array_equal(output({**text, "tokens": rubbish}), expected)
    for more in (1, 3, 20, 40, 72, 140):
        longer = {
            "tokens": np.pad(tokens, ((0, 0), (0, more), (0, 0)), constant_values=7.0),
            "mask": np.pad(mask, ((0, 0), (0, more))),
        }
        np.testing.assert_array_equal(output({**text, **longer}), expected, err_msg=f"{more} more")
