"""Published folders: written, read back bit for bit, split over devices; and what does not fit, by name in one line.

That the numbers are the originals' is for `tests/parity`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import flux, functional, sd3
from jaxdiff.pretrained import PretrainedError, load_network, write_network
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import FAMILIES, family_of
from tests.pretrained.tiny import TINY, tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", TINY)
def test_what_is_written_is_read_bit_for_bit(name: str, tmp_path: Path) -> None:
    made = tiny(name)
    write_network(tmp_path / "new", made)
    found = load_network(tmp_path / "new")
    same(found.params, made.params)
    assert found.net == made.net and found.fields == made.fields
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == sorted(
        ["config.json", FAMILIES[name].stem + ".safetensors"]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
def test_a_dtype_of_the_file_and_of_the_parameters(dtype: str | None, tmp_path: Path) -> None:
    made = tiny("UNet2DModel")
    write_network(tmp_path, made, dtype="float16")
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), made.params)
    found = load_network(tmp_path, dtype=dtype)
    same(found.params, jax.tree.map(lambda leaf: leaf.astype(dtype or np.float16), half))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(dtype or "float16")}


SHARDED = """
import jax, json, sys, numpy as np
from jax.sharding import PartitionSpec
from jaxdiff.pretrained import load_network
from jaxdiff.train import make_mesh
from jaxdiff.train.sharding import split_sharding
folder, found = sys.argv[1], {}
whole = load_network(folder)
for name, axes in (("fsdp", {"data": 1, "fsdp": 8}), ("tensor", {"data": 2, "fsdp": 2, "tensor": 2})):
    mesh = make_mesh(**axes)
    split = load_network(folder, shardings=lambda shapes: split_sharding(shapes, mesh))
    leaves = jax.tree.leaves(split.params)
    jax.tree.map(np.testing.assert_array_equal, split.params, whole.params)
    found[name] = sum(not leaf.sharding.is_fully_replicated for leaf in leaves)
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "name", ["UNet2DConditionModel", pytest.param("FluxTransformer2DModel", marks=pytest.mark.nightly)]
)
def test_weights_are_split_over_devices_as_they_are_read(name: str, tmp_path: Path, run_python: Any) -> None:
    write_network(tmp_path, tiny(name))
    found = json.loads(run_python("-c", SHARDED, tmp_path, devices=8).stdout.splitlines()[-1])
    assert found["fsdp"] > 10 and found["tensor"] > 10


COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "UNet2DModel": (
        {
            "sample_size": 32,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": None,
        },
        35_746_307,
    ),
    "UNet2DConditionModel": ({"cross_attention_dim": 768}, 859_520_964),
    "ControlNetModel": ({"cross_attention_dim": 768}, 361_279_120),
    "DiTTransformer2DModel": ({"out_channels": 8}, 674_834_720),
    "PixArtTransformer2DModel": ({"caption_channels": 4096, "use_additional_conditions": False}, 610_856_096),
}


def test_pixart_alpha_is_told_the_size_at_1024_pixels_alone() -> None:
    """Its two perceptrons, of 256 and 384 numbers to 384."""
    fields = {"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096}
    told = 2 * ((256 * 384 + 384) + (384 * 384 + 384))
    assert parameters({**fields, "sample_size": 64}) == 610_856_096
    assert parameters(fields) == parameters({**fields, "use_additional_conditions": True}) == 610_856_096 + told


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    fields, count = COUNTS[name]
    assert parameters({"_class_name": name, **fields}) == count


def test_published_counts_of_more() -> None:
    """By the configurations that they were published with; SD3's and FLUX's networks are those of jaxdiff by name."""
    sd2 = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    xl = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    }
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    }
    assert parameters({"_class_name": "UNet2DConditionModel", **sd2}) == 865_910_724
    assert parameters({"_class_name": "UNet2DConditionModel", **xl}) == 2_567_463_684
    encoder = {name: value for name, value in xl.items() if name != "up_block_types"}
    assert parameters({"_class_name": "ControlNetModel", **encoder}) == 1_251_014_160
    assert parameters({"_class_name": "AutoencoderKL", **vae}) == 83_653_863
    plain = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    assert parameters({"_class_name": "AutoencoderKL", **vae, **plain}) == 83_819_683
    medium = {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    }
    network = configured({"_class_name": "SD3Transformer2DModel", **medium})
    assert dataclasses.replace(network, out_channels=None) == sd3()
    assert dataclasses.replace(configured({"_class_name": "FluxTransformer2DModel"}), out_channels=None) == flux(
        "schnell"
    )


def configured(fields: dict[str, Any]) -> Any:
    return family_of(Fields(fields)).network(Fields(fields))


def parameters(fields: dict[str, Any]) -> int:
    family = family_of(Fields(fields))
    shapes = jax.eval_shape(family.pure(configured(fields)).init, jax.random.key(0))
    naming = family.naming(Fields(fields))
    tensors = Published(shapes, naming).described()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    fixed = naming.copies.keys() | naming.tables.keys()
    assert sum(math.prod(shape) for name, (_, shape) in tensors.items() if name not in fixed) == count
    return count


# --- what does not fit


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = SafeTensors(folder / WEIGHTS)
    tensors = {name: file.read(name) for name in file}
    change(tensors)
    write_safetensors(folder / WEIGHTS, tensors)


def test_weights_that_do_not_fit_are_listed_by_name(tmp_path: Path) -> None:
    write_network(tmp_path, tiny("UNet2DModel"))
    changed(tmp_path, lambda tensors: tensors.pop("conv_in.bias"))
    refused(lambda: load_network(tmp_path), "do not fit the configuration: 1 tensors are missing: conv_in.bias")
    changed(tmp_path, lambda tensors: tensors.update({"conv_in.bias": np.zeros(3, np.float32), "a.b": np.zeros(2)}))
    message = "1 are not known: a.b; 1 have another shape: conv_in.bias is (3,), expected (16,)"
    refused(lambda: load_network(tmp_path), message)


def test_a_copy_that_is_none_is_refused(tmp_path: Path) -> None:
    write_network(tmp_path, tiny("DiTTransformer2DModel"))
    copy = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
    changed(tmp_path, lambda tensors: tensors.update({copy: tensors[copy] + 1}))
    refused(lambda: load_network(tmp_path), f"{copy} is not transformer_blocks.0.norm1.emb.class_embedder")
    changed(tmp_path, lambda tensors: tensors.pop(copy))  # a copy may be left out
    load_network(tmp_path)


def test_a_table_that_is_computed_is_written_and_another_is_refused(tmp_path: Path) -> None:
    """Stable Diffusion 3's positions: a network is the same with and without them in its file."""
    made, name = tiny("SD3Transformer2DModel"), "pos_embed.pos_embed"
    write_network(tmp_path, made)
    assert SafeTensors(tmp_path / WEIGHTS)[name].shape == (1, 144, 16)
    changed(tmp_path, lambda tensors: tensors.update({name: tensors[name] + 0.1}))
    refused(lambda: load_network(tmp_path), f"{name} is another table than the one that is computed")
    changed(tmp_path, lambda tensors: tensors.pop(name))
    same(load_network(tmp_path).params, made.params)


def test_older_names_are_read(tmp_path: Path) -> None:
    """A `UNet2DModel`'s attention as it was named before diffusers 0.13; an encoder's names with "text_model."."""
    made = tiny("UNet2DModel")
    write_network(tmp_path, made)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            for new, before in old.items():
                if f".{new}." in name:
                    tensors[name.replace(f".{new}.", f".{before}.")] = tensors.pop(name)

    changed(tmp_path, renamed)
    assert any(".proj_attn." in name for name in SafeTensors(tmp_path / WEIGHTS))
    same(load_network(tmp_path).params, made.params)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("UNet2DModel", {"act_fn": "gelu"}, "act_fn is 'gelu'; jaxdiff has 'silu' alone"),
        ("UNet2DModel", {"new": 3}, "new is 3, which jaxdiff does not know"),
        (
            "UNet2DModel",
            {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
            "down_block_types has 'SkipDownBlock2D'",
        ),
        ("UNet2DModel", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "no mirror image of down_block_types"),
        (
            "UNet2DModel",
            {"down_block_types": ["DownBlock2D"]},
            "down_block_types has 1 blocks, and block_out_channels 2",
        ),
        ("UNet2DModel", {"norm_num_groups": 7}, "norm_num_groups is 7, which does not divide (16, 32)"),
        ("UNet2DModel", {"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is not norm_num_groups, 8"),
        ("UNet2DModel", {"attention_head_dim": 5}, "config.json: "),
        (
            "UNet2DModel",
            {"upsample_type": "resnet"},
            "jaxdiff resamples by convolutions, or by residual blocks, every",
        ),
        ("UNet2DConditionModel", {"attention_head_dim": [4, 5]}, "neither the number of heads nor their width"),
        (
            "UNet2DConditionModel",
            {"layers_per_block": [1, 2]},
            "layers_per_block is (1, 2), expected one number for all",
        ),
        ("UNet2DConditionModel", {"transformer_layers_per_block": [1, 2]}, "the middle has as many as the last level"),
        (
            "UNet2DConditionModel",
            {"addition_embed_type": "image"},
            "addition_embed_type is 'image'; jaxdiff has None or",
        ),
        ("UNet2DConditionModel", {"flip_sin_to_cos": False}, "is 'text_time', of which jaxdiff has cosines first"),
        ("AutoencoderKL", {"latents_mean": [0.0]}, "latents_mean is (0.0,); jaxdiff has None alone"),
        ("AutoencoderKL", {"use_quant_conv": False}, "use_post_quant_conv is not use_quant_conv"),
        ("AutoencoderKL", {"block_out_channels": [16, 24]}, "block_out_channels is (16, 24), expected multiples"),
        (
            "DiTTransformer2DModel",
            {"norm_type": "ada_norm"},
            "norm_type is 'ada_norm'; jaxdiff has 'ada_norm_zero' alone",
        ),
        (
            "PixArtTransformer2DModel",
            {"use_additional_conditions": True},
            "is true, and the width 16 is no multiple of",
        ),
        ("PixArtTransformer2DModel", {"caption_channels": None}, "caption_channels is missing"),
        ("SD3Transformer2DModel", {"dual_attention_layers": [1]}, "dual_attention_layers is (1,), expected the first"),
        ("SD3Transformer2DModel", {"caption_projection_dim": 24}, "caption_projection_dim is not 16"),
        ("FluxTransformer2DModel", {"axes_dims_rope": [2, 2, 2]}, "rope=(2, 2, 2) must be even widths"),
        ("FluxTransformer2DModel", {"in_channels": 3}, "in_channels is 3, expected four pixels of latents"),
        ("CLIPTextModelWithProjection", {"hidden_act": "relu"}, "hidden_act is 'relu'; jaxdiff has 'quick_gelu' or"),
        ("T5EncoderModel", {"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'; jaxdiff has 'gated-gelu'"),
    ],
)
def test_a_field_that_is_not_followed_is_refused_by_name(name: str, fields: Any, message: str, tmp_path: Path) -> None:
    values = {"_class_name": name, **TINY[name], **fields}
    (tmp_path / "config.json").write_text(json.dumps(values))
    refused(lambda: load_network(tmp_path), message)
    refused(lambda: load_network(tmp_path), f"{tmp_path}/config.json: ")


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    refused(lambda: load_network(tmp_path / "a"), "/a: there is no such folder")
    refused(lambda: load_network(tmp_path), "there is no config.json")
    for content, message in (
        ("{", "is no JSON (JSONDecodeError"),
        ("[]", "is a list, expected an object of fields"),
        ("{}", "config.json: names no class; it reads UNet2DModel, "),
        ('{"_class_name": "Kandinsky"}', "config.json: is of 'Kandinsky', which jaxdiff does not know; it reads"),
    ):
        (tmp_path / "config.json").write_text(content)
        refused(lambda: load_network(tmp_path), message)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **TINY["UNet2DModel"]}))
    refused(lambda: load_network(tmp_path), f"there is no {WEIGHTS}: fetch the weights beside the configuration")
    (tmp_path / "diffusion_pytorch_model.bin").write_text("")
    refused(
        lambda: load_network(tmp_path), "but diffusion_pytorch_model.bin, a pickle of torch: save it as safetensors"
    )
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1")
    refused(lambda: load_network(tmp_path), "is a pointer of Git LFS")
    (tmp_path / WEIGHTS).write_bytes(b"")
    write_network(tmp_path, tiny("UNet2DModel"))
    refused(lambda: load_network(tmp_path, variant="fp16"), "there is no variant 'fp16'; there are ")
    (tmp_path / "file").write_text("")
    refused(lambda: write_network(tmp_path / "file", tiny("UNet2DModel")), "cannot be written (")


def test_the_pure_functions_run(tmp_path: Path) -> None:
    """A loaded network is one as any other: U-Net of nine channels, with all that it is told."""
    write_network(tmp_path, tiny("UNet2DConditionModel"))
    loaded = load_network(tmp_path)
    assert sorted(loaded.net.cond) == ["guidance", "mask", "masked", "text", "time_ids"]
    x = jnp.zeros((2, 8, 16, 4))
    cond = {
        "text": {"tokens": jnp.ones((2, 3, 24)), "mask": jnp.ones((2, 3)), "pooled": jnp.ones((2, 20))},
        "time_ids": jnp.ones((2, 6)),
        "mask": jnp.ones((2, 8, 16, 1)),
        "masked": jnp.ones((2, 8, 16, 4)),
    }
    told = loaded.net.apply(loaded.params, x, 3.0, cond | {"guidance": jnp.array([2.0, 7.0])})
    assert told.shape == x.shape and not np.allclose(told[0], told[1])
    untold = loaded.net.apply(loaded.params, x, 3.0, cond)
    np.testing.assert_allclose(untold[0], untold[1], rtol=1e-5)
    assert functional(loaded.net.build) == loaded.net
