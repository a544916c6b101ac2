"""A LoRA that was trained here, as published factors: merged there it is what it is here."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.networks.lora import LoRA
from jaxdiff.pretrained import PretrainedError
from jaxdiff.pretrained.adapters.lora import Lora, merged, modules_of
from jaxdiff.pretrained.adapters.lora_trained import published_factors
from tests.pretrained.tiny import tiny

DENOISERS = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
)


def trained(name: str, **options: Any) -> tuple[Any, Any, Any]:
    loaded = tiny(name)
    net = LoRA(loaded.net, 2, **options)
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(net.init, jax.random.key(0))["lora"]
    added = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), shapes)
    return loaded, net, {"base": loaded.params, "lora": added}


@pytest.mark.parametrize("name", DENOISERS)
def test_every_weight_changes_there_as_here(name: str) -> None:
    loaded, net, params = trained(name, alpha=3.0, targets=("linear", "*"))
    found = published_factors(net, params, loaded.fields)
    assert set(found) == set(modules_of(loaded))
    lora = Lora({"unet": found})
    theirs, ours = merged({"unet": loaded}, lora)["unet"].params, jax.jit(net.merged)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), theirs, ours)
    joined = {module for module in found if module.endswith(".proj_out") and "single" in module}
    assert {each.rank for module, each in found.items() if module not in joined} == {2}
    assert {(each.rank, each.alpha) for module, each in found.items() if module in joined} <= {(4, 6.0)}


def test_a_part_of_a_tensor_leaves_the_rest() -> None:
    loaded, net, params = trained("FluxTransformer2DModel")  # attention alone
    found = published_factors(net, params, loaded.fields)
    down = found["single_transformer_blocks.1.proj_out"].down
    assert down.shape == (2, 80)
    assert np.abs(down[:, 16:]).max() == 0 < np.abs(down[:, :16]).min()
    theirs, ours = merged({"t": loaded}, Lora({"t": found}))["t"].params, net.merged(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), theirs, ours)


def test_what_is_stored_once_a_block_is_refused() -> None:
    loaded, net, params = trained("DiTTransformer2DModel", targets=("time/hidden",))
    with pytest.raises(PretrainedError, match=r"is stored once a block: leave it out of lora\.targets"):
        published_factors(net, params, loaded.fields)
