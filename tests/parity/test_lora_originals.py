"""LoRA files with the names of FLUX.1's and Stable Diffusion 3's own code: the same latents as of diffusers.

Two judges. diffusers' conversion of whole checkpoints says where a weight of that code lies: what is added to a weight
there, converted, is added to the pipeline's. It has every map. And its ``load_lora_weights`` reads FLUX.1's files
itself, but for the maps outside of the blocks, which it leaves out in silence. Both have the published sizes written
into them, which are exchanged here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.pretrained.adapters.lora import Factors
from tests.parity import published
from tests.parity.comparison import apart
from tests.parity.originals import quiet, torch
from tests.parity.test_lora import Pair, random_factors, save

PEFT: Any = pytest.importorskip("peft")
files: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
pipelines: Any = pytest.importorskip("diffusers.loaders.lora_pipeline")
pytestmark = pytest.mark.nightly
W = 32  # the width of both

Shapes = dict[str, tuple[int, ...]]
FLUX_BLOCKS: Shapes = {
    **{
        f"double_blocks.{i}.{stream}_{name}": shape
        for i in range(2)
        for stream in ("img", "txt")
        for name, shape in {
            "mod.lin": (6 * W, W),
            "attn.qkv": (3 * W, W),
            "attn.proj": (W, W),
            "mlp.0": (4 * W, W),
            "mlp.2": (W, 4 * W),
        }.items()
    },
    **{
        f"single_blocks.{i}.{name}": shape
        for i in range(2)
        for name, shape in {"modulation.lin": (3 * W, W), "linear1": (7 * W, W), "linear2": (W, 5 * W)}.items()
    },
}
FLUX: Shapes = {
    **FLUX_BLOCKS,
    "img_in": (W, 16),
    "txt_in": (W, 24),
    "time_in.in_layer": (W, 256),
    "time_in.out_layer": (W, W),
    "vector_in.in_layer": (W, 32),
    "vector_in.out_layer": (W, W),
    "guidance_in.in_layer": (W, 256),
    "guidance_in.out_layer": (W, W),
    "final_layer.adaLN_modulation.1": (2 * W, W),
    "final_layer.linear": (16, W),
}
SD3: Shapes = {
    "x_embedder.proj": (W, 16, 2, 2),
    "context_embedder": (W, 96),
    "t_embedder.mlp.0": (W, 256),
    "t_embedder.mlp.2": (W, W),
    "y_embedder.mlp.0": (W, 80),
    "y_embedder.mlp.2": (W, W),
    "final_layer.adaLN_modulation.1": (2 * W, W),
    "final_layer.linear": (64, W),
    "joint_blocks.0.x_block.attn2.qkv": (3 * W, W),
    "joint_blocks.0.x_block.attn2.proj": (W, W),
    **{f"joint_blocks.{i}.x_block.adaLN_modulation.1": ((6 if i else 9) * W, W) for i in range(3)},
    **{f"joint_blocks.{i}.context_block.adaLN_modulation.1": ((6 if i < 2 else 2) * W, W) for i in range(3)},
    **{f"joint_blocks.{i}.{stream}.attn.qkv": (3 * W, W) for i in range(3) for stream in ("x_block", "context_block")},
    **{
        f"joint_blocks.{i}.{stream}.{name}": shape
        for i in range(3)
        for stream in ("x_block", "context_block")[: 1 + (i < 2)]
        for name, shape in {"attn.proj": (W, W), "mlp.fc1": (4 * W, W), "mlp.fc2": (W, 4 * W)}.items()
    },
}
TEXT = r"(q_proj|fc2|SelfAttention\.v|wi_0|wo)$"


def factors_of(shapes: Shapes, seed: int = 0) -> dict[str, Factors]:
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        up = (shape[0], 3, *((1, 1) if len(shape) == 4 else ()))
        down = rng.normal(size=(3, *shape[1:])) / np.sqrt(np.prod(shape[1:]))
        made[name] = Factors(down.astype("f"), (0.7 * rng.normal(size=up)).astype("f"), 1.5)
    return made


def kohya(name: str, factors: Factors, prefix: str = "unet") -> dict[str, Any]:
    stem = f"lora_{prefix}_{name.replace('.', '_')}"
    sides = {f"{stem}.lora_down.weight": factors.down, f"{stem}.lora_up.weight": factors.up}
    return {**sides, f"{stem}.alpha": np.float32(factors.alpha)}


def resized(function: Any, *changes: tuple[str, str]) -> Any:
    """A function with other numbers in its text."""
    text = inspect.getsource(function)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    found: dict[str, Any] = {}
    exec(text, vars(inspect.getmodule(function)), found)
    return found[function.__name__]


def converted(name: str, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of the weights of the authors' code, as diffusers' conversion of checkpoints puts them."""
    tensors = {f"{each}.weight": torch.from_numpy(value) for each, value in whole.items()}
    tensors |= {f"{each}.bias": torch.zeros(len(value)) for each, value in whole.items()}
    none = torch.zeros(1)
    if name == "SD3":
        return dict(files.convert_sd3_transformer_checkpoint_to_diffusers({**tensors, "pos_embed": none}))
    for i in range(2):
        folders = *(f"double_blocks.{i}.{stream}_attn" for stream in ("img", "txt")), f"single_blocks.{i}"
        tensors |= {f"{folder}.norm.{each}_norm.scale": none for folder in folders for each in ("query", "key")}
    change = resized(files.convert_flux_transformer_checkpoint_to_diffusers, ("inner_dim = 3072", f"inner_dim = {W}"))
    return dict(change(tensors))


def add(module: Any, changes: Mapping[str, Any], sign: int = 1) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name in changes and changes[name].ndim > 1:
                weight += sign * changes[name]


@pytest.mark.parametrize(
    ("make", "shapes", "encoders"),
    [
        (published.flux, FLUX, {"te1": "text_encoder", "te3": "text_encoder_2"}),
        (
            published.stable_diffusion_3,
            SD3,
            {"te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"},
        ),
    ],
    ids=["FLUX", "SD3"],
)
def test_every_map_of_a_file_of_kohya(
    make: Callable[[], Any], shapes: Shapes, encoders: dict[str, str], tmp_path: Path
) -> None:
    pair = Pair(make, tmp_path / "model")
    of_network = factors_of(shapes)
    tensors = {key: each for item in of_network.items() for key, each in kohya(*item).items()}
    name = "SD3" if shapes is SD3 else "FLUX"
    changes = {"transformer": converted(name, {each: its.change() for each, its in of_network.items()})}
    for prefix, part in encoders.items():
        found = random_factors(getattr(pair.pipe, part), TEXT, np.random.default_rng(len(part)), 2.0)
        changes[part] = {f"{each}.weight": torch.from_numpy(its.change()) for each, its in found.items()}
        tensors |= {key: each for item in found.items() for key, each in kohya(*item, prefix).items()}
    file = save(tmp_path / "lora.safetensors", tensors)
    before = pair.theirs()
    for part, each in changes.items():
        add(getattr(pair.pipe, part), each)
    theirs = pair.theirs()
    assert apart(before, theirs) > 0.1
    assert apart(pair.ours(pair.model.with_lora(file)), theirs) < 1e-4


def comfy(name: str, factors: Factors) -> dict[str, Any]:
    sides = {"lora_down.weight": factors.down, "lora_up.weight": factors.up, "alpha": np.float32(factors.alpha)}
    return {f"diffusion_model.{name}.{side}": each for side, each in sides.items()}


def fal(name: str, factors: Factors) -> dict[str, Any]:
    return {
        f"base_model.model.{name}.lora_A.weight": factors.down,
        f"base_model.model.{name}.lora_B.weight": factors.up,
    }


def xlabs(name: str, factors: Factors) -> dict[str, Any]:
    return {f"{name}.down.weight": factors.down, f"{name}.up.weight": factors.up}


def mixture(name: str, factors: Factors) -> dict[str, Any]:
    return kohya(name, factors, "transformer")


XLABS: Shapes = {
    **{
        f"double_blocks.{i}.processor.{name}": (rows * W, W)
        for i in range(2)
        for name, rows in {"qkv_lora1": 3, "qkv_lora2": 3, "proj_lora1": 1, "proj_lora2": 1}.items()
    },
    "single_blocks.1.processor.qkv_lora": (3 * W, W),
    "single_blocks.1.processor.proj_lora": (W, 5 * W),
}
MIXTURE: Shapes = {
    "transformer_blocks.0.attn.to_q": (W, W),
    "transformer_blocks.1.attn.add_k_proj": (W, W),
    "transformer_blocks.1.attn.to_add_out": (W, W),
    "single_transformer_blocks.0.attn.to_v": (W, W),
    "time_text_embed.guidance_embedder.linear_2": (W, W),
    "x_embedder": (W, 16),
    "proj_out": (16, W),
}
COUNTS = ("num_layers = 19", "num_layers = 2"), ("num_single_layers = 38", "num_single_layers = 2")
CASES: dict[str, tuple[Any, Shapes, str | None, tuple[tuple[str, str], ...]]] = {
    "kohya": (kohya, FLUX_BLOCKS, "kohya_flux", (("[3072, 3072, 3072, 12288]", f"[{W}, {W}, {W}, {4 * W}]"),)),
    "ComfyUI": (comfy, FLUX_BLOCKS, "kohya_flux", (("[3072, 3072, 3072, 12288]", f"[{W}, {W}, {W}, {4 * W}]"),)),
    "XLabs": (xlabs, XLABS, None, ()),
    "fal": (
        fal,
        {**FLUX_BLOCKS, "final_layer.linear": (16, W)},
        "fal_kontext",
        (("inner_dim = 3072", f"inner_dim = {W}"), *COUNTS),
    ),
    "mixture": (mixture, MIXTURE, None, ()),
}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(published.flux, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("layout", CASES)
def test_files_of_flux_that_diffusers_reads(
    layout: str, flux: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, shapes, reader, changes = CASES[layout]
    if reader is not None:
        name = f"_convert_{reader}_lora_to_diffusers"
        monkeypatch.setattr(pipelines, name, resized(getattr(pipelines, name), *changes))
    tensors = {key: each for item in factors_of(shapes, 1).items() for key, each in written(*item).items()}
    if layout == "ComfyUI":  # with an encoder, of which diffusers reads the perceptrons alone, and a bias' change of 0
        text = random_factors(flux.pipe.text_encoder, "fc2$", np.random.default_rng(0), 2.0)
        for name, its in text.items():
            stem = f"text_encoders.clip_l.transformer.text_model.{name.removeprefix('text_model.')}"
            tensors |= {f"{stem}.lora_down.weight": its.down, f"{stem}.lora_up.weight": its.up}
            tensors |= {f"{stem}.alpha": np.float32(its.alpha), f"{stem}.diff_b": np.zeros(3, np.float32)}
    file = save(tmp_path / "lora.safetensors", tensors)
    before = flux.theirs()
    with quiet():
        flux.pipe.load_lora_weights(file)
    theirs = flux.theirs()
    flux.pipe.unload_lora_weights()
    assert apart(before, theirs) > 0.1
    assert apart(flux.ours(flux.model.with_lora(file)), theirs) < 1e-4
