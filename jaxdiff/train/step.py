"""One step of training: draw, differentiate, update, average.

    (0)  batch      = codec.encode(records, fold_in(key, n))                data as stored -> x0 and conditions
    (1)  draws      = loss.draw(fold_in(key, n), batch, history, context)   once for the whole batch
    (2)  g          = grad of mean_i loss_i(params, draws_i, context)       as the mean over `accumulate` micro-batches
    (3)  params, h  = optimizer(g), loss.update(history, draws, terms)
    (4)  ema        = d ema + (1 - d) params                                each of the averages, by its own rule

(3) and (4) are left out where the loss or g is bad (`jaxdiff.train.guard`); n moves on all the same.

The codec and all weights that are not trained are arguments, `Given`. Of a network that is trained in part, params are
the trained leaves; g is taken with respect to them alone, the loss sees all.

Because the draws are made before the batch is split, accumulating over micro-batches gives the large batch's gradient
up to rounding (with dropout on, the masks differ: a network draws them for the batch it is given).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.loss import Context
from jaxdiff.networks.placement import samples_over
from jaxdiff.train.ema import Rules, rules_by_name, update_ema
from jaxdiff.train.frozen import joined
from jaxdiff.train.guard import judge
from jaxdiff.train.sharding import batch_sharding
from jaxdiff.train.state import Loss, Network, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
NOISE_BINS = 8


AUGMENT = 0x61756765
"""Salt of the codec's draws, apart from the loss's."""


class Given(NamedTuple):
    """What each step is given beside the state and its batch: arguments of the jitted step that do not change.

    Attributes:
        codec: makes x0 and conditions of stored records; None: the batch holds them already.
        frozen: weights that are not trained, by name: `jaxdiff.loss.Context`.
        base: leaves of the network's own parameters that are not trained; {}: all are.
    """

    codec: Any = None
    frozen: Mapping[str, Any] = {}
    base: Mapping[str, Any] = {}


def train_step(
    state: TrainState,
    batch: Batch,
    given: Given = Given(),
    *,
    net: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema: Rules,
    accumulate: int = 1,
    spike: float | None = None,
    max_skipped: int = 10,
) -> tuple[TrainState, Metrics]:
    """Advance the state by one optimizer step, or skip it. Pure; `compile_step` jits it with donation and shardings.

    Args:
        state: the state after n steps.
        batch: records as their source stores them, {"x": (B, ...), ...}, every leaf with leading axis B.
        given: codec and frozen weights.
        net, loss, optimizer, ema: configuration; static under jit.
        accumulate: micro-batches a step, at least 1, a divisor of B; peak activation memory falls by about as much.
        spike: a gradient's norm of more than so many times its running median is bad, above 1; None: only what is not
            finite is.
        max_skipped: bad steps in a row after which nothing changes any more but the step's number.

    Returns:
        The state after n + 1 steps, and metrics: `loss`, `grad_norm` (before clipping), `param_norm` (after the step),
        all float32 (); `loss_by_noise` (2, 8): sums over t in [k/8, (k+1)/8) of the unweighted error, and counts, or
        the loss's own `figures`; `skipped` and `in_a_row`, int32 (): bad steps so far, and since the last good one.

    Raises:
        ValueError: B is not divisible by `accumulate`.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax
        >>> from typing import NamedTuple
        >>> from jaxdiff.train import Ema, create_state
        >>> class Draws(NamedTuple):
        ...     x: jax.Array
        ...     t: jax.Array
        >>> class Terms(NamedTuple):
        ...     loss: jax.Array
        ...     mse: jax.Array
        >>> class Net:
        ...     def init(self, key): return {"w": jnp.zeros(())}
        >>> class FitOne:                                                # (w x - 1)^2
        ...     def init(self): return ()
        ...     def draw(self, key, batch, history, context): return Draws(batch["x"], jax.random.uniform(key, (4,)))
        ...     def terms(self, net, params, draws, context, key):
        ...         return Terms(*2 * [(params["w"] * draws.x - 1.0) ** 2])
        ...     def update(self, history, draws, terms): return history
        >>> parts = dict(net=Net(), loss=FitOne(), optimizer=optax.sgd(0.1))
        >>> state = create_state(**parts, key=jax.random.key(0))
        >>> state, metrics = train_step(state, {"x": jnp.ones(4)}, **parts, ema=Ema(0.0))
        >>> float(metrics["loss"]), round(float(state.params["w"]), 6)
        (1.0, 0.2)
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    if accumulate < 1 or size % accumulate:
        raise ValueError(
            f"a batch of {size} does not split into {accumulate} micro-batches; use a multiple of {accumulate}"
        )
    key = jax.random.fold_in(state.key, state.step)
    draw_key, dropout_key = jax.random.split(key)
    if given.codec is not None:
        batch = given.codec.encode(batch, jax.random.fold_in(key, AUGMENT))
    nulls = given.codec.nulls() if hasattr(given.codec, "nulls") else {}
    context = Context(state.step, state.ema, given.frozen, nulls)
    draws = loss.draw(draw_key, batch, state.history, context)

    def objective(params: Any, draws: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        terms = loss.terms(net, joined(params, given.base), draws, context, key)
        return jnp.mean(terms.loss), terms

    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if accumulate == 1:
        (value, terms), grads = value_and_grad(state.params, draws, dropout_key)
    else:

        def add_micro_batch(total: Any, inputs: tuple[Any, jax.Array]) -> tuple[Any, Any]:
            out, grads = value_and_grad(state.params, *inputs)
            return jax.tree.map(lambda a, g: a + g / accumulate, total, grads), out

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        keys = jax.random.split(dropout_key, accumulate)
        grads, (values, terms) = jax.lax.scan(add_micro_batch, zeros, (_split(draws, accumulate), keys))
        value, terms = jnp.mean(values), _join(terms)

    grad_norm = optax.tree.norm(grads)
    taken, guard = judge(state.guard, value, grad_norm, spike=spike, max_skipped=max_skipped)

    def if_taken(new: Any, old: Any) -> Any:
        # A select rather than a branch: it becomes a part of the loops over the parameters that are there anyway.
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = {
        name: update_ema(state.ema[name], params, rule.decay(state.step, size))
        for name, rule in rules_by_name(ema).items()
    }
    history = loss.update(state.history, draws, jax.lax.stop_gradient(terms))
    after = TrainState(
        step=state.step + 1,
        params=if_taken(params, state.params),
        ema=if_taken(average, state.ema),
        opt_state=if_taken(opt_state, state.opt_state),
        key=state.key,
        history=if_taken(history, state.history),
        guard=guard,
    )
    metrics = {
        "loss": value,
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(after.params),
        "skipped": guard.skipped,
        "in_a_row": guard.in_a_row,
    }
    return after, metrics | figures_of(loss, draws, terms)


def figures_of(loss: Loss, draws: Any, terms: Any) -> Metrics:
    """What a loss says of a step beside its value: its own `figures(draws, terms)`, or the error by noise level."""
    own: Callable[[Any, Any], Metrics] | None = getattr(loss, "figures", None)
    return {"loss_by_noise": loss_by_noise(draws.t, terms.mse)} if own is None else own(draws, terms)


def loss_by_noise(t: jax.Array, mse: jax.Array, bins: int = NOISE_BINS) -> jax.Array:
    """Sums and counts of the unweighted error in equal bins of t, so that batches add up.

    Args:
        t: (B,) in [0, 1].
        mse: (B,).
        bins: K.

    Returns:
        (2, K) float32: sums of mse, and counts.

    Example:
        >>> import jax.numpy as jnp
        >>> loss_by_noise(jnp.array([0.1, 0.2, 1.0]), jnp.array([1.0, 3.0, 5.0]), bins=2).tolist()
        [[4.0, 5.0], [2.0, 1.0]]
    """
    index = jnp.clip(jnp.floor(t * bins).astype(jnp.int32), 0, bins - 1)
    inside = index[:, None] == jnp.arange(bins)[None, :]  # (B, K)
    return jnp.stack([jnp.where(inside, mse[:, None], 0.0).sum(axis=0), inside.astype(jnp.float32).sum(axis=0)])


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted step of `compile_step`; `given` may be left out."""

    jitted: Any

    def __call__(self, state: TrainState, batch: Batch, given: Given = Given()) -> tuple[TrainState, Metrics]:
        new: tuple[TrainState, Metrics] = self.jitted(state, batch, given)
        return new

    def lower(self, state: TrainState, batch: Batch, given: Given = Given()) -> Any:
        """As a jitted function's ``lower``: its compiled form takes all three."""
        return self.jitted.lower(state, batch, given)


def compile_step(
    *,
    net: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema: Rules,
    template: TrainState,
    schedule: optax.Schedule | None = None,
    accumulate: int = 1,
    spike: float | None = None,
    max_skipped: int = 10,
) -> Step:
    """`train_step` under one jit: the state is donated (its buffers are reused; do not touch the old one), shardings
    are fixed.

    Args:
        net, loss, optimizer, ema, accumulate, spike, max_skipped: see `train_step`.
        schedule: when given, its value is among the metrics as `lr`. Like the optimizer, it counts the steps taken.
        template: from `state_template`: the shardings of the state and, by its mesh, of the batch.

    Returns:
        `(state, batch, given) -> (state, metrics)`; `given` lies on the devices (`jax.device_put`), metrics are
        replicated.
    """

    def step(state: TrainState, batch: Batch, given: Given) -> tuple[TrainState, Metrics]:
        with samples_over(batch_sharding(mesh)):
            new, metrics = train_step(
                state,
                batch,
                given,
                net=net,
                loss=loss,
                optimizer=optimizer,
                ema=ema,
                accumulate=accumulate,
                spike=spike,
                max_skipped=max_skipped,
            )
        if schedule is not None:
            metrics["lr"] = jnp.asarray(schedule(state.step - state.guard.skipped), jnp.float32)
        return new, metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    mesh = shardings.step.mesh
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh), None),
        out_shardings=(shardings, replicated),
    )
    return Step(jitted)


def several_steps(step: Callable[..., tuple[TrainState, Metrics]], state: TrainState) -> Any:
    """Several steps under one jit, by `jax.lax.scan`: one call from the host, and the same states.

    Args:
        step: from `compile_step`.
        state: its shardings, which the new state gets; it is donated.

    Returns:
        A jitted `(state, batches, given) -> (state, metrics)`: batches are a tuple, each metric has a leading axis of
        its length.

    Example:
        >>> import dataclasses, types, jax, jax.numpy as jnp, optax
        >>> from jaxdiff.train import create_sharded_state, make_mesh
        >>> net = types.SimpleNamespace(init=lambda key: {"w": jax.random.normal(key, (2,))})
        >>> loss = types.SimpleNamespace(init=lambda: ())
        >>> state = create_sharded_state(net, optax.sgd(0.1), loss, jax.random.key(0), make_mesh(data=1))
        >>> def step(state, batch, given):
        ...     return dataclasses.replace(state, step=state.step + 1), {"mean": batch["x"].mean()}
        >>> three = tuple({"x": jnp.full(4, float(n))} for n in range(3))
        >>> state, metrics = several_steps(step, state)(state, three, None)
        >>> int(state.step), metrics["mean"].tolist()
        (3, [0.0, 1.0, 2.0])
    """

    def steps(state: TrainState, batches: tuple[Batch, ...], given: Any = Given()) -> tuple[TrainState, Metrics]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return jax.lax.scan(lambda state, batch: step(state, batch, given), state, stacked)

    shardings: Any = jax.tree.map(lambda leaf: leaf.sharding, state)
    replicated = NamedSharding(shardings.step.mesh, PartitionSpec())
    return jax.jit(steps, donate_argnums=0, out_shardings=(shardings, replicated))


def _split(tree: Any, parts: int) -> Any:
    # (B, ...) -> (parts, B/parts, ...), taking every parts-th sample: a batch that is sharded over its first axis then
    # stays where it is, whereas contiguous parts would each lie on a few devices only.
    return jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), tree)


def _join(tree: Any) -> Any:
    # The inverse of _split: (parts, B/parts, ...) -> (B, ...).
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), tree)
