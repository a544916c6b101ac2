"""LoRA in a configuration: the network's own weights are frozen as `train.freeze` freezes them, under one name."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdiff.config.schema import Config, Kind, LoraConfig
from jaxdiff.launch.errors import ConfigError, as_config_error
from jaxdiff.networks.lora import BASE, LoRA


def with_base_frozen(config: Kind) -> Kind:
    """A configuration whose network's own weights are not trained, where it has a ``lora.rank``; others as they are.

    Raises:
      ConfigError: other weights are frozen by name, or options of ``lora`` without a rank.
    """
    lora = getattr(config, "lora", LoraConfig())
    if not lora.rank:
        if lora != LoraConfig():
            raise ConfigError("lora.rank: it is 0, and other options of lora are given: set it, for instance to 8")
        return config
    if config.train.freeze not in ((), (BASE,)):
        raise ConfigError("train.freeze: with lora.rank all weights of the network itself stay: leave it out")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=(BASE,)))


def with_lora(config: Any, net: Any) -> Any:
    """A network with the addition that its configuration asks for.

    Args:
      config: of a run.
      net: its network, as pure functions.

    Raises:
      ConfigError: targets that it has not.
    """
    if not isinstance(config, Config) or not config.lora.rank:
        return net
    with as_config_error("lora"):
        made = LoRA(net, config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
        made.forms()
    return made
