"""A run's folder: its configuration is saved there, and decides who may go on in it.

Two trainings in one folder would write over each other, so a training holds the folder by a lock on the file `lock` in
it (`jaxdiff.launch.lock`). Readers (`sample.py`, `evaluate.py`, notebooks) need no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxdiff.codecs import recipe
from jaxdiff.codecs.recipe import Find
from jaxdiff.config.schema import Kind, RunConfig
from jaxdiff.config.serialize import TRUSTED, StoredTypeError, differences, dumps, from_json, layout, to_json
from jaxdiff.config.trust import check_names, code_of, import_trusted
from jaxdiff.config.upgrade import upgraded
from jaxdiff.launch.distributed import lead_first
from jaxdiff.launch.errors import ConfigError
from jaxdiff.launch.lock import locked
from jaxdiff.pretrained.origin import INDEX
from jaxdiff.pretrained.parts import is_published_part, read_part

CONFIG, CHECKPOINTS, LAST_SAVED, SAMPLES, LOCK = "config.json", "checkpoints", "checkpoints.json", "samples", "lock"
NETWORK, WEIGHTS = "network.json", "weights.npz"
"""Of a folder of frozen weights that no run has trained (`jaxdiff.train.save_network`)."""
EXAMPLES = "examples.npz"
"""Conditions of some training records, for pictures of a run that cannot do without."""

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
    "data.classes",
    "data.workers",
    "data.decoded_mb",
    "data.cache_folder",
    "codec.path",
    "codec.tile",
    "codec.inner.path",
    "codec.inner.tile",
    "tokenizer.path",
    "tokenizer.tokenizer.path",
    "picture",
    "shown",
)


def read_config(folder: str | os.PathLike[str], trusted: Sequence[str] = TRUSTED) -> Any:
    """The configuration saved in a run's folder, a `Config`, an `AutoencoderConfig` or a `ClassifierConfig`.

    Args:
      folder: such as ``runs/digits``.
      trusted: modules and files (``mine.py``) that its classes and names may come from. They are imported.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    file = Path(folder).expanduser() / CONFIG
    data, code = _read(file)
    modules = import_trusted(trusted)
    try:
        config = from_json(upgraded(data), modules)
        if code and isinstance(config, RunConfig):
            check_names(config)
    except ValueError as error:
        needs = f"; the run needs --trust {shlex.join(code)}" if code else ""
        raise ConfigError(f"{file}: {error}{needs}") from error
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{file} holds no configuration of jaxdiff")
    return config


class FrozenConfig(NamedTuple):
    """What a folder of frozen weights says, in the place of a run's configuration."""

    network: Any
    codec: Any = None


def read_frozen_config(folder: str | os.PathLike[str], *parts: str) -> Any:
    """The configuration of frozen weights: of a run, the `FrozenConfig` of a folder that holds a network alone, or the
    `jaxdiff.pretrained.parts.Part` of a published folder, by the names of parts.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    file = Path(folder).expanduser() / NETWORK
    if is_published_part(folder):
        return read_part(Path(folder).expanduser(), *parts)
    if not os.path.isfile(file):
        return read_config(folder)
    try:
        return FrozenConfig(from_json(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def find_run(
    path: str | os.PathLike[str],
    near: str | os.PathLike[str] | None = None,
    *,
    known: bool = False,
    step: int | None = None,
) -> Path:
    """The folder of a run that another run names, such as the autoencoder of its latents.

    Args:
      path: as the other run's configuration has it.
      near: the other run's folder. ``runs/a`` of the run ``/x/runs/b`` is also looked for as ``/x/runs/b/runs/a``,
        ``/x/runs/runs/a``, ``/x/runs/a``, ... and beside it by its last name.
      known: the other run has been trained, and may have been moved together with this one: what is near comes first.
        Else a path is what a person has just written, from the working folder.
      step: that was noted: 0 is of weights that no run has trained, so that a run of the same name is another thing.

    Raises:
      ConfigError: it is in none of these places.
    """
    path = Path(path).expanduser()
    here, places = [path], []
    if near is not None and not path.is_absolute():
        places = [above / path for above in (Path(near).absolute(), *Path(near).absolute().parents)]
    if near is not None:
        places.append(Path(near).absolute().parent / path.name)
    for place in (*places, *here) if known else (*here, *places):
        if any(os.path.isfile(place / name) for name in (CONFIG, NETWORK, INDEX)) and _suits(place, step):
            return place
    beside = "" if near is None else f", nor from {Path(near).absolute()} upwards"
    where = f"in {Path(near) / CONFIG} (codec, path)" if known and near is not None else "by codec.path"
    raise ConfigError(
        f"codec: {str(path)!r} is not the folder of a run or of frozen weights, from the working folder{beside}: bring "
        f"it back, or name the place where it lies now {where}"
    )


def _suits(folder: Path, step: int | None) -> bool:
    """Whether a folder may be what weights of a step were noted of."""
    return step is None or (step == 0) == (os.path.isfile(folder / NETWORK) or is_published_part(folder))


def finder(config: RunConfig) -> Find:
    """How what a configuration's codec names is found: `find_run` near the run's folder, and its configuration."""

    def find(path: str, part: str) -> tuple[Any, Path]:
        folder = find_run(path, config.folder)
        return read_frozen_config(folder, part), folder

    return find


def first_average(folder: str | os.PathLike[str]) -> str:
    """The name of the average of the weights that the run in a folder is sampled from; nothing of its code is run.

    Raises:
      ConfigError: its configuration cannot be read.
    """
    ema = _read(Path(folder) / CONFIG)[0].get("ema", {})
    return "ema" if "type" in ema else next(iter(ema), "ema")


def with_saved(config: Kind, trusted: Sequence[str] | None = None) -> Kind:
    """A configuration with what its folder has noted of the data and of frozen weights, where a run lies there.

    A codec that is not given is the one that the run began with: its numbers were estimated then. Frozen weights, those
    of a codec too, have the step and the checksum that were noted; a tokenizer has the vocabulary that was learned.
    """
    file = Path(config.folder) / CONFIG
    if not os.path.isfile(file):
        return config
    modules = {type(item).__module__.split(".")[0] for item in vars(config).values() if dataclasses.is_dataclass(item)}
    try:
        saved = read_config(file.parent, (*TRUSTED, *sorted(modules)) if trusted is None else trusted)
    except ConfigError:  # `check_folder` says what is wrong with it
        return config
    noted = {(each.name, each.path): each for each in saved.frozen}
    frozen = tuple(noted.get((each.name, each.path), each) if each.checksum is None else each for each in config.frozen)
    if not frozen and config.train.freeze == saved.train.freeze:
        frozen = saved.frozen
    codec = saved.codec if config.codec is None else recipe.noted(config.codec, saved.codec)
    given = config.tokenizer
    tokenizer = given.noted(saved.tokenizer) if hasattr(given, "noted") else given
    return dataclasses.replace(config, codec=codec, frozen=frozen, tokenizer=tokenizer)


def check_folder(config: RunConfig) -> Path:
    """The run's folder, after checking that the run may start or go on there; nothing is made or written.

    Args:
      config: the resolved configuration.

    Raises:
      ConfigError: the folder holds something else, or a run that differs in more than `FREE`; the fields are named.
    """
    folder = Path(config.folder)
    file = folder / CONFIG
    ours = {LOCK, _partial(file).name}  # of a training that was killed before it had written its configuration
    try:
        dumps(config)
        if file.exists():
            _refuse_other(folder, _read(file)[0], config)
        elif folder.exists() and (not folder.is_dir() or {entry.name for entry in folder.iterdir()} - ours):
            raise ConfigError(f"{folder} is there already and is not the folder of a run: choose another --workdir")
    except StoredTypeError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror}") from error
    return folder


@contextlib.contextmanager
def claim_folder(config: RunConfig, *, active: bool = True) -> Iterator[Path]:
    """Makes the run's folder with its configuration, or goes on in one whose configuration matches; and holds it.

    Args:
      config: the resolved configuration.
      active: False only checks: for the processes of a run other than the first.

    Yields:
      The folder. No other process can claim it until the end of the `with`, or of this process.

    Raises:
      ConfigError: as `check_folder`; or another process trains in the folder.
    """
    with contextlib.ExitStack() as held:
        with lead_first("folder"):
            folder = check_folder(config)
            if active:
                held.enter_context(_claimed(folder, config))
        yield folder


def _claimed(folder: Path, config: RunConfig) -> IO[str]:
    """The open lock file of a folder that has the configuration."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            lock = held.enter_context(locked(folder / LOCK))
            check_folder(config)  # once more: another training may have begun and ended meanwhile
            file, text = folder / CONFIG, _text(config)
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                _partial(file).write_text(text, encoding="utf-8")
                _partial(file).replace(file)  # there whole or not at all
            held.pop_all()
        return lock
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror}") from error


def _partial(file: Path) -> Path:
    return file.with_suffix(".partial")


def _text(config: RunConfig) -> str:
    code = code_of(config)
    return layout(to_json(config) | ({"code": code} if code else {}))


def _read(file: Path) -> tuple[Any, list[str]]:
    """The configuration as JSON, and the code that it needs (`jaxdiff.config.trust`)."""
    if not os.path.isfile(file):  # also of a name that is too long for one
        there = os.path.exists(file.parent)
        why = "it does not exist" if not there else f"it has no {CONFIG}" if file.parent.is_dir() else "it is a file"
        raise ConfigError(f"{str(file.parent)!r} is not the folder of a run: {why}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    code = data.pop("code", []) if isinstance(data, dict) else []
    return data, [str(each) for each in code] if isinstance(code, list) else []


def _refuse_other(folder: Path, saved: Any, config: RunConfig) -> None:
    free: tuple[str, ...] = FREE
    if config.optimizer.schedule != "cosine":  # whose learning rate depends on the length of the run
        free = (*free, "train.steps")
    changed = {
        name: values
        for name, values in differences(_as_of_now(saved, config), to_json(config)).items()
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in free)
    }
    if not changed:
        return
    start = f"--init-from {shlex.quote(str(folder))}"
    shown = [f"{name} ({_short(old)} there, {_short(new)} here)" for name, (old, new) in list(changed.items())[:6]]
    named = ", ".join(shown) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    if list(changed) == ["train.steps"]:
        raise ConfigError(
            f"{folder}: {named}: with the cosine schedule the learning rate depends on the length of the run, which "
            f"cannot change; to train on from its weights: another --workdir, and {start}"
        )
    raise ConfigError(
        f"{folder} holds another configuration: {named}; choose another --workdir ({start} begins with its "
        f"weights), or repeat its options. When a run goes on, these alone may change: {', '.join(free)}"
    )


def _as_of_now(saved: Any, config: RunConfig) -> Any:
    """A saved configuration with what this version has added at its defaults, where it can be read."""
    modules = {type(item).__module__.split(".")[0] for item in vars(config).values() if dataclasses.is_dataclass(item)}
    try:
        return to_json(from_json(upgraded(saved), (*TRUSTED, *sorted(modules))))
    except StoredTypeError:  # compared as it stands: its unreadable part is then what differs
        return saved


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:37]}..."
