"""Networks that attend to a text, on 8 devices: prints what test_tokens.py asserts, as JSON.

python tests/parallel/tokens.py NETWORK...
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.networks import DiT, MMDiT, Text, Tokens, UNet, UViT, functional
from jaxdiff.networks.placement import samples_over
from jaxdiff.train import batch_sharding, make_mesh, split_sharding

READ, WORDS = Tokens("read", 32, 6, pooled=16), Text("words", 50, 8, width=64, depth=2, heads=4)
DEEP: dict[str, Any] = {"in_channels": 1, "patch": 2, "width": 64, "heads": 4, "conditions": (READ, WORDS)}
NETWORKS: dict[str, Any] = {
    "unet": UNet(
        image_size=8,
        in_channels=1,
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(),
        transformer_layers=(1, 2),
        heads=4,
        conditions=(READ, WORDS),
    ),
    "dit": DiT(depth=3, frequencies=16, **DEEP),
    "mmdit": MMDiT(depth=3, single_blocks=2, dual=1, qk_norm=True, frequencies=16, **DEEP),
    "uvit": UViT((8, 8), depth=5, **DEEP),
}
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (2, 1, 4)}


def collectives(compiled: Any) -> dict[str, int]:
    """How many of each stand in a program."""
    return {
        kind: len(re.findall(rf" {kind}(?:-start)?\(", compiled.as_text())) for kind in ("all-gather", "all-reduce")
    }


def measured(name: str) -> dict[str, Any]:
    """The furthest difference to one device, and the collectives and bytes of each mesh's programs."""
    net, rng = functional(NETWORKS[name]), np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    cond = {
        "read": {
            "tokens": rng.normal(size=(8, 6, 32)).astype(np.float32),
            "mask": (np.arange(6) < 1 + np.arange(8)[:, None]).astype(np.float32),
            "pooled": rng.normal(size=(8, 16)).astype(np.float32),
        },
        "words": (rng.integers(4, 50, (8, 8)) * (np.arange(8) < 2 + np.arange(8)[:, None] % 6)).astype(np.int32),
    }
    batch = {"x": rng.normal(size=(8, 8, 8, 1)).astype(np.float32), "t": np.linspace(0, 900, 8, dtype=np.float32)}

    def loss(params: Any, batch: Any, cond: Any) -> Any:
        out = net.apply(params, batch["x"], batch["t"], cond)
        return (out**2).sum(), out

    def gradient(params: Any, batch: Any, cond: Any) -> Any:
        (_, out), each = jax.value_and_grad(loss, has_aux=True)(params, batch, cond)
        return out, each

    alone = jax.device_get(jax.jit(gradient)(params, batch, cond))
    found: dict[str, Any] = {"weights": sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))}
    for mesh_name, sizes in MESHES.items():
        mesh = make_mesh(*sizes)
        split, rows = split_sharding(shapes, mesh), batch_sharding(mesh)
        given = jax.device_put(params, split), *jax.device_put((batch, cond), rows)
        with samples_over(rows):
            forward: Any = jax.jit(lambda *given: loss(*given)[1], out_shardings=rows).lower(*given).compile()
            back = jax.jit(gradient, out_shardings=(rows, split)).lower(*given).compile()
        together = jax.device_get(back(*given))
        far = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / max(1.0, np.abs(b).max())), together, alone)
        found[mesh_name] = {
            "furthest": max(jax.tree.leaves(far)),
            "forward": collectives(forward),
            "backward": collectives(back),
            "temporary": forward.memory_analysis().temp_size_in_bytes,
        }
    return found


if __name__ == "__main__":
    print(json.dumps({name: measured(name) for name in sys.argv[1:]}))
