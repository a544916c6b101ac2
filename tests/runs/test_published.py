"""Published models in the programs: loaded, sampled, trained further, and written again."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jaxdiff
from jaxdiff import DiscreteVP, Eps, TimeIndex, linear_betas
from jaxdiff.codecs import Images, Latents
from jaxdiff.commands.published import load_model
from jaxdiff.commands.sample import Options
from jaxdiff.commands.sample import main as sample
from jaxdiff.commands.train import main as train
from jaxdiff.config import CheckpointConfig, ConfigError, TrainConfig, build_defaults
from jaxdiff.config import Config as Config_
from jaxdiff.networks import UNet
from jaxdiff.pretrained import Pretrained, PretrainedError, load_network, load_pipeline
from jaxdiff.pretrained.files.safetensors import write_safetensors
from jaxdiff.pretrained.text_codec import PublishedTextAndData
from jaxdiff.runs import Run
from jaxdiff.runs.published import published_config
from jaxdiff.train import make_mesh
from jaxdiff.train.ema import Ema
from tests.pretrained.test_pipeline import SD, write_pipeline

pytest.importorskip("tokenizers")
TEXT = {"text": "a cat"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("published")
    return write_pipeline(made, {"_class_name": "DDIMScheduler", **SD})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with captions."""
    made, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = []
    for _ in range(8):
        with io.BytesIO() as file:
            Image.fromarray(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "text": ["a cat", "a dog"] * 4}), made / "train.parquet")
    return made


def further(folder: Path, data: Path, workdir: Path, steps: int = 2, **changes: Any) -> Any:
    config = published_config(folder, workdir=str(workdir), **changes)
    source = dataclasses.replace(config.data, name="parquet", path=str(data))
    train = TrainConfig(steps=steps, batch_size=4, log_every=1, sample_every=0)
    config = dataclasses.replace(config, data=source, train=train, checkpoint=CheckpointConfig(every=1))
    return jaxdiff.fit(config, init_from=folder)


@pytest.fixture(scope="module")
def run(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made: Run = further(folder, data, tmp_path_factory.mktemp("runs") / "a")
    return made


def test_load_gives_what_lies_there(folder: Path) -> None:
    model = jaxdiff.load(folder)
    assert isinstance(model, Pretrained) and model.num_classes is None and model.shape == (8, 8, 4)
    one = load_pipeline(folder).sample(0, 1, TEXT, steps=2, decode=False)
    np.testing.assert_allclose(model.sample(0, 1, TEXT, steps=2, decode=False), one, atol=1e-5)
    x0 = model.sample(0, 1, TEXT, steps=8, guide=(), decode=False, sampler="ddim")
    assert np.isfinite(x0).all()
    with pytest.raises(ConfigError, match="is a published model, and step is of runs"):
        jaxdiff.load(folder, step=3)
    with pytest.raises(ConfigError, match="there is no option 'varient'"):
        jaxdiff.load(folder, varient="fp16")


def test_a_command_draws_of_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder), "--prompt", "a cat", "a dog", "--negative", "blurry", "--steps", "2", "--no-cache"]
    sample([*arguments, "--out", str(tmp_path / "a.png"), "--num", "4"])
    with Image.open(tmp_path / "a.png") as grid:
        assert grid.size[0] > 32 and grid.size[1] > 32
    assert f"4 samples from {folder}" in capsys.readouterr().out
    Image.fromarray(np.zeros((30, 20, 4), np.uint8)).save(tmp_path / "i.png")
    Image.fromarray(np.full((30, 20), 255, np.uint8)).save(tmp_path / "m.png")
    begun = ["--image", str(tmp_path / "i.png"), "--mask", str(tmp_path / "m.png")]
    sample([*arguments, *begun, "--out", str(tmp_path / "b.npz"), "--size", "8", "16"])
    with np.load(tmp_path / "b.npz") as stored:
        assert stored["x"].shape == (2, 8, 16, 3) and stored["text"].tolist() == ["a cat", "a dog"]


def test_a_command_takes_new_words(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `with_embeddings` does: of a file that names its word, and of one that is told it."""
    vectors = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    write_safetensors(tmp_path / "named.safetensors", {"<cat-toy>": vectors})
    write_safetensors(tmp_path / "none.safetensors", {"emb_params": vectors[0]})
    both = ["--embeddings", str(tmp_path / "named.safetensors"), f"{tmp_path}/none.safetensors:<x>"]
    found = load_model(Options(embeddings=tuple(both[1:])), folder, make_mesh())
    wanted = load_pipeline(folder).with_embeddings(both[1]).with_embeddings(tmp_path / "none.safetensors", "<x>")
    ours, theirs = (each.model.encoders["text"].branches[0] for each in (found, wanted))  # type: ignore[attr-defined]
    assert ours.tokenizer == theirs.tokenizer and ours.tokenizer.knows("<x>")
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    for given, message in {
        both[1]: "named.safetensors: tokenizer knows the token '<cat-toy>' already: give another, token='<word>', on ",
        f"{tmp_path}/none.safetensors": "none.safetensors: does not say its token, which stands for it in a text",
        "nowhere.safetensors:<y>": "nowhere.safetensors: there is no such file; embeddings are one file of safetensors",
    }.items():
        with pytest.raises(SystemExit):
            sample([str(folder), "--prompt", "a", "--no-cache", *both[:2], given])
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "3"], "--step is of runs"),
        *(
            (["--lora", f"a:{weight}"], f"and '{weight}' is no number such as 0.8")
            for weight in ("", "x", "nan", "-inf")
        ),
        (["--embeddings", "a:"], "--embeddings: 'a:' is FILE or FILE:WORD, and has no word after its colon"),
        (["--label", "3"], "trained without labels"),
        (["--size", "9", "9"], "size is (height, width) in multiples of 2 pixels"),
        (["--image", "nowhere.png"], "--image: [Errno 2]"),
        (["--prompt_weights", "--negative", "(a"], "opens a '(' that it does not close"),
    ],
)
def test_a_commands_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        sample([str(folder), "--prompt", "a cat", "--no-cache", "--out", str(tmp_path / "a.png"), *options])
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


def _written(file: str, **changes: Any) -> Any:
    def change(folder: Path) -> None:
        values = {**json.loads((folder / file).read_text()), **changes}
        (folder / file).write_text(json.dumps(values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "there is no model_index.json, which says what the"),
        (lambda folder: shutil.rmtree(folder / "unet"), "unet: there is no such folder"),
        (lambda folder: (folder / "tokenizer" / "merges.txt").unlink(), "tokenizer/merges.txt: No such file"),
        (_written("model_index.json", controlnet=["diffusers"]), "controlnet is ['diffusers'], expected [LIBRARY"),
        (_written("model_index.json", text_encoder=[None, None]), "text_encoder is null or missing"),
        (_written("unet/config.json", block_out_channels=[]), "block_out_channels is [], expected a list of at least"),
        (_written("vae/config.json", scaling_factor=-1), "scaling_factor is -1, expected a number above 0"),
        (_written("scheduler/scheduler_config.json", trained_betas="x"), "trained_betas is 'x', expected a list"),
        (_written("tokenizer/tokenizer_config.json", pad_token="zzz"), "has the id 514, and its text encoder 514 ids"),
    ],
)
def test_a_damaged_model_is_one_line_of_each_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    change(bad)
    for command, options in (
        (sample, ["--prompt", "a cat", "--out", str(tmp_path / "a.png")]),
        (train, ["--data.path", str(tmp_path), "--workdir", str(tmp_path / "run")]),
    ):
        with pytest.raises(SystemExit) as status:
            command([str(bad), *options, "--no-cache"])
        said = capsys.readouterr().err.strip()
        assert status.value.code == 2 and message in said and "\n" not in said, said


@pytest.mark.parametrize("command", [sample, train])
def test_one_network_is_no_model_for_a_command(folder: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command([str(folder / "vae"), "--no-cache"])
    said = capsys.readouterr().err.strip()
    assert "vae is AutoencoderKL alone: jaxdiff.pretrained.load_network reads it" in said and "\n" not in said


def test_training_further_begins_with_its_weights(folder: Path, data: Path, run: Run, tmp_path: Path) -> None:
    """Text encoders and autoencoder stay; the network changes; the same options go on, and the run draws."""
    unet = load_network(folder / "unet").params
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), run.denoise.params, unet)
    assert 0 < max(jax.tree.leaves(apart)) < 1e-3  # two steps at 1e-5, averaged
    text = load_network(folder / "text_encoder").params
    jax.tree.map(np.testing.assert_array_equal, run.codec.params[0], text)
    again = jaxdiff.load(run.config.folder)
    options: dict[str, Any] = {"steps": 2, "decode": False}
    np.testing.assert_array_equal(again.sample(0, 1, TEXT, **options), run.sample(0, 1, TEXT, **options))
    more = further(folder, data, Path(run.config.folder), steps=3)
    assert more.step == 3


def test_a_dropped_caption_is_the_empty_text(run: Run, folder: Path, tmp_path: Path) -> None:
    """Which is what guidance leads away from; where a pipeline says zeros, zeros are both."""
    codec, tokenizer = run.codec, run.config.tokenizer
    empty, found = codec.text(tokenizer.encode([""])), codec.nulls()
    jax.tree.map(np.testing.assert_array_equal, found, {"text": empty})
    assert codec.recipe.negative == {"text": ""} and np.abs(empty["tokens"]).max() > 0.1
    zeros = shutil.copytree(folder, tmp_path / "zeros")
    _written("model_index.json", force_zeros_for_empty_prompt=True)(zeros)
    config = published_config(zeros)
    assert config.codec.negative == {} and config.codec.empty == () and build_defaults(config).negative == {}


def test_guidance_of_such_a_run_leads_away_from_the_empty_text(run: Run) -> None:
    options: dict[str, Any] = {"steps": 2, "decode": False, "guide": "cfg:5"}
    left_out = run.sample(0, 1, TEXT, **options)
    np.testing.assert_array_equal(left_out, run.sample(0, 1, TEXT, negative={"text": ""}, **options))
    assert run.sample(0, 1, TEXT, steps=2)["text"].tolist() == ["a cat"]


def test_other_encoders_are_refused_when_it_goes_on(folder: Path, data: Path, run: Run, tmp_path: Path) -> None:
    other = write_pipeline(tmp_path, {"_class_name": "DDIMScheduler", **SD}, scale=0.04)
    with pytest.raises(jaxdiff.train.CheckpointError, match="its weights are not those that this run began with"):
        further(other, data, Path(run.config.folder), steps=4)


def test_a_run_is_written_as_a_published_model(run: Run, folder: Path, tmp_path: Path) -> None:
    jaxdiff.save_pretrained(run, tmp_path / "b")
    again = jaxdiff.load(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, again.denoise.params, jax.device_get(run.denoise.params))
    options: dict[str, Any] = {"steps": 2, "decode": False, "guide": (), "grid": "uniform"}
    ours = run.sample(0, 1, TEXT, **options, sampler="ddim")
    np.testing.assert_allclose(again.sample(0, 1, TEXT, **options, sampler="ddim"), ours, atol=1e-4)


def test_latents_of_a_published_autoencoder(folder: Path, data: Path, tmp_path: Path) -> None:
    """A network of one's own in the latents of a published model."""
    network = UNet(image_size=8, in_channels=4, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=())
    config = Config_(
        name="latents",
        workdir=str(tmp_path / "c"),
        process=DiscreteVP(linear_betas(1000)),
        parameterization=Eps(time=TimeIndex(1000)),
        network=network,
        codec=Latents(str(folder)),
        ema=Ema(0.9),
        train=TrainConfig(steps=1, batch_size=4, sample_every=0),
    )
    pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    made = jaxdiff.fit(config, {"x": pictures})
    vae = load_network(folder / "vae")
    pixels = pictures / 127.5 - 1
    wanted = 0.18215 * vae.net.moments(vae.params, pixels.astype(np.float32))[0]
    np.testing.assert_allclose(made.codec.encode({"x": pictures})["x"], wanted, atol=1e-5)
    assert made.sample(0, 2, steps=2)["x"].shape == (2, 16, 16, 3)


def test_weights_of_another_configuration_are_refused(folder: Path, data: Path, tmp_path: Path) -> None:
    network = dataclasses.replace(published_config(folder).network, norm_eps=1e-3)
    with pytest.raises(PretrainedError, match=r"unet: network.norm_eps is 1e-05 there, and 0.001 here"):
        further(folder, data, tmp_path / "d", network=network)


def test_a_pixel_run_becomes_a_pipeline(tmp_path: Path) -> None:
    network = UNet(image_size=8, in_channels=1, width=128, multipliers=(1, 1), blocks=1, attention_resolutions=(4,))
    config = Config_(
        name="pixels",
        workdir=str(tmp_path / "e"),
        process=DiscreteVP(linear_betas(50)),
        parameterization=Eps(time=TimeIndex(50)),
        network=network,
        ema=Ema(0.9),
        train=TrainConfig(steps=1, batch_size=4, sample_every=0),
    )
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)
    run = jaxdiff.fit(config, {"x": x})
    jaxdiff.save_pretrained(run, tmp_path / "f")
    assert json.loads((tmp_path / "f" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    again = jaxdiff.load(tmp_path / "f")
    options: dict[str, Any] = {"sampler": "ddim", "grid": "uniform", "steps": 5, "decode": False}
    np.testing.assert_allclose(again.sample(0, 2, **options), run.sample(0, 2, **options), atol=1e-4)
    flow = dataclasses.replace(
        run, config=dataclasses.replace(run.config, network=dataclasses.replace(network, width=64))
    )
    with pytest.raises(PretrainedError, match=r"network\.groups: diffusers has one number of groups"):
        jaxdiff.save_pretrained(flow, tmp_path / "g")


def test_a_run_named_as_its_model_is_not_taken_for_it(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a relative path, from the folder that both lie in; and another run beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "sd")
    run = further(Path("sd"), data, Path("runs/sd"))
    again = jaxdiff.load("runs/sd")
    assert again.step == run.step and repr(again.config.codec.path) == "'sd'"
    shutil.move(tmp_path / "runs" / "sd", tmp_path / "runs" / "other")
    assert jaxdiff.load("runs/other").step == run.step


def test_what_is_no_model_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unet is UNet2DConditionModel alone: jaxdiff.pretrained.load_network"):
        jaxdiff.load(folder / "unet")
    with pytest.raises(ConfigError, match=r"the Hub's repository of this name is hf:runwayml/stable-diffusion-v1-5"):
        jaxdiff.load("runwayml/stable-diffusion-v1-5")
    with pytest.raises(ConfigError, match=r"there is no option 'prompt_weigths'; did you mean 'prompt_weights'\?"):
        jaxdiff.load(folder).sample(0, 1, TEXT, prompt_weigths=True)
    with pytest.raises(ConfigError, match=r"cond is conditions by name, such as \{'text': \.\.\.\}, got 'a cat'"):
        jaxdiff.load(folder).sample(0, 1, "a cat")
    assert len(repr(jaxdiff.load(folder))) < 400


@pytest.mark.parametrize(
    ("sizes", "scored", "told"),
    [
        (("resolution", "aspect_ratio"), False, {"resolution": [16.0, 16.0], "aspect_ratio": [1.0]}),
        (("time_ids",), False, {"time_ids": [16.0, 16.0, 0.0, 0.0, 16.0, 16.0]}),
        (("time_ids",), True, {"time_ids": [16.0, 16.0, 0.0, 0.0, 6.0]}),
    ],
)
def test_training_further_tells_the_network_the_datas_size(folder: Path, sizes: Any, scored: bool, told: Any) -> None:
    codec: Any = published_config(folder).codec
    assert codec.sizes == () and codec.side == 16
    recipe = dataclasses.replace(codec, sizes=sizes, scored=scored)
    whole = PublishedTextAndData(Images((16, 16, 3)), (), recipe)
    batch = whole.encode({"x": np.zeros((3, 16, 16, 3), np.uint8)})
    assert {name: batch[name].tolist() for name in batch if name != "x"} == {name: [told[name]] * 3 for name in told}
    assert {name: recipe.spec[name].shape for name in told} == {name: (len(told[name]),) for name in told}
