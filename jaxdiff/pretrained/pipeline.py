"""A published pipeline as one model: `model_index.json`, and a folder for each of its parts.

    model = load_pipeline("stable-diffusion-v1-5")
    pictures = model.sample(0, 4, {"text": "a red heart"}, guide="cfg:7.5")["x"]         # our samplers
    pictures = model.sample(0, 4, {"text": "a red heart"}, guide="cfg:7.5", strict=True)  # diffusers', step for step

The scheduler's configuration says the process and what the network predicts, for our samplers (`process_of`), and the
steps of diffusers (`jaxdiff.pretrained.schedulers`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.codecs import Images
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.data.clip_files import END, MERGES, VOCABULARY, padding_token
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.discrete import DiscreteVP
from jaxdiff.launch.errors import as_config_error, refuse_unknown_options
from jaxdiff.model import Defaults, Model
from jaxdiff.networks.text import T5, TextEncoder
from jaxdiff.parameterization import X0, Eps, Parameterization, ScaledTime, TimeIndex, V, Velocity
from jaxdiff.pretrained import autoencoder_kl, prompts, schedulers
from jaxdiff.pretrained.chains import chain
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import Loaded, load_network
from jaxdiff.pretrained.fields import Fields, read_fields
from jaxdiff.pretrained.flax_folders import plain_classes
from jaxdiff.pretrained.prompts import Branch, Prompts
from jaxdiff.pretrained.single_file import read_single_file
from jaxdiff.pretrained.strict import draw_strictly
from jaxdiff.process import Process
from jaxdiff.schedule import Flow

INDEX, SCHEDULER = "model_index.json", "scheduler"


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the pipelines of one class are put together.

    Args:
      network: the folder of the denoiser.
      text: the folders of text encoders, each with that of its tokenizer.
      join: makes what the network is told of their states; None: no text.
      states: changes of the encoders' configurations: which state is taken.
      length: ids of T5's texts.
      guide: guidance where nothing else is said.
      even: whether a flow's scheduler is given noise levels evenly from 1 to 1/n.
    """

    network: str = "unet"
    text: tuple[tuple[str, str], ...] = ()
    join: Callable[..., dict[str, Any]] | None = None
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 77
    guide: tuple[str, ...] = ()
    even: bool = False


_FIRST, _SECOND, _THIRD = (
    ("text_encoder", "tokenizer"),
    ("text_encoder_2", "tokenizer_2"),
    ("text_encoder_3", "tokenizer_3"),
)
_BEFORE_LAST = {"skip": 1, "final_norm": False}
_SD = Kind(text=(_FIRST,), join=prompts.stable_diffusion, states={"pooled": False}, guide=("cfg:7.5",))
_XL = Kind(text=(_FIRST, _SECOND), join=prompts.stable_diffusion_xl, states=_BEFORE_LAST, guide=("cfg:5",))
_SD3 = Kind(
    network="transformer",
    text=(_FIRST, _SECOND, _THIRD),
    join=prompts.stable_diffusion_3,
    states=_BEFORE_LAST,
    length=256,
    guide=("cfg:7",),
)
_FLUX = Kind(network="transformer", text=(_FIRST, _SECOND), join=prompts.flux, length=512, even=True)
_PIXART = Kind(network="transformer", text=(_FIRST,), join=prompts.pixart, length=300, guide=("cfg:4.5",))
KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "LatentConsistencyModelPipeline": dataclasses.replace(_SD, guide=()),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLInpaintPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL,
    "StableDiffusion3Pipeline": _SD3,
    "FluxPipeline": _FLUX,
    "PixArtSigmaPipeline": _PIXART,
    "PixArtAlphaPipeline": dataclasses.replace(_PIXART, length=120),
    "DiTPipeline": Kind(network="transformer", guide=("cfg:4",)),
    "DDPMPipeline": Kind(),
}
"""Classes of pipelines that are read."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model. Made by `load_pipeline`.

    Args:
      model: everything that samples.
      scheduler: the fields of its `scheduler_config.json`.
      parts: its networks, by the names of their folders, as they are written back.
      index: the fields of its `model_index.json`.
      folder: where it lies.
    """

    model: Model
    scheduler: Mapping[str, Any]
    parts: Mapping[str, Loaded]
    index: Mapping[str, Any]
    folder: Path

    def sample(
        self,
        key: Array | int,
        n: int,
        cond: Mapping[str, Any] | None = None,
        *,
        negative: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
        strict: bool = False,
        eta: float = 0.0,
        clip_skip: int = 0,
        **options: Any,
    ) -> Any:
        """Draws samples: arguments and result as `jaxdiff.model.Model.sample`, and

        Args:
          key, n, cond, options: see there. Of a network that is told the weight of guidance itself, it is
            ``cond["guidance"]``.
          negative: what guidance leads away from; of text, where it is left out, the empty text (of Stable Diffusion XL
            zeros, as published).
          size: height and width of the pictures, in pixels; None: the published ones.
          strict: take the steps of diffusers' own scheduler in the place of a sampler and a grid.
          eta: noise of a strict DDIM.
          clip_skip: the number of CLIP's last blocks that are left out.

        Raises:
          ConfigError: an argument that is out of range, or that this model cannot follow.
        """
        with as_config_error("sampling"):
            refuse_unknown_options(self.model.sample, options)
            model, given = self._sized(size, clip_skip), dict(cond or {})
            if "time_ids" in model.conditions and "time_ids" not in given:
                given["time_ids"] = self._time_ids(model)
            guide = options.get("guide")
            guided = guide != () and (guide is not None or bool(model.defaults.guide)) and "text" in given
            if negative is None and guided and not self.index.get("force_zeros_for_empty_prompt", False):
                negative = {"text": ""}
            if strict:
                options |= self._strictly(model, options, eta)
            return model.sample(key, n, given or None, negative=negative, **options)

    def save(self, path: str | os.PathLike[str], record: Mapping[str, Any], columns: int | None = None) -> None:
        """Writes samples as the suffix of a path says: .png or .npz."""
        with as_config_error("save"):
            self.model.codec.save(path, record, columns)

    def _strictly(self, model: Model, options: dict[str, Any], eta: float) -> dict[str, Any]:
        if taken := [name for name in ("sampler", "grid", "ts", "cache") if options.get(name) is not None]:
            raise ValueError(f"strict steps are those of the model's scheduler: leave {taken[0]} out")
        steps = options.pop("steps", None) or model.defaults.steps
        factor = getattr(_configuration(model), "patch", 1)
        tokens = int(np.prod(model.shape[:2])) // factor**2
        fields = Fields(self.scheduler, str(self.folder / SCHEDULER / "scheduler_config.json"))
        even = KINDS[_class_of(self.index)].even
        table = schedulers.table(fields, steps, eta=eta, tokens=tokens, even=even)
        return {"steps": None, "program": functools.partial(draw_strictly, table)}

    def _sized(self, size: tuple[int, int] | None, clip_skip: int) -> Model:
        model, encoders = self.model, dict(self.model.encoders)
        if clip_skip:
            if "text" not in encoders:
                raise ValueError("clip_skip is of a model with a text encoder: leave it out")
            text: Any = encoders["text"]
            encoders["text"] = dataclasses.replace(text, dropped=clip_skip)
            model = dataclasses.replace(model, encoders=encoders)
        if size is None:
            return model
        codec: Any = model.codec
        if not isinstance(codec, LatentImages):
            return dataclasses.replace(model, codec=Images((*size, codec.shape[2])))
        factor = codec.net.factor
        if len(size) != 2 or any(side < factor or side % factor for side in size):
            raise ValueError(f"size is (height, width) in multiples of {factor} pixels, got {size}")
        images = dataclasses.replace(codec.images, shape=(*size, codec.images.shape[2]))
        shape = (size[0] // factor, size[1] // factor, codec.shape[2])
        return dataclasses.replace(model, codec=dataclasses.replace(codec, images=images, shape=shape))

    def _time_ids(self, model: Model) -> list[float]:
        """Stable Diffusion XL's: the picture's size, no crop, the size again; of the refiner the aesthetic score."""
        codec: Any = model.codec
        height, width = codec.images.shape[:2]
        ids = model.conditions["time_ids"]
        assert not isinstance(ids, Mapping)
        last = [6.0] if ids.shape == (5,) else [height, width]
        return [float(each) for each in (height, width, 0, 0, *last)]


def _class_of(index: Mapping[str, Any]) -> str:
    return str(index.get("_class_name")).removeprefix("Flax")


def _configuration(model: Model) -> Any:
    return getattr(model.denoise.net, "build", None)


def load_pipeline(
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
    length: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: str | None = None,
    flax_numerics: bool = False,
) -> Pretrained:
    """A model from a folder of diffusers, or from one file of Stable Diffusion 1, 2 or XL in its authors' layout.

    Args:
      folder: that holds `model_index.json`; or a file of safetensors.
      variant, dtype, shardings: of all networks: see `load_network`.
      length: ids of T5's texts; None: as published.
      tokenizer: of one file, which has none: the folder of CLIP's `vocab.json` and `merges.txt`.
      prediction: of one file: see `jaxdiff.pretrained.read_single_file`.
      flax_numerics: of all networks: see `load_network`.

    Raises:
      PretrainedError: a folder, a class or a part that cannot be read.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        if variant is not None:
            raise PretrainedError(f"{folder}: a single file has no variants: leave variant={variant!r} out")
        if flax_numerics:
            raise PretrainedError(f"{folder}: a single file was never Flax's: leave flax_numerics out")
        words = _words(folder, tokenizer)
        found = read_single_file(folder, prediction=prediction, dtype=dtype, shardings=shardings)
        if END in found.padding.values() and (token := padding_token(words)) != END:
            raise PretrainedError(
                f"tokenizer: {words} pads with {token!r}, expected {END!r}: give Stable Diffusion 1's"
            )
        tokenizers = {part: (words, padding) for part, padding in found.padding.items()}
        return _assembled(found.index, Fields(found.scheduler, str(folder)), found.parts, tokenizers, folder, length)
    for option, value in (("tokenizer", tokenizer), ("prediction", prediction)):
        if value is not None:
            raise PretrainedError(f"{folder}: {option}={value!r} is for a single file; a folder has its own")
    if not (folder / INDEX).is_file():
        raise PretrainedError(f"{folder}: there is no {INDEX if folder.is_dir() else 'such folder'}")
    index = Fields(plain_classes(read_fields(folder / INDEX).values), str(folder / INDEX))
    name = _class_of(index.values)
    if name not in KINDS:
        raise PretrainedError(f"{folder / INDEX}: {name} is not known; jaxdiff reads {', '.join(KINDS)}")
    kind = KINDS[name]
    load = functools.partial(
        load_network, variant=variant, dtype=dtype, shardings=shardings, flax_numerics=flax_numerics
    )
    there = {part for part, value in index.values.items() if isinstance(value, list) and value and value[0] is not None}
    parts = {kind.network: load(folder / kind.network)}
    text = [each for each in kind.text if each[0] in there]
    parts |= {encoder: load(folder / encoder) for encoder, _ in text}
    if "vae" in there:
        parts["vae"] = load(folder / "vae")
    place = folder / SCHEDULER / "scheduler_config.json"
    scheduler = Fields(plain_classes(read_fields(place).values), str(place))
    tokenizers = {encoder: (folder / each, padding_token(folder / each)) for encoder, each in text}
    return _assembled(index.values, scheduler, parts, tokenizers, folder, length)


def _assembled(
    index: Mapping[str, Any],
    scheduler: Fields,
    parts: Mapping[str, Loaded],
    tokenizers: Mapping[str, tuple[Path, str]],
    folder: Path,
    length: int | None,
) -> Pretrained:
    """The model of its parts, and of each text encoder's tokenizer: its folder and the token that pads."""
    kind = KINDS[_class_of(index)]
    network = parts[kind.network]
    process, parameterization, defaults = process_of(scheduler)
    encoders: dict[str, Any] = {}
    if kind.join is not None:
        encoders["text"] = Prompts(_branches(kind, tokenizers, parts, length), _join(kind, network, length))
    model = Model(
        NetworkDenoiser(network.net, network.params, process, parameterization),
        _codec(network, parts.get("vae")),
        dataclasses.replace(defaults, guide=kind.guide),
        encoders=encoders,
    )
    return Pretrained(model, scheduler.values, parts, index, folder)


def _words(file: Path, tokenizer: str | os.PathLike[str] | None) -> Path:
    """The folder of a tokenizer that is given beside a single file."""
    what = f"a folder with CLIP's {VOCABULARY} and {MERGES}, as the folder tokenizer of Stable Diffusion 1"
    if tokenizer is None:
        raise PretrainedError(f"{file}: a single file has no tokenizer: say tokenizer=FOLDER, {what}")
    folder = Path(tokenizer).expanduser()
    missing = [name for name in (VOCABULARY, MERGES) if not (folder / name).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        raise PretrainedError(f"tokenizer: {folder} has no {missing[0]}, expected {what}")
    return folder


def _join(kind: Kind, network: Loaded, length: int | None) -> Any:
    if kind.join is not prompts.stable_diffusion_3:
        return kind.join
    text = network.net.cond["text"]
    width = int(text["tokens"].shape[-1])
    return functools.partial(prompts.stable_diffusion_3, width=width, length=length or kind.length)


def _branches(
    kind: Kind, tokenizers: Mapping[str, tuple[Path, str]], parts: Mapping[str, Loaded], length: int | None
) -> tuple[Branch, ...]:
    made = []
    for encoder, (folder, token) in tokenizers.items():
        loaded = parts[encoder]
        config = loaded.net.config
        special: tuple[str, ...] = ()
        if isinstance(config, T5):
            ids, padding, masked = length or kind.length, 0, kind.join is prompts.pixart
        else:
            config = dataclasses.replace(config, **kind.states)
            ids, masked, special = config.length, False, (token,)
            padding = _id_of(folder, token, ids)
        file = TokenizerFile(str(folder), ids, padding, special=special)
        file.encode([""])  # reads it
        made.append(Branch(file, TextEncoder(config), loaded.params, masked))
    return tuple(made)


def _id_of(folder: Path, token: str, length: int) -> int:
    """The id of a special token: what stands between begin and end."""
    ids = TokenizerFile(str(folder), length, special=(token,)).ids(token)
    return ids[1] if len(ids) > 2 else ids[-1]


def _codec(network: Loaded, vae: Loaded | None) -> Any:
    config = network.net.build
    size = network.fields.get("sample_size") or (config.image_size if vae is None else 64)
    height, width = (size, size) if isinstance(size, int) else size
    if vae is None:
        return Images((height, width, config.in_channels))
    channels, factor = config.in_channels, vae.net.factor
    found = autoencoder_kl.scale(Fields(vae.fields))
    mean, std = (np.full(channels, each, np.float32) for each in (found.shift, 1 / found.factor))
    images = Images((height * factor, width * factor, vae.net.build.in_channels))
    return LatentImages(vae.params, mean, std, images, net=vae.net, shape=(height, width, channels))


def process_of(fields: Fields) -> tuple[Process, Parameterization, Defaults]:
    """The process that a scheduler's configuration is of, what the network predicts and is told, and a way to sample.

    Raises:
      PretrainedError: a schedule or a prediction that jaxdiff does not know.

    >>> process, parameterization, _ = process_of(Fields({"_class_name": "DDIMScheduler"}))
    >>> type(process).__name__, type(parameterization).__name__
    ('DiscreteVP', 'Eps')
    """
    name = str(fields.values.get("_class_name"))
    if "FlowMatch" in name:
        return (
            Flow(),
            Velocity(time=ScaledTime(1000.0)),
            Defaults("euler", 28, functools.partial(_flow_times, fields), clip=False),
        )
    defaults = {"LCM": (0.00085, 0.012, "scaled_linear"), "Heun": (0.00085, 0.012, "linear")}
    betas = next((each for key, each in defaults.items() if key in name), (1e-4, 0.02, "linear"))
    on = chain(Fields(fields.values, fields.where), betas=betas)
    kinds: dict[str, Any] = {"epsilon": Eps, "sample": X0, "v_prediction": V}
    return (
        DiscreteVP(on.betas),
        kinds[on.kind](time=TimeIndex(on.length)),
        Defaults("dpmpp_2m", 25, "uniform", clip=False),
    )


def _flow_times(fields: Fields, process: Process, n: int) -> Array:
    """A flow's own times: its noise levels, shifted as its scheduler says, and once only."""
    shift = fields.get("shift", 1.0)
    level = np.linspace(1.0, 1 / n, n)
    return jnp.asarray(shift * level / (1 + (shift - 1) * level), jnp.float32)
