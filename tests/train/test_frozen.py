"""What a step is given beside its batch: frozen leaves, frozen weights; several averages and networks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.train import Checkpoints, Ema, compile_step, create_sharded_state, create_state, make_mesh, state_template
from jaxdiff.train.frozen import joined, partition
from jaxdiff.train.step import Given, train_step
from tests.train.standins import Data, Draws, Loss, Net, Terms

OPTIMIZER = optax.adam(1e-2)


def batch() -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in next(Data()).items()}


def test_partition_is_by_paths_and_joined_undoes_it():
    params = Net().init(jax.random.key(0))
    trained, held = partition(params, ["in"])
    assert sorted(trained) == ["out"] and sorted(held) == ["in"]
    trained, held = partition(params, ["*/bias"])
    assert sorted(held["in"]) == ["bias"] and sorted(trained["out"]) == ["kernel"]
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, joined(trained, held), params))
    with pytest.raises(ValueError, match=r"'middle' matches no parameter; they lie under in, out"):
        partition(params, ["middle"])
    with pytest.raises(ValueError, match="nothing is left to train"):
        partition(params, ["in", "out"])


def test_frozen_leaves_stay_and_the_others_move_as_they_would():
    net, loss, whole = Net(), Loss(), Net().init(jax.random.split(jax.random.key(0))[0])
    held = partition(whole, ["in"])[1]
    state = create_state(net, OPTIMIZER, loss, jax.random.key(0), trained=lambda params: partition(params, ["in"])[0])
    assert sorted(state.params) == ["out"] and sorted(state.ema["ema"]) == ["out"]
    options: Any = {"net": net, "loss": loss, "optimizer": optax.sgd(0.1), "ema": Ema(0.9)}
    part = create_state(net, optax.sgd(0.1), loss, jax.random.key(0), trained=lambda p: partition(p, ["in"])[0])
    full = create_state(net, optax.sgd(0.1), loss, jax.random.key(0))
    moved, metrics = jax.jit(lambda s, b, g: train_step(s, b, g, **options))(part, batch(), Given(base=held))
    all_moved, all_metrics = jax.jit(lambda s, b: train_step(s, b, **options))(full, batch())
    np.testing.assert_allclose(moved.params["out"]["kernel"], all_moved.params["out"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], all_metrics["loss"], rtol=1e-6)
    assert float(metrics["grad_norm"]) < float(all_metrics["grad_norm"])


def test_a_checkpoint_holds_trained_leaves_alone(tmp_path):
    def trained(params: Any) -> Any:
        return partition(params, ["in"])[0]

    parts: Any = (Net(), OPTIMIZER, Loss(), jax.random.key(0), make_mesh(data=1))
    template = state_template(*parts, trained=trained)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, create_sharded_state(*parts, trained=trained))
        checkpoints.wait()
        restored, _ = checkpoints.restore(template)
    assert sorted(restored.params) == ["out"]
    assert sum(leaf.size for leaf in jax.tree.leaves(restored.opt_state)) == 2 * (16 * 16 + 16) + 1


def test_averages_have_names_and_rules_of_their_own(tmp_path):
    parts: Any = (Net(), OPTIMIZER, Loss(), jax.random.key(0), make_mesh(data=1))
    rules = {"ema": Ema(0.9, warmup=False), "short": Ema(0.5, warmup=False)}
    template = state_template(*parts, averages=tuple(rules))
    step = compile_step(net=parts[0], loss=parts[2], optimizer=OPTIMIZER, ema=rules, template=template)
    state = create_sharded_state(*parts, averages=tuple(rules))
    first = jax.tree.map(np.asarray, state.params)
    state, _ = step(state, batch())
    for name, rate in (("ema", 0.9), ("short", 0.5)):
        expected = jax.tree.map(lambda old, new, rate=rate: rate * old + (1 - rate) * new, first, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema[name], expected)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(template)
        shapes = jax.eval_shape(Net().init, jax.random.key(0))
        _, short = checkpoints.restore_weights(shapes, ema="short")
        with pytest.raises(Exception, match="missing"):
            checkpoints.restore_weights(shapes, ema="long")
    for a, b in zip(
        jax.tree.leaves((restored.ema, short)), jax.tree.leaves((state.ema, state.ema["short"])), strict=True
    ):
        np.testing.assert_array_equal(a, b)


class Pulled(Loss):
    """The error to a frozen network's output, and the distance to the average: needs the whole context."""

    def terms(self, net: Any, params: Any, draws: Draws, context: Any = None, key: Any = None) -> Terms:
        teacher = net.apply(context.frozen["teacher"], draws.x0, draws.t)
        average = net.apply(context.ema["ema"], draws.x0, draws.t)
        error = net.apply(params, draws.x0, draws.t) - teacher + 0 * average
        mse = jnp.mean(error**2, axis=(1, 2, 3)) * (1 + 0 * context.step)
        return Terms(mse, mse, mse)


def test_frozen_weights_are_arguments_so_others_compile_nothing():
    net, loss, traces = Net(), Pulled(), []
    state = create_state(net, OPTIMIZER, loss, jax.random.key(0))

    @jax.jit
    def step(state, batch, given):
        traces.append(1)
        return train_step(state, batch, given, net=net, loss=loss, optimizer=OPTIMIZER, ema=Ema(0.9))

    own = Given(frozen={"teacher": state.params})
    other = Given(frozen={"teacher": net.init(jax.random.key(5))})
    assert float(step(state, batch(), own)[1]["loss"]) == 0.0
    assert float(step(state, batch(), other)[1]["loss"]) > 0.0
    assert len(traces) == 1
    leaves = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    consts = jax.make_jaxpr(step)(state, batch(), other).consts
    assert sum(np.size(c) for c in consts) < leaves


def test_several_networks_in_one_step_each_with_its_optimizer():
    from jaxdiff.networks import MLP, Networks, functional

    nets = Networks((("student", functional(MLP(width=8))), ("critic", functional(MLP(width=16)))))

    class Both(Loss):
        def terms(self, net: Any, params: Any, draws: Draws, context: Any = None, key: Any = None) -> Terms:
            x = draws.x0.reshape(len(draws.t), -1)[:, :2]
            errors = [net[name].apply(params[name], x, draws.t) - 1.0 for name in ("student", "critic")]
            mse = jnp.stack([jnp.mean(error**2, axis=1) for error in errors]).sum(axis=0)
            return Terms(mse, mse, mse)

    optimizer = optax.multi_transform(
        {"student": optax.sgd(0.1), "critic": optax.set_to_zero()}, lambda p: {n: n for n in p}
    )
    state = create_state(nets, optimizer, Both(), jax.random.key(0))  # type: ignore[arg-type]
    moved, metrics = jax.jit(
        lambda s, b: train_step(s, b, net=nets, loss=Both(), optimizer=optimizer, ema=Ema(0.9))  # type: ignore[arg-type]
    )(state, batch())
    same = {
        name: all(
            jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), moved.params[name], state.params[name]))
        )
        for name in ("student", "critic")
    }
    assert same == {"student": False, "critic": True}
    assert float(metrics["loss"]) > 0
