from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff.codecs import Arrays, Images, recipe
from jaxdiff.config import (
    ClassifierConfig,
    Config,
    ConfigError,
    StoredTypeError,
    batch_shapes,
    build_loss,
    build_network,
    check,
    check_folder,
    differences,
    dumps,
    from_json,
    load_config_file,
    parse_config,
    read_config,
    resolve,
    to_json,
    with_saved,
)
from jaxdiff.config.serialize import MOVED
from jaxdiff.config.stored import codec_reads
from jaxdiff.methods import parse_sampler, times
from jaxdiff.networks import MLP
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.spec import Spec
from jaxdiff.train import make_mesh, make_optimizer, state_sharding, state_template

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = {"cifar10_unet": 35_746_307, "imagenet64_adm": 295_904_454, "imagenet256_dit_xl2": 674_834_720}
FILES = sorted(CONFIGS.glob("*.py"))


def parsed(*arguments: str) -> Config:
    return parse_config(arguments, program="train.py", default_file=CONFIGS / "digits_unet.py").config


@pytest.fixture(scope="module")
def digits() -> Config:
    return load_config_file(CONFIGS / "digits_unet.py")


# --- The shipped configurations


def test_all_are_here() -> None:
    names = """cifar10_edm cifar10_unet cifar10_vp_continuous digits_dit digits_flow digits_unet digits_ve study_2d
        imagenet256_dit_xl2 imagenet64_adm mnist_control mnist_style mnist_superres mnist_unet mnist_semantic
        cifar10_autoencoder mnist_autoencoder imagenet256_autoencoder cifar10_latent_dit mnist_latent_unet
        two_digits_text emoji_text digits_classifier mnist_classifier two_digits_cascade_16 two_digits_cascade_32
        mnist_cascade_8 mnist_cascade_28 cifar10_cascade_8 cifar10_cascade_32"""
    assert {f.stem for f in FILES} == set(names.split())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_config_is_stored_and_read_back_equal(file: Path) -> None:
    config = load_config_file(file)
    text = dumps(config)
    again = from_json(json.loads(text))
    assert again == config
    assert dumps(again) == text
    for ours, theirs in zip(
        jax.tree.leaves(getattr(again, "process", None)), jax.tree.leaves(getattr(config, "process", None)), strict=True
    ):
        assert np.array_equal(ours, theirs) and np.asarray(ours).dtype == np.asarray(theirs).dtype
    assert max(map(len, text.splitlines())) > 0 and "log_alpha" not in text  # derived tables are not stored


class StandIn:
    """A source of two records of a spec."""

    def __init__(self, spec: dict[str, Spec]) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return 2

    def take(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            name: rng.integers(0, 2, (len(indices), *(size or 1 for size in spec.shape))).astype(spec.dtype)
            for name, spec in self.spec.items()
        }


def codec_of_shapes(config: Config, folder: Path) -> tuple[Any, Any]:
    """How a shipped autoencoder is found, as if it were trained, and the codec of its shapes."""
    statistics = {"step": 1, "mean": [0.0] * config.network.in_channels, "std": [1.0] * config.network.in_channels}
    (folder / "latents.json").write_text(json.dumps(statistics))

    def read(path: str, step: int | None, checksum: str | None, part: str) -> recipe.Weights:
        net = Autoencoder(load_config_file(Path(path).name).network)
        return recipe.Weights(net, jax.eval_shape(net.init, jax.random.key(0)), step or 1, "checksum")

    return (lambda path, part: (load_config_file(Path(path).name), folder)), read


@pytest.mark.parametrize("file", [f for f in FILES if "autoencoder" not in f.stem], ids=lambda f: f.stem)
def test_config_is_good_and_fits_by_shapes(file: Path, tmp_path: Path) -> None:
    """Everything is built, sharded and traced; nothing of the size of the model is made."""
    config = load_config_file(file)
    check(config)
    assert file.read_text().count("Expected:") == 1
    size = getattr(config.network, "image_size", None) or config.data.image_size or 8
    channels = config.network.in_channels
    x = Spec((size, size, channels), "uint8", 0, 255)
    if config.data.name.startswith("points:"):
        x = Spec((channels,), "float32")
    find: Any = None
    read: Any = None
    if recipe.is_recipe(recipe.innermost(config.codec)):  # latents, whose images these are
        size = {"mnist": 28, "cifar10": 32}.get(config.data.name) or config.data.image_size
        x = Spec((size, size, 1 if config.data.name == "mnist" else 3), "uint8", 0, 255)
        find, read = codec_of_shapes(config, tmp_path)
    label = {} if config.num_classes is None else {"label": Spec((), "int32", 0, config.num_classes - 1)}
    text = {} if config.tokenizer is None else {"text": Spec((), "str")}
    maps = {name: dataclasses.replace(spec, shape=x.shape[:2]) for name, spec in codec_reads(config.codec).items()}
    source: Any = StandIn({"x": x, **label, **text, **maps})
    config = resolve(config, source, find)
    codec: Any = recipe.built(config.codec, read)[1]
    net, mesh = build_network(config), make_mesh(data=1)
    loss: Any = build_loss(config)
    optimizer, _ = make_optimizer(steps=config.train.steps, **dataclasses.asdict(config.optimizer))
    template = state_template(net, optimizer, loss, jax.random.key(0), mesh)
    shardings = jax.tree.leaves(state_sharding(template, mesh))
    assert [leaf.sharding for leaf in jax.tree.leaves(template)] == shardings
    if file.stem in PUBLISHED:
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template.params)) == PUBLISHED[file.stem]

    def forward(params: Any, batch: Any, history: Any, key: jax.Array) -> Any:
        return loss.terms(net, params, loss.draw(key, batch, history), key=key).loss

    batch = jax.eval_shape(lambda codec, batch: codec.encode(batch), codec, batch_shapes(config, source))
    shapes = template.params, batch, template.history, jax.random.key(0)
    assert jax.eval_shape(forward, *shapes).shape == (config.train.batch_size,)
    if isinstance(config, ClassifierConfig):
        return
    sampler = parse_sampler(config.sample.sampler, config.process)
    assert times(sampler, config.sample.grid, config.sample.steps).shape == (config.sample.steps,)


# --- JSON


def test_json_is_readable() -> None:
    text = dumps(load_config_file(CONFIGS / "cifar10_unet.py"))
    assert '"type": "jaxdiff.DiscreteVP"' in text
    assert '"multipliers": [1, 2, 2, 2]' in text
    assert len(text.splitlines()) < 170


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "os.system", "command": "true"}, "not from jaxdiff"),
        ({"type": "jaxdiff.config.serialize.importlib.import_module"}, "there is no"),
        ({"type": "jaxdiff.config.serialize.dumps", "value": 1}, "not a dataclass"),
        ({"type": "jaxdiff.config.schema.Any"}, "not a dataclass"),
        ({"type": "jaxdiffusion.Thing"}, "not from jaxdiff"),
        ({"type": "jaxdiff.nothing.Thing"}, "there is no"),
        ({"type": "jaxdiff.VP", "beta": 1.0}, "cannot be made"),
        ({"type": 3}, "not the import path"),
        ({"type": "jaxdiff..VP"}, "not the import path"),
        ({"type": None, "beta_min": 3}, "not the import path"),
        ({"array": [1, "x"], "dtype": "float32"}, "array cannot be read"),
    ],
)
def test_json_refuses(data: Any, message: str) -> None:
    with pytest.raises(StoredTypeError, match=message) as caught:
        from_json(data)
    assert "\n" not in str(caught.value)


def test_what_a_module_merely_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = dataclasses.make_dataclass("Foreign", ["x"])
    foreign.__module__ = "elsewhere"
    monkeypatch.setattr(jaxdiff.config, "Foreign", foreign, raising=False)
    with pytest.raises(StoredTypeError, match="not a dataclass of jaxdiff"):
        from_json({"type": "jaxdiff.config.Foreign", "x": 1})


def test_own_classes_need_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_ema.py").write_text(
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Mine:\n    rate: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stored = {"type": "my_ema.Mine", "rate": 0.25}
    with pytest.raises(StoredTypeError, match="not from jaxdiff"):
        from_json(stored)
    assert "my_ema" not in sys.modules
    made = from_json(stored, trusted=("jaxdiff", "my_ema"))
    assert made.rate == 0.25 and to_json(made) == stored


@pytest.mark.parametrize("old", MOVED)
def test_names_of_older_versions_are_found(old: str) -> None:
    """What has moved since a configuration was saved is read from where it stands now, and saved under that name."""
    assert to_json(from_json({"type": old}))["type"] == MOVED[old]
    module, _, name = old.rpartition(".")
    with pytest.raises((ImportError, AttributeError)):
        getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("value", [lambda x: x, object(), {1, 2}])
def test_what_cannot_be_stored_is_refused(digits: Config, value: Any) -> None:
    with pytest.raises(StoredTypeError, match="cannot be stored"):
        to_json(dataclasses.replace(digits, ema=value))


def test_differences_name_the_fields(digits: Config) -> None:
    other = parsed("--optimizer.lr", "3", "--seed", "1")
    assert differences(to_json(digits), to_json(other)) == {"optimizer.lr": (digits.optimizer.lr, 3.0), "seed": (0, 1)}
    assert digits != other and digits == load_config_file(CONFIGS / "digits_unet.py")


# --- Overrides


def test_overrides() -> None:
    file = str(CONFIGS / "cifar10_vp_continuous.py")
    config = parsed(
        *(file, "--optimizer.lr", "1e-4", "--workdir", "runs/x", "--train.steps", "7", "--data.name", "tfds:cifar10"),
        *(
            "--process.beta_max",
            "10",
            "--train.log-every",
            "3",
            "--checkpoint.every=5",
            "--data.path",
            "a b",
            "--seed",
            "9",
        ),
        *(
            "--network.multipliers",
            "1",
            "2",
            "--data.no-flip",
            "--parameterization.time.scale",
            "2",
            "--sample.guide",
        ),
    )
    assert (config.optimizer.lr, config.folder, config.train.steps, config.data.name) == (
        1e-4,
        "runs/x",
        7,
        "tfds:cifar10",
    )
    assert (config.process.beta_max, config.train.log_every, config.checkpoint.every) == (10.0, 3, 5)  # type: ignore[attr-defined]
    assert (config.data.path, config.seed, config.network.multipliers, config.data.flip) == ("a b", 9, (1, 2), False)
    assert config.parameterization.time.scale == 2.0  # type: ignore[attr-defined]
    assert config.process.beta_min == 0.1 and config.train.batch_size == 128  # type: ignore[attr-defined]


def test_both_spellings() -> None:
    assert parsed("--train.log_every", "3") == parsed("--train.log-every", "3") == parsed("--train.log-every=3")


def test_default_is_digits(digits: Config) -> None:
    assert parsed() == digits and digits.folder == "runs/digits"


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import dataclasses\nfrom configs.digits_unet import config as base\nimport jaxdiff\n"
        "config = dataclasses.replace(base, name='own', process=jaxdiff.VP())\n"
    )
    config = parsed(str(tmp_path / "own.py"), "--process.beta_max", "10")
    assert (config.name, config.process.beta_max) == ("own", 10.0)  # type: ignore[attr-defined]


# --- Checks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--train.steps 0", "train.steps: 0 is out of range, it must be at least 1"),
        ("--train.batch_size -8", "train.batch_size: -8"),
        ("--train.batch_size 10 --train.accumulate 4", "train.batch_size: 10 is no multiple of train.accumulate, 4"),
        ("--optimizer.lr 0", "optimizer.lr: 0.0 is out of range, it must be above 0"),
        ("--optimizer.lr nan", "optimizer.lr: nan"),
        ("--optimizer.lr inf", "optimizer.lr: inf"),
        ("--loss.dropout label=1.5", "loss.dropout: label 1.5 is out of range, it must be at least 0 and at most 1"),
        ("--loss.dropout label", "--loss.dropout takes NAME=NUMBER, several or none, such as label=0.1, got 'label'"),
        ("--loss.dropout lable=0.1", "there is no condition 'lable'; did you mean 'label'? (the network takes label)"),
        ("--seed -1", "seed: -1"),
        ("--name ../x", "name: '../x'"),
        ("--sample.sampler dddim", "did you mean 'ddim'"),
        ("--sample.grid karas", "did you mean 'karras'"),
        ("--sample.steps 0", "sample.steps: 0"),
        ("--mesh.data 0", "mesh.data: 0"),
        ("--network.num_classes None", "there is no condition 'label' (the network takes none)"),
        ("--network.no-null_class", "loss.dropout: label has no null, so it cannot be dropped"),
        (
            "--loss.dropout --sample.guide cfg:2",
            "sample.guide: guidance needs a model trained with loss.dropout above 0",
        ),
        ("--sample.guide cfg", "sample.guide: cfg: cfg needs weight"),
        ("--sample.sampler ddim:eta=2", "sample.sampler: "),
        ("configs/digits_ve.py --process.sigma_max 0.001", "process: "),
        ("configs/cifar10_vp_continuous.py --process.beta_min -1", "process: "),
    ],
)
def test_ranges(arguments: str, message: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(ConfigError) as caught:
        check(parsed(*arguments.split()))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_dropout_is_written_by_name(digits: Config) -> None:
    assert parsed("--loss.dropout", "label=0.25").loss.dropout == {"label": 0.25}
    assert parsed("--loss.dropout").loss.dropout == {} and digits.loss.dropout == {"label": 0.1}


def test_mappings_are_stored_by_name(digits: Config) -> None:
    stored = to_json(digits.loss.dropout)
    assert stored == {"label": 0.1} and from_json(stored) == {"label": 0.1}
    with pytest.raises(StoredTypeError, match="cannot be stored"):
        to_json({"type": 1.0})


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("train", "steps", 2.5, "a whole number, got 2.5"),
        ("train", "steps", "5", "a whole number, got '5'"),
        ("train", "steps", True, "a whole number, got True"),
        ("train", "batch_size", 32.0, "a whole number, got 32.0"),
        ("train", "batch_size", None, "a whole number, got None"),
        ("train", "freeze", (1,), "several of: text, got (1,)"),
        ("optimizer", "lr", "1e-3", "a number, got '1e-3'"),
        ("optimizer", "schedule", "linear", "one of constant, cosine, inverse_sqrt, got 'linear'"),
        ("loss", "dropout", 0.1, "NAME=NUMBER, several or none, such as label=0.1, got 0.1"),
        ("loss", "dropout", {"label": "0.1"}, "NAME=NUMBER, several or none, such as label=0.1, got {"),
        ("sample", "clip", 1, "True or False, got 1"),
        ("data", "path", 3, "text or None, got 3"),
        (None, "seed", 1.5, "a whole number, got 1.5"),
        (None, "name", 3, "text, got 3"),
        (None, "process", "vp", "a Process, got 'vp'"),
        (None, "process", jaxdiff.VP, "a Process, got the class VP: make one, VP()"),
        (None, "network", MLP, "an object, such as MLP(width=64)"),
        (None, "codec", "images", "an object, such as MLP(width=64) or Images((8, 8, 1)), got 'images'"),
    ],
)
def test_a_field_of_another_type_is_named(part: str | None, name: str, value: Any, said: str, digits: Config) -> None:
    whole: Any = digits
    held: Any = digits if part is None else getattr(digits, part)
    changed: Any = dataclasses.replace(held, **{name: value})
    with pytest.raises(ConfigError) as caught:
        check(changed if part is None else dataclasses.replace(whole, **{part: changed}))
    assert str(caught.value).startswith(f"{name if part is None else f'{part}.{name}'}: expected {said}")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "", "..", "a/b"])
def test_what_names_no_folder(name: str, digits: Config) -> None:
    with pytest.raises(ConfigError, match=r"name: .* cannot name a folder"):
        check(dataclasses.replace(digits, name=name))
    long = dataclasses.replace(digits, workdir="a" * 300)
    with pytest.raises(ConfigError, match="cannot be used: File name too long"):
        check_folder(with_saved(long))
    with pytest.raises(ConfigError, match="is not the folder of a run: it does not exist"):
        read_config("a" * 300)


def test_one_name_is_a_tuple_of_it_and_a_path_its_text(digits: Any) -> None:
    assert dataclasses.replace(digits.train, freeze="down").freeze == ("down",)
    assert dataclasses.replace(digits.sample, guide="cfg:2").guide == ("cfg:2",)
    assert dataclasses.replace(digits.sample, guide=2).guide == (2,)
    assert dataclasses.replace(digits.data, path=Path("a", "b")).path == "a/b"
    steps = dataclasses.replace(digits.train, steps=np.int64(9))
    changed = dataclasses.replace(digits, workdir=Path("runs", "x"), train=steps)
    check(changed)
    assert changed.folder == "runs/x" and from_json(to_json(changed)) == changed


def test_the_bound_of_latents_has_a_density_and_that_of_images_grey_levels() -> None:
    """Nichol & Dhariwal's last term is over 256 values; latents (DiT) have none."""
    cases = ("imagenet256_dit_xl2", Arrays((32, 32, 4)), None), ("imagenet64_adm", Images((64, 64, 3)), 256)
    for name, codec, levels in cases:
        loss: Any = build_loss(dataclasses.replace(load_config_file(name), codec=codec))
        assert loss.vlb_weight > 0 and loss.levels == levels
