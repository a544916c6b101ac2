"""The published networks over two streams, by their exact numbers of parameters.

SD3 and 3.5: Esser et al. 2024, https://arxiv.org/abs/2403.03206, and Stability AI's configurations; FLUX.1: Black
Forest Labs' published code.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxdiff.networks.conditions import Level, NetCondition, Tokens
from jaxdiff.networks.mmdit import MMDiT


def sd3(size: Literal["medium", "3.5-medium", "3.5-large"] = "medium", **changes: Any) -> MMDiT:
    """Stable Diffusion 3 and 3.5: 16-channel latents, tokens of T5-XXL's width, CLIP's two pooled vectors.

    They are told 1000 sigma (`jaxdiff.ScaledTime`).

    Args:
      size: 2,028, 2,243 or 8,057 million parameters.
      changes: fields of `MMDiT` to replace.

    Raises:
      ValueError: another size.

    >>> sd3("3.5-medium").dual
    13
    """
    sizes: dict[str, dict[str, Any]] = {
        "medium": {},
        "3.5-medium": {"qk_norm": True, "dual": 13, "grid": 384},
        "3.5-large": {"qk_norm": True, "width": 2432, "depth": 38, "heads": 38},
    }
    if size not in sizes:
        raise ValueError(f"SD3 sizes are {', '.join(sizes)}, got {size!r}: configure `MMDiT` itself")
    return MMDiT(**{"conditions": (Tokens("text", 4096, pooled=2048),), **sizes[size], **changes})


def flux(kind: Literal["dev", "schnell"] = "dev", **changes: Any) -> MMDiT:
    """FLUX.1: 16-channel latents, tokens of T5-XXL, CLIP-L's pooled vector; dev is told the strength of guidance too.

    They are told 1000 sigma (`jaxdiff.ScaledTime`).

    Args:
      kind: "dev" (11,901 million parameters) or "schnell" (11,891 million).
      changes: fields of `MMDiT` to replace.

    Raises:
      ValueError: another kind.

    >>> flux("schnell").single_blocks
    38
    """
    if kind not in ("dev", "schnell"):
        raise ValueError(f"FLUX.1 is dev or schnell, got {kind!r}: configure `MMDiT` itself")
    text: tuple[NetCondition, ...] = (Tokens("text", 4096, pooled=768),)
    fields: dict[str, Any] = {"width": 3072, "heads": 24, "depth": 19, "single_blocks": 38, "qk_norm": True}
    fields |= {"rope": (16, 56, 56), "conditions": (*text, Level("guidance", high=None)) if kind == "dev" else text}
    return MMDiT(**{**fields, **changes})
