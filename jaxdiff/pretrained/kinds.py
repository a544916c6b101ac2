"""The classes of pipelines that are read: which networks they have, and what the denoiser is told of texts."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdiff.data.added_words import WithWords, words_of
from jaxdiff.data.clip_files import padding_token
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.networks.text import T5, TextEncoder
from jaxdiff.pretrained import prompts
from jaxdiff.pretrained.errors import PretrainedError, as_pretrained_error
from jaxdiff.pretrained.fields import Fields, read_fields, short
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
      latents: whether its samples are an autoencoder's latents.
    """

    network: str = "unet"
    text: tuple[tuple[str, str], ...] = ()
    join: Callable[..., dict[str, Any]] | None = None
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 77
    guide: tuple[str, ...] = ()
    even: bool = False
    told: float | None = None
    latents: bool = True


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
    "DDPMPipeline": Kind(latents=False),
    "DDIMPipeline": Kind(latents=False),
    "ConsistencyModelPipeline": Kind(latents=False),
}
"""Classes of pipelines that are read."""


_CLASSES = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "transformer": tuple(name for name in FAMILIES if name.endswith("Transformer2DModel")),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"),
}
"""Of the parts of a pipeline, by the names of their folders without a number."""
_PART = re.compile(r"(unet|transformer|vae|scheduler|controlnet|text_encoder|tokenizer)(_[23])?")


def index_of(folder: Path) -> Mapping[str, Any]:
    """The fields of a pipeline's `model_index.json`.

    Raises:
      PretrainedError: there is none, it is of a class that is not known, or a field is not what it stands for.
    """
    if not (folder / INDEX).is_file():
        why = f"there is no {INDEX}, which says what the parts of a model are: fetch it beside them"
        raise PretrainedError(f"{folder}: {'is a file, expected the folder of a model' if folder.is_file() else why}")
    fields = Fields(plain_classes(read_fields(folder / INDEX).values), str(folder / INDEX))
    name = fields.class_name
    if name is None or name not in KINDS:
        said = "names no class, in _class_name" if name is None else f"{short(name)} is not known"
        raise PretrainedError(f"{fields.where}: {said}; jaxdiff reads {', '.join(KINDS)}")
    _check_index(fields, KINDS[name])
    return fields.values


def _check_index(fields: Fields, kind: Kind) -> None:
    """Refuses an index whose fields are not what they stand for."""
    absent = {part for part in fields.values if _PART.fullmatch(part) and _is_null(fields, part)}
    text = [each for each in kind.text if each[0] in parts_of(fields.values)] or kind.text[:1]
    needed = [kind.network, SCHEDULER, *(["vae"] if kind.latents else []), *(part for each in text for part in each)]
    for part in needed:
        if part in absent or (part in ("vae", "text_encoder") and part not in fields.values):
            fields.refuse(part, f"is null or missing, and a {fields.class_name} needs it: fetch the index again")
    fields.get("force_zeros_for_empty_prompt", False)
    labels = fields.values.get("id2label") or {}
    if not isinstance(labels, dict) or not all(n.isdecimal() and isinstance(text, str) for n, text in labels.items()):
        fields.refuse("id2label", f"is {short(labels)}, expected texts by whole numbers, such as {{'0': 'a fish'}}")


def _is_null(fields: Fields, part: str) -> bool:
    """Whether an index says that a part is not there.

    Raises:
      PretrainedError: it says neither that, nor which class it is of.
    """
    value = fields.values[part]
    if value is None or value == [None, None]:
        return True
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, str) for each in value):
        fields.refuse(part, f"is {short(value)}, expected [LIBRARY, CLASS], or [null, null] where there is none")
    return False


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
    part, name = folder.name.rstrip("_23"), fields.class_name
    known = [name for name in FAMILIES if name in _CLASSES.get(part, ())]
    if known and name not in known:
        raise PretrainedError(f"{folder / CONFIG}: is of {name}; {folder.name} is one of {', '.join(known)}")
    if text is not None and text != ("text" in net.cond):
        told = "takes texts" if text else "takes none"
        raise PretrainedError(f"{folder / CONFIG}: is of {name}, and a pipeline of this class {told}")
    return found


def negative_of(kind: Kind, index: Mapping[str, Any]) -> dict[str, Any]:
    """What guidance leads away from: the empty text, and where the pipeline says so zeros in its place."""
    return {} if kind.join is None or index.get("force_zeros_for_empty_prompt", False) else {"text": ""}


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
) -> tuple[TokenizerFile | WithWords, TextEncoder, bool]:
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
        with as_pretrained_error(str(folder)):
            return _branch_of(folder, kind, config, length, padding)
    except OSError as error:
        raise PretrainedError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error


def _branch_of(
    folder: Path, kind: str, config: Any, length: int | None, padding: str | None
) -> tuple[TokenizerFile | WithWords, TextEncoder, bool]:
    chosen = KINDS[kind]
    file: TokenizerFile | WithWords
    if isinstance(config, T5):
        file, masked = TokenizerFile(str(folder), length or chosen.length), chosen.join is prompts.pixart
    else:
        config, masked = dataclasses.replace(config, **chosen.states), False
        token = padding_token(folder) if padding is None else padding
        number = _id_of(folder, token, config.length)
        file = TokenizerFile(str(folder), config.length, number, special=() if padding is None else (token,))
        if words := words_of(folder):
            file = WithWords(file, words)
            if file.size > config.vocabulary:
                raise ValueError(
                    f"has the id {file.size - 1} of {words[-1].word!r}, and its text encoder {config.vocabulary} ids"
                )
    file.encode([""])  # reads it
    if (most := max(file.size - 1, file.padding)) >= config.vocabulary:
        raise PretrainedError(
            f"{folder}: has the id {most}, and its text encoder {config.vocabulary} ids, from 0: they are of different "
            "models, or a token of its configuration is not in its vocabulary"
        )
    return file, TextEncoder(config), masked


def _id_of(folder: Path, token: str, length: int) -> int:
    """The id of a special token: what stands between begin and end."""
    ids = TokenizerFile(str(folder), length, special=(token,)).ids(token)
    return ids[1] if len(ids) > 2 else ids[-1]
