"""`jaxdiff.fit`: own arrays and networks, a log, a kill in the middle, frozen parts, averages, another dtype."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxdiff
from jaxdiff import Flow, Run, Velocity
from jaxdiff.codecs import Arrays
from jaxdiff.config import CheckpointConfig, Config, ConfigError, LossConfig, SampleConfig, TrainConfig
from jaxdiff.data import DataError
from jaxdiff.networks import MLP, DiT
from jaxdiff.spec import Spec
from jaxdiff.train import CheckpointError, Checkpoints, Ema, read_weights
from jaxdiff.train.frozen import partition

X = (np.array([5.0, -2.0, 0.1]) + np.array([2.0, 0.3, 1.0]) * np.random.default_rng(0).normal(size=(256, 3))).astype(
    np.float32
)
LABELS = np.arange(256) % 4
NETWORK = MLP(in_channels=3, width=8, depth=1, frequencies=8)


def config(folder: Path, network: Any = NETWORK, **changes: Any) -> Config:
    steps = changes.pop("steps", 3)
    settings: dict[str, Any] = {
        "process": Flow(),
        "parameterization": Velocity(),
        "ema": Ema(0.5),
        "train": TrainConfig(steps=steps, batch_size=16, log_every=1, sample_every=0, **changes.pop("train", {})),
        "checkpoint": CheckpointConfig(every=2),
        "sample": SampleConfig(steps=4, num=4),
    }
    return Config(name="mine", workdir=str(folder), network=network, **settings | changes)


def same(a: Any, b: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)))


def test_an_own_array_in_one_call(tmp_path: Path) -> None:
    logged: dict[int, Any] = {}
    run = jaxdiff.fit(config(tmp_path / "r"), X, log=lambda step, figures: logged.update({step: dict(figures)}))
    assert isinstance(run, Run) and run.step == 3 and sorted(logged) == [1, 2, 3]
    assert all(np.isfinite(each["loss"]) for each in logged.values())
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [pytest.approx(logged[n]["loss"], rel=1e-6) for n in (1, 2, 3)]
    assert isinstance(run.codec, Arrays)
    np.testing.assert_allclose(run.codec.mean, X.mean(0), rtol=1e-5)
    again = jaxdiff.load(tmp_path / "r")
    record = run.sample(0, 5)
    np.testing.assert_array_equal(again.sample(0, 5)["x"], record["x"])
    assert record["x"].shape == (5, 3) and again.config.data.name == "own"
    with pytest.raises(ConfigError, match=r"this run's data came from a program's own source: pass it"):
        jaxdiff.fit(again.config)


def test_arrays_by_name_and_what_they_lack(tmp_path: Path) -> None:
    network = MLP(in_channels=3, width=8, depth=1, frequencies=8, num_classes=4)
    labelled = config(tmp_path / "r", network, loss=LossConfig(dropout={"label": 0.1}))
    run = jaxdiff.fit(labelled, {"x": X, "label": LABELS})
    assert run.sample(0, 2, {"label": [0, 3]})["label"].tolist() == [0, 3]
    with pytest.raises(DataError, match="conditioned on label, which is not in the data"):
        jaxdiff.fit(dataclasses.replace(labelled, workdir=str(tmp_path / "other")), X)


KILLED = """
import os, signal, sys
import jaxdiff
from tests.runs.test_fit import X, config
from pathlib import Path

folder, last = Path(sys.argv[1]), int(sys.argv[2])
def log(step, figures):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
jaxdiff.fit(config(folder, steps=9), X, log=log)
"""


def test_a_kill_in_the_middle_changes_nothing(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    killed = run_python("-c", KILLED, tmp_path / "killed", "7", check=False)
    assert killed.returncode == -9
    assert "going on after step" in run_python("-c", KILLED, tmp_path / "killed", "0").stdout
    run_python("-c", KILLED, tmp_path / "whole", "0")
    for ema in (True, False):
        a, b = (jaxdiff.load(tmp_path / name, ema=ema) for name in ("killed", "whole"))
        assert a.step == b.step == 9 and same(a.denoise.params, b.denoise.params)
    steps, losses = zip(
        *(
            (line["step"], line["loss"])
            for line in map(json.loads, (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines())
        ),
        strict=True,
    )
    assert list(steps) == list(range(1, 10))
    whole = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert losses == tuple(json.loads(line)["loss"] for line in whole)


def test_frozen_parts_come_from_another_run(tmp_path: Path) -> None:
    base = jaxdiff.fit(config(tmp_path / "base", steps=2), X)
    part = config(tmp_path / "part", train={"freeze": ("input", "blocks/0/inner")})
    with pytest.raises(ConfigError, match=r"train\.freeze: .* --init-from RUN"):
        jaxdiff.fit(part, X)
    run = jaxdiff.fit(part, X, init_from=tmp_path / "base")
    held, moved = (partition(run.denoise.params, part.train.freeze)[i] for i in (1, 0))
    before = partition(base.denoise.params, part.train.freeze)
    assert same(held, before[1]) and not same(moved, before[0])
    with (
        Checkpoints(tmp_path / "part" / "checkpoints", readonly=True) as checkpoints,
        pytest.raises(CheckpointError, match=r"blocks.*inner|input"),  # not saved a second time
    ):
        checkpoints.restore_weights(jax.eval_shape(lambda: run.denoise.params))
    again = jaxdiff.load(tmp_path / "part")
    assert same(again.denoise.params, run.denoise.params)
    np.testing.assert_array_equal(again.sample(0, 3)["x"], run.sample(0, 3)["x"])
    longer = dataclasses.replace(part, train=dataclasses.replace(part.train, steps=5))
    further = jaxdiff.fit(longer, X, init_from=tmp_path / "base")
    assert further.step == 5
    assert same(partition(further.denoise.params, part.train.freeze)[1], before[1])
    shutil.rmtree(tmp_path / "base")
    jaxdiff.fit(config(tmp_path / "base", steps=2, seed=1), X)
    with pytest.raises(CheckpointError, match="not those that this run began with"):
        jaxdiff.load(tmp_path / "part")


def test_averages_by_name(tmp_path: Path) -> None:
    rules = {"slow": Ema(0.9, warmup=False), "none": Ema(0.0, warmup=False)}
    run = jaxdiff.fit(config(tmp_path / "r", ema=rules), X)
    slow, none, last = (jaxdiff.load(tmp_path / "r", ema=ema) for ema in ("slow", "none", False))
    assert same(run.denoise.params, slow.denoise.params)  # the first is what is sampled from
    jax.tree.map(  # an average without memory is the weights, up to the rounding of (p - e) + e
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), none.denoise.params, last.denoise.params
    )
    assert not same(slow.denoise.params, last.denoise.params)
    assert same(jaxdiff.load(tmp_path / "r").denoise.params, slow.denoise.params)
    with pytest.raises(ConfigError, match=r"there is no average of the weights 'fast' \(known: slow, none\)"):
        jaxdiff.load(tmp_path / "r", ema="fast")


class Gain(linen.Module):
    """A Linen network with a label and dropout."""

    width: int = 8
    cond = {"label": Spec((), "int32", 0, 3, null=4)}  # noqa: RUF012

    @linen.compact
    def __call__(self, x: Any, t: Any, cond: Any, train: bool) -> Any:
        hidden = linen.Dense(self.width)(x) + linen.Embed(5, self.width)(cond["label"]) + t[:, None]
        return linen.Dense(x.shape[-1])(linen.Dropout(0.1, deterministic=not train)(linen.silu(hidden)))


class OwnModule(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.into, self.out = nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)
        self.table, self.dropout = nnx.Embed(5, width, rngs=rngs), nnx.Dropout(0.1)

    def __call__(self, x: Any, t: Any, cond: Any, key: Any) -> Any:
        hidden = nnx.silu(self.into(x) + self.table(cond["label"]) + jnp.reshape(t, (-1, 1)))
        return self.out(self.dropout(hidden, deterministic=key is None, rngs=key))


@dataclasses.dataclass(frozen=True)
class Own:
    """An NNX network likewise."""

    width: int = 8
    cond = {"label": Spec((), "int32", 0, 3, null=4)}  # noqa: RUF012

    def __call__(self, rngs: nnx.Rngs) -> OwnModule:
        return OwnModule(self.width, rngs)


@pytest.mark.parametrize("network", [Gain(16), Own(16)], ids=["linen", "nnx"])
def test_networks_of_ones_own(network: Any, tmp_path: Path) -> None:
    mine = config(tmp_path / "r", network, loss=LossConfig(dropout={"label": 0.2}))
    run = jaxdiff.fit(mine, {"x": X, "label": LABELS})
    again = jaxdiff.load(tmp_path / "r", trusted=("jaxdiff", "tests"))
    assert again.config.network == network and again.num_classes == 4
    np.testing.assert_array_equal(again.sample(0, 3, {"label": 1})["x"], run.sample(0, 3, {"label": 1})["x"])
    assert np.abs(run.sample(0, 3, {"label": 1})["x"] - run.sample(0, 3)["x"]).max() > 1e-4
    with pytest.raises(ConfigError, match="trust"):
        jaxdiff.load(tmp_path / "r")


def test_another_dtype(tmp_path: Path) -> None:
    network = DiT(in_channels=1, width=16, depth=1, heads=2, frequencies=8)
    images = np.random.default_rng(0).integers(0, 255, (32, 8, 8, 1)).astype(np.uint8)
    run = jaxdiff.fit(config(tmp_path / "r", network), images, cache=False)
    half = jaxdiff.load(tmp_path / "r", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.denoise.params)} == {"bfloat16"}
    assert half.config.network.dtype == "bfloat16"
    assert json.loads((tmp_path / "r" / "config.json").read_text())["network"]["dtype"] == "float32"
    a, b = (each.sample(0, 4, decode=False) for each in (run, half))
    assert 0 < np.abs(a - b).max() < 0.1 and b.dtype == np.float32
    for dtype, message in (("int8", "has no fractions"), ("bfloat17", "no type of numbers")):
        with pytest.raises(ConfigError, match=message):
            jaxdiff.load(tmp_path / "r", dtype=dtype)


@pytest.mark.nightly
def test_a_start_and_frozen_parts_are_of_the_first_average(tmp_path: Path) -> None:
    """As `load` takes it: the first that the configuration names, which is not the first of the alphabet."""
    two = config(tmp_path / "two", ema={"short": Ema(0.1), "long": Ema(0.9)})
    jaxdiff.fit(two, X)
    first, last = (jaxdiff.load(tmp_path / "two", ema=name).denoise.params for name in (True, "long"))
    assert same(first, jaxdiff.load(tmp_path / "two", ema="short").denoise.params) and not same(first, last)
    assert same(read_weights(tmp_path / "two", first), first)
    part = config(tmp_path / "part", train={"freeze": "input"})
    held = partition(jaxdiff.fit(part, X, init_from=tmp_path / "two").denoise.params, ["input"])[1]
    assert same(held, partition(first, ["input"])[1])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"ema": {}}, {}, r"ema: there is no average of the weights to sample from: give a rule, such as Ema\(0.999\)"),
        ({"ema": None}, {}, "ema: expected a rule, .* got None"),
        ({"ema": {"a": 0.9}}, {}, "ema: expected a rule, .* got 0.9"),
        ({"ema": {"a/b": Ema()}}, {}, "ema: 'a/b' cannot name an average"),
        ({}, {"log": "wandb"}, "log is a function of the step and its figures, got 'wandb'"),
    ],
)
def test_what_fit_refuses(changes: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        jaxdiff.fit(config(tmp_path / "r", **changes), X, **options)


def test_what_is_no_configuration_and_no_data(tmp_path: Path) -> None:
    wrong: Any = {"name": "r"}
    with pytest.raises(ConfigError, match="fit takes a Config, or the name or file of one, got dict"):
        jaxdiff.fit(wrong, X)
    pair: Any = (X, LABELS)
    with pytest.raises(DataError, match=r"one array, or arrays by name, .*; got a tuple of arrays"):
        jaxdiff.fit(config(tmp_path / "r"), pair)
