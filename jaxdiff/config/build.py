"""From a configuration to the objects of a run: the one place where names meet objects.

Adding a name is adding a row to `SAMPLERS`, `GRIDS`, `SOURCES` or `OBJECTIVES`; a configuration file may put rows there
too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

import jaxdiff.data
from jaxdiff.config.schema import (
    Config,
    LossConfig,
    SampleConfig,
    check_ranges,
)
from jaxdiff.data.sources import Record, Records, Source, records_at
from jaxdiff.grid import karras_times, log_snr_times, quadratic_times, trailing_times, uniform_times
from jaxdiff.launch.errors import ConfigError, as_config_error, suggestion
from jaxdiff.loss import SNR, DenoisingLoss, Likelihood, Objective
from jaxdiff.networks import Functional, functional
from jaxdiff.process import Process
from jaxdiff.sampling import (
    DDIM,
    DDPM,
    DEIS,
    DPM2,
    IPNDM,
    LMS,
    RK4,
    Adaptive,
    AnnealedLangevinDynamics,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    DPMSolver,
    EDMStochastic,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SASolver,
    UniPC,
)
from jaxdiff.score_matching import FiniteDifference, FokkerPlanck, HighOrder, Implicit, SecondOrder, Sliced
from jaxdiff.times import GeometricLevels, LikelihoodTime

Row = TypeVar("Row")

SAMPLERS: dict[str, Callable[[Process, SampleConfig], Any]] = {
    "ddpm": lambda process, options: DDPM(process, variance=options.variance),
    "ddim": lambda process, options: DDIM(process, eta=options.eta or None),  # without noise, none is drawn
    "euler": lambda process, options: Euler(process),
    "heun": lambda process, options: Heun(process),
    "dpm2": lambda process, options: DPM2(process),
    "rk4": lambda process, options: RK4(process),
    "adaptive": lambda process, options: Adaptive(process, rtol=options.tolerance, atol=options.tolerance),
    "dpm_solver": lambda process, options: DPMSolver(process, **_order(options)),
    "dpmpp_2s": lambda process, options: DPMpp2S(process),
    "dpmpp_2m": lambda process, options: DPMpp2M(process),
    "dpmpp_3m": lambda process, options: DPMpp3M(process),
    "unipc": lambda process, options: UniPC(process, **_order(options)),
    "deis": lambda process, options: DEIS(process, **_order(options)),
    "lms": lambda process, options: LMS(process, **_order(options)),
    "ipndm": lambda process, options: IPNDM(process, **_order(options)),
    "euler_maruyama": lambda process, options: EulerMaruyama(process, options.tau),
    "reverse_diffusion": lambda process, options: ReverseDiffusion(process, options.tau),
    "predictor_corrector": lambda process, options: PredictorCorrector(
        ReverseDiffusion(process, options.tau),
        Langevin(options.snr, 1 if options.langevin_steps is None else options.langevin_steps),
    ),
    "annealed_langevin": lambda process, options: AnnealedLangevinDynamics(
        process, **({} if options.langevin_steps is None else {"steps": options.langevin_steps})
    ),
    "dpmpp_sde": lambda process, options: DPMppSDE(process, options.tau),
    "dpmpp_2m_sde": lambda process, options: DPMpp2MSDE(process, options.tau),
    "dpmpp_3m_sde": lambda process, options: DPMpp3MSDE(process, options.tau),
    "sa_solver": lambda process, options: SASolver(process, **_orders(options), tau=options.tau),
    "euler_ancestral": lambda process, options: EulerAncestral(process, options.tau),
    "edm_stochastic": lambda process, options: EDMStochastic(process, options.churn),
    "restart": lambda process, options: Restart(DPMpp2M(process)),
}
WHOLE_INTERVAL = {"adaptive"}
"""Samplers that choose their steps themselves: of the grid only the ends are theirs."""


def _order(options: SampleConfig) -> dict[str, Any]:
    return {} if options.order is None else {"order": options.order}


def _orders(options: SampleConfig) -> dict[str, Any]:
    return {} if options.order is None else {"predictor_order": options.order, "corrector_order": options.order + 1}


GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform_times,
    "log_snr": log_snr_times,
    "karras": karras_times,
    "quadratic": quadratic_times,
    "trailing": trailing_times,
}


def _opener(name: str) -> Callable[..., Source]:
    # Found when it is called: a run on digits does not wait for Parquet to be imported.
    def opened(*arguments: Any, **options: Any) -> Source:
        source: Source = getattr(jaxdiff.data, name)(*arguments, **options)
        return source

    return opened


SOURCES: dict[str, Callable[..., Source]] = {
    name: _opener(f"open_{name}")
    for name in ("digits", "mnist", "cifar10", "parquet", "folder", "npz", "tfds", "points")
}
NAMED_SETS = ("tfds", "points")
"""The sources of many sets, which take a name after a colon."""
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

    >>> look_up(GRIDS, "karas", "sample.grid")
    Traceback (most recent call last):
    ...
    jaxdiff.launch.errors.ConfigError: sample.grid: there is no 'karas'; did you mean 'karras'? (known: uniform, ...)
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
    look_up(OBJECTIVES, config.loss.objective, "loss.objective")
    if config.loss.vlb_weight and config.loss.objective != "denoising":
        raise ConfigError(f"loss.vlb_weight is of the objective denoising, not of {config.loss.objective}")
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


def build_network(config: Config) -> Functional:
    """The network as pure functions."""
    return functional(config.network)


def build_loss(config: Config) -> Objective | FokkerPlanck:
    """What training minimises."""
    parts = {
        "process": config.process,
        "parameterization": config.parameterization,
        "weight": config.loss.weight,
        "time": config.loss.time,
        "label_dropout": config.loss.label_dropout,
        "null_label": config.num_classes if _has_null(config) else None,
    }
    objective = look_up(OBJECTIVES, config.loss.objective, "loss.objective")(parts, config.loss)
    return FokkerPlanck(objective, config.loss.fokker_planck) if config.loss.fokker_planck else objective


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
    make = look_up(SAMPLERS, options.sampler, "sampler")
    with as_config_error("sampler"):
        sampler = make(process, options)
    ts = look_up(GRIDS, options.grid, "grid")(process, options.steps)
    return sampler, ts[jnp.array([0, -1])] if options.sampler in WHOLE_INTERVAL and options.steps > 1 else ts


def build_source(config: Config, *, cache: bool = True) -> Source:
    """The data, checked against the network's channels and classes.

    Args:
      config: the configuration.
      cache: with ``data.skip_bad``, keep which records are bad.

    Raises:
      ConfigError: an unknown name.
      DataError: data that are missing or do not fit.
    """
    data = config.data
    name, _, dataset = data.name.partition(":")
    if name in NAMED_SETS and not dataset:
        example = {"tfds": "cifar10", "points": "moons"}[name]
        raise ConfigError(f"data.name: {name} needs the name of a dataset, for instance {name}:{example}")
    if dataset and name not in NAMED_SETS:
        raise ConfigError(
            f"data.name: {data.name!r} is no name; only {' and '.join(NAMED_SETS)} take a dataset after a colon, "
            "as in tfds:cifar10"
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
        **({"skip_bad": True} if data.skip_bad else {}),  # sources of one's own need not know it
    )
    source = jaxdiff.data.without_bad(source, keep=cache) if data.skip_bad else source
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
    def image_shape(self) -> tuple[int, ...]:
        return self.source.image_shape

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Record:
        return {"image": self.source[index]["image"]}

    def take(self, indices: NDArray[np.int64], /) -> Records:
        return {"image": records_at(self.source, indices)["image"]}


def resolve(config: Config, source: Source) -> Config:
    """The configuration with what only the data know: the shape of an image."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_shape=tuple(source.image_shape)))


def build_pipeline(
    config: Config, source: Source, *, cache: bool = True, part: tuple[int, int] = (0, 1)
) -> jaxdiff.data.Pipeline:
    """This process's part of the training batches.

    A run that reads every image at least once reads them decoded (`jaxdiff.data.decode_once`), as ``data.decoded_mb``
    allows; then there is nothing left for ``data.workers`` to decode, and threads are faster.

    Args:
      config: the configuration.
      source: from `build_source`.
      cache: False keeps no decoded images, and reads none kept.
      part: (p, P), which of P parts of each batch this process reads (`jaxdiff.train.batch_part`).

    Raises:
      DataError: an image that cannot be decoded, where they are decoded now.
    """
    whole_pass = config.train.steps * config.train.batch_size >= len(source)
    chosen = _decoded(source, config.data.decoded_mb * 10**6) if cache and whole_pass else source
    return jaxdiff.data.Pipeline(
        chosen,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        workers=config.data.workers if chosen is source else 0,
        process_index=part[0],
        process_count=part[1],
    )


def _decoded(source: Source, limit: int) -> Source:
    if isinstance(source, Unlabelled):
        inner = _decoded(source.source, limit)
        return source if inner is source.source else Unlabelled(inner)
    return jaxdiff.data.decode_once(source, limit=limit)


def batch_shapes(config: Config, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch over all devices."""
    n = config.train.batch_size
    shapes = {"image": jax.ShapeDtypeStruct((n, *source.image_shape), jnp.float32)}
    return shapes | ({} if source.num_classes is None else {"label": jax.ShapeDtypeStruct((n,), jnp.int32)})
