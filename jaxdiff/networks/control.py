"""ControlNet: a picture, such as outlines, depth or a pose, says where things are.

Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models",
https://arxiv.org/abs/2302.05543, section 3. Let a U-Net make the features of its skip connections s_0, s_1, ... and of
its middle m by an encoder F, and its output of them by a decoder D. With p the picture, E a row of convolutions, F' a
copy of F, and Z_i convolutions of 1x1 that start at zero,

    s_0, s_1, ..., m = F(x, t, c)                                                           (1)
    r_0, r_1, ..., r = Z_0 s'_0, Z_1 s'_1, ..., Z m',   s', m' = F'(conv_in(x) + E(p), t, c)  (2)
    y = D(s_0 + w_0 r_0, s_1 + w_1 r_1, ..., m + w_N r, t, c)                               (3)
    w_i = w 10^(d (i/N - 1))  where t, as the network is told it, is from a to b;  else 0   (4)

The scale w says how far the picture counts: at 0, where no picture is given, and before any training y is the U-Net's
own output. The times (a, b) are all where nothing is said, and the decay d is 0; with 1 the first residuals count a
tenth (the repository's "guess mode"). Of several ControlNets the r are added up. Where no sample of a batch has a
picture, (2) is not computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.networks.functional import Functional, Params, functional
from jaxdiff.networks.layers import Conv3x3, DType, Linear, at_least_1, draw, zeros
from jaxdiff.networks.perturbed import Rows
from jaxdiff.networks.placement import by_sample
from jaxdiff.networks.unet import UNet, UNetModule
from jaxdiff.spec import Condition, Spec, Specs, complete

PICTURE, SCALE, TIMES, DECAY = "control", "control_scale", "control_times", "control_decay"
"""The names of the conditions: p, w, (a, b) and d."""
ALWAYS = (-1e9, 1e9)
"""Times that leave out none."""
NO_PICTURE = -1.0
"""Every number of a picture that is not given; those of a picture are from 0 to 1. Of a map it is one class more."""


@dataclass(frozen=True)
class ControlNet:
    """Configuration of one ControlNet: equation (2).

    Args:
      unet: of F'; its decoder is not built. Beside x and t it is told what this network takes.
      name: which of several it is.
      channels: of the picture.
      classes: if given, the picture is a map of classes, an id at each pixel, such as a segmentation: one channel each.
      size: height and width of the picture; None: as many as x, times ``factor``.
      widths: channels of E's convolutions. From each to the next one the resolution is halved, if ``halving``.
      halving: pixels of the picture for one of x along a side are ``2^(len(widths) - 1)``, as of latents; else one.
      order: of the picture's channels as the network was trained.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import UNet
    >>> ControlNet(UNet(16, in_channels=4, width=32, multipliers=(1, 2), attention_resolutions=(8,))).factor
    8
    """

    unet: UNet
    name: str = PICTURE
    channels: int = 3
    classes: int | None = None
    size: tuple[int | None, int | None] = (None, None)
    widths: tuple[int, ...] = (16, 32, 96, 256)
    halving: bool = True
    order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        at_least_1(self, "channels", "classes")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths} must be numbers of at least 1")
        if len(self.size) != 2 or any(side is not None and side < 1 for side in self.size):
            raise ValueError(f"size={self.size} must be (height, width), each at least 1 or None")
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"order={self.order!r} must be 'rgb' or 'bgr'")

    @property
    def factor(self) -> int:
        """Pixels of the picture for one of x, along a side."""
        return 2 ** (len(self.widths) - 1) if self.halving else 1

    @property
    def picture(self) -> Spec:
        """What a picture is."""
        if self.classes is not None:
            return Spec(self.size, "int32", 0, self.classes - 1, self.classes)
        return Spec((*self.size, self.channels), "float32", 0.0, 1.0, NO_PICTURE)

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        return {**self.unet.cond, PICTURE: self.picture}

    @property
    def skips(self) -> tuple[int, ...]:
        """Channels of the U-Net's skip connections."""
        return skips_of(self.unet)

    def __call__(self, rngs: nnx.Rngs) -> ControlNetModule:
        """The module, with fresh parameters."""
        return draw(ControlNetModule(self), rngs.params())


def skips_of(unet: UNet) -> tuple[int, ...]:
    """Channels of a U-Net's skip connections, from the first on.

    >>> skips_of(UNet(16, width=32, multipliers=(1, 2), blocks=1, attention_resolutions=()))
    (32, 32, 32, 64)
    """
    last = len(unet.multipliers) - 1
    levels = [(unet.channels(level),) * (unet.blocks + (level < last)) for level in range(last + 1)]
    return (unet.channels(0), *(width for level in levels for width in level))


class PictureEmbedding(nnx.Module):
    """E of equation (2): convolutions with SiLU between them; the last one starts at zero."""

    def __init__(self, config: ControlNet):
        widths, dtype = config.widths, config.unet.dtype
        self.first = Conv3x3(config.classes or config.channels, widths[0], dtype=dtype)
        steps = []
        for inputs, outputs in itertools.pairwise(widths):
            stride = 2 if config.halving else 1
            steps += [Conv3x3(inputs, inputs, dtype=dtype), Conv3x3(inputs, outputs, stride=stride, dtype=dtype)]
        self.steps = nnx.List(steps)
        self.last = Conv3x3(widths[-1], config.unet.channels(0), dtype=dtype, init=zeros)

    def __call__(self, picture: Array) -> Array:
        h = by_sample(jax.nn.silu(self.first(picture)))
        for step in self.steps:
            h = by_sample(jax.nn.silu(step(h)))
        return by_sample(self.last(h))


class ControlNetModule(nnx.Module):
    """Equation (2), called as ``module(x, t, cond, key)``."""

    def __init__(self, config: ControlNet):
        self.config, dtype = config, config.unet.dtype
        self.encoder = UNetModule(config.unet, decoder=False)
        self.picture = PictureEmbedding(config)
        self.out = nnx.List([Linear(width, width, dtype=dtype, init=zeros) for width in config.skips])
        self.middle = Linear(config.skips[-1], config.skips[-1], dtype=dtype, init=zeros)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> tuple[list[Array], Array]:
        """``[r_0, r_1, ...], r``."""
        picture, factor = cond[PICTURE], self.config.factor
        wanted = x.shape[1] * factor, x.shape[2] * factor
        if picture.shape[1:3] != wanted:
            raise ValueError(
                f"cond[{PICTURE!r}] is a picture of {picture.shape[1:3]}, expected {wanted}, {factor} times x"
            )
        told = self.encoder.embed(x, t, cond)
        if self.config.classes is not None:
            picture = jax.nn.one_hot(picture, self.config.classes, dtype=x.dtype)
        elif self.config.order == "bgr":
            picture = picture[..., ::-1]
        h = self.encoder.enter(x, cond) + self.picture(picture)
        h, skips = self.encoder.encode(h, told, key)
        return [by_sample(out(s)) for out, s in zip(self.out, skips, strict=True)], by_sample(self.middle(h))


@dataclass(frozen=True)
class Residuals:
    """A ControlNet by itself as pure functions: ``apply`` gives ``[r_0, r_1, ...], r`` of equation (2).

    Args:
      build: its configuration.
    """

    build: ControlNet

    @property
    def cond(self) -> Specs:
        """What it takes beside x and t."""
        return self.build.cond

    @property
    def _whole(self) -> Functional:
        whole: Functional = functional(self.build)
        return whole

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        return self._whole.init(key)

    def apply(
        self, params: Params, x: Array, t: ArrayLike, cond: Mapping[str, Any], *, key: Array | None = None
    ) -> tuple[list[Array], Array]:
        """``[r_0, r_1, ...], r``; arguments as of any network.

        >>> unet = UNet(8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=())
        >>> net = Residuals(ControlNet(unet, channels=1, halving=False))
        >>> found, middle = net.apply(
        ...     net.init(jax.random.key(0)), jnp.ones((1, 8, 8, 1)), 0.5, {"control": jnp.ones((1, 8, 8, 1))}
        ... )
        >>> [each.shape[-1] for each in found], middle.shape
        ([8, 8, 8, 16], (1, 4, 4, 16))
        """
        module = self._whole.module(params)
        found: tuple[list[Array], Array] = module(x, t, complete(self.cond, cond, x.shape[0]), key)
        return found


@dataclass(frozen=True)
class Controlled:
    """Configuration of a U-Net with ControlNets: equation (3); `jaxdiff.networks.functional` makes a network of it.

    Beside what the U-Net takes there are the conditions ``"control"``, the picture, ``"control_scale"``, w, and
    ``"control_times"``, (a, b); of several ControlNets each is a dict by their names. ``"control_decay"``, d, is one
    for all. Parameters are ``{"base": ..., "controls": {name: ...}}``.
    A ControlNet starts as the U-Net's own encoder, where it has the same weights. A picture of one pixel is none.

    Args:
      base: the U-Net.
      controls: the ControlNets.

    Raises:
      ValueError: none, two of one name, or one whose skip connections or conditions are not the U-Net's.

    >>> unet = UNet(8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(), num_classes=3)
    >>> net = functional(Controlled(unet, (ControlNet(unet, "outline", channels=1, halving=False),)))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> sorted(params), sorted(params["controls"]), sorted(net.cond)
    (['base', 'controls'], ['outline'], ['control', 'control_decay', 'control_scale', 'control_times', 'label'])
    >>> cond = {"control": jnp.ones((2, 8, 8, 1)), "control_scale": jnp.array([1.0, 0.5])}
    >>> jax.jit(net.apply)(params, jnp.ones((2, 8, 8, 1)), 0.5, cond).shape
    (2, 8, 8, 1)
    """

    base: UNet
    controls: tuple[ControlNet, ...]

    def __post_init__(self) -> None:
        names = [each.name for each in self.controls]
        if not names or len({*names}) < len(names):
            raise ValueError(f"controls are named {names}: there must be at least one, each with a name of its own")
        for each in self.controls:
            if each.skips != skips_of(self.base):
                raise ValueError(
                    f"{each.name}: its skip connections are {each.skips}, the U-Net's {skips_of(self.base)}"
                )
            if each.unet.in_channels != self.base.in_channels:
                raise ValueError(
                    f"{each.name}: in_channels={each.unet.in_channels}, of the U-Net {self.base.in_channels}"
                )
            if unknown := [name for name, spec in each.unet.cond.items() if self.base.cond.get(name) != spec]:
                raise ValueError(f"{each.name}: it takes the condition {unknown[0]!r}, which the U-Net takes otherwise")
        if taken := {PICTURE, *self.settings} & set(self.base.cond):
            raise ValueError(f"the U-Net has a condition named {min(taken)!r}, as ControlNet's is")

    @property
    def in_channels(self) -> int:
        """Of the images."""
        return self.base.in_channels

    @property
    def image_size(self) -> int:
        """See `UNet`; so are heads and their width."""
        return self.base.image_size

    @property
    def heads(self) -> int:
        """Of attention."""
        return self.base.heads

    @property
    def head_width(self) -> int | None:
        """Of attention."""
        return self.base.head_width

    def computing_in(self, dtype: DType) -> Controlled:
        """The same, which computes in another dtype."""
        controls = (replace(each, unet=replace(each.unet, dtype=dtype)) for each in self.controls)
        return Controlled(replace(self.base, dtype=dtype), tuple(controls))

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        pictures = {each.name: each.picture for each in self.controls}
        scales = {each.name: Spec((), "float32", null=1.0) for each in self.controls}
        times = {each.name: Spec((2,), "float32", null=ALWAYS) for each in self.controls}
        told = {**self.base.cond, DECAY: Spec((), "float32", null=0.0)}
        if len(self.controls) == 1:
            only = self.controls[0]
            return {**told, PICTURE: only.picture, SCALE: scales[only.name], TIMES: times[only.name]}
        return {**told, PICTURE: pictures, SCALE: scales, TIMES: times}

    @property
    def settings(self) -> tuple[str, ...]:
        """The conditions that are settings of a call (`Functional.settings`); left out, they have their usual value."""
        return (SCALE, TIMES, DECAY)

    @property
    def begun_as(self) -> tuple[str, ...]:
        """Where in its parameters the weights of a trained U-Net belong."""
        return ("base", *(f"controls/{each.name}/encoder" for each in self.controls))

    def __call__(self, rngs: nnx.Rngs) -> ControlledModule:
        """The module, with fresh parameters."""
        module = draw(ControlledModule(self), rngs.params())
        own = dict(nnx.to_flat_state(nnx.state(module.base)))
        for control in module.controls.values():
            copy = [
                (path, own[path])
                for path, leaf in nnx.to_flat_state(nnx.state(control.encoder))
                if path in own and own[path].shape == leaf.shape
            ]
            nnx.update(control.encoder, nnx.from_flat_state(copy))
        return module


class ControlledModule(nnx.Module):
    """Equations (1) to (4), called as ``module(x, t, cond, key)``."""

    def __init__(self, config: Controlled):
        self.config = config
        self.base = UNetModule(config.base)
        self.controls = nnx.Dict({each.name: ControlNetModule(each) for each in config.controls})

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`): the U-Net's own."""
        return self.base.rows

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        told = self.base.embed(x, t, cond)
        h, skips = self.base.encode(self.base.enter(x, cond), told, key)
        several = isinstance(cond[PICTURE], Mapping)
        for each in self.config.controls:
            name = each.name
            named = (cond[key][name] if several else cond[key] for key in (PICTURE, SCALE, TIMES))
            picture, scale, times = named
            if picture.shape[1:3] == (1, 1):  # the null of a picture of any size: no sample has one
                continue
            absent = jnp.asarray(each.picture.null, picture.dtype) == picture
            without = absent.reshape(len(picture), -1).all(axis=1) | (t < times[:, 0]) | (t > times[:, 1])
            scale = jnp.where(without, 0.0, scale)
            found, middle = self.controls[name](x, t, {**cond, PICTURE: picture}, key)
            shares = [10.0 ** (cond[DECAY] * (i / len(found) - 1)) for i in range(len(found))]
            skips = [_added(skip, scale * d, each) for skip, d, each in zip(skips, shares, found, strict=True)]
            h = _added(h, scale, middle)
        return self.base.decode(h, skips, told, key)


def _added(h: Array, scale: Array, residual: Array) -> Array:
    return by_sample(h + expand(scale, residual).astype(h.dtype) * residual.astype(h.dtype))
