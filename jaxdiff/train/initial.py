"""The weights of another training as the start of a new one: going on with other data, or fine-tuning other classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.config import AutoencoderConfig, ConfigError, FrozenWeights, RunConfig, as_config_error, read_config
from jaxdiff.config.folder import CONFIG, first_average
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.networks import functional
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.checkpoint_format import CheckpointError
from jaxdiff.train.checksum import leaf_sums, text_sum
from jaxdiff.train.frozen import partition
from jaxdiff.train.sharding import params_template
from jaxdiff.train.state import Network, TrainState
from jaxdiff.train.step import Given

Kind = TypeVar("Kind", bound=RunConfig)
BASE = "base"
"""The name of a network's own weights that are not trained."""
_EXPECTED = "the folder of a run, or of one of its checkpoints"


def read_weights(
    path: str | os.PathLike[str],
    template: Any,
    *,
    ema: bool = True,
    partial: bool = False,
    say: Callable[[str], None] | None = None,
) -> Any:
    """The weights of a checkpoint, for `with_weights`.

    Args:
        path: the folder of a run (its newest checkpoint), a folder of checkpoints, or the folder of one step.
        template: the parameters' shapes and shardings.
        ema: take the averaged weights (of several averages the first) rather than those of the last step.
        partial: take the leaves that fit by name and shape; the others stay `jax.ShapeDtypeStruct`, and are told of.
        say: gets warnings, and what is new.

    Raises:
        CheckpointError: there is no checkpoint, none that can be read, or its leaves differ and `partial` is not set.
    """
    folder, step = _located(Path(path).expanduser())
    with Checkpoints(folder, readonly=True, say=say) as checkpoints:
        average = ema and _average_of(folder)
        return checkpoints.restore_weights(template, ema=average, partial=partial, step=step)[1]


def read_frozen(config: Kind, net: Network, mesh: Mesh) -> tuple[Kind, Given]:
    """The codec and the weights that a run uses and does not train, from where they lie.

    Args:
        config: resolved; ``frozen`` names the weights, ``train.freeze`` the parts of the network that are not trained.
        net: its network.
        mesh: the devices, over which weights are split as those that are trained (`params_template`).

    Returns:
        The configuration with the step and the checksum of all weights noted, and what each step is given.

    Raises:
        ConfigError: parts that are not trained and no weights for them, or the other way about.
        CheckpointError: weights that cannot be read, or that are others than those noted.
    """
    named, whole = {each.name: each for each in config.frozen}, NamedSharding(mesh, PartitionSpec())
    if bool(config.train.freeze) != (BASE in named):
        raise ConfigError(
            "train.freeze: the parts that are not trained need weights to start with: --init-from RUN"
            if config.train.freeze
            else f"frozen: weights named {BASE!r} are of train.freeze, which names nothing"
        )
    base: Any = {}
    frozen: dict[str, Any] = {}
    noted = []
    for each in config.frozen:
        if each.name == BASE:
            with as_config_error("train.freeze"):
                template = partition(params_template(net, mesh), config.train.freeze)[1]
            base, now = _checked(each, template)
        else:
            of = read_config(each.path)
            if isinstance(of, AutoencoderConfig):
                raise ConfigError(
                    f"frozen: {each.path} is an autoencoder, no denoiser; as a codec it is Latents({each.path!r})"
                )
            teacher = functional(of.network, tuple(of.codec.spec["x"].shape) if of.codec is not None else None)
            params, now = _checked(each, params_template(teacher, mesh))
            reading = jax.device_put((of.process, of.parameterization), whole)
            frozen[each.name] = NetworkDenoiser(teacher, params, *reading)
        noted.append(now)
    return dataclasses.replace(config, frozen=tuple(noted)), Given(jax.device_put(config.codec, whole), frozen, base)


def read_part(folder: Path, template: Any, *, ema: bool | str = True, step: int | None = None) -> tuple[int, Any]:
    """Weights of some of the networks that a run has trained together: an autoencoder without its critic.

    Args:
        folder: of the checkpoints.
        template: shapes and shardings of the part, under its networks' names.
        ema: as `Checkpoints.restore_weights`.
        step: which; None: the newest that can be read.

    Raises:
        CheckpointError: they cannot be read, or a leaf is missing.
    """
    with Checkpoints(folder, readonly=True) as checkpoints:
        found, params = checkpoints.restore_weights(template, ema=ema, partial=True, step=step)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise CheckpointError(f"{folder} step {found}: it lacks a part of the weights of {', '.join(template)}")
    return found, params


def _checked(each: FrozenWeights, template: Any) -> tuple[Any, FrozenWeights]:
    """Weights, and what is noted of them."""
    folder, step = _located(Path(each.path).expanduser())
    with Checkpoints(folder, readonly=True) as checkpoints:
        average = _average_of(folder)
        found, params = checkpoints.restore_weights(template, ema=average, partial=True, step=each.step or step)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise CheckpointError(f"{each.path}: it lacks a part of the weights that are needed ({each.name})")
    checksum = str(text_sum([str(number) for number in leaf_sums(jax.tree.leaves(params))]))
    if each.checksum is not None and checksum != each.checksum:
        raise CheckpointError(
            f"{each.path} step {found}: its weights are not those that this run began with ({each.name}): bring them "
            "back, or start a new run"
        )
    return params, dataclasses.replace(each, step=found, checksum=checksum)


def with_weights(state: TrainState, weights: Any) -> TrainState:
    """A new state with other weights: parameters and their averages; step, optimizer and history are as they were.

    Args:
        state: the new state, from `create_sharded_state`.
        weights: from `read_weights`; leaves that are `jax.ShapeDtypeStruct` stay the state's own.
    """
    params = jax.tree.map(
        lambda new, own: own if isinstance(new, jax.ShapeDtypeStruct) else new.astype(own.dtype), weights, state.params
    )
    # Copies, not the same arrays: a donated buffer may stand in the state once only.
    averages = {name: jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params) for name in state.ema}
    return dataclasses.replace(state, params=params, ema=averages)


def _average_of(checkpoints: Path) -> str:
    # Checkpoints by themselves, without a run's configuration, have one average of the usual name.
    return first_average(checkpoints.parent) if (checkpoints.parent / CONFIG).is_file() else "ema"


def _located(path: Path) -> tuple[Path, int | None]:
    if not os.path.isdir(path):  # also of a name that is too long for one
        raise CheckpointError(f"{path}: there is no such folder; expected {_EXPECTED}")
    if (path / "checkpoints").is_dir():
        return path / "checkpoints", None
    if path.name.isdigit() and (path / "manifest").is_dir():
        return path.parent, int(path.name)
    if any(entry.name.isdigit() for entry in path.iterdir()):
        return path, None
    raise CheckpointError(f"{path}: holds no checkpoint; expected {_EXPECTED}")
