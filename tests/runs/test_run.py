from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import train
from jaxdiff import DDIM, DDPM, CosineVP, Prediction
from jaxdiff.codecs import Images
from jaxdiff.config import ConfigError, build_network, parse_config
from jaxdiff.networks import DeepCache, TaylorSeer
from jaxdiff.runs.prompts import rows_of_labels
from jaxdiff.runs.run import Run
from jaxdiff.train import CheckpointError, make_mesh
from tests.tiny_run import TINY

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def folder(tiny_run: Path) -> Path:
    return tiny_run


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run.load(folder)


class CountingNet:
    """The run's network, counting how often it is traced: what is not traced anew is not compiled anew."""

    def __init__(self, net: Any) -> None:
        self.net, self.cond, self.traced = net, net.cond, 0

    def apply(self, *arguments: Any, **keywords: Any) -> Any:
        self.traced += 1
        return self.net.apply(*arguments, **keywords)


@pytest.fixture
def counting(run: Run) -> tuple[Run, CountingNet]:
    net = CountingNet(run.denoise.net)
    model = dataclasses.replace(run.model, denoise=dataclasses.replace(run.denoise, net=net))
    return dataclasses.replace(run, model=model), net


def test_training_leaves_what_it_says(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "checkpoints",
        "checkpoints.json",
        "lock",
        "metrics.jsonl",
        "samples",
        "tensorboard",
    }
    assert [p.name for p in (folder / "samples").iterdir()] == ["step_00000002.png"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(np.isfinite(line["loss"]) for line in lines)


def test_load(run: Run) -> None:
    assert (run.step, run.num_classes, run.shape, run.config.name) == (2, 10, (8, 8, 1), "digits")
    assert isinstance(run.process, CosineVP)
    x = jax.numpy.zeros((2, 8, 8, 1))
    prediction = run.denoise(x, 0.5, {"label": jax.numpy.array([1, 2])})
    assert isinstance(prediction, Prediction) and prediction.x0.shape == x.shape


def test_samples_are_images(run: Run) -> None:
    record = run.sample(jax.random.key(0), 3, {"label": [1, 2, 10]})
    assert record["x"].shape == (3, 8, 8, 1) and record["x"].dtype == np.uint8
    assert record["label"].tolist() == [1, 2, 10]
    x0 = run.sample(0, 3, {"label": [1, 2, 10]}, decode=False)
    assert x0.dtype == np.float32 and np.isfinite(x0).all() and np.abs(x0).max() <= 1.0  # clipped
    np.testing.assert_array_equal(np.rint((x0 + 1) * 127.5), record["x"])
    np.testing.assert_array_equal(run.sample(0, 3)["x"], run.sample(0, 3, {"label": 10})["x"])  # no label is the null


def test_weight_labels_seed_and_eta_do_not_compile_again(counting: tuple[Run, CountingNet]) -> None:
    run, net = counting
    run.sample(0, 4, {"label": 1}, guide=1.5)
    traced = net.traced
    assert traced > 0
    for seed, label, weight in ((1, 2, 0.0), (2, [1, 2, 3, 4], 1.0), (3, 10, 4.0)):
        run.sample(seed, 4, {"label": label}, guide=weight)
    run.sample(jax.random.key(5), 4, {"label": 0}, guide="cfg:2", start=100)
    assert net.traced == traced
    run.sample(0, 4, {"label": 1}, guide=1.5, sampler=DDIM(run.process, eta=0.1))  # the run's own draws no noise
    traced = net.traced
    run.sample(0, 4, {"label": 1}, guide=1.5, sampler=DDIM(run.process, eta=0.5))
    assert net.traced == traced


def test_sampler_and_steps_compile_once(counting: tuple[Run, CountingNet]) -> None:
    run, net = counting
    traced = [net.traced]
    for sampler, steps in (("ddim", 3), ("dpmpp_2m", 3), ("ddim", 4), ("ddim", 3), ("dpmpp_2m", 3), ("ddim", 4)):
        run.sample(0, 4, {"label": 1}, sampler=sampler, steps=steps)
        traced.append(net.traced)
    assert (np.diff(traced) > 0).tolist() == [True, True, True, False, False, False]


def test_a_last_batch_is_filled_up(counting: tuple[Run, CountingNet]) -> None:
    run, net = counting
    run.sample(0, 4, {"label": 1})
    traced = net.traced
    images = run.sample(0, 7, {"label": np.arange(7)}, batch_size=4)["x"].astype(int)
    assert images.shape == (7, 8, 8, 1) and net.traced == traced
    np.testing.assert_allclose(images[4:], run.sample(0, 3, {"label": np.arange(4, 7)}, start=4)["x"], atol=1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_same_images_at_any_batch_size(run: Run, sampler: str) -> None:
    labels = np.arange(64) % 10
    many = run.sample(7, 64, {"label": labels}, sampler=sampler, decode=False)
    few = run.sample(7, 16, {"label": labels[:16]}, sampler=sampler, decode=False)
    assert np.abs(many[:16] - few).max() < 1 / 127.5  # one grey level


@pytest.mark.nightly
def test_the_same_images_on_eight_devices(
    run: Run, folder: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    code = (
        "import sys, numpy as np; from jaxdiff.runs.run import Run\n"
        "run = Run.load(sys.argv[1]); assert run.mesh.size == 8\n"
        "plain = np.concatenate([run.sample(7, n, {'label': 3}, decode=False) for n in (16, 3)])\n"
        "kept = [run.sample(7, n, {'label': 3}, decode=False, compiled=sys.argv[3]) for n in (16, 3)]\n"
        "np.testing.assert_allclose(np.concatenate(kept), plain, atol=1e-5); np.save(sys.argv[2], plain)"
    )
    done = run_python("-c", code, folder, tmp_path / "images.npy", tmp_path / "kept", devices=8)
    assert done.stderr == ""
    images = np.load(tmp_path / "images.npy")
    ours = run.sample(7, 16, {"label": 3}, decode=False)
    np.testing.assert_allclose(images[:16], ours, atol=1e-4)
    np.testing.assert_allclose(images[16:], ours[:3], atol=1e-4)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"cond": {"label": 11}}, "label 11 is out of range: from 0 to 9"),
        ({"cond": {"label": -1}}, "label -1"),
        ({"cond": {"label": 1.5}}, "whole numbers"),
        ({"cond": {"label": [1, 2]}}, "2 rows for 4 samples"),
        ({"cond": {"text": "x"}}, "the conditions are ['label']"),
        ({"guide": 2.0}, "guidance leads towards a condition"),
        ({"cond": {"label": 1}, "guide": float("nan")}, "finite"),
        ({"cond": {"label": 1}, "guide": "cgf:2"}, "did you mean 'cfg'"),
        ({"cond": {"label": 1}, "negative": {"label": 2}}, "there is no guidance"),
        ({"ts": [1.0, 0.5], "steps": 3}, "leave steps and grid out"),
        ({"ts": [0.5, 1.0]}, "fall"),
        ({"x": np.zeros((3, 8, 8, 1))}, "x has shape (3, 8, 8, 1), expected (4, 8, 8, 1)"),
        ({"sampler": "dddim"}, "did you mean 'ddim'"),
        ({"grid": "karas"}, "did you mean 'karras'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"cond": {"label": ["1", ["2"]]}}, "label has rows of unequal lengths"),
        ({"num_steps": 3}, "there is no option 'num_steps'; did you mean 'steps'? (known: negative, sampler,"),
        ({"compiled": 3}, "sampling: expected str, bytes or os.PathLike object, not int"),
        ({"sampler": "euler_maruyama", "grid": "uniform"}, "sampling: "),
        ({"start": -1}, "start must be a whole number of at least 0, got -1"),
    ],
)
def test_sample_refuses(run: Run, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run.sample(0, 4, **keywords)
    assert message in str(caught.value)


def test_without_label_dropout_there_is_no_null(run: Run) -> None:
    config = dataclasses.replace(run.config, loss=dataclasses.replace(run.config.loss, dropout={}))
    strict = Run.of(config, run.denoise.params, run.step, run.mesh)
    assert strict.sample(0, 2, {"label": 1})["x"].shape == (2, 8, 8, 1)
    for keywords, message in (
        ({}, r"needs label: pass cond=\{'label': ...\}; it was trained without dropping it"),
        ({"cond": {"label": 10}}, "label 10 is out of range: from 0 to 9"),
        ({"cond": {"label": 1}, "guide": 2.0}, "trained without dropping any"),
    ):
        with pytest.raises(ConfigError, match=message):
            strict.sample(0, 2, **keywords)


def test_check_sees_a_sampler_that_does_not_fit(run: Run) -> None:
    run.check()
    config = dataclasses.replace(run.config, sample=dataclasses.replace(run.config.sample, sampler="ddpm:learned"))
    with pytest.raises(ConfigError, match="sample: "):
        Run.of(config, run.denoise.params, run.step, run.mesh).check()


def test_load_refuses(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Run.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        Run.load(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError):
        Run.load(tmp_path)
    with pytest.raises(CheckpointError, match="step 7"):
        Run.load(folder, step=7)
    options: Any
    for options, message in (
        ({"dtype": "float64"}, "dtype: float64 has no fractions, or needs JAX_ENABLE_X64: use float32"),
        ({"step": "2"}, "load: step must be a whole number of at least 0, got '2'"),
        ({"ema": "eam"}, r"there is no average of the weights 'eam'; did you mean 'ema'\? \(known: ema\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            Run.load(folder, **options)
    with pytest.raises(ConfigError, match="load: "):
        Run.load(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not the folder of a run: it is a file"):
        Run.load(folder / "config.json")
    assert Run.load(folder, trusted="jaxdiff").step == 2  # one name is a tuple of it


def test_save_takes_a_record_and_knows_the_home(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run.sample(0, 2)
    wrong: Any
    for wrong in (record["x"], None, {"label": [1]}):
        with pytest.raises(ConfigError, match="save: a record is a dict with 'x', as sample gives it"):
            run.save(tmp_path / "a.png", wrong)
    monkeypatch.setenv("HOME", str(tmp_path))
    run.save("~/a.png", record)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_ema_differs_from_the_last_weights(folder: Path, run: Run) -> None:
    last = Run.load(folder, step=2, ema=False)
    pairs = zip(jax.tree.leaves(last.denoise.params), jax.tree.leaves(run.denoise.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_rows() -> None:
    cond, columns = rows_of_labels(10, None)
    assert cond is not None and columns == 10 and cond["label"].tolist() == [c for c in range(10) for _ in range(10)]
    cond, columns = rows_of_labels(1000, 20)
    assert cond is not None and columns == 2 and sorted(set(cond["label"]))[:2] == [0, 111]
    cond, columns = rows_of_labels(10, 7, (3, 5))
    assert cond is not None and columns is None and cond["label"].tolist() == [3, 3, 3, 3, 5, 5, 5]
    assert rows_of_labels(None, 5) == (None, None)
    with pytest.raises(ConfigError, match="without labels"):
        rows_of_labels(None, 5, (1,))


@pytest.mark.nightly
def test_a_network_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--loss.dropout", "--network.num_classes", "None", *TINY]
    train.main(["--workdir", str(tmp_path / "r"), "--dry-run", *options])  # the data have labels
    assert "nothing was written" in capsys.readouterr().out

    config = parse_config(options, program="train.py", default_file=CONFIGS / "digits_unet.py").config
    config = dataclasses.replace(config, codec=Images((8, 8, 1)))
    run = Run.of(config, jax.jit(build_network(config).init)(jax.random.key(0)), 0, make_mesh())
    run.check()
    assert run.num_classes is None and run.sample(0, 2)["x"].shape == (2, 8, 8, 1)
    assert run.picture().shape[2] == 1
    with pytest.raises(ConfigError, match="label: there are no conditions: leave it out"):
        run.sample(0, 2, {"label": 1})


@pytest.mark.nightly
def test_ways_to_sample_faster(run: Run, tmp_path: Path) -> None:
    """Options that reuse nothing change nothing; a kept program gives the same images; what does not fit is refused."""
    label = {"label": [1, 2, 10]}
    plain = run.sample(0, 3, label, guide=2.0, decode=False)
    everything: dict[str, Any] = {
        "guide": ["cfg:2", "every:1", "interval:0,1e9"],
        "cache": DeepCache(1),
        "decode": False,
    }
    for kept in (tmp_path, tmp_path):  # made, then found
        np.testing.assert_allclose(run.sample(0, 3, label, **everything, compiled=kept), plain, rtol=1e-5, atol=1e-5)
    reused = run.sample(0, 3, label, guide=["cfg:2", "every:2"], cache="deepcache:2", decode=False)
    assert reused.shape == plain.shape and np.isfinite(reused).all() and (reused != plain).any()
    for wrong, message in (
        ({"guide": "every:2"}, "put cfg first"),
        ({"guide": ["cfg:2", "every:0"]}, "every is to be a whole number"),
        ({"guide": ["cfg:2", "interval:2,1"]}, "low < high"),
        ({"cache": TaylorSeer(2)}, "a cache of a diffusion transformer"),
        ({"sampler": DDPM(run.process, "learned")}, "learned"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.sample(0, 3, label, **wrong)
