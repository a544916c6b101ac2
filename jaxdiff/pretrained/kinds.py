"""The classes of pipelines that are read: which networks they have, and what the denoiser is told of texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdiff.data.clip_files import padding_token
from jaxdiff.data.sources import DataError
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.networks.text import T5, TextEncoder
from jaxdiff.pretrained import prompts
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields, read_fields
from jaxdiff.pretrained.layouts.families import CONFIG, FAMILIES, described
from jaxdiff.pretrained.layouts.flax import plain_classes
from jaxdiff.pretrained.model import SCHEDULER
from jaxdiff.pretrained.origin import INDEX


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
      told: the weight of guidance that a distilled network is told where nothing else is said.
    """

    network: str = "unet"
    text: tuple[tuple[str, str], ...] = ()
    join: Callable[..., dict[str, Any]] | None = None
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 77
    guide: tuple[str, ...] = ()
    even: bool = False
    told: float | None = None


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
_FLUX = Kind(network="transformer", text=(_FIRST, _SECOND), join=prompts.flux, length=512, even=True, told=3.5)
_PIXART = Kind(network="transformer", text=(_FIRST,), join=prompts.pixart, length=300, guide=("cfg:4.5",))
KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "LatentConsistencyModelPipeline": dataclasses.replace(_SD, guide=(), told=8.5),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLInpaintPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL,
    "StableDiffusion3Pipeline": _SD3,
    "FluxPipeline": _FLUX,
    "PixArtSigmaPipeline": _PIXART,
    "PixArtAlphaPipeline": dataclasses.replace(_PIXART, length=120),
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionXLControlNetPipeline": _XL,
    "DiTPipeline": Kind(network="transformer", guide=("cfg:4",)),
    "DDPMPipeline": Kind(),
    "DDIMPipeline": Kind(),
    "ConsistencyModelPipeline": Kind(),
}
"""Classes of pipelines that are read."""


_CLASSES = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "transformer": tuple(name for name in FAMILIES if name.endswith("Transformer2DModel")),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"),
}
"""Of the parts of a pipeline, by the names of their folders without a number."""


def index_of(folder: Path) -> Mapping[str, Any]:
    """The fields of a pipeline's `model_index.json`.

    Raises:
      PretrainedError: there is none, or it is of a class that is not known.
    """
    if not (folder / INDEX).is_file():
        raise PretrainedError(f"{folder}: there is no {INDEX}")
    index = plain_classes(read_fields(folder / INDEX).values)
    if (name := class_of(index)) not in KINDS:
        raise PretrainedError(f"{folder / INDEX}: {name} is not known; jaxdiff reads {', '.join(KINDS)}")
    return index


def scheduler_of(folder: Path) -> Fields:
    """The fields of a pipeline's scheduler."""
    place = folder / SCHEDULER / "scheduler_config.json"
    return Fields(plain_classes(read_fields(place).values), str(place))


def class_of(index: Mapping[str, Any]) -> str:
    """The class that `model_index.json` names."""
    return str(index.get("_class_name")).removeprefix("Flax")


def parts_of(index: Mapping[str, Any]) -> set[str]:
    """The names of the parts that a pipeline has."""
    return {name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}


def part_of(folder: Path, *, text: bool | None = None) -> tuple[Fields, Any, Any]:
    """What `layouts.families.described` says of a part, whose class is one that its folder's name is of.

    Args:
      folder: of the part.
      text: of the network that predicts, whether it is told texts; None: either.

    Raises:
      PretrainedError: a class that is none for this part.
    """
    found = fields, _, net = described(folder)
    part = folder.name.rstrip("_23")
    named = fields.values.get("_class_name") or next(iter(fields.values.get("architectures") or ()), None)
    known = [name for name in FAMILIES if name in _CLASSES.get(part, ())]
    name = str(named).removeprefix("Flax")
    if known and name not in known:
        raise PretrainedError(f"{folder / CONFIG}: is of {name}; {folder.name} is one of {', '.join(known)}")
    if text is not None and text != ("text" in net.cond):
        told = "takes texts" if text else "takes none"
        raise PretrainedError(f"{folder / CONFIG}: is of {name}, and a pipeline of this class {told}")
    return found


def join_of(kind: str, *, width: int, length: int) -> Any:
    """What makes tokens, mask and pooled of the encoders' states; None: the kind takes no text.

    Args:
      kind: a name of `KINDS`.
      width: channels of a token.
      length: ids of T5's texts.
    """
    join = KINDS[kind].join
    if join is not prompts.stable_diffusion_3:
        return join
    return functools.partial(prompts.stable_diffusion_3, width=width, length=length)


def branch_of(
    folder: Path, kind: str, config: Any, length: int | None, padding: str | None = None
) -> tuple[TokenizerFile, TextEncoder, bool]:
    """Of a text encoder: its tokenizer, its pure functions with the state that is taken, and whether it is told which
    tokens are a caption's.

    Args:
      folder: of the tokenizer.
      kind: a name of `KINDS`.
      config: of the encoder.
      length: ids of T5's texts; None: as published.
      padding: the token after a text's end; None: the tokenizer's own.
    """
    try:
        return _branch_of(folder, kind, config, length, padding)
    except OSError as error:
        raise PretrainedError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
    except DataError:
        raise
    except ValueError as error:
        raise PretrainedError(f"{folder}: {error}") from error


def _branch_of(
    folder: Path, kind: str, config: Any, length: int | None, padding: str | None
) -> tuple[TokenizerFile, TextEncoder, bool]:
    chosen = KINDS[kind]
    if isinstance(config, T5):
        file, masked = TokenizerFile(str(folder), length or chosen.length), chosen.join is prompts.pixart
    else:
        config, masked = dataclasses.replace(config, **chosen.states), False
        token = padding_token(folder) if padding is None else padding
        number = _id_of(folder, token, config.length)
        file = TokenizerFile(str(folder), config.length, number, special=() if padding is None else (token,))
    file.encode([""])  # reads it
    return file, TextEncoder(config), masked


def _id_of(folder: Path, token: str, length: int) -> int:
    """The id of a special token: what stands between begin and end."""
    ids = TokenizerFile(str(folder), length, special=(token,)).ids(token)
    return ids[1] if len(ids) > 2 else ids[-1]
