"""Checkpoints of a run: written behind its back by Orbax, read with errors that say what is wrong.

A step's folder holds `params`, `ema`, `state` (step, optimizer, key, history), `data` (the position in the data, JSON)
and `manifest` (every leaf's shape and dtype, JSON): weights can be read without the optimizer, and a checkpoint of
something else is refused by the name of the first leaf that differs. PRNG keys are stored as their data. No pickle
anywhere.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policies

from jaxdiff.train.state import TrainState


class CheckpointError(Exception):
    """No checkpoint, none that can be read, or one of something else; the message is for the user."""


class StructureError(CheckpointError):
    """A checkpoint whose leaves are not those asked for."""


class Checkpoints:
    """The checkpoints of one run, a folder with one sub-folder a step.

    Args:
        folder: where; made when missing, unless `readonly`.
        keep: how many of the latest steps to keep, at least 1.
        best: a metric's name: the step where it was lowest is kept as well; None: only the latest.
        readonly: for a reader beside a training that goes on: nothing is made, moved or cleaned up.
        say: gets each warning, one line of text.

    Example:
        >>> import tempfile, types, jax, jax.numpy as jnp, optax
        >>> from jaxdiff.train import create_sharded_state, make_mesh, state_template
        >>> net = types.SimpleNamespace(init=lambda key: {"w": jax.random.normal(key, (2, 2))})
        >>> parts = net, optax.adam(1e-3), types.SimpleNamespace(init=lambda: ()), jax.random.key(0), make_mesh(data=1)
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(0, create_sharded_state(*parts), {"records": 64})
        ...     state, position = checkpoints.restore(state_template(*parts))
        >>> int(state.step), position
        (0, {'records': 64})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        best: str | None = None,
        readonly: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint must be kept")
        self.folder = Path(folder).absolute()
        self._readonly = readonly
        self._best = best
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        if readonly and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder}: the folder does not exist")
        kept: list[Any] = [policies.LatestN(keep)]
        if best is not None:
            kept.append(policies.BestN(n=1, get_metric_fn=self._score, reverse=True))
        alone = jax.process_index()  # each of several readers reads by itself; writers work together
        processes = (
            ocp.options.MultiprocessingOptions(primary_host=alone, active_processes={alone}) if readonly else None
        )
        options = ocp.CheckpointManagerOptions(
            multiprocessing_options=processes or ocp.options.MultiprocessingOptions(),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=None if best is None else self._score,
            best_mode="min",
            create=not readonly,
            cleanup_tmp_directories=not readonly,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def _score(self, metrics: Mapping[str, float]) -> float:
        return metrics.get(self._best or "", math.inf)

    def steps(self) -> list[int]:
        """All steps in the folder, rising; half-written ones are not among them."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step in the folder, or None. That it can be read is known only by reading it."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, state: TrainState, position: Any = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save in the background; returns once the state is copied, so it may be donated to the next step.

        Args:
            step: its name; a step that is there already is left as it is.
            state: the state.
            position: the data position, JSON-able.
            metrics: of this step, for `best`; those that are not finite are left out.
        """
        if step in self._manager.all_steps():
            return
        trees = _trees(state)
        finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        save = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        where = {"position": position, "key": str(jax.random.key_impl(state.key))}
        notes = {"data": ocp.args.JsonSave(where), "manifest": ocp.args.JsonSave(_manifest(trees))}
        scores = None if self._best is None else finite
        self._manager.save(step, args=ocp.args.Composite(**save, **notes), metrics=scores, force=True)

    def wait(self) -> None:
        """Until what is being saved is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def restore(self, template: TrainState, step: int | None = None) -> tuple[TrainState, Any]:
        """Read a state onto the shardings of `template`.

        Args:
            template: a TrainState of `jax.ShapeDtypeStruct` with shardings, from `state_template`.
            step: which; None: the newest that can be read. A newer one that cannot is set aside (renamed to
                `STEP.damaged`) and reported, so that training can write that step again.

        Returns:
            The state and the data position saved with it.

        Raises:
            CheckpointError: nothing there, nothing readable, or (StructureError) another structure.
        """

        trees, notes = self._newest_good(_trees(template), step)
        return _state(trees, notes["key"], template), notes["position"]

    def restore_weights(self, template: Any, *, ema: bool = True, step: int | None = None) -> Any:
        """Read the parameters alone, for sampling.

        Args:
            template: the parameters' shapes, from `jax.eval_shape(net.init, key)`; with shardings, or onto the first
                device.
            ema: their running average rather than the parameters themselves.
            step: which; None: the newest that can be read.

        Raises:
            CheckpointError: as `restore`.
        """
        name = "ema" if ema else "params"
        if ema:
            template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=a.sharding), template)
        trees, _ = self._newest_good({name: _nested(template)}, step)
        return _unflatten(trees[name], template)

    def close(self) -> None:
        """Wait for what is being saved, and let go."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _newest_good(self, wanted: dict[str, Any], step: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.wait()
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.folder}; there are those of {', '.join(map(str, steps))}"
            )
        damaged: dict[int, str] = {}
        for chosen in reversed(steps) if step is None else [step]:
            try:
                found = self._read(chosen, wanted)
            except StructureError:
                raise
            # On damaged files Orbax raises whatever its layers raise: bare Exception, JSONDecodeError, ValueError, ...
            except Exception as error:
                reason = str(error).strip().splitlines() or [""]
                damaged[chosen] = f"{type(error).__name__}: {reason[0]}"
                self._say(f"WARNING: checkpoint {self.folder / str(chosen)} cannot be read ({damaged[chosen]})")
                continue
            if damaged:
                self._say(f"WARNING: going back to the checkpoint of step {chosen}, the newest that can be read")
                self._set_aside(list(damaged))
            return found
        listed = "; ".join(f"step {bad}: {why}" for bad, why in damaged.items())
        raise CheckpointError(f"no checkpoint in {self.folder} can be read ({listed})")

    def _set_aside(self, steps: list[int]) -> None:
        if self._readonly:
            return
        if jax.process_index() == 0:
            for step in steps:
                os.replace(self.folder / str(step), _free_name(self.folder / f"{step}.damaged"))
        self._manager.reload()

    def _read(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        # The notes first: Orbax reports a leaf of another shape badly or, where it can cut or pad, not at all.
        notes = self._restore(step, manifest=ocp.args.JsonRestore(), data=ocp.args.JsonRestore())
        _compare(notes["manifest"], wanted, f"the checkpoint of step {step} in {self.folder}")
        trees = {name: ocp.args.StandardRestore(jax.tree.map(_placed, tree)) for name, tree in wanted.items()}
        return self._restore(step, **trees), notes["data"]

    def _restore(self, step: int, **items: Any) -> dict[str, Any]:
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _nested(tree: Any) -> dict[str, Any]:
    # A plain nested dict: no empty nodes, no tuples, no records, so nothing depends on how Orbax writes those.
    flat = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return dict(traverse_util.unflatten_dict(flat))


def _unflatten(nested: Mapping[str, Any], template: Any) -> Any:
    flat = traverse_util.flatten_dict(nested)
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_names(path)], template)


def _trees(state: TrainState) -> dict[str, Any]:
    if isinstance(state.key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, state.key)
        key: Any = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=state.key.sharding)
    else:
        key = jax.random.key_data(state.key)
    rest = {"step": state.step, "opt_state": state.opt_state, "key": key, "history": state.history}
    return {"params": _nested(state.params), "ema": _nested(state.ema), "state": _nested(rest)}


def _state(trees: Mapping[str, Any], key_impl: str, template: TrainState) -> TrainState:
    key = jax.random.wrap_key_data(trees["state"]["key"], impl=key_impl)
    if key.dtype != template.key.dtype:
        raise StructureError(f"the checkpoint's random numbers are {key.dtype}, here they are {template.key.dtype}")
    rest = {"step": template.step, "opt_state": template.opt_state, "history": template.history}
    return TrainState(
        params=_unflatten(trees["params"], template.params),
        ema=_unflatten(trees["ema"], template.ema),
        key=key,
        **_unflatten(trees["state"], rest),
    )


def _manifest(trees: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {
            path: [list(leaf.shape), leaf.dtype.name]
            for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
        }
        for name, tree in trees.items()
    }


def _compare(manifest: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    for name, leaves in _manifest(wanted).items():
        saved = manifest[name]
        for path in sorted(leaves.keys() | saved.keys()):
            have, want = saved.get(path), leaves.get(path)
            if have != want:
                raise StructureError(
                    f"{what} is of another model or configuration: {name}/{path} is {_describe(have)} there and "
                    f"{_describe(want)} here"
                )


def _describe(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf[1]}{tuple(leaf[0])}"


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _free_name(path: Path) -> Path:
    names = (path if n == 0 else path.with_name(f"{path.name}-{n}") for n in range(sys.maxsize))
    return next(name for name in names if not name.exists())
