"""The table of posteriors: its errors see what is wrong and nothing else, weights count, and so do evaluations."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import inversion, posterior
from benchmarks.posteriors.cases import SHAPES, Case, evaluations, matrix_of, mixture
from benchmarks.posteriors.errors import NAMES, Truth, truth_of, with_doubt

CASE = Case("mixture", mixture(8), SHAPES[8], "sensing:0.5", 0.3)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return truth_of(CASE.measured(jax.random.key(0))[2])


def measured(truth: Truth, change: float = 1.0, shift: float = 0.0) -> dict[str, tuple[float, float]]:
    """Each error with its doubt, of exact draws that are then spread and moved along the first direction."""
    x = np.asarray(truth.posterior.sample(jax.random.key(1), 4000), np.float64).reshape(4000, -1)
    x = truth.mean + change * (x - truth.mean) + shift * np.sqrt(truth.values[0]) * truth.directions[0]
    found = with_doubt(truth, x, np.full(4000, 1 / 4000))
    return dict(zip(NAMES, zip(*found, strict=True), strict=True))


def test_exact_draws_have_no_error_but_that_of_their_number(truth: Truth) -> None:
    found = measured(truth)
    assert found["mean"][0] < 0.05 and found["covariance"][0] < 0.1
    for name, right in (("spread", 1.0), ("coverage", 0.9)):
        value, doubt = found[name]
        assert abs(value - right) < 4 * doubt and 0 < doubt < 0.02, name


def test_what_is_wrong_is_seen(truth: Truth) -> None:
    narrow, moved = measured(truth, change=0.5), measured(truth, shift=1.0)
    assert narrow["spread"][0] == pytest.approx(0.5, abs=0.03) and narrow["coverage"][0] < 0.7
    assert narrow["covariance"][0] == pytest.approx(0.75, abs=0.05) and narrow["mean"][0] < 0.05
    share = np.sqrt(truth.values[0] / np.trace(truth.covariance))
    assert moved["mean"][0] == pytest.approx(share, abs=0.05) and moved["covariance"][0] < 0.1
    assert moved["coverage"][0] < 0.88


def test_weights_count(truth: Truth) -> None:
    """Draws of the wrong half with no weight change nothing."""
    x = np.asarray(truth.posterior.sample(jax.random.key(1), 2000), np.float64).reshape(2000, -1)
    both = np.concatenate([x, x + 5.0])
    plain, _ = with_doubt(truth, x, np.full(2000, 1.0))
    weighted, _ = with_doubt(truth, both, np.repeat([1.0, 0.0], 2000))
    np.testing.assert_allclose(weighted, plain, rtol=1e-6)


def test_a_matrix_is_its_operator_and_costs_are_counted() -> None:
    operator, y, _ = CASE.measured(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, *CASE.shape))
    np.testing.assert_allclose(np.asarray(x).reshape(3, -1) @ matrix_of(operator).T, operator(x), atol=1e-5)
    assert evaluations("ddnm", CASE, operator, y, 5) == (5, 0)
    calls, derived = evaluations("dps", CASE, operator, y, 5)
    assert calls == 5 and derived >= 4
    with pytest.raises(ValueError, match="replacement is of masks"):
        evaluations("replacement", CASE, operator, y, 5)


@pytest.mark.nightly
def test_the_quick_table(tmp_path: Path) -> None:
    table, plot = tmp_path / "table.md", tmp_path / "plot.png"
    assert posterior.main(["--quick", "--table", str(table), "--plot", str(plot)]) == 0
    assert table.read_text().count("| tds |") == 4 and plot.stat().st_size > 10_000


@pytest.mark.nightly
def test_records_are_found_again() -> None:
    assert inversion.main([]) == 0
