"""DiffPIR: each prediction is moved to the nearest that fits the measurement.

Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration", https://arxiv.org/abs/2305.08995,
algorithm 1. With rho = sigma_t/alpha_t a prediction x0 at t becomes (half-quadratic splitting)

    x0' = argmin_x |y - A x|^2 + lambda (std^2/rho^2) |x - x0|^2                                     (1)

which is x0 + d of `jaxdiff.inverse.update` at the precision p = lambda/rho^2. eps' is that of x0', and a step to s has
a share zeta of new noise

    x_s = alpha_s x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z).                                (2)

Without noise lambda does not matter, x0' = x0 + A+ (y - A x0), and (2) is DDNM at another noise than DDPM's.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoise, Denoiser, Memory, begin, recall
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.base import Nulls
from jaxdiff.inverse.method import Measured, Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.inverse.update import updated
from jaxdiff.noise import Noise
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class DiffPIR(Method):
    """Each prediction is moved to the nearest that fits the measurement.

    Equations (1) and (2). One evaluation a step. Linear operators; with singular values (1) is exact, else by conjugate
    gradients.

    Args:
      lam: lambda, positive; data. The paper's are from 1 to 25.
      zeta: the share of new noise, from 0 to 1; data. The paper's are from 0.1 to 1.

    Raises:
      ValueError: a number out of range.

    >>> DiffPIR(zeta=2.0)
    Traceback (most recent call last):
    ...
    ValueError: zeta is to be from 0 to 1, got zeta = 2.0
    """

    lam: ArrayLike = 8.0
    zeta: ArrayLike = 0.3
    needs: ClassVar[Needs] = "linear"
    own_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_unless(lambda lam: lam > 0, "lam of diffpir is to be positive", lam=self.lam)
        refuse_unless(lambda zeta: (zeta >= 0) & (zeta <= 1), "zeta is to be from 0 to 1", zeta=self.zeta)

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        return (Nearest(problem, self.lam),), DiffPIRSteps(process, self.zeta)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        _ = problem.std


@record
class Nearest(Measured):
    """Equation (1), as an element of guidance.

    Args:
      problem: what was measured.
      lam: see `DiffPIR`.
    """

    lam: ArrayLike

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return NearestPart(denoise, process, self.problem, self.lam)


@record
class NearestPart:
    """The denoiser of equation (1).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      problem: what was measured.
      lam: see `DiffPIR`.

    >>> from jaxdiff import VE, GaussianDenoiser
    >>> from jaxdiff.inverse.operators import Mask
    >>> from jaxdiff.inverse.problem import Gaussian
    >>> t = VE().time_of_log_snr(0.0)  # rho = 1
    >>> problem = Problem(Mask((2,), jnp.array([1, 0])), jnp.array([[3.0, 0.0]]), Gaussian(1.0))
    >>> NearestPart(GaussianDenoiser(VE(), 0.0, 1.0), VE(), problem, 2.0)(jnp.zeros((1, 2)), t).x0.round(4).tolist()
    [[1.0, 0.0]]
    """

    denoise: Denoiser
    process: Process
    problem: Problem
    lam: ArrayLike

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        found, after = recall(self.denoise, x, t, cond, memory)
        ratio = expand(self.process.alpha(t) / self.process.sigma(t), x)
        precision = jnp.asarray(self.lam * jnp.square(ratio), x.dtype)
        return moved(self.process, t, found, updated(self.problem, found.x0, precision)), after


@record
class DiffPIRSteps(Sampler):
    """Equation (2).

    Args:
      process: the process.
      zeta: see `DiffPIR`.
    """

    zeta: ArrayLike

    def noise_level(self) -> ArrayLike:
        return self.zeta

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        found = denoise(x, t)
        eps = jnp.sqrt(1.0 - jnp.asarray(self.zeta)) * found.eps + jnp.sqrt(jnp.asarray(self.zeta)) * noise(t, s)
        return self.process.alpha(s) * found.x0 + self.process.sigma(s) * eps, state
