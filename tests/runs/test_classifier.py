"""Runs of classifiers: trained, gone on with bit for bit, read again, evaluated, and guidance by them by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import evaluate
import jaxdiff
import sample
from jaxdiff.codecs import Latents
from jaxdiff.config import CheckpointConfig, ClassifierConfig, Config, ConfigError, LossConfig, TrainConfig
from jaxdiff.data import open_digits
from jaxdiff.evaluate.accuracy import times
from jaxdiff.guidance import ClassifierGuidance
from jaxdiff.networks import Classifier, KLAutoencoder, UNet, functional
from jaxdiff.noise import sample_keys
from jaxdiff.runs import AutoencoderRun, ClassifierRun, Run
from jaxdiff.times import ScoreNorm
from jaxdiff.train import Checkpoints, Ema, make_mesh
from tests.tiny_autoencoder import write_autoencoder

HALF = UNet(8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(), scale_shift=True)


def config(folder: Path, steps: int = 4, **changes: Any) -> ClassifierConfig:
    settings: dict[str, Any] = {
        "network": Classifier(dataclasses.replace(HALF, dropout=0.1), 10),
        "process": jaxdiff.CosineVP(),
        "parameterization": jaxdiff.V(),
        "train": TrainConfig(steps=steps, batch_size=32, log_every=1, sample_every=4),
        "shown": 20,
    }
    return ClassifierConfig(
        name="small", workdir=str(folder), ema=Ema(0.5), checkpoint=CheckpointConfig(every=2), **settings | changes
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ClassifierRun:
    """Of four steps without a break."""
    trained: ClassifierRun = jaxdiff.fit(config(tmp_path_factory.mktemp("classifier") / "small"))
    return trained


@pytest.fixture(scope="module")
def guided(trained: Path) -> Run:
    """A diffusion model of the same data and process, with labels."""
    loaded: Run = jaxdiff.load(trained)
    return loaded


@pytest.mark.nightly
def test_going_on_is_bit_for_bit(run: ClassifierRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jaxdiff.fit(config(tmp_path / "small", steps=2)).step == 2
    again = jaxdiff.fit(config(tmp_path / "small", steps=4))
    assert run.folder is not None and again.folder is not None
    template = jax.eval_shape(functional(again.config.network).init, jax.random.key(0))
    for ema in (True, False):
        found = []
        for each in (run, again):
            with Checkpoints(Path(each.config.folder) / "checkpoints", readonly=True) as checkpoints:
                found.append(checkpoints.restore_weights(template, ema=ema, step=4)[1])
        jax.tree.map(np.testing.assert_array_equal, *found)
    mine, other = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run.folder, again.folder))
    names = ("step", "loss", "grad_norm", "accuracy", "accuracy_by_noise")
    lines = [[{name: line[name] for name in names} for line in map(json.loads, text)] for text in (mine, other)]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [1, 2, 3, 4]
    assert all(0 <= line["accuracy"] <= 1 and len(line["accuracy_by_noise"]) == 4 for line in lines[0])
    assert "step 4/4  loss " in (said := capsys.readouterr().out) and "  accuracy 0." in said


def test_a_run_is_read_again(run: ClassifierRun) -> None:
    assert run.folder is not None
    again = jaxdiff.load(run.folder)
    assert isinstance(again, ClassifierRun) and again.step == 4 and again.config == run.config
    assert again.process == jaxdiff.CosineVP() and again.shape == (8, 8, 1) and again.num_classes == 10
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    found = again.log_prob(x, jnp.linspace(0.1, 0.9, 5))
    assert found.shape == (5, 10)
    np.testing.assert_allclose(found, run.log_prob(x, jnp.linspace(0.1, 0.9, 5)), atol=1e-6)
    np.testing.assert_allclose(jnp.exp(found).sum(1), 1.0, rtol=1e-5)
    raw = ClassifierRun.load(run.folder, ema=False)
    assert float(jnp.abs(raw.log_prob(x, 0.5) - again.log_prob(x, 0.5)).max()) > 1e-6
    with pytest.raises(ConfigError, match=r"log_prob: the classifier was trained on data of shape \(8, 8, 1\), got"):
        again.log_prob(x[:, :4], 0.5)


def test_its_picture_is_how_probable_labels_are(run: ClassifierRun) -> None:
    """By hand, a square at a time."""
    assert run.folder is not None and run.examples is not None
    with Image.open(run.folder / "samples" / "step_00000004.png") as picture:
        drawn = np.asarray(picture)
    assert drawn.shape == (16 * 6, 20 * 6)
    order = np.argsort(run.examples["label"], kind="stable")
    x0 = (run.examples["x"][order].astype(np.float32) - 127.5) / 127.5
    least = float(run.process.min_time())
    keys = sample_keys(jax.random.key(0), 0, 20)
    for row in (0, 7):
        t = least + (row + 0.5) / 16 * (1 - least)
        noise = np.stack([jax.random.normal(jax.random.fold_in(key, row), (8, 8, 1)) for key in keys])
        said = np.exp(run.log_prob(run.process.perturb(jnp.asarray(x0), jnp.asarray(noise), t), t))
        wanted = 255 * said[np.arange(20), run.examples["label"][order]]
        np.testing.assert_allclose(drawn[row * 6 + 2, 2::6], wanted, atol=1.0)


def test_there_is_nothing_to_sample(run: ClassifierRun, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.folder is not None
    for call in (lambda: run.sample(0, 4), lambda: Run.load(run.folder)):
        with pytest.raises(
            ConfigError, match=r"is a classifier: there is nothing to sample .* --guide classifier:2,run="
        ):
            call()
    with pytest.raises(SystemExit):
        sample.main([str(run.folder)])
    assert capsys.readouterr().err.startswith(f"jaxdiff sample: error: {run.folder} is a classifier")
    with pytest.raises(ConfigError, match="is the run of no classifier"):
        ClassifierRun.load(trained)
    with pytest.raises(ConfigError, match="is the run of a classifier, no autoencoder"):
        AutoencoderRun.load(run.folder)


def test_evaluating(run: ClassifierRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy by quarters of t, of which that of all is the mean; times lie in their quarters."""
    out = tmp_path / "r.json"
    evaluate.main([str(run.folder), "--out", str(out), "--batch_size", "40", "--num", "100", "--draws", "8"])
    found = {each["name"]: each for each in json.loads(out.read_text())["results"]}
    quarters = [f"accuracy, t {a:g} to {a + 0.25:g}" for a in (0.0, 0.25, 0.5, 0.75)]
    assert list(found) == ["accuracy", *quarters, "cross-entropy"]
    assert found["accuracy"]["mean"] == pytest.approx(np.mean([found[name]["mean"] for name in quarters]))
    assert len(found["accuracy"]["values"]) == 100 and 0 < found["accuracy"]["error"] < 0.1
    assert found["cross-entropy"]["mean"] == pytest.approx(np.log(10), abs=0.5)  # four steps are no training
    keys = sample_keys(jax.random.key(0), 0, 50)
    for process in (run.process, jaxdiff.DiscreteVP(jaxdiff.cosine_betas(20))):
        drawn = np.asarray(times(process, keys, 3)).reshape(50, 4, 3)
        assert (drawn >= np.arange(4)[:, None] / 4 - 1e-6).all() and (
            drawn <= np.arange(1, 5)[:, None] / 4 + 1e-6
        ).all()
    source = open_digits(split="test")
    record, ts = source.take(np.arange(7)), np.full((7, 1), float(run.process.min_time()))
    log_prob, right = run.told(record, sample_keys(jax.random.key(0), 0, 7), ts)
    clean = run.log_prob((record["x"].astype(np.float32) - 127.5) / 127.5, ts[:, 0])
    np.testing.assert_allclose(log_prob[:, 0], clean[np.arange(7), record["label"]], atol=0.02)
    assert right[:, 0].tolist() == (np.argmax(clean, axis=1) == record["label"]).tolist()
    for arguments, message in (
        (["--metrics", "bpd"], "this run is a classifier: accuracy"),
        (["--draws", "3"], "--draws"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([str(run.folder), *arguments])
        assert message in capsys.readouterr().err


def test_guidance_by_its_name(run: ClassifierRun, guided: Run) -> None:
    """The folder's classifier is the object, and what samples are guided by."""
    cond, text = {"label": [3, 5, 7, 1]}, f"classifier:20,run={run.folder}"
    (named,), (given,) = (
        guided.model.plan(4, cond, guide=guide).guide
        for guide in (text, ClassifierGuidance(20.0, classifier=run.classifier))
    )
    assert bool(jax.tree.structure(named) == jax.tree.structure(given))  # type: ignore[operator]
    jax.tree.map(np.testing.assert_array_equal, named, given)
    options: dict[str, Any] = {"sampler": "ddim", "steps": 3, "decode": False}
    guides = (f"classifier:{scale},run={run.folder}" for scale in (20, 0))
    far, zero = (guided.sample(0, 4, cond, guide=guide, **options) for guide in guides)
    assert np.abs(far - zero).max() > 1e-3


@pytest.mark.nightly
def test_batches_and_the_command(run: ClassifierRun, guided: Run, tmp_path: Path) -> None:
    """Batches are cut by samples' rows alone, though the classifier has weights of as many; a scale of 0 leaves samples
    bit for bit; ``--guide``."""
    cond = {"label": [3, 5, 7, 1, 1, 0, 2, 9]}
    options: dict[str, Any] = {"sampler": "ddim", "steps": 3, "decode": False}
    scales = ClassifierGuidance(np.linspace(0.0, 40.0, 8), label=np.arange(8), classifier=run.classifier)
    whole = guided.sample(0, 8, cond, guide=scales, **options)
    np.testing.assert_allclose(guided.sample(0, 8, cond, guide=scales, batch_size=3, **options), whole, atol=1e-4)
    plain = guided.sample(0, 8, cond, **options)
    np.testing.assert_allclose(whole[0], plain[0], atol=1e-5)
    zero = guided.sample(0, 8, cond, guide=f"classifier:0,run={run.folder}", **options)
    np.testing.assert_array_equal(zero, plain)
    out, guide = tmp_path / "a.npz", f"classifier:2,run={run.folder}"
    sample.main([str(guided.folder), "--guide", guide, "--num", "4", "--out", str(out)])
    with np.load(out) as arrays:
        assert arrays["x"].shape == (4, 8, 8, 1)


def unconditional(of: Run) -> Run:
    """The run's like without labels, with fresh weights."""
    network = dataclasses.replace(of.config.network, num_classes=None)
    bare = dataclasses.replace(of.config, network=network, loss=LossConfig())
    return Run.of(bare, functional(network).init(jax.random.key(0)), 0, make_mesh(), codec=of.codec)


@pytest.mark.nightly
def test_a_model_without_labels(run: ClassifierRun, guided: Run) -> None:
    bare = unconditional(guided)
    options: dict[str, Any] = {"sampler": "ddim", "steps": 3, "decode": False}
    plain = bare.sample(0, 4, **options)
    towards = bare.sample(0, 4, guide=f"classifier:20,run={run.folder},label=3", **options)
    assert np.abs(towards - plain).max() > 1e-3
    with pytest.raises(ConfigError, match="classifier guidance needs a class: give label=3"):
        bare.sample(0, 4, guide=f"classifier:20,run={run.folder}", **options)


def test_guidance_that_does_not_fit(run: ClassifierRun, guided: Run, tmp_path: Path) -> None:
    cond = {"label": [1, 2]}

    def refused(message: str, guide: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            guided.sample(0, 2, cond, guide=guide, steps=3)

    refused("is not the folder of a run", "classifier:2,run=nowhere")
    refused(f"run={guided.folder} is no classifier", f"classifier:2,run={guided.folder}")
    refused("the classifier has 10 classes, got label = 10", f"classifier:2,run={run.folder},label=10")
    refused("takes one scale, or one for each of 2 samples", ClassifierGuidance(np.ones(3), classifier=run.classifier))
    other = dataclasses.replace(run.classifier, process=jaxdiff.VP())
    refused(
        r"the classifier was trained on VP\(.*\), and the model on CosineVP", ClassifierGuidance(2.0, classifier=other)
    )
    wide = dataclasses.replace(run.classifier, shape=(16, 16, 1))
    refused(r"trained on data of shape \(16, 16, 1\), got \(8, 8, 1\)", ClassifierGuidance(2.0, classifier=wide))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": HALF}, "a ClassifierConfig trains a network that gives logits .* got UNet; for a diffusion model"),
        ({"network": Classifier(HALF, 9)}, "label 9, expected 0..8"),
        ({"network": Classifier(dataclasses.replace(HALF, image_size=16), 10)}, "has positions for images of 16x16"),
        ({"time": ScoreNorm()}, "loss: ScoreNorm draws times by a model's score"),
        ({"shown": 0}, "shown: 0 is out of range"),
    ],
)
def test_refusals(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, jaxdiff.data.DataError), match=message):
        jaxdiff.fit(config(tmp_path / "r", **change), dry_run=True)


def test_a_classifier_is_no_denoiser(guided: Run, tmp_path: Path) -> None:
    made = dataclasses.replace(guided.config, network=Classifier(HALF, 10), workdir=str(tmp_path / "r"))
    assert isinstance(made, Config)
    with pytest.raises(ConfigError, match="network: Classifier is no denoiser; a ClassifierConfig trains it"):
        jaxdiff.fit(made)
    with pytest.raises(ConfigError, match=r"a ClassifierConfig trains a network .* got KLAutoencoder"):
        jaxdiff.fit(config(tmp_path / "r", network=KLAutoencoder(in_channels=1)))


@pytest.mark.nightly
def test_a_classifier_of_latents(tmp_path: Path) -> None:
    """Trained on what a frozen autoencoder makes; its codec is read again with it."""
    codec = Latents(str(write_autoencoder(tmp_path / "autoencoder")))
    half = dataclasses.replace(HALF, image_size=4, in_channels=2)
    made = config(tmp_path / "small", steps=1, network=Classifier(half, 10), codec=codec)
    run = jaxdiff.fit(made)
    again = jaxdiff.load(run.folder)
    assert again.shape == run.shape == (4, 4, 2)
    record, ts = open_digits().take(np.arange(5)), np.full((5, 1), 0.1)
    keys = sample_keys(jax.random.key(0), 0, 5)
    found = again.told(record, keys, ts)[0]
    np.testing.assert_allclose(found, run.told(record, keys, ts)[0], atol=1e-5)
    x0 = again.codec.encode(record)["x"]
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(key, 0), (4, 4, 2)) for key in keys])
    said = again.log_prob(again.process.perturb(x0, noise, 0.1), 0.1)
    np.testing.assert_allclose(found[:, 0], said[np.arange(5), record["label"]], atol=1e-4)


MESHES = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
import jaxdiff
from jaxdiff.config import MeshConfig
from jaxdiff.data import open_digits
from jaxdiff.noise import sample_keys
from tests.runs.test_classifier import config
found = []
for n, (data, fsdp, accumulate) in enumerate([(1, 1, 1), (2, 4, 1), (2, 4, 2)]):
    made = config(Path(sys.argv[1]) / str(n), steps=2, mesh=MeshConfig(data=data, fsdp=fsdp))
    network = dataclasses.replace(made.network, unet=dataclasses.replace(made.network.unet, dropout=0.0))
    made = dataclasses.replace(made, network=network, train=dataclasses.replace(made.train, accumulate=accumulate))
    losses = []
    run = jaxdiff.fit(made, log=lambda step, figures: losses.append([figures["loss"], *figures["accuracy_by_noise"]]))
    ts = np.full((11, 2), [[0.2, 0.6]])
    told = run.told(open_digits().take(np.arange(11)), sample_keys(jax.random.key(0), 0, 11), ts)[0]
    found.append([losses, told.tolist()])
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_one_device_and_eight(run_python: Any, tmp_path: Path) -> None:
    """The same run on one device, split over eight, and there in two micro-batches; eleven records fill no eight."""
    done = run_python("-c", MESHES, str(tmp_path), devices=8)
    one, *others = json.loads(done.stdout.strip().splitlines()[-1])
    for other in others:
        for mine, theirs in zip(other, one, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-3)
