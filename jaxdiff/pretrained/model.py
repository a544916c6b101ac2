"""A published pipeline as a model that samples: by our samplers, or by the steps of diffusers' own scheduler.

model = jaxdiff.load("stable-diffusion-v1-5")
pictures = model.sample(0, 4, {"text": "a red heart"}, guide="cfg:7.5")["x"]         # our samplers
pictures = model.sample(0, 4, {"text": "a red heart"}, guide="cfg:7.5", strict=True)  # diffusers', step for step
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.codecs import Images
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.data.text import TEXT, given_captions
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.launch.errors import ConfigError, as_config_error, refuse_unknown_options
from jaxdiff.model import Model
from jaxdiff.networks.control import PICTURE, Controlled
from jaxdiff.plan import encoded, mask_of
from jaxdiff.pretrained.adapters.embeddings import Embeddings, load_embeddings, with_rows
from jaxdiff.pretrained.adapters.lora import Lora, load_lora, merged
from jaxdiff.pretrained.control import shares, told, told_times
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.layouts.families import Loaded
from jaxdiff.pretrained.origin import Origin
from jaxdiff.pretrained.schedulers.processes import ConsistencyTimes, FlowTimes
from jaxdiff.pretrained.strict_steps import strict_options
from jaxdiff.pretrained.told_sizes import is_scored, told_sizes
from jaxdiff.process import Process
from jaxdiff.request import contrasts
from jaxdiff.spec import Spec, whole

SCHEDULER = "scheduler"
_MOST_STEPS, _MOST_PIXELS = 10_000, 32_768  # of a mistyped number memory or patience ends first


class LongPrompt(UserWarning):
    """A text is longer than what an encoder takes, and is cut."""


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A published model. Made by `load_pipeline`.

    Args:
      model: everything that samples.
      scheduler: the fields of its `scheduler_config.json`.
      parts: its networks, by the names of their folders, as they are written back.
      index: the fields of its `model_index.json`.
      origin: where it comes from, and under which licence.
      even: whether a flow's scheduler is given noise levels evenly from 1 to 1/n.
      told: the weight of guidance that a distilled network is told where nothing else is said.
    """

    model: Model
    scheduler: Mapping[str, Any]
    parts: Mapping[str, Loaded]
    index: Mapping[str, Any]
    origin: Origin
    even: bool = False
    told: float | None = None

    def __repr__(self) -> str:
        sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part.params)) for name, part in self.parts.items()}
        parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        return f"<{self.origin.kind} of {self.origin.folder}: parameters of {parts}>"

    @property
    def denoise(self) -> NetworkDenoiser:
        """The denoiser of its weights: ``denoise(x, t, {"text": ...})`` gives a `Prediction`."""
        return self.model.denoise

    @property
    def process(self) -> Process:
        """The process that its scheduler is of."""
        return self.model.process

    @property
    def codec(self) -> Any:
        """Between stored records and what the network sees."""
        return self.model.codec

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0, at the published size."""
        return self.model.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, in order of their labels; () where it has none."""
        named = self.index.get("id2label") or {}
        return tuple(str(named[number]) for number in sorted(named, key=int))

    @property
    def num_classes(self) -> int | None:
        """Number of labels; None where it takes none."""
        label = self.model.conditions.get("label")
        return int(label.high) + 1 if isinstance(label, Spec) and label.high is not None else None

    def sample(
        self,
        key: Array | int,
        n: int,
        cond: Mapping[str, Any] | None = None,
        *,
        negative: Mapping[str, Any] | str | None = None,
        size: tuple[int, int] | None = None,
        strict: bool = False,
        eta: float = 0.0,
        clip_skip: int = 0,
        prompt_weights: bool = False,
        control: Any = None,
        control_scale: Any = None,
        control_start: Any = None,
        control_end: Any = None,
        guess_mode: bool = False,
        timesteps: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """Draws samples: arguments and result as `jaxdiff.model.Model.sample`, and

        Args:
          key, n, cond, options: see there. Of a network that is told the weight of guidance itself, it is
            ``cond["guidance"]``; where it is left out, the published one.
          negative: what guidance leads away from; of text, where it is left out, the empty text (of Stable Diffusion XL
            zeros, as published); of the refiner's ``"time_ids"`` an aesthetic score of 2.5. Of an inpainting network
            image and mask are conditions.
          size: height and width of the pictures, in pixels; None: the published ones.
          strict: take the steps of diffusers' own scheduler in the place of a sampler and a grid.
          eta: noise of a strict DDIM.
          clip_skip: the number of CLIP's last blocks that are left out.
          prompt_weights: take parentheses and brackets in texts as weights, ``"a (red:1.3) heart"``:
            `jaxdiff.pretrained.weighted`.
          control: of a model with a ControlNet, pictures of the samples' size, ``(H, W, C)`` or ``(n, H, W, C)`` uint8
            or their paths; of several ControlNets a dict by their names. None: they count for nothing.
          control_scale: how far they count; None: 1.
          control_start, control_end: from when to when they count, shares of the way from noise to data
            (`jaxdiff.pretrained.control`); None: 0 and 1. Of several ControlNets these three may be dicts too.
          guess_mode: with guidance the ControlNet is of the conditional side alone, and its first residuals count less:
            for a picture without a text.
          timesteps: of a consistency model, in the place of ``steps``: indices of its levels, ``[22, 0]``; 0 is noise.

        Raises:
          ConfigError: an argument that is out of range, or that this model cannot follow.
        """
        with as_config_error("sampling"):
            refuse_unknown_options(self.model.sample, options, self.sample)
            if cond is not None and not isinstance(cond, Mapping):
                raise ValueError(f"cond is conditions by name, such as {{'text': ...}}, got {cond!r}")
            if (steps := options.get("steps")) is not None and whole("steps", steps) > _MOST_STEPS:
                raise ValueError(f"steps is {steps}, expected at most {_MOST_STEPS}")
            if not isinstance(eta, int | float) or not 0 <= eta <= 1:
                raise ValueError(f"eta is {eta!r}, expected a number from 0 to 1")
            for name, flag in (("strict", strict), ("prompt_weights", prompt_weights), ("guess_mode", guess_mode)):
                if not isinstance(flag, bool):
                    raise ValueError(f"{name} is {flag!r}, expected True or False")
            if eta and not strict:
                raise ValueError("eta is of strict steps: say strict=True, or sampler='ddim:eta=1'")
            model, given = self._changed(size, clip_skip, prompt_weights), dict(cond or {})
            encoder: Any = model.encoders.get(TEXT)
            for line in encoder.doubts(given_captions(given.get(TEXT)) or ()) if encoder else ():
                warnings.warn(line, LongPrompt, stacklevel=2)
            given = {**self._sizes(model), **given}
            negative = {TEXT: negative} if isinstance(negative, str) else negative
            if "masked" in model.conditions and "masked" not in given and options.get("mask") is not None:
                given |= self._masked(model, n, options)
            usual, guide = model.defaults.guide, options.get("guide")
            guided = TEXT in given and contrasts(usual if guide is None else guide)
            negative = self._scored(given, self._usual(model, given, negative)) if guided else negative
            counting, of_control = None, {"control_scale": control_scale, "guess_mode": guess_mode or None}
            of_control |= {"control_start": control_start, "control_end": control_end}
            if control is not None:
                counting = shares(model, control_start, control_end)
                given |= told(model, control, control_scale, guess=guess_mode)
                given |= {} if strict else told_times(model, counting)
                if guided and not guess_mode:
                    negative = {**(negative or {}), PICTURE: given[PICTURE]}
            elif said := [name for name, value in of_control.items() if value is not None]:
                raise ValueError(f"{said[0]} is of the pictures in control, and there are none")
            if self.told is not None and "guidance" in model.conditions:
                given.setdefault("guidance", self.told)
            if "masked" in model.conditions and not {"mask", "masked"} <= given.keys():
                raise ValueError("this model draws a part of a picture anew: give image=... and mask=...")
            visited: tuple[int, ...] = ()
            if timesteps is not None:
                visited = self._visited(model, timesteps, options)
                times: Any = model.defaults.grid
                options |= {"steps": len(visited)} if strict else {"ts": times.at(visited)}
            if strict:
                fields = Fields(self.scheduler, str(self.origin.folder / SCHEDULER / "scheduler_config.json"))
                asked = {"eta": eta, "tokens": tokens_of(model), "even": self.even, "indices": visited}
                options = strict_options(
                    model, fields, self.origin.kind, n, options, guided=bool(given), counting=counting, **asked
                )
            return model.sample(key, n, given or None, negative=negative, **options)

    def save(self, path: str | os.PathLike[str], record: Mapping[str, Any], columns: int | None = None) -> None:
        """Writes samples as the suffix of a path says: .png or .npz."""
        with as_config_error("save"):
            self.model.codec.save(path, record, columns)

    def invert(self, record: Mapping[str, Any], cond: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """As `jaxdiff.model.Model.invert`.

        Raises:
          ConfigError: an argument that is out of range, or that this model cannot follow.
        """
        with as_config_error("inversion"):
            refuse_unknown_options(self.model.invert, options)
            return self.model.invert(record, cond, **options)

    def doubts(self, texts: Sequence[str]) -> list[str]:
        """What a person is told of texts that do not fit: one line for each encoder that cuts them."""
        encoder: Any = self.model.encoders.get(TEXT)
        return [] if encoder is None else encoder.doubts(texts)

    def decided_by(self) -> dict[str, Any]:
        """What decides its samples beside options: its class, and a checksum of configurations and weights."""
        fields = {name: dict(part.fields) for name, part in self.parts.items()} | {SCHEDULER: dict(self.scheduler)}
        params = [part.params for part in self.parts.values()]
        sums = [float(jnp.sum(leaf, dtype=jnp.float32)) for leaf in jax.tree.leaves(params)]
        encoder: Any = self.model.encoders.get(TEXT)
        words = [getattr(each.tokenizer, "words", ()) for each in encoder.branches] if encoder else []
        text = json.dumps([fields, sums, *([words] if any(words) else [])], sort_keys=True, default=str)
        return {"run": self.origin.kind, "config": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def encode(self, texts: str | Sequence[str]) -> Any:
        """What the network is told of a text, or of several, the batch first: ``cond={"text": model.encode("a cat")}``.

        Raises:
          ConfigError: a model without text encoders.
        """
        encoder: Any = self.model.encoders.get(TEXT)
        if encoder is None:
            raise ConfigError(f"{self.origin.folder}: this model has no text encoders")
        with as_config_error("text"):
            return encoder(texts if isinstance(texts, str) else list(texts))

    def without_encoders(self) -> Pretrained:
        """This model without its text encoders, whose memory is free once no other model holds them. Its ``"text"`` is
        what `encode` has given; the empty text for guidance is encoded now."""
        model = self.model
        if TEXT not in model.encoders:
            return self
        negative = {name: self.encode("") if value == "" else value for name, value in model.defaults.negative.items()}
        others = {name: each for name, each in model.encoders.items() if name != TEXT}
        parts = {name: part for name, part in self.parts.items() if not name.startswith("text_encoder")}
        defaults = dataclasses.replace(model.defaults, negative=negative)
        return dataclasses.replace(
            self, model=dataclasses.replace(model, encoders=others, defaults=defaults), parts=parts
        )

    def with_lora(self, lora: Lora | str | os.PathLike[str], weight: float = 1.0) -> Pretrained:
        """This model with a LoRA merged into its weights, those of its text encoders too. Called again, LoRAs add up.

        Args:
          lora: from `load_lora`, or the path of its file.
          weight: of the change; with 0 the weights are as they were.

        Raises:
          PretrainedError: a file that cannot be read, or a LoRA of another model.
        """
        network = next(iter(self.parts))
        parts = merged(self.parts, lora if isinstance(lora, Lora) else load_lora(lora), weight)
        encoders = dict(self.model.encoders)
        if (text := encoders.get(TEXT)) is not None:
            prompts: Any = text
            told = [
                dataclasses.replace(each, params=parts[each.name.replace("tokenizer", "text_encoder")].params)
                for each in prompts.branches
            ]
            encoders[TEXT] = dataclasses.replace(prompts, branches=tuple(told))
        params = parts[network].params
        net: Any = self.denoise.net
        if isinstance(net.build, Controlled):
            params = {**self.denoise.params, "base": params}
        denoise = dataclasses.replace(self.denoise, params=params)
        return dataclasses.replace(
            self, model=dataclasses.replace(self.model, denoise=denoise, encoders=encoders), parts=parts
        )

    def with_embeddings(self, embeddings: Embeddings | str | os.PathLike[str], token: str | None = None) -> Pretrained:
        """This model with a new word in its texts: a textual inversion (`jaxdiff.pretrained.adapters.embeddings`).

        Args:
          embeddings: from `load_embeddings`, or the path of its file.
          token: what stands for it in a text; None: what the file says.

        Raises:
          PretrainedError: a file that cannot be read, vectors of another model, or a token that it knows.
        """
        if not isinstance(embeddings, Embeddings):
            embeddings = load_embeddings(embeddings, token)
        elif token is not None:
            embeddings = dataclasses.replace(embeddings, token=token)
        encoders = dict(self.model.encoders)
        prompts: Any = encoders.get(TEXT)
        branches, parts = with_rows(prompts.branches if prompts else (), self.parts, embeddings)
        encoders[TEXT] = dataclasses.replace(prompts, branches=branches)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, encoders=encoders), parts=parts)

    def _visited(self, model: Model, timesteps: Sequence[int], options: Mapping[str, Any]) -> tuple[int, ...]:
        if taken := [name for name in ("steps", "grid", "ts") if options.get(name) is not None]:
            raise ValueError(f"timesteps are the steps themselves: leave {taken[0]} out")
        if not isinstance(model.defaults.grid, ConsistencyTimes):
            raise ValueError("timesteps is of consistency models: of others say steps=..., or ts=...")
        return model.defaults.grid.checked(timesteps)

    def _changed(self, size: tuple[int, int] | None, clip_skip: int, prompt_weights: bool) -> Model:
        """The model for pictures of a size, with what is asked of its text encoder."""
        model, changes = self.model, {"dropped": clip_skip, "weighted": prompt_weights}
        if asked := [name for name, value in changes.items() if value]:
            if TEXT not in model.encoders:
                option = {"dropped": "clip_skip", "weighted": "prompt_weights"}[asked[0]]
                raise ValueError(f"{option} is of a model with a text encoder: leave it out")
            text: Any = model.encoders[TEXT]
            changed = dataclasses.replace(text, **{name: changes[name] for name in asked})
            model = dataclasses.replace(model, encoders={**model.encoders, TEXT: changed})
        if size is None:
            return model
        if (
            not isinstance(size, tuple | list)
            or len(size) != 2
            or any(type(side) is bool or not isinstance(side, int | np.integer) for side in size)
        ):
            raise ValueError(f"size is (height, width) in pixels, such as (512, 768), got {size!r}")
        if not 1 <= min(size) <= max(size) <= _MOST_PIXELS:
            raise ValueError(f"size is (height, width) from 1 to {_MOST_PIXELS} pixels, got {size!r}")
        codec: Any = model.codec
        if not isinstance(codec, LatentImages):
            return sized(dataclasses.replace(model, codec=Images((*size, codec.shape[2]))))
        factor = codec.net.factor
        if any(side < factor or side % factor for side in size):
            raise ValueError(f"size is (height, width) in multiples of {factor} pixels, got {size}")
        images = dataclasses.replace(codec.images, shape=(*size, codec.images.shape[2]))
        shape = (size[0] // factor, size[1] // factor, codec.shape[2])
        return sized(dataclasses.replace(model, codec=dataclasses.replace(codec, images=images, shape=shape)))

    def _masked(self, model: Model, n: int, options: dict[str, Any]) -> dict[str, Any]:
        """What an inpainting network is told of an image and its mask, which leave the options: the mask, and the
        latents of the image with grey in the place of what is to be drawn. With a strength the image stays."""
        codec: Any = model.codec
        image, mask = options.get("image"), options.pop("mask")
        if image is None:
            raise ValueError("mask is of an image: give image=... too")
        encoded(codec, model.shape, image, n)  # checks it
        small = mask_of(codec, model.shape, mask, n)
        keep = np.broadcast_to(np.asarray(mask) == 0, (n, *codec.images.shape[:2]))[..., None]
        stored = np.broadcast_to(np.asarray(image), (n, *codec.images.shape))
        latents = codec.net.moments(codec.params, codec.images.encode({"x": stored})["x"] * keep)[0]
        if options.get("strength") in (None, 1, 1.0):
            options |= {"image": None, "strength": None}
        return {"mask": small, "masked": codec.standardised(latents)}

    def _usual(
        self, model: Model, given: Mapping[str, Any], negative: Mapping[str, Any] | None
    ) -> Mapping[str, Any] | None:
        """What guidance leads away from, where nothing is said."""
        if negative is not None:
            return negative
        return {name: value for name, value in model.defaults.negative.items() if name in given} or None

    def _scored(self, given: Mapping[str, Any], negative: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """What guidance leads away from, of the refiner with a low aesthetic score."""
        ids = np.asarray(given.get("time_ids", ()), np.float32)
        if ids.shape[-1:] != (5,) or "time_ids" in (negative or {}):
            return negative
        return {**(negative or {}), "time_ids": np.concatenate([ids[..., :4], np.full_like(ids[..., 4:], 2.5)], -1)}

    def _sizes(self, model: Model) -> dict[str, list[float]]:
        """What the network is told of the pictures' size."""
        codec: Any = model.codec
        height, width = getattr(codec, "images", codec).shape[:2]
        return told_sizes(model.conditions, height, width, scored=is_scored(model.conditions))


def tokens_of(model: Model) -> int:
    """How many tokens its pictures have."""
    patch = getattr(getattr(model.denoise.net, "build", None), "patch", 1)
    return int(np.prod(model.shape[:2])) // patch**2


def sized(model: Model) -> Model:
    """The model with the default times of its pictures' size, which a flow's dynamic shift depends on."""
    grid = model.defaults.grid
    if not isinstance(grid, FlowTimes):
        return model
    grid = dataclasses.replace(grid, tokens=tokens_of(model))
    return dataclasses.replace(model, defaults=dataclasses.replace(model.defaults, grid=grid))
