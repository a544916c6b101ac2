"""Random ControlNets of diffusers, as `tests.parity.originals` has other networks, and tiny pipelines with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.parity.originals import Original, Rng, diffusers, disturbed, normal, pick, pixels, planes, torch, widths
from tests.parity.published import GUIDED, PROMPTS, Case, asked, guided, stable_diffusion, stable_diffusion_xl


def controlnet(rng: Rng) -> Original:
    """ControlNet, of Stable Diffusion 1 and XL; all its residuals side by side."""
    levels, groups, context = pick(rng, 2, 3), pick(rng, 8, 16), pick(rng, 16, 24)
    attends = [bool(rng.integers(2)) for _ in range(levels)]
    attends[int(rng.integers(levels))] = True
    wide = widths(rng, levels, groups)
    layers = [int(rng.integers(1, 3)) for _ in range(levels)]
    layers[-1] = layers[max(level for level in range(levels) if attends[level])]
    pooled, ids, halvings, channels = 20, pick(rng, 0, 6), pick(rng, 1, 2), pick(rng, 1, 3)
    network = diffusers.ControlNetModel(
        in_channels=4,
        conditioning_channels=channels,
        block_out_channels=wide,
        layers_per_block=pick(rng, 1, 2),
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        cross_attention_dim=context,
        attention_head_dim=pick(rng, 4, 8, tuple(width // 8 for width in wide)),
        transformer_layers_per_block=pick(rng, 1, tuple(layers)),
        use_linear_projection=bool(rng.integers(2)),
        norm_num_groups=groups,
        norm_eps=pick(rng, 1e-5, 1e-6),
        addition_embed_type="text_time" if ids else None,
        addition_time_embed_dim=8 if ids else None,
        projection_class_embeddings_input_dim=pooled + 8 * ids if ids else None,
        controlnet_conditioning_channel_order=pick(rng, "rgb", "bgr"),
        conditioning_embedding_out_channels=(8, 12, 16)[: halvings + 1],
    )

    def call(x: Any, t: Any, cond: Any) -> Any:
        added = {"text_embeds": cond["text"]["pooled"], "time_ids": cond["time_ids"]} if ids else None
        picture = planes(cond["control"])
        found = network(planes(x), t, cond["text"]["tokens"], picture, added_cond_kwargs=added)
        every = [*found.down_block_res_samples, found.mid_block_res_sample]
        return torch.cat([pixels(each).flatten(1) for each in every], 1)

    def cond(rng: Rng, batch: int, size: tuple[int, int]) -> dict[str, Any]:
        text = {"tokens": normal(rng, batch, 7, context), "mask": np.ones((batch, 7), np.float32)}
        picture = rng.uniform(0, 1, (batch, *(side * 2**halvings for side in size), channels)).astype(np.float32)
        found: dict[str, Any] = {"text": text, "control": picture}
        if ids:
            text["pooled"] = normal(rng, batch, pooled)
            found["time_ids"] = rng.integers(0, 1024, (batch, ids)).astype(np.float32)
        return found

    return Original(network, call, cond, 4, ((8, 8), (8, 16)))


def tiny(seed: int, **options: Any) -> Any:
    """A ControlNet of the tiny pipelines."""
    usual: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "conditioning_embedding_out_channels": (8, 16),
    }
    return disturbed(diffusers.ControlNetModel(**{**usual, **options}), seed, 0.3)


def pictures(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), np.uint8)


def controlled(name: str = "EulerDiscrete", number: int = 1) -> Case:
    """Stable Diffusion 1 with ControlNets."""
    parts = stable_diffusion(name, timestep_spacing="leading").pipe.components
    nets = [tiny(20), tiny(21, controlnet_conditioning_channel_order="bgr")][:number]
    several = number > 1
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=nets if several else nets[0], requires_safety_checker=False
    )
    given, scales = [pictures(30), pictures(31)][:number], [0.8, 0.5][:number]

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        images = [torch.from_numpy(each).permute(0, 3, 1, 2) / 255 for each in given]
        if not several:
            return guided(pipe, latents, steps, image=images[0], controlnet_conditioning_scale=scales[0])
        return guided(pipe, latents, steps, image=images, controlnet_conditioning_scale=scales)

    names = ["controlnet", "controlnet_1"]
    told: dict[str, Any] = {
        "control": dict(zip(names, given, strict=True)) if several else given[0],
        "control_scale": dict(zip(names, scales, strict=True)) if several else scales[0],
    }
    return Case(pipe, call, {"text": PROMPTS}, {**GUIDED, **told})


def controlled_xl() -> Case:
    """Stable Diffusion XL with a ControlNet."""
    case = stable_diffusion_xl()
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
    net = tiny(
        22,
        cross_attention_dim=80,
        projection_class_embeddings_input_dim=48 + 8 * 6,
        transformer_layers_per_block=(2, 2),
        **told,
    )
    parts = {name: each for name, each in case.pipe.components.items() if each is not None}
    pipe = diffusers.StableDiffusionXLControlNetPipeline(**parts, controlnet=net, add_watermarker=False)

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        picture = torch.from_numpy(pictures(32)).permute(0, 3, 1, 2) / 255
        options = {"height": 16, "width": 16, "guidance_scale": 5.0, "controlnet_conditioning_scale": 0.7}
        return pipe(PROMPTS, image=picture, **asked(latents, steps, **options)).images

    return Case(pipe, call, {"text": PROMPTS}, {"guide": "cfg:5", "control": pictures(32), "control_scale": 0.7})
