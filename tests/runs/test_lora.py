"""Training a LoRA on a run: what is trained, what is saved, a kill in the middle, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

import jaxdiff
import train
from jaxdiff.config import ConfigError, LoraConfig
from jaxdiff.networks import DiT
from jaxdiff.networks.lora import LoRA
from jaxdiff.pretrained import trained_lora, write_network
from jaxdiff.pretrained.adapters.lora import merged
from jaxdiff.train import CheckpointError, Checkpoints
from tests.pretrained.tiny import tiny
from tests.runs.test_fit import config as settings
from tests.runs.test_fit import same
from tests.tiny_run import TINY

X = np.random.default_rng(1).integers(0, 256, (64, 4, 4, 1)).astype(np.uint8)
NETWORK = DiT(in_channels=1, patch=2, width=8, depth=1, heads=2)


def config(folder: Path, rank: int = 2, **changes: Any) -> Any:
    network = changes.pop("network", NETWORK)
    lora = LoraConfig(rank=rank, **changes.pop("lora", {}))
    return settings(folder, network, **changes) if not rank else settings(folder, network, lora=lora, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    jaxdiff.fit(config(folder, 0), X)
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return jaxdiff.fit(config(tmp_path_factory.mktemp("tuned") / "tuned", steps=4), X, init_from=base)


def test_the_addition_alone_is_trained_and_saved(base: Path, tuned: Any) -> None:
    first, params = jaxdiff.load(base).model.denoise.params, tuned.model.denoise.params
    assert isinstance(tuned.model.denoise.net, LoRA)
    assert same(params["base"], first)
    ups = [leaf for path, leaf in traverse_util.flatten_dict(params["lora"], sep="/").items() if path.endswith("up")]
    assert ups and all(float(np.abs(up).max()) > 0 for up in ups)
    assert tuned.config.train.freeze == ("base",)
    (frozen,) = tuned.config.frozen
    assert (frozen.name, frozen.path, frozen.step) == ("base", str(base), 3)
    template = jax.eval_shape(lambda: params)
    with Checkpoints(Path(tuned.config.folder) / "checkpoints", readonly=True) as checkpoints:
        added = checkpoints.restore_weights({"lora": template["lora"]}, ema=True)[1]
        assert same(added["lora"], params["lora"])
        with pytest.raises(CheckpointError, match="base"):
            checkpoints.restore_weights(template, ema=True)


def test_it_is_loaded_and_samples_the_same(tuned: Any, base: Path) -> None:
    again, before = jaxdiff.load(tuned.config.folder), jaxdiff.load(base)
    drawn, others = (run.sample(0, 3, decode=False) for run in (again, before))
    assert np.array_equal(drawn, tuned.sample(0, 3, decode=False))
    assert not np.array_equal(drawn, others)


def test_it_goes_on_bit_for_bit(base: Path, tuned: Any, tmp_path: Path) -> None:
    jaxdiff.fit(config(tmp_path / "r", steps=2), X, init_from=base)
    on = jaxdiff.fit(config(tmp_path / "r", steps=4), X)  # the base is noted in the folder
    assert on.step == 4
    assert same(on.model.denoise.params, tuned.model.denoise.params)
    lines = [json.loads(line)["step"] for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"holds another configuration: lora.rank \(2 there, 3 here\)"):
        jaxdiff.fit(config(tmp_path / "r", 3, steps=4), X, init_from=base)


KILLED = """
import os, signal, sys
from pathlib import Path
import jaxdiff
from tests.runs.test_lora import X, config

folder, base, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def log(step, figures):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
jaxdiff.fit(config(folder, steps=9), X, init_from=base, log=log)
"""


@pytest.mark.nightly
def test_a_kill_in_the_middle_changes_nothing(base: Path, tmp_path: Path, run_python: Any) -> None:
    assert run_python("-c", KILLED, tmp_path / "killed", base, "7", check=False).returncode == -9
    assert "going on after step" in run_python("-c", KILLED, tmp_path / "killed", base, "0").stdout
    jaxdiff.fit(config(tmp_path / "whole", steps=9), X, init_from=base)
    for ema in (True, False):
        a, b = (jaxdiff.load(tmp_path / name, ema=ema) for name in ("killed", "whole"))
        assert same(a.denoise.params, b.denoise.params)


def test_other_weights_of_the_base_are_refused(base: Path, tuned: Any, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(tuned.config.folder, tmp_path / "tuned")
    jaxdiff.fit(config(tmp_path / "base", 0, steps=4), X)
    told = tmp_path / "tuned" / "config.json"
    text = told.read_text().replace(str(base), str(tmp_path / "base")).replace('"step": 3', '"step": 4')
    told.write_text(text)
    with pytest.raises(CheckpointError, match="its weights are not those that this run began with"):
        jaxdiff.load(tmp_path / "tuned")


def test_what_does_not_fit_is_refused_in_one_line(base: Path, tuned: Any, tmp_path: Path) -> None:
    def refused(said: str, *, init: Any = base, kind: Any = ConfigError, **changes: Any) -> None:
        whole = config(tmp_path / "r", **changes)
        with pytest.raises(kind, match=said) as caught:
            jaxdiff.fit(whole, X, init_from=init)
        assert "\n" not in str(caught.value)

    refused("lora: the parts that are not trained need weights to start with: --init-from RUN", init=None)
    refused("lora.rank: -1 is out of range", rank=-1)
    refused("lora.alpha: 0 is out of range", lora={"alpha": 0})
    refused("target 'sideways': it matches no weight", lora={"targets": ("sideways",)})
    refused("train.freeze: with lora.rank all weights", train={"freeze": ("blocks",)})
    refused("has no weights that fit", init=tuned.config.folder, kind=CheckpointError)
    zero = dataclasses.replace(config(tmp_path / "r", 0), lora=LoraConfig(targets=("linear",)))
    with pytest.raises(ConfigError, match=r"lora\.rank: it is 0, and other options of lora are given"):
        jaxdiff.fit(zero, X, init_from=base)


def test_the_command_line(trained: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--workdir", str(tmp_path / "r"), "--init-from", str(trained), "--train.steps", "1", *TINY]
    train.main([*options, "--lora.rank", "2", "--lora.targets", "attention", "middle_in/block", "--dry-run"])
    assert "dry run: configuration, data and shapes are good" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main([*options, "--lora.rank", "2", "--lora.targets", "sideways"])
    said = capsys.readouterr().err
    assert "error: lora: target 'sideways': it matches no weight" in said
    assert said.count("\n") == 1


def test_on_a_published_network_it_becomes_factors_of_published_modules(tmp_path: Path, tuned: Any) -> None:
    loaded = tiny("DiTTransformer2DModel", out_channels=4, num_layers=1)
    write_network(tmp_path / "transformer", loaded)
    data = {"x": np.random.default_rng(2).normal(size=(32, 8, 8, 4)).astype("f"), "label": np.arange(32) % 4}
    mine = config(tmp_path / "r", network=loaded.net.build, lora={"alpha": 4.0})
    run = jaxdiff.fit(mine, data, init_from=tmp_path / "transformer")
    lora = trained_lora(jaxdiff.load(tmp_path / "r"))
    names = {f"transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {*lora} == {"transformer"} and {*lora["transformer"]} == names
    theirs = merged({"transformer": loaded}, lora)["transformer"].params
    ours = jax.jit(run.denoise.net.merged)(run.denoise.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), theirs, ours)
    other = config(tmp_path / "o", network=dataclasses.replace(loaded.net.build, heads=4))
    with pytest.raises(ConfigError, match=r"network\.heads is 2 there, and 4 here"):
        jaxdiff.fit(other, data, init_from=tmp_path / "transformer")
    with pytest.raises(ConfigError, match="is no published model, so its modules have no published names"):
        trained_lora(tuned)
    with pytest.raises(ConfigError, match=r"expected a run that was trained with lora\.rank"):
        trained_lora(loaded)
