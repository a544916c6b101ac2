"""CFG++ (Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
https://arxiv.org/abs/2406.08070, algorithm 2).

The guided prediction of the data is noised again with the unconditional noise, so that guidance is an interpolation
between two predictions rather than an extrapolation:

    x0 = x0(x, null) + lambda (x0(x, cond) - x0(x, null)),        eps = eps(x, null).                (1)

This pair does not give x again, x != alpha x0 + sigma eps, which samplers use in other ways. It means what the paper
says in steps x_s = a x0 + b eps + c z alone: `DDIM`, at any eta, and `DDPM`. There a step to rho_s = sigma_s/alpha_s is
one of classifier-free guidance with the weight w(t) = lambda rho_t/(rho_t - rho_s).                              (2)

lambda = 1 is the conditional data prediction with the unconditional noise: no value of lambda is the plain model.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Memory
from jaxdiff.guidance.contrast import Contrast
from jaxdiff.prediction import Prediction, mix
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class CFGPlusPlus(Contrast):
    """CFG++, equation (1): for DDIM and DDPM alone, and without elements behind it that move x0.

    Args:
      weight: lambda, from 0 to 1 as a rule, ``()`` or one a sample ``(B,)``; data.
      sequential: the branches one after the other, in less memory; static.

    >>> CFGPlusPlus(0.6).samplers
    ('DDIM', 'DDPM')
    """

    weight: ArrayLike
    sequential: bool = field(default=False, pytree_node=False)
    name: ClassVar[str] = "cfgpp"
    apart: ClassVar[bool] = True
    samplers: ClassVar[tuple[str, ...]] = ("DDIM", "DDPM")

    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        given, without = parts[0], parts[1]
        guided = mix(given, (1.0 - jnp.asarray(self.weight, x.dtype), without))
        return guided._replace(eps=without.eps), memory
