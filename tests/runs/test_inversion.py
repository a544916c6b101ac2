"""Training a new word of a published model: what is trained and saved, a stop in the middle, its file, refusals.

`tests/parity/test_inversion.py` has the gradient and the pictures beside diffusers'.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdiff
import sample
import train
from jaxdiff.codecs import Images
from jaxdiff.config import (
    CheckpointConfig,
    ConfigError,
    InversionConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    build_network,
)
from jaxdiff.data import DataError, Words
from jaxdiff.networks.text import T5, TextEncoder
from jaxdiff.pretrained import PretrainedError, load_network, load_pipeline, trained_embeddings, write_embeddings
from jaxdiff.pretrained.adapters.inversion import TextualInversion
from jaxdiff.runs.published import published_config
from jaxdiff.train import CheckpointError, Checkpoints
from tests.pretrained.test_pipeline import PARTS, SD, write_pipeline
from tests.runs.test_fit import same

pytest.importorskip("tokenizers")
CAT = "<cat-toy>"
X = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
ONE_LEVEL: dict[str, Any] = {"block_out_channels": [8], "norm_num_groups": 4}
SMALL = {
    "unet": {
        **ONE_LEVEL,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "sample_size": 4,
    },
    "vae": {**ONE_LEVEL, "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]},
    "text_encoder": {"max_position_embeddings": 32},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion with networks of one level."""
    parts = {name: (kind, {**options, **SMALL[name]}) for name, (kind, options) in PARTS.items()}
    return write_pipeline(tmp_path_factory.mktemp("published"), {"_class_name": "DDIMScheduler", **SD}, parts, 0.3)


def config(folder: Path, workdir: Path, steps: int = 4, **changes: Any) -> Any:
    word = InversionConfig(**{"word": CAT, "init": "a", "vectors": 2, **changes.pop("inversion", {})})
    made = published_config(folder, workdir=str(workdir), inversion=word)
    data = dataclasses.replace(made.data, **changes.pop("data", {}))
    return dataclasses.replace(
        made,
        data=data,
        optimizer=OptimizerConfig(lr=0.01),
        train=TrainConfig(
            **{"steps": steps, "batch_size": 8, "log_every": 1, "sample_every": 0} | changes.pop("train", {})
        ),
        checkpoint=CheckpointConfig(every=2),
        sample=SampleConfig(steps=2, num=2, sampler="ddim"),
        **changes,
    )


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return jaxdiff.fit(config(folder, tmp_path_factory.mktemp("runs") / "a"), {"x": X}, init_from=folder)


def first_row(folder: Path, run: Any) -> Any:
    """The row of the word that it begins as, ``(1, width)``."""
    table = np.asarray(load_network(folder / "text_encoder").params["tokens"]["embedding"])
    return table[run.config.tokenizer.ids("a")[1:2]]


def test_the_vectors_alone_are_trained_and_saved(folder: Path, run: Any) -> None:
    encoder, unet = (load_network(folder / part).params for part in ("text_encoder", "unet"))
    assert same(run.denoise.params, unet) and same(run.codec.params[0], encoder)
    words = np.asarray(run.codec.words["text_encoder"])
    assert words.shape == (2, 24) and (np.abs(words - first_row(folder, run)).max(axis=1) > 1e-3).all()
    assert run.config.train.freeze == ("base", "encoders")
    assert [(each.name, each.path) for each in run.config.frozen] == [("base", str(folder))]
    with Checkpoints(Path(run.config.folder) / "checkpoints", readonly=True) as checkpoints:
        template = {"words": {"text_encoder": jax.ShapeDtypeStruct((2, 24), np.float32)}}
        _, kept = checkpoints.restore_weights(template, ema=True)  # which has no leaf more
    assert np.array_equal(kept["words"]["text_encoder"], words)
    assert run.prompts == [f"a photo of a {CAT}"] * len(run.prompts) and run.prompts


def test_before_the_first_step_the_word_stands_for_the_one_it_begins_as(folder: Path, run: Any) -> None:
    """S of two vectors is "a a", in the network of ids that is trained and in the codec that samples."""
    net = build_network(run.config)
    assert isinstance(net, TextualInversion) and net.base.build == run.config.network
    encoders = net.encoders_of(run.codec)
    ids = {"text_encoder": run.config.tokenizer.ids("a")[1]}
    params = {"base": run.denoise.params, "encoders": encoders, "words": net.begun(encoders, ids)}
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32)
    told = run.config.tokenizer.encode([f"red {CAT}!", "red a a!"])
    assert (told[0] != told[1]).sum() == 2
    new, old = jax.jit(net.apply)(params, np.repeat(x[:1], 2, 0), 0.5, {"text": told})
    assert np.array_equal(new, old)
    base, of_base, codec = net.sampled(params, run.codec)
    both = jax.jit(base.apply)(of_base, x, 0.5, {"text": codec.text(told)})
    np.testing.assert_allclose(jax.jit(net.apply)(params, x, 0.5, {"text": told}), both, atol=1e-6)
    trained = run.codec.text(told)["tokens"]
    assert np.abs(trained[0] - trained[1]).max() > 1e-4


def test_its_file_makes_the_published_model_the_run(folder: Path, run: Any, tmp_path: Path) -> None:
    again, told = jaxdiff.load(run.config.folder), {"text": f"two {CAT}s"}
    assert np.array_equal(again.sample(0, 2, told)["x"], run.sample(0, 2, told)["x"])
    embeddings = trained_embeddings(again)
    assert embeddings.token == CAT and np.array_equal(embeddings.vectors[""], again.codec.words["text_encoder"])
    write_embeddings(tmp_path / "cat.safetensors", embeddings)
    model = load_pipeline(folder).with_embeddings(tmp_path / "cat.safetensors")
    theirs, ours = (each.model.encoders["text"](told["text"])["tokens"] for each in (model, again))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.abs(ours - model.encode("two aas")["tokens"]).max() > 1e-3
    with pytest.raises(
        PretrainedError, match=r"expected a run that was trained with inversion\.word, got a Pretrained"
    ):
        trained_embeddings(model)
    with pytest.raises(ConfigError, match=r"has trained the word '<cat-toy>' alone, which is a file of its own"):
        jaxdiff.save_pretrained(run, tmp_path / "x")


def test_it_goes_on_bit_for_bit(folder: Path, run: Any, tmp_path: Path) -> None:
    jaxdiff.fit(config(folder, tmp_path / "r", steps=2), {"x": X}, init_from=folder)
    on = jaxdiff.fit(config(folder, tmp_path / "r"), {"x": X})  # the base is noted in the folder
    assert on.step == 4 and same(on.codec.words, run.codec.words)
    for options in ({"kind": "style"}, {"init": "b"}, {"word": "<dog>"}):
        with pytest.raises(ConfigError, match=f"holds another configuration: inversion.{next(iter(options))}"):
            jaxdiff.fit(config(folder, tmp_path / "r", inversion=options), {"x": X}, init_from=folder)


def test_the_command_line(folder: Path, run: Any, tmp_path: Path, capsys: Any) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, pixels in enumerate(X):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    options = ["--inversion.word", CAT, "--inversion.init", "a", "--data.path", str(pictures), "--dry-run"]
    arguments = [str(folder), "--workdir", str(tmp_path / "r"), *options]
    train.main(arguments)
    said = capsys.readouterr().out
    assert "24 parameters, 8 records" in said and "dry run: configuration, data and shapes are good" in said
    with pytest.raises(SystemExit):
        train.main([*arguments, "--lora.rank", "2"])
    assert capsys.readouterr().err.count("\n") == 1
    out = tmp_path / "cats.npz"
    sample.main([str(run.config.folder), "--prompt", f"a {CAT}", "--num", "2", "--no-cache", "--out", str(out)])
    with np.load(out) as found:
        assert found["text"].tolist() == [f"a {CAT}"] * 2 and found["x"].shape == (2, 4, 4, 3)


def test_captions_of_the_data_hold_the_word(folder: Path, tmp_path: Path) -> None:
    captions = [f"a {CAT} and a dog", "two <CAT-toy>s"] * 4
    whole = jaxdiff.fit(config(folder, tmp_path / "r"), {"x": X, "text": captions}, init_from=folder, dry_run=True)
    assert whole.prompts[0] == captions[0]
    with pytest.raises(DataError, match=r"1 of 8 captions do not hold '<cat-toy>', such as 'a dog'") as caught:
        jaxdiff.fit(config(folder, tmp_path / "r"), {"x": X, "text": [*captions[:7], "a dog"]}, init_from=folder)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refused(said: str, *, init: Any = folder, **changes: Any) -> None:
        whole = config(folder, tmp_path / "r")
        for name, value in changes.items():
            new = dataclasses.replace(getattr(whole, name), **value) if isinstance(value, dict) else value
            whole = dataclasses.replace(whole, **{name: new})
        with pytest.raises(ConfigError, match=said) as caught:
            jaxdiff.fit(whole, {"x": X}, init_from=init)
        assert "\n" not in str(caught.value)

    refused("inversion.word: there is none, and other options of inversion", inversion={"word": None})
    refused("inversion.word: expected a word without blanks around it, got ' a'", inversion={"word": " a"})
    refused("tokenizer knows 'A': take another, for instance <A>", inversion={"word": "A"})
    refused("inversion.init: say which word it begins as", inversion={"init": None})
    refused("inversion.init: 'toy' is 3 ids of .*, expected a word of one id", inversion={"init": "toy"})
    refused("inversion.init: '' is 0 ids", inversion={"init": ""})
    refused("inversion.vectors: 0 is out of range", inversion={"vectors": 0})
    refused(r"lora\.rank: with inversion\.word the word alone is trained", lora={"rank": 2})
    refused(r"train\.freeze: with inversion\.word", train={"freeze": ("down",)})
    refused(r"data\.cache_text: with inversion\.word", data={"cache_text": True})
    refused(r"loss\.prior: with inversion\.word", loss={"prior": str(tmp_path)})
    refused(r"loss\.dropout: with inversion\.word", loss={"dropout": {"text": 0.1}})
    refused("inversion: the parts that are not trained need weights to start with: --init-from RUN", init=None)
    refused("a word is one of a published model's text encoders", codec=Images((4, 4, 3)))
    refused("tokenizer: with inversion.word it is the published model's", tokenizer=Words(8, size=20))
    codec = published_config(folder).codec
    t5 = TextEncoder(T5(vocabulary=50, width=24, depth=1, heads=2, head_depth=4, hidden=8))
    refused(
        "a word is one of CLIP's text encoders, and .* has T5's alone", codec=dataclasses.replace(codec, nets=(t5,))
    )


def test_a_model_elsewhere_goes_on_and_other_encoders_are_refused(folder: Path, run: Any, tmp_path: Path) -> None:
    """The codec looks for its weights near the run; those of another model are not those that it began with."""
    shutil.copytree(run.config.folder, tmp_path / "run")
    other = tmp_path / "model"
    shutil.copytree(folder, other)
    file = next((other / "text_encoder").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + np.float32(0.25).tobytes())
    text = (tmp_path / "run" / "config.json").read_text().replace(str(folder), str(other))
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="its weights are not those that this run began with"):
        jaxdiff.load(tmp_path / "run")


SHARDED = """
import sys
from pathlib import Path
import jaxdiff
from jaxdiff.config import MeshConfig
from tests.runs.test_inversion import X, config

folder, workdir, mesh = Path(sys.argv[1]), Path(sys.argv[2]), MeshConfig(data=2, fsdp=2, tensor=2)
run = jaxdiff.fit(config(folder, workdir, mesh=mesh), {"x": X}, init_from=folder)
table = run.codec.params[0]["tokens"]["embedding"]
assert table.sharding.num_devices == 8 and not table.is_fully_replicated
"""


@pytest.mark.nightly
def test_split_over_eight_devices_it_is_the_same(folder: Path, run: Any, tmp_path: Path, run_python: Any) -> None:
    run_python("-c", SHARDED, folder, tmp_path / "r", devices=8)
    split, told = jaxdiff.load(tmp_path / "r"), {"text": f"a {CAT}"}
    moved = np.abs(np.asarray(run.codec.words["text_encoder"]) - first_row(folder, run)).max()
    apart = np.abs(np.asarray(split.codec.words["text_encoder"]) - run.codec.words["text_encoder"]).max()
    assert apart < 1e-3 * moved
    ours, theirs = (each.sample(0, 2, told, decode=False) for each in (split, run))
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


KILLED = """
import os, signal, sys
from pathlib import Path
import jaxdiff
from tests.runs.test_inversion import X, config

folder, workdir, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def log(step, figures):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
jaxdiff.fit(config(folder, workdir, 12), {"x": X}, init_from=folder, log=log)
"""


@pytest.mark.nightly
def test_a_kill_in_the_middle_changes_nothing(folder: Path, tmp_path: Path, run_python: Any) -> None:
    assert run_python("-c", KILLED, folder, tmp_path / "r", "11", check=False).returncode == -9
    assert "going on after step" in run_python("-c", KILLED, folder, tmp_path / "r", "0").stdout
    whole = jaxdiff.fit(config(folder, tmp_path / "whole", 12), {"x": X}, init_from=folder)
    assert same(jaxdiff.load(tmp_path / "r").codec.words, whole.codec.words)
