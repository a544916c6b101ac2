"""What a stranger does wrong with published folders: each mistake is one line that says what came and what to do."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxdiff
from jaxdiff.pretrained import Pretrained, load_lora, load_network, load_pipeline
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from tests.pretrained.test_pipeline import SD, write_pipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
FILES = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json")
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("bad") / "model", {"_class_name": "DDIMScheduler", **SD})


@pytest.fixture(scope="module")
def model(published: Path) -> Pretrained:
    return load_pipeline(published)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "model"))


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # ConfigError and DataError are
        make()
    told = str(error.value)
    assert type(error.value).__name__ in ("PretrainedError", "ConfigError", "DataError"), told
    assert message in told and "\n" not in told, told


def field(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        values = {**json.loads((folder / file).read_text()), **changes}
        (folder / file).write_text(json.dumps(values))

    return change


# --- files that are something else


@pytest.mark.parametrize("file", [*FILES, "tokenizer/tokenizer_config.json", "tokenizer/merges.txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(LFS, "is a pointer of Git LFS"), (b"", "is empty: fetch it again"), (b"<!DOCTYPE html>", "is a web page")],
)
def test_text_that_is_something_else(file: str, content: bytes, message: str, folder: Path) -> None:
    (folder / file).write_bytes(content)
    refused(lambda: load_pipeline(folder), f"{Path(file).name} {message}")


@pytest.mark.parametrize("file", [*FILES, "tokenizer/tokenizer_config.json"])
def test_json_of_another_kind(file: str, folder: Path) -> None:
    text, name = (folder / file).read_text(), Path(file).name
    for content, message in (
        (b"[1, 2]", "is a list, expected an object"),
        (b"NaN", "is a float, expected an object"),
        (b"[" * 100_000, "is no JSON (RecursionError"),
        (text.encode()[:15], "is no JSON (JSONDecodeError"),
        (text.encode("utf-16"), "is text in UTF-16, expected UTF-8"),
    ):
        (folder / file).write_bytes(content)
        refused(lambda: load_pipeline(folder), f"{name} {message}")


def test_a_mark_of_utf_8_is_passed_over(published: Path, folder: Path) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_network(folder / "unet").net == load_network(published / "unet").net


@pytest.mark.parametrize("file", [*FILES[1:], "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"])
def test_a_folder_in_a_files_place(file: str, folder: Path) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    refused(lambda: load_pipeline(folder), Path(file).parent.name)


# --- parts in each other's places


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("vae", "unet", "vae/config.json: is of AutoencoderKL; unet is one of UNet2DModel, UNet2DConditionModel"),
        ("text_encoder", "vae", "is of CLIPTextModelWithProjection; vae is one of AutoencoderKL"),
        ("vae", "text_encoder", "is of AutoencoderKL; text_encoder is one of CLIPTextModel, "),
    ],
)
def test_a_part_of_another_class(one: str, other: str, message: str, folder: Path) -> None:
    shutil.rmtree(folder / other)
    shutil.copytree(folder / one, folder / other)
    refused(lambda: load_pipeline(folder), message.removeprefix("vae/config.json: "))


# --- configurations


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("unet/config.json", "block_out_channels", "x", "block_out_channels is 'x', expected a list"),
        ("unet/config.json", "block_out_channels", None, "block_out_channels is None, expected a list"),
        ("unet/config.json", "block_out_channels", {}, "block_out_channels is {}, expected a list"),
        ("unet/config.json", "block_out_channels", [16.5, 32], "expected a list, each a whole number"),
        ("unet/config.json", "down_block_types", [3, 4], "down_block_types is [3, 4], expected a list, each text"),
        ("unet/config.json", "layers_per_block", 10**9, "layers_per_block is 1000000000, expected at most 256"),
        ("unet/config.json", "norm_num_groups", "8", "norm_num_groups is '8', expected a whole number"),
        ("unet/config.json", "flip_sin_to_cos", "yes", "flip_sin_to_cos is 'yes', expected true or false"),
        ("unet/config.json", "sample_size", [8, "x"], "sample_size is (8, 'x'), expected a whole number of at least 1"),
        ("unet/config.json", "sample_size", [8, 8, 8], "sample_size is (8, 8, 8), expected"),
        ("unet/config.json", "sample_size", 0, "sample_size is 0, expected a whole number of at least 1"),
        ("unet/config.json", "sample_size", 3.5, "sample_size is 3.5, expected a whole number of at least 1"),
        ("vae/config.json", "scaling_factor", float("nan"), "scaling_factor is nan, expected a number"),
        ("vae/config.json", "latent_channels", "4", "latent_channels is '4', expected a whole number"),
        ("text_encoder/config.json", "hidden_size", "24", "hidden_size is '24', expected a whole number"),
        ("text_encoder/config.json", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, expected at most"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**10, "is 10000000000, expected at most 100000"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", "1000", "is '1000', expected a whole number"),
        ("scheduler/scheduler_config.json", "beta_start", "x", "beta_start is 'x', expected a number"),
        ("scheduler/scheduler_config.json", "beta_end", 3, "beta_end is 3, expected at most 1"),
        (
            "scheduler/scheduler_config.json",
            "beta_start",
            0,
            "beta_start makes betas from 0 to 0.012, expected numbers",
        ),
        ("scheduler/scheduler_config.json", "trained_betas", "x", "trained_betas is 'x', expected a list"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, "x"], "expected a list, each a number"),
        (
            "scheduler/scheduler_config.json",
            "trained_betas",
            [0.1, 0.2],
            "has 2 numbers, and num_train_timesteps is 1000",
        ),
        ("scheduler/scheduler_config.json", "_class_name", None, "names no class, in _class_name"),
        ("scheduler/scheduler_config.json", "_class_name", ["a"], "_class_name is ['a'], expected text"),
        ("unet/config.json", "block_out_channels", [], "block_out_channels is [], expected a list of at least one"),
        ("unet/config.json", "block_out_channels", [-16, 32], "block_out_channels is [-16, 32], expected at least 1"),
        ("unet/config.json", "cross_attention_dim", None, "cross_attention_dim is None, expected a whole number"),
        ("unet/config.json", "in_channels", None, "in_channels is None, expected a whole number"),
        ("unet/config.json", "norm_eps", -1, "norm_eps is -1, expected a number above 0"),
        ("unet/config.json", "norm_eps", None, "norm_eps is None, expected a number"),
        ("unet/config.json", "_class_name", 3, "_class_name is 3, expected text"),
        ("vae/config.json", "scaling_factor", 0, "scaling_factor is 0, expected a number above 0"),
        ("vae/config.json", "scaling_factor", -1, "scaling_factor is -1, expected a number above 0"),
        ("vae/config.json", "scaling_factor", 1e30, "scaling_factor is 1e+30, expected at most 1000000"),
        ("vae/config.json", "shift_factor", float("inf"), "shift_factor is inf, expected at most 1000000"),
        ("vae/config.json", "shift_factor", "x", "shift_factor is 'x', expected a number"),
        ("vae/config.json", "down_block_types", ["DownEncoderBlock2D"], "alone, one for each of block_out_channels"),
        ("text_encoder/config.json", "layer_norm_eps", -1, "layer_norm_eps is -1, expected a number above 0"),
        ("tokenizer/tokenizer_config.json", "pad_token", "zzz", "has the id 514, and its text encoder 514 ids, from 0"),
        ("tokenizer/tokenizer_config.json", "pad_token", ["x"], "a token is ['x'], expected text, or an object"),
        ("model_index.json", "_class_name", ["a", "b"], "_class_name is ['a', 'b'], expected text"),
        ("model_index.json", "controlnet", "x", "controlnet is 'x', expected [LIBRARY, CLASS], or [null, null]"),
        ("model_index.json", "controlnet", ["diffusers"], "controlnet is ['diffusers'], expected [LIBRARY, CLASS]"),
        ("model_index.json", "unet", None, "unet is null or missing, and a StableDiffusionPipeline needs it"),
        ("model_index.json", "unet", [None, "X"], "unet is [None, 'X'], expected [LIBRARY, CLASS]"),
        ("model_index.json", "scheduler", [None, None], "scheduler is null or missing"),
        ("model_index.json", "tokenizer", None, "tokenizer is null or missing"),
        ("model_index.json", "text_encoder", [None, None], "text_encoder is null or missing"),
        ("model_index.json", "vae", None, "vae is null or missing"),
        ("model_index.json", "id2label", {"x": "a"}, "id2label is {'x': 'a'}, expected texts by whole numbers"),
        ("model_index.json", "id2label", {"0": 3}, "id2label is {'0': 3}, expected texts by whole numbers"),
        ("model_index.json", "force_zeros_for_empty_prompt", "no", "is 'no', expected true or false"),
    ],
)
def test_fields_of_another_kind(file: str, name: str, value: Any, message: str, folder: Path) -> None:
    field(file, **{name: value})(folder)
    refused(lambda: load_pipeline(folder), message)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (3, "architectures is 3, expected a list"),
        ([3], "architectures is [3], expected a list, each text"),
        (["BertModel"], "is of 'BertModel', which jaxdiff does not know"),
        (None, "names no class; it reads UNet2DModel, "),
    ],
)
def test_architectures(named: Any, message: str, folder: Path) -> None:
    field("text_encoder/config.json", _class_name=None, architectures=named)(folder)
    refused(lambda: load_pipeline(folder), message)


# --- weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array * np.nan, "conv_in.bias holds numbers that are not finite in float32"),
        (lambda array: np.full(16, np.inf, np.float32), "conv_in.bias holds numbers that are not finite in float32"),
        (lambda array: np.full(16, 1e300), "conv_in.bias holds numbers that are not finite in float32"),
        (lambda array: array.astype(np.int64), "1 are not floating numbers: conv_in.bias is int64"),
        (lambda array: array > 0, "1 are not floating numbers: conv_in.bias is bool"),
        (lambda array: array[:3], "1 have another shape: conv_in.bias is (3,), expected (16,)"),
    ],
)
def test_numbers_that_are_no_weights(change: Callable[[Any], Any], message: str, folder: Path) -> None:
    tensors = SafeTensors(folder / WEIGHTS)
    arrays = {name: tensors.read(name) for name in tensors}
    arrays["conv_in.bias"] = change(arrays["conv_in.bias"])
    write_safetensors(folder / WEIGHTS, arrays)
    refused(lambda: load_network(folder / "unet"), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_offsets": [0.0, 2304.0]}, "conv_in.weight of shape (16, 4, 3, 3) in bytes 0.0 to 2304.0"),
        ({"data_offsets": [0, 2304]}, "overlap"),
        ({"shape": [16.0, 4, 3, 3]}, "conv_in.weight of shape (16.0, 4, 3, 3)"),
        ({"shape": None}, "conv_in.weight lacks dtype, shape or two data_offsets"),
        ({"dtype": ["F32"]}, "conv_in.weight is of ['F32'], which jaxdiff does not read"),
    ],
)
def test_headers_that_are_damaged(change: dict[str, Any], message: str, folder: Path) -> None:
    def changed(header: dict[str, Any]) -> str:
        return json.dumps({**header, "conv_in.weight": {**header["conv_in.weight"], **change}})

    rewritten(folder / WEIGHTS, changed)
    refused(lambda: load_network(folder / "unet"), message)


def test_a_name_that_stands_twice(folder: Path) -> None:
    def twice(header: dict[str, Any]) -> str:
        return f'{json.dumps(header)[:-1]}, "conv_in.bias": {json.dumps(header["conv_in.bias"])}}}'

    rewritten(folder / WEIGHTS, twice)
    refused(lambda: load_network(folder / "unet"), "its header is damaged (conv_in.bias stands in it twice)")


def rewritten(file: Path, change: Callable[[dict[str, Any]], str]) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length])).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


# --- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', expected 'float32', 'bfloat16', 'float16', or None"),
        ({"dtype": "float64"}, "dtype is 'float64', expected 'float32'"),
        ({"dtype": "float33"}, "dtype is 'float33', expected 'float32'"),
        ({"variant": "fp16"}, "there is no variant 'fp16'; there are the plain files alone"),
        ({"length": 0}, "length is 0, which is of T5's texts: leave it out"),
    ],
)
def test_options_of_loading(options: dict[str, Any], message: str, published: Path) -> None:
    refused(lambda: load_pipeline(published, **options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0, "strict": True}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": -1, "strict": True}, "steps must be a whole number of at least 1, got -1"),
        ({"steps": 10**9, "strict": True}, "steps is 1000000000, expected at most 10000"),
        ({"steps": 10**9}, "steps is 1000000000, expected at most 10000"),
        ({"eta": 2, "strict": True}, "eta is 2, expected a number from 0 to 1"),
        ({"eta": float("nan"), "strict": True}, "eta is nan, expected a number from 0 to 1"),
        ({"eta": 0.5}, "eta is of strict steps: say strict=True, or sampler='ddim:eta=1'"),
        ({"strict": "yes"}, "strict is 'yes', expected True or False"),
        ({"size": 8}, "size is (height, width) in pixels, such as (512, 768), got 8"),
        ({"size": (8.5, 8)}, "size is (height, width) in pixels, such as (512, 768), got (8.5, 8)"),
        ({"size": (0, 8)}, "size is (height, width) from 1 to 32768 pixels, got (0, 8)"),
        ({"size": (10**9, 8)}, "size is (height, width) from 1 to 32768 pixels, got (1000000000, 8)"),
        ({"cond": "a cat"}, "cond is conditions by name, such as {'text': ...}, got 'a cat'"),
    ],
)
def test_arguments_of_sampling(options: dict[str, Any], message: str, model: Pretrained) -> None:
    refused(lambda: model.sample(0, 1, **{"cond": {"text": "a cat"}, "steps": 2, **options}), message)


@pytest.mark.parametrize("value", [3, None, b"x", ["a"]])
def test_what_is_no_path(value: Any, model: Pretrained, published: Path) -> None:
    message = f"expected a path, as text or pathlib.Path, got {value!r}"
    calls: list[Callable[[Any], Any]] = [jaxdiff.load, load_pipeline, load_network, load_lora]
    calls.append(functools.partial(jaxdiff.save_pretrained, model))
    for call in calls:
        refused(functools.partial(call, value), message)
    if value is not None:
        refused(lambda: load_pipeline(published, control=value), message)


def test_a_dtype_that_no_weights_have_is_not_written(model: Pretrained, tmp_path: Path) -> None:
    refused(lambda: jaxdiff.save_pretrained(model, tmp_path / "a", dtype="int8"), "dtype is 'int8', expected 'float32'")
    assert not (tmp_path / "a").exists()


# --- LoRAs

MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = np.ones((4, 16), np.float32), np.ones((16, 4), np.float32)


@pytest.mark.parametrize(
    ("down", "header", "message"),
    [
        (DOWN * np.nan, {}, "lora_A.weight is empty, or holds numbers that are not finite"),
        (DOWN.astype(np.int32), {}, "lora_A.weight is int32, expected floating numbers"),
        (DOWN[:0], {}, "expected (out, r) and (r, in)"),
        (DOWN, {"unet.lora_alpha": "x"}, "alpha of unet.down_blocks.0.attentions.0"),
        (DOWN, {"unet.lora_alpha": [1]}, "is [1], expected a number"),
        (DOWN, {"unet.lora_alpha": float("nan")}, "alpha is empty, or holds numbers that are not finite"),
        (DOWN, {"unet.alpha_pattern": [1]}, "unet.alpha_pattern is a list, expected an object"),
        (DOWN, {"unet.alpha_pattern": {"to_q": "x"}}, "is 'x', expected a number"),
    ],
)
def test_loras(down: Any, header: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": UP if down.size else UP[:, :0]}
    write_safetensors(file, tensors, {"lora_adapter_metadata": json.dumps(header)})
    refused(lambda: load_lora(file), message)


@pytest.mark.parametrize(
    ("weight", "factor", "message"),
    [
        (1e30, 1, "the weight of a LoRA is a number from -1000 to 1000, such as 0.8, got 1e+30"),
        (float("nan"), 1, "such as 0.8, got nan"),
        ("1", 1, "such as 0.8, got '1'"),
        (1, 1e20, "its change is not finite in float32: take a smaller weight"),
    ],
)
def test_loras_that_would_make_nan(weight: Any, factor: float, message: str, model: Pretrained, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_safetensors(file, {f"{MODULE}.lora_A.weight": DOWN * factor, f"{MODULE}.lora_B.weight": UP * factor})
    refused(lambda: model.with_lora(file, weight), message)
