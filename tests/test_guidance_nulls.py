"""What stands for "no condition" under guidance: trees of arrays, one a sample, from a network's specs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.guidance import apply, nulls_of
from jaxdiff.spec import Spec

PROCESS = jd.VP()


def by_text(x: jax.Array, t: object, cond: Any = None) -> jd.Prediction:
    """A denoiser of a condition of two arrays and of another, a vector."""
    eps = (cond["text"]["tokens"] * cond["text"]["mask"]).sum(1, keepdims=True) + cond["style"] + 0.0 * x
    return jd.Prediction(x, eps)


TEXT = {"tokens": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "mask": jnp.array([[1.0, 0.0], [1.0, 1.0]])}
STYLE = jnp.array([[0.5, 0.25], [1.0, 2.0]])


def test_nulls_are_trees_and_one_a_sample() -> None:
    x, cond = jnp.zeros((2, 2)), {"text": TEXT, "style": STYLE}
    given = by_text(x, 0.5, cond).eps
    apart = {"text": {"tokens": jnp.array([[5.0, 5.0], [7.0, 7.0]]), "mask": 1.0}}  # a negative for each sample
    for nulls, null in (
        ({"text": {"tokens": 0.0, "mask": 1.0}}, STYLE),  # the style stays in both
        ({"text": {"tokens": 0.0, "mask": 1.0}, "style": jnp.array([1.0, 2.0])}, jnp.array([[1.0, 2.0]] * 2)),
        (apart, jnp.array([[10.0], [14.0]]) + STYLE),
    ):
        for sequential in (False, True):
            found = apply([jd.CFG(3.0, sequential)], by_text, PROCESS, nulls)(x, 0.5, cond).eps
            np.testing.assert_allclose(found, 3.0 * given - 2.0 * null, rtol=1e-6)
    wrong: Any
    for wrong, message in (
        ({"text": 0.0}, r"the null of cond\['text'\] is to be made as the condition is"),
        ({"style": jnp.zeros(3)}, r"the null of cond\['style'\] has shape \(3,\), which does not fit \(2, 2\)"),
        ({"style": jnp.zeros((1, 2, 2))}, "does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            apply([jd.CFG(3.0)], by_text, PROCESS, wrong)(x, 0.5, cond)


def test_nulls_of_a_network() -> None:
    specs: dict[str, Any] = {
        "label": Spec((), "int32", 0, 9, null=10),
        "text": {"tokens": Spec((None, 2), null=0.0), "mask": Spec((None,), "bool", null=1)},
        "size": Spec((2,)),
    }
    cond = {"label": jnp.arange(3), "size": jnp.ones((3, 2))}
    found = nulls_of(specs, cond, 3)
    assert set(found) == {"label"} and found["label"].tolist() == [10] * 3
    negative = nulls_of(specs, cond, 3, {"label": jnp.array([1, 2, 3])})
    assert negative["label"].tolist() == [1, 2, 3]
    assert set(nulls_of(specs, cond, 3, {"size": jnp.zeros((3, 2))})) == {"label", "size"}  # cannot be left out itself
    text = nulls_of(specs, {"text": {"tokens": jnp.ones((3, 5, 2)), "mask": jnp.ones((3, 5), bool)}}, 3)
    assert text["text"]["tokens"].shape == (3, 1, 2) and text["text"]["mask"].dtype == bool
    for arguments, message in (
        (({"size": cond["size"]}, 3), r"a condition that can be left out: the network knows \['label', 'text'\]"),
        ((None, 3), r"the network knows \['label', 'text'\], got \[\]"),
        ((cond, 3, {"text": 0.0}), r"negative has \['text'\], but the conditions given are \['label', 'size'\]"),
        ((cond, 3, {"label": jnp.zeros(2, int)}), r"has shape \(2,\), expected \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            nulls_of(specs, *arguments)
    with pytest.raises(ValueError, match="trained without dropping any"):
        nulls_of({"size": specs["size"]}, cond, 3)
