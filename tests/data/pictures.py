"""Small sets of images on disk, and what tests of sources ask of all of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxdiff.data import DataError, Source, take
from jaxdiff.spec import Spec

Pixels = np.ndarray


def encoded(pixels: Pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, kind)
    return file.getvalue()


def pictures(n: int = 6, shape: tuple[int, int, int] = (8, 8, 3)) -> Pixels:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_parquet(path: Path, images: Any, labels: Any = None, *, rows: int = 2, metadata: Any = None) -> Path:
    columns = {"image": [{"bytes": b, "path": None} for b in images]}
    table = pa.table(columns if labels is None else {**columns, "label": labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def write_folder(root: Path, images: Pixels, labels: list[str]) -> Path:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{number:02}.png").write_bytes(encoded(image))
    return root


def one_line_error(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def record(source: Source, index: int) -> dict[str, Any]:
    """One record of a source, checked as all are."""
    return {name: array[0] for name, array in take(source, [index]).items()}


def check_content(source: Source, images: Pixels, labels: list[int] | None) -> None:
    assert len(source) == len(images)
    assert source.spec["x"] == Spec(images.shape[1:], "uint8", 0, 255)
    for index, image in enumerate(images):
        found = record(source, index)
        assert found["x"].dtype == np.uint8
        assert (found["x"] == image).all()
        assert found.keys() == source.spec.keys() == ({"x"} if labels is None else {"x", "label"})
        if labels is not None:
            assert found["label"] == labels[index]
            assert found["label"].dtype == np.int32
    assert (record(source, -1)["x"] == images[-1]).all()
    with pytest.raises(IndexError):
        record(source, len(source))
