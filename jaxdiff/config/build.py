"""From a configuration to the objects of a run. Adding a data source or an objective is adding a row to `SOURCES` or
`OBJECTIVES`; samplers, grids and guidance have their table in `jaxdiff.methods`. A configuration file may put rows
there too.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

import jaxdiff.data
from jaxdiff.autoencoding import AutoencoderLoss
from jaxdiff.classifier import ClassificationLoss
from jaxdiff.codecs import Codec, default_codec, encoded_specs, grey_levels
from jaxdiff.codecs.recipe import Find, innermost, is_recipe, resolved
from jaxdiff.config.autoencoder import AutoencoderConfig, check_autoencoder
from jaxdiff.config.batches import check_buckets
from jaxdiff.config.classifier import ClassifierConfig, check_classifier
from jaxdiff.config.inversion import with_inversion
from jaxdiff.config.lora import with_lora
from jaxdiff.config.ranges import check_ranges
from jaxdiff.config.schema import Config, Kind, LossConfig, RunConfig
from jaxdiff.config.stored import stored_conditions, with_conditions
from jaxdiff.config.text import TEXT, check_text, tokenised, with_tokenizer
from jaxdiff.data.sources import DataError, Source, classes_of, name_of
from jaxdiff.guidance import Autoguidance
from jaxdiff.launch.errors import ConfigError, as_config_error, suggestion
from jaxdiff.loss import SNR, DenoisingLoss, Likelihood, Objective, PriorPreserving
from jaxdiff.methods import parse_grid, parse_guidance, parse_sampler
from jaxdiff.model import Defaults
from jaxdiff.networks import Classifier, functional
from jaxdiff.networks.encoder_decoder import Layout
from jaxdiff.process import Process
from jaxdiff.request import contrasts
from jaxdiff.score_matching import FiniteDifference, FokkerPlanck, HighOrder, Implicit, SecondOrder, Sliced
from jaxdiff.spec import Spec, Specs, droppable, fits, shape_of
from jaxdiff.times import GeometricLevels, LikelihoodTime

Row = TypeVar("Row")


def _opener(name: str) -> Callable[..., Source]:
    # Found when it is called: a run on digits does not wait for Parquet to be imported.
    def opened(*arguments: Any, **options: Any) -> Source:
        source: Source = getattr(jaxdiff.data, name)(*arguments, **options)
        return source

    return opened


SOURCES: dict[str, Callable[..., Source]] = {
    name: _opener(f"open_{name}")
    for name in (
        *("digits", "mnist", "mnist_maps", "cifar10", "parquet", "folder", "npz", "webdataset", "tfds", "points"),
        "two_digits",
    )
}
NAMED_SETS = ("tfds", "points")
"""The sources of many sets, which take a name after a colon."""
OF_ONE_SIZE = ("digits", "two_digits", "npz", "points")
"""The sources without pictures of many sizes, which buckets are of."""
OWN = "own"
"""The name of a source that a program passes in itself."""
OBJECTIVES: dict[str, Callable[[dict[str, Any], LossConfig], Objective]] = {
    "denoising": lambda parts, loss: DenoisingLoss(**parts, vlb_weight=loss.vlb_weight),
    "ncsn": lambda parts, loss: DenoisingLoss(**parts | {"weight": SNR(), "time": GeometricLevels()}),
    "likelihood": lambda parts, loss: DenoisingLoss(**parts | {"weight": Likelihood(), "time": LikelihoodTime()}),
    "implicit": lambda parts, loss: Implicit(**parts),
    "sliced": lambda parts, loss: Sliced(**parts, projections=loss.projections),
    "sliced_vr": lambda parts, loss: Sliced(**parts, projections=loss.projections, variance_reduced=True),
    "finite_difference": lambda parts, loss: FiniteDifference(**parts, projections=loss.projections),
    "second_order": lambda parts, loss: SecondOrder(**parts, factor=loss.hessian_weight),
    "high_order": lambda parts, loss: HighOrder(**parts, factor=loss.hessian_weight),
}
"""Objectives by name, of the parts that all have (the fields of `Objective`) and of options of their own. Two names
stand for a weight and times too."""


def look_up(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row of a name.

    Raises:
      ConfigError: no such row; the message suggests the nearest and lists all.

    >>> look_up(OBJECTIVES, "slicd", "loss.objective")
    Traceback (most recent call last):
    ...
    jaxdiff.launch.errors.ConfigError: loss.objective: there is no 'slicd'; did you mean 'sliced'? (known: ...)
    """
    if name not in table:
        raise ConfigError(f"{what}: there is no {name!r}{suggestion(name, table)} (known: {', '.join(table)})")
    return table[name]


def check(config: RunConfig) -> None:
    """Checks a configuration as far as it can be without data and without compiling.

    Raises:
      ConfigError: what is wrong first, in one line.
    """
    check_ranges(config)
    check_buckets(config)
    if isinstance(config, AutoencoderConfig):
        check_autoencoder(config)
    elif isinstance(config, ClassifierConfig):
        check_classifier(config)
        _check_process(config.process)
    elif isinstance(config, Config):
        _check_diffusion(config)


def _check_diffusion(config: Config) -> None:
    if isinstance(config.network, Layout):
        raise ConfigError(
            f"network: {type(config.network).__name__} is no denoiser; an AutoencoderConfig trains it, and a diffusion "
            "model of its latents has codec=Latents(...)"
        )
    if isinstance(config.network, Classifier):
        raise ConfigError("network: Classifier is no denoiser; a ClassifierConfig trains it, and it guides another run")
    with as_config_error("sample.sampler"):
        parse_sampler(config.sample.sampler, config.process)
    with as_config_error("sample.grid"):
        parse_grid(config.sample.grid)
    with as_config_error("sample.guide"):
        elements = parse_guidance(config.sample.guide)
        if any(isinstance(element, Autoguidance) for element in elements):
            raise ValueError("autoguidance reads a second network when samples are drawn: give it there, --guide ...")
    look_up(OBJECTIVES, config.loss.objective, "loss.objective")
    if config.loss.vlb_weight and config.loss.objective != "denoising":
        raise ConfigError(f"loss.vlb_weight is of the objective denoising, not of {config.loss.objective}")
    if config.loss.prior is None and config.loss.prior_weight != 1.0:
        raise ConfigError("loss.prior_weight: there are no pictures of the class: name them, --loss.prior FOLDER")
    _check_dropout(config)
    _check_process(config.process)


def _check_dropout(config: Config) -> None:
    specs = config.cond
    for name, rate in config.loss.dropout.items():
        if name not in specs:
            raise ConfigError(
                f"loss.dropout: there is no condition {name!r}{suggestion(name, specs)} (the network takes "
                f"{', '.join(specs) or 'none'})"
            )
        if rate > 0 and not droppable(specs[name]):
            raise ConfigError(
                f"loss.dropout: {name} has no null, so it cannot be dropped; for labels set network.null_class, for "
                "another condition its null"
            )
    leads_away = any(rate > 0 for rate in config.loss.dropout.values()) or hasattr(config.codec, "negative")
    if contrasts(config.sample.guide) and not leads_away:
        raise ConfigError(
            f"sample.guide: guidance needs a model trained with loss.dropout above 0, for instance {_example(specs)}"
        )


def _example(specs: Specs) -> str:
    return f"--loss.dropout {next(iter(specs), 'label')}=0.1"


def _check_process(process: Process) -> None:
    if not bool(_falls(process)):
        raise ConfigError(
            f"process: {_brief(process)} does not go from data to noise: its signal-to-noise ratio must fall with t"
        )


@jax.jit  # one small program; by itself each line would be several
def _falls(process: Process) -> Array:
    t = jnp.linspace(0.0, 1.0, 65)
    alpha, sigma, log_snr = process.alpha(t), process.sigma(t), process.log_snr(t)
    finite = jnp.isfinite(alpha).all() & jnp.isfinite(sigma).all() & ~jnp.isnan(log_snr).any()
    return finite & (log_snr[1:] < log_snr[:-1]).all() & (sigma >= 0).all()


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else type(value).__name__


def build_network(config: RunConfig) -> Any:
    """The network as pure functions; of an autoencoder's run all networks that are trained, `Networks`.

    Raises:
      ConfigError: a Linen module, and no codec yet that tells the shape of its data.
    """
    if isinstance(config, AutoencoderConfig):
        return config.loss.networks(config.network, config.critic)
    shape = None
    if config.codec is not None:
        shape = tuple(1 if size is None else size for size in config.codec.spec["x"].shape)
    with as_config_error("network"):
        net = functional(config.network, shape)
    return with_inversion(config, with_lora(config, net))


def build_loss(
    config: RunConfig,
) -> Objective | FokkerPlanck | PriorPreserving | AutoencoderLoss | ClassificationLoss:
    """What training minimises."""
    if isinstance(config, ClassifierConfig):
        return ClassificationLoss(config.process, config.parameterization, config.time)
    if isinstance(config, AutoencoderConfig):
        return config.loss
    assert isinstance(config, Config)
    parts = {
        "process": config.process,
        "parameterization": config.parameterization,
        "weight": config.loss.weight,
        "time": config.loss.time,
        "dropout": {name: rate for name, rate in config.loss.dropout.items() if rate > 0},
    }
    objective = look_up(OBJECTIVES, config.loss.objective, "loss.objective")(parts, config.loss)
    if isinstance(objective, DenoisingLoss) and objective.vlb_weight and config.codec is not None:
        objective = dataclasses.replace(objective, levels=grey_levels(config.codec))
    whole: Any = FokkerPlanck(objective, config.loss.fokker_planck) if config.loss.fokker_planck else objective
    return whole if config.loss.prior is None else PriorPreserving(whole, config.loss.prior_weight)


def build_defaults(config: Config) -> Defaults:
    """How the run samples where nothing else is said."""
    options = config.sample
    negative = getattr(config.codec, "negative", {})
    return Defaults(
        options.sampler, options.steps, options.grid, options.guide, options.clip, options.batch_size, negative
    )


def build_source(config: RunConfig, *, cache: bool = True) -> Source:
    """The data, with the conditions that the network takes and the codec does not make.

    Args:
      config: the configuration.
      cache: with ``data.skip_bad``, keep which records are bad.

    Raises:
      ConfigError: an unknown name.
      DataError: data that are missing or do not fit.
    """
    data = config.data
    name, _, dataset = data.name.partition(":")
    if name == OWN:
        raise ConfigError("data.name: this run's data came from a program's own source: pass it, fit(config, source)")
    if name in NAMED_SETS and not dataset:
        example = {"tfds": "cifar10", "points": "moons"}[name]
        raise ConfigError(f"data.name: {name} needs the name of a dataset, for instance {name}:{example}")
    if dataset and name not in NAMED_SETS:
        raise ConfigError(
            f"data.name: {data.name!r} is no name; only {' and '.join(NAMED_SETS)} take a dataset after a colon, "
            "as in tfds:cifar10"
        )
    opener = look_up(SOURCES, name, "data.name")
    if data.buckets and name in OF_ONE_SIZE:
        raise ConfigError(
            f"data.buckets: {name} has no pictures of many sizes; leave buckets out, or take a folder, parquet, "
            "webdataset or tfds:NAME"
        )
    channels = data.channels
    if channels is None and not is_recipe(innermost(config.codec)):  # whose network takes latents
        channels = getattr(config.network, "in_channels", None)
    taken = stored_conditions(config)
    asked = {option: value for option in ("skip_bad", "text") if (value := getattr(data, option))}
    if unknown := [option for option in asked if not _has_option(opener, option)]:  # of a source of one's own
        raise ConfigError(f"data.{unknown[0]}: the source {name!r} takes no {unknown[0]}; leave it out")
    source = opener(
        *([dataset] if dataset else []),
        path=data.path,
        split=data.split,
        image_size=data.image_size,
        channels=channels,
        num_classes=config.num_classes,
        resize=data.resize or data.buckets,
        **asked,
        **({"conditions": taken} if _has_option(opener, "conditions") else {}),
    )
    return with_conditions(jaxdiff.data.without_bad(source, keep=cache) if data.skip_bad else source, config)


def _has_option(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)


def resolve(config: Kind, source: Source, find: Find | None = None) -> Kind:
    """The configuration with what only the data know: the codec with its numbers, the tokenizer with its vocabulary,
    and the names of the classes.

    Args:
      config: as it is given.
      source: the data.
      find: where a codec's frozen weights lie (`jaxdiff.config.finder`); codecs without need none.

    Raises:
      ConfigError: a codec or a tokenizer that does not make what the network takes.
      DataError: data that no codec is for.
    """
    config = with_tokenizer(config, source)
    check_text(config, config.cond.get(TEXT))
    source = tokenised(config, source)
    if config.codec is None:
        codec = default_codec(source, flip=config.data.flip)
    else:
        with as_config_error("codec"):
            codec = resolved(config.codec, source, find, flip=config.data.flip)
    _refuse_other_shape(codec, config)
    classes = classes_of(source) or config.data.classes
    whole = dataclasses.replace(config, codec=codec, data=dataclasses.replace(config.data, classes=classes))
    made = encoded_specs(codec, source.spec)
    for name, condition in whole.cond.items():
        got = made.get(name)
        if got is not None and not fits(got, condition):
            raise ConfigError(
                f"network: it takes {name} of shape {shape_of(condition)}, and the data has it of shape {shape_of(got)}"
            )
        nulls = [each.null for each in (condition, got) if isinstance(each, Spec) and each.null is not None]
        if len({*nulls}) > 1:
            raise ConfigError(
                f"network: what stands for no {name} is {nulls[0]} in it and {nulls[1]} in the codec: give both the "
                "same number of classes"
            )
        if isinstance(condition, Spec) and isinstance(got, Spec) and not _within(got, condition):
            raise DataError(
                f"{name_of(source)}: {name} goes from {got.low:g} to {got.high:g}, and the network takes "
                f"{condition.low:g} to {condition.high:g}; for labels set its num_classes to the largest label + 1"
            )
    return whole


def _refuse_other_shape(codec: Any, config: RunConfig) -> None:
    # Of latents alone: the shape of images is no riddle, and the network itself says it.
    if not is_recipe(innermost(codec)):
        return
    network, shape = config.network, codec.spec["x"].shape
    sides = {getattr(network, "image_size", None)} - {None, *shape[:-1]}
    if getattr(network, "in_channels", shape[-1]) != shape[-1] or sides:
        takes = {name: getattr(network, name) for name in ("image_size", "in_channels") if hasattr(network, name)}
        raise ConfigError(
            f"codec: it makes x of {'x'.join(map(str, shape))}, and the network takes "
            f"{' and '.join(f'{name} {value}' for name, value in takes.items())}: set the network's "
            f"{' and '.join(takes)} to those of the latents, or take another autoencoder"
        )


def _within(inner: Spec, outer: Spec) -> bool:
    """Whether the declared range of one lies in that of the other; where either has none, nothing can be said."""
    if inner.clip is None or outer.clip is None:
        return True
    return outer.clip[0] <= inner.clip[0] and inner.clip[1] <= outer.clip[1]


def build_codec(config: RunConfig) -> Codec:
    """The codec of a resolved configuration; one with frozen weights is read by `jaxdiff.train.read_codec`."""
    assert config.codec is not None, "resolve the configuration first"
    assert not is_recipe(config.codec), "its weights are to be read: jaxdiff.train.read_codec"
    codec: Codec = config.codec
    return codec


def computing_in(config: Config, dtype: str) -> Config:
    """The configuration of the same network that computes in another type, such as ``"bfloat16"``.

    Raises:
      ConfigError: no type of numbers with fractions.
    """
    try:
        kind = jnp.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"dtype: {dtype!r} is no type of numbers, for instance 'bfloat16'") from error
    if not jnp.issubdtype(kind, jnp.floating) or jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ConfigError(f"dtype: {dtype} has no fractions, or needs JAX_ENABLE_X64: use float32, bfloat16 or float16")
    network = config.network
    if hasattr(network, "computing_in"):
        network = network.computing_in(kind.name)
    elif dataclasses.is_dataclass(network) and hasattr(network, "dtype") and not isinstance(network, type):
        network = dataclasses.replace(network, dtype=kind.name)
    return dataclasses.replace(config, network=network)
