"""The pictures of a class that DreamBooth's loss keeps a model to (`jaxdiff.loss.PriorPreserving`).

They are encoded once, before the first step, and lie on the devices: some hundred latents, and the states of their
captions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.codecs import Codec
from jaxdiff.config import Config, build_source, tokenised
from jaxdiff.data.sources import take
from jaxdiff.train.initial import ENCODED_AT_ONCE


def read_prior(config: Config, codec: Codec, mesh: Mesh) -> Any:
    """What the network is given of all pictures of the class: ``{"x": (N, ...), conditions}``, on every device.

    Args:
        config: resolved; ``loss.prior`` names the pictures, which are read as ``data`` says.
        codec: of the run, on the mesh; its augmentation is left out.
        mesh: the devices.

    Raises:
        ConfigError, DataError: pictures that are missing or do not fit.
    """
    data = dataclasses.replace(config.data, path=config.loss.prior)
    source = tokenised(config, build_source(dataclasses.replace(config, data=data)))
    encode = jax.jit(lambda codec, records: codec.encode(records))
    numbers = np.arange(len(source))
    parts = [
        jax.tree.map(np.asarray, encode(codec, take(source, numbers[at : at + ENCODED_AT_ONCE])))
        for at in range(0, len(source), ENCODED_AT_ONCE)
    ]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return jax.device_put(whole, NamedSharding(mesh, PartitionSpec()))
