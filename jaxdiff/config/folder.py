"""A run's folder: its configuration is saved there, and decides who may go on in it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdiff.config.schema import Config, ConfigError
from jaxdiff.config.serialize import TRUSTED, StoredTypeError, differences, dumps, from_json, to_json

CONFIG, CHECKPOINTS, SAMPLES = "config.json", "checkpoints", "samples"

# What may change when a run goes on: where it stands, how it is watched and spread, how its pictures are made, which
# steps it skips. None of these changes what the other steps learn.
FREE = (
    "workdir",
    "train.log_every",
    "train.sample_every",
    "train.steps_per_call",
    "train.spike",
    "train.max_skipped",
    "checkpoint",
    "sample",
    "mesh",
    "data.path",
    "data.workers",
    "data.decoded_mb",
    "picture",
)


def read_config(folder: str | os.PathLike[str], trusted: Sequence[str] = TRUSTED) -> Config:
    """The configuration saved in a run's folder.

    Args:
      folder: such as ``runs/digits``.
      trusted: modules that its classes may come from.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    file = Path(folder) / CONFIG
    data = _read(file)
    try:
        config = from_json(data, trusted)
    except StoredTypeError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{file} holds no configuration of jaxdiff")
    return config


def claim_folder(config: Config, *, write: bool = True) -> Path:
    """Makes the run's folder with its configuration, or goes on in one whose configuration matches.

    Args:
      config: the resolved configuration.
      write: False only checks.

    Raises:
      ConfigError: the folder holds something else, or a run that differs in more than `FREE`; the fields are named.
    """
    folder = Path(config.folder)
    file = folder / CONFIG
    try:
        text = dumps(config)
        if file.exists():
            _refuse_other(folder, _read(file), config)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already and is not the folder of a run: choose another --workdir")
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)  # there whole or not at all
    except StoredTypeError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror}") from error
    return folder


def _read(file: Path) -> Any:
    if not file.is_file():
        why = f"it has no {CONFIG}" if file.parent.is_dir() else "it does not exist"
        raise ConfigError(f"{str(file.parent)!r} is not the folder of a run: {why}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _refuse_other(folder: Path, saved: Any, config: Config) -> None:
    free: tuple[str, ...] = FREE
    if config.optimizer.schedule != "cosine":  # whose learning rate depends on the length of the run
        free = (*free, "train.steps")
    changed = {
        name: values
        for name, values in differences(_as_of_now(saved, config), to_json(config)).items()
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in free)
    }
    if changed:
        shown = [f"{name} ({_short(old)} there, {_short(new)} here)" for name, (old, new) in list(changed.items())[:6]]
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        named = f"{', '.join(shown)}{more}"
        raise ConfigError(
            f"{folder} holds another configuration: {named}; choose another --workdir, or repeat its options"
        )


def _as_of_now(saved: Any, config: Config) -> Any:
    """A saved configuration with what this version has added at its defaults, where it can be read."""
    modules = {type(item).__module__.split(".")[0] for item in vars(config).values() if dataclasses.is_dataclass(item)}
    try:
        return to_json(from_json(saved, (*TRUSTED, *sorted(modules))))
    except StoredTypeError:  # compared as it stands: its unreadable part is then what differs
        return saved


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:37]}..."
