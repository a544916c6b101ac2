"""A trained run: a model, the configuration that made it, and where it lies.

    run = jaxdiff.load("runs/digits")
    digits = run.sample(jax.random.key(0), 10, {"label": range(10)})     # {"x": uint8 (10, 8, 8, 1), "label": ...}
    run.save("digits.png", digits)

A run's folder holds `config.json` (the resolved configuration), `checkpoints/`, and what training wrote for people to
read.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import ArrayLike, NDArray

from jaxdiff.codecs.semantic import ids_of_maps
from jaxdiff.config import (
    TRUSTED,
    ClassifierConfig,
    Config,
    ConfigError,
    as_config_error,
    build_defaults,
    build_network,
    computing_in,
    read_config,
)
from jaxdiff.config.autoencoder import nothing_to_sample
from jaxdiff.config.classifier import no_sampler
from jaxdiff.config.folder import CHECKPOINTS
from jaxdiff.data.text import TEXT
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.launch.errors import refuse_unknown, refuse_unknown_options
from jaxdiff.model import Model
from jaxdiff.plan import Plan, draw
from jaxdiff.pretrained.adapters.inversion import TextualInversion
from jaxdiff.process import Process
from jaxdiff.runs.beside import Beside, decided_by, in_common, sum_of
from jaxdiff.runs.compiled import Kept
from jaxdiff.runs.examples import read_examples
from jaxdiff.runs.prompts import (
    Prompt,
    doubts,
    drawn_examples,
    labels,
    rows_of_labels,
    rows_of_prompts,
    shown_examples,
)
from jaxdiff.spec import Condition, Spec, droppable, whole
from jaxdiff.train import Checkpoints, batch_sharding, check_heads, make_mesh, params_template
from jaxdiff.train.ema import rules_by_name
from jaxdiff.train.frozen import joined, partition
from jaxdiff.train.initial import read_codec, read_frozen


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run. Made by `Run.load`, by `jaxdiff.fit`, or by training for its own pictures.

    Args:
      config: its resolved configuration.
      model: everything that samples.
      step: optimizer steps behind its weights.
      mesh: the devices that batches are split over.
      folder: where it lies; None: nowhere.
      examples: conditions of some training records, for pictures; text as captions.
    """

    config: Config
    model: Model
    step: int
    mesh: Mesh
    folder: Path | None = None
    examples: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        params: Any,
        step: int,
        mesh: Mesh,
        *,
        codec: Any = None,
        examples: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        trusted: Sequence[str] = TRUSTED,
    ) -> Run:
        """The run of a configuration and weights.

        Args:
          config: resolved.
          params: all of the network's parameters, on the mesh.
          step: optimizer steps behind them.
          mesh: the devices.
          codec: on the mesh; None: it is read.
          examples: conditions of some training records: captions, and conditions that cannot be left out.
          folder: where it lies.
          trusted: modules and files that runs may need which guidance names.
        """
        net = build_network(config)
        if codec is None:
            codec = read_codec(config, mesh, near=folder)[1]
        if isinstance(net, TextualInversion):
            net, params, codec = net.sampled(params, codec)
        denoise = NetworkDenoiser(net, params, config.process, config.parameterization, anew=mesh.shape["fsdp"] > 1)
        made = {name: each for name, each in codec.spec.items() if name in getattr(config.codec, "reads", ())}
        cond = {name: _as_trained(name, made.get(name, each), config) for name, each in config.cond.items()}
        encoders: dict[str, Any] = {}
        if config.data.classes is not None:
            encoders["label"] = functools.partial(labels, config.data.classes)
        if config.tokenizer is not None:
            encoders[TEXT] = Prompt(config.tokenizer, codec, mesh)
        encoders |= ids_of_maps(codec)
        examples = dict(examples or {})
        needed = {name: each for name, each in examples.items() if name != "label" and not droppable(cond[name])}
        if needed and "label" in examples and TEXT not in examples:
            needed["label"] = examples["label"]
        model = Model(
            denoise,
            codec,
            build_defaults(config),
            cond=cond,
            encoders=encoders,
            draw_cond=functools.partial(drawn_examples, needed) if needed else None,
            sharding=batch_sharding(mesh),
        )
        read = Beside(cls.load, trusted, mesh, folder, in_common(config, model))
        return cls(config, dataclasses.replace(model, read=read), step, mesh, folder, examples)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        ema: bool | str = True,
        trusted: Sequence[str] = TRUSTED,
        mesh: Mesh | None = None,
        dtype: str | None = None,
    ) -> Run:
        """Reads a run from its folder. Nothing of the folder is changed.

        Args:
          path: the folder, such as ``runs/digits``.
          step: of the checkpoint; None: the newest that can be read.
          ema: the averaged weights (of several averages the first), the average of this name, or (False) the weights of
            the last step.
          trusted: modules, and files such as ``"mine.py"``, that the configuration's classes and names may come from,
            which are imported; add your own.
          mesh: the devices, from `jaxdiff.train.make_mesh`, over which weights are split as in training: by its axes
            fsdp and tensor, and no device reads more than its part. All processes whose devices these are call it.
            None: this process's devices, each with whole weights, so that each of several samples by itself.
          dtype: what the network computes in, and what its weights are kept in, such as ``"bfloat16"``; None: as
            trained.

        Raises:
          ConfigError: the folder is not a run's, its configuration cannot be read, a dtype that the network has not, or
            a mesh that would cut through its heads.
          CheckpointError: it has no readable checkpoint.
        """
        with as_config_error("load"):
            folder = Path(path).expanduser()
            step = None if step is None else whole("step", step, 0)
        config = read_config(folder, trusted)
        if isinstance(config, ClassifierConfig):
            raise ConfigError(no_sampler(path))
        if not isinstance(config, Config):
            raise ConfigError(nothing_to_sample(path))
        if dtype is not None:
            config = computing_in(config, dtype)
        averages = list(rules_by_name(config.ema))
        refuse_unknown("average of the weights", [ema] if isinstance(ema, str) else [], averages)
        ema = averages[0] if ema is True else ema
        mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
        with as_config_error("mesh"):
            check_heads(config.network, mesh)
        net = build_network(config)
        template = params_template(net, mesh)
        if config.train.freeze:
            template = partition(template, config.train.freeze)[0]
        with Checkpoints(folder / CHECKPOINTS, readonly=True) as checkpoints:
            found, params = checkpoints.restore_weights(template, ema=ema, step=step)
        given = read_frozen(config, net, mesh, near=folder)[1] if config.train.freeze else None
        params = params if given is None else joined(params, given.base)
        if dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        options: dict[str, Any] = {"codec": None if given is None else given.codec, "trusted": trusted}
        return cls.of(config, params, found, mesh, examples=read_examples(folder), folder=folder, **options)

    @property
    def denoise(self) -> NetworkDenoiser:
        """The denoiser of its weights: ``denoise(x, t, {"label": labels})`` gives a `Prediction`."""
        return self.model.denoise

    @property
    def process(self) -> Process:
        """The process that the run was trained on."""
        return self.config.process

    @property
    def codec(self) -> Any:
        """Between stored records and what the network sees."""
        return self.model.codec

    @property
    def num_classes(self) -> int | None:
        """Number of labels; None for a run without."""
        return self.config.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, in order of their labels; () where they have none."""
        return self.config.data.classes or ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0, such as (H, W, C) of an image or (D,) of a point."""
        return self.model.shape

    def doubts(self, texts: Sequence[str]) -> list[str]:
        """What a person is told of prompts that do not fit: which are cut, and what the run does not know."""
        return doubts(self.config.tokenizer, texts)

    def decided_by(self) -> dict[str, Any]:
        """What decides its samples beside options: its name, its step, and a checksum of its configuration."""
        learned = ["seed", "process", "parameterization", "network", "codec", "loss", "optimizer"]
        learned += [] if self.config.tokenizer is None else ["tokenizer"]
        return {"run": self.config.name, "config": sum_of(self.config, learned), "step": self.step}

    def named_by(self, guide: Any) -> list[dict[str, Any]]:
        """What decides the runs that guidance names: `decided_by` of each, and the average of its weights.

        Args:
          guide: as `jaxdiff.Model.sample` takes it.
        """
        return [] if self.model.read is None else decided_by(self.model.read, guide)

    def check(self) -> None:
        """Traces sampling as configured without running it; the weights may be mere shapes.

        Raises:
          ConfigError: the sampler, its times, the parameterization and the network do not fit each other.
        """
        with as_config_error("sample"):
            self.model.check()

    def sample(
        self,
        key: Array | int,
        n: int,
        cond: Mapping[str, Any] | None = None,
        *,
        compiled: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Any:
        """Draws samples: arguments and result as `jaxdiff.model.Model.sample`. What is left out is as configured.

        Args:
          key, n, cond, options: see there.
          compiled: folder that keeps the compiled program for other processes: `jaxdiff.runs.compiled`.

        Raises:
          ConfigError: an argument that is out of range, or that this run cannot follow.
        """
        with as_config_error("sampling"):
            if compiled is not None:
                options["program"] = functools.partial(_draw_kept, os.path.abspath(os.path.expanduser(compiled)))
            refuse_unknown_options(self.model.sample, options)
            return self.model.sample(key, n, cond, **options)

    def invert(self, record: Mapping[str, Any], cond: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """As `jaxdiff.model.Model.invert`.

        Raises:
          ConfigError: an argument that is out of range, or that this run cannot follow.
        """
        with as_config_error("inversion"):
            refuse_unknown_options(self.model.invert, options)
            return self.model.invert(record, cond, **options)

    def save(self, path: str | os.PathLike[str], record: Mapping[str, Any], columns: int | None = None) -> None:
        """Writes samples as the suffix of a path says, by the codec.

        Raises:
          ConfigError: a suffix that such data have no file of.
        """
        with as_config_error("save"):
            if not isinstance(record, Mapping) or "x" not in record:
                raise ValueError(f"a record is a dict with 'x', as sample gives it, got {type(record).__name__}")
            self.codec.save(path, record, columns)

    def picture(self) -> NDArray[np.uint8]:
        """``config.picture``, or a picture of ``config.sample.num`` samples, one class or one of `prompts` a row,
        NaN as 0: uint8 ``(H', W', C)``."""
        if self.config.picture is not None:
            drawn: NDArray[np.uint8] = self.config.picture(self)
            return drawn
        n = self.config.sample.num
        if TEXT in self.examples:
            which, columns = rows_of_prompts(self.prompts, n)
            chosen = shown_examples(self.examples, n)[which]
            cond = {name: value[chosen] for name, value in self.examples.items()}
        else:
            rows, columns = rows_of_labels(self.num_classes, n)
            drawn_cond = {} if self.model.draw_cond is None else dict(self.model.draw_cond(_first_keys(n)))
            cond = (rows or {}) | drawn_cond
        x0 = self.sample(self.config.seed, n, cond or None, decode=False)
        finite = np.nan_to_num(x0, posinf=1.0, neginf=-1.0)
        return np.asarray(self.codec.picture(_decoded(self.codec, finite), columns))

    @property
    def prompts(self) -> list[str]:
        """The captions of the rows of `picture`; none without text."""
        if TEXT not in self.examples:
            return []
        return [str(text) for text in self.examples[TEXT][shown_examples(self.examples, self.config.sample.num)]]

    def measure(self) -> dict[str, float]:
        """What ``config.picture`` measures, by name; nothing where it is a grid of samples."""
        figures: dict[str, float] = {} if self.config.picture is None else self.config.picture.measure(self)
        return figures


def _as_trained(name: str, condition: Condition, config: Config) -> Condition:
    """A condition as the run knows it: without a null where it was never dropped, and is no setting. Texts were dropped
    where a published network was trained first."""
    if name in getattr(config.network, "settings", ()) or (name == TEXT and hasattr(config.codec, "negative")):
        return condition
    if config.loss.dropout.get(name, 0) > 0 or not droppable(condition):
        return condition
    if isinstance(condition, Spec):
        return dataclasses.replace(condition, null=None)
    return {key: dataclasses.replace(spec, null=None) for key, spec in condition.items()}


def _first_keys(n: int) -> Array:
    return jax.random.split(jax.random.key(0), n)


def _decoded(codec: Any, x0: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    stored: dict[str, NDArray[Any]] = jax.tree.map(np.asarray, _decode(codec, x0))
    return stored


@jax.jit  # one small program; by itself each operation would be one
def _decode(codec: Any, x0: ArrayLike) -> Any:
    return codec.decode(jnp.asarray(x0))


def _draw_kept(folder: str, plan: Plan, keys: Array, **static: Any) -> Any:
    """`jaxdiff.plan.draw` by a program that a folder keeps compiled."""
    return _kept(folder)(draw, (plan, keys), static)


@functools.lru_cache(maxsize=8)
def _kept(folder: str) -> Kept:
    return Kept(folder)
