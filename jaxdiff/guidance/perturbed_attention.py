"""Perturbed-attention guidance (Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention
Guidance", https://arxiv.org/abs/2403.17377).

With P the plain prediction, G the guided one so far, and Q that of the same network where the self-attention of some
layers has the identity for its map, so that each token of the image has its own value,

    p = G + s (P - Q).                                                                               (1)

Without guidance before it G is P; behind `CFG`, (1) adds up both differences, as the published pipelines do. Q keeps
what an image looks like and loses its structure, of which (1) gives more.
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
class PAG(Guidance):
    """Perturbed-attention guidance: away from the same network, some of whose self-attention is the identity.

    Args:
      scale: s of equation (1), ``()`` or one a sample ``(B,)``; data. 0 is what stands before it.
      layers: of the network (`jaxdiff.guidance.perturbation.Layers`); static. None: the middle.

    Raises:
      ValueError: a number or layers that are none; (when sampling) a network without self-attention.

    >>> PAG(2.0, "3+4")
    PAG(scale=2.0, layers='3+4')
    """

    scale: ArrayLike
    layers: Layers = field(default=None, pytree_node=False)

    def __post_init__(self) -> None:
        finite("scale", self.scale)
        chosen(self.layers)

    def check(self, n: int) -> None:
        finite_weights(self.scale, n)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return away(denoise, plain, perturbed(plain, "pag", "identity", self.layers), self.scale, "pag")
