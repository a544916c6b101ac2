"""Tiny pipelines of diffusers with random weights, one of each class that is read, and how they are called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from tests.parity.originals import diffusers, disturbed, planes, torch, transformers

PROMPTS = ["a red heart", "a photo of a cat, 4k!"]
NEGATIVE = ["bad", "ugly, blurry"]
SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


class Case(NamedTuple):
    """A pipeline.

    Attributes:
      pipe: of diffusers.
      call: ``(pipe, latents, steps) -> latents`` of torch tensors.
      cond: what our model is told.
      options: of our call.
    """

    pipe: Any
    call: Callable[[Any, Any, int], Any]
    cond: dict[str, Any]
    options: dict[str, Any]


def clip_tokenizer(padding: str = "<|endoftext|>") -> Any:
    """CLIP's, of single bytes."""
    alphabet = sorted(transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{each}</w>" for each in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=padding, model_max_length=24)


def t5_tokenizer() -> Any:
    """T5's, of single letters."""
    letters = [(each, -3.0) for each in "▁abcdefghijklmnopqrstuvwxyz0123456789,!"]
    return transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0, model_max_length=20
    )


def clip(kind: str = "CLIPTextModel", width: int = 32, activation: str = "quick_gelu") -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=24,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
    )
    return disturbed(getattr(transformers, kind)(config), 1, 0.3)


def t5(width: int = 24) -> Any:
    config = transformers.T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    return disturbed(transformers.T5EncoderModel(config), 2, 0.3)


def vae(channels: int = 4, **options: Any) -> Any:
    made = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        **options,
    )
    return disturbed(made, 3, 0.3)


def unet(**options: Any) -> Any:
    usual: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "attention_head_dim": 4,
    }
    return disturbed(diffusers.UNet2DConditionModel(**{**usual, **options}), 4, 0.3)


def scheduler(name: str, **options: Any) -> Any:
    return getattr(diffusers, f"{name}Scheduler")(**{**SD, **options})


GUIDED: dict[str, Any] = {"guide": "cfg:7.5", "negative": {"text": NEGATIVE}}


def asked(latents: Any, steps: int, **options: Any) -> dict[str, Any]:
    """What the call of a pipeline has."""
    return {"latents": latents, "num_inference_steps": steps, "output_type": "latent", **options}


def guided(pipe: Any, latents: Any, steps: int, **options: Any) -> Any:
    size = {"height": 16, "width": 16, "guidance_scale": 7.5}
    return pipe(PROMPTS, negative_prompt=NEGATIVE, **asked(latents, steps, **size, **options)).images


def stable_diffusion(name: str = "DDIM", **options: Any) -> Case:
    """Stable Diffusion 1; of 2 the prediction is v."""
    usual = {"clip_sample": False, "set_alpha_to_one": False} if name == "DDIM" else {}
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=scheduler(name, **usual, **options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Case(pipe, guided, {"text": PROMPTS}, GUIDED)


def stable_diffusion_2() -> Case:
    case = stable_diffusion("DPMSolverMultistep", prediction_type="v_prediction")
    case.pipe.register_modules(text_encoder=clip(activation="gelu"), tokenizer=clip_tokenizer("!"))
    return case


def inpainting() -> Case:
    case = stable_diffusion("DDIM")
    parts = {**case.pipe.components, "unet": unet(in_channels=9)}
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    rng = np.random.default_rng(3)
    image = rng.uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    mask = np.zeros((2, 1, 16, 16), np.float32)
    mask[:, :, 4:12, 6:] = 1
    pixels = torch.from_numpy(image * (mask < 0.5))
    with torch.no_grad():
        masked = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        given = {"image": torch.from_numpy(image), "mask_image": torch.from_numpy(mask), "masked_image_latents": masked}
        return guided(pipe, latents, steps, **given)

    small = mask[:, 0, ::2, ::2, None]
    told = {"text": PROMPTS, "mask": small, "masked": masked.permute(0, 2, 3, 1).numpy()}
    return Case(pipe, call, told, GUIDED)


def latent_consistency() -> Case:
    pipe = diffusers.LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(time_cond_proj_dim=16),
        scheduler=scheduler("LCM"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        return pipe(PROMPTS, **asked(latents, steps, height=16, width=16, guidance_scale=6.0)).images

    return Case(pipe, call, {"text": PROMPTS, "guidance": 6.0}, {"guide": ()})


def xl_unet(context: int, ids: int) -> Any:
    return unet(
        cross_attention_dim=context,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 8 * ids,
        transformer_layers_per_block=(2, 2),
    )


def stable_diffusion_xl(zeros: bool = True) -> Case:
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip("CLIPTextModelWithProjection", 48, "gelu"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer("!"),
        unet=xl_unet(80, 6),
        scheduler=scheduler("EulerDiscrete", timestep_spacing="leading"),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        return pipe(PROMPTS, **asked(latents, steps, height=16, width=16, guidance_scale=5.0)).images

    return Case(pipe, call, {"text": PROMPTS}, {"guide": "cfg:5"})


def sdxl_refiner(zeros: bool = False) -> Case:
    """Its picture at the start is the noise: whole latents are given, to which no noise is added."""
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=clip("CLIPTextModelWithProjection", 48, "gelu"),
        tokenizer=None,
        tokenizer_2=clip_tokenizer("!"),
        unet=xl_unet(48, 5),
        scheduler=scheduler("EulerDiscrete", timestep_spacing="leading"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        pipe.scheduler.set_timesteps(steps)
        given = {"image": latents * pipe.scheduler.init_noise_sigma, "denoising_start": 0.0, "strength": 1.0}
        sizes = {"original_size": (16, 16), "target_size": (16, 16), "guidance_scale": 5.0}
        return pipe(PROMPTS, num_inference_steps=steps, output_type="latent", **given, **sizes).images

    return Case(pipe, call, {"text": PROMPTS}, {"guide": "cfg:5"})


def stepped(pipe: Any, latents: Any, **options: Any) -> Any:
    """The last sample of a pipeline that draws its first noise itself and gives pictures alone."""
    last = []
    take = pipe.scheduler.step

    def step(*args: Any, **others: Any) -> Any:
        found = take(*args, **others)
        last.append(found.prev_sample)
        return found

    with (
        mock.patch.object(sys.modules[type(pipe).__module__], "randn_tensor", lambda *_, **__: latents),
        mock.patch.object(pipe.scheduler, "step", step),
    ):
        pipe(**options)
    return last[-1][: len(latents)]


def dit() -> Case:
    """Its pipeline has the null class 1,000, whatever its table has."""
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    network = disturbed(network, 8, 0.3)
    first, *others = network.transformer_blocks
    for block in others:  # as published: each holds a copy
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    linear = scheduler(
        "DDIM", beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, clip_sample=False
    )
    pipe = diffusers.DiTPipeline(transformer=network, vae=vae(), scheduler=linear)

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        return stepped(pipe, latents, class_labels=[3, 207], guidance_scale=4.0, num_inference_steps=steps)

    return Case(pipe, call, {"label": [3, 207]}, {})


def ddpm(name: str = "DDPM", **options: Any) -> Case:
    """Pixels."""
    network = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    made = getattr(diffusers, f"{name}Scheduler")(**options)
    pipe = getattr(diffusers, f"{name}Pipeline")(unet=disturbed(network, 9, 0.3), scheduler=made)

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        return stepped(pipe, latents, batch_size=len(latents), num_inference_steps=steps)

    return Case(pipe, call, {}, {})


def stable_diffusion_3() -> Case:
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=96,
        caption_projection_dim=32,
        pooled_projection_dim=80,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
        out_channels=16,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=disturbed(network, 5, 0.3),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip("CLIPTextModelWithProjection"),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip("CLIPTextModelWithProjection", 48, "gelu"),
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5(96),
        tokenizer_3=t5_tokenizer(),
    )

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        return guided(pipe, latents, steps, max_sequence_length=20)

    return Case(pipe, call, {"text": PROMPTS}, GUIDED)


def flux(dev: bool = True) -> Case:
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
        vae=vae(4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=disturbed(network, 6, 0.3),
    )

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        batch, channels, height, width = latents.shape
        packed = pipe._pack_latents(latents, batch, channels, height, width)
        options = {"height": 16, "width": 16, "guidance_scale": 3.5, "max_sequence_length": 20}
        found = pipe(PROMPTS, **asked(packed, steps, **options)).images
        return pipe._unpack_latents(found, 16, 16, pipe.vae_scale_factor)

    return Case(pipe, call, {"text": PROMPTS} | ({"guidance": 3.5} if dev else {}), {"guide": (), "size": (16, 16)})


def pixart(name: str = "Sigma") -> Case:
    """Alpha is that of 1024 pixels: its pipeline tells it the size where the published side is 128 latents."""
    depth, published, size = (8, 8, (16, 16)) if name == "Sigma" else (12, 128, (24, 16))
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=depth,
        cross_attention_dim=4 * depth,
        num_layers=3,
        sample_size=published,
        caption_channels=24,
    )
    pipe = getattr(diffusers, f"PixArt{name}Pipeline")(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=disturbed(network, 7, 0.3),
        scheduler=scheduler("DPMSolverMultistep", beta_schedule="linear"),
    )

    def call(pipe: Any, latents: Any, steps: int) -> Any:
        options: dict[str, Any] = {"height": size[0], "width": size[1], "guidance_scale": 7.5}
        options |= {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20}
        return pipe(PROMPTS, negative_prompt=NEGATIVE, **asked(latents, steps, **options)).images

    return Case(pipe, call, {"text": PROMPTS}, {**GUIDED, "size": size} if name == "Alpha" else GUIDED)


def length_of(folder: Path) -> int | None:
    """Ids of T5's tokenizer above, where a pipeline has T5."""
    return 20 if "T5" in (folder / "model_index.json").read_text() else None


def channels_last(x: Any) -> Any:
    return x.permute(0, 2, 3, 1).numpy()


__all__ = ["Case", "channels_last", "planes"]
