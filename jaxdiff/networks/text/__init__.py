"""Text encoders whose weights are given: CLIP's and T5's, for the models that were trained with them.

>>> import jax
>>> encoder = TextEncoder(clip_l(dtype="bfloat16"))
>>> params = jax.eval_shape(encoder.init, jax.random.key(0))
>>> sum(leaf.size for leaf in jax.tree.leaves(params))
123060480
"""

from jaxdiff.networks.text.clip import CLIPText, clip_bigg, clip_h, clip_l
from jaxdiff.networks.text.stack import TextEncoder
from jaxdiff.networks.text.t5 import T5, t5_xxl

__all__ = ["T5", "CLIPText", "TextEncoder", "clip_bigg", "clip_h", "clip_l", "t5_xxl"]
