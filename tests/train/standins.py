"""A tiny network, loss and data stream that keep the contracts of the real ones: what `tests/train` trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.record import field, record


@dataclasses.dataclass(frozen=True)
class Net:
    """Two dense layers over flattened 4x4x1 images, time appended; dropout with a key."""

    width: int = 16
    dropout: float = 0.0
    cond: ClassVar[dict[str, Any]] = {}

    def init(self, key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "in": {"kernel": jax.random.normal(first, (17, self.width)) * 0.2, "bias": jnp.zeros(self.width)},
            "out": {"kernel": jax.random.normal(second, (self.width, 16)) * 0.2, "bias": jnp.zeros(16)},
        }

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        flat = jnp.concatenate([x.reshape(x.shape[0], -1), t[:, None]], axis=1)
        hidden = jnp.tanh(flat @ params["in"]["kernel"] + params["in"]["bias"][None])
        if self.dropout and key is not None:
            hidden = hidden * jax.random.bernoulli(key, 1 - self.dropout, hidden.shape) / (1 - self.dropout)
        return (hidden @ params["out"]["kernel"] + params["out"]["bias"][None]).reshape(x.shape)


class Draws(NamedTuple):
    x0: jax.Array
    eps: jax.Array
    t: jax.Array


class Terms(NamedTuple):
    loss: jax.Array
    mse: jax.Array
    score_norm2: jax.Array


@record
class Loss:
    """Denoising on a linear path; the history counts samples and sums errors per half of [0, 1].

    NaN where a pixel is at least `poison`, else as many times as large as the largest pixel above 1.
    """

    poison: float = field(default=float("inf"), pytree_node=False)

    def init(self) -> Any:
        return {"count": jnp.zeros(2, jnp.int32), "sum": jnp.zeros(2)}

    def draw(self, key: jax.Array, batch: Any, history: Any, context: Any = None) -> Draws:
        time, noise = jax.random.split(key)
        image = batch["x"]
        return Draws(image, jax.random.normal(noise, image.shape), jax.random.uniform(time, image.shape[:1]))

    def terms(self, net: Any, params: Any, draws: Draws, context: Any = None, key: jax.Array | None = None) -> Terms:
        t = draws.t[:, None, None, None]
        error = net.apply(params, (1 - t) * draws.x0 + t * draws.eps, draws.t, None, key=key) - draws.eps
        mse = jnp.mean(error**2, axis=(1, 2, 3))
        poisoned = jnp.where(draws.x0.max() >= self.poison, jnp.nan, jnp.maximum(jnp.abs(draws.x0).max(), 1.0))
        return Terms(mse * poisoned, mse, mse)

    def update(self, history: Any, draws: Draws, terms: Terms) -> Any:
        late = jax.nn.one_hot((draws.t >= 0.5).astype(jnp.int32), 2)
        return {
            "count": history["count"] + late.sum(axis=0).astype(jnp.int32),
            "sum": history["sum"] + (late * terms.mse[:, None]).sum(axis=0),
        }


class Data:
    """Batch n depends on n alone; the position is the number of batches handed out.

    One image is NaN in the batches `bad`; all are 1000 times as large in the batches `huge`.
    """

    def __init__(
        self, batch_size: int = 16, position: Any = None, bad: Collection[int] = (), huge: Collection[int] = ()
    ) -> None:
        self.batch_size, self.bad, self.huge = batch_size, bad, huge
        self.position: Any = position or {"batches": 0}

    def earlier(self, position: Any, batches: int, /) -> Any:
        return {"batches": position["batches"] - batches}

    def records(self, position: Any, /) -> list[int]:
        return [position["batches"] * self.batch_size + n for n in range(self.batch_size)]

    def __iter__(self) -> Data:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        n = self.position["batches"]
        self.position = {"batches": n + 1}
        image = np.random.default_rng(n).uniform(-1, 1, (self.batch_size, 4, 4, 1)).astype(np.float32)
        image[3] = np.nan if n in self.bad else image[3]
        image *= 1000 if n in self.huge else 1
        return {"x": image, "label": np.zeros(self.batch_size, np.int32)}
