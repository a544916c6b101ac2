"""A trained classifier of noisy samples: what it says of them, and how right it is by noise level.

run = jaxdiff.load("runs/digits_classifier")
run.log_prob(x, t)                                   # (B, classes), of x_t as the model sees it
jaxdiff.load("runs/digits").sample(0, 10, {"label": range(10)}, guide="classifier:2,run=runs/digits_classifier")
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
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.classifier import LABEL, NetworkClassifier
from jaxdiff.config import TRUSTED, ClassifierConfig, ConfigError, as_config_error, build_network, read_config
from jaxdiff.config.classifier import no_sampler
from jaxdiff.config.folder import CHECKPOINTS
from jaxdiff.launch.errors import refuse_unknown
from jaxdiff.networks.placement import parts_of, samples_over
from jaxdiff.noise import as_key, salted_keys, sample_keys, white_noise
from jaxdiff.process import Process
from jaxdiff.runs.examples import read_examples
from jaxdiff.train import Checkpoints, batch_sharding, check_heads, make_mesh, params_template
from jaxdiff.train.ema import rules_by_name
from jaxdiff.train.initial import read_codec

SHOWN_TIMES = 16
"""Rows of a picture."""
CELL = 6
"""Pixels along a side of one of a picture's squares."""


@dataclasses.dataclass(frozen=True)
class ClassifierRun:
    """A trained classifier of noisy samples. Made by `jaxdiff.load` or `jaxdiff.fit`, or in training for its pictures.

    Args:
      config: its resolved configuration.
      classifier: its network with the averaged weights, for `jaxdiff.guidance.ClassifierGuidance`.
      codec: between stored records and what the network sees.
      step: optimizer steps behind its weights.
      mesh: the devices that batches are split over.
      examples: some training records as stored, for pictures.
      folder: where it lies; None: nowhere.
    """

    config: ClassifierConfig
    classifier: NetworkClassifier
    codec: Any
    step: int
    mesh: Mesh
    examples: Mapping[str, NDArray[Any]] | None = None
    folder: Path | None = None

    @classmethod
    def of(
        cls,
        config: ClassifierConfig,
        params: Any,
        step: int,
        mesh: Mesh,
        *,
        codec: Any = None,
        examples: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> ClassifierRun:
        """The run of a configuration and weights; arguments as `jaxdiff.runs.Run.of`."""
        if codec is None:
            codec = read_codec(config, mesh, near=folder)[1]
        shape = tuple(1 if size is None else size for size in codec.spec["x"].shape)
        parts = build_network(config), params, config.process, config.parameterization, config.network.classes
        return cls(config, NetworkClassifier(*parts, shape=shape), codec, step, mesh, examples, folder)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        ema: bool | str = True,
        trusted: Sequence[str] = TRUSTED,
        mesh: Mesh | None = None,
    ) -> ClassifierRun:
        """Reads a run from its folder. Nothing of the folder is changed. Arguments as `jaxdiff.runs.Run.load`.

        Raises:
          ConfigError: the folder is not a classifier's run, or its configuration cannot be read.
          CheckpointError: it has no readable checkpoint.
        """
        folder = Path(path).expanduser()
        config = read_config(folder, trusted)
        if not isinstance(config, ClassifierConfig):
            raise ConfigError(f"{str(path)!r} is the run of no classifier: load it by jaxdiff.load")
        averages = list(rules_by_name(config.ema))
        refuse_unknown("average of the weights", [ema] if isinstance(ema, str) else [], averages)
        mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
        with as_config_error("mesh"):
            check_heads(config.network, mesh)
        template = params_template(build_network(config), mesh)
        with Checkpoints(folder / CHECKPOINTS, readonly=True) as checkpoints:
            average = averages[0] if ema is True else ema
            found, params = checkpoints.restore_weights(template, ema=average, step=step)
        return cls.of(config, params, found, mesh, examples=read_examples(folder), folder=folder)

    @property
    def process(self) -> Process:
        """The process that it was trained on."""
        return self.config.process

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x."""
        shape = self.classifier.shape
        assert shape is not None
        return shape

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return self.classifier.classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, in order of their labels; () where they have none."""
        return self.config.data.classes or ()

    def log_prob(self, x: ArrayLike, t: ArrayLike) -> Array:
        """ln p(y | x_t) of each class.

        Args:
          x: noisy samples ``(B, ...)``, as the network of a diffusion model sees them.
          t: their times, ``()`` or ``(B,)``, from 0 (data) to 1.

        Returns:
          ``(B, classes)``.

        Raises:
          ConfigError: samples of another shape.
        """
        with as_config_error("log_prob"):
            found: Array = _log_prob(self.classifier, jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32))
            return found

    def check(self) -> None:
        """Traces the classifier without running it; the weights may be mere shapes.

        Raises:
          ConfigError: data, network and parameterization do not fit each other.
        """
        with as_config_error("network"):
            x = jax.ShapeDtypeStruct((2, *self.shape), jnp.float32)
            made = jax.eval_shape(lambda each, x: each.log_prob(x, jnp.full(2, 0.5)), self.classifier, x)
            if made.shape != (2, self.num_classes):
                raise ValueError(f"its output is to be logits (batch, {self.num_classes}), got {made.shape}")

    def sample(self, *arguments: Any, **options: Any) -> Any:
        """There is nothing to sample from.

        Raises:
          ConfigError: always, with what to do.
        """
        del arguments, options
        raise ConfigError(no_sampler(self.folder or self.config.folder))

    def told(self, record: Mapping[str, Any], keys: Array, ts: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        """What it says of stored records with noise on them.

        Args:
          record: as stored, with labels, the batch first.
          keys: of the noise, one a sample ``(B,)``; each time has noise of its own.
          ts: the times of each sample ``(B, K)``.

        Returns:
          ln p(label | x_t), and whether the label has the largest probability, ``(B, K)`` each.
        """
        sharding = batch_sharding(self.mesh)
        n = len(record[LABEL])
        rows = np.minimum(np.arange(-(-n // parts_of(sharding)) * parts_of(sharding)), n - 1)
        filled = jax.tree.map(lambda leaf: leaf[rows], ({**record}, keys, jnp.asarray(ts, jnp.float32)))
        log_prob, right = _told(self.classifier, self.codec, *filled, sharding=sharding)
        return np.asarray(log_prob)[:n], np.asarray(right)[:n]

    def picture(self) -> NDArray[np.uint8]:
        """How probable it finds each example's label, from black (0) to white (1): a column an example, in order of the
        labels, a row a time, from data at the top to noise: uint8 ``(H', W', 1)``."""
        assert self.examples is not None, "a run has examples from its training on"
        order = np.argsort(self.examples[LABEL], kind="stable")[: self.config.shown]
        record = {name: value[order] for name, value in self.examples.items()}
        least = float(self.process.min_time())
        ts = least + (np.arange(SHOWN_TIMES) + 0.5) / SHOWN_TIMES * (1 - least)
        keys = sample_keys(as_key(self.config.seed), 0, len(order))
        log_prob, _ = self.told(record, keys, np.broadcast_to(ts, (len(order), SHOWN_TIMES)))
        squares = np.round(255 * np.exp(np.nan_to_num(log_prob.T, nan=-np.inf))).astype(np.uint8)
        return np.kron(squares, np.ones((CELL, CELL), np.uint8))[..., None]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Captions of its picture: none."""
        return ()

    def measure(self) -> dict[str, float]:
        """Nothing beside what each step logs: `jaxdiff evaluate` has the test split's accuracy."""
        return {}


@jax.jit
def _log_prob(classifier: NetworkClassifier, x: Array, t: Array) -> Array:
    return classifier.log_prob(x, t)


@functools.partial(jax.jit, static_argnames=("sharding",))
def _told(
    classifier: NetworkClassifier, codec: Any, record: Any, keys: Array, ts: Array, *, sharding: NamedSharding
) -> tuple[Array, Array]:
    record, keys, ts = jax.lax.with_sharding_constraint((record, keys, ts), sharding)
    label = jnp.asarray(record[LABEL], jnp.int32)
    with samples_over(sharding):
        x0 = codec.encode(record)["x"]

        def at(each: tuple[Array, Array]) -> tuple[Array, Array]:
            number, t = each
            x = classifier.process.perturb(x0, white_noise(salted_keys(keys, number), x0.shape[1:]), t)
            found = classifier.log_prob(x, t)
            return jnp.take_along_axis(found, label[:, None], axis=1)[:, 0], jnp.argmax(found, axis=1) == label

        log_prob, right = jax.lax.map(at, (jnp.arange(ts.shape[1]), ts.T))
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint((log_prob.T, right.T), whole)
