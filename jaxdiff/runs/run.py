"""A trained run, reloaded: for notebooks, `sample.py`, and whatever evaluates it.

    run = jaxdiff.Run.load("runs/digits")
    images = run.sample(jax.random.key(0), 10, {"label": range(10)})

A run's folder holds `config.json` (the resolved configuration), `checkpoints/`, and what training wrote for people to
read. Sampling is one jitted function of the denoiser, the sampler, the times, the keys, the labels and the guidance
weight: it compiles again only for another sampler, another number of steps or another batch size.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from jaxdiff.config import (
    TRUSTED,
    Config,
    ConfigError,
    as_config_error,
    as_lead,
    build_network,
    build_sampler,
    read_config,
)
from jaxdiff.config.folder import CHECKPOINTS
from jaxdiff.denoiser import NetCache, NetworkDenoiser
from jaxdiff.generate import generate, generate_kept
from jaxdiff.guidance import ClassifierFree, SparseGuidance
from jaxdiff.images import grid, to_uint8
from jaxdiff.noise import sample_keys
from jaxdiff.process import Process
from jaxdiff.sampling.base import start as begin
from jaxdiff.train import CheckpointError, Checkpoints, StructureError, batch_sharding, make_mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run. Made by `Run.load`, or by training for its own pictures.

    Args:
      config: its resolved configuration.
      denoise: the denoiser of its averaged weights: ``denoise(x, t, {"label": labels})`` gives a `Prediction`.
      step: optimizer steps behind these weights.
      mesh: the devices that batches are split over.
    """

    config: Config
    denoise: NetworkDenoiser
    step: int
    mesh: Mesh
    _checked: set[Any] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        ema: bool = True,
        trusted: Sequence[str] = TRUSTED,
        mesh: Mesh | None = None,
    ) -> Run:
        """Reads a run from its folder. Nothing of the folder is changed.

        Args:
          path: the folder, such as ``runs/digits``.
          step: of the checkpoint; None: the newest that can be read.
          ema: the averaged weights (what to sample from), else those of the last step.
          trusted: modules that the configuration's classes may come from, which are imported; add your own.
          mesh: the devices, each of which gets the whole weights: all processes call it, and get the step that
            process 0 has found. None: this process's, so that each of several samples by itself.

        Raises:
          ConfigError: the folder is not a run's, or its configuration cannot be read.
          CheckpointError: it has no readable checkpoint.
        """
        config = read_config(path, trusted)
        own = make_mesh(devices=jax.local_devices())
        net = build_network(config)
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        whole = NamedSharding(own, PartitionSpec())
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
        with Checkpoints(Path(path).expanduser() / CHECKPOINTS, readonly=True) as checkpoints:
            found, params = _newest_weights(checkpoints, template, ema, step)
            if mesh is not None and (agreed := as_lead(found)) != found:  # a training may be writing newer ones
                found, params = _newest_weights(checkpoints, template, ema, agreed)
        if mesh is not None:
            everywhere = NamedSharding(mesh, PartitionSpec())
            params = jax.tree.map(
                lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), params
            )
        denoise = NetworkDenoiser(net, params, config.process, config.parameterization)
        return cls(config, denoise, found, own if mesh is None else mesh)

    @property
    def process(self) -> Process:
        """The process that the run was trained on."""
        return self.config.process

    @property
    def num_classes(self) -> int | None:
        """Number of labels; None for a run without."""
        return self.config.num_classes

    @property
    def batch_devices(self) -> int:
        """How many parts a batch is split into, when they divide it."""
        return self.mesh.size // self.mesh.shape["tensor"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of one image, or (D,) of a point."""
        if self.config.data.image_shape is None:
            raise ConfigError(
                "data.image_shape is not set: a run's saved configuration has it, filled in from the data"
            )
        return self.config.data.image_shape

    def check(self) -> None:
        """Traces sampling as configured without running it; the weights may be mere shapes.

        Raises:
          ConfigError: the sampler, its times, the parameterization and the network do not fit each other.
        """
        options, shape = self.config.sample, self.shape
        cond = None if self.num_classes is None else {"label": jnp.zeros(2, jnp.int32)}
        weight, null = self._guidance(options.guidance)
        with as_config_error("sample"):
            sampler, ts = build_sampler(self.process, options)
            x: Any = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

            def check_times(params: Any) -> None:
                begin(sampler, dataclasses.replace(self.denoise, params=params), x, ts, cond)

            jax.eval_shape(check_times, self.denoise.params)
            traced = functools.partial(generate, shape=shape, clip=options.clip, sharding=None)
            jax.eval_shape(traced, self.denoise, sampler, sample_keys(jax.random.key(0), 0, 2), ts, cond, weight, null)

    def picture(self) -> NDArray[np.uint8]:
        """``config.picture``, or a grid of ``config.sample.num`` samples, one class a row, NaN grey: uint8 ``(H', W',
        C)``."""
        if self.config.picture is not None:
            drawn: NDArray[np.uint8] = self.config.picture(self)
            return drawn
        cond, columns = rows_of_labels(self.num_classes, self.config.sample.num)
        images = self.sample(self.config.seed, self.config.sample.num, cond)
        return grid(to_uint8(np.nan_to_num(images, posinf=1.0, neginf=-1.0)), columns)

    def measure(self) -> dict[str, float]:
        """What ``config.picture`` measures, by name; nothing where it is a grid of samples."""
        measured: dict[str, float] = {} if self.config.picture is None else self.config.picture.measure(self)
        return measured

    def sample(
        self,
        key: Array | int,
        n: int,
        cond: Mapping[str, ArrayLike] | None = None,
        *,
        sampler: str | Any | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        start: int = 0,
        cache: NetCache | None = None,
        null_every: int | None = None,
        guidance_interval: tuple[float, float] | None = None,
        compiled: str | os.PathLike[str] | None = None,
    ) -> NDArray[np.float32]:
        """Draws samples. What is left out is as the run's configuration says.

        Image i is decided by ``key``, ``start + i`` and its condition alone: its noise is the same bit for bit at any
        batch size and device count.

        Args:
          key: a `jax.random.key`, or a seed.
          n: how many, at least 1.
          cond: ``{"label": l}``, one id or n ids in [0, num_classes], where num_classes means no class. None: no class.
          sampler: a name (ddim, dpmpp_2m, unipc, ...: docs/samplers.md) or a sampler of `jaxdiff.sampling`.
          steps: number of times on the grid.
          spacing: the grid's name (uniform, log_snr, karras, quadratic, trailing).
          guidance: weight of classifier-free guidance: 1 is the plain conditional model, more exaggerates the class.
          batch_size: most samples at once; the last batch is filled up, so that it does not compile again.
          start: index of the first sample: ``sample(key, 8, start=8)`` goes on where ``sample(key, 8)`` ended.
          cache: features to reuse between evaluations: `jaxdiff.networks.DeepCache`, `FirstBlock` or `TaylorSeer`.
          null_every: evaluate guidance's unconditional branch only so often: `SparseGuidance`.
          guidance_interval: the sigma/alpha, from and to, between which there is guidance: `SparseGuidance`.
          compiled: folder that keeps the compiled program for other processes: `jaxdiff.compiled`.

        Returns:
          ``(n, H, W, C)`` float32, about in [-1, 1].

        Raises:
          ConfigError: an argument that is out of range, or that this run cannot follow.
        """
        if n < 1 or start < 0:
            raise ConfigError(f"n must be at least 1 and start at least 0, got {n} and {start}")
        given: dict[str, Any] = {"steps": steps, "grid": spacing, "guidance": guidance, "batch_size": batch_size}
        given |= {"sampler": sampler} if isinstance(sampler, str) else {}
        options = dataclasses.replace(self.config.sample, **{k: v for k, v in given.items() if v is not None})
        arrays = self._condition(cond, n)
        if guidance is not None and (cond is None or self.num_classes is None):
            raise ConfigError("guidance needs labels to guide towards: pass cond={'label': ...}")
        weight, null = self._guidance(options.guidance if cond is not None else None)
        sparse = self._sparse(null_every, guidance_interval, guided=weight is not None)
        denoise = self.denoise if cache is None else dataclasses.replace(self.denoise, cache=cache)
        run = generate if compiled is None else functools.partial(generate_kept, _absolute(compiled))
        size = min(n, options.batch_size)
        with as_config_error("sampling"):
            made, ts = build_sampler(self.process, options)
            made = made if sampler is None or isinstance(sampler, str) else sampler
            self._check_times(made, ts, {name: value[:1] for name, value in arrays.items()})
        sharding = batch_sharding(self.mesh)
        key = jax.random.key(key) if isinstance(key, int | np.integer) else key
        images = []
        for first in range(0, n, size):
            part = {name: jnp.asarray(_filled(value[first : first + size], size)) for name, value in arrays.items()}
            keys, split = sample_keys(key, start + first, size), None if size % self.batch_devices else sharding
            data = (denoise, made, keys, ts, part or None, weight, null, sparse)
            try:
                batch = run(*data, shape=self.shape, clip=options.clip, sharding=split)
            except ValueError as error:  # of tracing: a cache, a sampler or a network that do not fit each other
                raise ConfigError(f"sampling: {error}") from error
            images.append(np.asarray(batch)[: n - first])
        return np.concatenate(images)

    def _sparse(
        self, every: int | None, interval: tuple[float, float] | None, guided: bool
    ) -> tuple[Array | None, Array, Array] | None:
        if every is None and interval is None:
            return None
        if not guided:
            raise ConfigError("null_every and guidance_interval are of guidance, which is not asked for")
        low, high = (0.0, np.inf) if interval is None else interval
        with as_config_error("guidance"):
            SparseGuidance(ClassifierFree(self.denoise, 1.0, {}), self.process, every, low, high)
        return None if every is None else jnp.int32(every), jnp.float32(low), jnp.float32(high)

    def _check_times(self, sampler: Any, ts: Array, cond: Mapping[str, NDArray[Any]]) -> None:
        # May trace the network, so once for the same sampler and times.
        known = (jax.tree.structure(sampler), np.asarray(ts).tobytes())
        if known not in self._checked:
            x: Any = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
            begin(sampler, self.denoise, x, ts, {name: jnp.asarray(value) for name, value in cond.items()} or None)
            self._checked.add(known)

    def _condition(self, cond: Mapping[str, ArrayLike] | None, n: int) -> dict[str, NDArray[Any]]:
        classes = self.num_classes
        if classes is None:
            if cond is not None and "label" in cond:
                raise ConfigError("this run was trained without labels: leave the label out")
            return {name: _per_sample(name, value, n) for name, value in (cond or {}).items()}
        if cond is None:
            cond = {"label": self._null_label("samples without a label")}
        arrays = {name: _per_sample(name, value, n) for name, value in cond.items()}
        if "label" not in arrays:
            raise ConfigError(f"this run is conditioned on labels: pass cond={{'label': ...}}, got {sorted(arrays)}")
        labels = arrays["label"]
        if not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(f"labels are whole numbers, got {labels.dtype.name}")
        if labels.min() < 0 or labels.max() > classes:
            wrong = labels[(labels < 0) | (labels > classes)][0]
            raise ConfigError(f"label {wrong} is out of range: this run knows the labels 0 to {classes - 1}")
        if labels.max() == classes:
            self._null_label(f"label {classes} (no class)")
        return arrays | {"label": labels.astype(np.int32)}

    def _null_label(self, what: str) -> int:
        if self.num_classes is None or self.config.loss.label_dropout == 0:
            raise ConfigError(
                f"{what}: this run was trained with loss.label_dropout 0, so it knows nothing without a label"
            )
        return self.num_classes

    def _guidance(self, weight: float | None) -> tuple[Array | None, dict[str, Array] | None]:
        if weight is None:
            return None, None
        if not np.isfinite(weight):
            raise ConfigError(f"guidance must be a finite number, got {weight}")
        return jnp.float32(weight), {"label": jnp.int32(self._null_label("guidance"))}


def rows_of_labels(
    num_classes: int | None, num: int | None, labels: Sequence[int] = (), most: int = 20
) -> tuple[dict[str, NDArray[np.int32]] | None, int | None]:
    """Labels for a grid of one class a row.

    Args:
      num_classes: of the run; None: no labels.
      num: images in all; None: 10 a class.
      labels: the classes to show; empty: all, or 10 spread over them where there are more than ``most``.

    Returns:
      The condition for `Run.sample` (None without labels), and the grid's columns (None where the rows would differ in
      length).

    Raises:
      ConfigError: labels for a run without, or out of range.

    >>> rows_of_labels(3, 6)
    ({'label': array([0, 0, 1, 1, 2, 2], dtype=int32)}, 2)
    """
    if num_classes is None:
        if labels:
            raise ConfigError("this run was trained without labels: leave the label out")
        return None, None
    for label in labels:
        if not 0 <= label <= num_classes:
            raise ConfigError(f"label {label} is out of range: this run knows the labels 0 to {num_classes - 1}")
    shown = labels or (
        range(num_classes) if num_classes <= most else np.linspace(0, num_classes - 1, 10).astype(int).tolist()
    )
    num = 10 * len(shown) if num is None else num
    rows = np.asarray(shown, np.int32)[np.arange(num) * len(shown) // num]
    return {"label": rows}, num // len(shown) if num % len(shown) == 0 else None


def _newest_weights(checkpoints: Checkpoints, template: Any, ema: bool, step: int | None) -> tuple[int, Any]:
    # Step by step, because the step that was read is part of the answer.
    steps = checkpoints.steps() if step is None else [step]
    for chosen in reversed(steps):
        try:
            return chosen, checkpoints.restore_weights(template, ema=ema, step=chosen)
        except CheckpointError as error:
            if isinstance(error, StructureError) or chosen == steps[0]:
                raise
    raise CheckpointError(f"no checkpoint in {checkpoints.folder}: the run has not saved one yet")


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _per_sample(name: str, value: ArrayLike, n: int) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim == 0:
        array = np.broadcast_to(array, (n,))
    if array.shape[0] != n:
        raise ConfigError(f"cond[{name!r}] has {array.shape[0]} rows for {n} samples: pass one value, or one a sample")
    return array


def _filled(array: NDArray[Any], size: int) -> NDArray[Any]:
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
