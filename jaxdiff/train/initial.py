"""The weights of another training as the start of a new one: going on with other data, or fine-tuning other classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.autoencoding.objective import AUTOENCODER
from jaxdiff.codecs import Codec
from jaxdiff.codecs.recipe import Weights, built
from jaxdiff.config import (
    AutoencoderConfig,
    ClassifierConfig,
    ConfigError,
    FrozenWeights,
    RunConfig,
    as_config_error,
    build_network,
    read_config,
)
from jaxdiff.config.folder import CONFIG, NETWORK, find_run, first_average, read_frozen_config
from jaxdiff.config.schema import Kind
from jaxdiff.data.buckets import Bucketed, buckets_of
from jaxdiff.data.encoded import cache_name, encode_once
from jaxdiff.data.kept_text import Captions, KeptText
from jaxdiff.data.sources import Source, captions
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.launch.distributed import as_lead, meet
from jaxdiff.networks import functional
from jaxdiff.networks.lora import LoRA
from jaxdiff.pretrained.adapters.inversion import ENCODERS, TextualInversion
from jaxdiff.pretrained.parts import denoiser_params, is_published_part, load_part
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.checkpoint_format import CheckpointError
from jaxdiff.train.checksum import leaf_sums, text_sum
from jaxdiff.train.frozen import partition
from jaxdiff.train.network_folder import network_weights
from jaxdiff.train.sharding import batch_sharding, make_mesh, params_template, split_sharding
from jaxdiff.train.state import Network, TrainState
from jaxdiff.train.step import Given

ENCODED_AT_ONCE = 32
"""Records that a frozen encoder is given at a time, on each device."""
BASE = "base"
"""The name of a network's own weights that are not trained."""
_ADDITIONS: dict[type, str] = {LoRA: "lora", TextualInversion: "inversion"}
"""Networks around one that stays, and their options."""
_EXPECTED = "the folder of a run, or of one of its checkpoints"


def read_weights(
    path: str | os.PathLike[str],
    template: Any,
    *,
    ema: bool = True,
    partial: bool = False,
    begun_as: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    network: Any = None,
) -> Any:
    """The weights of a checkpoint, for `with_weights`.

    Args:
        path: the folder of a run (its newest checkpoint), a folder of checkpoints, or the folder of one step; or of a
            published model or network.
        template: the parameters' shapes and shardings.
        ema: take the averaged weights (of several averages the first) rather than those of the last step.
        partial: take the leaves that fit by name and shape; the others stay `jax.ShapeDtypeStruct`, and are told of.
        begun_as: the paths of parts of the parameters, each of which begins as the checkpoint's network: a U-Net, and
            the copy of its encoder in a ControlNet. What fits there is taken, all else stays as with ``partial``.
        say: gets warnings, and what is new.
        network: the configuration that the weights are for, with which that of a published network is compared.

    Raises:
        CheckpointError: there is no checkpoint, none that can be read, or its leaves differ and `partial` is not set.
    """
    if begun_as:
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(template), sep="/")
        for part in begun_as:
            inner = {leaf[len(part) + 1 :]: each for leaf, each in flat.items() if leaf.startswith(f"{part}/")}
            if inner:
                nested = traverse_util.unflatten_dict(inner, sep="/")
                found = traverse_util.flatten_dict(read_weights(path, nested, ema=ema, partial=True, say=say), sep="/")
                flat |= {f"{part}/{leaf}": each for leaf, each in found.items()}
        return traverse_util.unflatten_dict(flat, sep="/")
    if is_published_part(Path(path).expanduser()):
        return _published_weights(Path(path).expanduser(), template, network, partial, say)
    folder, step = _located(Path(path).expanduser())
    with Checkpoints(folder, readonly=True, say=say) as checkpoints:
        average = ema and _average_of(folder)
        return checkpoints.restore_weights(template, ema=average, partial=partial, step=step)[1]


def _published_weights(
    folder: Path, template: Any, network: Any, partial: bool, say: Callable[[str], None] | None
) -> Any:
    params = denoiser_params(folder, template, network, partial=partial)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    new = [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if not _is_read(leaf)]
    if new and jax.process_index() == 0:
        (say or print)(f"{len(new)} of {len(leaves)} leaves are new: {', '.join(new)}")
    return params


def _is_read(leaf: Any) -> bool:
    return not isinstance(leaf, jax.ShapeDtypeStruct)


def read_codec(config: Kind, mesh: Mesh, near: str | os.PathLike[str] | None = None) -> tuple[Kind, Codec]:
    """The codec of a configuration, on the devices, and the configuration with what the codec's recipe notes.

    Args:
        config: resolved.
        mesh: the devices, over which a codec's weights are split as those that are trained.
        near: the run's folder, from where its codec's weights are looked for too; None: ``config.folder``.

    Raises:
        ConfigError: the weights' folder is not found.
        CheckpointError: weights that cannot be read, or that are others than those noted.
    """
    near = config.folder if near is None else near

    def read(path: str, step: int | None, checksum: str | None, part: str) -> Weights:
        folder = find_run(path, near, known=checksum is not None, step=None if checksum is None else step)
        if is_published_part(folder):
            loaded = load_part(folder, lambda shapes: split_sharding(shapes, mesh), part)
            known = FrozenWeights(name="codec", path=str(folder), step=0, checksum=checksum)
            now = _with_checksum(known, loaded.params)
            assert now.checksum is not None
            return Weights(loaded.net, loaded.params, 0, now.checksum)
        of = read_frozen_config(folder)
        net = build_network(of) if isinstance(of, RunConfig) else of.network
        net = net[AUTOENCODER] if isinstance(of, AutoencoderConfig) else net
        template = params_template(net, mesh)
        named = FrozenWeights(name="codec", path=str(folder), step=step, checksum=checksum)
        if isinstance(of, AutoencoderConfig):  # its critic stays there
            params, now = _checked(named, {AUTOENCODER: template})
            params = params[AUTOENCODER]
        else:
            params, now = _checked(named, template)
        assert now.step is not None and now.checksum is not None
        return Weights(net, params, now.step, now.checksum)

    with as_config_error("codec"):
        recipe, codec = built(config.codec, read)
    whole = NamedSharding(mesh, PartitionSpec())
    return dataclasses.replace(config, codec=recipe), jax.tree.map(lambda leaf: _on(leaf, whole), codec)


def read_cached(config: RunConfig, source: Source, codec: Codec, mesh: Mesh) -> Source:
    """A source with the work of its codec's frozen weights done, once and for all: `jaxdiff.data.encoded`.

    All processes call it: each does its part on its own devices. Where there is no such work, or the data hold its
    result, the source stays as it is.

    Args:
        config: from `read_codec`: its codec has the checksum noted.
        source: of the records.
        codec: from `read_codec`.
        mesh: on which the codec lies.

    Raises:
        ConfigError, DataError: see `jaxdiff.codecs.recipe.Cacheable` and `encode_once`.
    """

    def of(codec: Any, bucket: Source) -> Any:
        x: Any = bucket.spec["x"]
        return codec if bucket is source else codec.sized(jax.ShapeDtypeStruct((1, *x.shape), x.dtype))

    def spec_of(bucket: Source) -> Mapping[str, Any]:
        return of(codec, bucket).cached_spec(bucket.spec) if hasattr(codec, "cached_spec") else {}

    with as_config_error("codec"):
        if not any(map(spec_of, buckets_of(source))):
            return source
    processes = jax.process_count()
    if processes > 1:
        mesh = make_mesh(devices=jax.local_devices())
        codec = read_codec(config, mesh)[1]
    over, batch = batch_sharding(mesh), ENCODED_AT_ONCE * mesh.size
    precompute = jax.jit(lambda codec, record: codec.precompute(record), in_shardings=(None, over), out_shardings=over)

    def encoded(bucket: Source) -> Source:
        mine, spec = of(codec, bucket), spec_of(bucket)
        return encode_once(
            bucket,
            lambda record: precompute(mine, {name: record[name] for name in spec}),
            spec,
            name=as_lead(cache_name(bucket, config.codec.key)),
            batch=batch,
            folder=config.data.cache_folder,
            part=(jax.process_index(), processes),
        )

    made = source.mapped(encoded) if isinstance(source, Bucketed) else encoded(source)
    meet("encoded")
    return made


def read_text(config: RunConfig, source: Source, codec: Codec, mesh: Mesh) -> KeptText:
    """What a codec's frozen text encoder makes of all captions of a source, done once: `jaxdiff.data.kept_text`.

    All processes call it, as `read_cached`.

    Args:
        config: from `read_codec`: its codec is a `jaxdiff.codecs.WithText`.
        source: with captions.
        codec: from `read_codec`.
        mesh: on which the codec lies.

    Raises:
        DataError: captions that cannot be read, or states that cannot be kept.
    """
    texts, spec, processes = Captions(captions(source), config.tokenizer), codec.spec["text"], jax.process_count()
    assert isinstance(spec, Mapping)
    if processes > 1:
        mesh = make_mesh(devices=jax.local_devices())
        codec = read_codec(config, mesh)[1]
    over = batch_sharding(mesh)
    states = jax.jit(lambda codec, ids: codec.text(ids), in_shardings=(None, over), out_shardings=over)
    made = encode_once(
        texts,
        lambda record: states(codec, record["tokens"]),
        spec,
        name=as_lead(cache_name(texts, config.codec.text_key)),
        batch=ENCODED_AT_ONCE * mesh.size,
        folder=config.data.cache_folder,
        part=(jax.process_index(), processes),
        option="data.cache_text",
    )
    meet("text")
    return KeptText(texts, made, spec)


def _on(leaf: Any, whole: NamedSharding) -> Any:
    """A leaf that lies on the mesh as it is, another one on all of its devices."""
    there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == whole.device_set
    return leaf if there else jax.device_put(leaf, whole)


def read_frozen(
    config: Kind, net: Network, mesh: Mesh, near: str | os.PathLike[str] | None = None
) -> tuple[Kind, Given]:
    """The codec and the weights that a run uses and does not train, from where they lie.

    Args:
        config: resolved; ``frozen`` names the weights, ``train.freeze`` the parts of the network that are not trained.
        net: its network.
        mesh: the devices, over which weights are split as those that are trained (`params_template`).
        near: see `read_codec`.

    Returns:
        The configuration with the step and the checksum of all weights noted, and what each step is given.

    Raises:
        ConfigError: parts that are not trained and no weights for them, or the other way about.
        CheckpointError: weights that cannot be read, or that are others than those noted.
    """
    named, whole = {each.name: each for each in config.frozen}, NamedSharding(mesh, PartitionSpec())
    if bool(config.train.freeze) != (BASE in named):
        raise ConfigError(
            f"{_ADDITIONS.get(type(net), 'train.freeze')}: the parts that are not trained need weights to start with: "
            "--init-from RUN"
            if config.train.freeze
            else f"frozen: weights named {BASE!r} are of train.freeze, which names nothing"
        )
    base: Any = {}
    frozen: dict[str, Any] = {}
    noted = []
    for each in config.frozen:
        if each.name == BASE:
            with as_config_error("train.freeze"):
                template = partition(params_template(net, mesh), config.train.freeze)[1]
            if isinstance(net, TextualInversion):
                del template[ENCODERS]  # which the codec has
            added = type(net) in _ADDITIONS
            within = BASE if begun_as(config) or added else None  # a name that its weights have here alone
            if within is not None and set(template) != {within}:
                others = ", ".join(sorted(set(template) - {within}))
                raise ConfigError(
                    f"train.freeze: of this network {within!r} alone has weights to start with, not {others}"
                )
            of_base = template if within is None else template[within]
            base, now = _checked(each, of_base, config.network if added else None)
            base = base if within is None else {within: base}
        else:
            of = read_config(each.path)
            if isinstance(of, AutoencoderConfig):
                raise ConfigError(
                    f"frozen: {each.path} is an autoencoder, no denoiser; as a codec it is Latents({each.path!r})"
                )
            if isinstance(of, ClassifierConfig):
                raise ConfigError(f"frozen: {each.path} is a classifier, no denoiser: name a diffusion model's run")
            teacher = functional(of.network, tuple(of.codec.spec["x"].shape) if of.codec is not None else None)
            params, now = _checked(each, params_template(teacher, mesh))
            reading = jax.device_put((of.process, of.parameterization), whole)
            frozen[each.name] = NetworkDenoiser(teacher, params, *reading)
        noted.append(now)
    config, codec = read_codec(config, mesh, near)
    if isinstance(net, TextualInversion):
        base[ENCODERS] = net.encoders_of(codec)
    return dataclasses.replace(config, frozen=tuple(noted)), Given(codec, frozen, base)


def begun_as(config: Kind) -> tuple[str, ...]:
    """Which parts of a configuration's network begin as the network that it is made around; none of most."""
    found: tuple[str, ...] = getattr(getattr(config, "network", None), "begun_as", ())
    return found


def read_part(folder: Path, template: Any, *, ema: bool | str = True, step: int | None = None) -> tuple[int, Any]:
    """Weights of some of the networks that a run has trained together: an autoencoder without its critic.

    Args:
        folder: of the checkpoints.
        template: shapes and shardings of the part, under its networks' names.
        ema: as `Checkpoints.restore_weights`.
        step: which; None: the newest that can be read.

    Raises:
        CheckpointError: they cannot be read, or a leaf is missing.
    """
    with Checkpoints(folder, readonly=True) as checkpoints:
        found, params = checkpoints.restore_weights(template, ema=ema, partial=True, step=step)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise CheckpointError(f"{folder} step {found}: it lacks a part of the weights of {', '.join(template)}")
    return found, params


def _checked(each: FrozenWeights, template: Any, network: Any = None) -> tuple[Any, FrozenWeights]:
    """Weights, and what is noted of them. With a network's configuration, one that was published with another is
    refused."""
    if is_published_part(Path(each.path).expanduser()):
        found, params = 0, denoiser_params(Path(each.path).expanduser(), template, network)
    elif (Path(each.path).expanduser() / NETWORK).is_file():
        found, params = 0, network_weights(Path(each.path).expanduser(), template)
    else:
        folder, step = _located(Path(each.path).expanduser())
        with Checkpoints(folder, readonly=True) as checkpoints:
            average = _average_of(folder)
            found, params = checkpoints.restore_weights(template, ema=average, partial=True, step=each.step or step)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise CheckpointError(f"{each.path}: it lacks a part of the weights that are needed ({each.name})")
    return params, _with_checksum(dataclasses.replace(each, step=found), params)


def _with_checksum(each: FrozenWeights, params: Any) -> FrozenWeights:
    """What is noted of weights.

    Raises:
        CheckpointError: they are others than those noted before.
    """
    checksum = str(text_sum([str(number) for number in leaf_sums(jax.tree.leaves(params))]))
    if each.checksum is not None and checksum != each.checksum:
        raise CheckpointError(
            f"{each.path} step {each.step}: its weights are not those that this run began with ({each.name}): bring "
            "them back, or start a new run"
        )
    return dataclasses.replace(each, checksum=checksum)


def with_weights(state: TrainState, weights: Any) -> TrainState:
    """A new state with other weights: parameters and their averages; step, optimizer and history are as they were.

    Args:
        state: the new state, from `create_sharded_state`.
        weights: from `read_weights`; leaves that are `jax.ShapeDtypeStruct` stay the state's own.
    """
    params = jax.tree.map(
        lambda new, own: own if isinstance(new, jax.ShapeDtypeStruct) else new.astype(own.dtype), weights, state.params
    )
    # Copies, not the same arrays: a donated buffer may stand in the state once only.
    averages = {name: jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params) for name in state.ema}
    return dataclasses.replace(state, params=params, ema=averages)


def _average_of(checkpoints: Path) -> str:
    # Checkpoints by themselves, without a run's configuration, have one average of the usual name.
    return first_average(checkpoints.parent) if (checkpoints.parent / CONFIG).is_file() else "ema"


def _located(path: Path) -> tuple[Path, int | None]:
    if not os.path.isdir(path):  # also of a name that is too long for one
        raise CheckpointError(f"{path}: there is no such folder; expected {_EXPECTED}")
    if (path / "checkpoints").is_dir():
        return path / "checkpoints", None
    if path.name.isdigit() and (path / "manifest").is_dir():
        return path.parent, int(path.name)
    if any(entry.name.isdigit() for entry in path.iterdir()):
        return path, None
    raise CheckpointError(f"{path}: holds no checkpoint; expected {_EXPECTED}")
