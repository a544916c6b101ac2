"""Options of `sample.py`: methods with their numbers, conditions, features and guidance reused, programs kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff import SASolver
from jaxdiff.codecs import Images
from jaxdiff.commands import sample
from jaxdiff.commands.published import PUBLISHED, given
from jaxdiff.config import build_network, parse_config
from jaxdiff.networks import DeepCache
from jaxdiff.runs.run import Run
from jaxdiff.train import make_mesh
from tests.commands.test_cli import one_line
from tests.tiny_run import TINY


@pytest.fixture(scope="module")
def run(repository: Path) -> Run:
    """A run of a tiny U-Net whose weights are noise: an untrained one's output is zero, whatever is reused."""
    default = repository / "configs" / "digits_unet.py"
    config = parse_config([*TINY, "--sample.steps", "6"], program="train.py", default_file=default).config
    data = dataclasses.replace(config.data, classes=tuple("abcdefghij"))
    config = dataclasses.replace(config, codec=Images((8, 8, 1)), data=data)
    net, rng = build_network(config), np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape)), shapes)
    return Run.of(config, params, 0, make_mesh())


@pytest.fixture
def folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that loads as the run."""
    monkeypatch.setattr(sample.Run, "load", lambda *arguments, **options: run)
    (tmp_path / "file").write_text("")
    return tmp_path


def drawn(folder: Path, options: str) -> Any:
    out = folder / "s.npz"
    sample.main([str(folder), "--label", "1", "2", "--num", "4", "--out", str(out), *options.split()])
    with np.load(out) as arrays:
        assert arrays["label"].tolist() == [1, 1, 2, 2]
        return arrays["x"].astype(int)


LABELS = {"label": [1, 1, 2, 2]}


def test_numbers_reach_their_sampler(run: Run, folder: Path) -> None:
    """As the sampler made by hand does."""
    made = SASolver(run.process, 2, 3, tau=0.5)
    expected = run.sample(0, 4, LABELS, sampler=made, steps=5, grid="log_snr")["x"].astype(int)
    found = drawn(folder, "--sampler sa_solver:order=2,tau=0.5 --steps 5 --grid log_snr")
    assert np.abs(found - expected).max() <= 1 and found.std() > 1


def test_classes_have_names_and_conditions_values(run: Run, folder: Path) -> None:
    out = folder / "s.npz"
    labels = []
    np.save(folder / "rows.npy", np.array([1, 5]))
    for options in ("--label b f", "--label 1 5", "--cond label=1", f"--cond label={folder / 'rows.npy'}"):
        sample.main([str(folder), "--num", "2", "--out", str(out), *options.split()])
        with np.load(out) as arrays:
            labels.append(arrays["label"].tolist())
    assert labels == [[1, 5], [1, 5], [1, 1], [1, 5]]
    assert run.sample(0, 2, {"label": ["c", "a"]})["label"].tolist() == [2, 0]


@pytest.mark.nightly
def test_what_makes_it_faster_is_what_the_run_does(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = f"--compiled {folder / 'kept'}"
    for options, reusing, nothing in (
        (f"--feature-cache deepcache:3,outer=2 {kept}", {"cache": DeepCache(3, outer=2)}, {"cache": DeepCache(1, 2)}),
        (
            "--guide cfg:3 every:3 interval:0.1,5",
            {"guide": ["cfg:3", "every:3", "interval:0.1,5"]},
            {"guide": ["cfg:3", "interval:0.1,5"]},
        ),
    ):
        expected, other = (run.sample(0, 4, LABELS, **given)["x"].astype(int) for given in (reusing, nothing))
        assert np.abs(drawn(folder, options) - expected).max() <= 1 < np.abs(expected - other).max()
    assert [file.name[:5] for file in (folder / "kept").iterdir() if file.is_file()] == ["draw-"]
    assert capsys.readouterr().err == ""


def test_guidance_is_short_for_a_list(folder: Path) -> None:
    np.testing.assert_array_equal(drawn(folder, "--guidance 3"), drawn(folder, "--guide cfg:3"))


@pytest.mark.nightly
def test_samples_are_steered_by_a_reward(folder: Path) -> None:
    """Brighter than without, and darker where the scale is negative."""
    dark, plain, bright = (
        drawn(folder, f"--sampler ddpm --steps 10{steer}").mean()
        for steer in (" --steer brightness:-80,particles=8", "", " --steer brightness:80,particles=8")
    )
    assert dark < plain < bright


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sampler ddim:order=3", "ddim has no number 'order'"),
        ("--sampler unipc:order=9", "order"),
        ("--sampler dpm_solver:order=4", "order"),
        ("--sampler ddim:eta=nan", "eta is to be a number"),
        ("--sampler dddim", "did you mean 'ddim'?"),
        ("--grid karas", "did you mean 'karras'"),
        ("--feature-cache taylorseer:2", "TaylorSeer is a cache of a diffusion transformer (DiT), got a UNetModule"),
        ("--feature-cache deepcach:2", "did you mean 'deepcache'?"),
        ("--feature-cache deepcache:2,outer=9", "outer is to be 1 to "),
        ("--feature-cache deepcache --sampler adaptive", "inside a loop or a branch of its own"),
        ("--feature-cache taylorseer:2 --compiled RUN/kept", "got a UNetModule"),
        ("--guide every:2", "put cfg first"),
        ("--guide cfg:2 every:0", "every is to be a whole number, 1 or more"),
        ("--guide cfg:2 interval:2,1", "0 <= low < high"),
        ("--guide cfg:2 --guidance 2", "give one of them"),
        ("--steer brightness:5", "DDIM draws no noise, so particles that were resampled would stay copies"),
        ("--steer bright:5 --sampler ddpm", "there is no reward 'bright'; did you mean 'brightness'?"),
        ("--label k", "'k' is neither a number nor the name of a class; there are a, b,"),
        ("--label 11", "label 11 is out of range: this run knows the labels 0 to 9"),
        ("--label 3,5", "'3,5' is neither a number nor the name of a class"),
        ("--label 3 --label 5", "--label is given 2 times: give it once, with all its values"),
        ("--guide cfg:2 --guide every:2", "--guide is given 2 times"),
        ("--label 3 --cond label=5", "label is given twice: give it once, by --label or by --cond"),
        ("--cond label=3 label=5", "label is given twice"),
        ("--guide 2", "there is no guidance '2'; did you mean 'cfg:2'?"),
        (f"--num {10**12}", "--num: too large for this machine's memory"),
        (f"--out {'a' * 300}/b.png", "File name too long"),
        ("--cond text=1", "'text=1' is no NAME=VALUE of this run's conditions (label)"),
        ("--cond label=x", "'x' is to be numbers with commas"),
        ("--compiled RUN/file", "is a file, it must be a folder"),
        ("--compiled RUN/kept --no-cache", "leave one of them out"),
        ("--dtype int8 --num 0", "--num: 0 is out of range"),
    ],
)
def test_what_does_not_fit_is_one_line(options: str, message: str, folder: Path, capsys: Any) -> None:
    found = one_line(sample.main, [str(folder), *options.replace("RUN", str(folder)).split()], capsys)
    assert message in found
    assert [file.name for file in folder.iterdir()] == ["file"]


def test_an_option_at_a_number_of_zero_is_given() -> None:
    """A ControlNet that counts for nothing is not one that counts by default."""
    options = sample.Options(control_scale=0.0, clip_skip=0, size=(8, 16))
    assert given(options, PUBLISHED) == {"control_scale": 0.0, "size": (8, 16)}
