"""The frontier of guidance: its statistics by hand, and the whole program in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import guidance
from benchmarks.guidance import Curve, above, methods, table, verdict
from jaxdiff.methods import parse_guidance

pytestmark = pytest.mark.nightly

RNG = np.random.default_rng(0)


def test_names_and_weights() -> None:
    """Of every method six weights at least, each of which is guidance by name; the reference begins at the plain."""
    made = methods(Path("runs/worse"))
    assert list(made) == ["CFG", "interval", "CFG++", "APG", "autoguidance", "PAG"]
    for method in made.values():
        assert len(method.weights) >= 6 and list(method.weights) == sorted(method.weights)
        assert all(parse_guidance(method.guide(weight)) for weight in method.weights)
    assert made["CFG"].weights[0] == 1.0


def test_the_error_bars_hold() -> None:
    """Points that lie on the curve are above it by more than two jackknife errors as rarely as Student's law says;
    points 5 errors above nearly always."""
    beyond = {0.0: 0, 0.05: 0}
    for _ in range(400):
        common = 0.01 * RNG.standard_normal((8, 1))
        recall, accuracy = np.array([[0.9, 0.6, 0.3]]), np.array([[0.7, 0.9, 0.96]])
        curve = Curve(
            (1.0, 2.0, 3.0), accuracy + 0.01 * RNG.standard_normal((8, 3)) + common, np.tile(recall, (8, 1)), recall
        )
        for up in beyond:
            point = 0.8 + up + 0.02 * RNG.standard_normal(8) + common[:, 0]
            d, error = above(curve, point, np.full(8, 0.75))
            beyond[up] += d / error > 1.895  # Student's 95% of 7
    assert 0.02 < beyond[0.0] / 400 < 0.09 and beyond[0.05] / 400 > 0.95


def test_beyond_the_curve_nothing_is_said() -> None:
    one = np.ones((4, 2))
    curve = Curve((1.0, 2.0), 0.5 * one, one * np.array([[0.8, 0.4]]), one)
    assert all(np.isnan(above(curve, np.ones(4), np.full(4, recall))).all() for recall in (0.81, 0.39))
    assert (
        verdict([], 4)
        == "No point of another method has a recall within those of CFG's curve: nothing can be compared."
    )
    jitter = 0.01 * RNG.standard_normal((4, 1))
    rows, words = table({"CFG": curve, "APG": Curve((3.0,), 0.9 * one[:, :1] + jitter, 0.6 * one[:, :1], one[:, :1])})
    assert words.startswith(
        "Above CFG's curve by more than 3.2 standard errors (5% among 1 point together): APG at 3 (+"
    )
    assert rows.splitlines()[-1].startswith("| APG | 3 | ") and rows.splitlines()[2].endswith("|  |  |")


def test_in_small(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "frontier"
    small = ["--num", "24", "--repetitions", "2", "--weights", "2", "--steps", "2"]
    assert guidance.main([str(tiny_run), "--worse", str(tiny_run), "--out", str(out), *small]) == 0
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out and text.count("\n| ") == 13
    assert out.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(SystemExit):
        guidance.main([str(tiny_run), "--worse", str(tiny_run), "--out", str(out), "--repetitions", "1"])
    assert "--repetitions: 1 is out of range" in capsys.readouterr().err
