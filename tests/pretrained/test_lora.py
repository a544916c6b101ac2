"""LoRA of published networks: what a file holds, what is merged, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.pretrained import PretrainedError, load_lora, write_lora
from jaxdiff.pretrained.adapters.lora import METADATA, Factors, Lora, merged, modules_of, resolved
from jaxdiff.pretrained.adapters.lora_names import spellings
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import FAMILIES, Loaded, family_of
from tests.pretrained.tiny import TINY, tiny

LDM = {  # names of the original code for a U-Net of three levels with two blocks each, as published files have them
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "down_blocks.2.attentions.1.proj_in": "input_blocks_8_1_proj_in",
    "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
    "down_blocks.1.downsamplers.0.conv": "input_blocks_6_0_op",
    "mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
    "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
    "up_blocks.0.attentions.2.proj_in": "output_blocks_2_1_proj_in",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.resnets.0.conv_shortcut": "output_blocks_3_0_skip_connection",
    "up_blocks.2.resnets.2.time_emb_proj": "output_blocks_8_0_emb_layers_1",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
}


def factors(shape: tuple[int, ...], seed: int = 0, rank: int = 2, alpha: float = 3.0) -> Factors:
    rng = np.random.default_rng(seed)
    up = (shape[0], rank, *((1, 1) if len(shape) == 4 else ()))
    return Factors(rng.normal(size=(rank, *shape[1:])).astype("f"), rng.normal(size=up).astype("f"), alpha)


def published(loaded: Loaded) -> Published:
    fields = Fields(loaded.fields)
    return Published(loaded.params, family_of(fields).naming(fields))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in TINY])
def test_every_module_of_every_class_gets_its_change_and_nothing_else_does(name: str) -> None:
    loaded = tiny(name)
    modules = modules_of(loaded)
    changed = {module: factors(shape, i) for i, (module, shape) in enumerate(modules.items()) if i % 2}
    after = merged({"unet": loaded}, Lora({"unet": changed}), 0.5)["unet"]
    before, found = published(loaded), published(after)
    copies = set(family_of(Fields(loaded.fields)).naming(Fields(loaded.fields)).copies)
    for tensor in set(before) - copies:
        each = changed.get(tensor.removesuffix(".weight"))
        wanted = before[tensor]
        if each is not None:
            down, up = each.down.astype(float), each.up.astype(float).reshape(len(each.up), -1)
            more = np.einsum("or,r...->o...", up, down)
            wanted = wanted + 0.5 * 3 / 2 * more.reshape(wanted.shape)
            np.testing.assert_allclose(found[tensor], wanted, rtol=1e-5, atol=1e-5)
        else:
            assert np.array_equal(found[tensor], wanted)


def test_weight_0_is_the_same_and_two_add_up() -> None:
    parts = {"unet": tiny("UNet2DConditionModel"), "text_encoder": tiny("CLIPTextModelWithProjection")}
    lora = Lora({part: {name: factors(shape) for name, shape in modules_of(of).items()} for part, of in parts.items()})
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal,
            {name: each.params for name, each in parts.items()},
            {name: each.params for name, each in merged(parts, lora, 0).items()},
        )
    )
    twice, once = merged(merged(parts, lora, 0.25), lora, 0.5), merged(parts, lora, 0.75)
    for part in parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), twice[part].params, once[part].params)


def test_half_precision_stays_and_is_rounded_once() -> None:
    loaded = tiny("CLIPTextModelWithProjection")
    half = loaded._replace(params=jax.tree.map(lambda leaf: leaf.astype("bfloat16"), loaded.params))
    shape = modules_of(loaded)["text_projection"]
    after = merged({"text_encoder": half}, Lora({"text_encoder": {"text_projection": factors(shape)}}))["text_encoder"]
    kernel = after.params["projection"]["kernel"]
    wanted = half.params["projection"]["kernel"].astype("f") + factors(shape).change().T
    assert kernel.dtype == "bfloat16"
    assert np.array_equal(kernel, wanted.astype("bfloat16"))


SPLIT = """
import jax, numpy as np
from jaxdiff.pretrained.adapters.lora import Lora, merged, modules_of
from tests.pretrained.test_lora import factors, tiny

loaded = tiny("SD3Transformer2DModel")
mesh = jax.make_mesh((2,), ("fsdp",))

def split(leaf):
    axis = next((i for i, size in enumerate(leaf.shape) if size % 2 == 0), None)
    spec = jax.P() if axis is None else jax.P(*[None] * axis, "fsdp")
    return jax.device_put(leaf, jax.NamedSharding(mesh, spec))

lora = Lora({"transformer": {name: factors(shape) for name, shape in modules_of(loaded).items()}})
spread = loaded._replace(params=jax.tree.map(split, loaded.params))
whole, found = (merged({"transformer": each}, lora)["transformer"].params for each in (loaded, spread))
jax.tree.map(np.testing.assert_array_equal, whole, found)
kept = jax.tree.map(lambda old, new: old.sharding == new.sharding, spread.params, found)
print("split", jax.tree.all(kept), sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(found)) > 20)
"""


def test_parameters_stay_split_over_their_devices(run_python: Any) -> None:
    assert "split True True" in run_python("-c", SPLIT, devices=2).stdout


def test_names_of_the_original_code() -> None:
    # all other modules that the levels' shapes are read from
    rows = {f"down_blocks.0.resnets.{i}.conv1" for i in (0, 1)} | {"up_blocks.0.attentions.0.proj_in"}
    known = spellings({*LDM, *rows}, text=False)
    assert {name: known[spelled] for name, spelled in LDM.items()} == {name: name for name in LDM}


ROWS = {  # of the authors' maps: the published weights that their outputs are, one after another
    "FluxTransformer2DModel": {
        "lora_unet_double_blocks_1_txt_attn_qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "diffusion_model.single_blocks.0.linear1": [
            *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
            "single_transformer_blocks.0.proj_mlp",
        ],
        "base_model.model.guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
        "lora_transformer_transformer_blocks_0_ff_net_2": ["transformer_blocks.0.ff.net.2"],
        "lora_unet_final_layer_adaLN_modulation_1": ["norm_out.linear"],
        "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
    },
    "SD3Transformer2DModel": {
        "lora_unet_joint_blocks_0_x_block_attn2_qkv": [f"transformer_blocks.0.attn2.to_{x}" for x in "qkv"],
        "lora_unet_x_embedder_proj": ["pos_embed.proj"],
        "lora_unet_joint_blocks_2_context_block_adaLN_modulation_1": ["transformer_blocks.2.norm1_context.linear"],
        "lora_unet_joint_blocks_3_context_block_adaLN_modulation_1": ["transformer_blocks.3.norm1_context.linear"],
        "joint_blocks.1.x_block.mlp.fc2": ["transformer_blocks.1.ff.net.2"],
    },
}
SHIFT_FIRST = "norm_out.linear", "transformer_blocks.3.norm1_context.linear"  # published with the scale first


@pytest.mark.parametrize("name", ROWS)
def test_maps_of_the_authors_code_are_shared_out(name: str, tmp_path: Path) -> None:
    """`tests/parity/test_lora_originals.py` has all of them, beside diffusers."""
    loaded = tiny(name)
    known = modules_of(loaded)
    tensors: dict[str, Any] = {}
    wanted: dict[str, Any] = {}
    for seed, (module, targets) in enumerate(ROWS[name].items()):
        rows = [known[target][0] for target in targets]
        each = factors((sum(rows), *known[targets[0]][1:]), seed)
        kohya = module.startswith("lora_")
        tensors[f"{module}.{'lora_down' if kohya else 'lora_A'}.weight"] = each.down
        tensors[f"{module}.{'lora_up' if kohya else 'lora_B'}.weight"] = each.up
        tensors[f"{module}.alpha"] = np.float32(each.alpha)
        whole = each.change()
        if targets[0] in SHIFT_FIRST:
            whole = np.concatenate(np.split(whole, 2)[::-1])
        wanted |= dict(zip(targets, np.split(whole, np.cumsum(rows)[:-1]), strict=True))
    file = tmp_path / "lora.safetensors"
    write_safetensors(file, tensors)
    found = resolved({"transformer": loaded}, load_lora(file))["transformer"]
    assert {*found} == {*wanted}
    for target, change in wanted.items():
        np.testing.assert_allclose(found[target].change(), change, rtol=1e-6)


def test_xlabs_and_t5_where_it_is_the_second_encoder(tmp_path: Path) -> None:
    parts = {"transformer": tiny("FluxTransformer2DModel"), "text_encoder_2": tiny("T5EncoderModel")}
    width = modules_of(parts["transformer"])["transformer_blocks.0.attn.to_q"][0]
    text = factors(modules_of(parts["text_encoder_2"])["encoder.block.0.layer.0.SelfAttention.q"])
    both = factors((3 * width, width))
    stems = {"double_blocks.0.processor.qkv_lora1": both, "single_blocks.1.processor.qkv_lora": both}
    tensors = {f"{stem}.{side}.weight": getattr(each, side) for stem, each in stems.items() for side in ("down", "up")}
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_"
    tensors |= {f"{t5}{side}.weight": getattr(text, side) for side in ("down", "up")}
    tensors["diffusion_model.img_in.diff_b"] = np.zeros(3, np.float32)  # changes nothing
    file = tmp_path / "lora.safetensors"
    write_safetensors(file, tensors)
    found = resolved(parts, load_lora(file))
    assert {*found["text_encoder_2"]} == {"encoder.block.0.layer.0.SelfAttention.q"}
    assert {*found["transformer"]} == {
        f"{block}.attn.to_{each}" for block in ("transformer_blocks.0", "single_transformer_blocks.1") for each in "qkv"
    }
    assert {each.alpha for each in found["transformer"].values()} == {2.0}


def test_a_file_written_is_read_again(tmp_path: Path) -> None:
    lora = {
        "unet": {"a.proj_out": factors((4, 3)), "proj_out": factors((4, 3), 1, 5, 2.5), "c": factors((4, 3, 3, 3))},
        "text_encoder": {"encoder.layers.0.mlp.fc1": factors((6, 5), alpha=7.0)},
    }
    write_lora(tmp_path / "new" / "lora.safetensors", lora)
    found = load_lora(tmp_path / "new" / "lora.safetensors")
    found_text = found["text_encoder"]
    assert {*found_text} == {"text_model.encoder.layers.0.mlp.fc1"}  # as diffusers has it, of any transformers
    for part, modules in lora.items():
        for (name, each), (other, again) in zip(modules.items(), found[part].items(), strict=True):
            assert other.endswith(name)
            assert again.alpha == each.alpha
            assert np.array_equal(again.down, each.down)
            assert np.array_equal(again.up, each.up)
    fields = json.loads(SafeTensors(tmp_path / "new" / "lora.safetensors").metadata[METADATA])
    assert fields["unet.alpha_pattern"] == {"^proj_out": 2.5}
    assert fields["unet.r"] == 2


def test_alphas_of_the_header(tmp_path: Path) -> None:
    made = factors((4, 3))
    tensors = {
        f"unet.{name}.lora_{side}.weight": getattr(made, of)
        for name in "ab"
        for side, of in zip("AB", made._fields, strict=False)
    }
    told = {"unet.lora_alpha": 6, "unet.alpha_pattern": {"b": 8}, "unet.use_rslora": True}
    file = tmp_path / "lora.safetensors"
    write_safetensors(file, tensors, {METADATA: json.dumps(told)})
    found = load_lora(file)["unet"]
    root = np.sqrt(2)
    assert (found["a"].alpha, found["b"].alpha) == (pytest.approx(6 * root), pytest.approx(8 * root))
    write_safetensors(file, tensors)
    assert load_lora(file)["unet"]["a"].alpha == 2


def refused(tmp_path: Path, tensors: dict[str, Any], **metadata: str) -> str:
    file = tmp_path / "lora.safetensors"
    write_safetensors(file, {name: np.asarray(each, np.float32) for name, each in tensors.items()}, metadata)
    with pytest.raises(PretrainedError) as caught:
        load_lora(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_lora_is_refused_by_name(tmp_path: Path) -> None:
    down, up = np.ones((2, 3)), np.ones((4, 2))
    good = {"unet.a.lora_A.weight": down, "unet.a.lora_B.weight": up}
    for name, kind in {
        "lora_unet_a.hada_w1_a": "LoHa",
        "lora_unet_a.lokr_w1": "LoKr",
        "lora_unet_a.lora_mid.weight": "third factor",
        "lora_unet_a.dora_scale": "DoRA",
        "unet.a.lora_magnitude_vector": "DoRA",
        "unet.a.lora_embedding_A": "embeddings",
        "double_blocks.0.img_attn.norm.query_norm.scale": "control LoRA of FLUX.1",
        "base_model.model.txt_in.lora_B.bias": "biases",
        "diffusion_model.img_in.diff_b": "whole weight or bias",
    }.items():
        assert name in (said := refused(tmp_path, {**good, name: up}))
        assert kind in said
    assert "1 tensors are not known: unet.a.bias" in refused(tmp_path, {**good, "unet.a.bias": up})
    assert "no_model.a.lora_A.weight" in refused(tmp_path, {"no_model.a.lora_A.weight": down})
    assert "lack their partner: unet.b.lora_A.weight" in refused(tmp_path, {**good, "unet.b.lora_A.weight": down})
    assert "one is too many" in refused(tmp_path, {**good, "unet.a.lora.down.weight": down})
    assert "expected (out, r) and (r, in)" in refused(tmp_path, {**good, "unet.a.lora_B.weight": np.ones((4, 3))})
    assert "holds no tensor" in refused(tmp_path, {})
    assert "unet.use_dora is True" in refused(tmp_path, good, lora_adapter_metadata='{"unet.use_dora": true}')
    assert "own weights" in refused(tmp_path, good, lora_adapter_metadata='{"unet.init_lora_weights": "pissa_niter_4"}')
    assert "cannot be read" in refused(tmp_path, good, lora_adapter_metadata="{")
    assert "cannot be read" in refused(tmp_path, good, lora_adapter_metadata="[]")
    assert "alpha_pattern cannot" in refused(tmp_path, good, lora_adapter_metadata='{"unet.alpha_pattern": {"(": 1}}')
    with pytest.raises(PretrainedError, match="there is no such file"):
        load_lora(tmp_path / "none")
    with pytest.raises(PretrainedError, match="nothing to write"):
        write_lora(tmp_path / "x.safetensors", {"unet": {}})


def test_a_lora_of_another_model_is_refused_by_name() -> None:
    parts = {"unet": tiny("UNet2DConditionModel")}
    shape = modules_of(parts["unet"])["conv_in"]
    for modules, said in [
        ({"text_encoder": {"a": factors((4, 3))}}, "changes text_encoder, which this model has not; it has unet"),
        ({"unet": {"nowhere": factors((4, 3))}}, "1 modules are no modules of unet: nowhere"),
        ({"unet": {"conv_in": factors((4, 3))}}, "the change of unet.conv_in is (4, 3), and the weight"),
        ({"unet": {"conv_in": factors(shape), "input_blocks_0_0": factors(shape)}}, "twice"),
        ({"unet": {"double_blocks.0.img_mlp.0": factors((4, 3))}}, "are no modules of unet: double_blocks.0.img_mlp.0"),
    ]:
        with pytest.raises(PretrainedError, match=re.escape(said)):
            resolved(parts, Lora(modules))
    flux = {"transformer": tiny("FluxTransformer2DModel")}
    qkv, xlabs = "double_blocks.0.img_attn.qkv", "double_blocks.0.processor.qkv_lora1"
    for modules, said in [
        ({"unet": {qkv: factors((4, 3))}}, f"the change of transformer.{qkv} is (4, 3), and the weight (48, 16)"),
        ({"unet": {qkv: factors((48, 16)), xlabs: factors((48, 16))}}, "changes transformer_blocks.0.attn.to_q of"),
    ]:
        with pytest.raises(PretrainedError, match=re.escape(said)):
            resolved(flux, Lora(modules))
    for weight in (float("nan"), "1", True):
        with pytest.raises(PretrainedError, match="the weight of a LoRA is a number"):
            merged(parts, Lora({}), weight)  # type: ignore[arg-type]
