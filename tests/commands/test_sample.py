"""Options of `sample.py`: a sampler's numbers, features and guidance reused, programs kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff import SASolver
from jaxdiff.commands import sample
from jaxdiff.config import ConfigError, build_network, build_sampler, parse_config
from jaxdiff.config.build import SAMPLERS
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.networks import DeepCache, FirstBlock, TaylorSeer
from jaxdiff.runs.run import Run
from jaxdiff.train import make_mesh
from tests.commands.test_cli import one_line
from tests.tiny_run import TINY


@pytest.fixture(scope="module")
def run(repository: Path) -> Run:
    """A run of a tiny U-Net whose weights are noise: an untrained one's output is zero, whatever is reused."""
    default = repository / "configs" / "digits_unet.py"
    config = parse_config([*TINY, "--sample.steps", "6"], program="train.py", default_file=default).config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_shape=(8, 8, 1)))
    net, rng = build_network(config), np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape)), shapes)
    return Run(config, NetworkDenoiser(net, params, config.process, config.parameterization), 0, make_mesh())


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
        return arrays["images"].astype(int)


LABELS = {"label": [1, 1, 2, 2]}


def test_numbers_reach_their_sampler(run: Run, folder: Path) -> None:
    """As the sampler made by hand does; each sampler's numbers are those that it is built of."""
    expected = run.sample(0, 4, LABELS, sampler=SASolver(run.process, 2, 3, tau=0.5), steps=5, spacing="log_snr")
    found = drawn(folder, "--sampler sa_solver --order 2 --tau 0.5 --steps 5 --spacing log_snr")
    assert np.abs(found - sample.to_uint8(expected)).max() <= 1 and found.std() > 1

    had = {name: sample.numbers_of(name, run.process) for name in SAMPLERS}
    assert had["ddim"] == {"eta"} and had["heun"] == set() and had["adaptive"] == {"tolerance"}
    assert had["predictor_corrector"] == {"tau", "snr", "langevin_steps"} and had["edm_stochastic"] == {"churn"}
    assert {name for name, numbers in had.items() if "order" in numbers} >= {"unipc", "dpm_solver", "deis"}
    assert set(sample.NUMBERS) == set().union(*had.values()) - {"variance"}  # which is a name
    given = sample.with_numbers(run, sample.Options(sampler="unipc", order=1))
    assert build_sampler(run.process, given.config.sample)[0].order == 1


def test_what_makes_it_faster_is_what_the_run_does(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    within: dict[str, Any] = {"guidance": 3.0, "guidance_interval": (0.1, 5.0)}
    kept = f"--compiled {folder / 'kept'}"
    for options, reusing, nothing in (
        (f"--feature-cache deepcache:3,outer=2 {kept}", {"cache": DeepCache(3, outer=2)}, {"cache": DeepCache(1, 2)}),
        (
            "--guidance 3 --null-every 3 --guidance-interval 0.1 5",
            {**within, "null_every": 3},
            {**within, "null_every": 1},
        ),
    ):
        expected, other = (
            sample.to_uint8(run.sample(0, 4, LABELS, **given)).astype(int) for given in (reusing, nothing)
        )
        assert np.abs(drawn(folder, options) - expected).max() <= 1 < np.abs(expected - other).max()
    assert [file.name[:9] for file in (folder / "kept").iterdir() if file.is_file()] == ["generate-"]
    assert capsys.readouterr().err == ""


def test_feature_caches_by_name() -> None:
    for text, cache in (
        ("deepcache", DeepCache()),
        ("deepcache:2", DeepCache(2)),
        ("deepcache:outer=2,every=4", DeepCache(4, 2)),
        ("firstblock:0.25,together", FirstBlock(0.25, together=True)),
        ("taylorseer:4,order=2,newton,whole", TaylorSeer(4, 2, True, True)),
    ):
        assert sample.feature_cache(text) == cache
    for text, message in (
        ("deepcach:2", "did you mean 'deepcache'?"),
        ("deepcache:2,3", "'3' is no setting of deepcache, which has every=3, outer=1"),
        ("deepcache:1.5", "'1.5' is no setting"),
        ("deepcache:order=2", "'order=2' is no setting"),
        ("deepcache:2,every", "'every' is no setting"),
        ("firstblock:together=0", "'together=0' is no setting of firstblock, which has threshold=0.1, together"),
        ("deepcache:0", "every is to be a whole number, 1 or more"),
        ("firstblock:nan", "threshold is to be 0 or more"),
        ("taylorseer:3,order=-1", "order is to be an integer, 0 or more"),
    ):
        with pytest.raises(ConfigError, match=r"--feature-cache: ") as caught:
            sample.feature_cache(text)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--order 3",
            "--order: ddim has no such number; these have it: dpm_solver, unipc, deis, lms, ipndm,",
        ),
        ("--sampler predictor_corrector --langevin-steps -1", "sample.langevin_steps: -1 is out of range"),
        ("--sampler heun --langevin-steps 2", "--langevin-steps: heun has no such number"),
        ("--sampler unipc --order 9", "sample.order: 9 is out of range, it must be at least 1 and at most 4"),
        ("--sampler dpm_solver --order 4", "order"),
        ("--eta nan", "sample.eta: nan is out of range"),
        ("--spacing karas", "did you mean 'karras'"),
        ("--feature-cache taylorseer:2", "TaylorSeer is a cache of a diffusion transformer (DiT), got a UNetModule"),
        ("--feature-cache deepcache:2,outer=9", "outer is to be 1 to "),
        ("--feature-cache deepcache --sampler adaptive", "inside a loop or a branch of its own"),
        ("--feature-cache taylorseer:2 --compiled RUN/kept", "got a UNetModule"),
        ("--null-every 2", "of guidance, which is not asked for"),
        ("--null-every 0 --guidance 2", "every is to be a whole number, 1 or more"),
        ("--guidance-interval 2 1 --guidance 2", "0 <= low < high"),
        ("--guidance-interval 2 --guidance 2", "--guidance-interval takes a number then a number or None, got '2'"),
        ("--compiled RUN/file", "is a file, it must be a folder"),
        ("--compiled RUN/kept --no-cache", "leave one of them out"),
    ],
)
def test_what_does_not_fit_is_one_line(options: str, message: str, folder: Path, capsys: Any) -> None:
    found = one_line(sample.main, [str(folder), *options.replace("RUN", str(folder)).split()], capsys)
    assert message in found.replace("guidance_interval", "guidance-interval")
    assert [file.name for file in folder.iterdir()] == ["file"]
