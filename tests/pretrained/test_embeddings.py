"""Textual inversion: files, ids, rows, and what is refused; `tests/parity/test_embeddings.py` compares latents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.config.serialize import from_json, to_json
from jaxdiff.data.added_words import WHOLE
from jaxdiff.data.clip_files import clip_tokenizer
from jaxdiff.pretrained import Pretrained, PretrainedError, load_embeddings, load_pipeline, save_pipeline
from jaxdiff.pretrained import write_embeddings as write
from jaxdiff.pretrained.adapters.embeddings import Embeddings
from jaxdiff.pretrained.adapters.lora import Factors, Lora
from jaxdiff.pretrained.files.safetensors import write_safetensors
from jaxdiff.runs.published import published_config
from tests.pretrained.test_pipeline import SD, write_pipeline

pytest.importorskip("tokenizers")
CAT = "<cat-toy>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pipeline(write_pipeline(tmp_path_factory.mktemp("published"), {"_class_name": "DDIMScheduler", **SD}))


def rows(count: int, width: int = 24, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def of(model: Pretrained) -> Any:
    encoder: Any = model.model.encoders["text"]
    return encoder.branches[0]


def test_a_token_has_the_ids_after_the_table_and_the_rows_of_the_file(model: Pretrained, tmp_path: Path) -> None:
    vectors = rows(3, of(model).net.config.width)
    write(tmp_path / "learned_embeds.safetensors", Embeddings(CAT, {"": vectors}))
    told = model.with_embeddings(tmp_path)
    size = len(of(model).params["tokens"]["embedding"])
    plain, new = of(model).tokenizer, of(told).tokenizer
    begin, *_, end = plain.ids("")
    middle = [size, size + 1, size + 2]
    assert new.ids(f"a {CAT} on") == [begin, *plain.ids("a")[1:-1], *middle, *plain.ids("on")[1:-1], end]
    assert new.ids(CAT.upper())[1:-1] == middle and new.ids("a cat") == plain.ids("a cat")
    assert new.size == size + 3 and new.null == plain.null and new.knows(CAT) and not plain.knows(CAT)
    cut = new.encode([CAT * 20, ""])
    assert cut.shape == (2, new.length) and cut[0, -1] == end and cut[0, 1:4].tolist() == middle
    np.testing.assert_array_equal(of(told).params["tokens"]["embedding"][size:], vectors)
    assert told.parts["text_encoder"].fields["vocab_size"] == size + 3
    assert len(of(model).params["tokens"]["embedding"]) == size
    assert told.decided_by() != model.decided_by()
    states = of(told).net.apply(of(told).params, cut)["tokens"]
    assert np.isfinite(states).all()


def test_two_tokens_and_a_lora(model: Pretrained) -> None:
    width = of(model).net.config.width
    one = model.with_embeddings(Embeddings("<a>", {"": rows(1, width)}))
    both = one.with_embeddings(Embeddings("<x>", {"": rows(2, width, 1)}), token="<a>b")
    size = len(of(model).params["tokens"]["embedding"])
    assert of(both).tokenizer.ids("<a> <a>b")[1:-1] == [size, size + 1, size + 2]
    factors = Factors(rows(1, width), rows(1, width).T, 1.0)
    merged = both.with_lora(Lora({"text_encoder": {"text_model.encoder.layers.0.self_attn.q_proj": factors}}))
    assert of(merged).tokenizer == of(both).tokenizer and len(of(merged).params["tokens"]["embedding"]) == size + 3
    with pytest.raises(PretrainedError, match="knows the token '<A>' already: give another, token='<word>'"):
        both.with_embeddings(Embeddings("<A>", {"": rows(1, width)}))


@pytest.mark.parametrize(
    ("tensors", "token", "message"),
    [
        ({}, None, "holds nothing; expected one tensor, named as its token, or clip_l and clip_g"),
        ({"a": rows(1), "b": rows(1)}, None, "holds a, b; expected one tensor"),
        (
            {"emb_params": rows(1)},
            None,
            "does not say its token, which stands for it in a text: give token='<word>', on the command line FILE",
        ),
        ({"clip_l": rows(1), "clip_g": rows(2)}, "<a>", "numbers of vectors for its encoders: clip_g 2, clip_l 1"),
        ({"<a>": rows(1)[None]}, None, r"<a> has the shape \(1, 1, 24\), expected"),
        ({"<a>": rows(1)}, " a", "the token ' a' begins or ends with a blank"),
        ({"<a>": rows(1, 5)}, None, "has vectors of 5 numbers, text_encoder has"),
        ({"clip_l": rows(1), "clip_g": rows(1)}, "<a>", "has clip_l and clip_g, expected one tensor, or clip_l"),
        ({"<a>": rows(1)}, "a", "tokenizer knows the token 'a' already: give another"),
    ],
)
def test_what_does_not_fit_is_one_line(
    model: Pretrained, tensors: Any, token: Any, message: str, tmp_path: Path
) -> None:
    write_safetensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(PretrainedError, match=message) as error:
        model.with_embeddings(tmp_path / "a.safetensors", token)
    assert "\n" not in str(error.value)


def test_pickles_and_folders_that_are_none_are_refused(model: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="there is no such file; embeddings are one file of safetensors"):
        load_embeddings(tmp_path)
    (tmp_path / "learned_embeds.bin").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(PretrainedError, match=r"a pickle of torch.*python -m jaxdiff.pretrained.convert"):
        load_embeddings(tmp_path)


def with_words(model: Pretrained) -> Pretrained:
    width = of(model).net.config.width
    one = model.with_embeddings(Embeddings(CAT, {"": rows(3, width)}))
    return one.with_embeddings(Embeddings("<X>", {"": rows(1, width, 1)}))


def test_a_model_with_words_is_saved_with_them(model: Pretrained, tmp_path: Path) -> None:
    """And again, and further; a tokenizer of one file says them too, as transformers writes it."""
    told = with_words(model)
    save_pipeline(tmp_path / "a", told)
    again = load_pipeline(tmp_path / "a")
    save_pipeline(tmp_path / "b", again)
    whole = tmp_path / "c"
    shutil.copytree(tmp_path / "b", whole)
    package: Any = pytest.importorskip("tokenizers")
    clip_tokenizer(package, whole / "tokenizer").save(str(whole / "tokenizer" / WHOLE))
    for name in ("vocab.json", "merges.txt"):
        (whole / "tokenizer" / name).unlink()
    save_pipeline(tmp_path / "d", load_pipeline(whole))
    assert json.loads((tmp_path / "d" / "tokenizer" / WHOLE).read_text())["added_tokens"][-1]["content"] == "<X>"
    (tmp_path / "d" / "tokenizer" / "tokenizer_config.json").unlink()
    for folder in "abcd":
        found = load_pipeline(tmp_path / folder)
        assert of(found).tokenizer.words == of(told).tokenizer.words
        assert of(found).tokenizer.ids(f"a {CAT}s, <x>!") == of(told).tokenizer.ids(f"a {CAT}s, <x>!")
        np.testing.assert_array_equal(of(found).params["tokens"]["embedding"], of(told).params["tokens"]["embedding"])
    more = again.with_embeddings(Embeddings("<y>", {"": rows(1, of(model).net.config.width)}))
    assert of(more).tokenizer.words[-1].first == of(told).tokenizer.size
    config = published_config(tmp_path / "a")
    assert config.tokenizer == of(again).tokenizer
    assert from_json(json.loads(json.dumps(to_json(config)))).tokenizer == config.tokenizer
    assert config.tokenizer.resolved(list).noted(config.tokenizer).tokenizer.checksum is not None


def test_words_that_a_folder_cannot_say_are_refused(model: Pretrained, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "a", with_words(model))
    width = of(model).net.config.width
    one = model.with_embeddings(Embeddings("<a>", {"": rows(1, width)}))
    both = one.with_embeddings(Embeddings("<a>_1", {"": rows(1, width)}))
    with pytest.raises(PretrainedError, match="'<a>' and '<a>_1' would be read as one word: rename one"):
        save_pipeline(tmp_path / "b", both)
    assert not (tmp_path / "b").exists()
    place = tmp_path / "a" / "tokenizer" / "tokenizer_config.json"
    told = json.loads(place.read_text())
    decoder = told["added_tokens_decoder"]
    for changed, message in [
        (decoder | {"518": {"content": "<z>", "special": False}}, "has the id 518 of '<z>', and its text encoder 518"),
        (
            {"514": decoder["514"], "516": decoder["515"]},
            "'<cat-toy>' and '<cat-toy>_1' do not stand one after another",
        ),
        (decoder | {"x": {"content": "<z>", "special": False}}, "the id of its added token '<z>' is 'x', expected a"),
        (["x"], "added_tokens_decoder of tokenizer_config.json is no object"),
    ]:
        place.write_text(json.dumps({**told, "added_tokens_decoder": changed}))
        with pytest.raises(PretrainedError, match=message) as error:
            load_pipeline(tmp_path / "a")
        assert "\n" not in str(error.value)
