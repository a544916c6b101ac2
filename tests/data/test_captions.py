"""Captions: text as a source gives it, one drawn of several, and every layout that stores it."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import itertools
import json
import pickle
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
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
    from_arrays,
    num_classes,
    open_digits,
    open_folder,
    open_npz,
    open_parquet,
    open_points,
    open_tfds,
    open_webdataset,
    take,
    webdataset,
    without_bad,
)
from jaxdiff.data.decoded import Decoded
from jaxdiff.networks import Vector
from jaxdiff.spec import Spec, shapes
from tests.data.pictures import encoded, one_line_error, pictures

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

PICTURES = pictures(4, (2, 2, 3))
ENCODED = [encoded(image) for image in PICTURES]
Texts = Any
Write = Callable[..., Source]


def parquet(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text", kind: Any = None) -> None:
    images = [{"bytes": image, "path": None} for image in ENCODED]
    columns = {"image": images, column: pa.array(texts, kind)} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=3)


def npz(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text", kind: str = "U") -> None:
    held = np.array(texts if kind == "U" else [text.encode() for text in texts])
    np.savez(folder / "train.npz", x=PICTURES, **{column: held} | ({} if labels is None else {"label": labels}))


def images_of(folder: Path, labels: Any = None) -> list[str]:
    """Four images, in folders of classes where there are labels; their names."""
    names = [f"{n}.png" if labels is None else f"{'ab'[labels[n]]}/{n}.png" for n in range(4)]
    for name, image in zip(names, ENCODED, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(image)
    return names


def jsonl(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text") -> None:
    lines = [{"file_name": n, column: t} for n, t in zip(images_of(folder, labels), texts, strict=True)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def table(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text") -> None:
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", column), *zip(images_of(folder, labels), texts, strict=True)])


def beside(folder: Path, texts: Texts, labels: Any = None) -> None:
    for name, text in zip(images_of(folder, labels), texts, strict=True):
        (folder / name).with_suffix(".txt").write_bytes(text.encode())


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def pairs(folder: Path, texts: Texts, labels: Any = None, *, kind: str = "txt", column: str = "text") -> None:
    for shard in (0, 1):  # two of two pairs
        members = {}
        for n in (2 * shard, 2 * shard + 1):
            members[f"set/{n:03}.png"] = ENCODED[n]
            held = texts[n] if kind == "txt" else json.dumps({"id": n, column: texts[n]})
            members[f"set/{n:03}.{kind}"] = held.encode()
            if labels is not None:
                members[f"set/{n:03}.cls"] = str(labels[n]).encode()
        tar(folder / f"{shard:04}.tar", members)


LAYOUTS: dict[str, tuple[Callable[..., None], Callable[..., Source]]] = {
    "parquet": (parquet, open_parquet),
    "npz": (npz, open_npz),
    "npz of bytes": (functools.partial(npz, kind="S"), open_npz),
    "metadata.jsonl": (jsonl, open_folder),
    "metadata.csv": (table, open_folder),
    "txt": (beside, open_folder),
    "tar with txt": (pairs, open_webdataset),
    "tar with json": (functools.partial(pairs, kind="json"), open_webdataset),
}
SEVERAL = ("parquet", "npz", "metadata.jsonl", "tar with json")
text_of = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


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


# --- what is wrong with captions


def test_parquet_columns_that_are_no_captions(tmp_path: Path) -> None:
    for texts, kind, message in (
        ([1, 2, 3, 4], None, "column text is int64, expected strings or lists of strings; set text (data.text) to"),
        ([None] * 4, None, "column text is null, expected strings"),
        ([[1]] * 4, None, "column text is list<"),
        (["a", None, "c", "d"], pa.string(), "train.parquet row 1: text is missing, expected a text"),
        ([["a"], [], ["c"], ["d"]], None, "row 1: text is an empty list, expected at least one text"),
        (["a", "b\0", "c", "d"], None, "row 1: text holds the character NUL (at 1)"),
    ):
        parquet(tmp_path, texts, kind=kind)
        assert message in one_line_error(lambda: open_parquet(tmp_path))
        assert set(open_parquet(tmp_path, conditions=()).spec) == {"x"}
    binary = pa.array([b"a", b"b\xff", b"c", b"d"])
    invalid = pa.Array.from_buffers(pa.string(), 4, binary.buffers())  # what other writers leave behind
    parquet(tmp_path, invalid, kind=None)
    assert "row 1: text is not UTF-8 (byte 1 is 0xff): save it as UTF-8" in one_line_error(
        lambda: open_parquet(tmp_path)
    )
    large = pa.array(["a", "b", "a", "d"]).dictionary_encode()
    lists = pa.array([["a"], ["b", "c"]] * 2, pa.large_list(pa.large_string()))
    for held in (large, large.cast(pa.large_string()), lists):
        parquet(tmp_path, held)
        assert list(captions(open_parquet(tmp_path)))[:2] == ["a", "b"]


def test_parquet_parts_have_the_same_captions(tmp_path: Path) -> None:
    for number, texts in enumerate((["a"] * 4, [["a"]] * 4)):
        parquet(tmp_path, texts)
        (tmp_path / "train.parquet").rename(tmp_path / f"train-0000{number}-of-00002.parquet")
    assert "-00001-of-00002.parquet: column text is of captions in some files" in one_line_error(
        lambda: open_parquet(tmp_path)
    )


def test_npz_arrays_that_are_no_captions(tmp_path: Path) -> None:
    objects = np.array(["a", "b", None, "d"], object)
    for held, message in (
        (np.array(["a", "b"]), "text has shape (2,), expected one row for each of 4 records"),
        (np.full((4, 1, 1), "a"), "text has shape (4, 1, 1), expected (N,), or (N, m) for m captions each"),
        (np.array([b"a", b"b\xff", b"c", b"d"]), "row 1: text is not UTF-8"),
        (objects, "array 'text' cannot be read (Object arrays cannot be loaded when allow_pickle=False)"),
    ):
        np.savez(tmp_path / "train.npz", x=PICTURES, text=held)
        assert message in one_line_error(lambda: open_npz(tmp_path))
    np.savez(tmp_path / "train.npz", x=PICTURES, text=np.zeros((4, 7), np.int32))
    assert open_npz(tmp_path).spec["text"] == Spec((7,), "int32")  # tokens
    assert "array text is of numbers" in one_line_error(lambda: open_npz(tmp_path, text="text"))
    np.savez(tmp_path / "set.npz", x_train=PICTURES, caption_train=["a"] * 4, x_test=PICTURES, caption_test=["b"] * 4)
    assert list(captions(open_npz(tmp_path / "set.npz", split="test"))) == ["b"] * 4
    tokens = from_arrays(PICTURES, text=np.zeros((4, 7), np.int32))
    assert tokens.spec["text"] == Spec((7,), "int32")
    assert "has no captions; its conditions: text" in one_line_error(lambda: list(captions(tokens)))


def test_metadata_that_are_wrong(tmp_path: Path) -> None:
    jsonl(tmp_path, ["a", "b", "c", "d"])
    lines = (good := (tmp_path / "metadata.jsonl").read_text()).splitlines(keepends=True)
    first = '{"file_name": "0.png", "text": '
    for content, message in (
        (
            good + '{"file_name": "5.png", "text": "e"}',
            f"{tmp_path}/5.png: is named in the metadata, and there is no such",
        ),
        (good + lines[2], "metadata.jsonl line 5: "),
        (
            "".join(lines[1:]),
            f"{tmp_path}/0.png: has no caption, expected one in {tmp_path}/metadata.jsonl (1 of 4 images",
        ),
        ("[1]\n", "metadata.jsonl line 1 is a list, expected an object"),
        (good[:-3], "metadata.jsonl line 4 is not JSON ("),
        ('{"text": "a"}', "metadata.jsonl line 1: no file_name; it has text"),
        (
            '{"file_name": "0.png", "title": "a"}',
            "metadata.jsonl line 1: no caption; it has file_name, title, expected",
        ),
        (first + "7}\n" + "".join(lines[1:]), "0.png (row 0): text is 7, expected a text"),
        (first + "null}\n" + "".join(lines[1:]), "0.png (row 0): text is missing, expected a text"),
        (first + '"a\\u0000"}\n' + "".join(lines[1:]), "0.png (row 0): text holds the character NUL (at 1)"),
        (first + '"\\ud800"}\n' + "".join(lines[1:]), "0.png (row 0): text holds half of a surrogate pair"),
    ):
        (tmp_path / "metadata.jsonl").write_text(content)
        assert message in one_line_error(lambda: open_folder(tmp_path))
        assert set(open_folder(tmp_path, conditions=()).spec) == {"x"}
    (tmp_path / "metadata.jsonl").write_bytes(lines[0].encode() + b'{"file_name": "1.png", "text": "\xff"}')
    assert "metadata.jsonl line 2 is not UTF-8 (byte 32 is" in one_line_error(lambda: open_folder(tmp_path))
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"a\n')
    assert "metadata.csv line 2: is not CSV (" in one_line_error(lambda: open_folder(tmp_path))


def test_texts_beside_that_are_wrong(tmp_path: Path, capsys: Any) -> None:
    beside(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "README.txt").write_text("of nobody")
    assert list(captions(open_folder(tmp_path))) == ["a", "b", "c", "d"]
    assert "1 files are no images and are left out (1 .txt; the first: README.txt)" in capsys.readouterr().err
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbf a b \r\n")  # as Windows writes it
    assert list(captions(open_folder(tmp_path)))[1] == "a b"
    (tmp_path / "1.txt").write_bytes(b"a\xff")
    assert f"{tmp_path}/1.txt is not UTF-8 (byte 1 is 0xff)" in one_line_error(lambda: open_folder(tmp_path))
    (tmp_path / "1.txt").unlink()
    message = f"{tmp_path}/1.png: has no caption, expected one 1.txt beside it (1 of 4 images have none)"
    assert message in one_line_error(lambda: open_folder(tmp_path))
    (tmp_path / "alone").mkdir()
    images_of(tmp_path / "alone")
    message = f"{tmp_path}/alone: no metadata.jsonl or metadata.csv with the field title; write one, or leave text out"
    assert message in one_line_error(lambda: open_folder(tmp_path / "alone", text="title"))


def test_metadata_above_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        images_of(tmp_path / split)
    lines = [{"file_name": f"{s}/{n}.png", "text": f"{s} {n}"} for s in ("train", "test") for n in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(captions(open_folder(tmp_path))) == [f"train {n}" for n in range(4)]
    assert list(captions(open_folder(tmp_path, split="test"))) == [f"test {n}" for n in range(4)]


def test_tar_files_that_are_wrong(tmp_path: Path) -> None:
    a, b = ENCODED[:2]
    for members, message in (
        ({"a.png": a, "b.png": b}, "2 images and no caption, expected pairs KEY.jpg (png, webp, ...) and KEY.txt"),
        ({"a.txt": b"a"}, "no images among its 1 keys, expected pairs"),
        ({"notes.md": b"a"}, "no images among its 0 keys, expected pairs"),
        ({"a.png": a, "a.txt": b"a", "s/b.png": b}, "set.tar key s/b: an image without a caption (1 of 2 images)"),
        ({"a.png": a, "a.txt": b"a", "s/b.txt": b"b"}, "set.tar key s/b: a text without an image (1 of 2 keys)"),
        ({"a.png": a, "a.txt": b"\xff"}, "set.tar key a: txt is not UTF-8 (byte 0 is 0xff)"),
        ({"a.png": a, "a.txt": b"a\0"}, "set.tar key a: txt holds the character NUL (at 1)"),
        ({"a.png": a, "a.json": b"{"}, "set.tar key a: json is not JSON ("),
        (
            {"a.png": a, "a.json": b'{"title": "a"}'},
            "set.tar key a: json has no caption; it has title; set text (data.text)",
        ),
        ({"a.png": a, "a.json": b'{"text": 7}'}, "set.tar key a: text is 7, expected a text"),
        ({"a.png": b"", "a.txt": b"a"}, "set.tar key a: image is empty (0 bytes)"),
        ({"a.png": a, "a.jpg": b, "a.txt": b"a"}, "set.tar key a: has two files of image"),
        ({"a.png": a, "a.txt": b"a", "a.cls": b"cat"}, "set.tar key a: .cls is no label (invalid literal"),
        ({"a.png": a, "a.cls": b"1", "b.png": b}, "set.tar key b: label -1, expected at least 0"),
    ):
        tar(tmp_path / "set.tar", members)
        assert message in one_line_error(lambda: open_webdataset(tmp_path / "set.tar"))
    tar(tmp_path / "set.tar", {"a.png": a, "a.cls": b"0", "b.png": b, "b.cls": b"2", "._b.png": b"", "b.md": b""})
    source = open_webdataset(tmp_path)  # labels alone are a set too
    assert (set(source.spec), num_classes(source)) == ({"x", "label"}, 3)
    whole = tar(tmp_path / "set.tar", {"a.png": a, "a.txt": b"a", "b.png": b, "b.txt": b"b" * 2000}).read_bytes()
    for content, message in (
        (whole[: whole.index(b"b" * 2000) + 100], "set.tar"),
        (gzip.compress(whole), "set.tar: is damaged, or no tar file without compression ("),
        (b"", "set.tar: is damaged, or no tar file without compression (empty file)"),
    ):
        (tmp_path / "set.tar").write_bytes(content)
        assert message in one_line_error(lambda: open_webdataset(tmp_path))


def test_tar_files_of_splits(tmp_path: Path) -> None:
    for name in ("set-train-0000.tar", "set-train-0001.tar", "set-val-0000.tar"):
        tar(tmp_path / name, {"a.png": ENCODED[0], "a.txt": name.encode()})
    assert list(captions(open_webdataset(tmp_path))) == ["set-train-0000.tar", "set-train-0001.tar"]
    assert list(captions(open_webdataset(tmp_path, split="validation"))) == ["set-val-0000.tar"]
    assert len(open_webdataset(tmp_path, split="all")) == 3
    assert f"{tmp_path}: no split 'test'; it has train, validation" in one_line_error(
        lambda: open_webdataset(tmp_path, split="test")
    )
    tar(tmp_path / "set-train-00000-of-00002.tar", {"a.png": ENCODED[0], "a.txt": b"a"})
    assert "set-train-00001-of-00002.tar is missing; fetch it, or set skip_bad" in one_line_error(
        lambda: open_webdataset(tmp_path)
    )


def test_bad_pairs_are_left_out_by_name(tmp_path: Path) -> None:
    said: list[str] = []

    def left(opener: Callable[..., Source], path: Path) -> list[str]:
        said.clear()
        return list(captions(without_bad(opener(path, skip_bad=True), keep=False, say=said.append)))

    a, b = ENCODED[:2]
    members = {
        "a.png": a,
        "a.txt": b"a",
        "b.png": b,
        "c.png": a,
        "c.txt": b"\xff",
        "d.txt": b"d",
        "e.png": b,
        "e.txt": b"",
    }
    assert left(open_webdataset, tar(tmp_path / "set.tar", members)) == ["a", ""]
    for found in (
        "key b: text is missing",
        "key c: txt is not UTF-8",
        "key d: a text without an image",
        "2 of 4 records",
    ):
        assert found in said[-1]
    (tmp_path / "texts").mkdir()
    beside(tmp_path / "texts", ["a", "b", "c", "d"])
    (tmp_path / "texts" / "1.txt").unlink()
    assert left(open_folder, tmp_path / "texts") == ["a", "c", "d"]
    assert "1.png (row 1): text is missing" in said[-1]
    (tmp_path / "lines").mkdir()
    jsonl(tmp_path / "lines", ["a", "b\0", "c", "d"])
    with open(tmp_path / "lines" / "metadata.jsonl", "ab") as file:
        file.write(b'{"file_name": "9.png", "text": "e"}\n{"file_name": "\xff"}')
    assert left(open_folder, tmp_path / "lines") == ["a", "c", "d"]
    for found in ("1.png (row 1): text holds the character NUL", "9.png: is named in the", "line 6 is not UTF-8"):
        assert found in said[-1]
    parquet(tmp_path, ["a", None, "c", "d"], kind=pa.string())
    assert left(open_parquet, tmp_path) == ["a", "c", "d"]
    np.savez(tmp_path / "train.npz", x=PICTURES, text=[b"a", b"\xff", b"c", b"d"])
    assert left(open_npz, tmp_path / "train.npz") == ["a", "c", "d"]


# --- the index of tar files


def test_an_index_is_made_once_and_anew_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "_SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    pairs(tmp_path / "set", ["one", "two", "three", "four"])
    first = open_webdataset(tmp_path / "set")
    (index,) = (tmp_path / "cache" / "jaxdiff" / "decoded").glob("*.index.npz")
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_made", lambda *arguments: pytest.fail("the index was made again"))
        again = open_webdataset(tmp_path / "set")
        assert list(captions(again)) == list(captions(first)) == ["one", "two", "three", "four"]
        assert again.fingerprint == first.fingerprint
    index.write_bytes(index.read_bytes()[:-30])  # one that is not whole
    assert list(captions(open_webdataset(tmp_path / "set")))[:2] == ["one", "two"]
    tar(tmp_path / "set" / "0001.tar", {"x.png": ENCODED[0], "x.txt": b"another"})
    changed = open_webdataset(tmp_path / "set")
    assert list(captions(changed)) == ["one", "two", "another"]
    assert changed.fingerprint != first.fingerprint
    assert [file for file in index.parent.glob("*.index.npz") if file != index] != []
    assert len([*index.parent.glob("*.index.npz")]) == 1
    webdataset._opened.cache_clear()
    assert "0001.tar: has changed since this run began to read it" in one_line_error(lambda: take(first, [2]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "set" / "0001.tar"))  # where nothing can be kept
    assert list(captions(open_webdataset(tmp_path / "set"))) == ["one", "two", "another"]


def test_more_tar_files_than_are_held_open(tmp_path: Path) -> None:
    for number in range(webdataset._OPEN + 6):
        tar(tmp_path / f"{number:04}.tar", {"a.png": ENCODED[number % 4], "a.txt": str(number).encode()})
    source = open_webdataset(tmp_path)
    order = np.random.default_rng(0).permutation(len(source))
    for records in (take(source, order), take(pickle.loads(pickle.dumps(source)), order)):
        assert records["text"].tolist() == [str(number) for number in order]
        assert (records["x"] == PICTURES[order % 4]).all()
    held = len([*Path("/proc/self/fd").iterdir()]) if Path("/proc/self/fd").exists() else 0
    take(source, order)
    assert held == 0 or len([*Path("/proc/self/fd").iterdir()]) <= held


# --- TFDS, and the real set


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
