"""What training carries from step to step, as one pytree.

Everything a restart needs is here (the data position, which lives on the host, is saved beside it), and nothing else
is: optimizer, loss and network are configuration. The key never changes; the randomness of step n is
`fold_in(key, n)`, so a restart at step n draws what the unbroken run would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxdiff.record import record
from jaxdiff.train.guard import Guard, new_guard

Params = Any  # a nested dict of arrays


class Initial(Protocol):
    """What has fresh parameters."""

    def init(self, key: jax.Array) -> Params: ...


class Network(Initial, Protocol):
    """The pure boundary of a network: what `jaxdiff.networks.functional` returns."""

    def apply(self, params: Params, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array: ...


class Loss(Protocol):
    """What a step asks of a loss; `jaxdiff.loss.DenoisingLoss` is one."""

    def init(self) -> Any: ...

    def draw(self, key: jax.Array, batch: Any, history: Any, context: Any) -> Any: ...

    def terms(self, net: Any, params: Params, draws: Any, context: Any, key: jax.Array | None = None) -> Any: ...

    def update(self, history: Any, draws: Any, terms: Any) -> Any: ...


@record
class TrainState:
    """The state of a run after `step` steps.

    Attributes:
        step: int32 (), steps done, skipped ones included.
        params: the network's parameters, a nested dict of arrays.
        ema: their running averages by name, each float32 and the same tree; the first is what is sampled from.
        opt_state: optax state.
        key: typed PRNG key (), constant over the run.
        history: what the loss remembers of earlier batches (importance sampling of t); () when nothing.
        guard: what decides which steps are skipped (`jaxdiff.train.guard`).
    """

    step: jax.Array
    params: Params
    ema: Mapping[str, Params]
    opt_state: optax.OptState
    key: jax.Array
    history: Any
    guard: Guard


def create_state(
    net: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    key: jax.Array,
    averages: Sequence[str] = ("ema",),
    trained: Callable[[Params], Params] = lambda params: params,
) -> TrainState:
    """Make the state of step 0. Pure: run it under `jax.jit` with out_shardings (`sharding.create_sharded_state`) for
    big networks.

    Args:
        net: has `init(key) -> params`.
        optimizer: an optax transformation.
        loss: has `init() -> history`.
        key: typed PRNG key (); parameters and steps draw from separate children of it.
        averages: names of the running averages.
        trained: of all parameters, those that are trained (`jaxdiff.train.frozen`); the state holds no others.

    Returns:
        A TrainState whose averages equal the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> class Net:
        ...     init = staticmethod(lambda key: {"w": jax.random.normal(key, (2,))})
        >>> class Loss:
        ...     init = staticmethod(lambda: ())
        >>> state = create_state(Net(), optax.adam(1e-3), Loss(), jax.random.key(0))
        >>> int(state.step), state.ema["ema"]["w"].dtype.name
        (0, 'float32')
    """
    init_key, step_key = jax.random.split(key)
    params = trained(net.init(init_key))
    # Copies, not the same arrays: a donated buffer may stand in the state once only.
    ema = {name: jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) for name in averages}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), step_key, loss.init(), new_guard())
