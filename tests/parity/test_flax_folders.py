"""Folders that the Flax classes of diffusers (until 0.39) and transformers (until 4) saved, read here: with
``flax_numerics`` the outputs are theirs.

Where these are installed beside jaxdiff: `pip install "diffusers==0.39.0" "transformers<5"`, and
`python -m pytest -n 0 -m nightly tests/parity/test_flax_folders.py`; elsewhere it is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained import load_network
from jaxdiff.pretrained.layouts.flax import NUMERICS

pytestmark = pytest.mark.nightly
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")
if not hasattr(diffusers, "FlaxUNet2DConditionModel") or not hasattr(transformers, "FlaxCLIPTextModel"):
    pytest.skip("diffusers and transformers have no Flax classes any more", allow_module_level=True)

MOST = 3e-5
UNETS: dict[str, dict[str, Any]] = {
    "convolutions": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
    },
    "linear, two layers, told": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (4, 8, 8),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 68,
        "split_head_dim": True,
    },
}


def disturbed(params: Any, seed: int, spread: float = 0.5) -> Any:
    """With noise on all weights."""
    rng = np.random.default_rng(seed)

    def noisy(leaf: Any) -> Any:
        fan = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 40
        return np.asarray(leaf) + spread * fan**-0.5 * rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(noisy, params)


def apart(ours: Any, theirs: Any) -> float:
    theirs = np.asarray(theirs)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.sqrt(np.square(theirs).mean()))


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.filterwarnings("ignore")
def test_a_unet(name: str, tmp_path: Path) -> None:
    made = diffusers.FlaxUNet2DConditionModel(sample_size=8, cross_attention_dim=24, **UNETS[name])
    params = disturbed(made.init_weights(jax.random.key(0)), 1)
    made.save_pretrained(tmp_path, params=params)
    rng = np.random.default_rng(0)
    x, text = (rng.normal(size=size).astype(np.float32) for size in ((2, 8, 16, 4), (2, 5, 24)))
    t = np.array([3.0, 421.5], np.float32)
    pooled, ids = rng.normal(size=(2, 20)).astype(np.float32), rng.uniform(0, 50, (2, 6)).astype(np.float32)
    cond: dict[str, Any] = {"text": {"tokens": text, "mask": np.ones((2, 5), np.float32)}}
    told = None
    if "told" in name:
        cond = {"text": {**cond["text"], "pooled": pooled}, "time_ids": ids}
        told = {"text_embeds": jnp.asarray(pooled), "time_ids": jnp.asarray(ids)}
    planes = jnp.asarray(x.transpose(0, 3, 1, 2))
    theirs = made.apply({"params": params}, planes, jnp.asarray(t), jnp.asarray(text), told).sample
    theirs = theirs.transpose(0, 2, 3, 1)
    loaded = load_network(tmp_path, flax_numerics=True)
    assert apart(loaded.net.apply(loaded.params, x, t, cond), theirs) < MOST
    assert loaded.fields[NUMERICS] is True and loaded.fields["_class_name"] == "UNet2DConditionModel"
    plain = load_network(tmp_path)
    assert 1e-4 < apart(plain.net.apply(plain.params, x, t, cond), theirs) < 1e-2


@pytest.mark.filterwarnings("ignore")
def test_an_autoencoder(tmp_path: Path) -> None:
    made = diffusers.FlaxAutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    params = disturbed(made.init_weights(jax.random.key(0)), 2)
    made.save_pretrained(tmp_path, params=params)
    x = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    found = made.apply({"params": params}, jnp.asarray(x.transpose(0, 3, 1, 2)), method=made.encode).latent_dist
    back = made.apply({"params": params}, found.mean.transpose(0, 3, 1, 2), method=made.decode).sample
    loaded = load_network(tmp_path, flax_numerics=True)
    mean, log_variance = loaded.net.moments(loaded.params, x)
    decoded = loaded.net.decode(loaded.params, found.mean)
    for ours, theirs in ((mean, found.mean), (log_variance, found.logvar), (decoded, back.transpose(0, 2, 3, 1))):
        assert apart(ours, theirs) < MOST


@pytest.mark.parametrize("kind", ["FlaxCLIPTextModel", "FlaxCLIPTextModelWithProjection"])
@pytest.mark.filterwarnings("ignore")
def test_a_clip(kind: str, tmp_path: Path) -> None:
    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        eos_token_id=97,
        projection_dim=24,
    )
    if not hasattr(transformers, kind):
        kind_class = transformers.models.clip.modeling_flax_clip.FlaxCLIPTextModelWithProjection
    else:
        kind_class = getattr(transformers, kind)
    made = kind_class(config, seed=0)
    made.params = disturbed(made.params, 3)
    made.save_pretrained(tmp_path)
    ids = texts()
    theirs = made(ids)
    loaded = load_network(tmp_path)
    ours = loaded.net.apply(loaded.params, ids)
    assert apart(ours["tokens"], theirs.last_hidden_state) < MOST
    pooled = ("projected", theirs.text_embeds) if "Projection" in kind else ("pooled", theirs.pooler_output)
    assert apart(ours[pooled[0]], pooled[1]) < MOST


@pytest.mark.parametrize("size", ["10GB", "20KB"])
@pytest.mark.filterwarnings("ignore")
def test_a_t5_in_one_file_and_in_several(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = jnp.clip  # whose argument a_max JAX has taken away since
    monkeypatch.setattr(jnp, "clip", lambda x, a_max: clip(x, max=a_max))
    config = transformers.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    with jax.numpy_rank_promotion("allow"):
        made = transformers.FlaxT5EncoderModel(config)
        theirs = _t5(made)
    made.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.msgpack"))) > 1) == (size == "20KB")
    loaded = load_network(tmp_path)
    assert apart(loaded.net.apply(loaded.params, texts())["tokens"], theirs) < MOST


def _t5(made: Any) -> Any:
    made.params = disturbed(made.params, 4)
    return made(texts()).last_hidden_state


def texts() -> Any:
    ids = np.random.default_rng(0).integers(3, 96, (2, 9))
    ids[:, -2] = 97
    return ids
