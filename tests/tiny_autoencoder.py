"""A run folder of an autoencoder with random weights, as training leaves it: what runs in latents stand on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxdiff.codecs import Images
from jaxdiff.config import AutoencoderConfig, TrainConfig, build_loss, build_network, claim_folder
from jaxdiff.config.folder import CHECKPOINTS, LAST_SAVED
from jaxdiff.networks import KLAutoencoder
from jaxdiff.train import Checkpoints, Ema, create_sharded_state, make_mesh

MEAN, STD = 0.5, 0.25


def network(channels: int = 2, **changes: Any) -> KLAutoencoder:
    """8x8 pixels of one channel -> 4x4 latents, in about 5,000 parameters."""
    options: dict[str, Any] = {"in_channels": 1, "width": 4, "multipliers": (1, 2), "blocks": 1, "groups": 2}
    return KLAutoencoder(**options | {"middle_attention": False, "channels": channels} | changes)


def write_autoencoder(
    folder: Path, net: Any = None, *, shape: tuple[int, int, int] = (8, 8, 1), seed: int = 0, spoil: Any = None
) -> Path:
    """Writes the folder.

    Args:
      folder: where.
      net: the autoencoder's configuration.
      shape: of its images.
      seed: of its weights.
      spoil: what is done to each of the averaged weights.
    """
    net = network() if net is None else net
    config = AutoencoderConfig(
        name="autoencoder",
        workdir=str(folder),
        network=net,
        codec=Images(shape),
        ema=Ema(0.9),
        train=TrainConfig(steps=1),
    )
    state = create_sharded_state(
        build_network(config), optax.sgd(0.1), build_loss(config), jax.random.key(seed), make_mesh(data=1)
    )
    if spoil is not None:
        state = dataclasses.replace(state, ema=jax.tree.map(spoil, state.ema))
    with claim_folder(config), Checkpoints(folder / CHECKPOINTS, last_saved=folder / LAST_SAVED) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
    write_statistics(folder, net.channels)
    return folder


def write_statistics(folder: Path, channels: int, **changes: Any) -> None:
    """Writes its `latents.json`."""
    statistics = {"step": 1, "mean": [MEAN] * channels, "std": np.linspace(STD, 2 * STD, channels).tolist()}
    (folder / "latents.json").write_text(json.dumps(statistics | changes), encoding="utf-8")
