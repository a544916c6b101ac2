"""Configurations that come with jaxdiff, by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jaxdiff.config import ConfigError, load_config_file, parse_config
from jaxdiff.config.command_line import find_config, shipped_configs

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_configuration_by_its_name() -> None:
    shipped = shipped_configs()
    assert list(shipped.values()) == sorted(CONFIGS.glob("*.py")) and find_config("digits_ve") == shipped["digits_ve"]
    assert load_config_file("digits_ve") == load_config_file(CONFIGS / "digits_ve.py")
    assert parse_config(["digits_ve"], program="train").config.name == "digits_ve"
    assert parse_config([], program="train").config == load_config_file("digits_unet")


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name has neither a suffix nor a folder, so no file is ever taken for one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_ve").mkdir()
    (tmp_path / "digits_ve.py").write_text("")
    assert find_config("digits_ve") == CONFIGS / "digits_ve.py"
    assert find_config("digits_ve.py") == Path("digits_ve.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_vee", "there is no configuration 'digits_vee'; did you mean 'digits_ve'?"),
        ("xyzzy", "there is no configuration 'xyzzy'; there are cifar10_autoencoder, cifar10_cascade_32, "),
        ("nowhere/digits_ve", "there is no configuration 'nowhere/digits_ve'; did you mean 'digits_ve'?"),
        ("mnist_unet.py", "there is no configuration file 'mnist_unet.py'; did you mean 'mnist_unet'?"),
    ],
)
def test_an_unknown_configuration(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config_file(name)
    assert str(caught.value).startswith(message)


def test_configurations_need_nothing_of_the_repository() -> None:
    """They are installed with the package, where no module is called `configs`: one based on another loads it."""
    for file in CONFIGS.glob("*.py"):
        assert not re.search(r"^ *(from|import) configs\b", file.read_text(), re.MULTILINE), file.name
