"""A run's configuration: frozen dataclasses. What one field alone can get wrong is in `jaxdiff.config.ranges`.

A `Config` holds objects, not names of objects: its process, parameterization, network, loss parts and EMA rule are the
values that the library works with. The names it does hold are those of methods with their numbers (sampler, grid,
guidance: `jaxdiff.methods`), of a data source and of an objective (`jaxdiff.config.build`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jaxdiff.config.serialize import to_json
from jaxdiff.loss import Simple, Weight
from jaxdiff.parameterization import Parameterization
from jaxdiff.process import Process
from jaxdiff.spec import Spec, Specs
from jaxdiff.times import TrainingTime, Uniform


def _as_text(part: Any, name: str) -> None:
    # A pathlib.Path is a path as its text is.
    value = getattr(part, name)
    object.__setattr__(part, name, os.fspath(value) if isinstance(value, os.PathLike) else value)


def _as_several(part: Any, name: str) -> None:
    # One alone stands for a tuple of it: the letters of a text are no names.
    value = getattr(part, name)
    object.__setattr__(part, name, value if isinstance(value, tuple | list) else (value,))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from."""

    name: str = "digits"
    """digits, two_digits, parquet, mnist, mnist_maps, cifar10, folder, npz, webdataset, tfds:NAME, or points:NAME."""
    path: str | None = None
    """File or folder of the data; digits need none."""
    split: str = "train"
    """Which part to train on."""
    image_size: int | None = None
    """Side of the images, pixels; others are refused, or resized. None: as they are."""
    channels: int | None = None
    """Channels of the images; others are refused. None: as they are."""
    resize: bool = False
    """Crop and resize images of other sizes to image_size."""
    buckets: bool = False
    """Train on images of many aspect ratios: buckets of about image_size squared pixels, each batch of one bucket."""
    bucket_multiple: int = 64
    """Of buckets: the sides are multiples of it."""
    bucket_ratio: float = 2.0
    """Of buckets: the longer side over the shorter one is at most this."""
    skip_bad: bool = False
    """Leave out records that cannot be used, instead of refusing the set: all are read once before the first step."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in order of their labels, found in the data; a run's saved configuration has them."""
    text: str | None = None
    """Column, field or array that holds the captions. None: text, or else caption."""
    flip: bool = False
    """Mirror half of the images left to right."""
    workers: int = 0
    """Processes that decode images; 0: threads of this one."""
    decoded_mb: int = 1000
    """Sets of at most so many megabytes of pixels are decoded once, into the user's cache folder, and read without
    workers; 0: none."""
    cache_text: bool = False
    """Of a frozen text encoder: keep its states of all captions, in the user's cache folder; else each step runs it."""
    cache_latents: bool = True
    """Of a run in latents: encode the set once, into the user's cache folder; else encode each batch in its step."""
    cache_folder: str | None = None
    """Folder that latents and states of text are cached in; several processes share it. None: jaxdiff/latents in the
    user's cache folder."""

    def __post_init__(self) -> None:
        _as_text(self, "path")
        _as_text(self, "cache_folder")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    objective: str = "denoising"
    """denoising, ncsn, likelihood, implicit, sliced, sliced_vr, finite_difference, second_order or high_order."""
    weight: Weight = Simple()
    """Weight of the noise levels (jaxdiff.loss)."""
    time: TrainingTime = Uniform()
    """Distribution of the training times (jaxdiff.times)."""
    dropout: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Condition and share of samples that lose it in training, for classifier-free guidance: label=0.1."""
    vlb_weight: float = 0.0
    """Weight of the variational term, for a learned variance (0.001 in the papers)."""
    projections: int = 1
    """Random directions a sample (sliced, sliced_vr, finite_difference)."""
    hessian_weight: float = 1.0
    """Weight of the Hessian's term (second_order, high_order)."""
    fokker_planck: float = 0.0
    """Weight of the score Fokker-Planck regulariser."""
    prior: str | None = None
    """File or folder of pictures of the class, like data.path, which has those of one thing: DreamBooth's loss."""
    prior_weight: float = 1.0
    """Weight of the class' pictures in DreamBooth's loss."""

    def __post_init__(self) -> None:
        _as_text(self, "prior")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with clipping and a schedule; the fields are the arguments of `jaxdiff.train.make_optimizer`."""

    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """Learning rate after the warm-up."""
    warmup: int = 0
    """Steps of linear warm-up from 0."""
    final_fraction: float = 0.0
    """Share of lr left at the end (cosine)."""
    decay_start: int | None = None
    """Step from which inverse_sqrt falls; None: the end of the warm-up."""
    b1: float = 0.9
    """Adam's decay of the mean."""
    b2: float = 0.999
    """Adam's decay of the square."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and kernels."""
    clip_norm: float | None = 1.0
    """Largest global norm of a gradient; None: no clipping."""
    state_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Numbers that Adam's two moments are kept in: 8, 4 or about 2 bytes a parameter."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and rhythm of training."""

    steps: int
    """Optimizer steps in all."""
    batch_size: int = 128
    """Images a step, over all devices."""
    accumulate: int = 1
    """Micro-batches a step: less memory, the same gradient."""
    steps_per_call: int = 1
    """Steps that the devices take at one call of the host: the same result, less waiting where steps are short."""
    spike: float | None = 20.0
    """Steps whose gradient has so many times its running median's norm are skipped; None: only those not finite."""
    max_skipped: int = 10
    """Skipped steps in a row that end the run."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by their paths: down, *bias, up/0/*; they come from frozen's "base"."""
    log_every: int = 100
    """Steps between two lines of metrics."""
    sample_every: int = 1000
    """Steps between two sample grids; 0: none."""

    def __post_init__(self) -> None:
        _as_several(self, "freeze")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between two checkpoints; the last step is always saved."""
    keep: int = 3
    """How many of the latest are kept, besides the best."""
    on_error: Literal["continue", "stop"] = "continue"
    """When one cannot be written (a full disk): go on, and try again at the next, or stop. A failed last one is always
    an error, and so is any with several processes."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How images are made, during training and by default afterwards."""

    sampler: str = "ddim"
    """A method and its numbers, such as unipc:order=3 or ddim:eta=1; docs/samplers.md lists all."""
    steps: int = 50
    """Times on the grid: the network runs once at each (two-stage methods such as heun: twice at all but the last)."""
    grid: str = "uniform"
    """uniform, log_snr, karras, quadratic, trailing or shifted:3."""
    guide: tuple[str, ...] = ()
    """Guidance, in order: cfg:2, interval:0.2,5, every:2; empty: the plain model, at half the cost."""
    clip: bool = True
    """Limit predictions to the data's range at every step, where the data has one."""
    batch_size: int = 128
    """Most samples at once."""
    num: int = 64
    """Samples in a picture made during training."""

    def __post_init__(self) -> None:
        _as_several(self, "guide")


@dataclass(frozen=True, kw_only=True)
class FrozenWeights:
    """Weights that are used and not trained: they stay where they lie, and are not saved again."""

    name: str
    """What the objective calls them; "base": the parts of the network itself that are not trained."""
    path: str
    """Folder of a run."""
    step: int | None = None
    """Its checkpoint; None: the newest when training began, noted here then."""
    checksum: str | None = None
    """Of the weights, noted when training began; other weights are refused."""

    def __post_init__(self) -> None:
        _as_text(self, "path")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Training an addition to a network that stays as --init-from has it (jaxdiff.networks.lora)."""

    rank: int = 0
    """Columns of the two thin matrices whose product is added to a weight; 0: the network itself is trained."""
    alpha: float | None = None
    """The product is scaled by alpha / rank; None: by 1."""
    targets: tuple[str, ...] = ("attention",)
    """Weights it is added to: attention, linear, or parameters by their paths: up/*, middle_in."""

    def __post_init__(self) -> None:
        _as_several(self, "targets")


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Training a new word of a published model, all else as it is (jaxdiff.pretrained.adapters.inversion)."""

    word: str | None = None
    """What stands for it in captions, such as <cat-toy>; None: the network itself is trained."""
    init: str | None = None
    """A word that the text encoders know, as whose vector it begins: toy."""
    vectors: int = 1
    """Vectors of the word, each an id in a text."""
    kind: Literal["object", "style"] = "object"
    """Captions of data without text: a photo of a <cat-toy>, ...; or a painting in the style of <cat-toy>, ..."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are arranged; one size may be -1: what is left."""

    data: int = -1
    """Devices that batches are split over."""
    fsdp: int = 1
    """Devices that batches and parameters are split over."""
    tensor: int = 1
    """Devices that attention and perceptrons of transformers are split over; a divisor of the heads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunConfig:
    """What every run has: `Config` adds what decides a diffusion model, `AutoencoderConfig` an autoencoder,
    `ClassifierConfig` a noisy classifier. Two configurations are equal when they are stored alike.

    Args:
      network, ema: objects, see their modules. `network` is a callable from `nnx.Rngs` to a module
        (`jaxdiff.networks.UNet`) or a Linen module, `ema` a rule of `jaxdiff.train.ema`, or rules by name.
      codec: between stored records and what the network sees (`jaxdiff.codecs`); None: the one that goes with the data,
        which a run's saved configuration has.
      tokenizer: what makes ids of captions, such as `jaxdiff.data.Words`; None: the network takes no text. A run's
        saved configuration has the vocabulary that was learned.
    """

    name: str
    """Name of the run."""
    workdir: str | None = None
    """Folder of the run; None: runs/NAME."""
    seed: int = 0
    """Seed of everything random."""
    data: DataConfig = DataConfig()
    network: Any
    codec: Any = None
    tokenizer: Any = None
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: Any
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    frozen: tuple[FrozenWeights, ...] = ()
    """Weights that are used and not trained."""

    def __post_init__(self) -> None:
        _as_text(self, "workdir")

    @property
    def folder(self) -> str:
        """The run's folder."""
        return f"runs/{self.name}" if self.workdir is None else os.path.expanduser(self.workdir)

    @property
    def cond(self) -> Specs:
        """What the network takes beside x and t."""
        declared: Specs = getattr(self.network, "cond", {})
        return declared

    @property
    def num_classes(self) -> int | None:
        """Classes of the network's labels; None where it takes none."""
        label = self.cond.get("label")
        return int(label.high) + 1 if isinstance(label, Spec) and label.high is not None else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and to_json(self) == to_json(other)

    __hash__ = None  # type: ignore[assignment]


Kind = TypeVar("Kind", bound=RunConfig)
"""A configuration of any kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Config(RunConfig):
    """Everything that decides a diffusion model's run, beside what every run has (`RunConfig`).

    Args:
      process, parameterization, loss: objects, see their modules.
      picture: what is drawn and measured during training, such as `jaxdiff.evaluate.ScoreField`; None: a grid of
        samples.
    """

    process: Process
    parameterization: Parameterization
    loss: LossConfig = LossConfig()
    lora: LoraConfig = LoraConfig()
    inversion: InversionConfig = InversionConfig()
    sample: SampleConfig = SampleConfig()
    picture: Any = None
