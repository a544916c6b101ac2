"""LoRA files of three layouts, beside diffusers' `load_lora_weights` and `set_adapters`: the same latents from the same
noise, by whole pipelines, so that the network and the text encoders are compared at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.noise import sample_keys
from jaxdiff.pretrained import load_lora, load_pipeline, schedulers, write_lora
from jaxdiff.pretrained.adapters.lora import Factors
from jaxdiff.pretrained.fields import Fields
from tests.parity import published
from tests.parity.comparison import apart
from tests.parity.originals import quiet, torch

PEFT: Any = pytest.importorskip("peft")
pytestmark = pytest.mark.nightly
ATTENTION = r"(to_q|to_k|to_v|to_out\.0)$"
UNET = rf"{ATTENTION}|ff\.net\.0\.proj$|ff\.net\.2$|proj_in$|proj_out$|conv1$|conv_shortcut$|time_emb_proj$|\.conv$"
TEXT = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2)$"
TRANSFORMER = (
    rf"{ATTENTION}|add_q_proj$|to_add_out$|ff\.net\.2$|norm1\.linear$|norm1_context\.linear$|norm_out\.linear$"
    r"|\.proj_out$|proj_mlp$"
)
STEPS = 2


def random_factors(module: Any, names: str, rng: Any, alpha: float | None) -> dict[str, Factors]:
    """Of each module whose name matches."""
    made = {}
    for name, each in module.named_modules():
        weight = getattr(each, "weight", None)
        if re.search(names, name) is None or weight is None or weight.ndim not in (2, 4):
            continue
        shape, rank = tuple(weight.shape), 3
        down = rng.normal(size=(rank, *shape[1:])) / np.sqrt(np.prod(shape[1:]))
        up = 0.7 * rng.normal(size=(shape[0], rank, *((1, 1) if len(shape) == 4 else ())))
        made[name] = Factors(down.astype(np.float32), up.astype(np.float32), rank if alpha is None else alpha)
    assert made
    return made


def save(file: Path, tensors: Mapping[str, Any]) -> Path:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(each) for name, each in tensors.items()}, file)
    return file


def older(part: str, name: str, factors: Factors) -> dict[str, Any]:
    text = part.startswith("text")
    own = (
        {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"} if text else {"to_out.0": "to_out"}
    )
    found = re.search(rf"\.({'|'.join(own)}|to_q|to_k|to_v)$", name)
    if found:
        folder, last = name[: found.start()], found[1]
        stem = f"{part}.{folder}{'' if text else '.processor'}.{own.get(last, last)}_lora"
    else:
        stem = f"{part}.{name}.{'lora_linear_layer' if text else 'lora'}"
    return {f"{stem}.down.weight": factors.down, f"{stem}.up.weight": factors.up}


def kohya(part: str, name: str, factors: Factors) -> dict[str, Any]:
    prefix = {"unet": "unet", "text_encoder": "te", "text_encoder_1": "te1", "text_encoder_2": "te2"}[part]
    stem = f"lora_{prefix}_{name.replace('.', '_')}"
    sides = {f"{stem}.lora_down.weight": factors.down, f"{stem}.lora_up.weight": factors.up}
    return {**sides, f"{stem}.alpha": np.float32(factors.alpha)}


def kohya_xl(part: str, name: str, factors: Factors) -> dict[str, Any]:
    """With the original code's names, written down here by hand for two levels with one block each."""
    part = "text_encoder_1" if part == "text_encoder" else part
    places = [
        (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
        (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
        (r"^down_blocks\.0\.downsamplers\.0\.conv", lambda m: "input_blocks.2.0.op"),
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", lambda m: "middle_block.1"),
        (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
        (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
        (r"\.conv1$", lambda m: ".in_layers.2"),
        (r"\.conv_shortcut$", lambda m: ".skip_connection"),
        (r"\.time_emb_proj$", lambda m: ".emb_layers.1"),
    ]
    if part == "unet":
        for pattern, place in places:
            name = re.sub(pattern, place, name)
    return kohya(part, name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}", factors)


def peft(part: str, name: str, factors: Factors) -> dict[str, Any]:
    assert factors.alpha == factors.rank, "said by this layout's header alone"
    return {f"{part}.{name}.lora_A.weight": factors.down, f"{part}.{name}.lora_B.weight": factors.up}


UNETS = {"unet": UNET, "text_encoder": TEXT}
XL = {**UNETS, "text_encoder_2": TEXT, "unet": UNET.replace(r"|\.conv$", r"|downsamplers\.0\.conv$")}
CASES: dict[str, tuple[Callable[[], Any], Callable[..., dict[str, Any]], dict[str, str], float | None]] = {
    "SD1 PEFT": (published.stable_diffusion, peft, UNETS, None),
    "SD1 older": (published.stable_diffusion, older, UNETS, None),
    "SD1 kohya": (published.stable_diffusion, kohya, UNETS, 1.5),
    "SDXL PEFT": (published.stable_diffusion_xl, peft, XL, None),
    "SDXL kohya": (published.stable_diffusion_xl, kohya_xl, XL, 2.0),
    "SD3": (published.stable_diffusion_3, peft, {"transformer": TRANSFORMER, "text_encoder": TEXT}, None),
    "FLUX": (published.flux, peft, {"transformer": TRANSFORMER, "text_encoder": TEXT}, None),
    "PixArt": (published.pixart, peft, {"transformer": TRANSFORMER}, None),
}


class Pair:
    """A pipeline of diffusers, and the folder that it was saved to."""

    def __init__(self, make: Callable[[], Any], folder: Path) -> None:
        with quiet():
            self.case = make()
            self.pipe = self.case.pipe
            self.pipe.set_progress_bar_config(disable=True)
            self.pipe.save_pretrained(folder)
        self.model = load_pipeline(folder, length=published.length_of(folder))
        self.options = dict(self.case.options)
        self.size = self.options.pop("size", None)
        factor = self.model.model.codec.net.factor  # type: ignore[attr-defined]
        sized = self.model.model.shape if self.size is None else (*(side // factor for side in self.size), 4)
        keys = sample_keys(jax.random.key(0), 0, 2)
        self.first = np.asarray(jax.vmap(lambda key: jax.random.normal(key, sized))(keys))

    def theirs(self) -> Any:
        with quiet(), torch.no_grad():
            first = torch.from_numpy(self.first.transpose(0, 3, 1, 2)).contiguous()
            return published.channels_last(self.case.call(self.pipe, first, STEPS))

    def ours(self, model: Any) -> Any:
        shape, flux = self.first.shape[1:], "Flux" in type(self.pipe).__name__
        table = schedulers.table(Fields(model.scheduler), STEPS, tokens=int(np.prod(shape[:2])) // 4, even=flux)
        given = {"strict": True, "steps": STEPS, "size": self.size, "x": self.first * table.start, **self.options}
        with quiet():  # T5's texts are cut, as there
            return model.sample(0, 2, self.case.cond, decode=False, **given)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Pipelines that several tests share: what they load they unload."""
    return functools.cache(lambda make: Pair(make, tmp_path_factory.mktemp("model")))


def factors_of(pair: Pair, targets: Mapping[str, str], alpha: float | None, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {part: random_factors(getattr(pair.pipe, part), names, rng, alpha) for part, names in targets.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_lora_makes_the_same_latents(name: str, pairs: Any, tmp_path: Path) -> None:
    make, layout, targets, alpha = CASES[name]
    pair = pairs(make)
    tensors: dict[str, Any] = {}
    for part, modules in factors_of(pair, targets, alpha).items():
        for module, factors in modules.items():
            tensors |= layout(part, module, factors)
    file = save(tmp_path / "lora.safetensors", tensors)
    before = pair.theirs()
    with quiet():
        if hasattr(pair.pipe, "load_lora_weights"):
            pair.pipe.load_lora_weights(file)
        else:  # of PixArt by PEFT itself
            transformer = pair.pipe.transformer
            changed = [name.removeprefix("transformer.").partition(".lora_")[0] for name in tensors]
            PEFT.inject_adapter_in_model(PEFT.LoraConfig(r=3, lora_alpha=3, target_modules=changed), transformer)
            own = {name.removeprefix("transformer."): torch.from_numpy(each) for name, each in tensors.items()}
            assert not PEFT.set_peft_model_state_dict(transformer, own).unexpected_keys
    theirs = pair.theirs()
    if hasattr(pair.pipe, "load_lora_weights"):
        pair.pipe.unload_lora_weights()
    assert apart(before, theirs) > 0.1
    assert apart(pair.ours(pair.model.with_lora(file)), theirs) < 1e-4


def test_two_are_stacked_with_weights(pairs: Any, tmp_path: Path) -> None:
    pair, files = pairs(published.stable_diffusion), []
    for seed in (1, 2):
        made = factors_of(pair, UNETS, None, seed)
        tensors = [peft(part, *each) for part, modules in made.items() for each in modules.items()]
        files.append(save(tmp_path / f"{seed}.safetensors", {k: v for each in tensors for k, v in each.items()}))
    with quiet():
        for file in files:
            pair.pipe.load_lora_weights(file, adapter_name=f"a{file.stem}")
        pair.pipe.set_adapters(["a1", "a2"], [0.6, -0.3])
    theirs = pair.theirs()
    pair.pipe.unload_lora_weights()
    both = pair.model.with_lora(files[0], 0.6).with_lora(load_lora(files[1]), -0.3)
    assert apart(pair.ours(both), theirs) < 1e-4


def test_what_diffusers_saves_is_read_and_what_is_written_here_diffusers_reads(tmp_path: Path) -> None:
    from diffusers.training_utils import _collate_lora_metadata  # as its training scripts call it

    pair = Pair(published.stable_diffusion, tmp_path / "model")
    pipe, generator = pair.pipe, torch.Generator().manual_seed(0)
    of = {
        "unet": PEFT.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["to_q", "to_v", "conv1", "proj_in"],
            rank_pattern={"to_v": 2},
            alpha_pattern={"conv1": 5},
        ),
        "text_encoder": PEFT.LoraConfig(r=3, lora_alpha=2, target_modules=["q_proj", "fc2"]),
    }
    layers = {}
    for part, config in of.items():
        module = getattr(pipe, part)
        PEFT.inject_adapter_in_model(config, module)
        module.peft_config = {"default": config}
        for weight in (each for name, each in module.named_parameters() if "lora_" in name):
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        layers[part] = PEFT.get_peft_model_state_dict(module)
    with quiet():
        told = _collate_lora_metadata({part: getattr(pipe, part) for part in layers})
        type(pipe).save_lora_weights(tmp_path / "theirs", layers["unet"], layers["text_encoder"], **told)
        theirs = pair.theirs()
    lora = load_lora(tmp_path / "theirs")
    assert {factors.alpha for factors in lora["unet"].values()} == {5.0, 6.0}
    assert {factors.rank for factors in lora["unet"].values()} == {2, 4}
    assert apart(pair.ours(pair.model.with_lora(lora)), theirs) < 1e-4
    write_lora(tmp_path / "ours.safetensors", lora)
    with quiet():
        fresh = type(pipe).from_pretrained(tmp_path / "model")
        fresh.set_progress_bar_config(disable=True)
        fresh.load_lora_weights(tmp_path / "ours.safetensors")
    pair.pipe = fresh
    assert apart(pair.theirs(), theirs) < 1e-5
