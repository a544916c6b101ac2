"""How a state lies in a checkpoint: as plain nested dictionaries of arrays, and a manifest that says what they are; and
how one is read.

The manifest has, of each tree, every leaf's shape, dtype and checksum, and the checksums of the other notes and of
itself. One without checksums, of an older jaxdiff, is read as it is.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from jaxdiff.compat import AtomicRenameTemporaryPath, multihost_utils
from jaxdiff.train.checksum import DamageError, check_files, leaf_sums, text_sum, write_file_sums
from jaxdiff.train.guard import new_guard
from jaxdiff.train.state import TrainState

SUMS = "sums"  # the manifest's entry for the checksums of notes: of "data", and of the manifest itself


class CheckpointError(Exception):
    """No checkpoint, none that can be read or written, or one of something else; the message is for the user."""


class SaveError(CheckpointError):
    """A checkpoint that could not be written."""


class StructureError(CheckpointError):
    """A checkpoint whose leaves are not those asked for."""


class Summed(AtomicRenameTemporaryPath):
    """A step's folder while it is written: the sums of its files are added before it gets its name.

    Whatever is written by name makes its folder anew where a run was moved: such a remainder gets no name.
    """

    _error: OSError | None = None
    _first: OSError | None = None  # of all folders

    @staticmethod
    def cause(error: Exception) -> Exception:
        """Of a save that ended with an error: that of a folder that could not be made, where there was one."""
        first, Summed._first = Summed._first, None
        return first or error

    async def create(self) -> Any:
        try:
            made = await super().create()
            self._begun = os.stat(made)
        except OSError as error:  # raised here, threads of Orbax would wait for this folder, minutes long
            self._error = Summed._first = error
            return self.get()
        return made

    async def finalize(self) -> None:
        if self._error is not None:
            raise self._error
        if not os.path.samestat(os.stat(self.get()), self._begun):
            raise FileNotFoundError(f"{self.get()} was moved or removed while it was written")
        if self.get_final().name.isdigit():  # Orbax makes the folders in it likewise
            await asyncio.to_thread(write_file_sums, Path(self.get()))
        await super().finalize()


class Best:
    """Keeps the step whose score is lowest."""

    def __init__(self, score: Callable[[int], float]) -> None:
        self._score = score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scores = {info.step: self._score(info.step) for info in checkpoints}
        best = min(scores, key=lambda step: scores[step], default=None)
        return [info.step == best and math.isfinite(scores[info.step]) for info in checkpoints]


def nested(tree: Any) -> dict[str, Any]:
    """A plain nested dict: no empty nodes, no tuples, no records, so nothing depends on how Orbax writes those."""
    flat = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return dict(traverse_util.unflatten_dict(flat))


def unflatten(tree: Mapping[str, Any], template: Any) -> Any:
    """The tree of a nested dict; leaves that it has not are the template's."""
    flat = traverse_util.flatten_dict(tree)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: flat.get(_names(path), leaf), template)


def trees_of(state: TrainState) -> dict[str, Any]:
    """What is stored of a state: nested dicts `params`, `ema` (and `ema_NAME`) and `state`; keys as their data."""
    if isinstance(state.key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, state.key)
        key: Any = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=state.key.sharding)
    else:
        key = jax.random.key_data(state.key)
    rest = {"step": state.step, "opt_state": state.opt_state, "key": key}
    rest |= {name: getattr(state, name) for name in ("history", "guard")}
    averages = {average_folder(name): nested(tree) for name, tree in state.ema.items()}
    return {"params": nested(state.params), **averages, "state": nested(rest)}


def average_folder(name: str) -> str:
    """Where an average lies in a checkpoint."""
    return "ema" if name == "ema" else f"ema_{name}"


def state_of(trees: Mapping[str, Any], key_impl: str, template: TrainState) -> TrainState:
    """The inverse of `trees_of`."""
    key = jax.random.wrap_key_data(trees["state"]["key"], impl=key_impl)
    if key.dtype != template.key.dtype:
        raise StructureError(
            f"the checkpoint's random keys are {key.dtype}, here they are {template.key.dtype} "
            "(jax_default_prng_impl, or JAX_DEFAULT_PRNG_IMPL)"
        )
    rest = {name: getattr(template, name) for name in ("step", "opt_state", "history", "guard")}
    new = jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), new_guard(), template.guard)
    return TrainState(
        params=unflatten(trees["params"], template.params),
        ema={name: unflatten(trees[average_folder(name)], tree) for name, tree in template.ema.items()},
        key=key,
        **unflatten({"guard": nested(new)} | trees["state"], rest),
    )


def make_manifest(trees: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """The manifest of arrays and of the note `data`."""
    leaves = [leaf for tree in trees.values() for _, leaf in _flat(tree)]
    sums = iter(leaf_sums(leaves))
    described = {
        name: {path: [list(leaf.shape), leaf.dtype.name, next(sums)] for path, leaf in _flat(tree)}
        for name, tree in trees.items()
    }
    return described | {SUMS: {"data": text_sum(data), "manifest": text_sum(described)}}


def check_manifest(manifest: Any, data: Any) -> bool:
    """Whether there are checksums; those of the notes are checked.

    Raises:
        DamageError: a note is not as it was written.
    """
    described = {name: leaves for name, leaves in manifest.items() if name != SUMS}
    if SUMS not in manifest:
        if any(len(entry) != 2 for leaves in described.values() for entry in leaves.values()):
            raise DamageError("manifest: has lost its own checksum")
        return False
    if manifest[SUMS].get("manifest") != text_sum(described):
        raise DamageError("manifest: its checksum does not fit")
    if manifest[SUMS].get("data") != text_sum(data):
        raise DamageError("data: its checksum does not fit")
    return True


def check_leaves(manifest: Mapping[str, Any], trees: Mapping[str, Any]) -> None:
    """Compares the checksums of arrays with those of the manifest.

    Raises:
        DamageError: naming the first leaf that is not as it was written.
    """
    leaves = [(name, path, leaf) for name, tree in trees.items() for path, leaf in _flat(tree)]
    sums = leaf_sums([leaf for _, _, leaf in leaves])
    bad = [
        f"{name}/{path}"
        for (name, path, _), found in zip(leaves, sums, strict=True)
        if found != manifest[name][path][2]
    ]
    if bad:
        more = f" and of {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DamageError(f"the checksum of {bad[0]}{more} does not fit")


def compare(manifest: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Refuses a checkpoint of other leaves.

    Raises:
        StructureError: naming the first leaf that differs.
    """
    for name, tree in wanted.items():
        for path, have, want in _both(manifest.get(name, {}), tree):
            if have != want:
                raise StructureError(
                    f"{what} is of {_other(path, have, want)}: {name}/{path} is {_describe(have)} there and "
                    f"{_describe(want)} here"
                )


def _other(path: str, have: Any, want: Any) -> str:
    """Of what a checkpoint is that has one leaf otherwise; JAX's own settings change leaves too."""
    if have is None or want is None:
        return "another model or configuration"
    if path == "key":
        return "random keys of another kind (jax_default_prng_impl, or JAX_DEFAULT_PRNG_IMPL)"
    bits = [re.fullmatch(r"(float|int|uint)(32|64)", dtype) for _, dtype in (have, want)]
    if have[0] == want[0] and bits[0] and bits[1] and bits[0][1] == bits[1][1]:
        return f"numbers of {bits[0][2]} bits (JAX_ENABLE_X64, or jax_enable_x64, is another)"
    return "another model or configuration"


def all_of(wanted: dict[str, Any], manifest: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The trees to read of a checkpoint: all those wanted, less the guard that older ones have not. A new one, which
    knows no usual gradient yet, then takes its place.

    Raises:
        StructureError: as `compare`.
    """
    if "state" in wanted and not any(path.startswith("guard/") for path in manifest["state"]):
        wanted = wanted | {"state": {name: tree for name, tree in wanted["state"].items() if name != "guard"}}
    compare(manifest, wanted, what)
    return wanted


def split(saved: Mapping[str, Any], tree: Any) -> tuple[list[str], dict[str, Any]]:
    """The leaves of a tree that a manifest has not, or has otherwise, as text; and the nested dict of all others."""
    new: dict[str, str] = {}
    for path, have, want in _both(saved, tree):
        if want is not None and have != want:
            new[path] = path if have is None else f"{path} ({_describe(have)} there, {_describe(want)} here)"
    fit = {path: leaf for path, leaf in _flat(tree) if path not in new}
    return list(new.values()), dict(traverse_util.unflatten_dict(fit, sep="/"))


Want = Callable[[Mapping[str, Any], str], dict[str, Any]]
"""Of a manifest, and of what to call the checkpoint: the trees to read of it; StructureError where it has not those."""


def read(
    folder: Path, want: Want, what: str, say: Callable[[str], None], *, together: bool
) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, str]:
    """What is wanted of the checkpoint in a folder, checked.

    With `together`, all processes call it, and each gets its part: what one of them cannot read, none can.

    Args:
        folder: of one step.
        want: which arrays.
        what: what to call it in messages.
        say: gets a warning where there are no checksums.
        together: whether all processes read, each its part; else this one reads and checks all by itself.

    Returns:
        The arrays and the note `data`; or None, and why not.

    Raises:
        StructureError: of `want`.
    """
    found: dict[str, Any] | None = None
    why = ""
    try:
        manifest, data = read_note(folder, "manifest"), read_note(folder, "data")
        summed = check_manifest(manifest, data)
        wanted = want(manifest, what)
        if summed:  # before Orbax reads them: what it makes of damaged files goes from silence to a page of tracebacks
            share = (jax.process_index(), jax.process_count()) if together else (0, 1)
            check_files(folder, [*wanted, "data", "manifest"], *share)
    except StructureError:
        raise
    except Exception as error:  # of a manifest that is JSON, but not what it was: whatever its use raises
        why = reason(error)
    if _failed(bool(why), together):
        return None, why or "another process cannot read it"
    try:
        found = {name: _arrays(folder / name, tree) for name, tree in wanted.items()}
    except DamageError as error:
        why = reason(error)
    if _failed(bool(why), together) or found is None:
        return None, why or "another process cannot read it"
    if not summed:
        say(f"WARNING: {what} has no checksums, as older versions wrote it: it is read unchecked")
    else:
        try:
            check_leaves(manifest, found)
        except DamageError as error:
            return None, reason(error)
    return (found, data), ""


def read_note(folder: Path, name: str, file_name: str = "metadata") -> dict[str, Any]:
    """A note of the checkpoint in a folder: the object that Orbax has stored as JSON.

    Raises:
        DamageError: it cannot be read.
    """
    file = folder / name / file_name
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DamageError(f"{file.relative_to(folder)}: {error.strerror}") from error
    except ValueError as error:
        raise DamageError(f"{file.relative_to(folder)} is damaged: {reason(error)}") from error
    if not isinstance(note, dict):
        raise DamageError(f"{file.relative_to(folder)} is damaged: it holds no object")
    return note


def _arrays(folder: Path, tree: Any) -> Any:
    tree = jax.tree.map(_placed, tree)
    restore = ocp.args.PyTreeRestore(
        item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
    )
    try:
        # Not by a Checkpointer: its barrier would wait for a process that cannot read its part.
        return ocp.PyTreeCheckpointHandler().restore(folder, args=restore)
    # On damaged files Orbax raises whatever its layers raise: bare Exception, JSONDecodeError, ValueError, ...
    except Exception as error:
        raise DamageError(f"{folder.name}: {reason(error)}") from error


def _failed(failed: bool, together: bool) -> bool:
    """Whether this process, or any of those that read together, failed."""
    if not together or jax.process_count() == 1:
        return failed
    return bool(np.asarray(multihost_utils.process_allgather(np.array(failed, np.int32))).any())


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return (
        text if isinstance(error, DamageError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
    )


def of_the_system(error: BaseException) -> str:
    """What the operating system said, such as "No space left on device", where it is the cause; else nothing."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):  # TensorStore's
        number = int(found[1])
    return "" if number is None else os.strerror(number)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    # Where a leaf has no sharding: on the first device.
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _both(saved: Mapping[str, Any], tree: Any) -> Iterator[tuple[str, Any, Any]]:
    leaves = {path: [list(leaf.shape), leaf.dtype.name] for path, leaf in _flat(tree)}
    for path in sorted(leaves.keys() | saved.keys()):
        have = saved.get(path)
        yield path, None if have is None else have[:2], leaves.get(path)


def _flat(tree: Any) -> list[tuple[str, Any]]:
    return list(traverse_util.flatten_dict(tree, sep="/").items())


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _describe(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf[1]}{tuple(leaf[0])}"


def free_name(path: Path) -> Path:
    """A path, with a number where something stands there already."""
    names = (path if n == 0 else path.with_name(f"{path.name}-{n}") for n in range(sys.maxsize))
    return next(name for name in names if not name.exists())
