"""Specs: what is refused, what is filled in, and what stands for "no condition"."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.spec import Spec, Specs, check, complete, drop, droppable, null_of

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
    with pytest.raises(ValueError, match="nan"):
        check({"style": STYLE}, {"style": [np.nan, 0.0]}, 2)
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
