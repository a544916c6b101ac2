from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff.codecs import grid, save_png, to_uint8


def test_every_grey_level_survives() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert (to_uint8(levels.astype(np.float32) / 127.5 - 1.0) == levels).all()


def test_outside_is_clipped_and_nan_refused() -> None:
    assert to_uint8([-3.0, 3.0]).tolist() == [0, 255]
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        to_uint8([0.0, float("nan")])


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_images_row_by_row(channels: int) -> None:
    images = np.stack([np.full((2, 3, channels), 10 * (i + 1), np.uint8) for i in range(5)])
    picture = grid(images, 3, padding=1, scale=2)
    assert picture.shape == (2 * 5 + 1, 3 * 7 + 1, channels)
    for i in range(5):
        top, left = 1 + 5 * (i // 3), 1 + 7 * (i % 3)
        assert (picture[top : top + 4, left : left + 6] == 10 * (i + 1)).all()
    assert (picture[6:, 15:] == 0).all()  # the empty place
    assert (picture[5] == 0).all() and (picture[:, 7] == 0).all()


def test_grid_enlarges_small_images_only() -> None:
    assert grid(np.zeros((1, 8, 8, 1), np.uint8), padding=0).shape == (48, 48, 1)
    assert grid(np.zeros((1, 64, 64, 3), np.uint8), padding=0).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("images", "arguments"),
    [
        (np.zeros((0, 8, 8, 1), np.uint8), {}),
        (np.zeros((2, 8, 8, 1), np.float32), {}),
        (np.zeros((8, 8, 1), np.uint8), {}),
        (np.zeros((2, 8, 8, 1), np.uint8), {"scale": 0}),
        (np.zeros((2, 8, 8, 1), np.uint8), {"columns": 0}),
    ],
)
def test_grid_refuses(images: np.ndarray, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        grid(images, **arguments)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_png(tmp_path: Path, channels: int, mode: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "new" / "a.png", picture)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == mode
        read = np.asarray(image).reshape(5, 7, -1)
    assert (read == picture[:, :, : read.shape[2]]).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
