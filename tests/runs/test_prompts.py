"""Text from a configuration to prompts: training, resuming, pictures, sampling from Python and the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff import load_samples
from jaxdiff.codecs import Points, WithText
from jaxdiff.commands import sample
from jaxdiff.config import Config, ConfigError, LossConfig, build_pipeline, resolve, with_conditions
from jaxdiff.data import Words, from_arrays
from jaxdiff.runs.prompts import rows_of_prompts
from tests.commands.test_cli import one_line
from tests.tiny_text import CAPTIONS, OfIds, OfStates, config, encoder, points

TRUST = ("jaxdiff", "tests.tiny_text")
WORDS = ("the", "a", "left", "on", "point", "right", "one")  # by falling frequency in the captions, then by letters


def params_of(run: jaxdiff.Run) -> list[Any]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run.denoise.params)]


def stopped_at(given: Config, step: int) -> Config:
    return dataclasses.replace(given, train=dataclasses.replace(given.train, steps=step))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> jaxdiff.Run:
    """Four steps, two at a time."""
    given = config(tmp_path_factory.mktemp("text") / "run")
    jaxdiff.fit(stopped_at(given, 2), points())
    return jaxdiff.fit(given, points())


# --- training


def test_a_run_keeps_the_vocabulary_that_it_learned(run: jaxdiff.Run) -> None:
    assert run.config.tokenizer == Words(8, size=16, vocabulary=WORDS)
    saved = json.loads((Path(run.folder or "") / "config.json").read_text())["tokenizer"]
    assert saved == {"type": "jaxdiff.data.Words", "length": 8, "size": 16, "vocabulary": list(WORDS)}


def test_a_run_that_was_stopped_goes_on_bit_for_bit(run: jaxdiff.Run, tmp_path: Path) -> None:
    whole = jaxdiff.fit(config(tmp_path / "whole"), points())
    for went_on, straight in zip(params_of(run), params_of(whole), strict=True):
        np.testing.assert_array_equal(went_on, straight)


def test_another_length_or_vocabulary_is_another_run(run: jaxdiff.Run) -> None:
    given = dataclasses.replace(run.config, tokenizer=Words(8, size=15))
    with pytest.raises(ConfigError, match=r"holds another configuration: tokenizer.size \(16 there, 15 here\)"):
        jaxdiff.fit(given, points())


def test_pictures_show_captions_of_training_records(run: jaxdiff.Run) -> None:
    """Nine samples: three rows of three, their captions in a file beside the picture; the same when it is loaded."""
    folder = Path(run.folder or "")
    assert len(run.prompts) == 3 and set(run.prompts) <= set(CAPTIONS)
    assert (folder / "samples" / "prompts.txt").read_text().splitlines() == run.prompts
    again = jaxdiff.load(folder, trusted=TRUST)
    assert again.prompts == run.prompts
    np.testing.assert_array_equal(again.picture(), run.picture())


def test_lines_are_said_of_captions_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = OfIds(vocabulary=8, length=5, null=(2, 3, 0, 0, 0))
    given = config(tmp_path / "short", network=network, tokenizer=Words(5, size=8))
    jaxdiff.fit(given, points(4), dry_run=True)
    said = [line for line in capfd.readouterr().err.splitlines() if "tokenizer" in line]
    assert said == [
        "WARNING: tokenizer.length: 2 of 4 captions are cut to 5 ids, the longest has 7: raise it, and the "
        "network's Text.length",
        "WARNING: tokenizer.size: 5 of 22 pieces in 4 captions are unknown, such as 'point', 'right', 'one': raise it, "
        "and the network's Text.vocabulary",
    ]


class Refusing:
    """Captions that may not be read."""

    fingerprint = "refusing"
    spec = from_arrays(np.zeros((8, 2), np.float32), text=["a"] * 8).spec

    def __len__(self) -> int:
        return 8

    def take(self, indices: Any) -> Any:
        raise AssertionError("captions were read")

    texts = take


def test_a_network_without_text_reads_no_captions(run: jaxdiff.Run) -> None:
    network = jaxdiff.networks.MLP(width=8, depth=1)
    given = dataclasses.replace(
        run.config, network=network, tokenizer=None, loss=type(run.config.loss)(), codec=Points((2,))
    )
    source = with_conditions(Refusing(), given)
    assert list(source.spec) == ["x"] and resolve(given, source).tokenizer is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "tokenizer: the network takes text, and the data have captions: give what makes numbers"),
        (
            {"network": jaxdiff.networks.MLP(width=8)},
            "tokenizer: the network takes no text: give it the condition Text(",
        ),
        ({"tokenizer": Words(8, size=17)}, "tokenizer.size: it has 17 ids, and the network's text takes 16, its voc"),
        (
            {"tokenizer": Words(9, size=16)},
            "tokenizer.length: it gives 9 ids of a caption, and the network's text takes 8",
        ),
        (
            {"network": OfIds(null=(0,) * 8)},
            "network: the null of its text is (0, 0, 0, 0, 0, 0, 0, 0), and the tokenizer",
        ),
        ({"tokenizer": Words}, "tokenizer: expected an object, such as Words(16, size=1000), got "),
        ({"cache_text": True}, "data.cache_text: there is no frozen text encoder whose states could be kept: leave it"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = config(tmp_path / "run")
    if "cache_text" in changes:
        changes = {"data": dataclasses.replace(given.data, cache_text=True)}
    if isinstance(changes.get("network"), jaxdiff.networks.MLP):
        changes = {**changes, "loss": LossConfig()}
    with pytest.raises(ConfigError) as error:
        jaxdiff.fit(dataclasses.replace(given, **changes), points(8))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# --- sampling


def test_a_prompt_is_its_ids(run: jaxdiff.Run) -> None:
    texts = ["a point on the left", "", "an unheard word"]
    ids = Words(8, size=16, vocabulary=WORDS).encode(texts)
    by_text, by_ids = run.sample(0, 3, {"text": texts}), run.sample(0, 3, {"text": ids})
    np.testing.assert_array_equal(by_text["x"], by_ids["x"])
    assert by_text["text"].tolist() == texts and by_ids["text"].tolist() == ids.tolist()
    one = run.sample(0, 3, {"text": texts[0]})
    assert one["text"].tolist() == [texts[0]] * 3
    np.testing.assert_array_equal(one["x"][0], by_text["x"][0])
    none, empty = run.sample(0, 3), run.sample(0, 3, {"text": ""})
    np.testing.assert_array_equal(none["x"], empty["x"])  # the null is the empty caption
    assert none["text"].tolist() == [""] * 3


def test_samples_with_their_prompts_are_inverted(run: jaxdiff.Run) -> None:
    """A record holds captions, and goes back with them: the x that it is drawn from again."""
    texts = {"text": ["a point on the left", "right"]}
    options: Any = {"sampler": "heun:t", "ts": np.linspace(0.9, 0.01, 60), "guide": ()}
    drawn = run.sample(0, 2, texts, **options)
    x = run.invert(drawn, sampler="heun:t", ts=options["ts"])
    np.testing.assert_allclose(run.sample(0, 2, texts, x=x, **options)["x"], drawn["x"], atol=2e-2)
    assert np.abs(x - run.invert({"x": drawn["x"], "text": ["", ""]}, sampler="heun:t", ts=options["ts"])).max() > 1e-2


def test_guidance_leads_away_from_a_negative(run: jaxdiff.Run) -> None:
    options: Any = {"guide": "cfg:3"}
    left, right = "a point on the left", "a point on the right"
    plain = run.sample(0, 2, {"text": left}, **options)["x"]
    negative = run.sample(0, 2, {"text": left}, negative={"text": right}, **options)["x"]
    null = run.sample(0, 2, {"text": left}, negative={"text": ""}, **options)["x"]
    np.testing.assert_array_equal(plain, null)
    assert np.abs(negative - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"text": ["left", "right"]}, "sampling: text has 2 rows for 3 samples: pass one value, or one a sample"),
        ({"text": ["left", 3, "right"]}, "sampling: text: a caption is text, got 3"),
        ({"text": [[99] * 8] * 3}, "sampling: text 99 is out of range: from 0 to 15"),
        ({"text": [[1, 2]] * 3}, "sampling: text has shape (3, 2), expected (3, 8): the batch first"),
        ({"text": 3}, "sampling: text: expected a caption, or a list of captions, got 3"),
        ({"text": []}, "sampling: text: expected a caption, or a list of captions, got []"),
        ({"text": None}, "sampling: text: expected a caption, or a list of captions, got None"),
        ({"text": "right\0"}, "sampling: text holds the character NUL (at 5), which is no text: remove it"),
    ],
)
def test_a_prompt_that_does_not_fit_is_one_line(run: jaxdiff.Run, cond: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run.sample(0, 3, cond)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_run_that_needs_text_draws_captions_of_training_records(tmp_path: Path) -> None:
    """Where none is given: each sample's by its own key."""
    given = config(tmp_path / "run", loss=LossConfig())
    made = jaxdiff.fit(stopped_at(given, 1), points())
    drawn = made.sample(3, 4)
    assert set(drawn["text"].tolist()) <= set(CAPTIONS)
    np.testing.assert_array_equal(drawn["x"], made.sample(3, 4, {"text": drawn["text"]})["x"])
    again = jaxdiff.load(tmp_path / "run", trusted=TRUST)
    np.testing.assert_array_equal(again.sample(3, 2, start=2)["x"], drawn["x"][2:])
    with pytest.raises(ConfigError, match="guidance"):  # that was trained with no caption left out
        made.sample(3, 1, {"text": "right"}, guide="cfg:2")


def test_prompts_have_rows() -> None:
    which, columns = rows_of_prompts(["a", "b"], None)
    assert which.tolist() == [0] * 10 + [1] * 10 and columns == 10
    assert rows_of_prompts(["a", "b"], 5)[0].tolist() == [0, 0, 0, 1, 1] and rows_of_prompts(["a", "b"], 5)[1] is None


# --- the command line


def drawn(run: jaxdiff.Run, out: Path, *options: str) -> Any:
    sample.main([str(run.folder), "--trust", "tests.tiny_text", "--out", str(out), *options])
    if out.suffix == "":
        return load_samples(out)
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


def test_prompts_of_the_command_line(run: jaxdiff.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given there, in a file, or in a folder of shards: what the run draws in Python."""
    texts = ["the left one", "right"]
    expected = run.sample(0, 4, {"text": [text for text in texts for _ in range(2)]})
    (tmp_path / "prompts").write_text("right\n")
    shards = ("--shard-size", "3", "--num", "4")
    for options in (
        ("x.npz", "--prompt", *texts, "--num", "4"),
        ("y.npz", "--prompt", texts[0], "--prompts", str(tmp_path / "prompts"), "--num", "4"),
        ("folder", "--prompt", *texts, *shards),
    ):
        found = drawn(run, tmp_path / options[0], *options[1:])
        assert found["text"].tolist() == expected["text"].tolist()
        np.testing.assert_allclose(found["x"], expected["x"], atol=1e-5)
    made_by = json.loads((tmp_path / "folder" / "index.json").read_text())["made_by"]
    assert made_by["prompt"] == texts and "negative" not in made_by
    capsys.readouterr()
    again = [str(run.folder), "--trust", "tests.tiny_text", "--out", str(tmp_path / "folder"), *shards]
    assert "holds other samples: made_by.prompt" in one_line(sample.main, [*again, "--prompt", "left"], capsys)
    guided = ("--prompt", texts[0], "--num", "2", "--guide", "cfg:3")
    away = drawn(run, tmp_path / "n.npz", *guided, "--negative", "right")["x"]
    led = run.sample(0, 2, {"text": texts[0]}, guide="cfg:3", negative={"text": "right"})
    np.testing.assert_allclose(away, led["x"], atol=1e-5)


def test_words_that_a_run_does_not_know_are_said(run: jaxdiff.Run, tmp_path: Path, capsys: Any) -> None:
    drawn(run, tmp_path / "x.npz", "--prompt", "the unheard cat", "the cat on the left on the right", "--num", "2")
    assert capsys.readouterr().err.splitlines() == [
        "WARNING: 1 of 2 prompts are longer than the run's captions and are cut to 8 ids; the longest has 10",
        "WARNING: the run does not know 'unheard', 'cat': all unknown words are one",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prompt a --cond text=1", "text is given twice: give it once, by --prompt or by --cond"),
        ("--prompts FOLDER/none", "--prompts: FOLDER/none cannot be read: "),
        ("--prompts FOLDER/empty", "--prompts: FOLDER/empty is empty, expected one prompt a line"),
        ("--negative a --num 2", "error: --negative is what guidance leads away from, and there is no guidance: add -"),
        ("--guide cfg:2 --num 2", "error: --guide leads towards a condition: add --prompt or --cond, or leave it out"),
        ("--negative a --guide cfg:2 --guidance 2", "--guidance 2 is short for --guide cfg:2: give one of them"),
        ("--prompt", "--prompt takes several of: text, got nothing: give it a value, or leave it out"),
        ("--num 2 --prompt --seed 1", "--prompt takes several of: text, got nothing: give it a value, or leave it out"),
        ("--prompt left right a --num 2", "--num 2: 3 prompts need 3 samples or more: raise --num"),
    ],
)
def test_options_that_do_not_fit(run: jaxdiff.Run, options: str, message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").write_text("")
    given = [*options.replace("FOLDER", str(tmp_path)).split(), "--out", str(tmp_path / "x.npz")]
    found = one_line(sample.main, [str(run.folder), "--trust", "tests.tiny_text", *given], capsys)
    assert message.replace("FOLDER", str(tmp_path)) in found


@pytest.mark.parametrize("option", ["--prompt", "--negative", "--prompts"])
def test_a_prompt_for_a_run_without_text(option: str, tiny_run: Path, capsys: Any) -> None:
    found = one_line(sample.main, [str(tiny_run), option, "a cat"], capsys).rstrip()
    assert found.endswith(f"error: {option}: this run was trained without text: leave it out")
    with pytest.raises(ConfigError, match=r"^sampling: text: the conditions are \['label'\]: leave it out$"):
        jaxdiff.load(tiny_run).sample(0, 1, {"text": "a cat"})


# --- a frozen encoder


@pytest.mark.nightly
def test_states_that_are_kept_train_as_those_of_each_step(tmp_path: Path) -> None:
    """To rounding: other batches go through the encoder. Bit for bit from one kept run to another."""
    codec = WithText(str(encoder(tmp_path / "encoder")), mask="caption", pooled="pooled")
    given = config(tmp_path / "live", network=OfStates(), codec=codec)
    live = jaxdiff.fit(given, points())
    data = dataclasses.replace(given.data, cache_text=True, cache_folder=str(tmp_path / "cache"))
    kept = dataclasses.replace(given, workdir=str(tmp_path / "kept"), data=data)
    jaxdiff.fit(stopped_at(kept, 2), points())
    first = jaxdiff.fit(kept, points())
    second = jaxdiff.fit(dataclasses.replace(kept, workdir=str(tmp_path / "again")), points())
    assert len(list((tmp_path / "cache").glob("captions-*/*.npy"))) == 1
    for a, b, c in zip(params_of(live), params_of(first), params_of(second), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_array_equal(b, c)
    text = {"text": ["a point on the left", "right"]}
    again = jaxdiff.load(tmp_path / "kept", trusted=TRUST)
    np.testing.assert_array_equal(again.sample(0, 2, text)["x"], first.sample(0, 2, text)["x"])
    assert first.sample(0, 2, text)["text"].tolist() == text["text"]


def test_a_pipeline_reads_states_in_the_place_of_ids(tmp_path: Path) -> None:
    """Every batch has the states of its own captions."""
    from jaxdiff.config import finder
    from jaxdiff.train import make_mesh, read_codec, read_text

    codec = WithText(str(encoder(tmp_path / "encoder")), mask="caption", pooled="pooled")
    given = config(tmp_path / "run", network=OfStates(), codec=codec)
    data = dataclasses.replace(given.data, cache_text=True, cache_folder=str(tmp_path / "cache"))
    given, source = resolve(dataclasses.replace(given, data=data), points(), finder(given)), points()
    given, made = read_codec(given, make_mesh())
    text = read_text(given, source, made, make_mesh())
    with build_pipeline(given, source, text=text) as states, build_pipeline(given, source) as ids:
        for _ in range(2):
            one, two = made.encode(next(states))["text"], made.encode(next(ids))["text"]
            for name in ("tokens", "mask", "pooled"):
                np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-5)
        assert states.spec["text"] == made.spec["text"] and states.position == ids.position
