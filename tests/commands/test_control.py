"""`sample.py RUN --control`: a semantic map or a picture for a run's ControlNet, as Python gives them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdiff
from jaxdiff.codecs import Images, Outlines, SemanticMap
from jaxdiff.commands import sample
from jaxdiff.commands.conditions import conditions
from jaxdiff.config import Config, ConfigError, LossConfig, SampleConfig, TrainConfig, build_network
from jaxdiff.networks import Controlled, ControlNet, UNet
from jaxdiff.runs.run import Run
from jaxdiff.train import Ema, make_mesh
from tests.commands.test_cli import one_line

UNET = UNet(8, in_channels=1, width=8, multipliers=(1,), blocks=1, attention_resolutions=(), num_classes=2)
PLAIN = ControlNet(UNET, "map", channels=1, size=(8, 8), widths=(4,), halving=False)
IDS = np.random.default_rng(0).integers(0, 3, (8, 8)).astype(np.uint8)


def run_of(network: Any, codec: Any) -> Run:
    """A run whose weights are noise, so that all that it is told counts."""
    parts: dict[str, Any] = {"process": jaxdiff.Flow(), "parameterization": jaxdiff.Velocity()}
    rates = {"label": 0.5} | ({"control": 0.1} if isinstance(network, Controlled) else {})
    config = Config(
        name="maps",
        network=network,
        codec=codec,
        ema=Ema(0.9),
        train=TrainConfig(steps=1, batch_size=4),
        loss=LossConfig(dropout=rates),
        sample=SampleConfig(steps=3),
        **parts,
    )
    net, rng = build_network(config), np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return Run.of(
        config, jax.tree.map(lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape)), shapes), 0, make_mesh()
    )


@pytest.fixture(scope="module")
def mapped() -> Run:
    semantic = dataclasses.replace(PLAIN, classes=3)
    codec = SemanticMap(Images((8, 8, 1)), classes=3, void=9, size=(8, 8))
    return run_of(Controlled(UNET, (semantic,)), codec)


@pytest.fixture
def folder(mapped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that loads as that run."""
    monkeypatch.setattr(sample.Run, "load", lambda *arguments, **options: mapped)
    Image.fromarray(IDS).save(tmp_path / "map.png")
    return tmp_path


def drawn(folder: Path, options: str) -> Any:
    sample.main([str(folder), "--out", str(folder / "s.npz"), *options.replace("RUN", str(folder)).split()])
    with np.load(folder / "s.npz") as arrays:
        return arrays["x"].astype(int)


def test_a_map_of_a_file_is_that_of_an_array(mapped: Run, folder: Path) -> None:
    """Labels are left out, unless they are asked for."""
    expected = {w: mapped.sample(0, 8, {"control": IDS, "control_scale": w})["x"].astype(int) for w in (1.0, 0.5, 0.0)}
    assert np.abs(drawn(folder, "--control RUN/map.png --num 8") - expected[1.0]).max() <= 1
    assert np.abs(drawn(folder, "--control RUN/map.png --control_scale 0.5 --num 8") - expected[0.5]).max() <= 1
    assert np.abs(drawn(folder, "--control RUN/map.png --control_scale 0 --num 8") - expected[0.0]).max() <= 1
    assert min(np.abs(expected[1.0] - expected[w]).max() for w in (0.5, 0.0)) > 3
    labelled = drawn(folder, "--control RUN/map.png --label 1 --num 8")
    assert np.abs(labelled - mapped.sample(0, 8, {"control": IDS, "label": 1})["x"].astype(int)).max() <= 1
    assert np.abs(labelled - expected[1.0]).max() > 3


def test_one_map_is_for_all_samples(mapped: Run, folder: Path) -> None:
    """Ten of them by default. As many samples as it has rows have the whole of it each, in shards too."""
    options = sample.Options(control=folder / "map.png", control_scale=0.5)
    cond, num, _ = conditions(mapped, options)
    assert cond is not None and sorted(cond) == ["control", "control_scale"] and num == 10
    cond, num, _ = conditions(mapped, dataclasses.replace(options, num=8))
    assert cond is not None and cond["control"].shape == (8, 8, 8) and cond["control_scale"].shape == (8,)
    np.testing.assert_array_equal(cond["control"], np.stack([IDS] * 8))
    assert conditions(mapped, dataclasses.replace(options, label=("1", "0")))[1] == 20


def test_void_and_a_map_of_nothing(mapped: Run, folder: Path) -> None:
    """Void is in no channel; a map of it alone is none, and the samples are the U-Net's own."""
    void = np.where(IDS == 2, 9, IDS).astype(np.uint8)
    Image.fromarray(void).save(folder / "void.png")
    expected = mapped.sample(0, 8, {"control": np.where(IDS == 2, 3, IDS)})["x"].astype(int)
    assert np.abs(drawn(folder, "--control RUN/void.png --num 8") - expected).max() <= 1
    none = mapped.sample(0, 8, {"control": np.full((8, 8), 9), "label": 1})["x"]
    np.testing.assert_array_equal(none, mapped.sample(0, 8, {"control": IDS, "control_scale": 0.0, "label": 1})["x"])
    np.testing.assert_array_equal(none, mapped.sample(0, 8, {"label": 1})["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--control RUN/ids.png", "ids.png: control 7 is out of range: from 0 to 2, or 3 for none"),
        ("--control RUN/large.png", "large.png: map is 9x8, expected 8x8; resize it by the nearest pixel"),
        ("--control RUN/rgb.png", "rgb.png: map has Pillow mode RGB, expected 8-bit grey or a palette"),
        ("--control RUN/map.jpg", "map.jpg: map is a JPEG file, expected a PNG"),
        ("--control RUN/none.png", "none.png: cannot be read"),
        ("--control_scale 0.5", "--control_scale is of the picture in --control: give it too"),
        ("--control RUN/map.png --cond control=1", "control is given twice: give it once, by --control or by --cond"),
        ("--control RUN/map.png --controlnet RUN", "--controlnet is of published models"),
        ("--control RUN/map.png --control_scale nan", "control_scale nan is out of range"),
    ],
)
def test_what_is_no_map_is_one_line(options: str, message: str, folder: Path, capsys: Any) -> None:
    Image.fromarray(np.where(IDS == 2, 7, IDS).astype(np.uint8)).save(folder / "ids.png")
    Image.fromarray(IDS[[0, *range(8)]]).save(folder / "large.png")
    Image.fromarray(IDS).convert("RGB").save(folder / "rgb.png")
    Image.fromarray(IDS).save(folder / "map.jpg")
    found = one_line(sample.main, [str(folder), *options.replace("RUN", str(folder)).split()], capsys)
    assert message in found


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.where(IDS == 2, 4, IDS), "control 4 is out of range: from 0 to 2, or 3 for none"),
        (IDS[:7], r"control has shape \(2, 7, 8\), expected \(2, 8, 8\)"),
        (IDS / 2, r"control must be whole numbers \(int32\), got float64"),
        (
            np.stack([IDS] * 3, -1),
            r"control is a picture \(8, 8, 3\), expected the id of a class at each pixel, \(8, 8\)",
        ),
    ],
)
def test_what_is_no_map_in_python(ids: Any, message: str, mapped: Run) -> None:
    with pytest.raises(ConfigError, match=message):
        mapped.sample(0, 2, {"control": ids})


def test_a_picture_and_runs_that_take_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """An outline of any size, brought to the run's; of a run without a ControlNet, or with several, one line."""
    grey = np.random.default_rng(1).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(grey.repeat(2, 0).repeat(2, 1)).save(tmp_path / "large.png")
    Image.fromarray(grey).save(tmp_path / "small.png")
    outlined = run_of(Controlled(UNET, (PLAIN,)), Outlines((8, 8, 1)))
    monkeypatch.setattr(sample.Run, "load", lambda *arguments, **options: outlined)
    expected = outlined.sample(0, 8, {"control": grey[..., None] / 255})["x"].astype(int)
    assert np.abs(drawn(tmp_path, "--control RUN/small.png --num 8") - expected).max() <= 1
    large = drawn(tmp_path, "--control RUN/large.png --num 8")
    assert large.shape == expected.shape and np.abs(large - expected).mean() < np.abs(expected - expected[::-1]).mean()
    two = (dataclasses.replace(PLAIN, name="a"), dataclasses.replace(PLAIN, name="b"))
    for run, message in (
        (run_of(UNET, Images((8, 8, 1))), "--control: this run has no ControlNet: leave it out"),
        (
            run_of(Controlled(UNET, two), Images((8, 8, 1))),
            "--control: this run has several (a, b): give them in Python",
        ),
    ):
        monkeypatch.setattr(sample.Run, "load", lambda *arguments, run=run, **options: run)
        assert message in one_line(sample.main, [str(tmp_path), "--control", str(tmp_path / "small.png")], capsys)
