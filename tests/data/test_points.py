from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxdiff.data import POINTS, DataError, Pipeline, batches, open_points, point_mixture


@pytest.mark.parametrize("name", POINTS)
def test_points_are_of_their_mixture(name: str) -> None:
    mixture, source = point_mixture(name), open_points(name, split="test")
    assert mixture.weights.sum() == pytest.approx(1.0) and mixture.weights.min() > 0
    assert np.abs(mixture.means).max() + mixture.std <= 1.1
    points: Any = source.take(np.arange(len(source)))["x"]
    assert points.dtype == np.float32 and points.shape == (8192, 2)
    mean = mixture.weights @ mixture.means
    centred = mixture.means - mean
    covariance = (mixture.weights[:, None] * centred).T @ centred + mixture.std**2 * np.eye(2)
    error = 5 * np.sqrt(np.diag(covariance) / len(points))
    assert (np.abs(points.mean(axis=0) - mean) < error).all()
    assert np.allclose(np.cov(points.T), covariance, atol=0.03)
    # no point is farther from all components than noise goes
    assert np.linalg.norm(points[:, None] - mixture.means[None], axis=2).min(axis=1).max() < 6 * mixture.std


@pytest.mark.parametrize("name", ["rings", "moons", "spiral", "pinwheel", "checkerboard"])
def test_components_of_a_curve_stand_closer_than_their_width(name: str) -> None:
    mixture = point_mixture(name)
    distance = np.linalg.norm(mixture.means[:, None] - mixture.means[None], axis=2) + 9 * np.eye(len(mixture.means))
    assert distance.min(axis=1).max() < 2 * mixture.std


def test_points_are_always_the_same_and_splits_differ() -> None:
    first, again = open_points("moons"), open_points("moons")
    assert first.fingerprint == again.fingerprint != open_points("moons", split="test").fingerprint
    assert first.fingerprint != open_points("rings").fingerprint
    assert (first.take(np.arange(9))["x"] == again.take(np.arange(9))["x"]).all()


def test_pipeline_leaves_points_as_they_are() -> None:
    source = open_points("two_gaussians", split="test")
    with Pipeline(source, batch_size=64, seed=3) as pipeline:
        batch = next(pipeline)["x"]
    assert batch.dtype == np.float32 and batch.shape == (64, 2)
    everything = {tuple(point) for point in source.take(np.arange(len(source)))["x"]}
    assert all(tuple(point) in everything for point in batch)
    assert (next(batches(source, 10))["x"] == source.take(np.arange(10))["x"]).all()


def test_what_points_do_not_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"no set 'moon'; there are eight_gaussians"):
        open_points("moon")
    with pytest.raises(DataError, match="no split 'all'"):
        open_points("moons", split="all")
    with pytest.raises(DataError, match="2 coordinates"):
        open_points("moons", channels=3)
    for option in ({"path": "x"}, {"image_size": 8}, {"num_classes": 2}, {"resize": True}):
        with pytest.raises(DataError, match="leave path"):
            open_points("moons", **option)
