"""Runs that guidance names beside the one that samples: a classifier, or a second, worse network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdiff.config import ClassifierConfig, ConfigError, read_config, to_json
from jaxdiff.guidance import Read, resolved
from jaxdiff.methods import guidance_of
from jaxdiff.runs.classifier import ClassifierRun
from jaxdiff.train import CheckpointError


@dataclasses.dataclass(frozen=True)
class Beside:
    """Loads what guidance names, each once: `jaxdiff.guidance.base.Read`.

    Args:
      load: `Run.load`.
      trusted, mesh: as the run that samples was loaded.
      folder: of that run, for another of its checkpoints; None: it lies nowhere.
      own: what a second network of the same question has in common with it, by a name for messages.
    """

    load: Callable[..., Any]
    trusted: Sequence[str]
    mesh: Mesh
    folder: Path | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _kept: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(
        self, path: str | None, *, step: int | None = None, average: str | None = None, alike: bool = False
    ) -> Any:
        """The run, or the classifier's run.

        Args:
          path: its folder; None: that of the run that samples.
          step: of its checkpoint; None: the newest.
          average: of its weights, by name, "none" for those of the last step; None: the first.
          alike: whether it is a second network of the same question, for autoguidance.

        Raises:
          ConfigError: nothing that can be read, or a network of another question.
          CheckpointError: a classifier without a readable checkpoint.
        """
        place = (path, step, average, alike)
        if place not in self._kept:
            self._kept[place] = self._second(path, step, average) if alike else self._read(path)
        return self._kept[place]

    def _read(self, path: str | None) -> Any:
        if path is None:
            raise ConfigError("guidance names no run: give its folder, run=runs/digits_classifier")
        classifies = isinstance(read_config(path, self.trusted), ClassifierConfig)
        load = ClassifierRun.load if classifies else self.load
        return load(path, trusted=self.trusted, mesh=self.mesh)

    def _second(self, path: str | None, step: int | None, average: str | None) -> Any:
        named = {"run": path, "step": step, "average": average}
        words = ",".join(f"{name}={value}" for name, value in named.items() if value is not None)
        try:
            if path is None and self.folder is None:
                raise ConfigError("this run lies in no folder that could be read from: name another, run=runs/small")
            ema: bool | str = False if average == "none" else average or True
            found = self.load(path or self.folder, step=step, ema=ema, trusted=self.trusted, mesh=self.mesh)
            for name, its in in_common(found.config, found.model).items():
                if not _equal(self.own[name], its):
                    raise ConfigError(
                        f"its {name} is {_brief(its)}, and that of the run that samples {_brief(self.own[name])}: both "
                        "networks are to answer the same question"
                    )
        except (ValueError, CheckpointError) as error:
            raise ConfigError(f"autoguidance:{words}: {error}") from error
        return found


def decided_by(read: Read, guide: Any) -> list[dict[str, Any]]:
    """What decides the runs that guidance names: `Run.decided_by` of each, and the average of its weights."""
    found = []

    def noting(path: str | None, **which: Any) -> Any:
        run = read(path, **which)
        if isinstance(run, ClassifierRun):
            learned = ["seed", "process", "parameterization", "network", "codec", "time", "optimizer"]
            decided = {"run": run.config.name, "config": sum_of(run.config, learned), "step": run.step}
        else:
            decided = run.decided_by()
        found.append({**decided, **{name: value for name, value in which.items() if name == "average"}})
        return run

    resolved(guidance_of(guide), noting)
    return found


def sum_of(config: Any, names: Sequence[str]) -> str:
    """A checksum of some fields of a configuration."""
    text = json.dumps({name: to_json(getattr(config, name)) for name in names}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def in_common(config: Any, model: Any) -> dict[str, Any]:
    """What two networks of the same question have in common, by a name for messages."""
    return {
        "process": config.process,
        "shape of the data": model.shape,
        "codec": config.codec,
        "condition": dict(model.denoise.net.cond),
    }


def _equal(mine: Any, its: Any) -> bool:
    (mine_leaves, form), (its_leaves, its_form) = jax.tree.flatten(mine), jax.tree.flatten(its)
    if not bool(form == its_form):  # type: ignore[operator, unused-ignore]
        return False
    leaves = zip(mine_leaves, its_leaves, strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) if _number(a) else a == b for a, b in leaves)


def _number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
