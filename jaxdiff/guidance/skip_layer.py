"""Skip-layer guidance (Stability AI 2024, the code of Stable Diffusion 3.5, https://github.com/Stability-AI/sd3.5).

With P the plain prediction, G the guided one so far, and Q that of the same network where some layers are left out,

    p = G + s (P - Q).                                                                               (1)

For the medium model, of 24 blocks, the authors leave blocks 7, 8 and 9 out, with s = 2.5 in the first fifth of the way:
followed by an `Interval`, (1) holds in a part of the way here too. Of a U-Net the layers are its places with
self-attention, for its other blocks change the number of channels.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance.away import away, finite
from jaxdiff.guidance.base import Guidance, Nulls, finite_weights
from jaxdiff.guidance.perturbation import Layers, chosen, perturbed
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class SLG(Guidance):
    """Skip-layer guidance: away from the same network with some layers left out.

    Args:
      scale: s of equation (1), ``()`` or one a sample ``(B,)``; data. 0 is what stands before it.
      layers: of the network (`jaxdiff.guidance.perturbation.Layers`); static. None: the middle of a U-Net, blocks 7 to
        9 of a transformer of 24, and likewise of other depths.

    Raises:
      ValueError: a number or layers that are none; (when sampling) a network without self-attention.

    >>> SLG(2.5, "7-9")
    SLG(scale=2.5, layers='7-9')
    """

    scale: ArrayLike
    layers: Layers = field(default=None, pytree_node=False)

    def __post_init__(self) -> None:
        finite("scale", self.scale)
        chosen(self.layers)

    def check(self, n: int) -> None:
        finite_weights(self.scale, n)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return away(denoise, plain, perturbed(plain, "slg", "left_out", self.layers), self.scale, "slg")
