"""The two commands, `train.py` and `sample.py`: what they do, and what they say to mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import sample
import train
from jaxdiff.runs.run import Run
from tests.tiny_run import TINY


def one_line(main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The single line of an error, after checking that it is one, on stderr, with exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert err.count("\n") == 1 and "Traceback" not in err and "error: " in err, err
    assert "Traceback" not in out
    return err


@pytest.fixture(scope="module")
def finished(tiny_run: Path) -> Path:
    return tiny_run


# --- train.py: mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lr 1e-4", "there is no option --lr; did you mean --optimizer.lr?"),
        ("--optimizer.lrr 1e-4", "did you mean --optimizer.lr?"),
        ("--train.log-evry 3", "did you mean --train.log_every?"),
        ("--steps 3", "did you mean --train.steps or --sample.steps?"),
        ("--xyzzy", "there is no option --xyzzy; --help lists them all"),
        ("--optimizer.lr abc", "--optimizer.lr takes a number, got 'abc'"),
        ("--train.steps 1.5", "--train.steps takes a whole number, got '1.5'"),
        ("--train.steps", "--train.steps takes a whole number, got nothing"),
        ("--train.steps=x", "--train.steps takes a whole number, got 'x'"),
        ("--seed 1 --train.steps x --name y", "--train.steps takes a whole number, got 'x'"),
        ("--optimizer.schedule cosin", "takes one of constant, cosine, inverse_sqrt, got 'cosin'"),
        ("--train.steps 0", "train.steps: 0 is out of range, it must be at least 1"),
        ("--optimizer.lr -1", "optimizer.lr: -1.0 is out of range, it must be above 0"),
        ("--sample.sampler dddim", "did you mean 'ddim'"),
        ("--data.name digitz", "did you mean 'digits'"),
        ("--data.name tfds", "for instance tfds:cifar10"),
        ("--data.name npz:x", "only tfds and points take a dataset"),
        ("--data.name npz --data.path /nowhere/x.npz", "/nowhere/x.npz"),
        ("--data.split nothing", "nothing"),
        ("--data.channels 3", "channel"),
        ("--data.image_size 16", "16"),
        ("--network.in_channels 3", "channel"),
        ("--network.num_classes 4", "label"),
        ("--network.width 63", "network: width=63"),
        ("--data.flip True", "--data.flip takes no value, got 'True'; --data.flip switches on"),
        ("--seed 1 2", "--seed takes a whole number, got '1 2'"),
        ("--mesh.data 3", "needs 3 devices"),
        ("--mesh.data 1 --train.batch_size 7 --train.accumulate 2", "train.batch_size: 7"),
        ("--optimizer.b1 1", "b1"),
        ("--profile 5", "--profile: '5' is not a range of steps"),
        ("--train.spike 1", "train.spike: 1.0 is out of range, it must be above 1"),
        ("--train.max_skipped 0", "train.max_skipped: 0 is out of range"),
        ("--train.steps_per_call 51", "train.steps_per_call: 51 is more than train.log_every, 50"),
        ("--sample.sampler ddpm:learned", "sample: "),
        ("--loss.vlb_weight 0.1", "vlb_weight"),
        ("extra", "there is no configuration 'extra'; there are cifar10_autoencoder, cifar10_cascade_32,"),
        ("configs/digits_unt.py", "did you mean 'configs/digits_unet.py'?"),
        ("--seed 1 configs/digits_unet.py", "the configuration file comes first"),
        ("pyproject.toml", "its name must end in .py"),
        ("configs/cifar10_unet.py --process.betas 1", "there is no option --process.betas"),
        ("configs/cifar10_unet.py", "path"),
        ("--data.flip --seed x", "--seed takes a whole number, got 'x'"),  # a switch before is not to blame
        ("--data.no-flip --dry-run --no-cache --seed x", "--seed takes a whole number, got 'x'"),
        ("--data.no_flip 3", "--data.no_flip takes no value, got '3'; --data.flip switches on, --data.no_flip off"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, message: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(repository)
    workdir = [] if arguments.endswith("--train.steps") else ["--workdir", str(tmp_path / "run")]
    assert message in one_line(train.main, [*arguments.split(), *workdir], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no `config`"),
        ("x = 1\nx.y\n", "line 2: AttributeError"),
        ("x = (\n", "line 1: SyntaxError"),
        ("config = 3\n", "defines no `config`"),
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_broken_configuration_file(text: str, message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "own.py").write_text(text)
    assert message in one_line(train.main, [str(tmp_path / "own.py")], capsys)


def test_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0 and err == ""
    assert all(name in out for name in ("--train.steps INT", "--optimizer.lr FLOAT", "--dry-run", "--workdir"))


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    train.main(["--dry-run", "--workdir", str(tmp_path / "run"), *TINY])
    assert "nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_real_processes(run_python: Callable[..., Any], tmp_path: Path) -> None:
    for program, *arguments in (
        ("train.py", "--optimizer.lrr", "1", "--workdir", tmp_path / "run"),
        ("sample.py", tmp_path / "run"),
    ):
        done = run_python(program, *arguments, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"{program}: error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- train.py: a run


@pytest.mark.nightly
def test_a_finished_run_says_so(finished: Path, capsys: Any) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    train.main(["--workdir", str(finished), "--train.steps", "2", "--train.sample_every", "0", *TINY])
    assert "finished: all 2 steps are done" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_another_configuration_is_refused(finished: Path, capsys: Any) -> None:
    arguments = ["--workdir", str(finished), "--train.steps", "2", *TINY, "--optimizer.lr", "0.5"]
    assert "optimizer.lr (0.002 there, 0.5 here)" in one_line(train.main, arguments, capsys)


@pytest.mark.nightly
def test_another_runs_weights_as_a_start(finished: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--train.steps", "1", "--train.sample_every", "0", *TINY, "--workdir", str(tmp_path / "new")]
    classes = [*options, "--network.num_classes", "12", "--optimizer.lr", "1e-30", "--init_from"]
    assert "ema/" in (said := one_line(train.main, [*classes, str(finished)], capsys)) and "there and" in said
    assert f"{tmp_path}: holds no checkpoint" in one_line(train.main, [*classes, str(tmp_path)], capsys)
    assert list(tmp_path.iterdir()) == []
    train.main([*classes, str(finished), "--init_partial"])
    assert " leaves are new: " in (err := capsys.readouterr().err) and "(13, " in err and "(11, " in err
    old, new = Run.load(finished), Run.load(tmp_path / "new")
    same = [np.allclose(a, b, rtol=1e-6) for a, b in zip(*_leaves_in_common(old, new), strict=True)]
    assert all(same) and len(same) > 20
    train.main([*classes, "/nowhere", "--init_partial"])  # it has checkpoints of its own
    assert "finished: all 1 steps are done" in capsys.readouterr().out


def _leaves_in_common(old: Run, new: Run) -> tuple[list[Any], list[Any]]:
    pairs = zip(jax.tree.leaves(old.denoise.params), jax.tree.leaves(new.denoise.params), strict=True)
    common = [(a, b) for a, b in pairs if a.shape == b.shape]
    return [a for a, _ in common], [b for _, b in common]


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "train.py", "--workdir", str(folder), "--train.sample_every", "0", *TINY]
    with subprocess.Popen(
        [*command, "--train.steps", "1000000"],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            metrics = folder / "metrics.jsonl"
            deadline = time.monotonic() + 240
            while process.poll() is None and time.monotonic() < deadline:
                if metrics.exists() and metrics.read_text().count("\n") >= 2:
                    break
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            out, err = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 0, err
    assert "train.py --workdir" in out and "--train.steps 1000000" in out  # the command to go on with
    assert "(--no-xla-flags: without)" in out
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and (folder / "checkpoints" / str(steps[-1])).is_dir()

    train.main(["--workdir", str(folder), "--train.sample_every", "0", *TINY, "--train.steps", str(steps[-1] + 2)])
    again = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert again == [*steps, steps[-1] + 1, steps[-1] + 2]


# --- sample.py


def test_sample_makes_a_grid_of_all_classes(finished: Path, capsys: Any) -> None:
    sample.main([str(finished)])
    assert f"100 samples from step 2 of {finished}: {finished / 'samples.png'}" in capsys.readouterr().out
    with Image.open(finished / "samples.png") as image:
        assert image.size == (10 * 49 + 1, 10 * 49 + 1) and image.mode == "L"


def test_sample_makes_arrays(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.npz"
    options = ["--num", "6", "--sampler", "dpmpp_2m", "--steps", "4", "--guidance", "2", "--seed", "3"]
    sample.main([str(finished), "--label", "3", "5", *options, "--out", str(out)])
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["x"].shape == (6, 8, 8, 1) and arrays["x"].dtype == np.uint8
        assert arrays["label"].tolist() == [3, 3, 3, 5, 5, 5]
        first = arrays["x"]
    sample.main([str(finished), "--label", "3", "5", *options, "--out", str(out)])
    with np.load(out, allow_pickle=False) as arrays:
        assert (arrays["x"] == first).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("RUN --label 11", "label 11 is out of range: this run knows the labels 0 to 9"),
        ("RUN --label x", "--label: 'x' is neither a number nor the name of a class"),
        ("RUN --sampler dddim", "did you mean 'ddim'"),
        ("RUN --out grid.jpg", "must end in .png or .npz, or be a folder"),
        ("RUN --out /nowhere/grid.png", "there is no folder '/nowhere'"),
        ("RUN --num 0", "--num: 0 is out of range"),
        ("RUN --num x", "--num takes a whole number or None, got 'x'"),
        ("RUN --seed -1", "--seed: -1 is out of range"),
        ("RUN --steps 0", "at least 1"),
        ("RUN --step 9", "step 9"),
        ("RUN --guidence 2", "did you mean --guidance?"),
        ("RUN --guidance nan", "finite"),
        ("RUN other", "'other' is unexpected"),
        ("nothing", "'nothing' is not the folder of a run"),
        ("", "the folder of a run is missing"),
    ],
)
def test_mistakes_in_sampling(arguments: str, message: str, finished: Path, tmp_path: Path, capsys: Any) -> None:
    before = sorted(p.name for p in finished.iterdir())
    given = arguments.replace("RUN", str(finished)).split()
    assert message in one_line(sample.main, given, capsys)
    assert sorted(p.name for p in finished.iterdir()) == before


def test_a_damaged_folder_is_one_line(tmp_path: Path, finished: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "config.json" in one_line(sample.main, [str(tmp_path)], capsys)
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    assert "checkpoint" in one_line(sample.main, [str(tmp_path)], capsys)


def test_the_compilation_cache_is_the_users(run_python: Callable[..., Any], tmp_path: Path) -> None:
    code = "import jax; from jaxdiff.config import keep_compiled as k; k(); print(jax.config.jax_compilation_cache_dir)"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    assert run_python("-c", code, env=environment).stdout.strip() == str(tmp_path / "mine")
    environment["JAX_COMPILATION_CACHE_DIR"] = ""
    assert run_python("-c", code, env=environment).stdout.strip() == str(tmp_path / "jaxdiff" / "jax")
