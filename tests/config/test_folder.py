"""A run's folder: who may go on in it, and one training at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sample
import train
from jaxdiff.config import Config, ConfigError, check_folder, claim_folder, load_config_file, read_config
from jaxdiff.config.folder import FREE
from tests.commands.test_cli import one_line
from tests.tiny_run import TINY

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def digits() -> Config:
    return load_config_file(CONFIGS / "digits_unet.py")


def claim(config: Config) -> None:
    with claim_folder(config) as folder:
        assert folder == Path(config.folder)


@pytest.fixture
def claimed(digits: Config, tmp_path: Path) -> Config:
    config = dataclasses.replace(digits, workdir=str(tmp_path / "run"))
    claim(config)
    return config


def test_folder_holds_the_configuration(claimed: Config) -> None:
    assert read_config(claimed.folder) == claimed
    assert sorted(p.name for p in Path(claimed.folder).iterdir()) == ["config.json", "lock"]
    claim(claimed)


def test_checking_makes_nothing(digits: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(digits, workdir=str(tmp_path / "run"))
    assert check_folder(config) == tmp_path / "run"
    with claim_folder(config, active=False):
        assert list(tmp_path.iterdir()) == []


def test_folder_of_another_configuration_is_refused(claimed: Config) -> None:
    before = (Path(claimed.folder) / "config.json").read_text()
    other = dataclasses.replace(claimed, seed=3, optimizer=dataclasses.replace(claimed.optimizer, lr=5.0))
    with pytest.raises(ConfigError, match=r"optimizer\.lr \(0\.002 there, 5\.0 here\), seed \(0 there, 3 here\)"):
        claim(other)
    assert (Path(claimed.folder) / "config.json").read_text() == before


def test_what_does_not_change_learning_may_change(claimed: Config) -> None:
    other = dataclasses.replace(
        claimed,
        train=dataclasses.replace(claimed.train, log_every=7),
        sample=dataclasses.replace(claimed.sample, steps=7),
        checkpoint=dataclasses.replace(claimed.checkpoint, every=7),
    )
    claim(other)
    assert read_config(claimed.folder) == other


def test_more_steps_go_on_unless_the_schedule_depends_on_them(claimed: Config, tmp_path: Path) -> None:
    longer = dataclasses.replace(claimed, train=dataclasses.replace(claimed.train, steps=claimed.train.steps + 1))
    assert claimed.optimizer.schedule == "cosine"
    with pytest.raises(ConfigError, match=r"train\.steps"):
        claim(longer)
    constant = dataclasses.replace(claimed.optimizer, schedule="constant")
    claim(dataclasses.replace(claimed, workdir=str(tmp_path / "b"), optimizer=constant))
    claim(dataclasses.replace(longer, workdir=str(tmp_path / "b"), optimizer=constant))


def test_a_refusal_says_what_may_change_and_how_to_train_on(claimed: Config) -> None:
    longer = dataclasses.replace(claimed, train=dataclasses.replace(claimed.train, steps=claimed.train.steps + 1))
    with pytest.raises(ConfigError) as caught:
        claim(longer)
    assert "cosine" in str(caught.value) and f"--init-from {claimed.folder}" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        claim(dataclasses.replace(claimed, seed=3))
    assert f"these alone may change: {', '.join(FREE)}" in str(caught.value)
    assert f"--init-from {claimed.folder}" in str(caught.value)


def test_the_page_lists_what_may_change() -> None:
    page = (CONFIGS.parent / "docs" / "reliability.md").read_text()
    listed = re.findall(r"`--([a-z_.*]+)`", page.split("## What may change")[1].split("\n\nAnything else")[0])
    assert {name.removesuffix(".*") for name in listed} == {*FREE, "train.steps"}


def test_a_warm_up_longer_than_the_run_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--dry-run", "--workdir", str(tmp_path / "run"), "--train.steps", "50"])
    said = capsys.readouterr().err
    assert said.count("WARNING: ") == 1 and "optimizer.warmup: 100 steps are more than train.steps, 50" in said
    assert "ends at 0.001 and never reaches optimizer.lr, 0.002" in said
    train.main(["--dry-run", "--workdir", str(tmp_path / "run"), "--train.steps", "100"])
    assert capsys.readouterr().err == ""


def test_a_folder_of_something_else_is_refused(digits: Config, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not the folder of a run"):
        claim(dataclasses.replace(digits, workdir=str(tmp_path)))
    with pytest.raises(ConfigError, match="cannot be used"):
        claim(dataclasses.replace(digits, workdir=str(tmp_path / "notes.txt" / "run")))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "os.system"}', '{"type": "jaxdiff.VP"}', "\x00"])
def test_a_broken_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


# --- One training at a time


def test_a_held_folder_is_refused_until_it_is_let_go(claimed: Config) -> None:
    before = (Path(claimed.folder) / "config.json").read_bytes()
    other = dataclasses.replace(claimed, train=dataclasses.replace(claimed.train, log_every=7))
    with claim_folder(claimed), pytest.raises(ConfigError, match=r"run is in use by process \d+ on \S+: wait for it"):
        claim(other)
    assert (Path(claimed.folder) / "config.json").read_bytes() == before
    claim(other)


def test_whoever_looks_for_an_instant_is_no_obstacle(claimed: Config) -> None:
    with (Path(claimed.folder) / "lock").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        gone = threading.Timer(0.05, fcntl.flock, (stream, fcntl.LOCK_UN))
        gone.start()
        claim(claimed)
        gone.join()


def test_a_training_killed_before_its_configuration_is_no_obstacle(digits: Config, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on nowhere\n")
    (tmp_path / "config.partial").write_text("{")
    claim(dataclasses.replace(digits, workdir=str(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "lock"]


def test_a_file_system_without_locks_is_told_of(
    claimed: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    claim(claimed)
    assert "cannot be locked (Operation not supported): start no second run there" in capsys.readouterr().err


@contextlib.contextmanager
def training(folder: Path, repository: Path) -> Iterator[subprocess.Popen[str]]:
    """A real training without end, once it has saved; killed at the end."""
    options = ("--train.steps", "1000000", "--train.sample_every", "0", "--checkpoint.every", "2")
    command = [sys.executable, "train.py", "--workdir", str(folder), *TINY, *options]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 240
            while not any(folder.glob("checkpoints/[0-9]*[0-9]/params")):
                assert run.poll() is None and time.monotonic() < deadline, run.stderr and run.stderr.read()
                time.sleep(0.05)
            yield run
        finally:
            run.kill()


@pytest.mark.nightly
def test_a_second_training_is_refused_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    again = ["--workdir", str(folder), "--train.sample_every", "0", *TINY, "--train.steps"]
    with training(folder, repository) as first:
        assert f"is in use by process {first.pid} on " in one_line(train.main, [*again, "1000000"], capsys)
        sample.main([str(folder), "--num", "2", "--label", "1", "--steps", "2", "--out", str(tmp_path / "a.png")])
        assert (tmp_path / "a.png").is_file() and first.poll() is None
        capsys.readouterr()
    train.main([*again, "1"])  # SIGKILL was its end; more steps are done than that
    (done,) = re.findall(r"finished: all (\d+) steps are done", capsys.readouterr().out)
    assert int(done) >= 2
