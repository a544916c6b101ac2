"""The configuration of an autoencoder: no process and no parameterization, an objective of its own and maybe a critic.

Diffusion in its latents is another run, whose `Config` has ``codec=Latents("runs/NAME")``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from jaxdiff.autoencoding import AutoencoderLoss
from jaxdiff.config.schema import OptimizerConfig, RunConfig
from jaxdiff.launch.errors import ConfigError
from jaxdiff.networks.critic import PatchCritic
from jaxdiff.networks.encoder_decoder import Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class AutoencoderConfig(RunConfig):
    """Everything that decides an autoencoder's run, beside what every run has (`RunConfig`); its `network` is a
    `jaxdiff.networks.KLAutoencoder` or `VQAutoencoder`.

    Args:
      loss: what is minimised, `jaxdiff.autoencoding.AutoencoderLoss`.
      critic: a `jaxdiff.networks.PatchCritic`, trained beside it; None: none.
    """

    loss: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    critic: Any = None
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4, b1=0.5, b2=0.9))
    """The critic's own optimizer."""
    shown: int = 16
    """Images in a picture made during training, each above its reconstruction."""


def check_autoencoder(config: AutoencoderConfig) -> None:
    """Checks what belongs to an autoencoder alone.

    Raises:
      ConfigError: what is wrong first, in one line.
    """
    network, critic = config.network, config.critic
    if not isinstance(network, Layout):
        raise ConfigError(
            f"network: an AutoencoderConfig trains a KLAutoencoder or a VQAutoencoder, got {type(network).__name__}; "
            "for a diffusion model use Config"
        )
    if config.shown < 1:
        raise ConfigError(f"shown: {config.shown} is out of range, it must be at least 1")
    if critic is None:
        return
    if not callable(critic) or isinstance(critic, type):
        raise ConfigError(f"critic: expected an object, such as PatchCritic(), got {critic!r}")
    if isinstance(critic, PatchCritic) and critic.in_channels != network.in_channels:
        raise ConfigError(
            f"critic: it judges images of {critic.in_channels} channels, and the network makes {network.in_channels}: "
            f"set critic.in_channels={network.in_channels}"
        )
    if config.loss.critic_start >= config.train.steps:
        raise ConfigError(
            f"loss.critic_start: {config.loss.critic_start} is not below train.steps, {config.train.steps}: the critic "
            "would never be heard; leave it out, or start it earlier"
        )


def nothing_to_sample(folder: str | os.PathLike[str]) -> str:
    """What a person is told who samples from an autoencoder's run."""
    return (
        f"{folder} is an autoencoder: there is nothing to sample from it alone. A run with codec=Latents('{folder}') "
        f"is a diffusion model of its latents; jaxdiff.load('{folder}').reconstruct(record) shows what it keeps"
    )
