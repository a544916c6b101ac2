"""A sampler of diffusers as a table of numbers, and the loop that follows it.

Each of their samplers is linear in what it holds. With x the sample, h_1, ..., h_m what is kept of earlier evaluations,
the network's answer f and noise z, evaluation i does

    f  = network(scale_i x, told_i)                                                              (1)
    x0 = a_i x + b_i f,     limited to a range where that is asked for                           (2)
    (x, h_1, ..., h_m) <- M_i (x, h_1, ..., h_m, x0, f, z)                                       (3)

and all numbers, those of multistep methods and of correctors too, depend on the times alone. So a scheduler is told_i,
scale_i, a_i, b_i and M_i, made on the host in float64 (`jaxdiff.pretrained.schedulers.classes`); one compiled loop
serves all of them with as many evaluations and as much kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.record import field, record

Vector = NDArray[np.float64]
"""A quantity of (3): its coefficients of what is held, of x0, f and z."""


@record
class StepTable:
    """Equations (1) to (3) of every evaluation.

    Args:
      told: ``(E,)``, what the network is told.
      scale: ``(E,)``, of its input.
      x0: ``(E, 2)``: a and b.
      moves: ``(E, S, S + 3)``: M.
      start: standard deviation of the first x.
      limit: of x0 on both sides; static. None: none.
      noisy: whether any evaluation draws noise; static.
    """

    told: Any
    scale: Any
    x0: Any
    moves: Any
    start: Any
    limit: float | None = field(default=None, pytree_node=False)
    noisy: bool = field(default=False, pytree_node=False)


class Steps:
    """Collects the evaluations of a `StepTable`.

    Args:
      kept: names of what is held beside x.

    >>> steps = Steps("before")
    >>> steps.add(999.0, 1.0, (0.5, -0.5), x=0.25 * steps["x0"] + steps["before"], before=steps["x0"])
    >>> table = steps.table()
    >>> table.moves[0].tolist()  # rows: x and before; columns: x, before, x0, f, z
    [[0.0, 1.0, 0.25, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, *kept: str) -> None:
        self.held = ("x", *kept)
        self._names = (*self.held, "x0", "f", "noise")
        self._rows: list[tuple[float, float, tuple[float, float], Vector]] = []

    def __getitem__(self, name: str) -> Vector:
        """The quantity of a name: x, what is kept, x0, f or noise."""
        return np.eye(len(self._names))[self._names.index(name)]

    def add(self, told: float, scale: float, x0: tuple[float, float], **after: Vector) -> None:
        """One evaluation.

        Args:
          told, scale, x0: equations (1) and (2).
          after: what is held after it, equation (3); what is left out stays.
        """
        moves = np.stack([after.get(name, self[name]) for name in self.held])
        self._rows.append((told, scale, x0, moves))

    def table(self, *, start: float = 1.0, limit: float | None = None) -> StepTable:
        """The table of all evaluations."""
        told, scale, x0, moves = (np.asarray(each, np.float32) for each in zip(*self._rows, strict=True))
        return StepTable(told, scale, x0, moves, np.float32(start), limit, bool(moves[..., -1].any()))


def follow(
    table: StepTable, network: Callable[[Array, Array], Array], x: Array, noise: Callable[[Array], Array] | None = None
) -> Array:
    """The sample that a table comes to.

    Args:
      table: the scheduler's.
      network: ``(scaled x, told) -> f``, of x's shape.
      x: at the first time, ``start`` times standard noise.
      noise: ``(i) -> z`` of evaluation i, of x's shape; None: no noise is drawn.

    >>> steps = Steps()
    >>> steps.add(0.0, 1.0, (1.0, -2.0), x=steps["x0"])
    >>> follow(steps.table(), lambda x, told: x / 4, jnp.ones((1, 2))).tolist()
    [[0.5, 0.5]]
    """
    held = table.moves.shape[1]
    limit = table.limit

    def step(state: Array, row: Any) -> tuple[Array, None]:
        number, told, scale, (a, b), moves = row
        f = network(state[0] * scale, told)
        x0 = a * state[0] + b * f
        x0 = x0 if limit is None else jnp.clip(x0, -limit, limit)
        z = noise(number) if table.noisy and noise is not None else jnp.zeros_like(f)
        all_held = jnp.concatenate([state, jnp.stack([x0, f, z])])
        return jnp.tensordot(moves, all_held, axes=1, precision="highest"), None

    first = jnp.concatenate([x[None], jnp.zeros((held - 1, *x.shape), x.dtype)])
    rows = jnp.arange(len(table.told)), table.told, table.scale, (table.x0[:, 0], table.x0[:, 1]), table.moves
    return jax.lax.scan(step, first, jax.tree.map(jnp.asarray, rows))[0][0]
