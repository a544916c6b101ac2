"""Training a new word beside diffusers: the gradient by its vectors, and the same latents of its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import jaxdiff
from jaxdiff.codecs import save_png
from jaxdiff.config import InversionConfig, OptimizerConfig, TrainConfig, build_loss, build_network, with_word
from jaxdiff.loss import Draws
from jaxdiff.pretrained import load_network, load_pipeline, schedulers, trained_embeddings, write_embeddings
from jaxdiff.pretrained.fields import Fields
from jaxdiff.runs.published import published_config
from tests.parity import published
from tests.parity.comparison import apart
from tests.parity.originals import quiet, torch

pytestmark = pytest.mark.nightly
CAT = "<cat-toy>"
PROMPTS = [f"a red {CAT} heart", f"{CAT}, 4k"]
CASES = {"1": lambda: published.stable_diffusion("DDIM"), "XL": published.stable_diffusion_xl}
SIZES = [16.0, 16.0, 0.0, 0.0, 16.0, 16.0]


def saved(name: str, folder: Path, heard: float = 1.0) -> Any:
    """A pipeline, and its folder; with the share that texts have in its random network made so much larger."""
    torch.manual_seed(0)
    with quiet(), torch.no_grad():
        case = CASES[name]()
        case.pipe.set_progress_bar_config(disable=True)
        for path, weight in case.pipe.unet.named_parameters():
            if path.endswith("attn2.to_out.0.weight"):
                weight.mul_(heard)
        case.pipe.save_pretrained(folder)
    return case


def config(model: Path, folder: Path, vectors: int, **changes: Any) -> Any:
    word = InversionConfig(word=CAT, init="a", vectors=vectors)
    return published_config(model, workdir=str(folder), inversion=word, **changes)


def drawn(settings: Any, x0: Any, eps: Any, t: Any, texts: Any) -> Any:
    """A batch of data, noise, times and captions, as training draws it."""
    cond = {"text": jnp.asarray(settings.tokenizer.encode(texts))}
    if settings.codec.sizes:
        cond["time_ids"] = jnp.tile(jnp.array([SIZES]), (len(x0), 1))
    x0, eps, t = (jnp.asarray(each, jnp.float32) for each in (x0, eps, t))
    return Draws(x0, eps, t, jnp.ones(len(x0)), cond)


def add_word(pipe: Any, vectors: Any) -> None:
    for part, rows in vectors.items():
        number = part.removeprefix("text_encoder")
        given = {"text_encoder": getattr(pipe, part), "tokenizer": getattr(pipe, f"tokenizer{number}")}
        pipe.load_textual_inversion(torch.from_numpy(rows), token=CAT, **given)


def their_gradient(pipe: Any, vectors: Any, x0: Any, eps: Any, steps: Any) -> tuple[float, dict[str, Any]]:
    """The loss of diffusers' training scripts, and its gradient by the rows of the word."""
    add_word(pipe, vectors)
    tables = {part: getattr(pipe, part).get_input_embeddings().weight.requires_grad_() for part in vectors}
    usual = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    told, _, *pooled = pipe.encode_prompt(PROMPTS, **usual)
    added = {}
    if pooled:
        sizes = torch.tensor([SIZES] * 2)
        added = {"added_cond_kwargs": {"text_embeds": pooled[0], "time_ids": sizes}}
    alphas = pipe.scheduler.alphas_cumprod[torch.from_numpy(steps)].reshape(-1, 1, 1, 1)
    data, noise = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (x0, eps))
    noisy = alphas.sqrt() * data + (1 - alphas).sqrt() * noise
    found = pipe.unet(noisy, torch.from_numpy(steps), encoder_hidden_states=told, **added).sample
    loss = torch.nn.functional.mse_loss(found, noise)
    loss.backward()
    rows = {part: table.grad[-len(vectors[part]) :].numpy() for part, table in tables.items()}
    return float(loss), rows


@pytest.mark.parametrize(("name", "vectors"), [("1", 1), ("1", 3), ("XL", 2)])
def test_the_gradient_is_torchs(name: str, vectors: int, tmp_path: Path) -> None:
    case, rng = saved(name, tmp_path / "model"), np.random.default_rng(vectors)
    settings = with_word(config(tmp_path / "model", tmp_path / "run", vectors))
    net: Any = build_network(settings)
    encoders = {part: load_network(tmp_path / "model" / part).params for part in settings.codec.clip}
    words = {
        part: rng.normal(size=(vectors, each.config.width)).astype(np.float32)
        for part, each in settings.codec.clip.items()
    }
    params = {"base": load_network(tmp_path / "model" / "unet").params, "encoders": encoders}
    x0, eps = rng.normal(size=(2, 2, 8, 8, 4)).astype(np.float32)
    steps = np.array([250, 700])
    draws = drawn(settings, x0, eps, (steps + 1) / 1000, PROMPTS)
    loss = build_loss(settings)

    def mean(words: Any) -> Any:
        return loss.terms(net, {**params, "words": words}, draws).loss.mean()

    ours, by_words = jax.jit(jax.value_and_grad(mean))(words)
    with quiet():
        theirs, rows = their_gradient(case.pipe, words, x0, eps, steps)
    assert float(ours) == pytest.approx(theirs, rel=1e-5)
    assert {*rows} == {*by_words}
    for part, each in rows.items():
        print(f"{name} {vectors} {part}: {apart(by_words[part], each):.2g}")
        assert apart(by_words[part], each) < 1e-3


def pictures(folder: Path) -> None:
    """Eight of one thing: a red square that is here and there."""
    folder.mkdir()
    for number in range(8):
        pixels = np.full((16, 16, 3), 20, np.uint8)
        row, column = divmod(number, 4)
        pixels[3 + 2 * row : 11 + 2 * row, 2 + column : 10 + column] = 220, 30, 30
        save_png(folder / f"{number}.png", pixels)


def latents(run: Any, folder: Path) -> Any:
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])
    return run.codec.encode({"x": pixels})["x"]


def losses(run: Any, x0: Any) -> tuple[Any, Any]:
    """Of 64 fixed draws, with the vectors to begin with and with those that are trained."""
    net: Any = build_network(run.config)
    encoders, objective = net.encoders_of(run.codec), build_loss(run.config)
    params = {"base": run.denoise.params, "encoders": encoders}
    eps = np.random.default_rng(5).normal(size=(64, *x0.shape[1:]))
    texts = [f"a photo of a {CAT}"] * 64
    draws = drawn(run.config, np.tile(x0, (8, 1, 1, 1)), eps, np.linspace(0.01, 1, 64), texts)
    loss = jax.jit(lambda words: objective.terms(net, {**params, "words": words}, draws).loss)
    begin = net.begun(encoders, dict.fromkeys(net.text.clip, int(run.config.tokenizer.encode(["a"])[0, 1])))
    return np.asarray(loss(begin)), np.asarray(loss(run.codec.words))


@pytest.mark.parametrize(("name", "vectors"), [("1", 1), ("XL", 2)])
def test_a_word_that_is_trained_here_makes_the_same_latents_in_diffusers(
    name: str, vectors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = saved(name, tmp_path / "model", 10.0)
    pictures(tmp_path / "pictures")
    made = config(
        tmp_path / "model",
        tmp_path / "run",
        vectors,
        optimizer=OptimizerConfig(lr=0.1),
        train=TrainConfig(steps=200, batch_size=8, log_every=50, sample_every=0),
    )
    cache = str(tmp_path / "cache")
    data = dataclasses.replace(made.data, path=str(tmp_path / "pictures"), cache_folder=cache)
    jaxdiff.fit(dataclasses.replace(made, data=data), init_from=tmp_path / "model")
    run = jaxdiff.load(tmp_path / "run")

    # All else is as it was, and the loss is lower
    before = {part: load_network(tmp_path / "model" / part).params for part in ("unet", *run.config.codec.clip)}
    now = {"unet": run.denoise.params, **dict(zip(run.config.codec.parts, run.codec.params, strict=True))}
    flat, of_now = traverse_util.flatten_dict(before), traverse_util.flatten_dict(now)
    assert {*flat} == {*of_now} and all(np.array_equal(leaf, of_now[path]) for path, leaf in flat.items())
    begin, end = losses(run, latents(run, tmp_path / "pictures"))
    print(f"{name}: loss {begin.mean():.4f} -> {end.mean():.4f}, lower of {(end < begin).mean():.0%} of the draws")
    assert end.mean() < 0.98 * begin.mean() and (end < begin).mean() > 0.8  # 1/2 by chance

    # The file here and there
    file = tmp_path / "cat.safetensors"
    write_embeddings(file, trained_embeddings(run))
    model = load_pipeline(tmp_path / "model")
    told = model.with_embeddings(file, CAT)
    monkeypatch.setattr(published, "PROMPTS", PROMPTS)
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    first = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    with quiet(), torch.no_grad():
        plain = published.channels_last(case.call(case.pipe, first, 20))
        if name == "1":
            case.pipe.load_textual_inversion(str(file))
        else:
            add_word(case.pipe, {part: np.asarray(rows) for part, rows in run.codec.words.items()})
        theirs = published.channels_last(case.call(case.pipe, first, 20))
    start = schedulers.table(Fields(model.scheduler), 20).start
    options: dict[str, Any] = {"strict": True, "steps": 20, "x": noise * start, "decode": False, **case.options}
    ours = told.sample(0, 2, {"text": PROMPTS}, **options)
    print(f"{name}: latents {apart(ours, theirs):.2g}, without the word {apart(plain, theirs):.2g}")
    assert apart(ours, theirs) < 1e-3 and apart(plain, theirs) > 1e-2
