"""Semantic maps beside pictures: read as they lie, brought to the pictures' size, refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdiff import Flow, Velocity
from jaxdiff.codecs import Images, SemanticMap
from jaxdiff.config import Config, DataConfig, TrainConfig, build_source
from jaxdiff.data import (
    DataError,
    center_crop_nearest,
    center_crop_resize,
    decode_once,
    from_arrays,
    open_folder,
    open_mnist_maps,
    open_npz,
    take,
    without_bad,
)
from jaxdiff.data.maps import decode_map
from jaxdiff.data.mnist_maps import MnistMaps
from jaxdiff.networks import Map, UNet
from jaxdiff.train import Ema
from tests.data.pictures import encoded, one_line_error, pictures

IMAGES = pictures(4, (12, 20, 3))
IDS = np.random.default_rng(0).integers(0, 5, (4, 12, 20)).astype(np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)


def palette_png(ids: Any) -> bytes:
    picture = Image.fromarray(ids, mode="P")
    picture.putpalette(COLOURS.tobytes())  # which is not looked at
    picture.save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def grey_png(ids: Any, depth: int) -> bytes:
    """By hand: Pillow writes no grey PNG of 2 or 4 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in ids:
        bits = "".join(format(each, f"0{depth}b") for each in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def folder_of(root: Path, ids: Any = IDS, labels: Any = ("a", "b", "b", "a")) -> Path:
    for number, (image, each) in enumerate(zip(IMAGES, ids, strict=True)):
        place = root / labels[number] if labels else root
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(encoded(image))
        (place / f"{number}.map.png").write_bytes(palette_png(each) if number % 2 else encoded(each[..., None]))
    return root


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_ids_are_pixel_values_at_any_depth(depth: int) -> None:
    ids = np.random.default_rng(depth).integers(0, min(2**depth, 200), (5, 7))
    np.testing.assert_array_equal(decode_map(grey_png(ids, depth), "map"), ids)
    np.testing.assert_array_equal(decode_map(palette_png(IDS[0]), "map"), IDS[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1.map.png: map is empty"),
        (b"text", "1.map.png: map is damaged or no picture"),
        (encoded(IMAGES[0]), "1.map.png: map has Pillow mode RGB, expected 8-bit grey or a palette"),
        (grey_png(IDS[0], 16), "map has Pillow mode I;16"),
        (encoded(IDS[0][..., None], "JPEG"), "1.map.png: map is a JPEG file, expected a PNG"),
    ],
)
def test_what_is_no_map_is_refused(data: bytes, message: str) -> None:
    assert message in one_line_error(lambda: decode_map(data, "1.map.png"))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 64, 16), (40, 100, 16), (33, 17, 16), (5, 9, 16), (7, 7, 7)]
)
def test_a_map_is_cut_where_its_picture_is(height: int, width: int, size: int) -> None:
    """Of pictures of two halves, wherever the edge is: where the smaller picture is clear, the smaller map says so."""
    rows, columns = np.mgrid[:height, :width]
    for place, side in ((rows, height), (columns, width)):
        for edge in range(1, side, 3):
            halves = (place >= edge).astype(np.uint8)
            shown = center_crop_resize(halves[..., None] * 255, size)[..., 0]
            clear = (shown < 20) | (shown > 235)
            assert clear.mean() > 0.5 and (center_crop_nearest(halves, size)[clear] == (shown[clear] > 127)).all()


def test_a_map_enlarged_by_whole_pixels_comes_back() -> None:
    np.testing.assert_array_equal(center_crop_nearest(IDS[0][:, :12].repeat(3, 0).repeat(3, 1), 12), IDS[0][:, :12])


@pytest.mark.parametrize("labels", [("a", "b", "b", "a"), None])
def test_a_folder(labels: Any, tmp_path: Path) -> None:
    order = [0, 3, 1, 2] if labels else [0, 1, 2, 3]
    source = open_folder(folder_of(tmp_path / "set", labels=labels))
    assert len(source) == 4 and source.spec["map"].shape == (12, 20)
    records = take(source, range(4))
    np.testing.assert_array_equal(records["map"], IDS[order])
    np.testing.assert_array_equal(records["x"], IMAGES[order])
    assert records["map"].dtype == np.uint8
    small = open_folder(tmp_path / "set", image_size=8, resize=True)
    np.testing.assert_array_equal(take(small, [1])["map"][0], center_crop_nearest(IDS[order[1]], 8))
    once = decode_once(source, limit=10**6, folder=tmp_path / "kept", say=lambda text: None)
    assert once is not source
    np.testing.assert_array_equal(take(once, [2])["map"][0], IDS[order[2]])
    without = open_folder(tmp_path / "set", conditions=("label",) if labels else ())
    assert len(without) == 4 and "map" not in without.spec
    before = source.fingerprint
    changed = IDS[0].copy()
    changed[0, 0] ^= 1
    (tmp_path / "set" / (labels[0] if labels else "") / "0.map.png").write_bytes(encoded(changed[..., None]))
    assert open_folder(tmp_path / "set").fingerprint != before


def test_a_folder_without_maps_is_as_it_was(tmp_path: Path) -> None:
    """A name alone makes no map."""
    (tmp_path / "of.map.png").write_bytes(encoded(IMAGES[0]))
    (tmp_path / "other.png").write_bytes(encoded(IMAGES[1]))
    assert len(open_folder(tmp_path)) == 2


def test_maps_that_are_missing_alone_or_of_another_size(tmp_path: Path) -> None:
    root = folder_of(tmp_path, labels=None)
    (root / "2.map.png").rename(root / "7.map.png")
    message = one_line_error(lambda: open_folder(root))
    assert "2.png: has no map, expected 2.map.png beside it (1 of 4 images have none)" in message
    said: list[str] = []
    assert len(without_bad(open_folder(root, skip_bad=True), keep=False, say=said.append)) == 3
    assert "2.png: has no map" in said[-1] and "7.map.png: is a map" in said[-1]
    (root / "2.png").unlink()
    assert "7.map.png: is a map, and there is no image beside it" in one_line_error(lambda: open_folder(root))
    (root / "7.map.png").unlink()
    (root / "1.map.png").write_bytes(encoded(IDS[1][:, :19, None]))
    assert "1.png (row 1): map is 12x19 and its image 12x20" in one_line_error(lambda: open_folder(root))
    (root / "1.map.png").write_bytes(encoded(IMAGES[1]))
    assert "1.map.png: map has Pillow mode RGB" in one_line_error(lambda: open_folder(root))


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool"])
def test_an_npz(kind: str, tmp_path: Path) -> None:
    ids = (IDS > 2) if kind == "bool" else IDS.astype(kind)
    np.savez(tmp_path / "set.npz", images=IMAGES, map=ids)
    np.testing.assert_array_equal(take(open_npz(tmp_path / "set.npz"), range(4))["map"], ids)
    small = take(open_npz(tmp_path / "set.npz", image_size=8, resize=True), [3])
    assert small["x"].shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(small["map"][0], center_crop_nearest(ids[3], 8))


def test_an_npz_of_another_size() -> None:
    assert "row 0: map is 12x19 and its image 12x20" in one_line_error(lambda: from_arrays(IMAGES, map=IDS[:, :, :19]))


def config(tmp_path: Path, **codec: Any) -> Config:
    given = Map("map", (8, 8), codec["classes"])
    net = UNet(8, 3, width=8, multipliers=(1,), blocks=1, attention_resolutions=(), conditions=(given,))
    data = DataConfig(name="folder", path=str(tmp_path), image_size=8, resize=True)
    made = SemanticMap(None, name="map", **codec)
    parts: dict[str, Any] = {"process": Flow(), "parameterization": Velocity(), "network": net, "codec": made}
    return Config(name="maps", data=data, ema=Ema(0.9), train=TrainConfig(steps=1, batch_size=4), **parts)


def test_ids_are_classes_or_void(tmp_path: Path) -> None:
    ids = np.where(IDS == 4, 255, IDS)
    folder_of(tmp_path, ids, None)
    source = build_source(config(tmp_path, classes=4, void=255))
    expected = np.stack([center_crop_nearest(each, 8) for each in ids])
    np.testing.assert_array_equal(take(source, range(4))["map"], expected)
    for codec, range_ in (({"classes": 3, "void": 255}, "0..2 or 255"), ({"classes": 4}, "0..3")):
        wrong = build_source(config(tmp_path, **codec))
        assert f"map between 0 and 255, expected {range_}; fix the record" in one_line_error(
            functools.partial(take, wrong, [0])
        )


def test_data_without_maps_or_with_other_things_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(IMAGES[0]))
    message = one_line_error(lambda: build_source(config(tmp_path, classes=4)))
    assert "the codec reads map, which is not in the data (its conditions: none); add it to the data" in message
    np.savez(tmp_path / "set.npz", images=IMAGES, map=np.ones((4, 3)))
    made = config(tmp_path, classes=4)
    data = DataConfig(name="npz", path=str(tmp_path / "set.npz"))
    message = one_line_error(lambda: build_source(dataclasses.replace(made, data=data)))
    assert "map is float32 (3,), expected int32 (any, any)" in message


def test_maps_of_mnist() -> None:
    """By equation (1), pixel by pixel; of other pictures there are none."""
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 256, (3, 8, 12, 1)) * (rng.uniform(size=(3, 8, 12, 1)) < 0.2)).astype(np.uint8)
    source = MnistMaps(from_arrays(x, [0, 9, 4]))
    found = take(source, range(3))
    assert source.spec["map"].high == 10 and len({*np.unique(found["map"]).tolist()} - {0}) == 3
    for n, row, column in np.ndindex(3, 8, 12):
        top, left = row // 4 * 4, column // 4 * 4
        ink = x[n, top : top + 4, left : left + 4].astype(float).sum() / 16 / 255
        assert found["map"][n, row, column] == (found["label"][n] + 1 if ink > 1 / 8 else 0)
    for wrong in (from_arrays(x), from_arrays(x[:, :7], [0, 9, 4]), from_arrays(x.repeat(3, 3), [0, 9, 4])):
        with pytest.raises(DataError, match="maps are made of grey pictures with labels"):
            MnistMaps(wrong)


def test_maps_of_the_real_mnist(shared_data: Path) -> None:
    """Coarse, and a digit's own: the ink lies in its map, much less of it in another digit's."""
    found = take(open_mnist_maps(shared_data, split="test"), range(500))
    ink, there = found["x"][..., 0].astype(float), found["map"] > 0
    assert (ink * there).sum() > 0.95 * ink.sum() and (ink * np.roll(there, 1, 0)).sum() < 0.7 * ink.sum()
    assert (found["map"].max(axis=(1, 2)) == found["label"] + 1).all()
    assert Images((28, 28, 1)).encode(found)["map"].shape == (500, 28, 28)
