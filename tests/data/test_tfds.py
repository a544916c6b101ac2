"""TFDS without TensorFlow: a real set prepared on disk, the mock, and what is said when nothing is prepared."""

from __future__ import annotations

import io
import pickle
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdiff.data import DataError, Pipeline, Source, captions, decode_once, num_classes, open_tfds, take
from jaxdiff.data.decoded import Decoded
from tests.data.captioned import ENCODED, PICTURES
from tests.data.pictures import one_line_error, record

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)


class TinyColours(tfds.core.GeneratorBasedBuilder):
    """Nine images, three classes, and a test split of four."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        return {"train": self._generate_examples(9), "test": self._generate_examples(4)}

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, object]]]:
        for number in range(count):
            Image.fromarray(PIXELS[number]).save(file := io.BytesIO(), "PNG")
            yield number, {"image": file.getvalue(), "label": number % 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    TinyColours(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_prepared_set(prepared: Path) -> None:
    source = open_tfds("tiny_colours", prepared)
    assert (len(source), source.spec["x"].shape, num_classes(source)) == (9, (8, 8, 3), 3)
    records = [record(source, i) for i in range(9)]
    numbers = [int(np.argmax([(r["x"] == p).all() for p in PIXELS])) for r in records]
    assert sorted(numbers) == list(range(9))  # TFDS shuffles when it prepares
    assert all((r["x"] == PIXELS[i]).all() for r, i in zip(records, numbers, strict=True))
    assert [r["label"] for r in records] == [i % 3 for i in numbers]
    assert len(open_tfds("tiny_colours", prepared, split="test")) == 4
    assert len(open_tfds("tiny_colours", prepared, split="train[:3]")) == 3
    same = open_tfds("tiny_colours", prepared).fingerprint
    assert source.fingerprint == same != open_tfds("tiny_colours", prepared, split="train[:3]").fingerprint


def test_prepared_set_in_a_pipeline(prepared: Path) -> None:
    source = open_tfds("tiny_colours", prepared)
    with Pipeline(source, batch_size=3, seed=0) as pipeline:
        epoch = [next(pipeline) for _ in range(3)]
    seen = np.concatenate([batch["x"] for batch in epoch])
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in PIXELS)


def test_each_split_is_decoded_once(prepared: Path, tmp_path: Path) -> None:
    def decoded(split: str) -> Source:
        source = open_tfds("tiny_colours", prepared, split=split)
        found = decode_once(source, limit=10**6, folder=tmp_path, say=lambda text: None)
        assert isinstance(found, Decoded)
        assert all((record(found, i)["x"] == record(source, i)["x"]).all() for i in range(len(source)))
        return found

    assert [len(decoded(split)) for split in ("train[:4]", "train[4:8]", "train[:4]")] == [4, 4, 4]
    assert len(list(tmp_path.glob("*.npy"))) == 2  # neither takes the other's place


def test_refusals(prepared: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"split": "val"}, "tfds:tiny_colours: no split 'val'; it has train, test"),
        ({"channels": 1}, "images have 3 channels, expected 1 channel"),
        ({"image_size": 16}, "image is 8x8, expected 16x16; set resize (data"),
        ({"num_classes": 2}, "tfds:tiny_colours: labels lie in 0..2, expected 0..1; set num_classes=3"),
    ]
    for options, message in cases:
        with pytest.raises(DataError) as caught:
            open_tfds("tiny_colours", prepared, **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert open_tfds("tiny_colours", prepared, image_size=16, resize=True).spec["x"].shape == (16, 16, 3)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_tfds("cifra10", tmp_path)
    assert str(caught.value).startswith("tfds:cifra10: TFDS has no data set of this name")
    assert "did you mean cifra10 -> cifar10?" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_file(prepared: Path, tmp_path: Path) -> None:
    for file in prepared.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(prepared)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            copy.write_bytes(content.replace(b"IDAT", b"XXXX") if "test" in file.name else content)
    assert len(open_tfds("tiny_colours", tmp_path)) == 9
    with pytest.raises(DataError, match=r"tfds:tiny_colours \(test\) row 0: cannot be read"):
        open_tfds("tiny_colours", tmp_path, split="test")


def test_mock_data() -> None:
    with tfds.testing.mock_data(num_examples=5):
        source = open_tfds("mnist", image_size=28, channels=1, num_classes=10)
        assert (len(source), source.spec["x"].shape, num_classes(source)) == (5, (28, 28, 1), 10)
        with Pipeline(source, batch_size=5, seed=0) as pipeline:
            batch = next(pipeline)
    assert batch["x"].shape == (5, 28, 28, 1)
    assert sorted(batch["label"]) == sorted(record(source, i)["label"] for i in range(5))


def test_not_prepared_fails_at_once_with_the_command(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = f"""
import sys, time
import jaxdiff.data
print("tensorflow_datasets" in sys.modules)
import tensorflow_datasets
from jaxdiff.data import DataError, open_tfds
start = time.monotonic()
try:
    open_tfds("cifar10", {str(tmp_path)!r})
except DataError as error:
    print(error)
print(time.monotonic() - start, "tensorflow" in sys.modules)
"""
    needed_for_import, message, measured = run_python("-c", code).stdout.strip().splitlines()
    assert needed_for_import == "False"
    seconds, tensorflow = measured.split()
    assert float(seconds) < 2
    assert tensorflow == "False"
    assert message.startswith(f"tfds:cifar10: is not prepared under {tmp_path}")
    command = f"tfds.builder('cifar10', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()"
    assert command in message
    assert "pip install tensorflow " in message


def test_prepared_in_another_format_says_so(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "tiny_colours" / "1.0.0"
    place.mkdir(parents=True)
    for file in (prepared / "tiny_colours" / "1.0.0").glob("*.json"):
        (place / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError) as caught:
        open_tfds("tiny_colours", tmp_path)
    assert "tfds:tiny_colours: is prepared as tfrecord under" in str(caught.value)
    assert f"then set path (data.path) to {tmp_path}_array_record" in str(caught.value)


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """Four images, each with a title and a few captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {"text": tfds.features.Text(), "lines": tfds.features.Sequence(tfds.features.Text())}
        image = tfds.features.Image(shape=(2, 2, 3), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "size": np.int32, **texts})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: object) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for n, image in enumerate(ENCODED):
            yield n, {"image": image, "size": n, "text": f"grün {n}", "lines": [f"{n}"] * (n + 1)}


def test_texts_of_tfds(tmp_path: Path) -> None:
    TinyTexts(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_tfds("tiny_texts", tmp_path)
    records = take(source, np.arange(4))
    numbers = [int(np.argmax([(image == each).all() for each in PICTURES])) for image in records["x"]]
    assert records["text"].tolist() == [f"grün {n}" for n in numbers]
    assert list(captions(source)) == records["text"].tolist()
    several = take(open_tfds("tiny_texts", tmp_path, text="lines"), np.arange(4))["text"]
    assert several.tolist() == [(f"{n}",) * (n + 1) for n in numbers]
    assert list(captions(pickle.loads(pickle.dumps(source)))) == list(captions(source))
    assert "feature size is Tensor, expected Text or a Sequence of it" in one_line_error(
        lambda: open_tfds("tiny_texts", tmp_path, text="size")
    )
    assert "no feature title; it has image, size, text, lines" in one_line_error(
        lambda: open_tfds("tiny_texts", tmp_path, text="title")
    )
    assert set(open_tfds("tiny_texts", tmp_path, conditions=()).spec) == {"x"}
