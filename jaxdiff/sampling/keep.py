"""States and predictions at chosen steps, kept beside the samples without ever holding the path.

For chosen indices i of the times t_0 > t_1 > ..., what is kept are x_i, the samples at t_i before the step from there,
and d(x_i, t_i), what the denoiser says of them. They are written into buffers of as many rows as there are indices,
inside the loop over the steps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.compat import get_opaque_trace_state
from jaxdiff.denoiser import Bound, recall
from jaxdiff.prediction import Prediction


@dataclass(frozen=True)
class Keep:
    """What `jaxdiff.sample` returns beside the samples. Hashable, so a static argument of `jax.jit`.

    A method that evaluates the denoiser at (x_i, t_i), as most do, has its prediction at no cost; for others
    (`EDMStochastic`, `Adaptive`, Langevin methods) it is one more evaluation at each chosen step.

    Args:
      at: indices into the times, each once, in any order; negative ones from the end, not with ``num_steps``.
      x: keep the states.
      prediction: keep the predictions.

    Raises:
      ValueError: an index that is no whole number, or twice; nothing to keep.

    >>> from jaxdiff import DDIM, Flow, GaussianDenoiser, log_snr_times, sample
    >>> exact, x, ts = GaussianDenoiser(Flow(), 3.0, 0.1), jnp.ones((4, 2)), log_snr_times(Flow(), 32)
    >>> x0, kept = sample(DDIM(Flow()), exact, None, x, ts, keep=Keep((0, 16, -1), prediction=True))
    >>> kept.x.shape, kept.prediction.x0.shape, bool((kept.prediction.x0[-1] == x0).all())
    ((3, 4, 2), (3, 4, 2), True)
    """

    at: tuple[int, ...]
    x: bool = True
    prediction: bool = False

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "at", tuple(operator.index(i) for i in self.at))
        except TypeError as error:
            raise ValueError(f"keep.at is to be indices of times, such as (0, 10, -1), got {self.at!r}") from error
        if not self.at or not (self.x or self.prediction):
            raise ValueError(f"there is nothing to keep: {self}")

    def slots(self, n: int, from_end: bool) -> Array:
        """For each of n times its row, ``(n,)``; the number of rows where it has none.

        Raises:
          ValueError: an index beyond the times, twice, or from an end that is not known.
        """
        slots = np.full(n, len(self.at), np.int32)
        for row, i in enumerate(self.at):
            if not (-n if from_end else 0) <= i < n:
                where = f"from {-n} to {n - 1}" if from_end else f"from 0 to {n - 1} where num_steps is given"
                raise ValueError(f"keep.at has {i}; there are {n} times: indices are to be {where}")
            if slots[i] != len(self.at):
                raise ValueError(f"keep.at has time {i} twice, in {self.at}")
            slots[i] = row
        return jnp.asarray(slots)


class Kept(NamedTuple):
    """What was kept, one row an index of `Keep.at`; NaN where ``num_steps`` ended before it.

    Attributes:
      x: the states ``(k, B, ...)``, or None.
      prediction: the denoiser's predictions there, ``(k, B, ...)`` each, or None.
    """

    x: Any
    prediction: Prediction | None


class Recorder:
    """Writes a `Keep`'s rows, for the loop of `jaxdiff.sampling.base`.

    Args:
      keep: what; n: the number of times; from_end: whether all of them are visited.
    """

    def __init__(self, keep: Keep, n: int, from_end: bool):
        self.keep, self.slots = keep, keep.slots(n, from_end)

    def begin(self, denoise: Bound, x: Any, t: Array) -> Kept:
        """Empty rows, and one more that what is not chosen is written to."""
        rows = len(self.keep.at) + 1

        def empty(like: Any) -> Array:
            missing = jnp.nan if jnp.issubdtype(like.dtype, jnp.floating) else 0
            return jnp.full((rows, *like.shape), missing, like.dtype)

        wanted = Kept(x if self.keep.x else None, self._evaluated_shape(denoise, x, t))
        return jax.tree.map(empty, wanted)

    def _evaluated_shape(self, denoise: Bound, x: Any, t: Array) -> Any:
        return jax.eval_shape(lambda: _evaluated(denoise, x, t)) if self.keep.prediction else None

    def watching(self, denoise: Bound, x: Any, t: Array) -> tuple[Bound, list[Prediction]]:
        """The denoiser for a step from (x, t), and a list that its prediction there will be in."""
        seen: list[Prediction] = []
        place, watch = get_opaque_trace_state(), denoise.watch

        def note(at_x: Array, at_t: ArrayLike, prediction: Prediction) -> None:
            if at_x is x and at_t is t and get_opaque_trace_state() == place:
                seen.append(prediction)
            if watch is not None:
                watch(at_x, at_t, prediction)

        return Bound(denoise.denoise, denoise.cond, denoise.memory, note), seen

    def write(self, kept: Kept, i: ArrayLike, x: Any, prediction: Callable[[], Prediction]) -> Kept:
        """The rows with those of the i-th time."""
        slot = self.slots[i]
        value = Kept(x if self.keep.x else None, None)
        if self.keep.prediction:
            value = value._replace(prediction=prediction())
        update = jax.lax.dynamic_update_index_in_dim
        return jax.tree.map(lambda rows, row: update(rows, row.astype(rows.dtype), slot, 0), kept, value)

    def prediction(self, i: ArrayLike, denoise: Bound, x: Any, t: Array, seen: list[Prediction]) -> Prediction:
        """That at (x, t): seen in the step, else evaluated where it is wanted; what that would remember is dropped."""
        if seen:
            return seen[0]
        like = self._evaluated_shape(denoise, x, t)
        return jax.lax.cond(
            self.slots[i] < len(self.keep.at),
            lambda: _evaluated(denoise, x, t),
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
        )

    def finish(self, kept: Kept) -> Kept:
        """The rows of the chosen times."""
        return jax.tree.map(lambda rows: rows[:-1], kept)


def _evaluated(denoise: Bound, x: Any, t: Array) -> Prediction:
    return recall(denoise.denoise, x, t, denoise.cond, denoise.memory)[0]
