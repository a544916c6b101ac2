"""From a configuration to the objects of a run: the one place where names meet objects.

Adding a name is adding a row to `SAMPLERS`, `GRIDS` or `SOURCES`; a configuration file may put rows there too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.config.schema import Config, ConfigError, SampleConfig, check_ranges, suggestion
from jaxdiff.data import (
    Pipeline,
    Record,
    Source,
    open_cifar10,
    open_digits,
    open_folder,
    open_mnist,
    open_npz,
    open_parquet,
    open_tfds,
)
from jaxdiff.grid import karras_times, log_snr_times, quadratic_times, trailing_times, uniform_times
from jaxdiff.loss import DenoisingLoss
from jaxdiff.networks import Functional, functional
from jaxdiff.process import Process
from jaxdiff.sampling import DDIM, DDPM, DPMpp2M, Euler, EulerMaruyama, Heun

Row = TypeVar("Row")

SAMPLERS: dict[str, Callable[[Process, SampleConfig], Any]] = {
    "ddpm": lambda process, options: DDPM(process, variance=options.variance),
    "ddim": lambda process, options: DDIM(process, eta=options.eta),
    "euler": lambda process, options: Euler(process),
    "heun": lambda process, options: Heun(process),
    "euler_maruyama": lambda process, options: EulerMaruyama(process),
    "dpmpp_2m": lambda process, options: DPMpp2M(process),
}
GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform_times,
    "log_snr": log_snr_times,
    "karras": karras_times,
    "quadratic": quadratic_times,
    "trailing": trailing_times,
}
SOURCES: dict[str, Callable[..., Source]] = {
    "digits": open_digits,
    "mnist": open_mnist,
    "cifar10": open_cifar10,
    "parquet": open_parquet,
    "folder": open_folder,
    "npz": open_npz,
    "tfds": open_tfds,
}


def look_up(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row of a name.

    Raises:
      ConfigError: no such row; the message suggests the nearest and lists all.

    >>> look_up(GRIDS, "karas", "sample.grid")
    Traceback (most recent call last):
    ...
    jaxdiff.config.schema.ConfigError: sample.grid: there is no 'karas'; did you mean 'karras'? (known: uniform, ...)
    """
    if name not in table:
        raise ConfigError(f"{what}: there is no {name!r}{suggestion(name, table)} (known: {', '.join(table)})")
    return table[name]


def check(config: Config) -> None:
    """Checks a configuration as far as it can be without data and without compiling.

    Raises:
      ConfigError: what is wrong first, in one line.
    """
    check_ranges(config)
    look_up(SAMPLERS, config.sample.sampler, "sample.sampler")
    look_up(GRIDS, config.sample.grid, "sample.grid")
    if config.loss.label_dropout > 0 and not _has_null(config):
        raise ConfigError(
            "loss.label_dropout: the network has no null label; set network.num_classes and network.null_class"
        )
    if config.sample.guidance is not None and config.loss.label_dropout == 0:
        raise ConfigError(
            "sample.guidance: guidance needs a model trained with loss.label_dropout above 0, for instance 0.1"
        )
    _check_process(config.process)


def _has_null(config: Config) -> bool:
    return config.num_classes is not None and getattr(config.network, "null_class", True)


def _check_process(process: Process) -> None:
    t = jnp.linspace(0.0, 1.0, 65)
    alpha, sigma, log_snr = process.alpha(t), process.sigma(t), process.log_snr(t)
    finite = bool(jnp.isfinite(alpha).all() & jnp.isfinite(sigma).all() & ~jnp.isnan(log_snr).any())
    if not finite or bool((log_snr[1:] >= log_snr[:-1]).any()) or bool((sigma < 0).any()):
        raise ConfigError(
            f"process: {_brief(process)} does not go from data to noise: its signal-to-noise ratio must fall with t"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else type(value).__name__


def build_network(config: Config) -> Functional:
    """The network as pure functions."""
    return functional(config.network)


def build_loss(config: Config) -> DenoisingLoss:
    """What training minimises."""
    return DenoisingLoss(
        process=config.process,
        parameterization=config.parameterization,
        weight=config.loss.weight,
        time=config.loss.time,
        label_dropout=config.loss.label_dropout,
        null_label=config.num_classes if _has_null(config) else None,
        vlb_weight=config.loss.vlb_weight,
    )


def build_sampler(process: Process, options: SampleConfig) -> tuple[Any, Array]:
    """The sampler, and its times ``(steps,)``.

    Raises:
      ConfigError: an unknown name, or a number out of its range.

    >>> from jaxdiff import VP
    >>> sampler, ts = build_sampler(VP(), SampleConfig(sampler="heun", steps=5, grid="trailing"))
    >>> type(sampler).__name__, ts.shape
    ('Heun', (5,))
    """
    if options.steps < 1 or options.batch_size < 1:
        raise ConfigError(f"steps and batch_size must be at least 1, got {options.steps} and {options.batch_size}")
    sampler = look_up(SAMPLERS, options.sampler, "sampler")(process, options)
    return sampler, look_up(GRIDS, options.grid, "grid")(process, options.steps)


def build_source(config: Config) -> Source:
    """The data, checked against the network's channels and classes.

    Raises:
      ConfigError: an unknown name.
      DataError: data that are missing or do not fit.
    """
    data = config.data
    name, _, dataset = data.name.partition(":")
    if name == "tfds" and not dataset:
        raise ConfigError("data.name: tfds needs the name of a dataset, for instance tfds:cifar10")
    if dataset and name != "tfds":
        raise ConfigError(
            f"data.name: {data.name!r} is no name; only tfds takes a dataset after a colon, as in tfds:cifar10"
        )
    opener = look_up(SOURCES, name, "data.name")
    channels = getattr(config.network, "in_channels", None) if data.channels is None else data.channels
    source = opener(
        *([dataset] if dataset else []),
        path=data.path,
        split=data.split,
        image_size=data.image_size,
        channels=channels,
        num_classes=config.num_classes,
        resize=data.resize,
    )
    return source if config.num_classes is not None or source.num_classes is None else Unlabelled(source)


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """A source whose labels are left out, for a network without classes."""

    source: Source
    num_classes: None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Record:
        return {"image": self.source[index]["image"]}


def resolve(config: Config, source: Source) -> Config:
    """The configuration with what only the data know: the shape of an image."""
    height, width, channels = source.image_shape
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_shape=(height, width, channels)))


def build_pipeline(config: Config, source: Source) -> Pipeline:
    """This process's part of the training batches."""
    return Pipeline(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def batch_shapes(config: Config, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch over all devices."""
    n = config.train.batch_size
    shapes = {"image": jax.ShapeDtypeStruct((n, *source.image_shape), jnp.float32)}
    return shapes | ({} if source.num_classes is None else {"label": jax.ShapeDtypeStruct((n,), jnp.int32)})
