"""The parameters of the text encoders by the names that `transformers` gives them.

A row is one of ours, "/" between its names, and the tensors it is made of. "{}" in a name stands for the number of a
block, whose tensors are stacked along a first axis. Several names are parts, stacked along the last axis but one. A
``kernel`` is transposed, (out, in) to (in, out), and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxdiff.networks.functional import Params

Names = Mapping[str, str | tuple[str, ...]]

_CLIP = "encoder.layers.{}."
CLIP_NAMES: Names = {  # some files have "text_model." before each but the projection
    "tokens/embedding": "embeddings.token_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    "blocks/norm1/scale": _CLIP + "layer_norm1.weight",
    "blocks/norm1/bias": _CLIP + "layer_norm1.bias",
    "blocks/attention/qkv/kernel": tuple(_CLIP + f"self_attn.{part}_proj.weight" for part in "qkv"),
    "blocks/attention/qkv/bias": tuple(_CLIP + f"self_attn.{part}_proj.bias" for part in "qkv"),
    "blocks/attention/out/kernel": _CLIP + "self_attn.out_proj.weight",
    "blocks/attention/out/bias": _CLIP + "self_attn.out_proj.bias",
    "blocks/norm2/scale": _CLIP + "layer_norm2.weight",
    "blocks/norm2/bias": _CLIP + "layer_norm2.bias",
    "blocks/expand/kernel": _CLIP + "mlp.fc1.weight",
    "blocks/expand/bias": _CLIP + "mlp.fc1.bias",
    "blocks/contract/kernel": _CLIP + "mlp.fc2.weight",
    "blocks/contract/bias": _CLIP + "mlp.fc2.bias",
    "norm/scale": "final_layer_norm.weight",
    "norm/bias": "final_layer_norm.bias",
}
CLIP_PROJECTION_NAMES: Names = {**CLIP_NAMES, "projection/kernel": "text_projection.weight"}

_T5 = "encoder.block.{}.layer."
T5_NAMES: Names = {
    "tokens/embedding": "shared.weight",
    "distances": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "blocks/norm1/scale": _T5 + "0.layer_norm.weight",
    "blocks/attention/qkv/kernel": tuple(_T5 + f"0.SelfAttention.{part}.weight" for part in "qkv"),
    "blocks/attention/out/kernel": _T5 + "0.SelfAttention.o.weight",
    "blocks/norm2/scale": _T5 + "1.layer_norm.weight",
    "blocks/gate/kernel": _T5 + "1.DenseReluDense.wi_0.weight",
    "blocks/expand/kernel": _T5 + "1.DenseReluDense.wi_1.weight",
    "blocks/contract/kernel": _T5 + "1.DenseReluDense.wo.weight",
    "norm/scale": "encoder.final_layer_norm.weight",
}


def renamed(names: Names, read: Callable[[str], np.ndarray], depth: int) -> Params:
    """Parameters made of tensors by a table of names.

    Args:
      names: the table.
      read: a tensor by its name.
      depth: number of blocks.

    Returns:
      A nested dict of NumPy arrays.

    >>> renamed({"blocks/out/kernel": "layer.{}.weight"}, lambda name: np.ones((3, 2)), depth=5)["blocks"]["out"][
    ...     "kernel"
    ... ].shape
    (5, 2, 3)
    """
    params: dict[str, Any] = {}
    for path, of in names.items():
        *folders, last = path.split("/")

        def tensor(name: str, transposed: bool = last == "kernel") -> np.ndarray:
            return read(name).T if transposed else read(name)

        def whole(number: int, of: str | tuple[str, ...] = of, tensor: Callable[[str], np.ndarray] = tensor) -> Any:
            if isinstance(of, str):
                return tensor(of.format(number))
            parts = [tensor(name.format(number)) for name in of]
            return np.stack(parts, axis=parts[0].ndim - 1)

        branch = params
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[last] = np.stack([whole(i) for i in range(depth)]) if folders[:1] == ["blocks"] else whole(0)
    return params
