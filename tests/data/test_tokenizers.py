"""Tokenizers: the splitting rule, learned vocabularies, cutting, files of the package `tokenizers`, the pipeline."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxdiff.config import from_json, to_json
from jaxdiff.data import Characters, DataError, Pipeline, TokenizerFile, Words, from_arrays
from jaxdiff.data.kept_text import Captions, KeptText
from jaxdiff.data.text import Tokenised, count
from jaxdiff.data.tokenizers import BEGIN, END, PADDING, UNKNOWN
from tests.test_readme import blocks, run_block

TEXT = st.text()  # of all of Unicode
EITHER = st.sampled_from([Words, Characters])


# --- the rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A three, above a FOUR.", ["a", "three", ",", "above", "a", "four", "."]),
        ("don't", ["don", "'", "t"]),
        ("  a\tb\nc\u00a0d\u2003e ", ["a", "b", "c", "d", "e"]),
        ("E\u0301te\u0301 \u00e9t\u00e9", ["\u00e9t\u00e9"] * 2),  # composed or not
        ("हिन्दी में", ["हिन्दी", "में"]),  # marks belong to their word
        ("3d x_1 2.5", ["3d", "x", "_", "1", "2", ".", "5"]),
        ("猫と犬", ["猫と犬"]),
        ("\u2764\ufe0f\U0001f600!!", ["\u2764\ufe0f", "\U0001f600", "!", "!"]),  # a mark belongs to its sign
        ("a\u200bb\x00c\ud800d", ["a", "b", "c", "d"]),  # format, control, half a surrogate pair
        ("", []),
    ],
)
def test_words_split_by_the_rule(text: str, words: list[str]) -> None:
    assert Words(4, size=9).pieces(text) == words


def test_characters_take_each_and_one_blank() -> None:
    assert "".join(Characters(4, size=9).pieces("\tA  b\n\nE\u0301 ")) == "a b \u00e9"


@given(EITHER, TEXT, TEXT)
def test_words_of_a_text_are_those_of_its_parts(kind: Any, one: str, two: str) -> None:
    tokenizer = kind(4, size=9)
    both = [piece for text in (one, two) for piece in tokenizer.pieces(text)]
    assert [piece for piece in tokenizer.pieces(f"{one}\n{two}") if piece != " "] == [p for p in both if p != " "]
    assert all(unicodedata.is_normalized("NFC", piece) for piece in both)


# --- ids


@given(EITHER, st.lists(TEXT, max_size=5), st.lists(TEXT, max_size=5), st.integers(2, 9), st.integers(5, 12))
def test_ids_are_in_range_of_one_length_and_the_same_each_time(
    kind: Any, learned: list[str], texts: list[str], length: int, size: int
) -> None:
    assume(any(kind(length, size=size).pieces(text) for text in learned))
    tokenizer = kind(length, size=size).learned(learned)
    ids = tokenizer.encode(texts)
    assert ids.shape == (len(texts), length) and ids.dtype == np.int32
    assert ((ids >= 0) & (ids < size)).all() and (ids[:, 0] == BEGIN).all() and ((ids == END).sum(1) == 1).all()
    np.testing.assert_array_equal(np.cumsum(ids == END, axis=1) - (ids == END), ids == PADDING)  # padding after the end
    again = from_json(json.loads(json.dumps(to_json(tokenizer))))
    assert again == tokenizer and pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    np.testing.assert_array_equal(again.encode(texts), ids)
    for text, row in zip(texts, ids, strict=True):
        pieces, known = tokenizer.pieces(text), tokenizer.vocabulary
        expected = [BEGIN, *(4 + known.index(p) if p in known else UNKNOWN for p in pieces)][: length - 1]
        assert row[: len(expected) + 1].tolist() == [*expected, END]
        assert tokenizer.unknown_in(text) == [piece for piece in pieces if piece not in known]


@given(EITHER, st.lists(TEXT, max_size=6), st.randoms(use_true_random=False))
def test_a_vocabulary_is_decided_by_the_captions_whatever_their_order(kind: Any, texts: list[str], random: Any) -> None:
    tokenizer, shuffled = kind(4, size=9), random.sample(texts, len(texts))
    counts = Counter(piece for text in texts for piece in tokenizer.pieces(text))
    assume(counts)
    vocabulary = tokenizer.learned(texts).vocabulary
    assert tokenizer.learned(shuffled).vocabulary == vocabulary and len(vocabulary) == min(5, len(counts))
    assert list(vocabulary) == sorted(counts, key=lambda piece: (-counts[piece], piece))[:5]


def test_a_tokenizer_keeps_what_it_has_learned() -> None:
    words, texts = Words(8, size=20), ["b a", "a"]
    learned = words.resolved(lambda: texts)
    assert learned.vocabulary == ("a", "b") and learned.resolved(lambda: ["c"]) is learned
    assert words.noted(learned) is learned and Words(9, size=20).noted(learned) == Words(9, size=20)
    assert words.noted(None) is words and Characters(8, size=20).noted(learned) == Characters(8, size=20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Words(1, size=9), "length must be a whole number of at least 2, got 1"),
        (lambda: Words(4, size=4), "size must be a whole number of at least 5, got 4"),
        (lambda: Words(4, size=5, vocabulary=("a", "b")), "size: 5 ids do not hold 2 pieces and the 4 ids of"),
        (lambda: Words(4, size=9, vocabulary=("a", "a")), "vocabulary: expected different texts, each once"),
        (lambda: Words(4, size=9).encode([3]), "text: a caption is text, got 3"),  # type: ignore[list-item]
        (lambda: Words(4, size=9).learned(["a", None]), "text: a caption is text, got None"),  # type: ignore[list-item]
        (lambda: Words(4, size=9).learned("a cat"), "texts: expected a list of captions, got one text: give ['a cat']"),
        (lambda: Words(4, size=9, vocabulary=("a",)).encode("a"), "texts: expected a list of captions, got one text"),
        (lambda: Characters(4, size=9).learned(["", " "]), "vocabulary: the captions are empty, so there is nothing"),
        (lambda: Words(4, size=9).encode(["a cat"]), "vocabulary: nothing is learned yet, so each piece would be unk"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message)


# --- captions that do not fit


def test_captions_that_are_cut_and_words_that_are_unknown_are_counted() -> None:
    captions = ["a cat", "", "a cat and a dog", "a dog and a dog and a cat"]
    words = Words(5, size=6).learned(captions)
    assert words.vocabulary == ("a", "and")  # six and three of them; "cat" and "dog" come as often, and later in order
    counts = count(words, captions)
    assert (counts.captions, counts.cut, counts.longest, counts.pieces) == (4, 2, 10, 23)
    assert counts.unknown == {"cat": 3, "dog": 3}
    assert counts.lines(5) == [
        "tokenizer.length: 2 of 4 captions are cut to 5 ids, the longest has 10: raise it, and the network's "
        "Text.length",
        "tokenizer.size: 6 of 23 pieces in 4 captions are unknown, such as 'cat', 'dog': raise it, and the network's "
        "Text.vocabulary",
    ]
    assert words.encode(captions)[2].tolist() == [BEGIN, 4, UNKNOWN, 5, END]
    wide = Words(10, size=8).learned(captions)
    assert count(wide, captions).lines(10) == []


# --- the pipeline


def captioned(several: bool = False) -> Any:
    texts: list[Any] = [f"{row % 3} of {row}" for row in range(12)]
    if several:
        texts = [(text, f"other {text}") for text in texts]
    return from_arrays(np.arange(12, dtype=np.float32)[:, None], text=texts)


def stream(source: Any, batches: int = 4, **options: Any) -> list[Any]:
    with Pipeline(source, batch_size=8, seed=3, **options) as pipeline:
        return [next(pipeline)["text"] for _ in range(batches)]


@pytest.mark.parametrize("several", [False, True])
def test_a_pipeline_gives_ids_of_its_captions(several: bool) -> None:
    """Those of the captions that it draws without a tokenizer; in parts, and from any position, the same."""
    source = captioned(several)
    words = Words(6, size=30).learned([str(row) for row in range(12)] + ["of other"])
    texts, ids = stream(source), stream(source, tokenizer=words)
    for found, drawn in zip(ids, texts, strict=True):
        np.testing.assert_array_equal(found, words.encode(drawn.tolist()))
    halves = [stream(source, tokenizer=words, process_index=p, process_count=2) for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), ids)
    with Pipeline(source, batch_size=8, seed=3, tokenizer=words) as pipeline:
        next(pipeline), next(pipeline)
        position, spec = pipeline.position, pipeline.spec["text"]
    with Pipeline(source, batch_size=8, seed=3, tokenizer=words, position=position) as pipeline:
        np.testing.assert_array_equal(next(pipeline)["text"], ids[2])
    assert spec == Tokenised(source, words).spec["text"]
    first = [text if isinstance(text, str) else text[0] for text in source.take(np.arange(3))["text"]]
    np.testing.assert_array_equal(Tokenised(source, words).take(np.arange(3))["text"], words.encode(first))


@pytest.mark.nightly
def test_worker_processes_give_the_same_ids() -> None:
    source, words = captioned(several=True), Words(6, size=30).learned(["0 1 2 of"])
    np.testing.assert_array_equal(stream(source, tokenizer=words, workers=2), stream(source, tokenizer=words))


def test_states_are_kept_of_the_captions_that_a_set_has() -> None:
    """A stand-in for the files: rows by the order of the captions."""
    captions = Captions(["b", "a", "b"], Words(3, size=9, vocabulary=("a", "b")))
    assert captions.fingerprint != Captions(["b", "a"], Words(3, size=9, vocabulary=("b", "a"))).fingerprint
    assert captions.fingerprint == Captions(["a", "b"], Words(3, size=9, vocabulary=("a", "b"))).fingerprint
    kept = KeptText(captions, captions, captions.spec)  # type: ignore[arg-type]
    assert kept.encode(["b", "a", "b"])["tokens"][:, 1].tolist() == [5, 4, 5]
    with pytest.raises(DataError, match=r"^'c' is a caption that the set did not have when it was encoded: start"):
        kept.encode(["a", "c"])


# --- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CLIP's kind (byte-level pieces, begin and end) and T5's (pieces of a unigram model, an end), small."""
    package = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizers")
    models, processors, before = package.models, package.processors, package.pre_tokenizers
    letters = sorted(before.ByteLevel.alphabet())
    vocabulary = {
        each: number for number, each in enumerate([*letters, *(f"{each}</w>" for each in letters), "<s>", "</s>"])
    }
    clip = package.Tokenizer(models.BPE(vocabulary, [], unk_token="</s>", end_of_word_suffix="</w>"))
    clip.normalizer = package.normalizers.Lowercase()
    clip.pre_tokenizer = before.Sequence([before.WhitespaceSplit(), before.ByteLevel(add_prefix_space=False)])
    ends = [(each, vocabulary[each]) for each in ("<s>", "</s>")]
    clip.add_special_tokens(["<s>", "</s>"])
    clip.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁cat", -4.0)]
    t5 = package.Tokenizer(models.Unigram(pieces, 2, False))
    t5.pre_tokenizer = before.Metaspace()
    t5.add_special_tokens(["<pad>", "</s>"])
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    t5.enable_padding(length=64)  # of the file's own, which is not wanted
    for name, each in (("clip", clip), ("t5", t5)):
        (folder / name).mkdir()
        each.save(str(folder / name / "tokenizer.json"))
    return {"clip": folder / "clip", "t5": folder / "t5" / "tokenizer.json"}


def test_a_file_like_clips(files: dict[str, Path]) -> None:
    end = 513
    clip = TokenizerFile(files["clip"], 6, padding=end)  # type: ignore[arg-type]
    begin, size = end - 1, clip.size
    assert size == end + 1 and clip.null == (begin, *[end] * 5)
    ids = clip.encode(["ab", "abcdefgh"])
    assert ids.dtype == np.int32 and ids[0].tolist()[0] == begin and ids[0, 3:].tolist() == [end] * 3
    assert ids[1, -1] == end and (ids[1, :-1] != end).all()  # cut, with its end
    assert len(clip.ids("abcdefgh")) == 10 and clip.unknown_in("né ☃") == []  # bytes know all
    assert count(clip, ["ab", "abcdefgh"]).cut == 1


def test_a_file_like_t5s(files: dict[str, Path]) -> None:
    t5 = TokenizerFile(str(files["t5"]), 5)
    assert t5.size == 6 and t5.null == (1, 0, 0, 0, 0)
    assert t5.encode(["a cat", "a cat a cat a cat"]).tolist() == [[4, 5, 1, 0, 0], [4, 5, 4, 5, 1]]
    assert "".join(t5.unknown_in("a dog")) == "dog"
    noted = t5.resolved(list)
    assert noted.checksum is not None and t5.noted(noted) == noted
    assert from_json(json.loads(json.dumps(to_json(noted)))) == noted
    assert pickle.loads(pickle.dumps(noted)).encode(["a"]).tolist() == t5.encode(["a"]).tolist()


def test_a_file_that_is_another_or_none_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^tokenizer.path: .*clip.tokenizer.json is another file than this run began"):
        TokenizerFile(str(files["clip"]), 6, checksum="0").encode(["a"])
    with pytest.raises(DataError, match=r"^tokenizer.path: .*none: No such file or directory$"):
        TokenizerFile(str(tmp_path / "none"), 6).encode(["a"])
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(DataError, match=r"^tokenizer.path: .*bad is no file of the package tokenizers: "):
        TokenizerFile(str(tmp_path / "bad"), 6).encode(["a"])


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    file = dataclasses.replace(TokenizerFile(str(tmp_path / "file"), 8))
    with pytest.raises(DataError, match=r"^tokenizer: a TokenizerFile needs the package tokenizers: pip install"):
        file.encode(["a"])


def test_the_page_says_what_is_so(repository: Path) -> None:
    for snippet in blocks(repository / "docs" / "text.md", "python"):
        run_block(snippet, "text")
