"""CLIP's text encoders.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
https://arxiv.org/abs/2103.00020, section 2.4; Cherti et al. 2023, "Reproducible scaling laws for contrastive
language-image learning", https://arxiv.org/abs/2212.07143 (H and bigG, with the exact GELU). With tokens e and
positions p, both learned, and norm the layer normalisation with gain and bias,

    h_0 = e + p                                                             (1)
    h' = h_i + attention(norm1(h_i)),    no token sees a later one          (2)
    h_{i+1} = h' + contract(activation(expand(norm2(h'))))                  (3)
    pooled = norm(h_depth) at the first end-of-text token                   (4)
    projected = W pooled                                                    (5)

Whoever took such an encoder chose a state, and so a configuration: others share its parameters.

    Stable Diffusion 1 and 2        the last state, normalised                  as it is
    the same, clip_skip k           h_{depth-k}, normalised                     skip=k
    SDXL, SD3                       h_{depth-1}, not normalised                 skip=1, final_norm=False
    the same, clip_skip k           h_{depth-1-k}, not normalised               skip=k + 1, final_norm=False
    FLUX.1                          pooled alone, of L
    SDXL of bigG, SD3 of both       projected

They attend to padding: give no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdiff.networks.embeddings import LabelEmbedding
from jaxdiff.networks.layers import DType, LayerNorm, Linear, at_least_1, draw, normal
from jaxdiff.networks.text.stack import BiasedSelfAttention, causal, check_dtype, stacked, through

Activation = Literal["quick_gelu", "gelu"]
small = normal(0.02)


@dataclass(frozen=True)
class CLIPText:
    """Configuration of a CLIP text encoder; `jaxdiff.networks.text.TextEncoder` makes pure functions of it.

    The defaults are those of L.

    Args:
      vocabulary: ids are 0 .. vocabulary - 1.
      length: most tokens of a text.
      width: of the tokens, divisible by ``heads``.
      depth: blocks.
      heads: of attention.
      hidden: width of the perceptron's hidden layer.
      activation: "quick_gelu", ``x sigmoid(1.702 x)``, or "gelu", the exact one.
      projection: length of the projected state, equation (5); None: there is none.
      end: id of the end-of-text token, for (4). A text without one is pooled at its first token. None: the largest id
        of the text is the end, as where a published config says ``eos_token_id: 2``; it differs only where ids were
        added to the vocabulary.
      eps: of the normalisations.
      skip: how many of the last blocks ``"tokens"`` leaves out; ``"pooled"`` is of all blocks in any case.
      final_norm: whether ``"tokens"`` is normalised.
      pooled: whether (4) and (5) are computed. Without them the blocks left out do not run.
      dtype: what matrix products compute in; parameters and results are float32.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks.text import TextEncoder
    >>> encoder = TextEncoder(CLIPText(projection=512, skip=1, final_norm=False))
    >>> params = jax.eval_shape(encoder.init, jax.random.key(0))
    >>> states = jax.eval_shape(encoder.apply, params, jax.ShapeDtypeStruct((2, 77), jnp.int32))
    >>> {name: state.shape for name, state in states.items()}
    {'pooled': (2, 768), 'projected': (2, 512), 'tokens': (2, 77, 768)}
    """

    vocabulary: int = 49_408
    length: int = 77
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "quick_gelu"
    projection: int | None = None
    end: int | None = 49_407
    eps: float = 1e-5
    skip: int = 0
    final_norm: bool = True
    pooled: bool = True
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        at_least_1(self, "vocabulary", "length", "width", "depth", "heads", "hidden")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be divisible by heads={self.heads}")
        if not 0 <= self.skip < self.depth:
            raise ValueError(f"skip={self.skip} must be 0 to {self.depth - 1}: there are depth={self.depth} blocks")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {' or '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.end is not None and not 0 <= self.end < self.vocabulary:
            raise ValueError(f"end={self.end} is no id of vocabulary={self.vocabulary}: None takes the largest of each")
        check_dtype(self.dtype)

    def __call__(self, rngs: nnx.Rngs) -> CLIPTextModule:
        """The module, with fresh parameters."""
        return draw(CLIPTextModule(self), rngs.params())


def quick_gelu(x: Array) -> Array:
    """``x sigmoid(1.702 x)`` (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2).

    >>> quick_gelu(jnp.zeros(1)).tolist()
    [0.0]
    """
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """``x Phi(x)`` with the normal distribution's Phi."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class CLIPBlock(nnx.Module):
    """Equations (2) and (3)."""

    def __init__(self, config: CLIPText):
        width, depth = config.width, config.width // config.heads
        inner = normal((2 * config.depth * width) ** -0.5)
        self.activation = ACTIVATIONS[config.activation]
        self.norm1, self.norm2 = (LayerNorm(width, eps=config.eps) for _ in range(2))
        self.attention = BiasedSelfAttention(
            width,
            config.heads,
            depth,
            scale=depth**-0.5,
            dtype=config.dtype,
            init=inner,
            out_init=normal(width**-0.5),
            bias=True,
        )
        self.expand = Linear(width, config.hidden, dtype=config.dtype, init=normal((2 * width) ** -0.5))
        self.contract = Linear(config.hidden, width, dtype=config.dtype, init=inner)

    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        """``(B, L, width) -> (B, L, width)`` float32."""
        x = x + self.attention(self.norm1(x), bias, mask).astype(x.dtype)
        return x + self.contract(self.activation(self.expand(self.norm2(x)))).astype(x.dtype)


class CLIPTextModule(nnx.Module):
    """The encoder that a `CLIPText` configures, called as ``module(ids, mask)``."""

    def __init__(self, config: CLIPText):
        self.config = config
        self.tokens = LabelEmbedding(config.vocabulary, config.width, null=False, init=small)
        self.positions = small((config.length, config.width))
        self.blocks = stacked(lambda: CLIPBlock(config), config.depth)
        self.norm = LayerNorm(config.width, eps=config.eps)
        if config.projection is not None:
            self.projection = Linear(
                config.width, config.projection, dtype=config.dtype, init=normal(config.width**-0.5), bias=False
            )

    def __call__(self, ids: Array, mask: Array | None) -> dict[str, Array]:
        config, length = self.config, ids.shape[1]
        if length > config.length:
            raise ValueError(f"CLIP has {config.length} positions, got texts of {length} tokens: cut them")
        given = causal(length), mask
        x = self.tokens(ids).astype(jnp.float32) + self.positions[...][None, :length].astype(jnp.float32)  # (1)
        x = through(self.blocks, x, 0, config.depth - config.skip, *given)
        states = {"tokens": self.norm(x) if config.final_norm else x}
        if not config.pooled:
            return states
        if config.skip:
            x = through(self.blocks, x, config.depth - config.skip, config.depth, *given)
        place = jnp.argmax(ids if config.end is None else ids == config.end, axis=1)  # (B,): the first of equals
        states["pooled"] = self.norm(jnp.take_along_axis(x, place[:, None, None], axis=1))[:, 0]  # (4)
        if config.projection is not None:
            states["projected"] = self.projection(states["pooled"]).astype(jnp.float32)  # (5)
        return states


def clip_l(**changes: Any) -> CLIPText:
    """OpenAI's ViT-L/14: of Stable Diffusion 1, SDXL (its first), SD3 (its first, ``projection=768``), FLUX.1.

    123,060,480 parameters. Texts are padded with the end-of-text token, 49407.

    Args:
      changes: fields of `CLIPText` to replace.

    >>> clip_l().depth
    12
    """
    return CLIPText(**changes)


def clip_h(**changes: Any) -> CLIPText:
    """OpenCLIP's ViT-H/14 as Stable Diffusion 2 has it: 23 of its 24 blocks, the last one having no use there.

    340,387,840 parameters. Texts are padded with 0.

    Args:
      changes: fields of `CLIPText` to replace.

    >>> clip_h().width
    1024
    """
    fields: dict[str, Any] = {"width": 1024, "depth": 23, "heads": 16, "hidden": 4096, "activation": "gelu"}
    return CLIPText(**{**fields, **changes})


def clip_bigg(**changes: Any) -> CLIPText:
    """OpenCLIP's ViT-bigG/14: the second of SDXL and of SD3, and the refiner's only one.

    694,659,840 parameters, the projection among them. Texts are padded with 0.

    Args:
      changes: fields of `CLIPText` to replace.

    >>> clip_bigg(skip=1, final_norm=False).projection
    1280
    """
    fields: dict[str, Any] = {"width": 1280, "depth": 32, "heads": 20, "hidden": 5120, "activation": "gelu"}
    return CLIPText(**{**fields, "projection": 1280, **changes})
