"""Tangential damping (Kwon et al. 2025, "TCFG: Tangential Damping Classifier-free Guidance",
https://arxiv.org/abs/2503.18137, algorithm 1).

The two predictions of the noise span a plane. Of the unconditional one, the part across their common direction leads
aside of the data and is left out before guidance: with v the first right singular vector of the rows eps(x, cond) and
eps(x, null),

    eps' = v <v, eps(x, null)>,        eps = eps(x, cond) + (w - 1) (eps(x, cond) - eps').           (1)

v is a combination of the rows, v ~ a eps(x, cond) + b eps(x, null) with (a, b) the first eigenvector of their Gram
matrix [[p, q], [q, r]]. With h = (p - r)/2 and the larger root lambda = (p + r)/2 + m, m = sqrt(h^2 + q^2),

    (a, b) ~ (m + h, q)  where h >= 0,      (q, m - h)  else,                                         (2)

which does not cancel; where m = 0, the rows being orthogonal and equally long, every direction is a first one, and the
conditional one is taken.

x0 follows from eps. Where alpha -> 0 both predictions of the noise tend to x/sigma, and the part that is left out to
half of what lies across x: with D = x0(x, cond) - x0(x, null) and D_x its part along x,

    x0 = x0(x, cond) + (w - 1) (D + D_x)/2.                                                          (3)
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Memory
from jaxdiff.guidance.adaptive_projected import projected
from jaxdiff.guidance.contrast import Contrast
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class TCFG(Contrast):
    """Classifier-free guidance away from an unconditional prediction with its tangential part left out.

    Args:
      weight: w of equation (1), ``()`` or one a sample ``(B,)``; data. 1 is the plain model.
      sequential: the branches one after the other, in less memory; static.

    >>> TCFG(3.0).weight
    3.0
    """

    weight: ArrayLike
    sequential: bool = field(default=False, pytree_node=False)
    name: ClassVar[str] = "tcfg"

    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        assert process is not None
        given, without = parts[0].eps, parts[1].eps
        weight = expand(jnp.asarray(self.weight, x.dtype) - 1.0, x)
        change = weight * (given - damped(given, without))
        plain, difference = parts[0], parts[0].x0 - parts[1].x0
        alpha = expand(process.alpha(t), x)
        back = expand(process.sigma(t), x) / jnp.where(alpha > 0, alpha, 1.0)
        noise = 0.5 * weight * (difference + projected(difference, x))  # equation (3)
        x0 = plain.x0 + jnp.where(alpha > 0, -back * change, noise)
        return plain._replace(x0=x0, eps=plain.eps + change), memory


def damped(given: Array, without: Array) -> Array:
    """The unconditional prediction along the two's common direction, equations (1) and (2)."""
    rows = [flatten(row) for row in (given, without)]
    p, q, r = ((rows[i] * rows[j]).sum(axis=1) for i, j in ((0, 0), (0, 1), (1, 1)))
    h = 0.5 * (p - r)
    m = jnp.sqrt(jnp.square(h) + jnp.square(q))
    a, b = jnp.where(h >= 0, m + h, q), jnp.where(h >= 0, q, m - h)
    a = jnp.where(m > 0, a, 1.0)
    return projected(without, expand(a, given) * given + expand(b, given) * without)
