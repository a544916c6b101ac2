"""The study of scores in the plane: its measures against closed forms, its picture, and the configuration by flags."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
import train
from jaxdiff import SNR, VE, MixtureDenoiser, Prediction, Process
from jaxdiff.config import OBJECTIVES, ConfigError, build_loss, check, parse_config
from jaxdiff.data import open_points
from jaxdiff.evaluate.score_field import ScoreField, measure_score
from jaxdiff.record import record
from jaxdiff.runs.run import Run
from jaxdiff.score_matching import FokkerPlanck, Sliced

CONFIG = Path(__file__).parents[2] / "configs" / "study_2d.py"
TINY = (
    *("--network.width", "8", "--network.depth", "1", "--network.frequencies", "4", "--train.batch_size", "32"),
    *("--train.steps", "2", "--train.log_every", "1", "--train.sample_every", "2", "--optimizer.schedule", "constant"),
    *("--sample.steps", "3", "--picture.size", "40", "--picture.arrows", "3", "--picture.points", "20"),
    *("--picture.levels", "0.1", "1.0"),
)


def parsed(*arguments: str) -> Any:
    return parse_config([str(CONFIG), *arguments], program="train.py", default_file=CONFIG).config


@record
class Off:
    """The true score, scaled: its errors are known fractions of it."""

    exact: MixtureDenoiser
    scale: float

    @property
    def process(self) -> Process:
        return self.exact.process

    def __call__(self, x: Any, t: Any, cond: Any = None) -> Prediction:
        true = self.exact(x, t)
        return Prediction(true.x0, self.scale * true.eps)


def test_measures_are_what_they_say() -> None:
    with jax.enable_x64(True):
        process = VE(sigma_min=0.1, sigma_max=2.0)
        one = MixtureDenoiser(process, jnp.zeros((1, 2)), 0.5)
        right = measure_score(one, one, jax.random.key(0))
        assert max(float(value) for value in right.values()) < 1e-12
        wrong = measure_score(Off(one, 1.2), one, jax.random.key(0))
        assert float(wrong["fisher_relative"]) == pytest.approx(0.04, rel=1e-6)
        assert float(wrong["hessian_relative"]) == pytest.approx(0.04, rel=1e-6)
        # of a Gaussian, E sigma^2 |s*|^2 / D = sigma^2 / n^2
        t = process.min_time() + (1 - process.min_time()) * (np.arange(32) + 0.5) / 32
        sigma2 = np.asarray(process.sigma(t)) ** 2
        assert float(wrong["fisher"]) == pytest.approx(0.04 * (sigma2 / (sigma2 + 0.25)).mean(), rel=0.03)
        assert float(wrong["fokker_planck"]) > 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_there_by_flag(objective: str) -> None:
    config = parsed("--loss.objective", objective, "--loss.fokker_planck", "0.5")
    check(config)
    loss: Any = build_loss(config)
    assert isinstance(loss, FokkerPlanck) and loss.factor == 0.5
    plain: Any = build_loss(parsed("--loss.objective", objective))
    assert type(plain) is type(loss.objective) and not isinstance(plain, FokkerPlanck)
    if objective != "likelihood":
        assert plain.weight == SNR()
    if isinstance(plain, Sliced):
        assert plain.variance_reduced == (objective == "sliced_vr") and plain.projections == 1


def test_mistakes_are_one_line() -> None:
    for arguments, message in (
        (["--loss.objective", "slicd"], "did you mean 'sliced'"),
        (["--loss.objective", "sliced", "--loss.vlb_weight", "0.1"], "is of the objective denoising"),
        (["--loss.projections", "0"], "loss.projections: 0 is out of range"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(parsed(*arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps of a tiny network, with the objective that uses all outputs."""
    path = tmp_path_factory.mktemp("runs") / "study"
    train.main([str(CONFIG), "--workdir", str(path), "--loss.objective", "second_order", *TINY])
    return path


def test_a_run_draws_and_measures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(folder / "samples" / "step_00000002.png") as picture:
        assert picture.size == (3 * 46, 3 * 62)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {"fisher", "fisher_relative", "hessian_relative", "hessian_head_relative", "fokker_planck"}
    assert set(lines[-1]) == {"step", *names} and lines[-1]["fisher"] > 0
    run = Run.load(folder)
    assert run.shape == (2,) and run.config.picture.levels == (0.1, 1.0)
    measured = run.measure()
    assert {name: measured[name] for name in names} == pytest.approx({n: lines[-1][n] for n in names}, rel=1e-4)
    drawn = run.picture()
    assert drawn.dtype == np.uint8 and drawn.shape == (3 * 62, 3 * 46, 3)
    learned, true = drawn[22:62, 3:43], drawn[62 + 22 : 62 + 62, 3:43]
    assert (learned != true).any() and true.std() > 10


def test_sampling_points(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample.main([str(folder), "--num", "7", "--out", str(folder / "points.npz")])
    assert "7 samples" in capsys.readouterr().out
    with np.load(folder / "points.npz") as file:
        assert file["x"].shape == (7, 2) and file["x"].dtype == np.float32
    sample.main([str(folder), "--num", "7"])
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (480, 480) and len(picture.getcolors(480**2) or ()) > 2


def test_the_true_fields_look_alike_and_their_difference_is_blank(folder: Path) -> None:
    run = Run.load(folder)
    field = ScoreField(levels=(0.2,), size=40, arrows=5, points=5)
    exact: Any = field.exact(run)
    perfect = dataclasses.replace(run, model=dataclasses.replace(run.model, denoise=exact))
    column = field._column(perfect, field.exact(run), 0.2, 0)
    learned, true, difference = (panel[19:] for panel in column)
    assert (learned == true).all()
    assert difference[:, 3:].min() > 100 and (difference[:, 3:] == 255).mean() > 0.9  # but for the dots


def test_the_field_is_of_points_alone(folder: Path) -> None:
    run = Run.load(folder)
    data = dataclasses.replace(run.config.data, name="digits")
    digits = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    with pytest.raises(ConfigError, match="points:NAME"):
        digits.measure()
    with pytest.raises(ValueError, match="levels are positive"):
        ScoreField(levels=(0.0,))
    assert open_points("eight_gaussians").spec["x"].shape == run.shape
