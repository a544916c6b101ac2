"""Textual inversion beside diffusers' ``load_textual_inversion``: the same latents from the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.pretrained import load_pipeline, save_pipeline, write_embeddings
from jaxdiff.pretrained.adapters.embeddings import Embeddings, load_embeddings
from jaxdiff.pretrained.convert import main as convert
from tests.parity import published
from tests.parity.originals import quiet, torch

pytestmark = pytest.mark.nightly
CAT = "<cat-toy>"
PROMPTS = [f"a red {CAT} heart", f"{CAT}, 4k{CAT}s"]
STEPS = 5


def rows(count: int, width: int) -> Any:
    return np.random.default_rng(width).normal(size=(count, width)).astype(np.float32)


def compare(case: Any, load: Any, told: Any, monkeypatch: Any, **options: Any) -> tuple[float, float]:
    """The largest difference of latents over their root mean square; and from those without the token's vectors."""
    monkeypatch.setattr(published, "PROMPTS", PROMPTS)
    noise = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    found = []
    for change in (None, load):
        with quiet(), torch.no_grad():
            if change is not None:
                change(case.pipe)
            found.append(published.channels_last(case.call(case.pipe, torch.from_numpy(noise), STEPS)))
    plain, theirs = found
    start = float(case.pipe.scheduler.init_noise_sigma)
    given = {"strict": True, "steps": STEPS, "decode": False, "x": noise.transpose(0, 2, 3, 1) * start, **options}
    ours = told.sample(0, 2, {"text": PROMPTS}, **given)
    size = np.sqrt(np.square(theirs).mean())
    return float(np.abs(ours - theirs).max() / size), float(np.abs(plain - theirs).max() / size)


@pytest.mark.parametrize("count", [1, 3])
def test_a_token_of_stable_diffusion(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet():
        case = published.stable_diffusion("DDIM")
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "model")
    file = tmp_path / "learned_embeds.safetensors"
    write_embeddings(file, Embeddings(CAT, {"": rows(count, 32)}))
    told = load_pipeline(tmp_path / "model").with_embeddings(file)
    apart, changed = compare(
        case, lambda pipe: pipe.load_textual_inversion(str(file)), told, monkeypatch, **published.GUIDED
    )
    assert apart < 1e-4 and changed > 1e-2
    branch: Any = told.model.encoders["text"]
    for text in PROMPTS:
        theirs = case.pipe.tokenizer(case.pipe.maybe_convert_prompt(text, case.pipe.tokenizer)).input_ids
        assert branch.branches[0].tokenizer.ids(text) == theirs


def two_files(folder: Path) -> None:
    """CLIP's tokenizer as it was published: `vocab.json` and `merges.txt` in the place of `tokenizer.json`."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))


@pytest.mark.parametrize("published_files", [False, True])
def test_a_saved_model_has_its_word(published_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened by diffusers it gives the latents that its own loading gives; and what diffusers saves is read here."""
    with quiet():
        case = published.stable_diffusion("DDIM")
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "model")
    if published_files:
        two_files(tmp_path / "model" / "tokenizer")
    vectors = rows(3, 32)
    told = load_pipeline(tmp_path / "model").with_embeddings(Embeddings(CAT, {"": vectors}))
    save_pipeline(tmp_path / "ours", told)

    def load(pipe: Any) -> None:
        pipe.load_textual_inversion(torch.from_numpy(vectors), token=CAT)

    again = load_pipeline(tmp_path / "ours")
    apart, changed = compare(case, load, again, monkeypatch, **published.GUIDED)
    assert apart < 1e-4 and changed > 1e-2
    with quiet():
        opened = type(case.pipe).from_pretrained(tmp_path / "ours", safety_checker=None)
        opened.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "theirs")
    assert {CAT, f"{CAT}_1", f"{CAT}_2"} <= {*opened.tokenizer.added_tokens_encoder}
    assert compare(case._replace(pipe=opened), lambda pipe: None, told, monkeypatch, **published.GUIDED)[0] < 1e-4
    theirs = load_pipeline(tmp_path / "theirs")
    assert compare(case, lambda pipe: None, theirs, monkeypatch, **published.GUIDED)[0] < 1e-4
    branches: Any = [each.model.encoders["text"].branches[0] for each in (theirs, told)]  # type: ignore[attr-defined]
    assert branches[0].tokenizer.words == branches[1].tokenizer.words


@pytest.mark.parametrize("end", [513, 2])
def test_a_token_of_both_encoders_of_xl(end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``eos_token_id: 2`` the pooled state is the new token's, there and here."""
    with quiet():
        case = published.stable_diffusion_xl()
        case.pipe.text_encoder_2.config.eos_token_id = end
        case.pipe.text_encoder_2.eos_token_id = end
        for module in case.pipe.text_encoder_2.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = end
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "model")
    vectors = {"text_encoder": rows(2, 32), "text_encoder_2": rows(2, 48)}
    file = tmp_path / "cat.safetensors"
    write_embeddings(file, Embeddings(CAT, vectors))
    told = load_pipeline(tmp_path / "model").with_embeddings(file, CAT)

    def load(pipe: Any) -> None:
        for number in ("", "_2"):
            given = {
                "text_encoder": getattr(pipe, f"text_encoder{number}"),
                "tokenizer": getattr(pipe, f"tokenizer{number}"),
            }
            pipe.load_textual_inversion(torch.from_numpy(vectors[f"text_encoder{number}"]), token=CAT, **given)

    apart, changed = compare(case, load, told, monkeypatch, guide="cfg:5")
    assert apart < 1e-4 and changed > 1e-2
    save_pipeline(tmp_path / "ours", told)
    with quiet():
        opened = type(case.pipe).from_pretrained(tmp_path / "ours")
        opened.set_progress_bar_config(disable=True)
    assert compare(case._replace(pipe=opened), lambda pipe: None, told, monkeypatch, guide="cfg:5")[0] < 1e-4


def test_a_pickle_is_converted(tmp_path: Path) -> None:
    torch.save({CAT: torch.from_numpy(rows(1, 32)[0])}, tmp_path / "learned_embeds.bin")
    with pytest.raises(ValueError, match=r"jaxdiff\.pretrained\.convert"):
        load_embeddings(tmp_path)
    convert([str(tmp_path / "learned_embeds.bin"), str(tmp_path / "learned_embeds.safetensors")])
    found = load_embeddings(tmp_path)
    assert found.token == CAT
    np.testing.assert_array_equal(found.vectors[""], rows(1, 32))
