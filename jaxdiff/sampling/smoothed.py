"""Solvers told the data's own width.

Suppose the data are points blurred by N(0, s^2 I): x_0 = b + s n. Then x_t = alpha b + sqrt(sigma^2 + alpha^2 s^2) n',
and the process of x is that of b with more noise,

    alpha_w = alpha,    sigma_w = sqrt(sigma^2 + alpha^2 s^2),                                       (1)

at the same times, on the same paths: only its data end is not clean, sigma_w(0) = s. What is expected of b follows from
what is expected of x_0 by Tweedie's formula, x_0 being b with noise of variance s^2,

    E[b | x_t] = E[x_0 | x_t] - s^2 (alpha/sigma) E[eps | x_t],                                      (2)
    eps_w = (x_t - alpha E[b | x_t])/sigma_w = (sigma_w/sigma) E[eps | x_t].                         (3)

(2) and (3) make a pair with x = alpha b + sigma_w eps_w whatever the data are, and the flow dy/d rho = eps, y = x/alpha
and rho = sigma/alpha, is dy/d rho_w = eps_w with rho_w = sqrt(rho^2 + s^2): the same equation. So any deterministic
sampler of `jaxdiff.sampling` may be run on (1) with (2) and (3) and keeps its order for any s; only its error changes.
An exponential method that takes x0 for a constant or a polynomial over a step, as DPM-Solver++ and UniPC do, then takes
E[b | x] for one: near the data, where x_0 still follows x by s^2/(s^2 + rho^2) but b has long been decided, that is far
more nearly true. s = 0 is the plain method.

The split of a linear part from the denoiser is that of DPM-Solver-v3 (Zheng et al. 2023, equation 4) with its l_lambda
not tabulated but s^2/(s^2 + rho^2), the slope of the denoiser for data of standard deviation s in each direction. s is
the width of the finest detail: 0.15 for images blurred by 0.15, and for a network a number to be found by trial.

The end. x at t = 0 is the sample: `integrate` to t = 0, with no last denoising, takes n evaluations for n steps.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.prediction import ABOVE_0, Prediction, refuse_zero_sigma
from jaxdiff.process import RATIO_MAX, Process, refuse_unless
from jaxdiff.record import record


@record
class Smoothed(Process):
    """Equation (1): a process that starts from data blurred by ``width``.

    Args:
      process: the process.
      width: s, not negative; data of a jitted sampler.

    >>> from jaxdiff.schedule import Flow
    >>> print(f"{Smoothed(Flow(), 0.15).sigma(0.0):.2f} {Smoothed(Flow(), 0.15).sigma(1.0):.2f}")
    0.15 1.00
    """

    process: Process
    width: ArrayLike

    def __post_init__(self) -> None:
        refuse_unless(lambda width: width >= 0, "width is to be 0 or more", width=self.width)

    @property
    def steps(self) -> int | None:
        return self.process.steps

    def alpha(self, t: ArrayLike) -> Array:
        return self.process.alpha(t)

    def sigma(self, t: ArrayLike) -> Array:
        return jnp.sqrt(jnp.square(self.process.sigma(t)) + jnp.square(self.process.alpha(t) * self.width))

    def log_snr(self, t: ArrayLike) -> Array:
        return -jnp.log(jnp.exp(-self.process.log_snr(t)) + jnp.square(self.width))

    def max_time(self, ratio: float = RATIO_MAX) -> Array:
        return self.process.max_time(ratio)

    def prior_std(self, t: ArrayLike = 1.0) -> Array:
        return self.process.prior_std(t)


@record
class SmoothedDenoiser:
    """Equations (2) and (3): a denoiser of x as one of the points b, on `Smoothed`.

    Args:
      denoise: the denoiser of x, on ``process.process``.
      process: the `Smoothed` process.

    Raises:
      ValueError: (when called) sigma(t) of x's own process is 0 at a t that is known.

    >>> import jax
    >>> from jaxdiff import Flow, GaussianDenoiser, integrate
    >>> from jaxdiff.sampling.unipc import UniPC
    >>> process = Smoothed(Flow(), 0.15)
    >>> exact = GaussianDenoiser(Flow(), 0.5, 0.15)
    >>> ts = jnp.array([0.99, 0.0])
    >>> x = process.prior_sample(jax.random.split(jax.random.key(0), 2), (3,), ts[0])
    >>> x0, _ = integrate(UniPC(process), SmoothedDenoiser(exact, process), None, x, ts)
    >>> bool(jnp.allclose(x0, exact.flow(x, ts[0], ts[1]), atol=1e-5))  # one step is exact: b is one point
    True
    """

    denoise: Denoiser
    process: Smoothed

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        inner, width = self.process.process, jnp.asarray(self.process.width, x.dtype)
        refuse_zero_sigma(inner, t, "the points beneath the data's own width are not told by x", ABOVE_0)
        prediction = self.denoise(x, t, cond)
        alpha, sigma = (expand(part, x) for part in (inner.alpha(t), inner.sigma(t)))
        blurred = jnp.square(width) * alpha / sigma
        ratio = jnp.sqrt(1.0 + jnp.square(alpha * width / sigma))
        return Prediction(
            prediction.x0 - blurred.astype(x.dtype) * prediction.eps,
            ratio.astype(x.dtype) * prediction.eps,
            prediction.variance,
        )
