"""A frozen text encoder as a codec: what it makes of ids, its mask, its recipe, and that no gradient meets it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import Flow, Velocity
from jaxdiff.codecs import Points, TextAndData, WithText
from jaxdiff.config import ConfigError, finder, from_json, resolve, to_json, with_conditions
from jaxdiff.data import Words, from_arrays
from jaxdiff.loss import DenoisingLoss
from jaxdiff.networks import functional
from jaxdiff.networks.text import CLIPText, TextEncoder
from jaxdiff.train import CheckpointError, Ema, create_state, make_mesh, read_codec, save_network, train_step
from jaxdiff.train.step import Given
from tests.tiny_text import CAPTIONS, OfStates, config, encoder, points

NET = TextEncoder(CLIPText(vocabulary=16, length=8, width=8, depth=2, heads=2, hidden=8, end=3, projection=6))
IDS = np.array([[2, 5, 6, 3, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 5, 6, 7, 8, 9, 4, 3]], np.int32)


def codec(**changes: Any) -> TextAndData:
    params = jax.jit(NET.init)(jax.random.key(0))
    return TextAndData(Points((2,)), params, net=NET, length=8, padding=0, **changes)


@pytest.mark.parametrize("pooled", [None, "pooled", "projected"])
def test_text_is_what_the_encoder_gives(pooled: str | None) -> None:
    made = codec(mask="caption", pooled=pooled)
    batch = made.encode({"x": np.zeros((3, 2), np.float32), "text": IDS, "label": np.arange(3)})
    states = NET.apply(made.params, IDS)
    np.testing.assert_array_equal(batch["text"]["tokens"], states["tokens"])
    np.testing.assert_array_equal(batch["text"]["mask"], IDS != 0)
    assert set(batch) == {"x", "text", "label"} and batch["x"].shape == (3, 2)
    if pooled is not None:
        np.testing.assert_array_equal(batch["text"]["pooled"], states[pooled])
    shapes = {name: (spec.shape, spec.dtype) for name, spec in made.spec["text"].items()}  # type: ignore[union-attr]
    assert shapes == {name: (value.shape[1:], value.dtype.name) for name, value in batch["text"].items()}
    kept = made.encode({"x": np.zeros((3, 2), np.float32), "text": batch["text"]})  # as it was kept
    assert kept["text"] is batch["text"]
    assert set(made.decode(jnp.zeros((3, 2)), batch)) == {"x", "label"}


def test_masks_are_of_captions_or_of_all_and_the_encoder_may_see_them() -> None:
    assert np.asarray(codec().text(IDS)["mask"]).all()
    masked, plain = (codec(mask="caption", masked=masked).text(IDS)["tokens"] for masked in (True, False))
    np.testing.assert_array_equal(masked, NET.apply(codec().params, IDS, IDS != 0)["tokens"])
    differs = np.abs(np.asarray(masked - plain)).max(axis=(1, 2))
    assert differs[0] > 1e-3 and differs[2] < 1e-6  # the last has no padding


def test_an_end_that_is_the_padding_too_belongs_to_its_caption() -> None:
    """As CLIP's: begin 2, end and padding 3."""
    made = dataclasses.replace(codec(mask="caption"), padding=3, ends_in_padding=True)
    ids = jnp.where(IDS == 0, 3, IDS)
    assert np.asarray(made.captions(ids)).sum(axis=1).tolist() == [4, 2, 8]


# --- no gradient meets the encoder


def products(jaxpr: Any) -> int:
    """Products of matrices in a program, those in its loops once."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for leaf in jax.tree.leaves(
            equation.params, is_leaf=lambda each: hasattr(each, "eqns") or hasattr(each, "jaxpr")
        ):
            inner = getattr(leaf, "jaxpr", leaf)
            count += products(inner) if hasattr(inner, "eqns") else 0
    return count


def test_a_step_holds_the_encoders_forward_pass_and_nothing_else_of_it() -> None:
    """Its program has just as many products more than the program that is given the states: those of one forward pass.
    With the codec inside of the gradient it would have three times as many."""
    made = codec(mask="caption", pooled="pooled")
    net, loss = functional(OfStates()), DenoisingLoss(Flow(), Velocity())
    optimizer = optax.sgd(0.1)
    state = create_state(net=net, loss=loss, optimizer=optimizer, key=jax.random.key(0))
    record = {"x": np.zeros((3, 2), np.float32), "text": IDS}

    def step(codec: Any, record: Any) -> Any:
        given = Given(codec)
        return train_step(state, record, given, net=net, loss=loss, optimizer=optimizer, ema=Ema(0.9))

    with_ids = products(jax.make_jaxpr(step)(made, record).jaxpr)
    with_states = products(jax.make_jaxpr(step)(made, {**record, "text": made.text(IDS)}).jaxpr)
    forward = products(jax.make_jaxpr(lambda made: made.text(IDS))(made).jaxpr)
    through = products(
        jax.make_jaxpr(jax.grad(lambda made: made.text(IDS)["tokens"].sum(), allow_int=True))(made).jaxpr
    )
    assert with_ids - with_states == forward > 0
    assert through > 2 * forward


# --- the recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("encoders") / "clip")


def resolved(folder: Path, **changes: Any) -> Any:
    given = config(
        folder.parent / "run", network=OfStates(), **{"codec": WithText(str(folder), pooled="pooled"), **changes}
    )
    return resolve(given, with_conditions(points(), given), finder(given))


def test_a_recipe_notes_what_it_reads(folder: Path) -> None:
    given = resolved(folder)
    noted, made = read_codec(given, make_mesh())
    assert given.codec.checksum is None and len(noted.codec.checksum) > 8
    assert (noted.codec.length, noted.codec.padding, noted.codec.ends_in_padding) == (8, 0, False)
    assert from_json(json.loads(json.dumps(to_json(noted.codec)))).net == noted.codec.net
    again, _ = read_codec(noted, make_mesh())
    assert to_json(again) == to_json(noted)
    fresh = WithText(str(folder), pooled="pooled").noted(noted.codec)
    assert to_json(fresh) == to_json(noted.codec)
    with np.load(folder / "weights.npz") as stored:
        np.testing.assert_array_equal(made.params["norm"]["scale"], stored["norm/scale"])  # type: ignore[attr-defined]


def test_other_weights_than_those_noted_are_refused(folder: Path, tmp_path: Path) -> None:
    noted, _ = read_codec(resolved(folder), make_mesh())
    encoder(tmp_path / "other", seed=1)
    moved = dataclasses.replace(noted, codec=dataclasses.replace(noted.codec, path=str(tmp_path / "other")))
    with pytest.raises(CheckpointError, match="its weights are not those that this run began with"):
        read_codec(moved, make_mesh())
    save_network(tmp_path / "wide", NET, jax.tree.map(lambda leaf: leaf[..., :1], codec().params))
    with pytest.raises(CheckpointError, match=r"weights.npz is not of the network in network.json: .* differs"):
        read_codec(dataclasses.replace(moved, codec=WithText(str(tmp_path / "wide"), **_known(noted))), make_mesh())


def _known(noted: Any) -> dict[str, Any]:
    return {"inner": noted.codec.inner, "length": 8, "padding": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer": Words(8, size=17)},
            "codec: FOLDER knows 16 ids, and the tokenizer has 17: take the encoder's own",
        ),
        (
            {"tokenizer": Words(9, size=16)},
            "codec: FOLDER takes 8 ids of a caption: set tokenizer.length to that, or less",
        ),
        (
            {"codec": WithText("FOLDER", pooled="projected")},
            "codec: FOLDER gives no 'projected' vector, but pooled, tokens",
        ),
        (
            {"codec": WithText("FOLDER")},
            "network: it takes text of shape tokens (8, 8), mask (8,), pooled (8,), and the",
        ),
        ({"codec": WithText("nowhere")}, "codec: 'nowhere' is not the folder of a run or of frozen weights, from the"),
        (
            {"tokenizer": None},
            "tokenizer: the network takes text, and the data have captions: give what makes numbers of",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(folder: Path, changes: dict[str, Any], message: str) -> None:
    if getattr(changes.get("codec"), "path", None) == "FOLDER":
        changes = {"codec": dataclasses.replace(changes["codec"], path=str(folder))}
    with pytest.raises(ConfigError) as error:
        resolved(folder, **changes)
    assert str(error.value).startswith(message.replace("FOLDER", str(folder))) and "\n" not in str(error.value)


def test_data_may_hold_ids_already(folder: Path) -> None:
    words = Words(8, size=16).learned(CAPTIONS)
    source = from_arrays(np.zeros((4, 2), np.float32), text=words.encode(list(CAPTIONS)))
    given = config(folder.parent / "ids", network=OfStates(), codec=WithText(str(folder)), tokenizer=None)
    with pytest.raises(ConfigError, match="codec: the data hold ids already: say which of them is padding"):
        resolve(given, with_conditions(source, given), finder(given))
    given = dataclasses.replace(given, codec=WithText(str(folder), padding=0, pooled="pooled", mask="caption"))
    made = read_codec(resolve(given, with_conditions(source, given), finder(given)), make_mesh())[1]
    ids = source.take(np.arange(4))["text"]
    np.testing.assert_array_equal(made.encode({"x": np.zeros((4, 2)), "text": ids})["text"]["mask"], ids != 0)
