"""A cascade: its stages one by one, what each is told, keys, and files that do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import V
from jaxdiff.codecs import Images
from jaxdiff.codecs.augmentation import noised_copy
from jaxdiff.codecs.images import to_model_range
from jaxdiff.commands import sample as command
from jaxdiff.config import Config, ConfigError, DataConfig, LossConfig, SampleConfig, TrainConfig
from jaxdiff.networks import Image, Level, UNet
from jaxdiff.noise import sample_keys
from jaxdiff.plan import draw
from jaxdiff.runs import Cascade, Run, Stage
from jaxdiff.runs.cascade import STAGE
from jaxdiff.schedule import CosineVP
from jaxdiff.train import make_mesh
from jaxdiff.train.ema import Ema
from tests.commands.test_cli import one_line
from tests.test_readme import blocks


def config(name: str, size: int, low: int | None = None, augment: float = 0.95, classes: int | None = 3) -> Config:
    told: tuple[Any, ...] = () if low is None else (Image("low", (low, low), 1, low=None, high=None),)
    told += (Level("low_level"),) if low and augment else ()
    return Config(
        name=name,
        data=DataConfig(name="own"),
        process=CosineVP(),
        parameterization=V(),
        network=UNet(
            image_size=size,
            in_channels=1,
            width=8,
            multipliers=(1,),
            blocks=1,
            attention_resolutions=(),
            num_classes=classes,
            conditions=told,
        ),
        codec=Images((size, size, 1), low_resolution=low, augment=augment if low else 0.0),
        ema=Ema(0.9),
        train=TrainConfig(steps=1),
        loss=LossConfig(dropout={"label": 0.1} if classes else {}),
        sample=SampleConfig(sampler="ddim", steps=2, guide=("cfg:2",) if classes else ()),
    )


def run_of(made: Config) -> Run:
    """An untrained run, its weights moved: those of the last layer are 0."""
    net = jaxdiff.config.build_network(made)
    params = jax.jit(net.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), params)
    return Run.of(made, params, 0, make_mesh())


@pytest.fixture(scope="module")
def small() -> Run:
    return run_of(config("small", 4))


@pytest.fixture(scope="module")
def large() -> Run:
    return run_of(config("large", 8, low=4))


@pytest.fixture(scope="module")
def cascade(small: Run, large: Run) -> Cascade:
    return Cascade((Stage(small), Stage(large, 0.3, {"guide": 1.5})))


LABELS = {"label": [0, 2, 1]}


def test_stages_are_the_runs_one_after_the_other(cascade: Cascade, small: Run, large: Run) -> None:
    seen: list[tuple[int, Any]] = []
    key = jax.random.key(7)
    found = cascade.sample(key, 3, LABELS, on_stage=lambda k, record: seen.append((k, record)))
    first = small.sample(key, 3, LABELS)
    own = jax.random.fold_in(jax.random.fold_in(key, STAGE), 1)
    low = noised_copy(to_model_range(first["x"]), 0.3, sample_keys(own, 0, 3))
    second = large.sample(own, 3, {**LABELS, "low": low, "low_level": 0.3}, guide=1.5)
    assert [k for k, _ in seen] == [0, 1] and found["x"].shape == (3, 8, 8, 1)
    for given, expected in ((seen[0][1], first), (seen[1][1], second), (found, second)):
        assert sorted(given) == ["label", "x"]
        np.testing.assert_array_equal(given["x"], expected["x"])
        np.testing.assert_array_equal(given["label"], [0, 2, 1])


def test_a_sample_is_the_same_in_any_batch(cascade: Cascade) -> None:
    seen: list[Any] = []
    whole = cascade.sample(7, 3, LABELS, on_stage=lambda k, record: seen.append(record["x"]))["x"].astype(int)
    parts = cascade.sample(7, 3, LABELS, batch_size=1)["x"]
    again: list[Any] = []
    last = cascade.sample(7, 1, {"label": [1]}, start=2, on_stage=lambda k, record: again.append(record["x"]))["x"]
    assert np.abs(parts - whole).max() <= 1 and np.abs(last - whole[2:]).max() <= 1  # grey levels, of rounding
    assert np.abs(again[0].astype(int) - seen[0][2:]).max() <= 1 < np.abs(whole[0] - whole[2]).max()


def test_noise_of_the_small_picture_is_the_samples() -> None:
    """Sample i has the same noise on its small picture in any batch, bit for bit; at level 0 there is none."""
    low, key = jnp.zeros((3, 4, 4, 1)), jax.random.key(1)
    whole = noised_copy(low, 0.5, sample_keys(key, 4, 3))
    np.testing.assert_array_equal(noised_copy(low[:1], 0.5, sample_keys(key, 6, 1)), whole[2:])
    assert float(jnp.abs(whole[0] - whole[1]).min()) > 0
    np.testing.assert_array_equal(noised_copy(low + 0.7, 0.0, sample_keys(key, 0, 3)), low + 0.7)


def test_the_level_is_of_the_call_or_of_the_stage_and_compiles_nothing(cascade: Cascade) -> None:
    plain = Cascade((cascade.stages[0], dataclasses.replace(cascade.stages[1], options={})))
    jitted: Any = cast(Any, draw)
    before = jitted._cache_size()
    found = [plain.sample(0, 3, {**LABELS, "low_level": s})["x"].astype(int) for s in (0.0, [0.3] * 3, 0.9)]
    found.append(plain.sample(0, 3, LABELS)["x"])
    assert jitted._cache_size() - before <= 2  # one program a stage
    np.testing.assert_array_equal(found[1], found[3])  # which is the stage's own level
    assert np.abs(found[0] - found[2]).max() > 1
    with pytest.raises(ConfigError, match=r"low_level is of the noise on large's small picture, 0 to 0\.95, got 1"):
        plain.sample(0, 3, {**LABELS, "low_level": 1})


def test_the_told_level_reaches_the_network(large: Run) -> None:
    """The same small picture, told as clean or as noise."""
    low = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
    clean, noisy = (large.sample(0, 3, {**LABELS, "low": low, "low_level": s})["x"].astype(int) for s in (0.0, 0.9))
    assert np.abs(clean - noisy).max() > 1


def test_what_is_told_goes_to_the_stages_that_know_it(small: Run) -> None:
    plain = run_of(config("plain", 8, low=4, augment=0.0, classes=None))
    cascade = Cascade((Stage(small), Stage(plain)))
    found = cascade.sample(3, 3, LABELS, guide="cfg:3")
    first = small.sample(3, 3, LABELS, guide="cfg:3")
    own = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), STAGE), 1)
    np.testing.assert_array_equal(found["x"], plain.sample(own, 3, {"low": to_model_range(first["x"])})["x"])
    assert "label" not in found
    cascade.sample(3, 3)  # without a condition no stage is guided
    with pytest.raises(ConfigError, match="guidance leads towards a condition"):
        cascade.sample(3, 2, guide="cfg:3")
    with pytest.raises(ConfigError, match="negative is what guidance leads away from"):
        cascade.sample(3, 3, negative={"label": 1})
    with pytest.raises(ConfigError, match="no condition of this cascade 'lable'; did you mean 'label'"):
        cascade.sample(3, 3, {"lable": 1})
    with pytest.raises(ConfigError, match="no option of a cascade 'step'; did you mean 'steps'"):
        cascade.sample(3, 3, step=3)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda s, g: (s,), "a cascade has two stages or more, got 1"),
        (lambda s, g: (g, s), "large enlarges a picture: a cascade begins with a run that needs none"),
        (lambda s, g: (s, s), "small is told no small picture 'low', so it cannot follow small"),
        (lambda s, g: (s, g, g), r"large enlarges pictures of \(4, 4, 1\), and large draws \(8, 8, 1\)"),
        (
            lambda s, g: (s, dataclasses.replace(g, level=2.0)),
            r"level is of the noise on its small picture, from 0 to 1, got 2\.0",
        ),
        (lambda s, g: (s, dataclasses.replace(g, level=0.97)), r"large was trained with .* up to 0\.95, got 0\.97"),
        (lambda s, g: (dataclasses.replace(s, level=0.5), g), "small was trained without noise on its small picture"),
        (
            lambda s, g: (Stage(_with_classes(s.run, 5)), g),
            "label is .* from 0 to 2 in large, and .* from 0 to 4 in small: train both on the same data",
        ),
    ],
)
def test_stages_that_do_not_fit(small: Run, large: Run, stages: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cascade(stages(Stage(small), Stage(large)))


def _with_classes(run: Run, classes: int) -> Run:
    spec = dataclasses.replace(run.model.conditions["label"], high=classes - 1, null=classes)  # type: ignore[type-var]
    return dataclasses.replace(run, model=dataclasses.replace(run.model, cond={"label": spec}))


@pytest.fixture
def file(small: Run, large: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cascade's file, beside folders that load as the runs."""
    runs = {"small": small, "large": large}
    monkeypatch.setattr(Run, "load", lambda folder, **options: runs[Path(folder).relative_to(tmp_path).name])
    text = '{"stages": ["small", {"run": "large", "level": 0.3, "steps": 2, "guide": ["cfg:1.5"]}]}'
    (tmp_path / "cascade.json").write_text(text)
    return tmp_path / "cascade.json"


def test_a_file_names_the_stages_and_what_they_say(file: Path, cascade: Cascade) -> None:
    found = jaxdiff.load(file)
    assert [stage.name for stage in found.stages] == ["small", "large"] and found.stages[1].level == 0.3
    assert found.stages[1].options == {"steps": 2, "guide": ["cfg:1.5"]}
    np.testing.assert_array_equal(found.sample(7, 3, LABELS)["x"], cascade.sample(7, 3, LABELS)["x"])
    with pytest.raises(ConfigError, match=r"cascade\.json: stage 1: there is no sampler 'unipcc'"):
        file.write_text(file.read_text().replace('"steps": 2', '"sampler": "unipcc"'))
        jaxdiff.load(file)


def test_the_command_writes_the_small_pictures_first(file: Path, cascade: Cascade, capsys: Any) -> None:
    out = file.parent / "s.npz"
    options = ["--label", "0", "2", "--num", "3", "--seed", "7", "--out", str(out)]
    command.main([str(file), *options])
    said = capsys.readouterr().out
    assert said.index("stage 1 of 2, small") < said.index("3 samples from")
    seen: list[Any] = []
    cascade.sample(7, 3, {"label": [0, 0, 2]}, on_stage=lambda k, record: seen.append(record["x"]))
    for written, expected in zip((file.parent / "s_4.npz", out), seen, strict=True):
        with np.load(written) as arrays:
            np.testing.assert_array_equal(arrays["x"], expected)
    command.main([str(file), "--num", "3", "--label", "1"])
    assert (file.parent / "cascade.png").is_file() and (file.parent / "cascade_4.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--image a.png", "--image is of one model, and"),
        ("--size 8 16", "--size is of one model"),
        ("--step 3", "--step is of one model"),
        ("--label 4", "label 4 is out of range"),
        ("--cond low=0", "'low=0' is no NAME=VALUE of this run's conditions (label, low_level)"),
        ("--num 3 --label 1 --cond low_level=2", "0 to 0.95, got 2"),
        ("--sampler unipcc", "did you mean 'unipc'"),
    ],
)
def test_options_that_a_cascade_has_not(file: Path, options: str, message: str, capsys: Any) -> None:
    assert message in one_line(command.main, [str(file), *options.split()], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a cascade"),
        ("[1]", 'is no cascade: expected {"stages": '),
        ('{"stages": ["a", "b"], "stage": 1}', "no entry of .* 'stage'; did you mean 'stages'"),
        ('{"stages": ["a", 3]}', "stage 1 is the path of a run"),
        ('{"stages": ["a", {"run": "b", "levl": 0.1}]}', "no entry of stage 1 in .* 'levl'; did you mean 'level'"),
        ('{"stages": ["a", "b"]}', "a is not the folder of a run|a"),
    ],
)
def test_files_that_are_no_cascade(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cascade.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        jaxdiff.load(tmp_path / "cascade.json")


@pytest.mark.nightly
def test_the_page_on_cascades_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python blocks, one after the other, in an empty folder."""
    page = Path(__file__).resolve().parents[2] / "docs" / "cascades.md"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, "cascades", "exec"), names)
    assert names["digits"]["x"].shape == (20, 8, 8, 1) and (tmp_path / "digits.png").is_file()
    assert names["wide"].shape == (2, 4, 16, 1) and names["flow"].shift == 4
    np.testing.assert_array_equal(names["beside"][:, :, 4:8], np.stack([names["wide"][0, :, :4]] * 2))
