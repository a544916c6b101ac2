"""The same networks and training step as a good user of Flax would write them, with the library's layers.

`flax.nnx.Conv`, `GroupNorm`, `LayerNorm`, `Linear`, `Embed` and `Dropout`, `jax.image.resize`,
`jax.nn.dot_product_attention`, and a Python loop over the transformer's blocks: the baseline that jaxdiff's forms are
to beat. Parameters carry jaxdiff's names, so that `load` goes by name (`benchmarks.speed.parameters`). Modules are
built as shapes only, so the random keys in them are never drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from benchmarks.speed.parameters import check_same, named
from jaxdiff.networks import DiT, UNet
from jaxdiff.networks.embeddings import position_embedding, timestep_embedding
from jaxdiff.networks.layers import group_count

Apply = Callable[..., Array]


class TimeEmbedding(nnx.Module):
    def __init__(self, frequencies: int, width: int, order: Literal["sin_cos", "cos_sin"], shift: float):
        self.frequencies, self.order, self.shift = frequencies, order, shift
        self.hidden = nnx.Linear(frequencies, width, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(width, width, rngs=nnx.Rngs(0))

    def __call__(self, t: Array) -> Array:
        waves = timestep_embedding(t, self.frequencies, order=self.order, shift=self.shift)
        return self.out(nnx.silu(self.hidden(waves)))


class SelfAttention(nnx.Module):
    def __init__(self, width: int, heads: int, dtype: Any):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=nnx.Rngs(0))

    def __call__(self, x: Array) -> Array:
        batch, length, width = x.shape
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        query, key, value = (y.reshape(batch, length, self.heads, -1) for y in (query, key, value))
        return self.out(jax.nn.dot_product_attention(query, key, value).reshape(batch, length, width))


class ResidualBlock(nnx.Module):
    def __init__(self, config: UNet, inputs: int, outputs: int, resample: str | None = None):
        self.scale_shift, self.resample = config.scale_shift, resample
        self.norm1 = norm(config, inputs)
        self.conv1 = conv(config, inputs, outputs)
        self.embed = nnx.Linear(
            4 * config.width, 2 * outputs if config.scale_shift else outputs, dtype=config.dtype, rngs=nnx.Rngs(0)
        )
        self.norm2 = norm(config, outputs)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv2 = conv(config, outputs, outputs)
        self.skip = None if inputs == outputs else conv(config, inputs, outputs, size=1)

    def __call__(self, x: Array, embedding: Array, rngs: nnx.Rngs | None) -> Array:
        h = nnx.silu(self.norm1(x))
        if self.resample == "up":
            h, x = upsample(h), upsample(x)
        elif self.resample == "down":
            h, x = (nnx.avg_pool(y, (2, 2), strides=(2, 2)) for y in (h, x))
        h = self.conv1(h)
        told = self.embed(embedding)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = self.dropout(nnx.silu(h), deterministic=rngs is None, rngs=rngs)
        return self.conv2(h) + (x if self.skip is None else self.skip(x))


class AttentionBlock(nnx.Module):
    def __init__(self, config: UNet, channels: int):
        self.norm = norm(config, channels)
        heads = channels // config.head_width if config.head_width else config.heads
        self.attention = SelfAttention(channels, heads, config.dtype)

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        return x + self.attention(self.norm(x).reshape(batch, height * width, channels)).reshape(x.shape)


class Stage(nnx.Module):
    def __init__(self, config: UNet, inputs: int, outputs: int, attends: bool):
        self.block = ResidualBlock(config, inputs, outputs)
        self.attention = AttentionBlock(config, outputs) if attends else None

    def __call__(self, x: Array, embedding: Array, rngs: nnx.Rngs | None) -> Array:
        x = self.block(x, embedding, rngs)
        return x if self.attention is None else self.attention(x)


class Resample(nnx.Module):
    def __init__(self, config: UNet, channels: int, direction: str):
        self.direction = direction
        edges = (1, 1) if direction == "up" or config.downsample_padding == "symmetric" else (0, 1)
        self.conv = conv(config, channels, channels, stride=1 if direction == "up" else 2, edges=edges)

    def __call__(self, x: Array, embedding: Array, rngs: nnx.Rngs | None) -> Array:
        return self.conv(upsample(x) if self.direction == "up" else x)


class Level(nnx.Module):
    def __init__(self, stages: list[Stage], resample: ResidualBlock | Resample | None):
        self.stages = nnx.List(stages)
        self.resample = resample


class PlainUNet(nnx.Module):
    """``module(x, t, label, rngs)``; ``rngs`` turns dropout on."""

    def __init__(self, config: UNet):
        self.config = config
        levels = range(len(config.multipliers))
        widths = [config.channels(level) for level in levels]
        attends = [config.image_size // 2**level in config.attention_resolutions for level in levels]

        def resample(level: int, direction: str) -> ResidualBlock | Resample:
            if config.residual_resampling:
                return ResidualBlock(config, widths[level], widths[level], direction)
            return Resample(config, widths[level], direction)

        self.time = TimeEmbedding(config.width, 4 * config.width, config.time_order, config.time_shift)
        self.label = embed(config, 4 * config.width)
        now = widths[0]
        self.conv_in = conv(config, config.in_channels, now)
        skips, down, up = [now], [], []
        for level in levels:
            stages = []
            for _ in range(config.blocks):
                stages.append(Stage(config, now, widths[level], attends[level]))
                now = widths[level]
                skips.append(now)
            last = level == levels[-1]
            down.append(Level(stages, None if last else resample(level, "down")))
            skips += [] if last else [now]
        self.down = nnx.List(down)
        self.middle_in = Stage(config, now, now, True)
        self.middle_out = ResidualBlock(config, now, now)
        for level in reversed(levels):
            stages = []
            for _ in range(config.blocks + 1):
                stages.append(Stage(config, now + skips.pop(), widths[level], attends[level]))
                now = widths[level]
            up.append(Level(stages, resample(level, "up") if level else None))
        self.up = nnx.List(up)
        self.norm_out = norm(config, now)
        self.conv_out = nnx.Conv(now, config.out_channels or config.in_channels, (3, 3), rngs=nnx.Rngs(0))

    def __call__(self, x: Array, t: Array, label: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
        embedding = self.time(t)
        if self.label is not None and label is not None:
            embedding = embedding + self.label(label)
        embedding = nnx.silu(embedding)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for stage in level.stages:
                h = stage(h, embedding, rngs)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, embedding, rngs)
                skips.append(h)
        h = self.middle_out(self.middle_in(h, embedding, rngs), embedding, rngs)
        for level in self.up:
            for stage in level.stages:
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), embedding, rngs)
            if level.resample is not None:
                h = level.resample(h, embedding, rngs)
        return self.conv_out(nnx.silu(self.norm_out(h)).astype(jnp.float32))


class DiTBlock(nnx.Module):
    def __init__(self, config: DiT):
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.norm1, self.norm2 = bare_norm(config), bare_norm(config)
        self.attention = SelfAttention(width, config.heads, config.dtype)
        self.expand = nnx.Linear(width, hidden, dtype=config.dtype, rngs=nnx.Rngs(0))
        self.contract = nnx.Linear(hidden, width, dtype=config.dtype, rngs=nnx.Rngs(0))
        self.modulation = nnx.Linear(width, 6 * width, dtype=config.dtype, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: Array, c: Array, rngs: nnx.Rngs | None) -> Array:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(c)[:, None, :], 6, axis=-1)
        h = self.attention(self.norm1(x) * (1 + scale1) + shift1)
        x = x + gate1 * self.dropout(h, deterministic=rngs is None, rngs=rngs)
        h = self.contract(nnx.gelu(self.expand(self.norm2(x) * (1 + scale2) + shift2), approximate=True))
        return x + gate2 * self.dropout(h, deterministic=rngs is None, rngs=rngs)


class PlainDiT(nnx.Module):
    """``module(x, t, label, rngs)``; ``rngs`` turns dropout on."""

    stacked = ("blocks",)

    def __init__(self, config: DiT):
        self.config = config
        width, side = config.width, (config.patch, config.patch)
        self.patches = nnx.Conv(
            config.in_channels, width, side, strides=side, padding="VALID", dtype=config.dtype, rngs=nnx.Rngs(0)
        )
        self.time = TimeEmbedding(config.frequencies, width, "cos_sin", config.time_shift)
        self.label = embed(config, width)
        self.blocks = nnx.List([DiTBlock(config) for _ in range(config.depth)])
        self.norm = bare_norm(config)
        self.modulation = nnx.Linear(width, 2 * width, rngs=nnx.Rngs(0))
        outputs = (config.out_channels or config.in_channels) * config.patch**2
        self.out = nnx.Linear(width, outputs, rngs=nnx.Rngs(0))

    def __call__(self, x: Array, t: Array, label: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
        c = self.time(t)
        if self.label is not None and label is not None:
            c = c + self.label(label)
        c = nnx.silu(c)
        tokens = self.patches(x)
        batch, rows, columns, width = tokens.shape
        positions = jnp.asarray(position_embedding(rows, columns, width), tokens.dtype)
        tokens = tokens.reshape(batch, rows * columns, width) + positions[None]
        for block in self.blocks:
            tokens = block(tokens, c, rngs)
        shift, scale = jnp.split(self.modulation(c)[:, None, :], 2, axis=-1)
        tokens = self.out(self.norm(tokens) * (1 + scale) + shift)
        patch = self.config.patch
        tokens = tokens.reshape(batch, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return tokens.reshape(batch, rows * patch, columns * patch, -1)


def norm(config: UNet, channels: int) -> nnx.GroupNorm:
    groups = group_count(channels, config.groups)
    return nnx.GroupNorm(channels, groups, epsilon=config.norm_eps, dtype=config.dtype, rngs=nnx.Rngs(0))


def bare_norm(config: DiT) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.width, epsilon=config.norm_eps, use_scale=False, use_bias=False, dtype=config.dtype, rngs=nnx.Rngs(0)
    )


def conv(
    config: UNet, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, edges: tuple[int, int] = (1, 1)
) -> nnx.Conv:
    padding = (edges, edges) if size == 3 else "VALID"
    return nnx.Conv(
        inputs, outputs, (size, size), strides=stride, padding=padding, dtype=config.dtype, rngs=nnx.Rngs(0)
    )  # fmt: skip


def embed(config: UNet | DiT, width: int) -> nnx.Embed | None:
    if config.num_classes is None:
        return None
    return nnx.Embed(config.num_classes + config.null_class, width, rngs=nnx.Rngs(0))


def upsample(x: Array) -> Array:
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")


def load(config: UNet | DiT, params: Mapping[str, Any]) -> tuple[Apply, Any]:
    """The plain form of a network, with jaxdiff's parameters: each parameter of each side is used once.

    Args:
      config: of the network.
      params: a nested dict of arrays, as `jaxdiff.networks.Functional.init` returns.

    Returns:
      ``apply(params, x, t, label, key=None)`` and the parameters it takes; ``key`` turns dropout on.

    Raises:
      ValueError: the two do not hold the same parameters.
    """
    build = PlainUNet if isinstance(config, UNet) else PlainDiT
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: build(config)))  # type: ignore[arg-type]
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(shapes)}
    arrays = named(params, getattr(build, "stacked", ()))
    check_same({k: v.size for k, v in arrays.items()}, {k: v.size for k, v in flat.items()})

    def filled(path: Any, leaf: Any) -> Array:
        name = ".".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)
        return jnp.array(np.reshape(arrays[name], leaf.shape))  # 1x1 and patch convolutions: the same numbers

    def apply(params: Any, x: Array, t: Array, label: Array | None = None, *, key: Array | None = None) -> Array:
        module = nnx.merge(graphdef, params)
        return module(x, t, label, None if key is None else nnx.Rngs(dropout=key)).astype(jnp.float32)

    pure = nnx.to_pure_dict(shapes)
    return apply, jax.tree_util.tree_map_with_path(filled, pure)


def plain_step(apply: Apply, alphas: Array, sigmas: Array, *, lr: float, clip: float, decay: float) -> Any:
    """A training step as users write it: noise, the error in eps, clipping, AdamW, an exponential moving average.

    Args:
      apply: from `load`.
      alphas, sigmas: ``(T,)``, of the chain's steps.
      lr: of AdamW.
      clip: largest global norm of the gradient.
      decay: of the average.

    Returns:
      ``init(params) -> state`` and a jitted ``step(state, image, label, key) -> (state, loss)``, which donates the
      state.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.adamw(lr, weight_decay=0.0))

    def init(params: Any) -> Any:
        return params, jax.tree.map(jnp.copy, params), optimizer.init(params)

    def step(state: Any, image: Array, label: Array | None, key: Array) -> tuple[Any, Array]:
        params, ema, opt_state = state
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t = jax.random.randint(time_key, (len(image),), 0, len(alphas))
        eps = jax.random.normal(noise_key, image.shape)
        x = alphas[t][:, None, None, None] * image + sigmas[t][:, None, None, None] * eps

        def loss(params: Any) -> Array:
            return jnp.mean((apply(params, x, t.astype(jnp.float32), label, key=dropout_key) - eps) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
        return (params, ema, opt_state), value

    return init, jax.jit(step, donate_argnums=0)
