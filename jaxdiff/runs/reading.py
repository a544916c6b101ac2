"""`jaxdiff.load`: the model that lies at a path, whether a run has trained it or it was published."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdiff.config import TRUSTED, AutoencoderConfig, ClassifierConfig, as_config_error, read_config
from jaxdiff.launch.errors import ConfigError, refuse_unknown
from jaxdiff.pretrained import Pretrained, load_pipeline
from jaxdiff.pretrained.layouts.families import described
from jaxdiff.pretrained.origin import HUB, is_published
from jaxdiff.pretrained.parts import is_published_part
from jaxdiff.runs.autoencoder import AutoencoderRun
from jaxdiff.runs.beside import Beside
from jaxdiff.runs.cascade import Cascade, is_cascade
from jaxdiff.runs.classifier import ClassifierRun
from jaxdiff.runs.run import Run
from jaxdiff.train import batch_sharding, make_mesh
from jaxdiff.train.sharding import split_sharding

HUB_NAME = re.compile(r"[A-Za-z][\w.-]*/[\w.-]+")
_OF_RUNS = ("step", "ema", "trusted")
_OF_PUBLISHED = ("variant", "length", "control", "tokenizer", "prediction", "flax_numerics")


def load(path: str | os.PathLike[str], **options: Any) -> Any:
    """What lies at a path, ready to sample.

    Args:
      path: the folder of a run, which gives its `Run`, `AutoencoderRun` or `ClassifierRun`; the file of a cascade,
        ``.json``, which gives a `Cascade`; or a published model, which gives a `jaxdiff.pretrained.Pretrained`: a
        folder of diffusers with `model_index.json`, one file of Stable Diffusion, or the Hub's repository
        ``hf:OWNER/NAME``.
      options: of a run as `Run.load` takes them (``step``, ``ema``, ``mesh``, ``dtype``), of a published model as
        `load_published` does (``mesh``, ``dtype``, ``variant``, ``control``, ``length``, ``tokenizer``).

    Raises:
      ConfigError, CheckpointError: as `Run.load` and `load_published`.
    """
    if is_published(path):
        return load_published(path, **options)
    if is_cascade(path):
        return Cascade.load(path, **options)
    refuse_network(path)
    if not Path(path).expanduser().exists() and HUB_NAME.fullmatch(os.fspath(path)):
        raise ConfigError(
            f"{os.fspath(path)!r} is not the folder of a run or of a published model: it does not exist (the Hub's "
            f"repository of this name is {HUB}{os.fspath(path)})"
        )
    trained = read_config(path, options.get("trusted", TRUSTED))
    kinds: dict[type, Any] = {AutoencoderConfig: AutoencoderRun, ClassifierConfig: ClassifierRun}
    return kinds.get(type(trained), Run).load(path, **options)


def refuse_network(path: str | os.PathLike[str]) -> None:
    """Refuses the folder of one published network in the place of a model's.

    Raises:
      ConfigError: it is one.
    """
    folder = Path(path).expanduser()
    if not is_published_part(folder):
        return
    kind = described(folder)[0].class_name
    raise ConfigError(
        f"{path} is {kind} alone: jaxdiff.pretrained.load_network reads it; a ControlNet goes beside a model, "
        "jaxdiff.load(FOLDER, control=...)"
    )


def load_published(
    path: str | os.PathLike[str], *, mesh: Mesh | None = None, dtype: str | None = "float32", **options: Any
) -> Pretrained:
    """A published model on this process's devices, or on those of a mesh.

    Args:
      path: see `load`.
      mesh: the devices, from `jaxdiff.train.make_mesh`, over whose axes fsdp and tensor weights are split; batches are
        split over data and fsdp. None: this process's devices, each with whole weights.
      dtype: of the parameters; None: as they are stored. In bfloat16 all but the autoencoder computes in it too.
      options: see `jaxdiff.pretrained.load_pipeline`.

    Raises:
      PretrainedError: a folder, a class or a part that cannot be read.
      ConfigError: an option that only runs have, or that there is none of.
    """
    if taken := [name for name in _OF_RUNS if options.get(name) not in (None, True, TRUSTED)]:
        raise ConfigError(f"{path} is a published model, and {taken[0]} is of runs: leave it out")
    chosen = {name: value for name, value in options.items() if name not in _OF_RUNS}
    refuse_unknown("option", chosen, ("dtype", "mesh", *_OF_PUBLISHED))
    if not isinstance(mesh, Mesh | None):
        raise ConfigError(f"mesh is from jaxdiff.train.make_mesh, such as make_mesh(fsdp=8), got {mesh!r}")
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    with as_config_error(str(Path(path))):
        made = load_pipeline(path, dtype=dtype, shardings=lambda shapes: split_sharding(shapes, mesh), **chosen)
        denoise = dataclasses.replace(made.denoise, anew=mesh.shape["fsdp"] > 1)
        read = Beside(Run.load, TRUSTED, mesh)
        model = dataclasses.replace(made.model, denoise=denoise, sharding=batch_sharding(mesh), read=read)
    return dataclasses.replace(made, model=model)
