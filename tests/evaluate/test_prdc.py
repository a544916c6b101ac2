"""Precision and recall by nearest neighbours: by loops, by what they must be, and where they are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxdiff.evaluate import prdc as module
from jaxdiff.evaluate.prdc import PRDC, prdc

NOISE = np.random.default_rng(0).standard_normal


def by_loops(data: Any, samples: Any, k: int) -> PRDC:
    """The papers' definitions, a point at a time."""

    def radius(points: Any, i: int) -> float:
        return float(sorted(np.linalg.norm(points[i] - other) for j, other in enumerate(points) if j != i)[k - 1])

    def within(point: Any, points: Any) -> list[bool]:
        return [bool(np.linalg.norm(point - each) <= radius(points, i)) for i, each in enumerate(points)]

    covered = [any(np.linalg.norm(x - y) <= radius(data, i) for y in samples) for i, x in enumerate(data)]
    inside = [within(y, data) for y in samples]
    return PRDC(
        float(np.mean([any(each) for each in inside])),
        float(np.mean([any(within(x, samples)) for x in data])),
        float(np.sum(inside) / (k * len(samples))),
        float(np.mean(covered)),
    )


@pytest.mark.parametrize("k", [1, 3])
def test_by_loops(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of two sizes, partly apart; a few rows of the matrix at a time give the same."""
    data, samples = NOISE((23, 3)), 0.7 * NOISE((17, 3)) + 0.6
    expected = by_loops(data, samples, k)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    np.testing.assert_allclose(prdc(data, samples, k), expected, rtol=1e-12)
    monkeypatch.setattr(module, "_ROWS", 5)
    np.testing.assert_allclose(prdc(data, samples, k), expected, rtol=1e-12)


def test_what_they_tell() -> None:
    """The same law: near one; coverage is expected to be 1 - 2^-k and density 1 (Naeem et al.). One mode
    of two: precise, and half recalled. Far away: nothing."""
    data = NOISE((400, 2)) + 20.0 * (np.arange(400) % 2)[:, None]
    same = NOISE((400, 2)) + 20.0 * (np.arange(400) % 2)[:, None]
    found = prdc(data, same)
    assert min(found.precision, found.recall) > 0.9
    assert abs(found.density - 1) < 0.1 and abs(found.coverage - 0.875) < 0.05
    one = prdc(data, NOISE((400, 2)))
    assert one.precision > 0.9 and 0.4 < one.recall <= 0.5 and one.coverage <= 0.5
    assert prdc(data, data + 1e4) == PRDC(0.0, 0.0, 0.0, 0.0)
    assert prdc(data, 0.0 * data)[1] == 0.0  # one point again and again recalls nothing


def test_features_moved_turned_and_scaled_are_the_same() -> None:
    data, samples = NOISE((60, 4)), NOISE((50, 4)) + 0.5
    turn = np.linalg.qr(NOISE((4, 4)))[0]
    for move in (0.0, 1e4):
        np.testing.assert_allclose(prdc(3 * data @ turn + move, 3 * samples @ turn + move), prdc(data, samples))


def test_refusals() -> None:
    for data, samples, k, message in (
        (NOISE((8, 2)), NOISE((8, 3)), 3, "features are"),
        (NOISE((8, 2, 2)), NOISE((8, 2, 2)), 3, "features are"),
        (NOISE((8, 2)), NOISE((3, 2)), 3, "below the 3 points, got 3"),
        (NOISE((8, 2)), NOISE((8, 2)), 0, "got 0"),
        (np.full((8, 2), np.nan), NOISE((8, 2)), 3, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            prdc(data, samples, k)
