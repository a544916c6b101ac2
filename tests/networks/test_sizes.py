"""Every size of every network, out of range: a ValueError that names it before anything is built, or a network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from jaxdiff.networks import (
    EDM2,
    MLP,
    Classifier,
    ControlNet,
    DiT,
    KLAutoencoder,
    MMDiT,
    PatchCritic,
    SongUNet,
    Text,
    UNet,
    UViT,
    VQAutoencoder,
    functional,
)
from jaxdiff.networks.text import T5, CLIPText

WORDS = Text("words", 50, 8, width=16, depth=1, heads=2)
CONFIGS: dict[str, Any] = {
    "mlp": MLP(),
    "unet": UNet(image_size=16, in_channels=1, width=32, multipliers=(1, 2), num_classes=3),
    "unet with text": UNet(image_size=16, in_channels=1, width=32, transformer_layers=(1,), multipliers=(1,), heads=4),
    "controlnet": ControlNet(UNet(image_size=16, in_channels=1, width=32, multipliers=(1, 2))),
    "song": SongUNet(image_size=16, in_channels=1, width=16, multipliers=(1, 1), num_classes=3, augment=2),
    "edm2": EDM2(image_size=16, in_channels=1, width=64, multipliers=(1, 1), num_classes=3),
    "dit": DiT(in_channels=1, width=32, depth=2, heads=4, num_classes=3),
    "mmdit": MMDiT(in_channels=1, width=32, depth=2, heads=4, single_blocks=1, num_classes=3, conditions=(WORDS,)),
    "uvit": UViT((8, 8), in_channels=1, width=32, depth=3, heads=4, num_classes=3),
    "kl": KLAutoencoder(width=32),
    "vq": VQAutoencoder(width=32),
    "critic": PatchCritic(in_channels=1),
    "classifier": Classifier(UNet(image_size=16, in_channels=1, width=32, multipliers=(1, 2)), 3),
    "clip": CLIPText(vocabulary=50, end=49, length=8, width=32, depth=2, heads=4),
    "t5": T5(vocabulary=50, width=32, depth=2, heads=4, head_depth=8, hidden=32),
    "text": WORDS,
}
CELLS = [
    (name, field.name)
    for name, config in CONFIGS.items()
    for field in dataclasses.fields(config)
    if type(getattr(config, field.name)) is int
]


@pytest.mark.parametrize(("name", "field"), CELLS, ids=["-".join(cell).replace(" ", "_") for cell in CELLS])
@pytest.mark.parametrize("value", [0, -3])
def test_a_size_out_of_range(name: str, field: str, value: int) -> None:
    try:
        config = dataclasses.replace(CONFIGS[name], **{field: value})
    except ValueError as error:
        assert field in str(error) and str(value) in str(error)
        return
    if not isinstance(config, Text):
        assert jax.tree.leaves(jax.eval_shape(functional(config).init, jax.random.key(0)))
