"""Smoothed-energy guidance (Hong 2024, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy
Curvature of Attention", https://arxiv.org/abs/2408.00760).

Self-attention is a step down the gradient of an energy, and a blur of its map lowers that energy's curvature. Let P be
the plain prediction and G the guided one so far. Q is that of the same network whose queries, in some layers, are
blurred over the rows and columns of the image by a Gaussian of deviation sigma. Then

    p = G + s (P - Q).                                                                               (1)

sigma says how far Q is from P: at 0 it is P, at infinity every token asks with the mean query. The paper keeps s = 3
and chooses sigma.
"""

from __future__ import annotations

import math

from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance.away import away, finite
from jaxdiff.guidance.base import Guidance, Nulls, finite_weights
from jaxdiff.guidance.perturbation import Layers, chosen, perturbed
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class SEG(Guidance):
    """Smoothed-energy guidance: away from the same network, some of whose self-attention has blurred queries.

    Args:
      scale: s of equation (1), ``()`` or one a sample ``(B,)``; data. 0 is what stands before it.
      sigma: of the blur, in tokens, above 0; inf: the mean query. Static.
      layers: of the network (`jaxdiff.guidance.perturbation.Layers`); static. None: the middle.

    Raises:
      ValueError: a number or layers that are none; (when sampling) a network without self-attention.

    >>> SEG(3.0, 0.0)
    Traceback (most recent call last):
    ...
    ValueError: sigma is to be above 0, in tokens of the image, or inf for the mean query, got 0.0
    """

    scale: ArrayLike = 3.0
    sigma: float = field(default=math.inf, pytree_node=False)
    layers: Layers = field(default=None, pytree_node=False)

    def __post_init__(self) -> None:
        finite("scale", self.scale)
        if not isinstance(self.sigma, int | float) or not self.sigma > 0:
            raise ValueError(
                f"sigma is to be above 0, in tokens of the image, or inf for the mean query, got {self.sigma!r}"
            )
        chosen(self.layers)

    def check(self, n: int) -> None:
        finite_weights(self.scale, n)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        worse = perturbed(plain, "seg", "blurred", self.layers, float(self.sigma))
        return away(denoise, plain, worse, self.scale, "seg")
