"""Codecs: from records as they are stored to what a network sees, and back to records, pictures and files.

A codec is a frozen pytree, so it is an argument of a jitted function and its numbers are data. `default_codec` finds
the one that goes with a source; a codec of your own is any class with the methods of `Codec`.
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazily

if TYPE_CHECKING:
    from jaxdiff.codecs.any_size import AnySize
    from jaxdiff.codecs.arrays import Arrays
    from jaxdiff.codecs.base import Codec, encoded_specs, grey_levels
    from jaxdiff.codecs.default import default_codec
    from jaxdiff.codecs.images import Images, grid, save_png, to_model_range, to_uint8
    from jaxdiff.codecs.latents import LatentImages, Latents
    from jaxdiff.codecs.outlines import Outlines
    from jaxdiff.codecs.points import Points, scatter
    from jaxdiff.codecs.semantic import SemanticMap
    from jaxdiff.codecs.strokes import Strokes
    from jaxdiff.codecs.text import TextAndData, WithText

__getattr__ = lazily(
    __name__,
    {
        "AnySize": "any_size",
        "Arrays": "arrays",
        **dict.fromkeys(("Codec", "encoded_specs", "grey_levels"), "base"),
        "default_codec": "default",
        **dict.fromkeys(("Images", "grid", "save_png", "to_model_range", "to_uint8"), "images"),
        **dict.fromkeys(("LatentImages", "Latents"), "latents"),
        **dict.fromkeys(("Points", "scatter"), "points"),
        "Outlines": "outlines",
        "SemanticMap": "semantic",
        "Strokes": "strokes",
        **dict.fromkeys(("TextAndData", "WithText"), "text"),
    },
)

__all__ = [
    "AnySize",
    "Arrays",
    "Codec",
    "Images",
    "LatentImages",
    "Latents",
    "Outlines",
    "Points",
    "SemanticMap",
    "Strokes",
    "TextAndData",
    "WithText",
    "default_codec",
    "encoded_specs",
    "grey_levels",
    "grid",
    "save_png",
    "scatter",
    "to_model_range",
    "to_uint8",
]
