"""DiT and SiT in the layout of their authors (facebookresearch/DiT, willisma/SiT): one file of weights.

    loaded = load_dit("DiT-XL-2-256x256.safetensors")              # made by jaxdiff.pretrained.convert of the .pt
    model = dit_model(loaded, load_network("sd-vae-ft-ema"))
    pictures = model.sample(0, 4, {"label": 207}, guide="cfg:4")

The sizes are read off the shapes, but for the heads, which the published widths decide. The table of positions is
fixed; a file that has another one is refused. DiT (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748) predicts eps
and a variance, on DDPM's chain of 1000 steps. SiT (Ma et al. 2024, https://arxiv.org/abs/2401.08740) has the time
u = 1 - t, 0 at the noise and 1 at the data, and is told u itself; it predicts the velocity along u,

    x_t = (1 - t) x0 + t eps,    f(x_t, 1 - t) = d x_t/du = x0 - eps                                  (1)

which is the velocity here with the other sign. The second half of its channels is used by nothing. Both are of latents
z 0.18215 of Stable Diffusion's autoencoder.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.codecs.arrays import Arrays
from jaxdiff.codecs.images import Images
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.discrete import DiscreteVP, linear_betas
from jaxdiff.model import Defaults, Model
from jaxdiff.networks import DiT, functional
from jaxdiff.networks.embeddings import position_embedding
from jaxdiff.parameterization import Eps, LearnedVariance, Parameterization, TimeIndex, Velocity
from jaxdiff.prediction import Prediction
from jaxdiff.pretrained.errors import PretrainedError, as_pretrained_error, path_of
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.files.npz import open_tensors
from jaxdiff.pretrained.files.reading import load_params
from jaxdiff.pretrained.files.safetensors import write_safetensors
from jaxdiff.pretrained.files.tensors import Tensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import Loaded, loaded_of
from jaxdiff.pretrained.layouts.transformers import authors_naming
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.schedule import Flow

Kind = Literal["DiT", "SiT"]
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
_SCALE = 0.18215


def load_dit(
    file: str | os.PathLike[str],
    kind: Kind = "DiT",
    *,
    heads: int | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
) -> Loaded:
    """A DiT or SiT from a file in its authors' layout.

    Args:
      file: of safetensors, or an archive ``.npz``.
      kind: whose, ``"DiT"`` or ``"SiT"``: their tensors are named alike.
      heads: of attention; None: as published for this width.
      dtype, shardings: see `jaxdiff.pretrained.load_network`.

    Raises:
      PretrainedError: another file, or tensors that are missing, left over or of another shape; one line.
    """
    file = path_of(file, "file")
    if kind not in ("DiT", "SiT"):
        raise PretrainedError(f"kind is {kind!r}, expected 'DiT' or 'SiT'")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise PretrainedError(f"heads is {heads!r}, expected a whole number of at least 1")
    tensors = open_tensors(file)
    fields = _fields(tensors, kind, heads, str(file))
    net = functional(_configured(fields, str(file)))
    with as_pretrained_error(str(file)):
        shapes = jax.eval_shape(net.init, jax.random.key(0))
    spread = None if shardings is None else shardings(shapes)
    params = load_params(shapes, _naming(fields), tensors, dtype=dtype, shardings=spread, where=str(file))
    return Loaded(net, params, fields)


def write_dit(file: str | os.PathLike[str], loaded: Loaded, *, dtype: str | None = None) -> None:
    """Writes a DiT or SiT as its authors name its weights: their code reads the file, by safetensors.

    Args:
      file: to write, ``NAME.safetensors``.
      loaded: by `load_dit`.
      dtype: of the tensors; None: as the parameters have it.

    Raises:
      PretrainedError: a file that cannot be written.
    """
    try:
        write_safetensors(Path(file).expanduser(), Published(loaded.params, _naming(loaded.fields), dtype=dtype))
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be written ({error.strerror})") from error


def dit_model(loaded: Loaded, autoencoder: Loaded | None = None) -> Model:
    """The model of a DiT or SiT: its process, what it predicts, and a way to sample. Guidance is of all channels; the
    authors' scripts guide the first three.

    Args:
      loaded: by `load_dit`.
      autoencoder: Stable Diffusion's, by `jaxdiff.pretrained.load_network`; None: samples are latents.

    Raises:
      PretrainedError: an autoencoder of other latents.
    """
    if loaded_of(loaded, "loaded").fields.get("_class_name") not in ("DiT", "SiT"):
        raise PretrainedError(f"loaded: expected a network by load_dit, got a {loaded.fields.get('_class_name')}")
    config, size = loaded.net.build, loaded.fields["sample_size"]
    channels = config.in_channels
    process: Process = Flow()
    parameterization: Parameterization = TowardsData(Velocity(time=DataTime()))
    defaults = Defaults("heun", 50, "uniform", guide=("cfg:4",), clip=False)
    if loaded.fields["_class_name"] == "DiT":
        process = DiscreteVP(linear_betas(1000))
        parameterization = Eps(time=TimeIndex(1000.0))
        if config.out_channels == 2 * channels:
            parameterization = LearnedVariance(parameterization)
        defaults = dataclasses.replace(defaults, sampler="ddpm:variance=learned", steps=250)
    mean, std = np.zeros(channels, np.float32), np.full(channels, 1 / _SCALE, np.float32)
    codec: Any = Arrays((size, size, channels), mean, std)
    if autoencoder is not None:
        found = loaded_of(autoencoder, "autoencoder").net.build
        if getattr(found, "channels", None) != channels:
            raise PretrainedError(f"latents have {channels} channels: give the autoencoder that makes them")
        images = Images((size * autoencoder.net.factor,) * 2 + (found.in_channels,))
        codec = LatentImages(autoencoder.params, mean, std, images, net=autoencoder.net, shape=(size, size, channels))
    return Model(NetworkDenoiser(loaded.net, loaded.params, process, parameterization), codec, defaults)


@record
class DataTime:
    """1 - t: 0 at the noise, 1 at the data.

    >>> print(DataTime()(Flow(), 0.25))
    0.75
    """

    def __call__(self, process: Process, t: ArrayLike) -> Array:
        return 1.0 - jnp.asarray(t)


@record
class TowardsData(Parameterization):
    """Equation (1): a network that returns ``base``'s output with the other sign in its first channels.

    Args:
      base: what it predicts, and what it is told about time.

    >>> x, output = jnp.ones((1, 2, 2, 1)), jnp.full((1, 2, 2, 2), 3.0)
    >>> found = TowardsData(Velocity()).read(Flow(), x, jnp.array([0.25]), output)  # x0 = x - t (eps - x0)
    >>> float(found.x0[0, 0, 0, 0])
    1.75
    """

    base: Parameterization = Velocity()

    def condition(self, process: Process, x: Array, t: ArrayLike) -> tuple[Array, Array]:
        return self.base.condition(process, x, t)

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return -self.base.target(process, x0, eps, t)

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return self.base.read(process, x, t, -output[..., : x.shape[-1]])

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        return self.base.jacobian(process, t)

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        return self.base.eps_jacobian(process, t)


def _fields(tensors: Tensors, kind: str, heads: int | None, where: str) -> dict[str, Any]:
    """What the shapes say of the configuration."""
    try:
        width, channels, patch, other = tensors["x_embedder.proj.weight"].shape
        rows = tensors["y_embedder.embedding_table.weight"].shape[0]
        outputs = tensors["final_layer.linear.weight"].shape[0]
        tokens = tensors["pos_embed"].shape[1]
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        frequencies = tensors["t_embedder.mlp.0.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise PretrainedError(
            f"{where}: is no {kind} of its authors' layout: {error.args[0]!s} is missing or of another shape"
        ) from error
    numbers = [int(found[1]) for found in (re.match(r"blocks\.(\d+)\.", name) for name in tensors) if found]
    side = math.isqrt(tokens)
    if heads is None and width not in _HEADS:
        raise PretrainedError(f"{where}: its width {width} is none that was published: say how many heads, heads=N")
    if 0 in (width, channels, patch, tokens, hidden) or patch != other or outputs % patch**2 or side * side != tokens:
        raise PretrainedError(f"{where}: patches of {patch} x {other}, {outputs} outputs, {tokens} tokens do not fit")
    return {
        "_class_name": kind,
        "sample_size": side * patch,
        "in_channels": channels,
        "out_channels": outputs // patch**2,
        "patch_size": patch,
        "hidden_size": width,
        "depth": 1 + max(numbers),
        "num_heads": heads or _HEADS[width],
        "mlp_ratio": hidden / width,
        "num_classes": rows - 1,
        "frequency_embedding_size": frequencies,
    }


def _configured(fields: Mapping[str, Any], where: str = "") -> DiT:
    with as_pretrained_error(where):
        return DiT(
            in_channels=fields["in_channels"],
            out_channels=fields["out_channels"],
            patch=fields["patch_size"],
            width=fields["hidden_size"],
            depth=fields["depth"],
            heads=fields["num_heads"],
            mlp_ratio=fields["mlp_ratio"],
            num_classes=fields["num_classes"],
            frequencies=fields["frequency_embedding_size"],
        )


def _naming(fields: Mapping[str, Any]) -> Naming:
    network = _configured(fields)
    table = functools.partial(_positions, fields["sample_size"] // fields["patch_size"], network.width)
    return dataclasses.replace(authors_naming(network), unused=(), tables={"pos_embed": table})


def _positions(side: int, width: int) -> NDArray[np.float32]:
    places = np.arange(side)
    return position_embedding(places, places, width)[None]
