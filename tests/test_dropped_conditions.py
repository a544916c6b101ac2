"""Conditions that are dropped at random in training: each by itself, to the null that the network declares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.spec import Spec


class Told:
    """A network whose output is the label it was told."""

    cond = {"label": Spec((), "int32", 0, 255, null=256), "style": Spec((2,), null=-1.0)}  # noqa: RUF012

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        return jnp.broadcast_to(cond["label"].astype(jnp.float32)[:, None], x.shape)


def test_conditions_are_dropped_to_the_nulls_of_the_network_each_by_itself() -> None:
    n = 20_000
    batch = {"x": jnp.zeros((n, 1)), "label": jnp.full(n, 255, jnp.uint8), "style": jnp.ones((n, 2))}
    loss = jd.DenoisingLoss(jd.VP(), jd.Eps(), dropout={"label": 0.2, "style": 0.5})
    draws = loss.draw(jax.random.key(0), batch)
    told = draws.conditions(Told())
    assert told["label"].dtype == jnp.int32 and set(np.unique(told["label"])) == {255, 256}  # 256 is no uint8
    label, style = told["label"] == 256, (told["style"] == -1.0).all(axis=1)
    assert float(label.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(style.mean()) == pytest.approx(0.5, abs=0.02)
    assert float((label & style).mean()) == pytest.approx(0.1, abs=0.01)  # independent
    alone = jd.DenoisingLoss(jd.VP(), jd.Eps(), dropout={"label": 0.2}).draw(jax.random.key(0), batch)
    np.testing.assert_array_equal(alone.dropped["label"], draws.dropped["label"])  # whatever stands beside it
    np.testing.assert_array_equal(alone.eps, draws.eps)
    kept = jd.DenoisingLoss(jd.VP(), jd.Eps()).draw(jax.random.key(0), batch)
    assert (kept.conditions(Told())["label"] == 255).all()
    assert float(loss.terms(Told(), (), draws).mse.max()) > 250**2


def test_a_condition_that_cannot_be_dropped_is_refused() -> None:
    class Fixed(Told):
        cond = {"label": Spec((), "int32", 0, 255)}  # noqa: RUF012

    batch = {"x": jnp.zeros((4, 1)), "label": jnp.zeros(4, jnp.int32)}
    loss = jd.DenoisingLoss(jd.VP(), jd.Eps(), dropout={"label": 0.5})
    with pytest.raises(ValueError, match=r"cond\['label'\] has no null"):
        loss.terms(Fixed(), (), loss.draw(jax.random.key(0), batch))
    with pytest.raises(ValueError, match=r"dropout of \['text'\]"):
        jd.DenoisingLoss(jd.VP(), jd.Eps(), dropout={"text": 0.5}).draw(jax.random.key(0), batch)


def test_rates_of_dropout_are_data() -> None:
    batch, traces = {"x": jnp.zeros((4, 1)), "label": jnp.zeros(4, jnp.int32)}, []

    @jax.jit
    def draw(loss: jd.DenoisingLoss) -> jax.Array:
        traces.append(1)
        return loss.draw(jax.random.key(0), batch).dropped["label"]

    assert not draw(jd.DenoisingLoss(jd.VP(), jd.Eps(), dropout={"label": 0.0})).any()
    assert draw(jd.DenoisingLoss(jd.VP(), jd.Eps(), dropout={"label": 1.0})).all()
    assert len(traces) == 1
