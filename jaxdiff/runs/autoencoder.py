"""A trained autoencoder: pictures to latents and back, and what its folder says of its latents.

    run = jaxdiff.load("runs/mnist_autoencoder")
    latents = run.encode({"x": pictures})                # (B, h, w, c) of uint8 (B, H, W, C)
    again = run.decode(latents)                          # {"x": uint8 (B, H, W, C)}

What its folder says of its latents is in `jaxdiff.runs.latents`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from jaxdiff.autoencoding.objective import AUTOENCODER
from jaxdiff.codecs import grey_levels
from jaxdiff.config import (
    TRUSTED,
    AutoencoderConfig,
    ClassifierConfig,
    ConfigError,
    as_config_error,
    build_codec,
    read_config,
)
from jaxdiff.config.autoencoder import nothing_to_sample
from jaxdiff.config.folder import CHECKPOINTS
from jaxdiff.launch.errors import refuse_unknown
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.networks.placement import parts_of, samples_over
from jaxdiff.noise import as_key, sample_keys, white_noise
from jaxdiff.runs.examples import read_examples
from jaxdiff.spec import finite
from jaxdiff.train import batch_sharding, make_mesh, params_template
from jaxdiff.train.ema import rules_by_name
from jaxdiff.train.initial import read_part

LATENTS = "latents.json"
"""The file of a run's folder with what `jaxdiff.runs.latents` finds."""


@dataclasses.dataclass(frozen=True)
class AutoencoderRun:
    """A trained autoencoder. Made by `jaxdiff.load`, by `jaxdiff.fit`, or by training for its own pictures.

    Args:
      config: its resolved configuration.
      params: of the autoencoder, without its critic.
      step: optimizer steps behind its weights.
      mesh: the devices that batches are split over.
      examples: ``"x"``, some training images as stored, for pictures.
      folder: where it lies; None: nowhere.
    """

    config: AutoencoderConfig
    params: Any
    step: int
    mesh: Mesh
    examples: Mapping[str, NDArray[Any]] | None = None
    folder: Path | None = None

    @classmethod
    def of(
        cls,
        config: AutoencoderConfig,
        params: Any,
        step: int,
        mesh: Mesh,
        *,
        examples: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> AutoencoderRun:
        """The run of a configuration and the weights of all its networks."""
        return cls(config, params[AUTOENCODER], step, mesh, examples, folder)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        ema: bool | str = True,
        trusted: Sequence[str] = TRUSTED,
        mesh: Mesh | None = None,
    ) -> AutoencoderRun:
        """Reads a run from its folder. Nothing of the folder is changed. Arguments as `jaxdiff.runs.Run.load`.

        Raises:
          ConfigError: the folder is not an autoencoder's run, or its configuration cannot be read.
          CheckpointError: it has no readable checkpoint.
        """
        folder = Path(path).expanduser()
        config = read_config(folder, trusted)
        if not isinstance(config, AutoencoderConfig):
            kind = "a classifier" if isinstance(config, ClassifierConfig) else "a diffusion model"
            raise ConfigError(f"{str(path)!r} is the run of {kind}, no autoencoder: load it by jaxdiff.load")
        averages = list(rules_by_name(config.ema))
        refuse_unknown("average of the weights", [ema] if isinstance(ema, str) else [], averages)
        mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
        template = {AUTOENCODER: params_template(Autoencoder(config.network), mesh)}
        found, params = read_part(folder / CHECKPOINTS, template, ema=averages[0] if ema is True else ema, step=step)
        return cls.of(config, params, found, mesh, examples=read_examples(folder), folder=folder)

    @property
    def net(self) -> Autoencoder:
        """Its pure functions."""
        return Autoencoder(self.config.network)

    @property
    def codec(self) -> Any:
        """Between stored images and [-1, 1]."""
        return build_codec(self.config)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents of one image as it was trained on: (h, w, c)."""
        height, width, _ = self.codec.spec["x"].shape
        return height // self.net.factor, width // self.net.factor, self.net.channels

    def check(self) -> None:
        """Traces a reconstruction without running it; the weights may be mere shapes.

        Raises:
          ConfigError: images, network and codec do not fit each other.
        """
        with as_config_error("network"):
            if grey_levels(self.codec) is None:
                raise ValueError("an autoencoder is trained on images of bytes; these data are no such images")
            x = jax.ShapeDtypeStruct((1, *self.codec.spec["x"].shape), jnp.float32)
            jax.eval_shape(lambda params, x: self.net.decode(params, self.net.moments(params, x)[0]), self.params, x)

    def encode(self, record: Mapping[str, Any], key: Array | int | None = None) -> NDArray[np.float32]:
        """The latents of stored images.

        Args:
          record: ``{"x": uint8 (B, H, W, C)}``, of the size that the codec declares.
          key: draws latents from their normal distribution; None: their mean. With a codebook, the latents before they
            are rounded.

        Returns:
          ``(B, h, w, c)`` float32, on the network's own scale: `latents.json` has the mean and deviation of each
          channel.

        Raises:
          ConfigError: images that do not fit.
        """
        with as_config_error("encoding"):
            mean, log_variance = self.over(moments, self._images(record))
            if key is None or log_variance is None:
                return np.asarray(mean)
            noise = white_noise(sample_keys(as_key(key), 0, len(mean)), mean.shape[1:])
            return np.asarray(mean + np.exp(0.5 * log_variance) * np.asarray(noise), np.float32)

    def decode(self, latents: ArrayLike) -> dict[str, NDArray[Any]]:
        """The stored images of latents ``(B, h, w, c)``: ``{"x": uint8 (B, H, W, C)}``.

        Raises:
          ConfigError: latents of another number of channels, or that are not finite.
        """
        with as_config_error("decoding"):
            z = finite("latents", latents, (None, None, None, self.net.channels), "latents, the batch first")
            return {"x": self.over(decoded, np.asarray(z, np.float32))}

    def reconstruct(self, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The images that the decoder makes of the mean latents of stored images.

        Raises:
          ConfigError: images that do not fit.
        """
        with as_config_error("reconstruction"):
            return {"x": self.over(reconstructed, self._images(record))}

    def sample(self, *arguments: Any, **options: Any) -> Any:
        """There is nothing to sample from.

        Raises:
          ConfigError: always, with what to do.
        """
        del arguments, options
        raise ConfigError(nothing_to_sample(self.folder or self.config.folder))

    def save(self, path: str | os.PathLike[str], record: Mapping[str, Any], columns: int | None = None) -> None:
        """Writes images as the suffix of a path says, by the codec.

        Raises:
          ConfigError: a suffix that such data have no file of.
        """
        with as_config_error("save"):
            self.codec.save(path, record, columns)

    def picture(self) -> NDArray[np.uint8]:
        """The examples in rows, each row above its reconstructions: uint8 ``(H', W', C)``."""
        assert self.examples is not None, "a run has examples from its training on"
        x = self.examples["x"][: self.config.shown]
        columns = min(len(x), 8)
        again, rows = self.reconstruct({"x": x})["x"], []
        for first in range(0, len(x), columns):
            for images in (x, again):
                row = images[first : first + columns]
                rows.append(np.pad(row, [(0, columns - len(row)), (0, 0), (0, 0), (0, 0)]))
        drawn: NDArray[np.uint8] = self.codec.picture({"x": np.concatenate(rows)}, columns)
        return drawn

    @property
    def prompts(self) -> tuple[str, ...]:
        """Captions of its picture: none."""
        return ()

    def measure(self) -> dict[str, float]:
        """PSNR and SSIM, where `latents.json` has those of this step."""
        figures = self.figures()
        known = [name for name in ("psnr", "ssim") if figures.get(name) is not None]
        return {name: figures[name] for name in known if figures["step"] == self.step}

    def figures(self) -> dict[str, Any]:
        """What `latents.json` holds: `jaxdiff.runs.latents.describe`; nothing before the last step of training.

        Raises:
          ConfigError: it cannot be read.
        """
        file = Path(self.folder or self.config.folder) / LATENTS
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error

    def _images(self, record: Mapping[str, Any]) -> NDArray[np.uint8]:
        if not isinstance(record, Mapping) or "x" not in record:
            raise ValueError(f"a record is a dict with 'x', images, got {type(record).__name__}")
        x, channels = np.asarray(record["x"]), self.net.build.in_channels
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != channels or not len(x):
            raise ValueError(f"x is uint8 (batch, height, width, {channels}), got {x.dtype} {x.shape}")
        return x

    def over(self, function: Callable[..., Any], rows: NDArray[Any]) -> Any:
        """``function(net, params, codec, rows)`` of stored images or of latents, a batch of training at a time.

        Args:
          function: a pure function whose results have the batch first; compiled once for each.
          rows: ``(B, ...)``; the devices of all processes share each batch, and all give the same rows.

        Returns:
          The results of all rows, in NumPy.
        """
        sharding = batch_sharding(self.mesh)
        whole = parts_of(sharding)
        size = -(-min(len(rows), self.config.train.batch_size) // whole) * whole  # a multiple of the devices
        found = []
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            filled = np.pad(part, [(0, size - len(part))] + [(0, 0)] * (rows.ndim - 1), mode="edge")
            answer = _over(function, self.net, self.params, self.codec, filled, sharding)
            found.append(jax.tree.map(functools.partial(_first, len(part)), answer))
        return jax.tree.map(lambda *each: np.concatenate(each), *found)


def _first(n: int, each: Array) -> NDArray[Any]:
    return np.asarray(each)[:n]


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _over(
    function: Callable[..., Any], net: Autoencoder, params: Any, codec: Any, rows: Array, sharding: NamedSharding
) -> Any:
    rows = jax.lax.with_sharding_constraint(rows, sharding)
    with samples_over(sharding):
        found = function(net, params, codec, rows)
    return jax.lax.with_sharding_constraint(found, NamedSharding(sharding.mesh, PartitionSpec()))


def moments(net: Autoencoder, params: Any, codec: Any, x: Array) -> tuple[Array, Array | None]:
    """Of stored images, for `AutoencoderRun.over`."""
    return net.moments(params, codec.encode({"x": x})["x"])


def decoded(net: Autoencoder, params: Any, codec: Any, z: Array) -> Array:
    """The stored images of latents, likewise."""
    stored: Array = codec.decode(net.decode(params, z))["x"]
    return stored


def reconstructed(net: Autoencoder, params: Any, codec: Any, x: Array) -> Array:
    """Of stored images those of their mean latents, likewise."""
    return decoded(net, params, codec, moments(net, params, codec, x)[0])
