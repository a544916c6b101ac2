"""Bytes to floats and back, flips by index, ADM's crop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.data import center_crop_resize, horizontal_flip, to_model_range
from jaxdiff.images import to_uint8


def test_model_range_is_inverted_exactly() -> None:
    levels = np.arange(256, dtype=np.uint8)
    floats = to_model_range(levels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1.0, 1.0)
    np.testing.assert_allclose(floats, levels / 127.5 - 1, atol=1e-7)
    assert (to_uint8(floats) == levels).all()


def test_model_range_refuses_floats() -> None:
    with pytest.raises(ValueError, match=r"images are uint8 in 0\.\.255, got float32"):
        to_model_range(np.zeros(3, np.float32))


def mirrored(seed: int, index: np.ndarray) -> np.ndarray:
    images = np.array([0, 1], np.uint8).reshape(1, 1, 2, 1).repeat(len(index), axis=0)
    return horizontal_flip(images, seed, index)[:, 0, 0, 0] == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_flip_depends_on_seed_and_index_alone(seed: int, index: list[int]) -> None:
    together = mirrored(seed, np.array(index))
    alone = np.concatenate([mirrored(seed, np.array([i])) for i in index])
    assert (together == alone).all()


def test_flips_are_fair_and_independent() -> None:
    index = np.arange(40_000)
    a, b = mirrored(0, index), mirrored(1, index)
    assert abs(a.mean() - 0.5) < 0.01  # four standard deviations
    assert abs((a == b).mean() - 0.5) < 0.01
    assert abs((a[1:] == a[:-1]).mean() - 0.5) < 0.01


def test_flip_mirrors_width_only() -> None:
    image = np.arange(2 * 3 * 2, dtype=np.uint8).reshape(1, 2, 3, 2).repeat(8, axis=0)
    for result, flipped in zip(horizontal_flip(image, 0, np.arange(8)), mirrored(0, np.arange(8)), strict=True):
        assert (result == (image[0, :, ::-1] if flipped else image[0])).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 100), (33, 17), (5, 9)])
def test_center_crop_resize_shape(height: int, width: int, channels: int) -> None:
    image = np.full((height, width, channels), 77, np.uint8)
    result = center_crop_resize(image, 16)
    assert result.shape == (16, 16, channels)
    assert result.dtype == np.uint8
    assert (result == 77).all()


def test_center_crop_resize_takes_the_middle_and_area_means() -> None:
    image = np.zeros((32, 96, 1), np.uint8)
    image[:, 32:64] = 200  # the middle square
    assert (center_crop_resize(image, 8)[:, 1:-1] == 200).all()  # the border mixes in what lay beside it
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    means = noise.reshape(8, 4, 8, 4, 3).astype(float).mean((1, 3))
    assert np.abs(center_crop_resize(noise, 8) - means).max() < 2  # Pillow rounds up, twice in each halving
