"""Latents: images in the codes of a frozen autoencoder, standardised, and back to images.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", https://arxiv.org/abs/2112.10752,
section 3.1 and appendix G. With u an image on [-1, 1], mu and log s^2 the encoder's moments, D the decoder, and m_c and
sd_c the mean and the standard deviation of z over the training images in channel c,

    encode:  z = mu(u) + s(u) eps,  eps ~ N(0, 1) by the sample's key; z = mu(u) without one         (1)
             x0 = (z - m_c) / sd_c                                                                   (2)
    decode:  u = D(m_c + sd_c x0)                                                                    (3)

(2) replaces the paper's division by one number (its equation 28 on; 1/0.18215 of the published f8 autoencoder): each
channel has mean 0 and standard deviation 1, whatever the autoencoder.

Large images are decoded in tiles: `jaxdiff.codecs.tiles`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.broadcast import expand
from jaxdiff.codecs.base import Codec, Stored
from jaxdiff.codecs.default import default_codec
from jaxdiff.codecs.images import Images, mirrors
from jaxdiff.codecs.recipe import Find, Read
from jaxdiff.codecs.tiles import OVERLAP, tiled
from jaxdiff.data.sources import Source, name_of
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.noise import salted_keys, sample_keys
from jaxdiff.record import field, record
from jaxdiff.spec import Spec, Specs

STATISTICS = "latents.json"
"""What the training of an autoencoder writes of its latents, into its folder."""
POSTERIOR = 0x7A647261  # "zdra": the salt of eps in (1), apart from the flips


@dataclass(frozen=True)
class Latents:
    """Images as the latents of a trained autoencoder: what a configuration says of them, ``codec=Latents(path)``.

    The data are uint8 images; or latents that are encoded already, float ``(h, w, c)``, or mu and log s^2 along the
    last axis, ``(h, w, 2 c)``.

    Args:
      path: folder of an autoencoder's run. It is looked for from the working folder, and for a saved run also beside it
        and above. None: the data hold latents already, which are standardised by their own mean and standard deviation
        and given back as latents.
      step: its checkpoint, the one of which its folder states mean and std; None: that one. Noted when training began.
      checksum: of its averaged weights, noted when training began; other weights are refused.
      tile: side of the tiles, in latents, that images are decoded in; None: whole.
      images: between bytes and the autoencoder's pixels, noted when training began.
      shape: of one sample's latents, noted when training began.
      mean: of each channel, noted when training began.
      std: likewise.

    Raises:
      ValueError: a tile that is too small to overlap.

    >>> Latents("runs/mnist_autoencoder").spec["x"].shape  # not before the run is looked at
    (None, None, None)
    """

    path: str | None
    step: int | None = None
    checksum: str | None = None
    tile: int | None = None
    images: Images | None = None
    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", os.fspath(self.path))
        if self.tile is not None and self.tile < OVERLAP:
            raise ValueError(f"tile: at least {OVERLAP} latents, got {self.tile}")

    @property
    def spec(self) -> Specs:
        """``"x"``: standardised latents, without bounds."""
        return {"x": Spec((None, None, None) if self.shape is None else self.shape, "float32")}

    @property
    def key(self) -> str:
        """Of the cached moments."""
        return f"latents {self.checksum} {self.images} {self.shape}"

    def noted(self, saved: Any) -> Any:
        """With what a saved recipe has noted; a path or a tile may be another, if the weights are the same."""
        if self.path is None:
            return self if saved is None else saved
        if not isinstance(saved, Latents) or self.checksum is not None or self.step not in (None, saved.step):
            return self
        return dataclasses.replace(saved, path=self.path, tile=self.tile)

    def resolved(self, source: Source, find: Find, *, flip: bool = False) -> Any:
        """With the shapes that the source's images have, and the statistics that the autoencoder's run has written.

        Raises:
          ValueError: a run that is no autoencoder's or has not ended, or images that do not fit it.
        """
        if self.path is None:
            if source.spec["x"].dtype == "uint8":
                raise ValueError(
                    f"codec.path: None is for data that hold latents, and {name_of(source)} holds uint8 "
                    f"{source.spec['x'].shape}: name the folder of an autoencoder's run"
                )
            return default_codec(source, flip=flip)
        config, folder = find(self.path, "vae")
        net = config.network
        if not all(hasattr(net, name) for name in ("factor", "channels", "in_channels")):
            raise ValueError(
                f"{self.path} is a run of {type(net).__name__}, not of an autoencoder: name one of a KLAutoencoder or "
                "VQAutoencoder (codec.path)"
            )
        if self.mean:  # noted: the run in the folder may have gone on since
            step, mean, std = self.step, self.mean, self.std
        else:
            step, mean, std = _statistics(config, folder, net.channels)
            if self.step not in (None, step):
                raise ValueError(
                    f"codec.step {self.step}: {folder} states mean and std of the latents of step {step} alone "
                    f"({STATISTICS}); leave codec.step out"
                )
        stored, factor = source.spec["x"], net.factor
        sizes = tuple(int(size or 0) for size in stored.shape)
        if len(sizes) == 3 and stored.dtype.startswith("float") and sizes[2] in (net.channels, 2 * net.channels):
            if flip:
                raise ValueError(
                    f"data.flip: {name_of(source)} holds latents, and those of a mirrored image are others; encode both"
                )
            height, width = (factor * size for size in sizes[:2])
        elif len(sizes) == 3 and stored.dtype == "uint8":
            height, width = sizes[:2]
        else:
            raise ValueError(
                f"{name_of(source)} holds {stored.dtype} {stored.shape}; expected uint8 images (H, W, C), or latents, "
                f"float (h, w, {net.channels}) or (h, w, {2 * net.channels})"
            )
        channels = net.in_channels
        if stored.dtype == "uint8" and sizes[2] != channels:
            raise ValueError(
                f"{self.path} encodes images of {channels} channels, {name_of(source)} has {sizes[2]}: "
                f"set data.channels to {channels}, or take another autoencoder"
            )
        if height % factor or width % factor:
            raise ValueError(
                f"{self.path} makes one latent of {factor}x{factor} pixels, and {name_of(source)} has images of "
                f"{height}x{width}: set data.image_size to a multiple of {factor}"
            )
        return dataclasses.replace(
            self,
            images=Images((height, width, channels), flip=flip),
            shape=(height // factor, width // factor, net.channels),
            step=step,
            mean=mean,
            std=std,
        )

    def build(self, read: Read) -> tuple[Latents, Codec]:
        """The codec, by the run's averaged weights."""
        assert self.path is not None and self.images is not None and self.shape is not None, "resolve it first"
        weights = read(self.path, self.step, self.checksum, "vae")
        codec = LatentImages(
            weights.params,
            np.asarray(self.mean, np.float32),
            np.asarray(self.std, np.float32),
            self.images,
            net=weights.net,
            shape=self.shape,
            tile=self.tile,
        )
        return dataclasses.replace(self, step=weights.step, checksum=weights.checksum), codec


def _statistics(config: Any, folder: Path, channels: int) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Step, mean and standard deviation of each channel, as the autoencoder's training has written them, or
    as it was published with."""
    if hasattr(config, "std"):
        return 0, (config.mean,) * channels, (config.std,) * channels
    file = folder / STATISTICS
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {STATISTICS}, which training writes after its last step: train it to its end"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        step, mean, std = int(found["step"]), *(tuple(map(float, found[name])) for name in ("mean", "std"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__} {error}") from error
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"{file} is of {len(mean)} channels, and the autoencoder has {channels}")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"{file}: mean {list(mean)} and std {list(std)} must be finite, and std above 0")
    return step, mean, std


@record
class LatentImages:
    """The codec that `Latents` stands for, its weights read: equations (1) to (3).

    Args:
      params: the autoencoder's.
      mean: ``(c,)``.
      std: ``(c,)``, above 0.
      images: between bytes and pixels; mirrors where that is asked for.
      net: the autoencoder's pure functions; static.
      shape: (h, w, c) of one sample's latents; static.
      tile: see `Latents`; static.
      wrap: latents that a decode sees beyond the borders, down and across, from the other side, for pictures that
        continue themselves there; static.
    """

    params: Any
    mean: ArrayLike
    std: ArrayLike
    images: Images
    net: Autoencoder = field(pytree_node=False)
    shape: tuple[int, ...] = field(pytree_node=False)
    tile: int | None = field(default=None, pytree_node=False)
    wrap: tuple[int, int] = field(default=(0, 0), pytree_node=False)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """As of images."""
        return self.images.suffixes

    @property
    def spec(self) -> Specs:
        """``"x"``: standardised latents, without bounds."""
        return {"x": Spec(self.shape, "float32")}

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Latents of records ``{"x": ..., ...}``, by (1) and (2).

        Args:
          record: ``"x"`` is uint8 images; or their latents; or what `precompute` gives.
          key: of the flips and of eps, each sample's by its place in the batch.
        """
        stored, batch = jnp.asarray(record["x"]), dict(record)
        if stored.dtype == jnp.uint8:
            batch = self.images.encode(record, key)
            mu, log_variance = self.net.moments(self.params, batch["x"])
        else:
            mu, log_variance = self._parts(stored.astype(jnp.float32), key)
        if log_variance is not None and key is not None:
            keys = salted_keys(sample_keys(key, 0, mu.shape[0]), POSTERIOR)
            eps = jax.vmap(lambda each: jax.random.normal(each, self.shape, jnp.float32))(keys)
            mu = mu + jnp.exp(0.5 * log_variance) * eps  # (1)
        return {**batch, "x": self.standardised(mu)}

    def sized(self, x: Any) -> LatentImages:
        """The same for records ``{"x": x}`` of another size: images, or what `precompute` makes of them."""
        n, pixels = self.net.factor, x.dtype == jnp.uint8
        height, width = (side if pixels else n * side for side in x.shape[-3:-1])
        if height % n or width % n:
            raise ValueError(f"one latent has {n} pixels a side, and there are images of {height}x{width}")
        images = dataclasses.replace(self.images, shape=(height, width, self.images.shape[2]))
        return dataclasses.replace(self, images=images, shape=(height // n, width // n, self.shape[2]))

    def standardised(self, z: Array) -> Array:
        """Equation (2)."""
        return (z - _channels(self.mean)) / _channels(self.std)

    def _parts(self, stored: Array, key: Array | None) -> tuple[Array, Array | None]:
        """mu and log s^2 of what `precompute` makes: (B, h, w, c or 2 c), or with a mirrored copy (B, 2, h, w, ...)."""
        if stored.ndim == 5:
            copy = jnp.zeros(stored.shape[0], bool) if key is None else mirrors(key, stored.shape[0])
            stored = jnp.where(expand(copy, stored[:, 1]), stored[:, 1], stored[:, 0])
        channels = self.shape[2]
        if stored.shape[1:3] != self.shape[:2] or stored.shape[3] not in (channels, 2 * channels):
            raise ValueError(f"x is uint8 (B, {', '.join(map(str, self.images.shape))}) or latents, got {stored.shape}")
        return stored[..., :channels], (stored[..., channels:] if stored.shape[3] > channels else None)

    def cached_spec(self, stored: Specs) -> Mapping[str, Spec]:
        """Of what `precompute` makes: float16 (h, w, 2 c); of an autoencoder without log s^2 (h, w, c); with flips the
        same of the mirrored image beside it, (2, h, w, ...).

        Raises:
          ValueError: with flips, another condition that is an image, which is mirrored in the step.
        """
        specs = {name: each for name, each in stored.items() if isinstance(each, Spec)}
        if specs.pop("x").dtype != "uint8":
            return {}
        if self.images.flip and (other := [name for name, each in specs.items() if len(each.shape) == 3]):
            raise ValueError(
                f"data.flip: {other[0]} is an image too, which is mirrored in each step with x: set data.cache_latents "
                "off, or data.flip"
            )
        made = jax.eval_shape(self.precompute, {"x": jax.ShapeDtypeStruct((1, *self.images.shape), jnp.uint8)})["x"]
        return {"x": Spec(made.shape[1:], "float16")}

    def precompute(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """mu and log s^2 of images ``{"x": uint8 (B, H, W, C)}`` along the last axis, float32: see `cached_spec`."""

        def of(images: Array) -> Array:
            mu, log_variance = self.net.moments(self.params, self.images.encode({"x": images})["x"])
            return mu if log_variance is None else jnp.concatenate([mu, log_variance], axis=-1)

        x = jnp.asarray(record["x"])
        return {"x": jnp.stack([of(x), of(x[:, :, ::-1])], axis=1) if self.images.flip else of(x)}

    def pixels(self, x0: Array) -> Array:
        """Images on [-1, 1] of latents ``(B, h, w, c)``, by (3), not rounded: differentiable."""
        z, (down, across), n = _channels(self.mean) + _channels(self.std) * x0, self.wrap, self.net.factor
        z = jnp.pad(z, ((0, 0), (down, down), (across, across), (0, 0)), mode="wrap")
        if self.tile is None or max(z.shape[1:3]) <= self.tile:
            pixels = self.net.decode(self.params, z)
        else:
            pixels = tiled(lambda part: self.net.decode(self.params, part), z, self.tile, n)
        return pixels[:, n * down : pixels.shape[1] - n * down, n * across : pixels.shape[2] - n * across]

    def latents(self, pixels: Array) -> Array:
        """Latents of images ``(B, H, W, C)`` on [-1, 1], by (1) without noise and (2)."""
        return self.standardised(self.net.moments(self.params, pixels)[0])

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bytes of latents ``(B, h, w, c)``, by (3)."""
        return self.images.decode(self.pixels(x0), cond)

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """A grid of the images."""
        return self.images.picture(stored, columns)

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """A grid (.png), or the arrays by name (.npz)."""
        self.images.save(path, stored, columns)


def _channels(value: ArrayLike) -> Array:
    return jnp.asarray(value)[None, None, None, :]
