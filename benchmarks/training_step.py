"""What the benchmarks of training share: the step of a configuration, made from shapes alone as `train.py` makes it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdiff.codecs import Latents
from jaxdiff.config import Config, build_loss, build_network, load_config_file
from jaxdiff.train import compile_step, create_sharded_state, make_mesh, make_optimizer, state_template
from jaxdiff.train.sharding import batch_sharding


class Prepared(NamedTuple):
    """A training step before it is compiled.

    Args:
      step: of `compile_step`: ``(state, batch) -> (state, metrics)``, without a codec.
      template: of the state: shapes and shardings.
      batch: of a batch, likewise.
      make_state: makes the state of step 0, of another key if one is passed.
    """

    step: Any
    template: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    make_state: Any

    @property
    def parameters(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.template.params))

    def make_batch(self) -> dict[str, jax.Array]:
        """Noise in the place of images; labels 0."""

        def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            noise = jnp.issubdtype(leaf.dtype, jnp.floating)
            made = jax.random.uniform(jax.random.key(1), leaf.shape, minval=-1.0) if noise else jnp.zeros(leaf.shape)
            return jax.device_put(made.astype(leaf.dtype), leaf.sharding)

        return jax.tree.map(filled, self.batch)


def prepared(config: Config, mesh: Mesh | None = None) -> Prepared:
    """The step of a configuration on a mesh, by default of one device; the data are noise of the shape that its network
    takes."""
    net, loss, key = build_network(config), build_loss(config), jax.random.key(config.seed)
    mesh = make_mesh(data=1) if mesh is None else mesh
    optimizer, schedule = make_optimizer(steps=config.train.steps, **dataclasses.asdict(config.optimizer))
    template = state_template(net, optimizer, loss, key, mesh)
    step = compile_step(
        net=net,
        loss=loss,
        optimizer=optimizer,
        ema=config.ema,
        schedule=schedule,
        accumulate=config.train.accumulate,
        template=template,
    )
    size = config.train.batch_size
    shapes = {"x": ((size, *image_shape(config)), jnp.float32)}
    shapes |= {} if config.num_classes is None else {"label": ((size,), jnp.int32)}
    spread = batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=spread) for name, shape in shapes.items()}
    return Prepared(step, template, batch, lambda key=key: create_sharded_state(net, optimizer, loss, key, mesh))


def image_shape(config: Config) -> tuple[int, ...]:
    """Of one sample: as the data have it, told without reading them."""
    channels = config.network.in_channels
    if config.data.name.startswith("points:"):
        return (channels,)
    if side := getattr(config.network, "image_size", None):
        return (side, side, channels)
    side = config.data.image_size or {"mnist": 28, "cifar10": 32}.get(config.data.name, 8)  # digits: 8
    if isinstance(config.codec, Latents) and config.codec.path is not None:  # the run has its configuration's name
        side //= load_config_file(Path(config.codec.path).name).network.factor
    return (side, side, channels)
