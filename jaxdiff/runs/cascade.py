"""A cascade: runs of increasing resolution, each of which is told the picture of the one before.

    cascade = jaxdiff.load("runs/cascade.json")
    digits = cascade.sample(0, 10, {"label": range(10)}, on_stage=show)    # {"x": uint8 (10, 28, 28, 1), "label": ...}

Ho et al. 2021, "Cascaded Diffusion Models for High Fidelity Image Generation", https://arxiv.org/abs/2106.15282: with
u_1 a small picture and u_k one of stage k,

    u_1 ~ p_1(u | y),       u_k ~ p_k(u | c', s_k, y),    c' = sqrt(1 - s_k^2) c + s_k eps,    c = u_{k-1}    (1)

where y is what all stages are told, as a label or a text, and s_k the noise level that stage k is told, the paper's
non-truncated conditioning augmentation (`jaxdiff.codecs.augmentation`). The file names the runs, by paths from its own
folder, and what is to be other than as they are configured:

    {"stages": ["mnist_cascade_8", {"run": "mnist_cascade_28", "level": 0.1, "steps": 20, "guide": "cfg:1.5"}]}

Stage k draws its noise by keys of its own, sample i by the key fold_in(key_k, i), so that it is the same at any batch
size. The first stage is the run itself, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.codecs.augmentation import LEVEL, LOW, noised_copy
from jaxdiff.codecs.images import to_model_range
from jaxdiff.data.text import TEXT
from jaxdiff.launch.errors import ConfigError, as_config_error, refuse_unknown
from jaxdiff.methods import guidance_of, parse_cache, parse_grid, parse_sampler
from jaxdiff.model import Model
from jaxdiff.noise import as_key, sample_keys
from jaxdiff.plan import stored_shape
from jaxdiff.runs.run import Run
from jaxdiff.spec import Spec, droppable, whole

STAGE = 0x63617363  # "casc": the salt of the later stages' keys
OPTIONS = ("sampler", "steps", "grid", "guide", "cache", "batch_size")
"""What a stage may say of its sampling, by the names of `jaxdiff.model.Model.sample`."""
_OF_SAMPLING = ("sampler", "steps", "grid", "cache", "batch_size", "compiled")
_OF_LOADING = ("ema", "trusted", "mesh", "dtype")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a cascade.

    Args:
      run: the run.
      level: s_k of equation (1), from 0 to 1: of the noise on the picture that it is told.
      options: of `OPTIONS`, what is other than as the run is configured.
    """

    run: Run
    level: float = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its run."""
        return self.run.config.name

    @property
    def most(self) -> float:
        """The largest level that it was trained with."""
        return float(getattr(self.run.codec, "augment", 0.0)) or 1.0

    @property
    def size(self) -> tuple[int, ...]:
        """Of its pictures, (H, W, C)."""
        return stored_shape(self.run.codec, self.run.shape)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Runs of increasing resolution, equation (1). Made by `Cascade.load`, or of stages.

    Args:
      stages: from the smallest to the largest, two or more.
      path: of the file; None: it was made of stages.

    Raises:
      ConfigError: stages that do not fit each other.
    """

    stages: tuple[Stage, ...]
    path: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        _check_stages(self.stages)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Cascade:
        """Reads the runs that a file names.

        Args:
          path: the file, such as ``runs/cascade.json``.
          options: of `Run.load`, for all stages: ``ema``, ``trusted``, ``mesh``, ``dtype``. A stage's ``step`` stands
            in the file.

        Raises:
          ConfigError: a file that cannot be read, a stage that is no run, or stages that do not fit each other.
          CheckpointError: a run without a readable checkpoint.
        """
        refuse_unknown("option of a cascade", options, _OF_LOADING)
        file, stages = Path(path).expanduser(), []
        for number, said in enumerate(_read(file)):
            folder = file.parent / Path(said.pop("run")).expanduser()
            level, step = said.pop("level", 0.0), said.pop("step", None)
            with as_config_error(f"{file}: stage {number}"):
                run = Run.load(folder, step=step, **options)
                for name, parse in _PARSED.items():
                    if name in said:
                        parse(said[name], run)
            stages.append(Stage(run, level, said))
        try:
            return cls(tuple(stages), file)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    @property
    def last(self) -> Run:
        """The run of the largest pictures."""
        return self.stages[-1].run

    @property
    def codec(self) -> Any:
        """Of the largest pictures."""
        return self.last.codec

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0 of the last stage."""
        return self.last.shape

    @property
    def num_classes(self) -> int | None:
        """Number of labels; None where no stage has any."""
        return next((each.run.num_classes for each in self.stages if each.run.num_classes is not None), None)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes; () where they have none."""
        return next((each.run.classes for each in self.stages if each.run.classes), ())

    @property
    def model(self) -> Model:
        """The first stage's, with the conditions that all stages together are told."""
        models = [each.run.model for each in self.stages]
        specs = {name: each for model in reversed(models) for name, each in model.conditions.items() if name != LOW}
        encoders = {name: each for model in reversed(models) for name, each in model.encoders.items()}
        return dataclasses.replace(models[0], cond=specs, encoders=encoders, draw_cond=None)

    def doubts(self, texts: Sequence[str]) -> list[str]:
        """What a person is told of prompts that do not fit."""
        return list(dict.fromkeys(doubt for each in self.stages for doubt in each.run.doubts(texts)))

    def decided_by(self) -> dict[str, Any]:
        """What decides its samples beside options."""
        return {
            "cascade": [
                {**each.run.decided_by(), "level": each.level, **{k: str(v) for k, v in each.options.items()}}
                for each in self.stages
            ]
        }

    def save(self, path: str | os.PathLike[str], record: Mapping[str, Any], columns: int | None = None) -> None:
        """Writes samples of any stage as the suffix of a path says. Raises as `Run.save`."""
        self.last.save(path, record, columns)

    def sample(
        self,
        key: Array | int,
        n: int,
        cond: Mapping[str, Any] | None = None,
        *,
        on_stage: Callable[[int, dict[str, NDArray[Any]]], None] | None = None,
        negative: Mapping[str, Any] | str | None = None,
        guide: Any = None,
        decode: bool = True,
        start: int = 0,
        **options: Any,
    ) -> Any:
        """Draws samples, one stage after the other.

        Args:
          key, n, negative, guide, start, decode: as `jaxdiff.model.Model.sample`.
          cond: conditions by name, each given to every stage that knows it. ``"low_level"`` is s of equation (1), for
            all stages; else each has its own.
          on_stage: is called with a stage's number and its record as soon as it is done, with the last one's too.
          options: of `Model.sample`, for every stage: ``sampler``, ``steps``, ``grid``, ``cache``, ``batch_size``; of a
            run ``compiled``. They stand before what a stage itself says. Guidance is of stages that know a condition
            that is given.

        Returns:
          The last stage's record.

        Raises:
          ConfigError: a condition that no stage knows, or what a stage refuses.
        """
        with as_config_error("sampling"):
            key, n = as_key(key), whole("n", n)
            refuse_unknown("option of a cascade", options, (*_OF_SAMPLING, "guide", "negative", "on_stage"))
            options = {name: value for name, value in options.items() if value is not None}
            given = dict(cond or {})
            known = self.model.conditions
            refuse_unknown("condition of this cascade", given, list(known))
            away = {TEXT: negative} if isinstance(negative, str) else dict(negative or {})
            refuse_unknown("condition of this cascade", away, list(known))
            level = given.pop(LEVEL, None)
            led = [self._told(stage, given) for stage in self.stages]
            if guide is not None and guidance_of(guide) and not any(led):
                raise ValueError("guidance leads towards a condition: pass cond={...}, or guide=() for none")
            if away and not any(led):
                raise ValueError("negative is what guidance leads away from: pass what it leads to too, cond={...}")
        record: dict[str, NDArray[Any]] = {}
        for k, stage in enumerate(self.stages):
            mine = {name: value for name, value in given.items() if name in stage.run.model.conditions}
            own = key if k == 0 else jax.random.fold_in(jax.random.fold_in(key, STAGE), k)
            if k:
                with as_config_error("sampling"):
                    mine |= self._picture(stage, record, level, sample_keys(own, start, n))
            chosen: dict[str, Any] = {**stage.options, **options}
            if not led[k]:
                chosen["guide"] = ()
            elif guide is not None:
                chosen["guide"] = guide
            specs = stage.run.model.conditions
            if led[k] and (other := {name: value for name, value in away.items() if name in specs}):
                chosen["negative"] = other
            whole_record = decode or k < len(self.stages) - 1
            record = stage.run.sample(own, n, mine or None, start=start, decode=whole_record, **chosen)
            if on_stage is not None:
                on_stage(k, record)
        return record

    @staticmethod
    def _told(stage: Stage, given: Mapping[str, Any]) -> bool:
        """Whether a stage knows a condition that is given and that guidance can leave out."""
        specs = stage.run.model.conditions
        return any(name in specs and droppable(specs[name]) for name in given)

    @staticmethod
    def _picture(stage: Stage, record: Mapping[str, Any], level: Any, keys: Array) -> dict[str, Any]:
        """c' and s of equation (1), of the pictures of the stage before."""
        low = to_model_range(record["x"])
        if LEVEL not in stage.run.model.conditions:
            return {LOW: low}
        s = np.broadcast_to(np.asarray(stage.level if level is None else level, np.float32), (len(low),))
        if not ((s >= 0) & (s <= stage.most)).all():
            raise ValueError(
                f"{LEVEL} is of the noise on {stage.name}'s small picture, 0 to {stage.most:g}, got {level}"
            )
        return {LOW: noised_copy(low, s, keys), LEVEL: s}


def is_cascade(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a cascade: a JSON file.

    >>> is_cascade("runs/cascade.json"), is_cascade("runs/digits")
    (True, False)
    """
    return Path(path).suffix == ".json"


_PARSED: dict[str, Callable[[Any, Run], Any]] = {
    "sampler": lambda text, run: parse_sampler(text, run.process),
    "grid": lambda text, run: parse_grid(text),
    "guide": lambda text, run: guidance_of(text),
    "cache": lambda text, run: parse_cache(text),
}
"""What of a stage's options is read once, so that a mistake in the file is told when it is loaded."""


def _read(file: Path) -> list[dict[str, Any]]:
    """What a file says of its stages.

    Raises:
      ConfigError: no such file, or another content.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as a cascade: {error}") from error
    example = '{"stages": ["runs/small", {"run": "runs/large", "level": 0.1}]}'
    if not isinstance(said, dict) or not isinstance(said.get("stages"), list):
        raise ConfigError(f"{file} is no cascade: expected {example}")
    refuse_unknown(f"entry of {file}", said, ["stages"])
    stages = [{"run": each} if isinstance(each, str) else each for each in said["stages"]]
    for number, stage in enumerate(stages):
        if not isinstance(stage, dict) or not isinstance(stage.get("run"), str):
            raise ConfigError(f"{file}: stage {number} is the path of a run, or an entry with one, as in {example}")
        refuse_unknown(f"entry of stage {number} in {file}", stage, ["run", "step", "level", *OPTIONS])
    return [dict(each) for each in stages]


def _check_stages(stages: tuple[Stage, ...]) -> None:
    """Refuses stages that do not fit each other, in one line."""
    if len(stages) < 2:
        raise ConfigError(f"a cascade has two stages or more, got {len(stages)}: a single run needs no file")
    for k, stage in enumerate(stages):
        specs = stage.run.model.conditions
        low = specs.get(LOW)
        if isinstance(stage.level, bool) or not isinstance(stage.level, int | float) or not 0 <= stage.level <= 1:
            raise ConfigError(
                f"{stage.name}: level is of the noise on its small picture, from 0 to 1, got {stage.level!r}"
            )
        if stage.level > stage.most:
            raise ConfigError(
                f"{stage.name} was trained with noise of a level up to {stage.most:g}, got {stage.level:g}"
            )
        if stage.level and LEVEL not in specs:
            raise ConfigError(f"{stage.name} was trained without noise on its small picture: leave level out, or 0")
        if len(stage.size) != 3:
            raise ConfigError(f"{stage.name} draws samples of {stage.size}, and a cascade is of pictures")
        if k == 0:
            if low is not None and not droppable(low):
                raise ConfigError(f"{stage.name} enlarges a picture: a cascade begins with a run that needs none")
            continue
        before = stages[k - 1]
        if not isinstance(low, Spec):
            raise ConfigError(
                f"{stage.name} is told no small picture {LOW!r}, so it cannot follow {before.name} (see Images' "
                "low_resolution)"
            )
        if low.shape != before.size:
            raise ConfigError(
                f"{stage.name} enlarges pictures of {low.shape}, and {before.name} draws {before.size}: stages follow "
                "each other from the smallest to the largest"
            )
        _check_shared(stages[0], stage)


def _check_shared(first: Stage, stage: Stage) -> None:
    """Conditions of one name mean the same in both."""
    mine, others = stage.run.model.conditions, first.run.model.conditions
    for name in mine.keys() & others.keys():
        one, other = mine[name], others[name]
        if isinstance(one, Spec) and isinstance(other, Spec) and (one.shape, one.clip) != (other.shape, other.clip):
            raise ConfigError(
                f"{name} is {one.shape} from {one.low} to {one.high} in {stage.name}, and {other.shape} from "
                f"{other.low} to {other.high} in {first.name}: train both on the same data"
            )
    if stage.run.classes and first.run.classes and stage.run.classes != first.run.classes:
        raise ConfigError(f"{stage.name} and {first.name} have other classes: train both on the same data")
