"""Random networks of diffusers and transformers: one class a function, which draws a configuration from the fields in
which published checkpoints differ, and says how the network is called and what it is told.

Arrays go in and come out as here, the channels last.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")
Rng = np.random.Generator


class Original(NamedTuple):
    """A random original.

    Attributes:
      network: theirs.
      call: ``(x, t, cond) -> output`` of torch tensors, x ``(B, H, W, C)``.
      cond: ``(rng, batch, size) -> conditions`` in NumPy, as ours takes them.
      channels: of x.
      sizes: two (height, width) of x.
    """

    network: Any
    call: Callable[[Any, Any, Any], Any]
    cond: Callable[[Rng, int, tuple[int, int]], dict[str, Any]]
    channels: int
    sizes: tuple[tuple[int, int], tuple[int, int]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def disturbed(network: Any, seed: int, spread: float = 0.5) -> Any:
    """With noise on all weights: no gain 1, no bias 0, no last layer 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 40
            weight.add_(spread * fan**-0.5 * torch.randn(weight.shape, generator=generator))
    return network.eval()


def pick(rng: Rng, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def planes(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def pixels(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def normal(rng: Rng, *shape: int) -> Any:
    return rng.normal(size=shape).astype(np.float32)


def widths(rng: Rng, levels: int, groups: int) -> tuple[int, ...]:
    """Of each level: multiples of the first, rising."""
    first = groups * pick(rng, 1, 2)
    return (first, *(first * factor for factor in sorted(pick(rng, 1, 2, 3) for _ in range(levels - 1))))


def unet_2d(rng: Rng) -> Original:
    """DDPM's and the consistency models'."""
    levels, groups = pick(rng, 2, 3), pick(rng, 8, 16, 32)
    attends = [bool(rng.integers(2)) for _ in range(levels)]
    residual, scale_shift, classes = bool(rng.integers(2)), bool(rng.integers(2)), pick(rng, None, 7)
    plain_down, plain_up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    )
    channels, wide = pick(rng, 1, 3), widths(rng, levels, groups)
    flip, shift = pick(rng, (True, 0), (False, 1))
    network = diffusers.UNet2DModel(
        sample_size=2**levels,
        in_channels=channels,
        out_channels=channels * pick(rng, 1, 2),
        block_out_channels=wide,
        layers_per_block=pick(rng, 1, 2),
        down_block_types=tuple("AttnDownBlock2D" if each else plain_down for each in attends),
        up_block_types=tuple("AttnUpBlock2D" if each else plain_up for each in reversed(attends)),
        downsample_type="resnet" if residual else "conv",
        upsample_type="resnet" if residual else "conv",
        downsample_padding=pick(rng, 0, 1),
        flip_sin_to_cos=flip,
        freq_shift=shift,
        norm_num_groups=groups,
        attn_norm_num_groups=groups if scale_shift else None,
        norm_eps=pick(rng, 1e-5, 1e-6),
        attention_head_dim=pick(rng, None, 8, groups),
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=classes,
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        return pixels(network(planes(x), t, class_labels=cond.get("label")).sample)

    def cond(rng: Rng, batch: int, _: Any) -> dict[str, Any]:
        return {} if classes is None else {"label": rng.integers(0, classes, batch)}

    return Original(network, call, cond, channels, ((8, 8), (8, 16)))


def unet_2d_condition(rng: Rng) -> Original:
    """Stable Diffusion 1 and 2, XL and its refiner, inpainting, LCM."""
    levels, groups, context = pick(rng, 2, 3), pick(rng, 8, 16, 32), pick(rng, 16, 24)
    attends = [bool(rng.integers(2)) for _ in range(levels)]
    attends[int(rng.integers(levels))] = True
    wide = widths(rng, levels, groups)
    layers = [int(rng.integers(1, 4)) for _ in range(levels)]
    last = max(level for level in range(levels) if attends[level])
    layers[-1] = layers[last]  # as published: the middle has as many as the last level that has any
    extra, pooled, ids, told = pick(rng, 0, 5, 4), 20, pick(rng, 0, 6), pick(rng, None, 12)
    network = diffusers.UNet2DConditionModel(
        sample_size=2**levels,
        in_channels=4 + extra,
        out_channels=4,
        block_out_channels=wide,
        layers_per_block=pick(rng, 1, 2),
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        cross_attention_dim=context,
        attention_head_dim=pick(rng, 4, 8, tuple(width // 8 for width in wide)),
        transformer_layers_per_block=pick(rng, 1, tuple(layers)),
        use_linear_projection=bool(rng.integers(2)),
        upcast_attention=bool(rng.integers(2)),
        norm_num_groups=groups,
        norm_eps=pick(rng, 1e-5, 1e-6),
        downsample_padding=pick(rng, 0, 1),
        addition_embed_type="text_time" if ids else None,
        addition_time_embed_dim=8 if ids else None,
        projection_class_embeddings_input_dim=pooled + 8 * ids if ids else None,
        time_cond_proj_dim=told,
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        images = [cond[name] for name in ("mask", "masked", "image") if name in cond]
        added = {"text_embeds": cond["text"]["pooled"], "time_ids": cond["time_ids"]} if ids else None
        waves = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        return pixels(
            network(
                planes(torch.cat([x, *images], -1)),
                t,
                cond["text"]["tokens"],
                added_cond_kwargs=added,
                timestep_cond=waves(None, cond["guidance"] - 1, embedding_dim=told) if told else None,
            ).sample
        )

    def cond(rng: Rng, batch: int, size: tuple[int, int]) -> dict[str, Any]:
        text = {"tokens": normal(rng, batch, 7, context), "mask": np.ones((batch, 7), np.float32)}
        found: dict[str, Any] = {"text": text}
        if ids:
            text["pooled"] = normal(rng, batch, pooled)
            found["time_ids"] = rng.integers(0, 1024, (batch, ids)).astype(np.float32)
        if told:
            found["guidance"] = rng.uniform(1, 14, batch).astype(np.float32)
        if extra == 5:
            found["mask"] = rng.integers(0, 2, (batch, *size, 1)).astype(np.float32)
            found["masked"] = normal(rng, batch, *size, 4)
        elif extra:
            found["image"] = normal(rng, batch, *size, 4)
        return found

    return Original(network, call, cond, 4, ((8, 8), (8, 16)))


def dit(rng: Rng) -> Original:
    """DiT in diffusers' layout."""
    size = pick(rng, 8, 16)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=pick(rng, 2, 4),
        attention_head_dim=pick(rng, 8, 12),
        in_channels=4,
        out_channels=pick(rng, 4, 8),
        num_layers=pick(rng, 2, 3),
        sample_size=size,
        patch_size=pick(rng, 2, 4),
        num_embeds_ada_norm=pick(rng, 5, 11),
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        first, *others = network.transformer_blocks
        for block in others:  # as published: each holds a copy
            block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
        return pixels(network(planes(x), t, cond["label"]).sample)

    def cond(rng: Rng, batch: int, _: Any) -> dict[str, Any]:
        return {"label": rng.integers(0, 5, batch)}

    return Original(network, call, cond, 4, ((size, size), (8, 8)))


def pixart(rng: Rng) -> Original:
    """PixArt."""
    heads, depth, channels = pick(rng, 2, 4), pick(rng, 8, 12), pick(rng, 20, 24)
    told = bool(rng.integers(2))  # of its size, by a third of the width for each of three numbers
    heads, depth = (heads, 12) if told else (heads, depth)
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=depth,
        cross_attention_dim=heads * depth,
        num_layers=pick(rng, 2, 3),
        sample_size=pick(rng, 8, 16),
        out_channels=pick(rng, 4, 8),
        caption_channels=channels,
        interpolation_scale=pick(rng, None, 2),
        use_additional_conditions=told,
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        text, sizes = cond["text"], {name: cond.get(name) for name in ("resolution", "aspect_ratio")}
        given = {"encoder_hidden_states": text["tokens"], "encoder_attention_mask": text["mask"]}
        return pixels(network(planes(x), timestep=t, added_cond_kwargs=sizes, **given).sample)

    def cond(rng: Rng, batch: int, _: Any) -> dict[str, Any]:
        lengths = rng.integers(1, 8, batch)
        mask = (np.arange(7)[None] < lengths[:, None]).astype(np.float32)
        text = {"text": {"tokens": normal(rng, batch, 7, channels), "mask": mask}}
        if not told:
            return text
        resolution = rng.integers(256, 2048, (batch, 2)).astype(np.float32)
        return {**text, "resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}

    return Original(network, call, cond, 4, ((8, 8), (12, 16)))


def joint_text(width: int, pooled: int) -> Callable[[Rng, int, Any], dict[str, Any]]:
    def cond(rng: Rng, batch: int, _: Any) -> dict[str, Any]:
        tokens, vector = normal(rng, batch, 7, width), normal(rng, batch, pooled)
        return {"text": {"tokens": tokens, "mask": np.ones((batch, 7), np.float32), "pooled": vector}}

    return cond


def sd3(rng: Rng) -> Original:
    """Stable Diffusion 3 and 3.5."""
    heads, depth, layers = pick(rng, 2, 4), 8, pick(rng, 2, 4)
    text, pooled = pick(rng, 24, heads * depth), 20
    network = diffusers.SD3Transformer2DModel(
        sample_size=pick(rng, 8, 16),
        in_channels=pick(rng, 4, 16),
        out_channels=4,
        num_layers=layers,
        attention_head_dim=depth,
        num_attention_heads=heads,
        joint_attention_dim=text,
        caption_projection_dim=heads * depth,
        pooled_projection_dim=pooled,
        pos_embed_max_size=pick(rng, 12, 24),
        dual_attention_layers=tuple(range(pick(rng, 0, 1, layers - 1))),
        qk_norm=pick(rng, None, "rms_norm"),
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        return pixels(network(planes(x), cond["text"]["tokens"], cond["text"]["pooled"], t).sample)

    return Original(network, call, joint_text(text, pooled), network.config.in_channels, ((8, 8), (8, 16)))


def flux(rng: Rng) -> Original:
    """FLUX.1."""
    axes = pick(rng, (4, 6, 6), (2, 4, 2))
    heads, guided, channels = pick(rng, 1, 2), bool(rng.integers(2)), pick(rng, 1, 4)
    width = heads * sum(axes)
    text, pooled = pick(rng, 24, width), 20
    network = diffusers.FluxTransformer2DModel(
        in_channels=4 * channels,
        num_layers=pick(rng, 1, 2),
        num_single_layers=pick(rng, 1, 3),
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        guidance_embeds=guided,
        axes_dims_rope=axes,
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        batch, height, wide, c = x.shape
        rows, columns = height // 2, wide // 2
        packed = (
            x.reshape(batch, rows, 2, columns, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(batch, rows * columns, 4 * c)
        )
        places = torch.meshgrid(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
        ids = torch.stack(places, -1).reshape(-1, 3)
        tokens, vector = cond["text"]["tokens"], cond["text"]["pooled"]
        none = torch.zeros(tokens.shape[1], 3)
        out = network(packed, tokens, vector, t / 1000, ids, none, guidance=cond.get("guidance")).sample
        return out.reshape(batch, rows, columns, c, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)

    def cond(rng: Rng, batch: int, size: Any) -> dict[str, Any]:
        told = {"guidance": rng.uniform(1, 5, batch).astype(np.float32)} if guided else {}
        return joint_text(text, pooled)(rng, batch, size) | told

    return Original(network, call, cond, channels, ((8, 8), (8, 12)))


ORIGINALS: dict[str, Callable[[Rng], Original]] = {
    "UNet2DModel": unet_2d,
    "UNet2DConditionModel": unet_2d_condition,
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
}
"""Networks that are called as ``(x, t, cond)``, by their class."""


def autoencoder_kl(rng: Rng) -> Any:
    """An `AutoencoderKL`."""
    levels, groups, projections = pick(rng, 2, 3), pick(rng, 8, 32), bool(rng.integers(2))
    return diffusers.AutoencoderKL(
        block_out_channels=widths(rng, levels, groups),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=pick(rng, 1, 2),
        latent_channels=pick(rng, 4, 16),
        norm_num_groups=groups,
        use_quant_conv=projections,
        use_post_quant_conv=projections,
        mid_block_add_attention=bool(rng.integers(4)),
        scaling_factor=pick(rng, 0.18215, 1.5305),
        shift_factor=pick(rng, None, 0.0609),
    )


def clip_text(rng: Rng) -> Any:
    """A `CLIPTextModel`, or one with a projection."""
    heads = pick(rng, 2, 4)
    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=8 * heads,
        intermediate_size=pick(rng, 32, 48),
        num_hidden_layers=pick(rng, 2, 3),
        num_attention_heads=heads,
        max_position_embeddings=16,
        hidden_act=pick(rng, "quick_gelu", "gelu"),
        projection_dim=12,
        bos_token_id=98,
        eos_token_id=pick(rng, 97, 2),
    )
    return pick(rng, transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)(config)


def t5_encoder(rng: Rng) -> Any:
    """A `T5EncoderModel` of version 1.1."""
    config = transformers.T5Config(
        vocab_size=100,
        d_model=pick(rng, 16, 24),
        d_kv=pick(rng, 4, 8),
        d_ff=pick(rng, 32, 48),
        num_layers=pick(rng, 2, 3),
        num_heads=pick(rng, 2, 3),
        relative_attention_num_buckets=pick(rng, 16, 32),
        relative_attention_max_distance=pick(rng, 32, 128),
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config)


ENCODERS: dict[str, Callable[[Rng], Any]] = {"CLIPTextModel": clip_text, "T5EncoderModel": t5_encoder}
"""Text encoders, by their class."""
