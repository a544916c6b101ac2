"""ADM's crop."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdiff.data import center_crop_resize


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
