"""The smallest networks that take text, on points: ids, or the states of a frozen encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxdiff import Flow, Velocity
from jaxdiff.config import Config, LossConfig, SampleConfig, TrainConfig
from jaxdiff.data import Source, Words, from_arrays
from jaxdiff.networks.text import CLIPText, TextEncoder
from jaxdiff.spec import Spec, Specs
from jaxdiff.train import Ema, save_network

PLACES = {"left": -1.0, "right": 1.0}
CAPTIONS = ("a point on the left", "a point on the right", "the left one", "right")


@dataclasses.dataclass(frozen=True)
class OfIds:
    """v(x, t, ids) = W [x, t, mean over tokens of table[ids]]; padding is 0."""

    vocabulary: int = 16
    length: int = 8
    null: tuple[int, ...] | None = (2, 3, 0, 0, 0, 0, 0, 0)

    @property
    def cond(self) -> Specs:
        return {"text": Spec((self.length,), "int32", 0, self.vocabulary - 1, null=self.null)}

    def __call__(self, rngs: nnx.Rngs) -> Linear:
        return Linear(rngs, self.vocabulary)


@dataclasses.dataclass(frozen=True)
class OfStates:
    """v(x, t, text) = W [x, t, mean over the mask of tokens, pooled]."""

    length: int = 8
    width: int = 8

    @property
    def cond(self) -> Specs:
        return {
            "text": {
                "tokens": Spec((self.length, self.width), null=0.0),
                "mask": Spec((self.length,), "float32", 0.0, 1.0, null=0.0),
                "pooled": Spec((self.width,), null=0.0),
            }
        }

    def __call__(self, rngs: nnx.Rngs) -> Linear:
        return Linear(rngs, None, 2 * self.width)


class Linear(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, vocabulary: int | None, width: int = 8):
        if vocabulary is not None:
            self.table = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, width)))
        self.kernel = nnx.Param(0.3 * jax.random.normal(rngs.params(), (3 + width, 2)))

    def __call__(self, x: Array, t: Any, cond: Any, key: Array | None) -> Array:
        text = cond["text"]
        if isinstance(text, dict):
            mask = text["mask"].astype(jnp.float32)[..., None]
            mean = (mask * text["tokens"]).sum(1) / jnp.maximum(mask.sum(1), 1.0)
            features = jnp.concatenate([mean, text["pooled"]], -1)
        else:
            mask = (text != 0).astype(jnp.float32)[..., None]
            features = (mask * self.table[...][text]).sum(1) / mask.sum(1)
        told = 1e-3 * jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])[:, None]
        return jnp.concatenate([x, told, features], -1) @ self.kernel[...]


def points(n: int = 32) -> Source:
    """Points at the left and at the right, each with its caption."""
    chosen = [CAPTIONS[row % len(CAPTIONS)] for row in range(n)]
    x = [[PLACES["left" if "left" in text else "right"], 0.1 * (row % 3)] for row, text in enumerate(chosen)]
    return from_arrays(np.array(x, np.float32), text=chosen)


def config(folder: Path, **changes: Any) -> Config:
    """A few steps on points with captions."""
    given: dict[str, Any] = {
        "name": "points",
        "workdir": str(folder),
        "process": Flow(),
        "parameterization": Velocity(),
        "network": OfIds(),
        "tokenizer": Words(8, size=16),
        "loss": LossConfig(dropout={"text": 0.1}),
        "ema": Ema(0.9),
        "train": TrainConfig(steps=4, batch_size=8, log_every=4, sample_every=4),
        "sample": SampleConfig(steps=4, num=9),
    }
    return Config(**given | changes)


def encoder(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A CLIP of random weights, in a folder."""
    sizes: dict[str, Any] = {"vocabulary": 16, "length": 8, "width": 8, "depth": 2, "heads": 2, "hidden": 8, "end": 3}
    net = TextEncoder(CLIPText(**sizes | changes))
    save_network(folder, net, jax.jit(net.init)(jax.random.key(seed)))
    return folder
