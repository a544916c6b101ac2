"""Text encoders beside `transformers`, with random weights.

Where it and torch are installed: `python -m pytest -n 0 -m nightly tests/parity`, with transformers 5.6 or later, from
which on CLIPTextModel's names have no "text_model." before them.
"""

from __future__ import annotations

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.text import T5, CLIPText, TextEncoder
from jaxdiff.networks.text.t5 import distance_buckets
from jaxdiff.pretrained import load_network

pytestmark = pytest.mark.nightly
torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

LENGTH, END, START = 16, 97, 98
RANDOM = np.random.default_rng(0)
CLIP: Any = {"width": 32, "depth": 4, "heads": 4, "hidden": 64, "vocabulary": 100, "length": LENGTH}
MOST = 1e-5


def disturbed(model: Any) -> Any:
    """The original with random weights, no gain 1 and no bias 0; its first tokens are small, so that eps counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            spread = weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.3
            weight.add_(spread * torch.randn(weight.shape, generator=generator))
        model.get_input_embeddings().weight.mul_(0.01)
    return model.eval()


def params_of(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_network(folder).params


def texts() -> np.ndarray:
    """With the end at several places, first and last and twice among them, and padded in both published ways."""
    ids = RANDOM.integers(1, 97, (6, LENGTH))
    ids[:, 0] = START - 2  # below the end's id, as no tokenizer has it: the largest id of a text is its end
    for row, place in enumerate((5, 9, 1, LENGTH - 1, 0)):
        ids[row, place] = END
        ids[row, place + 1 :] = END if row % 2 else 0
    ids[5, [4, 8]] = END
    return ids


IDS = texts()
MASK = (np.arange(LENGTH)[None] < np.array([6, 10, 2, 16, 1, 9])[:, None]).astype(np.int64)


def close(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.3
    np.testing.assert_allclose(ours, theirs, atol=MOST * max(1.0, np.abs(theirs).max()), rtol=0)


def clip_of(activation: Any, end: int, projection: bool) -> tuple[Any, Any]:
    config = transformers.CLIPTextConfig(
        vocab_size=CLIP["vocabulary"],
        hidden_size=CLIP["width"],
        intermediate_size=CLIP["hidden"],
        num_hidden_layers=CLIP["depth"],
        num_attention_heads=CLIP["heads"],
        max_position_embeddings=LENGTH,
        hidden_act=activation,
        projection_dim=24,
        eos_token_id=end,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    torch.manual_seed(0)
    model = disturbed(kind(config))
    return model, params_of(model)


def told(mask: bool) -> dict[str, Any]:
    return {"attention_mask": torch.from_numpy(MASK)} if mask else {}


@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation: Any, mask: bool) -> None:
    model, params = clip_of(activation, END, projection=False)
    theirs = model(torch.from_numpy(IDS), output_hidden_states=True, **told(mask))
    ours = TextEncoder(CLIPText(**CLIP, activation=activation, end=END)).apply(params, IDS, MASK if mask else None)
    close(ours["tokens"], theirs.last_hidden_state)
    close(ours["pooled"], theirs.pooler_output)
    ends = np.array([np.flatnonzero(row == END)[0] for row in IDS])
    np.testing.assert_array_equal(ours["pooled"], np.asarray(ours["tokens"])[np.arange(6), ends])
    assert len(theirs.hidden_states) == CLIP["depth"] + 1


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_clips_earlier_states(skip: int, pooled: bool) -> None:
    """Stable Diffusion's clip_skip (normalised) and SDXL's hidden[-2] and clip_skip (not normalised)."""
    model, params = clip_of("quick_gelu", END, projection=True)
    theirs = model(torch.from_numpy(IDS), output_hidden_states=True)
    state = theirs.hidden_states[-(skip + 1)]
    config = CLIPText(**CLIP, end=END, skip=skip, projection=24, pooled=pooled)
    ours = TextEncoder(config).apply(params, IDS)
    close(ours["tokens"], model.text_model.final_layer_norm(state))
    if pooled:
        close(ours["projected"], theirs.text_embeds)
    config = CLIPText(**CLIP, end=END, skip=skip, projection=24, pooled=pooled, final_norm=False)
    close(TextEncoder(config).apply(params, IDS)["tokens"], state)


@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_with_projection(activation: Any, mask: bool) -> None:
    model, params = clip_of(activation, END, projection=True)
    theirs = model(torch.from_numpy(IDS), **told(mask))
    config = CLIPText(**CLIP, activation=activation, end=END, projection=24)
    ours = TextEncoder(config).apply(params, IDS, MASK if mask else None)
    close(ours["tokens"], theirs.last_hidden_state)
    close(ours["projected"], theirs.text_embeds)


def test_clip_of_an_old_config_pools_at_the_largest_id() -> None:
    """An id beyond the end's, such as textual inversion adds, wins."""
    model, params = clip_of("quick_gelu", 2, projection=False)
    ids = IDS.copy()
    ids[0, 3] = END + 2
    theirs = model(torch.from_numpy(ids))
    ours = TextEncoder(CLIPText(**CLIP, end=None)).apply(params, ids)
    close(ours["pooled"], theirs.pooler_output)
    np.testing.assert_array_equal(ours["pooled"][0], ours["tokens"][0, 3])


def test_clip_of_a_text_shorter_than_its_positions_and_without_an_end() -> None:
    model, params = clip_of("gelu", END, projection=False)
    ids = np.where(IDS[:, :7] == END, 3, IDS[:, :7])
    theirs = model(torch.from_numpy(ids))
    ours = TextEncoder(CLIPText(**CLIP, activation="gelu", end=END)).apply(params, ids)
    close(ours["tokens"], theirs.last_hidden_state)
    close(ours["pooled"], theirs.pooler_output)


T5_TINY: Any = {"vocabulary": 100, "width": 32, "depth": 3, "heads": 5, "head_depth": 6, "hidden": 40}


def t5() -> tuple[Any, Any]:
    config = transformers.T5Config(
        vocab_size=T5_TINY["vocabulary"],
        d_model=T5_TINY["width"],
        d_kv=T5_TINY["head_depth"],
        d_ff=T5_TINY["hidden"],
        num_layers=T5_TINY["depth"],
        num_heads=T5_TINY["heads"],
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
    )
    torch.manual_seed(0)
    model = disturbed(transformers.T5EncoderModel(config))
    return model, params_of(model)


@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
def test_t5(mask: bool) -> None:
    model, params = t5()
    theirs = model(torch.from_numpy(IDS), **told(mask)).last_hidden_state
    ours = TextEncoder(T5(**T5_TINY)).apply(params, IDS, MASK if mask else None)["tokens"]
    close(ours, theirs)


def test_t5_beyond_the_longest_distance() -> None:
    model, params = t5()
    ids = RANDOM.integers(0, 100, (2, 300))
    close(TextEncoder(T5(**T5_TINY)).apply(params, ids)["tokens"], model(torch.from_numpy(ids)).last_hidden_state)


def test_t5s_buckets() -> None:
    attention = transformers.T5EncoderModel(transformers.T5Config(num_layers=1, d_model=8)).encoder.block[0].layer[0]
    for buckets, distance, length in ((32, 128, 1000), (16, 64, 200), (8, 20, 60)):
        theirs = attention.SelfAttention._relative_position_bucket(
            torch.arange(1 - length, length), num_buckets=buckets, max_distance=distance
        )
        np.testing.assert_array_equal(distance_buckets(length, buckets, distance), theirs.numpy())


@pytest.mark.parametrize("which", ["clip", "t5"])
def test_bfloat16_is_as_near_to_float32_as_theirs(which: str) -> None:
    """Theirs keeps the sum over blocks in bfloat16, ours does not."""
    (model, params) = t5() if which == "t5" else clip_of("quick_gelu", END, projection=False)
    exact = model(torch.from_numpy(IDS)).last_hidden_state.detach().numpy()
    theirs = model.to(torch.bfloat16)(torch.from_numpy(IDS)).last_hidden_state.detach().float().numpy()
    config: Any = T5(**T5_TINY, dtype="bfloat16") if which == "t5" else CLIPText(**CLIP, end=END, dtype="bfloat16")
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    ours = TextEncoder(config).apply(half, IDS)["tokens"]
    assert ours.dtype == jnp.float32
    assert 0 < np.sqrt(((ours - exact) ** 2).mean()) < 1.1 * np.sqrt(((theirs - exact) ** 2).mean())
