"""Specs: what is refused, what is filled in, and what stands for "no condition"."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.spec import Spec, Specs, check, complete, drop, droppable, finite, null_of, whole

LABEL = Spec((), "int32", 0, 255, null=256)
STYLE = Spec((2,), "float32", -3.0, 3.0, null=(-9.0, -8.0))
TEXT = {"tokens": Spec((None,), "int32", 0, 99, null=0), "mask": Spec((None,), "bool", null=0)}


def test_equal_specs_share_a_trace():
    traces = []

    @jax.jit
    def twice(x):
        traces.append(1)
        return 2 * x

    def run(spec):
        return jax.jit(lambda x: twice(x) + len(spec.shape))(jnp.zeros(2))

    loose: Any = Spec
    assert hash(loose([2], "float32")) == hash(loose((2,), np.float32))
    run(Spec((2,))), run(Spec((2,)))
    assert len(traces) == 1


def test_a_null_beyond_the_given_type_does_not_wrap():
    dropped = drop({"label": LABEL}, {"label": jnp.uint8([255, 7])}, {"label": jnp.array([True, False])})
    assert dropped["label"].tolist() == [256, 7]
    assert dropped["label"].dtype == jnp.int32


def test_each_condition_is_dropped_by_itself_and_several_arrays_as_one():
    specs: Specs = {"label": LABEL, "style": STYLE, "text": TEXT}
    cond = {
        "label": jnp.arange(3),
        "style": jnp.ones((3, 2)),
        "text": {"tokens": jnp.full((3, 4), 5), "mask": jnp.ones((3, 4), bool)},
    }
    masks = {"style": jnp.array([False, True, False]), "text": jnp.array([False, False, True])}
    left = drop(specs, cond, masks)
    assert left["label"].tolist() == [0, 1, 2]
    assert left["style"].tolist() == [[1, 1], [-9, -8], [1, 1]]
    assert left["text"]["tokens"][:, 0].tolist() == [5, 5, 0]
    assert left["text"]["mask"][:, 3].tolist() == [True, True, False]


def test_what_has_no_null_is_not_dropped_in_silence():
    with pytest.raises(ValueError, match="no null"):
        drop({"label": Spec((), "int32")}, {"label": jnp.zeros(1, int)}, {"label": jnp.array([True])})
    with pytest.raises(ValueError, match="label"):
        complete({"label": Spec((), "int32")}, None, 1)


def test_what_is_left_out_is_the_null():
    whole = complete({"label": LABEL, "style": STYLE, "text": TEXT}, {"label": jnp.array([1, 2])}, 2)
    assert whole["label"].tolist() == [1, 2]
    assert whole["style"].tolist() == [[-9, -8], [-9, -8]]
    assert whole["text"]["mask"].shape == (2, 1)
    assert droppable(TEXT) and not droppable({"tokens": Spec((None,), "int32"), "mask": TEXT["mask"]})
    assert null_of(LABEL, 3).shape == (3,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "out of range"),
        (257, "out of range"),
        (1.0, "whole numbers"),
        ([1, 2, 3], "3 rows for 2 samples"),
        ([[1], [2]], "shape"),
        ("seven", "numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        check({"label": LABEL}, {"label": value}, 2)


def test_values_not_finite_are_refused():
    for number, message in ((np.nan, "style nan"), (-np.inf, "style -inf"), (1e39, "style 1e.39 is out of range")):
        with pytest.raises(ValueError, match=message):  # the last is infinite as float32
            check({"style": STYLE}, {"style": [number, 0.0]}, 2)
    least = Spec((), "float32", low=0.0)
    with pytest.raises(ValueError, match=r"w inf is out of range: it must be finite, at least 0$"):
        check({"w": least}, {"w": np.inf}, 1)
    assert check({"w": least}, {"w": 2}, 1)["w"].tolist() == [2.0]
    assert check({"style": STYLE}, {"style": (-9.0, -8.0)}, 2)["style"].shape == (2, 2)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="tetx"):
        check({"text": TEXT}, {"tetx": 1}, 1)
    with pytest.raises(ValueError, match="unconditional"):
        complete({}, {"label": jnp.zeros(1, int)}, 1)
    with pytest.raises(ValueError, match="tokens"):
        complete({"text": TEXT}, {"text": jnp.zeros((1, 4), int)}, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "float33"},
        {"low": 2, "high": 1},
        {"low": "a"},
        {"high": float("nan")},
        {"low": np.zeros(2)},
        {"low": False},
        {"shape": (3,), "null": (1.0, 2.0)},
        {"dtype": "uint8", "null": 256},
        {"shape": (-1,)},
    ],
)
def test_specs_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError):
        Spec(**arguments)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=8), st.data())
def test_dropping_changes_the_dropped_alone(labels, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    left = drop({"label": LABEL}, {"label": np.array(labels)}, {"label": jnp.array(mask)})["label"].tolist()
    assert left == [256 if gone else label for label, gone in zip(labels, mask, strict=True)]


@pytest.mark.parametrize("value", [2.5, 3.0, "3", None, True, np.bool_(True), 0, -1, [3], np.float32(3)])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got"):
        whole("n", value)


def test_whole_numbers_of_any_kind():
    assert [whole("n", value) for value in (3, np.int64(3), np.uint8(3), jnp.int32(3))] == [3] * 4
    assert whole("start", 0, 0) == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 5)), r"x has shape \(3, 5\), expected \(n, 2\): points"),
        (np.ones(2), r"x has shape \(2,\), expected \(n, 2\)"),
        (np.ones((0, 2)), r"x has shape \(0, 2\), expected \(n, 2\)"),
        ([[1.0], [1.0, 2.0]], "x has rows of unequal lengths"),
        ([["a", "b"]], "x must be real numbers, got <U1"),
        (np.ones((1, 2), complex), "x must be real numbers, got complex128"),
        ([[np.nan, 1.0]], "x is NaN or infinite in 1 of its 2 numbers"),
        (jnp.full((2, 2), jnp.inf), "x is NaN or infinite in 4 of its 4 numbers"),
    ],
)
def test_numbers_that_are_not_finite_or_none(value, message):
    with pytest.raises(ValueError, match=message):
        finite("x", value, (None, 2), "points")
    assert finite("x", np.ones((1, 2), np.uint8), (None, 2), "points").dtype == np.uint8
