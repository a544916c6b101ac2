"""The weights of another training as the start of a new one: going on with other data, or fine-tuning other classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.checkpoint_format import CheckpointError
from jaxdiff.train.state import TrainState


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
        ema: take the averaged weights rather than those of the last step.
        partial: take the leaves that fit by name and shape; the others stay `jax.ShapeDtypeStruct`, and are told of.
        say: gets warnings, and what is new.

    Raises:
        CheckpointError: there is no checkpoint, none that can be read, or its leaves differ and `partial` is not set.
    """
    folder, step = _located(Path(path).expanduser())
    with Checkpoints(folder, readonly=True, say=say) as checkpoints:
        return checkpoints.restore_weights(template, ema=ema, partial=partial, step=step)


def with_weights(state: TrainState, weights: Any) -> TrainState:
    """A new state with other weights: parameters and their average; step, optimizer and history are as they were.

    Args:
        state: the new state, from `create_sharded_state`.
        weights: from `read_weights`; leaves that are `jax.ShapeDtypeStruct` stay the state's own.
    """
    params = jax.tree.map(
        lambda new, own: own if isinstance(new, jax.ShapeDtypeStruct) else new.astype(own.dtype), weights, state.params
    )
    # A copy, not the same array: a donated buffer may stand in the state once only.
    average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    return dataclasses.replace(state, params=params, ema=average)


def _located(path: Path) -> tuple[Path, int | None]:
    if (path / "checkpoints").is_dir():
        return path / "checkpoints", None
    if path.name.isdigit() and (path / "manifest").is_dir():
        return path.parent, int(path.name)
    if path.is_dir() and any(entry.name.isdigit() for entry in path.iterdir()):
        return path, None
    what = "holds no checkpoint" if path.is_dir() else "there is no such folder"
    raise CheckpointError(f"{path}: {what}; expected the folder of a run, or of one of its checkpoints")
