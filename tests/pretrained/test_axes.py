"""Patterns of axes, against the same moves written by hand, and there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff.pretrained.files.axes import Axes
from jaxdiff.pretrained.files.naming import Cut, Naming
from jaxdiff.pretrained.files.writing import Published

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("pattern", "sizes", "theirs", "ours"),
    [
        ("o i -> i o", {}, (5, 3), lambda a: a.T),
        ("o i h w -> h w i o", {}, (5, 3, 2, 4), lambda a: np.einsum("oihw->hwio", a)),
        ("o i 1 1 -> i o", {}, (5, 3, 1, 1), lambda a: a[:, :, 0, 0].T),
        ("(t o) i -> i t o", {}, (6, 3), lambda a: a.reshape(2, 3, 3).transpose(2, 0, 1)),
        ("t o i -> i t o", {}, (3, 4, 2), lambda a: np.stack([each.T for each in a], axis=1)),
        ("o c p q -> (p q c) o", {"p": 2, "q": 2}, (5, 3, 2, 2), lambda a: np.einsum("ocpq->pqco", a).reshape(12, 5)),
        ("(~t o) i -> i (t o)", {"t": 2}, (6, 3), lambda a: np.concatenate([a[3:], a[:3]]).T),
        ("(~t o) -> (t o)", {"t": 2}, (6,), lambda a: np.concatenate([a[3:], a[:3]])),
        ("(c p q) -> (p q c)", {"p": 2, "q": 2}, (12,), lambda a: a.reshape(3, 4).T.ravel()),
        ("a -> a", {}, (3,), lambda a: a),
    ],
)
def test_a_pattern_is_the_move_by_hand(pattern: str, sizes: Any, theirs: tuple[int, ...], ours: Any) -> None:
    tensor, axes = RNG.normal(size=theirs), Axes(pattern, sizes)
    expected = ours(tensor)
    np.testing.assert_array_equal(axes.to_ours(tensor, expected.shape), expected)
    assert axes.theirs(expected.shape) == theirs
    np.testing.assert_array_equal(axes.to_theirs(expected), tensor)


@given(st.permutations("abc"), st.booleans(), st.tuples(*[st.integers(1, 3)] * 3))
def test_there_and_back(order: list[str], flipped: bool, shape: tuple[int, int, int]) -> None:
    first, *others = order
    axes = Axes(f"({'~' if flipped else ''}a b) c -> {first} {' '.join(others)}")
    array = RNG.normal(size=[dict(zip("abc", shape, strict=True))[axis] for axis in order])
    tensor = axes.to_theirs(array)
    assert tensor.shape == (shape[0] * shape[1], shape[2]) == axes.theirs(array.shape)
    np.testing.assert_array_equal(axes.to_ours(tensor, array.shape), array)


def test_rows_of_theirs_are_a_range_of_ours() -> None:
    assert [Axes(p).leading() for p in ("o i -> i o", "(t o) i -> i t o", "o i h w -> h w i o")] == [1, None, 3]
    assert [Axes(p).leading() for p in ("~o i -> i o", "a -> a", "1 o -> o")] == [None, 0, None]


def test_what_does_not_make_up_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 axes, got shape"):
        Axes("o i -> i o").theirs((3,))
    with pytest.raises(ValueError, match="do not make up an axis of 5"):
        Axes("(p o) -> (p o)", {"p": 2}).theirs((5,))
    with pytest.raises(ValueError, match="do not make up an axis of 6"):
        Axes("(p o) -> (p o)").theirs((6,))


def test_a_row_of_blocks_begins_where_it_is_said_and_parts_stand_side_by_side() -> None:
    naming = Naming(renames=[("^row/", "blocks.{3}.")], parts={"qkv": ("q", "k")})
    leaf = naming.leaf("row/qkv/kernel", (2, 4, 2, 5))
    assert leaf.names == tuple(f"blocks.{i}.{part}.weight" for i in (3, 4) for part in "qk")
    assert (leaf.tensor, leaf.blocks, leaf.parts) == ((5, 4), 2, 2)
    assert list(leaf.groups()) == [leaf.names[:2], leaf.names[2:]]
    array = RNG.normal(size=(2, 4, 2, 5))
    tensors = Published({"row": {"qkv": {"kernel": array}}}, naming)
    np.testing.assert_array_equal(tensors["blocks.4.k.weight"], array[1, :, 1].T)


def test_two_arrays_are_parts_of_one_tensor() -> None:
    naming = Naming(
        renames=[("^(left|right)/", "both.")],
        cuts=[("^left", Cut(1, 0, 2, 5)), ("^right/kernel", Cut(1, 2, 5, 5))],
        copies={"copy.weight": "both.weight"},
    )
    left, right = RNG.normal(size=(2, 4)), RNG.normal(size=(3, 4))
    tensors = Published({"right": {"kernel": right}, "left": {"kernel": left}}, naming)
    assert sorted(tensors) == ["both.weight", "copy.weight"]
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], np.concatenate([left, right]).T)
    assert naming.leaf("left/kernel", (2, 4)).tensor == (4, 5)
