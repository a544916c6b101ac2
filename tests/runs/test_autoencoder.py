"""Runs of autoencoders: trained with a critic, gone on with bit for bit, read again, and what their folder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import evaluate
import jaxdiff
import sample
from jaxdiff.autoencoding import AutoencoderLoss
from jaxdiff.config import AutoencoderConfig, CheckpointConfig, Config, ConfigError, OptimizerConfig, TrainConfig
from jaxdiff.data import open_digits
from jaxdiff.networks import KLAutoencoder, PatchCritic, UNet, VQAutoencoder
from jaxdiff.runs import AutoencoderRun, Run, read_status
from jaxdiff.runs.latents import describe
from jaxdiff.train import Checkpoints, Ema

SMALL: dict[str, Any] = {"in_channels": 1, "channels": 2, "width": 8, "multipliers": (1, 2), "blocks": 1}


def config(folder: Path, steps: int = 4, **changes: Any) -> AutoencoderConfig:
    settings: dict[str, Any] = {
        "network": KLAutoencoder(**SMALL, middle_attention=False),
        "critic": PatchCritic(in_channels=1, width=8, layers=1),
        "loss": AutoencoderLoss(critic_start=1, log_variance=True),
        "train": TrainConfig(steps=steps, batch_size=32, log_every=1, sample_every=4),
    }
    return AutoencoderConfig(
        name="small", workdir=str(folder), ema=Ema(0.5), checkpoint=CheckpointConfig(every=2), **settings | changes
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderRun:
    """Of four steps without a break."""
    trained: AutoencoderRun = jaxdiff.fit(config(tmp_path_factory.mktemp("autoencoder") / "small"))
    return trained


def test_going_on_is_bit_for_bit_with_the_critic(run: AutoencoderRun, tmp_path: Path) -> None:
    first = jaxdiff.fit(config(tmp_path / "small", steps=2))
    assert first.step == 2
    again = jaxdiff.fit(config(tmp_path / "small", steps=4))
    assert run.folder is not None and again.folder is not None
    for ema in (True, False):
        mine, other = (weights(each.config, 4, ema=ema) for each in (run, again))
        assert sorted(mine) == ["autoencoder", "critic", "scale"] and same(mine, other)
    lines = [json.loads(line) for line in (again.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"psnr", "kl", "critic", "generator", "adaptive_weight", "nll"} <= line.keys() for line in lines)
    assert json.loads((again.folder / "latents.json").read_text())["step"] == 4  # that of step 2 is written over


@pytest.mark.nightly
def test_each_network_changes_by_its_own_loss_and_optimizer(tmp_path: Path) -> None:
    """One step: another learning rate of the critic leaves the autoencoder bit for bit, and moves the critic; another
    weight of the KL does the reverse."""

    def after(name: str, **changes: Any) -> Any:
        made = config(tmp_path / name, steps=1, loss=AutoencoderLoss(kl=changes.pop("kl", 1e-6)), **changes)
        jaxdiff.fit(made)
        return weights(made, 1)

    plain = after("plain")
    slower = after("slower", critic_optimizer=OptimizerConfig(lr=1e-5, b1=0.5, b2=0.9))
    tighter = after("tighter", kl=1.0)
    net = config(tmp_path).loss.networks(config(tmp_path).network, config(tmp_path).critic)
    start = jax.jit(net.init)(jax.random.split(jax.random.key(0))[0])
    for name, changed, kept in (("autoencoder", tighter, slower), ("critic", slower, tighter)):
        assert same(plain[name], kept[name]) and not same(plain[name], changed[name])
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), plain[name], start[name])
        assert moved["decoder" if name == "autoencoder" else "last"]


def weights(made: AutoencoderConfig, step: int, *, ema: bool = False) -> Any:
    """Of a checkpoint, all networks'."""
    net = made.loss.networks(made.network, made.critic)
    with Checkpoints(Path(made.folder) / "checkpoints", readonly=True) as checkpoints:
        return checkpoints.restore_weights(jax.eval_shape(net.init, jax.random.key(0)), ema=ema, step=step)[1]


def same(a: Any, b: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


def test_what_the_folder_says_of_the_latents(run: AutoencoderRun) -> None:
    assert run.folder is not None
    said = json.loads((run.folder / "latents.json").read_text())
    digits, test = open_digits(), open_digits(split="test")
    x = digits.take(np.arange(len(digits)))["x"]
    scaled = (x.astype(np.float32) - 127.5) / 127.5
    mean, log_variance = (np.asarray(each, np.float64) for each in jax.jit(run.net.moments)(run.params, scaled))
    np.testing.assert_allclose(said["mean"], mean.mean((0, 1, 2)), atol=1e-5)
    # The law of total variance, by drawing latents
    drawn = mean + np.exp(log_variance / 2) * np.random.default_rng(0).normal(size=(20, *mean.shape))
    np.testing.assert_allclose(said["std"], drawn.std((0, 1, 2, 3)), rtol=0.01)
    variance = mean.var((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2))
    np.testing.assert_allclose(said["std"], np.sqrt(variance), rtol=1e-5)
    assert said["shape"] == [4, 4, 2] == list(mean.shape[1:]) and said["of"] == "test" and said["ssim"] is None
    x = test.take(np.arange(len(test)))["x"]
    error = np.square(x.astype(np.float64) - run.reconstruct({"x": x})["x"]).mean((1, 2, 3))
    assert said["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), abs=1e-3)


def test_a_run_is_read_again(run: AutoencoderRun) -> None:
    assert run.folder is not None
    again = jaxdiff.load(run.folder)
    assert isinstance(again, AutoencoderRun) and again.step == 4 and again.config == run.config
    x = open_digits().take(np.arange(40))["x"]
    latents = again.encode({"x": x})
    np.testing.assert_allclose(latents, run.encode({"x": x}), atol=1e-6)
    assert latents.shape == (40, 4, 4, 2) and latents.dtype == np.float32
    np.testing.assert_array_equal(again.decode(latents)["x"], again.reconstruct({"x": x})["x"])
    drawn = again.encode({"x": x}, key=0)
    assert (drawn != latents).all()
    np.testing.assert_allclose(again.encode({"x": x[:5]}, key=0), drawn[:5], atol=1e-5)  # each by its own key
    raw = AutoencoderRun.load(run.folder, ema=False)
    assert (raw.encode({"x": x[:1]}) != latents[:1]).any()
    assert again.measure() == {"psnr": again.figures()["psnr"]}
    assert read_status(run.folder).state == "finished"
    with Image.open(run.folder / "samples" / "step_00000004.png") as picture:
        assert picture.width > picture.height > 0


def test_there_is_nothing_to_sample(run: AutoencoderRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.folder is not None
    for call in (lambda: run.sample(0, 4), lambda: Run.load(run.folder)):
        with pytest.raises(ConfigError, match=r"is an autoencoder: there is nothing to sample from .* codec=Latents"):
            call()
    with pytest.raises(SystemExit):
        sample.main([str(run.folder)])
    assert capsys.readouterr().err.startswith(f"jaxdiff sample: error: {run.folder} is an autoencoder")


def test_evaluating(run: AutoencoderRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(run.folder), "--out", str(tmp_path / "r.json"), "--batch_size", "64"])
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [each["name"] for each in found] == ["psnr"]  # 8x8 pixels are smaller than SSIM's window
    assert found[0]["mean"] == pytest.approx(run.figures()["psnr"], abs=1e-3)
    with pytest.raises(SystemExit):
        evaluate.main([str(run.folder), "--metrics", "bpd"])
    assert "this run is an autoencoder: reconstruction" in capsys.readouterr().err


def test_a_diffusion_run_has_no_reconstruction(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(jaxdiff.load(trained), Run)
    with pytest.raises(SystemExit):
        evaluate.main([str(trained), "--metrics", "reconstruction"])
    assert "this run is a diffusion model: bpd" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is the run of a diffusion model, no autoencoder"):
        AutoencoderRun.load(trained)


@pytest.mark.nightly
def test_own_pictures_and_a_codebook(tmp_path: Path) -> None:
    """Of 12x12 pixels, so that SSIM has a window; without a test split the figures are of the training data."""
    x = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 1), dtype=np.uint8)
    network = VQAutoencoder(**SMALL, middle_attention=False, entries=32)
    run = jaxdiff.fit(config(tmp_path / "vq", steps=2, network=network, critic=None, loss=AutoencoderLoss()), x)
    said = run.figures()
    assert said["of"] == "train" and -1 <= said["ssim"] <= 1 and run.encode({"x": x}, key=0).shape == (40, 6, 6, 2)
    codes = run.net.quantise(run.params, run.encode({"x": x})).code
    counts = np.bincount(np.asarray(codes).ravel(), minlength=32) / codes.size
    assert said["entries_used"] == (counts > 0).mean()
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    assert said["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-4)
    assert describe(run, run_source(x))["mean"] == pytest.approx(said["mean"], abs=1e-6)


def run_source(x: Any) -> Any:
    from jaxdiff.data import from_arrays

    return from_arrays(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": UNet(image_size=8, attention_resolutions=())},
            "an AutoencoderConfig trains a KLAutoencoder or a VQAutoencoder, got UNet",
        ),
        ({"critic": PatchCritic()}, "critic: it judges images of 3 channels, and the network makes 1: set"),
        ({"critic": "patch"}, "critic: expected an object, such as PatchCritic"),
        ({"loss": AutoencoderLoss(critic_start=4)}, "loss.critic_start: 4 is not below train.steps, 4"),
        ({"shown": 0}, "shown: 0 is out of range"),
        ({"critic": PatchCritic(in_channels=1)}, "PatchCritic judges images .* of at least 24 pixels"),
        ({"network": KLAutoencoder(**SMALL | {"in_channels": 1, "multipliers": (1, 1, 1, 1, 1)})}, "divisible by 16"),
    ],
)
def test_refusals(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        jaxdiff.fit(config(tmp_path / "r", **change), dry_run=True)


def test_an_autoencoder_is_no_denoiser(tmp_path: Path) -> None:
    diffusion = Config(
        name="r",
        workdir=str(tmp_path / "r"),
        process=jaxdiff.VP(),
        parameterization=jaxdiff.V(),
        network=KLAutoencoder(**SMALL),
        ema=Ema(0.5),
        train=TrainConfig(steps=1),
    )
    with pytest.raises(ConfigError, match="network: KLAutoencoder is no denoiser; an AutoencoderConfig trains it"):
        jaxdiff.fit(diffusion)


def test_points_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="network: "):
        jaxdiff.fit(config(tmp_path / "r", critic=None), np.zeros((64, 2), np.float32), dry_run=True)


MESHES = """
import json, sys, jax, numpy as np
import jaxdiff
from jaxdiff.config import MeshConfig
from tests.runs.test_autoencoder import config
from pathlib import Path
import dataclasses
found = []
for n, (data, fsdp, accumulate) in enumerate([(1, 1, 1), (2, 4, 1), (2, 4, 2)]):
    made = config(Path(sys.argv[1]) / str(n), steps=2, mesh=MeshConfig(data=data, fsdp=fsdp))
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, accumulate=accumulate))
    losses = []
    run = jaxdiff.fit(made, log=lambda step, figures: losses.append([figures[k] for k in ("loss", "psnr", "critic")]))
    found.append([losses, run.figures()["mean"], run.figures()["psnr"]])
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_one_device_and_eight(run_python: Any, tmp_path: Path) -> None:
    """The same run on one device and split over eight. Micro-batches have an adaptive weight each: nearly the same."""
    done = run_python("-c", MESHES, str(tmp_path), devices=8)
    one, eight, parts = json.loads(done.stdout.strip().splitlines()[-1])
    np.testing.assert_allclose(
        np.hstack([np.ravel(each) for each in eight]), np.hstack([np.ravel(e) for e in one]), rtol=1e-4
    )
    np.testing.assert_allclose(parts[0], one[0], rtol=0.02)
