"""Fine-tuning a tiny Stable Diffusion by LoRA: its loss falls, the addition alone is trained, and diffusers makes the
same pictures of the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff.codecs import Latents, WithText, save_png
from jaxdiff.config import Config, DataConfig, LoraConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.noise import sample_keys
from jaxdiff.pretrained import load_network, load_pipeline, schedulers, trained_lora, write_lora
from jaxdiff.pretrained.fields import Fields, read_fields
from jaxdiff.pretrained.pipeline import process_of
from jaxdiff.train import Ema
from tests.parity import published
from tests.parity.comparison import apart
from tests.parity.originals import quiet, torch

pytest.importorskip("peft")
pytestmark = pytest.mark.nightly
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
SHAPES = ("square", "bar", "frame", "cross")


def pictures(folder: Path) -> None:
    """Sixteen captioned pictures: a shape in a colour each."""
    folder.mkdir()
    lines = []
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            mask = np.zeros((16, 16), bool)
            if shape == "square":
                mask[4:12, 4:12] = True
            elif shape == "bar":
                mask[6:10] = True
            elif shape == "frame":
                mask[2:14, 2:14] = True
                mask[5:11, 5:11] = False
            else:
                mask[6:10] = mask[:, 6:10] = True
            name = f"{colour}_{shape}.png"
            save_png(folder / name, np.where(mask[..., None], np.array(rgb), 20).astype(np.uint8))
            lines.append(json.dumps({"file_name": name, "text": f"a {colour} {shape}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def settings(model: Path, data: Path, folder: Path) -> Config:
    process, parameterization, _ = process_of(read_fields(model / "scheduler" / "scheduler_config.json"))
    return Config(
        name="tuned",
        workdir=str(folder),
        data=DataConfig(name="folder", path=str(data), cache_text=True, cache_folder=str(folder.parent / "cache")),
        network=load_network(model / "unet").net.build,
        codec=WithText(str(model), inner=Latents(str(model))),
        tokenizer=TokenizerFile(str(model / "tokenizer"), 24, padding=513),
        process=process,
        parameterization=parameterization,
        lora=LoraConfig(rank=4, alpha=8.0),
        optimizer=OptimizerConfig(lr=3e-3),
        ema=Ema(0.9),
        train=TrainConfig(steps=200, batch_size=4, log_every=10, sample_every=0),
        sample=SampleConfig(steps=4, num=4),
    )


def test_a_lora_that_is_trained_here_makes_the_same_pictures_in_diffusers(tmp_path: Path) -> None:
    with quiet():
        case = published.stable_diffusion("DDIM")
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "model")
    pictures(tmp_path / "pictures")
    config = settings(tmp_path / "model", tmp_path / "pictures", tmp_path / "run")
    losses: dict[int, float] = {}
    jaxdiff.fit(config, init_from=tmp_path / "model", log=lambda step, all: losses.update({step: all["loss"]}))
    run = jaxdiff.load(tmp_path / "run")

    logged = [losses[step] for step in sorted(losses)]
    assert np.mean(logged[-4:]) < 0.9 * np.mean(logged[:2])
    before = load_network(tmp_path / "model" / "unet").params
    assert jax.tree.all(jax.tree.map(np.array_equal, run.denoise.params["base"], before))

    lora = trained_lora(run)
    assert {(each.rank, each.alpha) for each in lora["unet"].values()} == {(4, 8.0)}
    write_lora(tmp_path / "lora.safetensors", lora)
    model = load_pipeline(tmp_path / "model")
    keys = sample_keys(jax.random.key(0), 0, 2)
    first = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (8, 8, 4)))(keys))
    torch_first = torch.from_numpy(first.transpose(0, 3, 1, 2).copy())
    with quiet(), torch.no_grad():
        untuned = published.channels_last(case.call(case.pipe, torch_first, 20))
        case.pipe.load_lora_weights(tmp_path / "lora.safetensors")
        theirs = published.channels_last(case.call(case.pipe, torch_first, 20))
    assert apart(untuned, theirs) > 0.1
    table = schedulers.table(Fields(model.scheduler), 20)
    options: dict[str, Any] = {"strict": True, "steps": 20, "x": first * table.start, "decode": False, **case.options}
    tuned = dataclasses.replace(model, model=dataclasses.replace(model.model, denoise=run.denoise))
    assert apart(tuned.sample(0, 2, case.cond, **options), theirs) < 1e-3
    assert apart(model.with_lora(tmp_path / "lora.safetensors").sample(0, 2, case.cond, **options), theirs) < 1e-3
