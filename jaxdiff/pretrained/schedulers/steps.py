"""A sampler of diffusers as a table of numbers, and the loop that follows it.

Each of their samplers is linear in what it holds. With x the sample, h_1, ..., h_m what is kept of earlier evaluations,
the network's answer f and noise z, evaluation i does

    f  = network(scale_i x, told_i)                                                              (1)
    x0 = a_i x + b_i f,     limited to a range where that is asked for                           (2)
    (x, h_1, ..., h_m) <- M_i (x, h_1, ..., h_m, x0, f, z)                                       (3)

and all numbers, those of multistep methods and of correctors too, depend on the times alone. So a scheduler is told_i,
scale_i, a_i, b_i and M_i, made on the host in float64 (`jaxdiff.pretrained.schedulers.classes`); one compiled loop
serves all of them with as many evaluations and as much kept.

A picture k enters as the scheduler adds noise e to it: evaluation i begins at x of the level

    x = c_i k + d_i e                                                                            (4)

whatever was drawn before. Where a part of the picture is kept (mask m is 0), (4) of the next evaluation takes the place
of x there after each one, and k after the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

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
      noised: ``(E, 2)``: c and d of equation (4).
      begin: ``(2,)``: c and d of the first x; of noise alone 0 and its standard deviation.
      number: ``(E,)``, which evaluation of the whole way each is; it decides the noise.
      limit: of x0 on both sides; static. None: none.
      noisy: whether any evaluation draws noise; static.
    """

    told: Any
    scale: Any
    x0: Any
    moves: Any
    noised: Any
    begin: Any
    number: Any
    limit: float | None = field(default=None, pytree_node=False)
    noisy: bool = field(default=False, pytree_node=False)

    @property
    def start(self) -> Any:
        """Standard deviation of the noise in the first x."""
        return self.begin[1]

    def part(self, first: int, end: int | None = None) -> StepTable:
        """The evaluations from one to before another; None: to the last."""
        names = ("told", "scale", "x0", "moves", "noised", "number")
        return dataclasses.replace(self, **{name: getattr(self, name)[first:end] for name in names})

    def from_picture(self) -> StepTable:
        """The same, which begins as a picture with the noise of its first evaluation."""
        return dataclasses.replace(self, begin=self.noised[0])


class Picture(NamedTuple):
    """What samples begin as, or keep a part of.

    Attributes:
      x0: ``(B, ...)``: k of equation (4).
      noise: likewise: e.
      mask: likewise, one channel or all: 1 where x is drawn, 0 where k is kept.
    """

    x0: Array
    noise: Array
    mask: Array


class Steps:
    """Collects the evaluations of a `StepTable`.

    Args:
      kept: names of what is held beside x.

    >>> steps = Steps("before")
    >>> steps.add(999.0, 1.0, (0.5, -0.5), x=0.25 * steps["x0"] + steps["before"], before=steps["x0"])
    >>> table = steps.table([(0.1, 0.9)])
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

    def table(self, noised: ArrayLike, *, start: float = 1.0, limit: float | None = None) -> StepTable:
        """The table of all evaluations.

        Args:
          noised: ``(E, 2)``: equation (4).
          start: standard deviation of the first x, of noise alone.
          limit: see `StepTable`.
        """
        told, scale, x0, moves = (np.asarray(each, np.float32) for each in zip(*self._rows, strict=True))
        levels, begin = np.asarray(noised, np.float32), np.array([0.0, start], np.float32)
        assert levels.shape == (len(told), 2), (levels.shape, len(told))
        numbers, noisy = np.arange(len(told), dtype=np.int32), bool(moves[..., -1].any())
        return StepTable(told, scale, x0, moves, levels, begin, numbers, limit, noisy)


def follow(
    table: StepTable,
    network: Callable[[Array, Array, Any], Array],
    x: Array,
    noise: Callable[[Array], Array] | None = None,
    picture: Picture | None = None,
    beside: Any = None,
) -> Array:
    """The sample that a table comes to.

    Args:
      table: the scheduler's.
      network: ``(scaled x, told, beside) -> f``, of x's shape.
      x: at the first time, ``start`` times standard noise.
      noise: ``(i) -> z`` of evaluation i, of x's shape; None: no noise is drawn.
      picture: whose part is kept; None: none.
      beside: arrays ``(E, ...)`` of which the network is given its evaluation's; None: None.

    >>> steps = Steps()
    >>> steps.add(0.0, 1.0, (1.0, -2.0), x=steps["x0"])
    >>> follow(steps.table([(0.0, 1.0)]), lambda x, told, _: x / 4, jnp.ones((1, 2))).tolist()
    [[0.5, 0.5]]
    """
    held = table.moves.shape[1]
    limit = table.limit

    def step(state: Array, row: Any) -> tuple[Array, None]:
        number, told, scale, (a, b), moves, (c, d), mine = row
        f = network(state[0] * scale, told, mine)
        x0 = a * state[0] + b * f
        x0 = x0 if limit is None else jnp.clip(x0, -limit, limit)
        z = noise(number) if table.noisy and noise is not None else jnp.zeros_like(f)
        all_held = jnp.concatenate([state, jnp.stack([x0, f, z])])
        after = jnp.tensordot(moves, all_held, axes=1, precision="highest")
        if picture is not None:
            kept = c * picture.x0 + d * picture.noise
            after = after.at[0].set(picture.mask * after[0] + (1 - picture.mask) * kept)
        return after, None

    first = jnp.concatenate([x[None], jnp.zeros((held - 1, *x.shape), x.dtype)])
    noised = jnp.concatenate([jnp.asarray(table.noised)[1:], jnp.array([[1.0, 0.0]])])  # of the evaluation after
    x0, levels = (table.x0[:, 0], table.x0[:, 1]), (noised[:, 0], noised[:, 1])
    rows = table.number, table.told, table.scale, x0, table.moves, levels, beside
    return jax.lax.scan(step, first, jax.tree.map(jnp.asarray, rows))[0][0]
