"""Checkpoints of a run: written behind its back by Orbax, read with errors that say what is wrong.

A step's folder holds `params`, `ema`, `state` (step, optimizer, key, history), `data` (the position in the data, JSON)
and `manifest` (every leaf's shape, dtype and checksum, JSON). So weights can be read without the optimizer, and what is
of another model, or is not as it was written (`jaxdiff.train.checksum`), is refused by the name of the first such leaf.
A step appears whole, by a rename, or not at all. PRNG keys are stored as their data. No pickle anywhere.

Which step was saved last is noted beside the folder, in the file `last_saved`: a run whose checkpoints were lost is
thus told from a new one.

With several processes, each reads and checks what it holds, and all take the same step: what one cannot read, none
takes. There a save that fails always ends the run, since the others cannot know of it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxdiff.launch.distributed import as_lead
from jaxdiff.train.checkpoint_format import (
    Best,
    CheckpointError,
    SaveError,
    StructureError,
    Summed,
    Want,
    all_of,
    average_folder,
    free_name,
    make_manifest,
    nested,
    of_the_system,
    read,
    read_note,
    reason,
    split,
    state_of,
    trees_of,
    unflatten,
)
from jaxdiff.train.checksum import DamageError
from jaxdiff.train.failed_save import quiet_failed_saves
from jaxdiff.train.place import Place
from jaxdiff.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run, a folder with one sub-folder a step.

    Args:
        folder: where; made when missing, unless `readonly`.
        keep: how many of the latest steps to keep, at least 1.
        best: a metric's name: the step where it was lowest is kept as well; None: only the latest.
        on_error: what a failed save does (a full disk): "continue" says so and leaves it to the next save to do better,
            "stop" raises. Steps saved before stay in both cases.
        last_saved: file that notes the last step saved; None: none.
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
        on_error: Literal["continue", "stop"] = "continue",
        last_saved: str | os.PathLike[str] | None = None,
        readonly: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint must be kept")
        self.folder = Path(folder).absolute()
        self._readonly = readonly
        self._best, self._on_error, self._say = best, on_error, say or _to_stderr
        self._last_saved = None if last_saved is None else Path(last_saved)
        self._scores: dict[int, float] = {}
        self._saving: int | None = None
        self._failed = False
        if readonly and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder}: the folder does not exist")
        kept: list[Any] = [policies.LatestN(keep), *([] if best is None else [Best(self._score)])]
        me = jax.process_index()  # each of several readers reads by itself; writers work together
        alone: dict[str, Any] = {"primary_host": me, "active_processes": {me}} if readonly else {}
        self._options = ocp.CheckpointManagerOptions(
            multiprocessing_options=ocp.options.MultiprocessingOptions(**alone),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            create=not readonly,
            temporary_path_class=Summed,
        )
        with contextlib.ExitStack() as quiet:
            quiet.enter_context(quiet_failed_saves(saves=not readonly))
            self._manager: Any = self._opened()
            self._quiet = quiet.pop_all()
        self._place = None if readonly else Place(self.folder)
        if self._place is not None and me == 0:  # Orbax would do it in a thread, which a refusal does not wait for
            self._place.sweep()

    def _opened(self) -> Any:
        try:
            return ocp.CheckpointManager(self.folder, options=self._options)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be used: {error.strerror or error}") from error

    def _score(self, step: int) -> float:
        """What `best` was at a step; infinite where it is not known."""
        if step not in self._scores:
            folder, scores = self.folder / str(step), None
            with contextlib.suppress(DamageError):  # it is then not the best; restoring it tells of the damage
                scores = read_note(folder, "data").get("metrics")
            with contextlib.suppress(DamageError):  # where an older jaxdiff had Orbax write them
                scores = read_note(folder, "metrics", "metrics") if scores is None else scores
            score = scores.get(self._best) if isinstance(scores, dict) else None
            self._scores[step] = float(score) if isinstance(score, int | float) else math.inf
        return self._scores[step]

    def steps(self) -> list[int]:
        """All steps in the folder, rising; half-written ones are not among them."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step in the folder, or None. That it can be read is known only by reading it."""
        return max(self.steps(), default=None)

    def begun(self) -> bool:
        """Whether there is something to go on from.

        Raises:
            CheckpointError: there was, by that file, and it is gone.
        """
        if self.steps():
            return True
        noted = self._noted()
        if noted is not None:
            saved = f"step {noted}" if noted >= 0 else "one"
            raise CheckpointError(
                f"no checkpoint in {self.folder}, though {saved} was saved there: bring the folder back; or, to "
                f"train from the beginning, choose another --workdir or remove {self.folder.parent}"
            )
        return False

    def save(
        self, step: int, state: TrainState, position: Any = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save in the background; returns once the state is copied, so it may be donated to the next step.

        Args:
            step: its name; a step that is there already is left as it is.
            state: the state.
            position: the data position, JSON-able.
            metrics: of this step, for `best`; those that are not finite are left out.

        Raises:
            SaveError: this save, or the one before, failed, and `on_error` is "stop"; or the folder is no longer where
                it was.
        """
        self._check_place()
        self._settle(fatal=False)
        if step in self._manager.all_steps():
            return
        trees = trees_of(state)
        finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        data = {"position": position, "key": str(jax.random.key_impl(state.key)), "metrics": finite}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        notes = {"data": ocp.args.JsonSave(data), "manifest": ocp.args.JsonSave(make_manifest(trees, data))}
        if self._best is not None:
            self._scores[step] = finite.get(self._best, math.inf)
        self._sweep()
        with self._told_of(step, fatal=False):
            self._manager.save(step, args=ocp.args.Composite(**items, **notes), force=True)
            self._saving = step

    def check(self) -> None:
        """Says, or raises, what went wrong with a save that has ended meanwhile; does not wait.

        Raises:
            SaveError: it failed, and `on_error` is "stop"; or the folder is no longer where it was.
        """
        self._check_place()
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._settle(fatal=False)

    def wait(self) -> None:
        """Until what is being saved is on disk.

        Raises:
            SaveError: it could not be written, whatever `on_error` is; or the folder is no longer where it was.
        """
        self._settle(fatal=True)
        self._check_place()

    def _settle(self, *, fatal: bool) -> None:
        step, self._saving = self._saving, None
        if step is None:
            return
        with self._told_of(step, fatal=fatal):
            self._manager.wait_until_finished()
            self._note(step)

    @contextlib.contextmanager
    def _told_of(self, step: int, *, fatal: bool) -> Iterator[None]:
        """What goes wrong with saving a step: one line, raised or said; half-written files are removed."""
        try:
            yield
        # On a full disk Orbax raises whatever its layers raise, as on damaged files.
        except Exception as error:
            why = of_the_system(Summed.cause(error)) or reason(error)
            self._scores.pop(step, None)
            # A manager raises a failure again at every call, so a new one follows it, or none.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._saving, self._failed, self._manager = None, True, None
            self._check_place()
            text = f"the checkpoint of step {step} could not be saved in {self.folder} ({why})"
            if alone := jax.process_count() == 1:
                self._manager = self._opened()
                kept = self.latest()
                text += "; there is none yet" if kept is None else f"; the newest is that of step {kept}"
            if fatal or self._on_error == "stop" or not alone:
                raise SaveError(text) from error
            self._say(f"WARNING: {text}; training goes on")

    def _check_place(self) -> None:
        if self._place is not None and (gone := self._place.lost()):
            atexit.register(self._sweep)  # threads may write on
            raise SaveError(gone)

    def _sweep(self) -> None:
        """Removes what failed saves have left, which takes room; where their threads write on, the next sweep does."""
        if self._failed and self._place is not None:
            self._place.sweep()

    def _noted(self) -> int | None:
        """The last step saved, as noted; -1 where it cannot be read, None where there is none."""
        if self._last_saved is None or not self._last_saved.exists():
            return None
        try:
            return int(json.loads(self._last_saved.read_text(encoding="utf-8"))["saved"])
        except (OSError, ValueError, TypeError, KeyError):
            return -1

    def _note(self, step: int) -> None:
        if self._last_saved is None or self._place is None or self._place.lost() or jax.process_index() != 0:
            return
        partial = self._last_saved.with_suffix(".partial")
        try:
            partial.write_text(json.dumps({"saved": step}) + "\n", encoding="utf-8")
            partial.replace(self._last_saved)
        except OSError as error:
            self._say(f"WARNING: {self._last_saved} cannot be written ({reason(error)})")

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
        wanted = trees_of(template)
        _, trees, data = self._newest_good(lambda manifest, what: all_of(wanted, manifest, what), step, wanted)
        return state_of(trees, data["key"], template), data["position"]

    def restore_weights(
        self, template: Any, *, ema: bool | str = True, partial: bool = False, step: int | None = None
    ) -> tuple[int, Any]:
        """Read the parameters alone, for sampling or as the start of another training.

        Args:
            template: the parameters' shapes, from `jax.eval_shape(net.init, key)`; with shardings (where these are of
                several processes' devices, all of these call it), or onto the first device. Parameters will do.
            ema: their running average (float32), or the one of this name, rather than the parameters themselves.
            partial: take the leaves that fit by name and shape, and leave others as they stand in the template; these
                are told of.
            step: which; None: the newest that can be read.

        Returns:
            The step, and the parameters.

        Raises:
            CheckpointError: as `restore`; or nothing fits.
        """
        name = average_folder(ema if isinstance(ema, str) else "ema") if ema else "params"
        leaf = jax.ShapeDtypeStruct
        dtyped = jax.tree.map(lambda a: leaf(a.shape, jnp.float32 if ema else a.dtype, sharding=a.sharding), template)
        wanted, new = {name: nested(dtyped)}, list[str]()

        def fitting(manifest: Mapping[str, Any], what: str) -> dict[str, Any]:
            if not partial:
                return all_of(wanted, manifest, what)
            new[:], fit = split(manifest.get(name, {}), wanted[name])
            if not fit:
                raise StructureError(f"{what} has no weights that fit: {', '.join(new[:3])} ...")
            return {name: fit}

        chosen, trees, _ = self._newest_good(fitting, step, wanted)
        if new:
            self._say(f"{len(new)} of {len(new) + len(jax.tree.leaves(trees))} leaves are new: {', '.join(new)}")
        return chosen, unflatten(trees[name], template)

    def close(self) -> None:
        """Wait for what is being saved, and let go.

        Raises:
            SaveError: as `wait`.
        """
        try:
            self._settle(fatal=True)
        finally:
            if self._manager is not None:
                self._manager.close()
            if not self._failed:  # else what a failed save has left in threads is told of later
                self._quiet.close()
            self._sweep()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, *_: object) -> None:
        try:
            self.close()
        except SaveError as error:
            if kind is None:
                raise
            if str(error) != str(raised):
                self._say(f"WARNING: {error}")  # what ends the `with` already is the news

    def _newest_good(self, want: Want, step: int | None, tree: Any) -> tuple[int, dict[str, Any], dict[str, Any]]:
        self.wait()
        together = any(leaf.sharding and not leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(tree))
        steps = as_lead(self.steps()) if together else self.steps()  # a training may be writing newer ones
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.folder}; there are those of {', '.join(map(str, steps))}"
            )
        damaged: dict[int, str] = {}
        if step is None and (noted := self._noted()) is not None and noted > steps[-1]:
            self._say(f"WARNING: step {noted} was saved in {self.folder}, and its checkpoint is gone")
        for chosen in reversed(steps) if step is None else [step]:
            folder = self.folder / str(chosen)
            what = f"the checkpoint of step {chosen} in {self.folder}"
            found, why = read(folder, want, what, self._say, together=together)
            if found is None:
                damaged[chosen] = why
                self._say(f"WARNING: checkpoint {folder} cannot be read ({why})")
                continue
            if damaged:
                self._say(f"WARNING: going back to the checkpoint of step {chosen}, the newest that can be read")
                self._set_aside(list(damaged))
            self._note(chosen)
            return chosen, *found
        listed = "; ".join(f"step {bad}: {why}" for bad, why in damaged.items())
        raise CheckpointError(f"no checkpoint in {self.folder} can be read ({listed})")

    def _set_aside(self, steps: Sequence[int]) -> None:
        if self._readonly:
            return
        if jax.process_index() == 0:
            for step in steps:
                os.replace(self.folder / str(step), free_name(self.folder / f"{step}.damaged"))
        self._manager.reload()


def _to_stderr(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
