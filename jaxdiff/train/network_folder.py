"""A folder that holds a network and its weights alone: what a frozen encoder is read from.

    network.json       the pure functions, as a configuration stores them
    weights.npz        their parameters, by path: blocks/attention/kernel, ...

A run's folder does as well. Published weights are brought into this form, or read where they lie, by other parts.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxdiff.config import dumps
from jaxdiff.config.folder import NETWORK, WEIGHTS
from jaxdiff.train.checkpoint_format import CheckpointError


def save_network(folder: str | os.PathLike[str], net: Any, params: Any) -> None:
    """Writes a network and its weights, for a codec that uses them frozen (`jaxdiff.codecs.WithText`).

    Args:
        folder: made where it is not there.
        net: with ``init`` and what its user calls; a dataclass that a configuration can store.
        params: its parameters, a nested dict.

    Raises:
        StoredTypeError: a network that cannot be stored.

    Example:
        >>> import tempfile
        >>> from jaxdiff.networks.text import T5, TextEncoder
        >>> net = TextEncoder(T5(vocabulary=8, width=4, depth=1, heads=1, head_depth=4, hidden=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_network(folder, net, jax.jit(net.init)(jax.random.key(0)))
        ...     sorted(os.listdir(folder))
        ['network.json', 'weights.npz']
    """
    folder, text = Path(folder), dumps(net)
    folder.mkdir(parents=True, exist_ok=True)
    flat: dict[str, Any] = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    partial = folder / f"{WEIGHTS}.partial"
    with partial.open("wb") as file:
        np.savez(file, **flat)
    partial.replace(folder / WEIGHTS)
    partial = folder / f"{NETWORK}.partial"  # the last: who finds it finds all
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / NETWORK)


def network_weights(folder: Path, template: Any) -> Any:
    """The weights of such a folder, on their devices.

    Args:
        folder: from `save_network`.
        template: the parameters' shapes and shardings; each device is given its part.

    Raises:
        CheckpointError: they cannot be read, or are those of another network.
    """
    wanted = traverse_util.flatten_dict(template, sep="/")
    try:
        with np.load(folder / WEIGHTS, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    wrong = sorted(found.keys() ^ wanted.keys()) or [
        name for name, leaf in wanted.items() if found[name].shape != leaf.shape
    ]
    if wrong:
        raise CheckpointError(f"{folder / WEIGHTS} is not of the network in {NETWORK}: {wrong[0]} differs")

    def put(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = found[name].astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return traverse_util.unflatten_dict({name: put(name, leaf) for name, leaf in wanted.items()}, sep="/")
