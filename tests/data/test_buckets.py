"""Buckets of aspect ratios: which sizes, which picture goes where, that none is distorted, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from jaxdiff.data import (
    DataError,
    Subset,
    from_arrays,
    open_folder,
    open_parquet,
    open_points,
    open_webdataset,
    without_bad,
)
from jaxdiff.data.buckets import SIZES, bucket_sizes, in_buckets, nearest
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.stream import Stream
from jaxdiff.data.transforms import center_crop_resize, cover_crop, covering, middle
from tests.data.pictures import one_line_error

few = settings(deadline=None, max_examples=60)


def test_sizes_are_those_of_sdxl() -> None:
    """Of appendix I of its paper, those whose ratio is at most 2 and whose height is the largest for a width."""
    found = bucket_sizes(1024)
    published = {(704, 1408), (768, 1344), (768, 1280), (832, 1216), (896, 1152), (960, 1088), (1024, 1024)}
    assert set(found) == published | {(width, height) for height, width in published}
    assert [h / w for h, w in found] == sorted(h / w for h, w in found)


@few
@given(st.integers(1, 20), st.sampled_from([1, 8, 64]), st.floats(1, 6))
def test_sizes_keep_what_they_promise(times: int, multiple: int, ratio: float) -> None:
    side = times * multiple
    found = bucket_sizes(side, multiple, ratio)
    assert (side, side) in found and len({h / w for h, w in found}) == len(found)
    for h, w in found:
        assert h % multiple == w % multiple == 0 and h * w <= side**2 and max(h / w, w / h) <= ratio
        assert (h + multiple) * w > side**2 or h * (w + multiple) > side**2
        assert (w, h) in found


@few
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_nearest_bucket_keeps_the_most_of_a_picture(rows: int, columns: int) -> None:
    sizes = bucket_sizes(512)
    (chosen,) = nearest(np.array([[rows, columns]]), sizes)
    kept = []
    for h, w in sizes:
        scale = max(h / rows, w / columns)
        kept.append(h * w / (scale**2 * rows * columns))
    assert kept[chosen] >= max(kept) * (1 - 1e-12)


@few
@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 64), st.integers(1, 64))
def test_a_picture_covers_its_bucket_and_keeps_its_aspect(rows: int, columns: int, height: int, width: int) -> None:
    scaled = covering(rows, columns, height, width)
    top, left = middle(scaled, height, width)
    assert scaled[0] >= height and scaled[1] >= width and (scaled[0] == height or scaled[1] == width)
    assert 0 <= scaled[0] - height - 2 * top <= 1 and 0 <= scaled[1] - width - 2 * left <= 1
    exact = max(height / rows, width / columns)
    assert cover_crop(np.zeros((rows, columns, 1), np.uint8), height, width).shape == (height, width, 1)
    assert all(abs(got - exact * side) <= 0.5 + 1e-9 for got, side in zip(scaled, (rows, columns), strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(300, 500), (517, 301), (203, 208), (48, 90)])
def test_a_circle_stays_a_circle(rows: int, columns: int) -> None:
    picture = Image.new("L", (columns, rows), 255)
    radius = 0.4 * min(rows, columns)
    ImageDraw.Draw(picture).ellipse(
        (columns / 2 - radius, rows / 2 - radius, columns / 2 + radius, rows / 2 + radius), fill=0
    )
    sizes = bucket_sizes(96, 16)
    height, width = sizes[int(nearest(np.array([[rows, columns]]), sizes)[0])]
    dark = 255.0 - cover_crop(np.asarray(picture)[:, :, None], height, width)[:, :, 0]
    down, across = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    radii = [
        2 * np.sqrt(np.average((each - np.average(each, weights=dark)) ** 2, weights=dark)) for each in (down, across)
    ]
    assert radii[0] == pytest.approx(radii[1], rel=0.01)  # a disc's standard deviation along a line is half its radius
    drawn = radius + 0.5  # Pillow fills the pixels of the edge too
    assert radii[0] == pytest.approx(drawn * max(height / rows, width / columns), rel=0.02)


def encoded(size: tuple[int, int], kind: str = "PNG", turned: int | None = None) -> bytes:
    """A picture of (width, height), of which EXIF data may say that it is turned."""
    file, exif = io.BytesIO(), Image.Exif()
    if turned is not None:
        exif[274] = turned
    Image.new("RGB", size, (90, 30, 10)).save(file, kind, exif=exif)
    return file.getvalue()


PICTURES = {
    "a.png": encoded((50, 30)),
    "b.jpg": encoded((50, 30), "JPEG", turned=6),
    "c.png": encoded((50, 30), turned=8),
    "d.webp": encoded((32, 31), "WEBP"),
    "e.jpg": encoded((200, 33), "JPEG", turned=3),
}
OPTIONS: dict[str, Any] = {"image_size": 32, "resize": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name, data in PICTURES.items():
        (tmp_path / "data" / name).write_bytes(data)
    return tmp_path / "data"


def opened(kind: str, folder: Path) -> Any:
    if kind == "folder":
        return open_folder(folder, **OPTIONS)
    if kind == "parquet":
        images = [{"bytes": data, "path": None} for data in PICTURES.values()]
        pq.write_table(pa.table({"image": images}), folder.parent / "train.parquet")
        return open_parquet(folder.parent, **OPTIONS)
    with tarfile.open(folder.parent / "0.tar", "w") as file:
        for name, data in PICTURES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return open_webdataset(folder.parent / "0.tar", **OPTIONS, conditions=())


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_heads_of_files_tell_the_size_of_what_is_decoded(kind: str, folder: Path) -> None:
    source = opened(kind, folder)
    sizes = source.sizes(np.arange(5))
    assert sizes.tolist() == [[30, 50], [50, 30], [50, 30], [31, 32], [33, 200]]
    assert sizes.tolist() == [list(source._reader.read(index)[0].shape[:2]) for index in range(5)]
    made = in_buckets(source, 32, multiple=8, sizes=True, keep=False)
    assert [(each.spec["x"].shape, len(each)) for each in made.buckets] == [
        ((24, 40, 3), 2),
        ((32, 32, 3), 1),
        ((40, 24, 3), 2),
    ]
    assert made.spec["x"].shape == (None, None, 3) and len(made) == 5
    assert [numbers.tolist() for numbers in made.members] == [[0, 4], [3], [1, 2]]
    record = made.take(np.array([4]))
    assert record["x"].shape == (1, 24, 40, 3) and record[SIZES].tolist() == [[33, 200, 0, 52, 24, 40]]


def test_the_part_is_where_it_is_told_to_be(folder: Path) -> None:
    """A picture whose pixels say where they are: the left column of the part is that of the scaled picture."""
    ramp = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (30, 240, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(folder / "ramp.png")
    made = in_buckets(open_folder(folder, **OPTIONS), 32, multiple=8, sizes=True, keep=False)
    record = made.take(np.array([5]))
    rows, columns, top, left, height, width = record[SIZES][0].tolist()
    assert (rows, columns, height, width) == (30, 240, 24, 40) and top == 0
    scale = max(height / rows, width / columns)
    centres = (np.arange(width) + left + 0.5) / scale - 0.5
    np.testing.assert_allclose(record["x"][0, 0, :, 0], centres, atol=1)


def test_sizes_are_read_once_and_again_when_a_file_changes(folder: Path, tmp_path: Path) -> None:
    kept, read = tmp_path / "kept", 0

    def made() -> Any:
        nonlocal read
        source = open_folder(folder, **OPTIONS)
        size = source._reader.size

        def counted(index: int) -> tuple[int, int]:
            nonlocal read
            read += 1
            return size(index)

        source._reader.size = counted  # type: ignore[method-assign]
        return in_buckets(source, 32, multiple=8, folder=kept)

    first, again = made(), made()
    assert read == 5 and first.fingerprint == again.fingerprint
    (folder / "a.png").write_bytes(encoded((30, 50)))
    changed = made()
    assert read == 10 and changed.members[2].tolist() == [0, 1, 2] and len(list(kept.glob("*.sizes.json"))) == 1
    assert in_buckets(open_folder(folder, **OPTIONS), 32, multiple=16, folder=kept).fingerprint != changed.fingerprint
    (stored,) = kept.glob("*.sizes.json")
    stored.write_text("[[1, 2]]")  # not of all records
    assert in_buckets(open_folder(folder, **OPTIONS), 32, multiple=8, folder=kept).fingerprint == changed.fingerprint


def test_captions_pass_and_the_stream_travels_to_workers(folder: Path) -> None:
    for name in PICTURES:
        (folder / name).with_suffix(".txt").write_text(f"the picture {name}")
    source = Subset(open_folder(folder, **OPTIONS, conditions=["text"]), range(4), ["text"])
    made = in_buckets(source, 32, multiple=8, keep=False)
    assert made.texts(np.array([3, 0])).tolist() == ["the picture d.webp", "the picture a.png"]
    stream = Stream(made, 2, slice(None), 0, True, True, None)
    sent = pickle.loads(pickle.dumps(stream))
    for k in range(4):
        assert all(np.array_equal(sent(k)[name], stream(k)[name]) for name in ("x", "text"))


def test_a_run_goes_on_with_the_same_buckets_alone(folder: Path) -> None:
    made = [in_buckets(open_folder(folder, **OPTIONS), 32, multiple=n, keep=False) for n in (8, 16)]
    with Pipeline(made[0], batch_size=2, seed=0) as pipeline:
        next(pipeline)
        position = pipeline.position
    with pytest.raises(DataError, match="belongs to another stream of batches: data was"):
        Pipeline(made[1], batch_size=2, seed=0, position=position)


def test_bad_files(folder: Path) -> None:
    (folder / "z.png").write_bytes(b"no picture")
    message = one_line_error(lambda: in_buckets(open_folder(folder, **OPTIONS), 32, multiple=8, keep=False))
    assert "z.png" in message and "damaged or of an unknown kind" in message
    source = without_bad(open_folder(folder, **OPTIONS, skip_bad=True), keep=False, say=lambda text: None)
    assert len(in_buckets(source, 32, multiple=8, keep=False)) == 5
    os.truncate(folder / "b.jpg", len(PICTURES["b.jpg"]) - 20)  # its head is whole
    made = in_buckets(source, 32, multiple=8, keep=False)
    assert "b.jpg" in one_line_error(lambda: made.take(np.array([1])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: in_buckets(from_arrays(np.zeros((4, 8, 8, 3), np.uint8)), 8), "arrays: buckets are of pictures of"),
        (
            lambda _: in_buckets(Subset(open_points("moons"), range(9)), 64),
            "points:moons (train): buckets are of pictures of",
        ),
        (lambda folder: in_buckets(open_folder(folder, **OPTIONS), 32), "32 is no multiple of 64"),
        (lambda folder: in_buckets(open_folder(folder, **OPTIONS), 100), "100 is no multiple of 64"),
        (lambda _: bucket_sizes(64, 64, 0.5), "are at least 1, got 64, 0.5"),
        (lambda _: bucket_sizes(64, 0), "are at least 1, got 0, 2"),
    ],
)
def test_refusals_are_one_line(folder: Path, make: Any, message: str) -> None:
    assert message in one_line_error(lambda: make(folder))


def test_squares_without_buckets_are_cut_as_adm_cuts_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (203, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    source = open_folder(tmp_path, **OPTIONS)
    found = [each.take(np.array([0]))["x"][0] for each in (source, source.at(32, 32))]
    assert (found[0] == center_crop_resize(pixels, 32)).all() and (found[1] == cover_crop(pixels, 32, 32)).all()
    assert (found[0] != found[1]).any()


def test_a_source_of_one_size_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    message = one_line_error(lambda: in_buckets(open_folder(tmp_path, image_size=32), 32, multiple=8, keep=False))
    assert "opened for one size of images; set resize" in message
