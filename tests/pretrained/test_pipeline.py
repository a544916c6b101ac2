"""A published pipeline as one model: our samplers and strict steps on the same network, sizes, texts, and refusals.

That strict steps are diffusers' own is for `tests/parity/test_pipelines.py`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.data.clip_files import padding_token
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.launch.errors import ConfigError
from jaxdiff.pretrained import LongPrompt, Pretrained, PretrainedError, load_pipeline, save_pipeline, write_network
from jaxdiff.pretrained.origin import licence_of
from tests.pretrained.tiny import tiny

tokenizers: Any = pytest.importorskip("tokenizers")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": (
        "UNet2DConditionModel",
        {"sample_size": 8, "in_channels": 4, "time_cond_proj_dim": None, "addition_embed_type": None},
    ),
    "vae": ("AutoencoderKL", {}),
    "text_encoder": ("CLIPTextModelWithProjection", {"vocab_size": 514, "eos_token_id": 513, "hidden_size": 24}),
}


def write_tokenizer(folder: Path, padding: str) -> None:
    """CLIP's, of single bytes."""
    folder.mkdir()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{each}</w>" for each in alphabet), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))


def write_pipeline(
    folder: Path, scheduler: dict[str, Any], parts: dict[str, Any] | None = None, scale: float = 0.05
) -> Path:
    parts = PARTS if parts is None else parts
    for name, (kind, changes) in parts.items():
        made = tiny(kind, **changes)
        quiet = made._replace(params=_scaled(made.params, scale))  # so that the flow is smooth
        write_network(folder / name, quiet)
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    index |= {name: ["library", kind] for name, (kind, _) in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_pixels(folder: Path) -> Path:
    """A DDPM of pixels, ``(4, 4, 3)``, of one level."""
    blocks: dict[str, Any] = {
        "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    }
    made = tiny("UNet2DModel", **blocks, norm_num_groups=4, num_class_embeds=None, sample_size=4)
    write_network(folder / "unet", made._replace(params=_scaled(made.params, 0.05)))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _scaled(tree: Any, factor: float) -> Any:
    return {name: _scaled(leaf, factor) if isinstance(leaf, dict) else factor * leaf for name, leaf in tree.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheduler = {"_class_name": "DPMSolverMultistepScheduler", **SD}
    return write_pipeline(tmp_path_factory.mktemp("published"), scheduler)


@pytest.fixture(scope="module")
def model(folder: Path) -> Pretrained:
    return load_pipeline(folder)


def test_a_text_becomes_a_picture(model: Pretrained, tmp_path: Path) -> None:
    found = model.sample(0, 3, {"text": ["a cat", "a dog", "a cat"]}, steps=3)
    assert found["x"].shape == (3, 16, 16, 3) and found["x"].dtype == np.uint8
    assert found["text"].tolist() == ["a cat", "a dog", "a cat"]
    several, one = (
        model.sample(0, 3, {"text": text}, steps=3, decode=False) for text in (["a cat", "a dog", "a cat"], "a cat")
    )
    np.testing.assert_array_equal(several[[0, 2]], one[[0, 2]])
    assert (several[1] != one[1]).any()
    wide = model.sample(0, 1, {"text": "a cat"}, steps=2, size=(8, 24))["x"]
    assert wide.shape == (1, 8, 24, 3)
    model.save(tmp_path / "x.png", found)
    assert (tmp_path / "x.png").stat().st_size > 100


def test_our_samplers_and_strict_steps_come_to_the_same(model: Pretrained) -> None:
    """On fine grids: the process, what the network is told and its prediction are the scheduler's."""
    x = np.random.default_rng(0).normal(size=(2, *model.model.shape)).astype(np.float32)
    options: dict[str, Any] = {"cond": {"text": "a cat"}, "x": x, "decode": False, "guide": "cfg:2"}
    strict = model.sample(0, 2, strict=True, steps=200, **options)
    ours = model.sample(0, 2, steps=200, **options)
    coarse = model.sample(0, 2, strict=True, steps=5, **options)
    apart = np.abs(ours - strict).max()
    assert apart < 0.02 * np.abs(strict).max() and apart < 0.25 * np.abs(coarse - strict).max()


def test_the_negative_is_the_empty_text_unless_another_is_given(model: Pretrained) -> None:
    options: dict[str, Any] = {"steps": 2, "strict": True, "decode": False, "guide": "cfg:5"}
    left_out = model.sample(0, 1, {"text": "a cat"}, **options)
    np.testing.assert_array_equal(left_out, model.sample(0, 1, {"text": "a cat"}, negative={"text": ""}, **options))
    assert (left_out != model.sample(0, 1, {"text": "a cat"}, negative={"text": "bad"}, **options)).any()
    plain = model.sample(0, 1, {"text": "a cat"}, **{**options, "guide": ()})
    np.testing.assert_allclose(plain, model.sample(0, 1, {"text": "a cat"}, **{**options, "guide": "cfg:1"}), atol=1e-5)


def test_clips_last_blocks_can_be_left_out(model: Pretrained) -> None:
    options: dict[str, Any] = {"steps": 2, "decode": False}
    assert (
        model.sample(0, 1, {"text": "a cat"}, clip_skip=1, **options)
        != model.sample(0, 1, {"text": "a cat"}, **options)
    ).any()


def test_noise_of_strict_steps_is_each_samples_own(model: Pretrained) -> None:
    """At any batch size, from the same key."""
    noisy = dataclasses.replace(model, scheduler={"_class_name": "EulerAncestralDiscreteScheduler", **SD})
    options: dict[str, Any] = {"steps": 4, "strict": True, "decode": False}
    whole = noisy.sample(3, 3, {"text": "a cat"}, **options)
    np.testing.assert_allclose(noisy.sample(3, 3, {"text": "a cat"}, batch_size=1, **options), whole, atol=1e-5)
    np.testing.assert_allclose(noisy.sample(3, 1, {"text": "a cat"}, start=2, **options), whole[2:], atol=1e-5)
    assert (whole[0] != whole[1]).any()


def test_clips_tokenizer_of_its_two_files(tmp_path: Path) -> None:
    """Padding is the end, or "!", which then is the padding wherever it stands, as in the originals."""
    write_tokenizer(tmp_path / "a", "<|endoftext|>")
    write_tokenizer(tmp_path / "b", "!")
    one, other = TokenizerFile(str(tmp_path / "a"), 8, 513), TokenizerFile(str(tmp_path / "b"), 8, 0)
    assert (padding_token(tmp_path / "a"), padding_token(tmp_path / "b")) == ("<|endoftext|>", "!")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    a, b = alphabet.index("a"), alphabet.index("b") + 256
    assert one.ids("AB") == [512, a, b, 513] and one.size == 514
    assert one.encode(["ab"]).tolist() == [[512, a, b, 513, 513, 513, 513, 513]]
    assert one.encode(["abababababab"])[0, -1] == 513  # cut before its end
    assert other.ids("!") == [512, 0, 513] and other.encode([""])[0].tolist() == [512, 513, 0, 0, 0, 0, 0, 0]
    assert alphabet.index("!") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": True, "sampler": "ddim"}, "strict steps are those of the model's scheduler: leave sampler out"),
        ({"strict": True, "guide": ["cfg:2", "interval:0.2,5"]}, "strict steps follow cfg with one weight alone"),
        ({"size": (15, 16)}, "size is (height, width) in multiples of 2 pixels, got (15, 16)"),
        ({"clip_skip": 5}, "skip=5 must be 0 to 1"),
        ({"stepps": 3}, "there is no option 'stepps'"),
        ({"cond": {"text": 3}}, "text: expected a caption, or a list of captions, got 3"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(model: Pretrained, options: dict[str, Any], message: str) -> None:
    cond = options.pop("cond", {"text": "a cat"})
    with pytest.raises(ConfigError) as error:
        model.sample(0, 1, cond, **{"steps": 2, **options})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_none_is_one_line(folder: Path, tmp_path: Path) -> None:
    for place, message in ((tmp_path / "a", "there is no such folder"), (tmp_path, "there is no model_index.json")):
        with pytest.raises(PretrainedError, match=message):
            load_pipeline(place)
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(
        PretrainedError, match="'KandinskyPipeline' is not known; jaxdiff reads StableDiffusionPipeline, "
    ):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(PretrainedError, match="/unet: there is no such folder"):
        load_pipeline(tmp_path)


def test_a_written_model_is_the_same(model: Pretrained, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "again", model)
    again = load_pipeline(tmp_path / "again")
    options: dict[str, Any] = {"steps": 2, "decode": False}
    np.testing.assert_array_equal(
        again.sample(0, 1, {"text": "a cat"}, **options), model.sample(0, 1, {"text": "a cat"}, **options)
    )
    assert again.index["safety_checker"] == [None, None]
    save_pipeline(tmp_path / "again", model, dtype="float16")  # over one that is there
    assert load_pipeline(tmp_path / "again", dtype=None).parts["vae"].params["project_in"]["kernel"].dtype == "float16"


def test_a_folder_of_something_else_is_not_written_over(model: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(PretrainedError, match="holds something else than a published model"):
        save_pipeline(tmp_path, model)
    with pytest.raises(PretrainedError, match="is where this model was read from"):
        save_pipeline(model.origin.folder, model)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_picture_and_a_mask(model: Pretrained) -> None:
    """Latents of the kept part are the picture's."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    mask = np.zeros((16, 16), int)
    mask[:, 8:] = 1
    options: dict[str, Any] = {"steps": 4, "image": picture, "decode": False}
    latents = np.asarray(model.codec.encode({"x": picture[None]})["x"])
    kept = model.sample(0, 1, {"text": "a cat"}, mask=mask, **options)
    np.testing.assert_allclose(kept[:, :, :4], latents[:, :, :4], atol=2e-4)
    assert np.abs(kept[:, :, 4:] - latents[:, :, 4:]).max() > 0.1
    near, far = (
        np.abs(model.sample(0, 1, {"text": "a cat"}, strength=s, **options) - latents).mean() for s in (0.25, 1)
    )
    assert near < far


def test_an_inpainting_network_is_told_of_picture_and_mask(folder: Path, tmp_path: Path) -> None:
    """The mask of the first pixel of each latent, and the latents of the picture with grey where it is drawn anew."""
    scheduler = {"_class_name": "DDIMScheduler", **SD}
    parts = {**PARTS, "unet": ("UNet2DConditionModel", {**PARTS["unet"][1], "in_channels": 9, "out_channels": 4})}
    inpainting = load_pipeline(write_pipeline(tmp_path, scheduler, parts))
    picture = np.full((16, 16, 3), 255, np.uint8)
    mask = np.zeros((16, 16), int)
    mask[:, 8:] = 1
    options: dict[str, Any] = {"steps": 2, "decode": False}
    found = inpainting.sample(0, 1, {"text": "a cat"}, image=picture, mask=mask, **options)
    codec = inpainting.codec
    pixels = np.where(mask[None, :, :, None] == 1, 0.0, 1.0) * np.ones((1, 16, 16, 3), np.float32)
    latents = codec.standardised(codec.net.moments(codec.params, pixels)[0])
    told = {"text": "a cat", "mask": mask[None, ::2, ::2, None].astype(np.float32), "masked": latents}
    np.testing.assert_allclose(found, inpainting.sample(0, 1, told, **options), atol=1e-5)
    with pytest.raises(ConfigError, match="mask is of an image"):
        inpainting.sample(0, 1, {"text": "a cat"}, mask=mask, **options)


def test_long_prompts_are_told_of_and_weights_count(model: Pretrained) -> None:
    options: dict[str, Any] = {"steps": 2, "decode": False, "guide": ()}
    with pytest.warns(LongPrompt, match="1 of 1 prompts is cut to the 77 ids that the text encoder takes; the longest"):
        model.sample(0, 1, {"text": "cat " * 60}, **options)
    encoder: Any = model.model.encoders["text"]
    weighted = dataclasses.replace(encoder, weighted=True)
    plain, one, more = (
        each(text)["tokens"]
        for each, text in ((encoder, "a red cat"), (weighted, "a (red:1) cat"), (weighted, "a (red:1.4) cat"))
    )
    np.testing.assert_array_equal(one, plain)
    ratio = more / plain  # r, e, d are the ids 2 to 4
    np.testing.assert_allclose(ratio[2:5] / ratio[:1], 1.4, rtol=1e-4)
    np.testing.assert_allclose(more.mean(), plain.mean(), rtol=1e-3)
    found = model.sample(0, 1, {"text": "a (red:1.4) cat"}, prompt_weights=True, **options)
    assert found.shape == (1, *model.shape)


def test_where_it_is_from(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: other\nlicense_name: stabilityai-ai-community\n---\n")
    assert licence_of(tmp_path) == "stabilityai-ai-community"
    assert licence_of(folder) is None
    (tmp_path / "README.md").unlink()
    (tmp_path / "LICENSE.md").write_text("")
    assert licence_of(tmp_path) == "see LICENSE.md"


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PretrainedError, match="hf:nobody/nothing: ") as error:
        load_pipeline("hf:nobody/nothing")
    assert "\n" not in str(error.value)


def test_half_the_precision(folder: Path, model: Pretrained) -> None:
    """The networks compute in it, but for the autoencoder."""
    half = load_pipeline(folder, dtype="bfloat16")
    net: Any = half.denoise.net
    assert net.build.dtype == "bfloat16"
    assert half.parts["unet"].params["conv_in"]["kernel"].dtype == "bfloat16"
    options: dict[str, Any] = {"steps": 2, "decode": False}
    x0 = model.sample(0, 1, {"text": "a cat"}, **options)
    apart = np.abs(half.sample(0, 1, {"text": "a cat"}, **options) - x0).max()
    assert 0 < apart < 0.05 * np.abs(x0).max()


def test_text_encoders_can_be_left_behind(model: Pretrained) -> None:
    """Texts are encoded first; the model without its encoders draws the same."""
    options: dict[str, Any] = {"steps": 2, "decode": False, "guide": "cfg:3"}
    light = model.without_encoders()
    assert set(light.parts) == {"unet", "vae"} and "text" not in light.model.encoders
    told, bad = model.encode(["a cat", "a dog"]), model.encode("blurry")
    wanted = model.sample(0, 2, {"text": ["a cat", "a dog"]}, **options)
    np.testing.assert_array_equal(light.sample(0, 2, {"text": told}, **options), wanted)
    wanted = model.sample(0, 2, {"text": ["a cat", "a dog"]}, negative="blurry", **options)
    np.testing.assert_array_equal(light.sample(0, 2, {"text": told}, negative={"text": bad}, **options), wanted)
