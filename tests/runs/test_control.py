"""A ControlNet beside a run that stays as it is: the start, the training, and going on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff.codecs import Images, Outlines, SemanticMap
from jaxdiff.config import Config, ConfigError, FrozenWeights, LossConfig, SampleConfig, TrainConfig, load_config_file
from jaxdiff.networks import Controlled, ControlNet, UNet, functional
from jaxdiff.spec import Spec
from jaxdiff.train import CheckpointError, Ema, read_weights
from jaxdiff.train.initial import begun_as

UNET = UNet(8, in_channels=1, width=8, multipliers=(1,), blocks=1, attention_resolutions=(), num_classes=2)
CONTROL = ControlNet(UNET, "outlines", channels=1, size=(8, 8), widths=(8,), halving=False)


def squares() -> dict[str, Any]:
    """Bright squares of two sizes, anywhere."""
    rng = np.random.default_rng(0)
    x, label = np.zeros((128, 8, 8, 1), np.uint8), np.arange(128) % 2
    for picture, kind in zip(x, label, strict=True):
        row, column = rng.integers(0, 5 - kind, 2)
        picture[row : row + 3 + kind, column : column + 3 + kind] = 255
    return {"x": x, "label": label}


DATA = squares()


def config(folder: Path, steps: int, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "process": jaxdiff.Flow(),
        "parameterization": jaxdiff.Velocity(),
        "network": UNET,
        "ema": Ema(0.9),
        "loss": LossConfig(dropout={"label": 0.2}),
        "train": TrainConfig(
            steps=steps, batch_size=32, log_every=1, sample_every=0, freeze=("base",) if "network" in changes else ()
        ),
        "sample": SampleConfig(steps=6, num=8, guide=("cfg:2",)),
    }
    made = Config(name="squares", workdir=str(folder), **settings | changes)
    return dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, lr=3e-3, warmup=1))


def controlled(folder: Path, steps: int, **changes: Any) -> Config:
    return config(folder, steps, network=Controlled(UNET, (CONTROL,)), codec=Outlines((8, 8, 1)), **changes)


def same(a: Any, b: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return jaxdiff.fit(config(tmp_path_factory.mktemp("base") / "run", 40), DATA)


def test_the_start_is_the_base(base: Any) -> None:
    net = functional(Controlled(UNET, (CONTROL,)))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    found = read_weights(base.folder, shapes, begun_as=begun_as(controlled(base.folder, 1)))
    weights, control = base.denoise.params, found["controls"]["outlines"]
    assert same(found["base"], weights)
    assert same(control["encoder"], {name: weights[name] for name in control["encoder"]})
    left = [*jax.tree.leaves(control["picture"]), *jax.tree.leaves(control["out"]), *jax.tree.leaves(control["middle"])]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in left)


def test_a_control_is_learned_and_the_base_stays_bit_for_bit(base: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze: .* --init-from RUN"):
        jaxdiff.fit(controlled(tmp_path / "none", 1), DATA)
    losses: list[float] = []

    def fit(steps: int) -> Any:
        made = controlled(tmp_path / "run", steps)
        return jaxdiff.fit(made, DATA, init_from=base.folder, log=lambda _, figures: losses.append(figures["loss"]))

    first, run = fit(20), fit(60)  # which goes on
    assert (first.step, run.step, len(losses)) == (20, 60, 60)
    params = run.denoise.params
    assert same(params["base"], base.denoise.params)
    moved = params["controls"]["outlines"]
    assert not same(moved["encoder"]["conv_in"], params["base"]["conv_in"]) and np.abs(moved["middle"]["kernel"]).max()
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:10])
    labels, told = DATA["label"][:4], run.codec.encode({"x": DATA["x"][:4]})["control"]
    cond = {"label": labels, "control": told}
    off = run.sample(0, 4, {**cond, "control_scale": 0.0}, decode=False)
    np.testing.assert_array_equal(off, base.sample(0, 4, {"label": labels}, decode=False))
    assert np.abs(run.sample(0, 4, cond, decode=False) - off).max() > 0.1
    again = jaxdiff.load(tmp_path / "run")
    assert same(again.denoise.params, params) and again.picture().shape[2] == 1


@pytest.mark.nightly
def test_it_goes_on_bit_for_bit(base: Any, tmp_path: Path) -> None:
    """The base by its place in the configuration, as --init-from writes it."""
    frozen = (FrozenWeights(name="base", path=str(base.folder)),)
    whole = jaxdiff.fit(controlled(tmp_path / "whole", 4, frozen=frozen), DATA)
    made = controlled(tmp_path / "parts", 2, frozen=frozen)
    jaxdiff.fit(made, DATA)
    parts = jaxdiff.fit(dataclasses.replace(made, train=dataclasses.replace(made.train, steps=4)), DATA)
    assert parts.step == 4 and same(parts.denoise.params, whole.denoise.params)


def test_weights_that_do_not_fit(base: Any, tmp_path: Path) -> None:
    wide = dataclasses.replace(UNET, width=16)
    other = Controlled(wide, (dataclasses.replace(CONTROL, unet=wide),))
    made = dataclasses.replace(controlled(tmp_path / "run", 1), network=other)
    with pytest.raises(CheckpointError, match="it lacks a part of the weights that are needed"):
        jaxdiff.fit(made, DATA, init_from=base.folder)
    whole = dataclasses.replace(made, train=dataclasses.replace(made.train, freeze=("base", "controls/*/middle")))
    with pytest.raises(ConfigError, match="of this network 'base' alone has weights to start with, not controls"):
        jaxdiff.fit(whole, DATA, init_from=base.folder)


def test_the_shipped_configuration_is_around_the_other() -> None:
    shipped, plain = load_config_file("mnist_control"), load_config_file("mnist_unet")
    assert shipped.network.base == plain.network and shipped.train.freeze == ("base",)
    assert shipped.codec.spec["control"].shape == shipped.network.cond["control"].shape


SEMANTIC = ControlNet(UNET, "semantic", classes=3, size=(8, 8), widths=(8,), halving=False)


def of_maps(folder: Path, steps: int) -> Config:
    """Half of the samples lose their label, a tenth their map."""
    made = config(folder, steps, network=Controlled(UNET, (SEMANTIC,)), codec=SemanticMap(None, classes=3))
    return dataclasses.replace(made, loss=LossConfig(dropout={"label": 0.5, "control": 0.1}))


@pytest.mark.nightly
def test_a_semantic_map_is_learned(base: Any, tmp_path: Path) -> None:
    """A square's place and size are its class in the map: 1 the small ones, 2 the large ones."""
    ids = (DATA["x"][..., 0] > 0) * (DATA["label"][:, None, None] + 1).astype(np.uint8)
    run = jaxdiff.fit(of_maps(tmp_path / "run", 300), {**DATA, "map": ids}, init_from=base.folder)
    assert same(run.denoise.params["base"], base.denoise.params)
    drawn = {w: run.sample(0, 64, {"control": ids[:64], "control_scale": w})["x"] for w in (1.0, 0.5, 0.0)}
    bright = {w: x[..., 0] > 127 for w, x in drawn.items()}
    within = {w: (ink & (ids[:64] > 0)).sum() / ink.sum() for w, ink in bright.items()}
    large = {w: np.mean((ink.sum(axis=(1, 2)) > 12.5) == (DATA["label"][:64] == 1)) for w, ink in bright.items()}
    assert min(within[1.0], within[0.5]) > 0.85 and within[0.0] < 0.5, within
    assert min(large[1.0], large[0.5]) > 0.9 and large[0.0] < 0.7, large  # of 9 pixels and of 16
    again = jaxdiff.load(tmp_path / "run")
    np.testing.assert_array_equal(
        again.sample(0, 4, {"control": ids[:4]})["x"], run.sample(0, 4, {"control": ids[:4]})["x"]
    )
    assert again.codec == SemanticMap(Images((8, 8, 1)), classes=3, size=(8, 8))


def test_the_shipped_configuration_of_maps_is_around_the_other() -> None:
    shipped, plain = load_config_file("mnist_semantic"), load_config_file("mnist_unet")
    assert shipped.network.base == plain.network and shipped.train.freeze == ("base",)
    made, taken = dataclasses.replace(shipped.codec, size=(28, 28)).spec["control"], shipped.network.cond["control"]
    assert made == taken == Spec((28, 28), "int32", 0, 10, null=11)
