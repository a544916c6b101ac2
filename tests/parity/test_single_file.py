"""A file in the authors' layout beside diffusers: what is written here, diffusers' own conversion reads as the networks
that it was made of, and its pipelines open it; what is read here is those networks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.pretrained import load_network, load_pipeline, read_single_file, write_single_file
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import Loaded, configured, family_of
from tests.parity import published
from tests.parity.originals import diffusers, disturbed, quiet, torch, transformers
from tests.pretrained.ldm import TINY

pytestmark = pytest.mark.nightly
convert: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
safetensors: Any = pytest.importorskip("safetensors.torch")


def original(fields: dict[str, Any], seed: int) -> Any:
    """A random network of diffusers or transformers."""
    values = {name: value for name, value in fields.items() if name not in ("_class_name", "architectures")}
    with quiet():
        if "_class_name" in fields:
            return disturbed(getattr(diffusers, fields["_class_name"])(**values), seed, 0.3)
        kind = getattr(transformers, fields["architectures"][0])
        return disturbed(kind(transformers.CLIPTextConfig(**values)), seed, 0.3)


@pytest.fixture(scope="module", params=TINY)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A Stable Diffusion: its name, a folder with a folder of each network and one file of all, and the networks."""
    folder = tmp_path_factory.mktemp("single")
    networks = {part: original(fields, seed) for seed, (part, fields) in enumerate(TINY[request.param].items())}
    for part, network in networks.items():
        network.save_pretrained(folder / part)
    write_single_file(folder / "all.safetensors", {part: load_network(folder / part) for part in networks})
    return request.param, folder, networks


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert {*ours} == {*theirs}
    for name, each in theirs.items():
        assert torch.equal(ours[name].reshape(each.shape), each), name


def test_diffusers_conversion_gives_the_networks(made: tuple[str, Path, dict[str, Any]]) -> None:
    name, folder, networks = made
    whole = safetensors.load_file(folder / "all.safetensors")
    unet = convert.convert_ldm_unet_checkpoint(whole, networks["unet"].config)
    same(unet, networks["unet"].state_dict())
    same(convert.convert_ldm_vae_checkpoint(whole, networks["vae"].config), networks["vae"].state_dict())
    encoders: dict[str, dict[str, str | None]] = {
        "1": {"text_encoder": None},
        "2": {"text_encoder": "cond_stage_model.model."},
        "XL": {"text_encoder": None, "text_encoder_2": "conditioner.embedders.1.model."},
        "refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
    }
    for part, prefix in encoders[name.split()[0]].items():
        network = networks[part]
        found = (
            convert.convert_ldm_clip_checkpoint(whole)
            if prefix is None
            else convert.convert_open_clip_checkpoint(network, whole, prefix)
        )
        theirs = network.state_dict()
        if not hasattr(network, "text_model"):
            found = {key.removeprefix("text_model."): each for key, each in found.items()}
        same(found, theirs)


def test_averaged_weights_are_those_of_diffusers_conversion(made: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, networks = made
    whole = safetensors.load_file(folder / "all.safetensors")
    for name in [each for each in whole if each.startswith("model.diffusion_model.")]:
        whole["model_ema." + "".join(name.split(".")[1:])] = whole[name] + 1
    whole |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(10)}
    safetensors.save_file(whole, folder / "averaged.safetensors")
    theirs = convert.convert_ldm_unet_checkpoint(whole, networks["unet"].config, extract_ema=True)
    found = read_single_file(folder / "averaged.safetensors", prediction="epsilon", variant="ema")
    fields = Fields(found.parts["unet"].fields)
    ours = Published(found.parts["unet"].params, family_of(fields).naming(fields))
    same({name: torch.from_numpy(np.array(ours[name])) for name in ours}, theirs)
    last = read_single_file(folder / "averaged.safetensors", prediction="epsilon").parts["unet"].params
    jax.tree.map(np.testing.assert_array_equal, last, load_network(folder / "unet").params)


def test_what_is_read_here_is_the_networks(made: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, networks = made
    found = read_single_file(folder / "all.safetensors", prediction="epsilon")
    for part in networks:
        loaded = load_network(folder / part)
        jax.tree.map(np.testing.assert_array_equal, found.parts[part].params, loaded.params)
        assert dataclasses.replace(_configuration(found.parts[part]), **_free(part)) == dataclasses.replace(
            _configuration(loaded), **_free(part)
        )


def _configuration(loaded: Loaded) -> Any:
    return configured(Fields(loaded.fields))


def _free(part: str) -> dict[str, Any]:
    """What a file does not say, and no output depends on."""
    return {"image_size": 64} if part == "unet" else {}


PIPELINES = {"1": "StableDiffusionPipeline", "2": "StableDiffusionPipeline", "XL": "StableDiffusionXLPipeline"}


def test_pipelines_of_diffusers_open_the_file(made: tuple[str, Path, dict[str, Any]]) -> None:
    """And give the same latents: read from the file by diffusers, and read from it here."""
    name, folder, networks = made
    if name not in PIPELINES:
        pytest.skip("no pipeline of diffusers opens it without its other parts")
    xl = name == "XL"
    padding = "!" if name == "2" else "<|endoftext|>"
    parts: dict[str, Any] = {**networks, "tokenizer": published.clip_tokenizer(padding)}
    parts |= {"tokenizer_2": published.clip_tokenizer("!")} if xl else {}
    kind = getattr(diffusers, PIPELINES[name])
    none = {} if xl else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    schedule = published.scheduler("EulerDiscrete", timestep_spacing="leading")
    if name == "2":
        schedule = published.scheduler(
            "DDIM", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        )
    if name == "1":
        schedule = published.scheduler("PNDM", skip_prk_steps=True)
    with quiet():
        kind(**parts, **none, scheduler=schedule).save_pretrained(folder / "whole")
        pipe = kind.from_single_file(
            folder / "all.safetensors", config=str(folder / "whole"), local_files_only=True, torch_dtype=torch.float32
        )
    pipe.set_progress_bar_config(disable=True)
    for part, network in networks.items():
        same(getattr(pipe, part).state_dict(), network.state_dict())
    model = load_pipeline(
        folder / "all.safetensors",
        tokenizer=folder / "whole" / "tokenizer",
        prediction="v_prediction" if name == "2" else None,
    )
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    pipe.scheduler.set_timesteps(6)
    start = float(pipe.scheduler.init_noise_sigma)
    with quiet(), torch.no_grad():
        latents = torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous()
        options: dict[str, Any] = {"height": 16, "width": 16, "guidance_scale": 5.0, "num_inference_steps": 6}
        theirs = pipe(published.PROMPTS, latents=latents, output_type="latent", **options).images
    given: dict[str, Any] = {"strict": True, "steps": 6, "size": (16, 16), "guide": "cfg:5", "decode": False}
    ours = model.sample(0, 2, {"text": published.PROMPTS}, x=x * start, **given)
    theirs = published.channels_last(theirs)
    assert np.abs(ours - theirs).max() < 1e-3 * np.sqrt(np.square(theirs).mean())
