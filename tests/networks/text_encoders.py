"""Tiny text encoders with random weights, for the files of their tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxdiff.networks.text import T5, CLIPText, TextEncoder

END = 19
CLIP_TINY: Any = {"vocabulary": 20, "length": 8, "width": 8, "depth": 3, "heads": 2, "hidden": 16, "end": END}
CLIP = CLIPText(**CLIP_TINY, projection=6)
T5_TINY = T5(vocabulary=20, width=8, depth=3, heads=3, head_depth=4, hidden=16, buckets=8, distance=6)
IDS = np.array([[18, 3, 4, END, END, END, END, END], [18, 5, END, 0, 0, 7, END, 0]])


def disturbed(config: Any) -> Any:
    """Random weights of which none is small, nor a gain 1 or a bias 0."""
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(TextEncoder(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: (0.5 * noise.standard_normal(leaf.shape)).astype(np.float32), shapes)


WEIGHTS = {config: disturbed(config) for config in (CLIP, T5_TINY)}


@functools.partial(jax.jit, static_argnums=0)
def run(encoder: TextEncoder, *given: Any) -> dict[str, Any]:
    return encoder.apply(*given)


def states(config: Any, ids: Any = IDS, mask: Any = None, weights: Any = None) -> dict[str, np.ndarray]:
    found = run(TextEncoder(config), WEIGHTS[config] if weights is None else weights, ids, mask)
    return {name: np.asarray(state) for name, state in found.items()}
