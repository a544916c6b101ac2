"""A published model as a configuration: `train.py FOLDER` trains it further.

Network, process, what is predicted and told, autoencoder, text encoders and tokenizers are the published ones; the
optimizer, the number of steps and the data are for whoever trains to say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.codecs import Latents
from jaxdiff.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from jaxdiff.parameterization import LearnedVariance
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.kinds import (
    KINDS,
    Kind,
    branch_of,
    class_of,
    index_of,
    negative_of,
    part_of,
    parts_of,
    scheduler_of,
)
from jaxdiff.pretrained.origin import found, is_published
from jaxdiff.pretrained.schedulers.processes import LogSNRTimes, process_of
from jaxdiff.pretrained.text_codec import PublishedText, Several
from jaxdiff.pretrained.told_sizes import NAMES, is_scored
from jaxdiff.runs.reading import refuse_network
from jaxdiff.spec import Specs
from jaxdiff.train.ema import Ema


def load_config(path: str | os.PathLike[str]) -> Any:
    """A configuration by its name or its file, or that of a published model's folder.

    Raises:
      ConfigError: as `jaxdiff.config.load_config_file` and `published_config`.
    """
    from jaxdiff.config import load_config_file  # of a module that needs tyro, which not every user of Python has

    if is_published(path):
        return published_config(path)
    refuse_network(path)
    return load_config_file(Path(path))


def published_config(path: str | os.PathLike[str], **changes: Any) -> Config:
    """The configuration that trains a published model further.

    Args:
      path: its folder, with `model_index.json`; or the Hub's repository ``hf:OWNER/NAME``.
      changes: fields of `Config` to replace.

    Raises:
      PretrainedError: a folder, a class or a part that cannot be read.
    """
    folder = found(path)
    index = index_of(folder)
    name = class_of(index)
    kind, there = KINDS[name], parts_of(index)
    fields, _, net = part_of(folder / kind.network, text=kind.join is not None)
    network = net.build
    process, parameterization, defaults = process_of(scheduler_of(folder))
    learned = network.out_channels == 2 * network.in_channels
    codec: Any = Latents(str(folder)) if "vae" in there else None
    side = _side(folder, fields, network, "vae" in there)
    tokenizer: Any = None
    if kind.join is not None:
        tokenizer, codec = _text(folder, index, kind, net.cond, codec, side)
    known: dict[str, Any] = {
        "name": folder.name or "published",
        "data": DataConfig(name="folder", image_size=side, resize=True),
        "network": network,
        "process": process,
        "parameterization": LearnedVariance(base=parameterization) if learned else parameterization,
        "codec": codec,
        "tokenizer": tokenizer,
        "loss": LossConfig(dropout={"label": 0.1} if "label" in net.cond else {}, vlb_weight=0.001 if learned else 0.0),
        "optimizer": OptimizerConfig(lr=1e-5, weight_decay=0.01),
        "ema": Ema(0.999),
        "train": TrainConfig(steps=1000, batch_size=4, log_every=10, sample_every=250),
        "checkpoint": CheckpointConfig(every=250, keep=2),
        "sample": SampleConfig(
            sampler=defaults.sampler,
            steps=defaults.steps,
            grid="log_snr" if isinstance(defaults.grid, LogSNRTimes) else "uniform",
            guide=kind.guide,
            clip=defaults.clip,
            num=4,
        ),
    }
    return Config(**{**known, **changes})


def _side(folder: Path, fields: Fields, network: Any, in_latents: bool) -> int:
    side = max(fields.sides() or (int(getattr(network, "image_size", 64) or 64),))
    return side * part_of(folder / "vae")[2].factor if in_latents else side


def _text(
    folder: Path, index: Mapping[str, Any], kind: Kind, cond: Specs, inner: Any, side: int
) -> tuple[Any, PublishedText]:
    """The tokenizers, and the text encoders beside the codec of the data."""
    name, there = class_of(index), parts_of(index)
    text = [each for each in kind.text if each[0] in there]
    found = [branch_of(folder / tokens, name, part_of(folder / part)[2].config, None) for part, tokens in text]
    files = tuple(file for file, _, _ in found)
    tokenizer = files[0] if len(files) == 1 else Several(files)
    tokens: Any = cond["text"]
    recipe = PublishedText(
        str(folder),
        name,
        inner,
        tuple(part for part, _ in text),
        tuple(net for _, net, _ in found),
        tuple(file.length for file, _, _ in found),
        width=int(tokens["tokens"].shape[-1]),
        sizes=tuple(each for each in NAMES if each in cond),
        side=side,
        scored=is_scored(cond),
        empty=tokenizer.null if negative_of(kind, index) else (),
    )
    return tokenizer, recipe
