"""Captions: text as a source gives it, one drawn of several, and every layout that stores it."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxdiff.config import DataConfig
from jaxdiff.config.build import build_source
from jaxdiff.data import (
    DataError,
    Pipeline,
    Source,
    Subset,
    captions,
    decode_once,
    fingerprint,
    num_classes,
    open_digits,
    open_parquet,
    open_points,
    take,
)
from jaxdiff.data.decoded import Decoded
from jaxdiff.networks import Vector
from jaxdiff.spec import Spec, shapes
from tests.data.captioned import LAYOUTS, PICTURES, SEVERAL, Texts, parquet
from tests.data.pictures import one_line_error

text_of = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)

# --- text in a spec, in records, in a stream


class Captioned:
    """Thirty numbers, with captions as a source of one's own gives them."""

    def __init__(self, shape: tuple[int | None, ...] = (), texts: Any = None) -> None:
        self.spec = {"x": Spec((1,), "float32"), "text": Spec(shape, "str")}
        self.given = texts or [
            f"number {n}" if shape == () else [f"{n} {k}" for k in range(1 + n % 4)] for n in range(30)
        ]

    def __len__(self) -> int:
        return 30

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        return {"x": indices.astype(np.float32)[:, None], "text": [self.given[index] for index in indices]}


def test_text_has_a_shape_and_nothing_else() -> None:
    assert Spec((), "str").is_text
    assert Spec((), "<U7") == Spec((), "str")
    wrong: list[dict[str, Any]] = [{"shape": (3,)}, {"low": 0}, {"null": 0}, {"shape": (None, None)}]
    for fields in wrong:
        with pytest.raises(ValueError, match="text has the shape"):
            Spec(**{"dtype": "str", **fields})
    with pytest.raises(ValueError, match="text is text, which no jitted step takes: give a tokenizer"):
        shapes({"x": Spec((2,)), "text": Spec((), "str")}, 4)


@pytest.mark.parametrize("form", [list, tuple, np.array, lambda texts: np.array([t.encode() for t in texts])])
def test_texts_come_as_objects_of_str(form: Any) -> None:
    source = Captioned(texts=["", "grün", *("a" * 28)])
    source.take = lambda indices: {"x": np.zeros((len(indices), 1)), "text": form([source.given[i] for i in indices])}  # type: ignore[method-assign]
    found = take(source, [1, 0])["text"]
    assert (found.dtype, found.shape, found.tolist()) == (object, (2,), ["grün", ""])
    assert all(type(each) is str for each in found)
    several = take(Captioned((None,)), [4, 3])["text"]
    assert several.tolist() == [("4 0",), ("3 0", "3 1", "3 2", "3 3")]
    assert take(Captioned((None,), ["a", ["b", ""]] * 15), [0, 1])["text"].tolist() == [("a",), ("b", "")]


@pytest.mark.parametrize(
    ("shape", "text", "message"),
    [
        ((), None, "Captioned row 3: text is missing, expected a text; store an empty one for none"),
        ((), 7, "Captioned row 3: text is 7, expected a text"),
        ((), b"a\xff", "Captioned row 3: text is not UTF-8 (byte 1 is 0xff): save it as UTF-8"),
        ((), "a\0b", "Captioned row 3: text holds the character NUL (at 1), which is no text: remove it"),
        ((), "\ud800", "Captioned row 3: text holds half of a surrogate pair"),
        ((), ["a"], "Captioned row 3: text is ['a'], expected a text"),
        ((None,), [], "Captioned row 3: text is an empty list, expected at least one text; store [''] for none"),
        ((None,), 7, "Captioned row 3: text is 7, expected a text"),
        ((None,), ["a", None], "Captioned row 3: text is missing, expected a text"),
    ],
)
def test_what_is_no_text_is_refused_by_row(shape: tuple[int | None, ...], text: Any, message: str) -> None:
    source = Captioned(shape)
    source.given[3] = text
    assert one_line_error(lambda: take(source, [2, 3])).startswith(message)
    assert len(take(source, [2, 4])["text"]) == 2


def test_captions_of_another_number_than_the_records() -> None:
    source = Captioned()
    source.take = lambda indices: {"x": np.zeros((len(indices), 1)), "text": ["a"]}  # type: ignore[method-assign]
    assert "text of records 0, 1 has 1 rows, expected 2" in one_line_error(lambda: take(source, [0, 1]))
    source.take = lambda indices: {"x": np.zeros((len(indices), 1)), "text": "ab"}  # type: ignore[method-assign]
    assert "text of records 0, 1 is str, expected 2" in one_line_error(lambda: take(source, [0, 1]))


def drawn(source: Source, batches: int, **options: Any) -> list[str]:
    with Pipeline(source, **{"batch_size": 10, "seed": 0, **options}) as pipeline:
        assert pipeline.spec["text"] == Spec((), "str")
        return [text for _ in range(batches) for text in next(pipeline)["text"]]


def test_one_of_several_is_drawn_anew_each_epoch_and_equally_often() -> None:
    texts = drawn(Captioned((None,)), 3 * 200)
    counts = Counter(texts)
    for record in range(30):
        of_record = [counts[f"{record} {k}"] for k in range(1 + record % 4)]
        assert sum(of_record) == 200  # once an epoch
        assert len(of_record) == 1 or stats.chisquare(of_record).pvalue > 1e-4
    threes = [text for text in texts if text.startswith("3 ")]
    pairs = Counter(itertools.pairwise(threes))  # an epoch tells nothing of the next
    assert stats.chisquare([pairs[f"3 {a}", f"3 {b}"] for a in range(4) for b in range(4)]).pvalue > 1e-4


def test_captions_are_those_of_seed_epoch_and_record_alone() -> None:
    source, whole = Captioned((None,)), drawn(Captioned((None,)), 6)
    assert drawn(source, 6) == whole != drawn(source, 6, seed=1)
    halves = [drawn(source, 6, process_index=p, process_count=2) for p in (0, 1)]
    assert [t for k in range(6) for half in halves for t in half[5 * k : 5 * k + 5]] == whole
    with Pipeline(source, batch_size=10, seed=0) as pipeline:
        for _ in range(4):
            next(pipeline)
        assert drawn(source, 2, position=pipeline.position) == whole[40:]
    of = [dict(text.split() for text in drawn(source, 3, shuffle=shuffle)) for shuffle in (True, False)]
    assert of[0] == of[1]  # whatever the order


def test_a_fingerprint_knows_captions() -> None:
    source, other = Captioned(), Captioned()
    other.given[3] = "another"
    assert fingerprint(source) == fingerprint(Captioned()) != fingerprint(other)
    with pytest.raises(DataError, match="belongs to another stream"), Pipeline(source, batch_size=5, seed=0) as stream:
        Pipeline(other, batch_size=5, seed=0, position=stream.position)


# --- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=12, deadline=None)
@given(texts=st.lists(text_of, min_size=4, max_size=4), labelled=st.booleans())
def test_captions_come_back_from_every_layout(layout: str, texts: list[str], labelled: bool) -> None:
    write, opener = LAYOUTS[layout]
    labels = [0, 0, 1, 1] if labelled else None
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), texts, labels)
        source = opener(folder)
        records, backwards = take(source, np.arange(4)), take(source, [3, -3])
        again = opener(folder)
    wanted = [text.strip() for text in texts] if "txt" in layout else texts
    assert source.spec["text"] == Spec((), "str")
    assert records["text"].tolist() == wanted
    assert (records["x"] == PICTURES).all()
    assert backwards["text"].tolist() == [wanted[3], wanted[1]]
    assert (records["label"].tolist() == labels) if labelled else ("label" not in records)
    assert again.fingerprint == source.fingerprint  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", SEVERAL)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_lists_of_captions_come_back(layout: str, data: st.DataObject) -> None:
    most = 3 if layout != "npz" else data.draw(st.integers(1, 3))
    several = st.lists(text_of, min_size=1 if layout != "npz" else most, max_size=most)
    texts = data.draw(st.lists(several, min_size=4, max_size=4))
    write, opener = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), texts)
        source = opener(folder)
        assert source.spec["text"] == Spec((None,), "str")
        assert take(source, np.arange(4))["text"].tolist() == [tuple(each) for each in texts]
        assert list(captions(source)) == [text for each in texts for text in each]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_have_a_name_are_left_out_where_not_asked_for_and_decode_nothing(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, opener = LAYOUTS[layout]
    texts = ["one", "two", "three", ""]
    for name in ("caption", "title") if layout not in ("txt", "tar with txt") else ():
        (folder := tmp_path / name).mkdir()
        write(folder, texts, [0, 1, 1, 0], column=name)
        source = opener(folder, **{} if name == "caption" else {"text": name})
        assert sorted(take(source, [0, 1, 2, 3])["text"]) == sorted(texts)
        assert num_classes(source) == 2
        message = one_line_error(lambda folder=folder: opener(folder, text="legend"))  # type: ignore[misc]
        assert "legend" in message
        assert "text (data.text)" in message
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain", texts)
    source = opener(tmp_path / "plain")
    assert set(opener(tmp_path / "plain", conditions=()).spec) == {"x"}
    assert set(opener(tmp_path / "plain", conditions=("text",)).spec) == {"x", "text"}
    fail = lambda *arguments: pytest.fail("an image was decoded")  # noqa: E731
    for module in ("parquet", "files", "webdataset"):
        monkeypatch.setattr(f"jaxdiff.data.{module}.decode", fail)
    assert list(captions(source)) == texts
    assert list(captions(Subset(source, [2, 0]))) == ["three", "one"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_caption_is_another_set(layout: str, tmp_path: Path) -> None:
    write, opener = LAYOUTS[layout]
    prints = []
    for number, texts in enumerate((["one", "two", "ten", ""], ["one", "two", "six", ""])):
        (tmp_path / f"{number}" / "set").mkdir(parents=True)
        write(tmp_path / f"{number}" / "set", texts)
        prints.append(fingerprint(opener(tmp_path / f"{number}" / "set")))
    assert prints[0] != prints[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_stays_with_the_pixels_that_are_decoded_once(layout: str, tmp_path: Path) -> None:
    write, opener = LAYOUTS[layout]
    texts: Texts = ["one", "", "grün \U0001f600", "four"]
    if layout in SEVERAL:
        texts = [[text, text + "!"] for text in texts]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", texts)
    source = opener(tmp_path / "set")
    for _ in range(2):
        found = decode_once(source, limit=10**6, folder=tmp_path / "kept", say=lambda text: None)
        assert isinstance(found, Decoded) == ("npz" not in layout)
        for each in (found, pickle.loads(pickle.dumps(found)), pickle.loads(pickle.dumps(source))):
            records, wanted = take(each, [3, 0, 2, 1]), take(source, [3, 0, 2, 1])
            assert all(np.array_equal(records[name], wanted[name]) for name in ("x", "text"))
            assert list(captions(each)) == list(captions(source))
    assert drawn(found, 5, batch_size=4) == drawn(source, 5, batch_size=4)
    if "npz" not in layout:
        (file,) = (tmp_path / "kept").glob("*.npy")
        file.write_bytes(file.read_bytes()[:-1])  # of the captions, at the file's end
        again = decode_once(source, limit=10**6, folder=tmp_path / "kept", say=lambda text: None)
        assert take(again, [3])["text"].tolist() == take(source, [3])["text"].tolist()


@pytest.mark.parametrize(
    "layout",
    ["tar with json", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("parquet", "metadata.jsonl"))],
)
def test_workers_read_and_draw_the_same_captions(layout: str, tmp_path: Path) -> None:
    write, opener = LAYOUTS[layout]
    write(tmp_path, [["one"], ["two", "2"], ["three", "3", "drei"], [""]])
    source = opener(tmp_path)
    assert drawn(source, 12, batch_size=2, workers=1) == drawn(source, 12, batch_size=2)


def test_the_emoji(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "emoji"
    if not folder.is_dir():
        pytest.skip("no emoji in ../shared/data")
    source = open_parquet(folder, image_size=32, resize=True)
    told = pq.read_table(folder / "train.parquet", columns=["text", "short_names"]).to_pydict()
    assert source.spec == {"x": Spec((32, 32, 3), "uint8", 0, 255), "text": Spec((), "str")}
    assert list(captions(source)) == told["text"]
    assert take(source, [3, 1000])["text"].tolist() == [told["text"][3], told["text"][1000]]
    several = open_parquet(folder, image_size=32, resize=True, text="short_names")
    assert list(captions(several)) == [name for names in told["short_names"] for name in names]


def test_the_configuration_names_the_column_of_captions(tmp_path: Path) -> None:
    from configs.digits_unet import config

    parquet(tmp_path, ["a", "b", "c", "d"], column="title")
    network = dataclasses.replace(config.network, num_classes=None, null_class=False, in_channels=3)
    data = DataConfig(name="parquet", path=str(tmp_path), text="title")
    of_nothing = dataclasses.replace(config, data=data, network=network)
    assert set(build_source(of_nothing).spec) == {"x"}
    of_text = dataclasses.replace(of_nothing, network=dataclasses.replace(network, conditions=(Vector("text", 4),)))
    assert list(captions(build_source(of_text))) == ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="conditioned on text, which is not in the data"):
        build_source(dataclasses.replace(of_text, data=dataclasses.replace(data, text=None)))


def test_digits_and_points_have_no_captions() -> None:
    assert "digits: have no captions, got text='title'" in one_line_error(lambda: open_digits(text="title"))
    assert "have no size, classes or text" in one_line_error(lambda: open_points("moons", text="title"))
