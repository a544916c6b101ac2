"""What one field of a configuration alone can get wrong: another type, or a number out of its range."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import typing
from typing import Any

from jaxdiff.config.hints import allows, described
from jaxdiff.config.schema import Config, MeshConfig, RunConfig
from jaxdiff.launch.errors import ConfigError

SCHEMA = Config.__module__
# dotted name -> (smallest, largest, whether the smallest itself is allowed)
_INF = math.inf
_INT = 2**31 - 1  # what a device counts with
RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**32 - 1, True),
    "data.image_size": (1, 2**16, True),
    "data.bucket_multiple": (1, 2**16, True),
    "data.bucket_ratio": (1, 2**16, True),
    "data.channels": (1, 2**16, True),
    "data.workers": (0, 1024, True),
    "data.decoded_mb": (0, _INT, True),
    "loss.vlb_weight": (0, _INF, True),
    "loss.projections": (1, 2**16, True),
    "loss.hessian_weight": (0, _INF, True),
    "loss.fokker_planck": (0, _INF, True),
    "loss.prior_weight": (0, _INF, True),
    "lora.rank": (0, 2**16, True),
    "lora.alpha": (0, _INF, False),
    "inversion.vectors": (1, 64, True),
    "optimizer.lr": (0, _INF, False),
    "optimizer.warmup": (0, _INT, True),
    "optimizer.final_fraction": (0, 1, True),
    "optimizer.decay_start": (1, _INT, True),
    "optimizer.b1": (0, 1, True),
    "optimizer.b2": (0, 1, True),
    "optimizer.eps": (0, _INF, False),
    "optimizer.weight_decay": (0, _INF, True),
    "optimizer.clip_norm": (0, _INF, False),
    "train.steps": (1, _INT, True),
    "train.batch_size": (1, _INT, True),
    "train.accumulate": (1, _INT, True),
    "train.steps_per_call": (1, _INT, True),
    "train.spike": (1, _INF, False),
    "train.max_skipped": (1, 10_000, True),
    "train.log_every": (1, _INT, True),
    "train.sample_every": (0, _INT, True),
    "checkpoint.every": (1, _INT, True),
    "checkpoint.keep": (1, _INT, True),
    "sample.steps": (1, 10**5, True),
    "sample.batch_size": (1, _INT, True),
    "sample.num": (1, 10**6, True),
}


def field_at(value: Any, dotted: str) -> Any:
    """``field_at(config, "train.steps")``; None where the configuration has no such part."""
    for part in dotted.split("."):
        value = getattr(value, part, None)
    return value


_BY_NAME = ("sample.sampler", "sample.grid", "sample.guide")
"""What may also be an object, and is looked up (`jaxdiff.methods`)."""


def _check_types(part: Any, prefix: str = "") -> None:
    hints = typing.get_type_hints(type(part))
    for each in dataclasses.fields(part):
        name, value, hint = prefix + each.name, getattr(part, each.name), hints[each.name]
        if name not in _BY_NAME and not allows(hint, value):
            wanted = "True or False" if hint is bool else described(hint)
            got = f"the class {value.__name__}: make one, {value.__name__}()" if isinstance(value, type) else None
            raise ConfigError(f"{name}: expected {wanted}, got {got or reprlib.repr(value)}")
        if type(value).__module__ == SCHEMA:  # a part of the configuration, no object of the library
            _check_types(value, f"{name}.")


def check_ranges(config: RunConfig) -> None:
    """Checks what one field alone can get wrong.

    Raises:
      ConfigError: the first field of another type or out of its range, in one line.
    """
    _check_types(config)
    for name in ("network", "codec", "tokenizer"):
        value = getattr(config, name)
        if isinstance(value, type | str):
            such = "Words(16, size=1000)" if name == "tokenizer" else "MLP(width=64) or Images((8, 8, 1))"
            raise ConfigError(f"{name}: expected an object, such as {such}, got {value!r}")
    name = config.name
    if not name or name in (".", "..") or set(name) & set("/\\\0") or len(name.encode()) > 200:
        raise ConfigError(f"name: {reprlib.repr(name)} cannot name a folder; use for instance 'digits'")
    for name, (low, high, inclusive) in RANGES.items():
        value = field_at(config, name)
        if value is None:
            continue
        if not math.isfinite(value) or not low <= value <= high or (value == low and not inclusive):
            least = "" if low == -_INF else f"at least {low:,}" if inclusive else f"above {low:,}"
            most = "" if high == _INF else f"at most {high:,}"
            raise ConfigError(
                f"{name}: {value} is out of range, it must be {' and '.join(filter(None, (least, most))) or 'finite'}"
            )
    for name, rate in (config.loss.dropout if isinstance(config, Config) else {}).items():
        if not 0 <= rate <= 1:
            raise ConfigError(f"loss.dropout: {name} {rate} is out of range, it must be at least 0 and at most 1")
    if config.train.batch_size % config.train.accumulate:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} is no multiple of train.accumulate, {config.train.accumulate}"
        )
    for name in ("train.log_every", "train.sample_every", "checkpoint.every"):
        if 0 < field_at(config, name) < config.train.steps_per_call:
            raise ConfigError(
                f"train.steps_per_call: {config.train.steps_per_call} is more than {name}, {field_at(config, name)}: "
                "every call would have to end earlier"
            )
    for part in dataclasses.fields(MeshConfig):
        size = getattr(config.mesh, part.name)
        if size < 1 and size != -1:
            raise ConfigError(
                f"mesh.{part.name}: {size} is out of range, it must be at least 1, or -1 for what is left"
            )


def doubts(config: RunConfig) -> list[str]:
    """What a configuration probably does not mean, though it can be trained: one line each."""
    steps, optimizer = config.train.steps, config.optimizer
    if optimizer.warmup <= steps:
        return []
    return [
        f"optimizer.warmup: {optimizer.warmup} steps are more than train.steps, {steps}: the learning rate ends at "
        f"{optimizer.lr * steps / optimizer.warmup:.2g} and never reaches optimizer.lr, {optimizer.lr:g}"
    ]
