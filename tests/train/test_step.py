"""The step: what it computes, that accumulation changes nothing, and that it is traced once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import DenoisingLoss, Flow, Velocity
from jaxdiff.loss import Context
from jaxdiff.train import (
    Ema,
    batch_sharding,
    compile_step,
    create_sharded_state,
    create_state,
    loss_by_noise,
    make_mesh,
    make_optimizer,
    put_batch,
    state_template,
    train_step,
)
from jaxdiff.train.step import AUGMENT, Given
from tests.train.standins import Data, Loss, Net


def _advance(steps: int = 3, *, accumulate: int = 1, dropout: float = 0.0, optimizer: Any = None) -> Any:
    net, loss = Net(dropout=dropout), Loss()
    optimizer = optimizer or make_optimizer(lr=1e-2, steps=100, weight_decay=0.01)[0]
    state, data = create_state(net, optimizer, loss, jax.random.key(0)), Data()

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        return train_step(state, batch, net=net, loss=loss, optimizer=optimizer, ema=Ema(0.9), accumulate=accumulate)

    for _ in range(steps):
        state, metrics = step(state, {name: jnp.asarray(value) for name, value in next(data).items()})
    return state, metrics


def _close(a: Any, b: Any, tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_equals_the_large_batch(accumulate: int) -> None:
    whole, whole_metrics = _advance(5, optimizer=optax.sgd(0.1))
    split, split_metrics = _advance(5, accumulate=accumulate, optimizer=optax.sgd(0.1))
    _close((whole.params, whole.ema, whole.history), (split.params, split.ema, split.history), 1e-6)
    _close(whole_metrics, split_metrics, 1e-6)


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_equals_the_large_batch_to_rounding(accumulate: int) -> None:
    with jax.enable_x64(True):
        whole, whole_metrics = _advance(3, optimizer=optax.sgd(0.1))
        split, split_metrics = _advance(3, accumulate=accumulate, optimizer=optax.sgd(0.1))
        assert whole.params["in"]["kernel"].dtype == jnp.float64
        _close(whole.params, split.params, 1e-13)
        _close(whole_metrics, split_metrics, 1e-12)


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 16 does not split into 3 micro-batches"):
        _advance(1, accumulate=3)


def test_the_step_is_the_textbook_one() -> None:
    net, loss, optimizer = Net(), Loss(), optax.sgd(0.1)
    state = create_state(net, optimizer, loss, jax.random.key(0))
    batch = {name: jnp.asarray(value) for name, value in next(Data()).items()}
    ema = Ema(0.9, warmup=False)
    after, metrics = jax.jit(lambda s, b: train_step(s, b, net=net, loss=loss, optimizer=optimizer, ema=ema))(
        state, batch
    )

    draws = loss.draw(jax.random.split(jax.random.fold_in(state.key, 0))[0], batch, state.history)
    value, grads = jax.jit(jax.value_and_grad(lambda p: loss.terms(net, p, draws).loss.mean()))(state.params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    _close(after.params, params, 1e-6)
    _close(after.ema["ema"], jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.params, params), 1e-6)
    _close(metrics["loss"], value, 1e-6)
    _close(metrics["grad_norm"], optax.tree.norm(grads), 1e-6)
    _close(metrics["param_norm"], optax.tree.norm(params), 1e-6)
    assert int(after.step) == 1 and int(after.history["count"].sum()) == 16


def test_steps_draw_anew_and_dropout_draws_apart() -> None:
    net, loss, optimizer = Net(dropout=0.5), Loss(), optax.sgd(0.0)
    state = create_state(net, optimizer, loss, jax.random.key(0))
    batch = {name: jnp.asarray(value) for name, value in next(Data()).items()}
    step = jax.jit(lambda s, b: train_step(s, b, net=net, loss=loss, optimizer=optimizer, ema=Ema(0.0)))
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3
    assert float(_advance(1, dropout=0.5)[1]["loss"]) != float(_advance(1)[1]["loss"])


def test_compiled_step_is_traced_once_and_donates() -> None:
    traces = []

    class Counting(Net):
        def apply(self, *args: Any, **kwargs: Any) -> jax.Array:
            traces.append(1)
            return super().apply(*args, **kwargs)

    net, loss = Counting(), Loss()
    optimizer, schedule = make_optimizer(lr=1e-2, steps=10, warmup=2)
    parts = (net, optimizer, loss, jax.random.key(0), make_mesh(data=1))
    template = state_template(*parts)
    state = create_sharded_state(*parts)
    step = compile_step(net=net, loss=loss, optimizer=optimizer, ema=Ema(), template=template, schedule=schedule)
    first, data, rates = state, Data(), []
    for _ in range(4):
        state, metrics = step(state, put_batch(next(data), batch_sharding(parts[-1])))
        rates.append(float(metrics["lr"]))
    assert len(traces) == 1
    assert first.params["in"]["kernel"].is_deleted()
    np.testing.assert_allclose(rates, [0, 0.005, 0.01, 0.01], rtol=1e-6)


def test_loss_by_noise_keeps_a_bad_sample_in_its_bin() -> None:
    sums, counts = loss_by_noise(jnp.array([0.0, 0.99, 1.0, 0.3]), jnp.array([1.0, jnp.nan, 1.0, 2.0]), bins=4)
    np.testing.assert_array_equal(sums, [1, 2, 0, np.nan])
    np.testing.assert_array_equal(counts, [1, 1, 0, 2])


class Doubling:
    """A codec whose data are twice what is stored, moved by a draw of the key."""

    def encode(self, record: Any, key: Any = None) -> Any:
        moved = 0.0 if key is None else jax.random.normal(key)
        return {**record, "x": 2.0 * jnp.asarray(record["x"], jnp.float32) + moved}


def test_the_codec_makes_what_the_network_sees() -> None:
    """With its own key each step, apart from the loss's keys, and the same again on a resume."""
    net, loss, optimizer = Net(), Loss(), optax.sgd(0.1)
    state = create_state(net, optimizer, loss, jax.random.key(0))
    parts: Any = {"net": net, "loss": loss, "optimizer": optimizer, "ema": Ema(0.9)}
    batch = {name: jnp.asarray(value) for name, value in next(Data()).items()}
    keys, states = [], [state]
    for n in range(2):
        stepped, metrics = train_step(states[-1], batch, **parts, given=Given(codec=Doubling()))
        step_key = jax.random.fold_in(state.key, n)
        keys.append(jax.random.fold_in(step_key, AUGMENT))
        by_hand, expected = train_step(states[-1], Doubling().encode(batch, keys[-1]), **parts)
        _close((stepped.params, metrics["loss"]), (by_hand.params, expected["loss"]), 0.0)
        loss_keys = jax.random.key_data(jax.random.split(step_key)).tolist()
        assert jax.random.key_data(keys[-1]).tolist() not in loss_keys
        states.append(stepped)
    assert (jax.random.key_data(keys[0]) != jax.random.key_data(keys[1])).any()


class Told(Doubling):
    """A codec that says what stands in the place of a condition that is dropped."""

    def nulls(self) -> dict[str, Any]:
        return {"text": {"tokens": jnp.full((1, 3), 7.0)}}


def test_what_is_dropped_becomes_the_codecs_null() -> None:
    """And not that of the network; without such a codec it is the network's."""
    seen: list[Any] = []

    class Looking(Loss):
        def draw(self, key: Any, batch: Any, history: Any = (), context: Any = None) -> Any:
            seen.append(context.nulls)
            return super().draw(key, batch, history, context)

    net, optimizer = Net(), optax.sgd(0.1)
    batch = {name: jnp.asarray(value) for name, value in next(Data()).items()}
    for codec in (Told(), Doubling()):
        state = create_state(net, optimizer, Looking(), jax.random.key(0))
        train_step(state, batch, Given(codec=codec), net=net, loss=Looking(), optimizer=optimizer, ema=Ema(0.9))
    assert seen[0]["text"]["tokens"].tolist() == [[7.0] * 3] and seen[1] == {}

    objective = DenoisingLoss(Flow(), Velocity(), dropout={"text": 0.5})
    told = {"x": jnp.zeros((64, 2)), "text": {"tokens": jnp.ones((64, 3))}}
    draws = objective.draw(jax.random.key(1), told, (), Context(nulls=seen[0]))
    plain = objective.draw(jax.random.key(1), told)
    assert not draws.dropped and 0 < plain.dropped["text"].sum() < 64
    expected = jnp.where(plain.dropped["text"][:, None], 7.0, 1.0)
    np.testing.assert_array_equal(draws.cond["text"]["tokens"], jnp.broadcast_to(expected, (64, 3)))
