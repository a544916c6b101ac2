"""Captions: text as a source gives it, one drawn of several, and every layout that stores it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxdiff.data import DataError, Pipeline, Source, fingerprint, take
from jaxdiff.spec import Spec, shapes
from tests.data.pictures import one_line_error

# --- text in a spec, in records, in a stream


class Captioned:
    """Thirty numbers, with captions as a source of one's own gives them."""

    def __init__(self, shape: tuple[int | None, ...] = (), texts: Any = None) -> None:
        self.spec = {"x": Spec((1,), "float32"), "text": Spec(shape, "str")}
        self.texts = texts or [
            f"number {n}" if shape == () else [f"{n} {k}" for k in range(1 + n % 4)] for n in range(30)
        ]

    def __len__(self) -> int:
        return 30

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        return {"x": indices.astype(np.float32)[:, None], "text": [self.texts[index] for index in indices]}


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
    source.take = lambda indices: {"x": np.zeros((len(indices), 1)), "text": form([source.texts[i] for i in indices])}  # type: ignore[method-assign]
    found = take(source, [1, 0])["text"]
    assert (found.dtype, found.shape, found.tolist()) == (object, (2,), ["grün", ""])
    assert all(type(each) is str for each in found)
    several = take(Captioned((None,)), [4, 3])["text"]
    assert several.tolist() == [("4 0",), ("3 0", "3 1", "3 2", "3 3")]


@pytest.mark.parametrize(
    ("shape", "text", "message"),
    [
        ((), None, "Captioned row 3: text is missing, expected a text; store an empty one for none"),
        ((), 7, "Captioned row 3: text is 7, expected a text"),
        ((), b"a\xff", "Captioned row 3: text is not UTF-8 (byte 1 is 0xff): save it as UTF-8"),
        ((), "a\0b", "Captioned row 3: text holds the character NUL (at 1), which is no text: remove it"),
        ((), "\ud800", "Captioned row 3: text holds half of a surrogate pair"),
        ((), ["a"], "Captioned row 3: text is ['a'], expected a text"),
        ((None,), [], "Captioned row 3: text is [], expected a list of at least one text; store [''] for none"),
        ((None,), "a", "Captioned row 3: text is 'a', expected a list of at least one text"),
        ((None,), ["a", None], "Captioned row 3: text is missing, expected a text"),
    ],
)
def test_what_is_no_text_is_refused_by_row(shape: tuple[int | None, ...], text: Any, message: str) -> None:
    source = Captioned(shape)
    source.texts[3] = text
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


def test_workers_read_the_same_captions() -> None:
    assert drawn(Captioned((None,)), 6, workers=2) == drawn(Captioned((None,)), 6)


def test_a_fingerprint_knows_captions() -> None:
    source, other = Captioned(), Captioned()
    other.texts[3] = "another"
    assert fingerprint(source) == fingerprint(Captioned()) != fingerprint(other)
    with pytest.raises(DataError, match="belongs to another stream"), Pipeline(source, batch_size=5, seed=0) as stream:
        Pipeline(other, batch_size=5, seed=0, position=stream.position)
