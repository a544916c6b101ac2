"""UniPC: a predictor and a corrector of one form, in lambda = ln(alpha/sigma), on x0 (Zhao et al. 2023).

Over a step from t to s, h = lambda_s - lambda_t, D_0 = x0 at t and D_m at other places lambda_t + r_m h, both are

    x_s = (sigma_s/sigma_t) x_t - alpha_s expm1(-h) D_0 + alpha_s B sum_m (a_m/r_m) (D_m - D_0),             (1)

UniP-p with D_m from the p - 1 steps before, UniC-p with these and with D at s itself, evaluated at the predicted x_s.
The p - 1 (p) numbers a_m solve the linear system that makes (1) exact for polynomials x0(lambda) (their theorem 3.1):
a_m B/r_m is W_m of `jaxdiff.sampling.exponential`, whatever B is. Only where a_1 is alone (UniP-2, UniC-1) do they set

    a_1 = 1/2,     B = h (B1)   or   B = -expm1(-h) (B2),                                            (2)

for which <theta> is to be read as B/(-2 expm1(-h)): 1/2 with B2, which makes UniP-2 `DPMpp2M`.

D is evaluated once a step, at the predicted x, and serves the corrector of the step that ends there, then the predictor
of the next. Predictor and corrector differ by weights alone, so the corrected x is the predicted one plus

    G [ C_s (D_s - D_0) + sum_m (C_m - P_m) (D_m - D_0) ],                                           (3)

C and P the corrector's and the predictor's W and G = -alpha_s expm1(-h): the x before it need not be remembered, and
what (3) adds at t is carried to s by sigma_s/sigma_t. After a step from alpha = 0, whose h is infinite, nothing is
corrected.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler
from jaxdiff.sampling.exponential import History, check_order, combine, first_order, half_log_snr, no_history
from jaxdiff.sampling.multistep import x0_gain, x0_weights


@record
class UniPC(Sampler):
    """UniP-p, equation (1), and with ``corrector`` UniPC-p, equations (1) and (3). One evaluation a step; either
    direction.

    Order p without, p + 1 with the corrector, the last step included, whose local error is the predictor's. It begins
    with what history there is, UniP-1 (DDIM) first; as that step's error stays, the order from such a start is at most
    2 without, 3 with the corrector.

    Args:
      process: the process.
      order: p, 1 to 4; static. 3 is the paper's for unconditional sampling, 2 under guidance.
      variant: "B1" or "B2", equation (2), which matters only to UniP-2, UniC-1 and the first steps; static.
      corrector: whether to correct; static.

    Raises:
      ValueError: an unknown order or variant.

    >>> import jax
    >>> from jaxdiff import Flow, GaussianDenoiser, log_snr_times, sample
    >>> process, x = Flow(), jax.random.normal(jax.random.key(0), (4, 2))
    >>> sample(UniPC(process), GaussianDenoiser(process, 3.0, 0.1), None, x, log_snr_times(process, 10)).shape
    (4, 2)
    """

    order: int = field(default=3, pytree_node=False)
    variant: Literal["B1", "B2"] = field(default="B2", pytree_node=False)
    corrector: bool = field(default=True, pytree_node=False)

    def __post_init__(self) -> None:
        check_order(self.order, 4, "UniPC")
        if self.variant not in ("B1", "B2"):
            raise ValueError(f'variant is to be "B1" or "B2", got {self.variant!r}')

    def init(self, x: Array) -> History:
        return no_history(x, self.order if self.corrector else self.order - 1)

    def _weights(self, places: Array, begin: Array, end: Array) -> Array:
        if self.variant == "B2":
            return x0_weights(places, begin, end)
        h = end - begin
        usual = jnp.isfinite(h) & (h != 0)
        h = jnp.where(usual, h, 1.0)
        return x0_weights(places, begin, end, -0.5 * h / jnp.expm1(-h))

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        prediction = denoise(x, t)
        x0, ahead = prediction.x0, first_order(self.process, prediction, s)
        here, there = half_log_snr(self.process, t), half_log_snr(self.process, s)
        if self.corrector:
            sigma = self.process.sigma(t)  # 0 only in a first step, whose correction is 0
            scale = self.process.sigma(s) / jnp.where(sigma == 0, 1.0, sigma)
            ahead = ahead + self._correction(state, x0, scale, t, here)
        before = self.order - 1
        weights = x0_gain(self.process, s, here, there) * self._weights(state.places[:before], here, there)
        return ahead + combine(weights, state.values[:before], x0), state.remember(x0, here)

    def _correction(self, state: History, x0: Array, scale: Array, t: Array, here: Array) -> Array | float:
        """Equation (3), times ``scale``, for the step that ended at t; D_0 is the newest of the history."""
        begin, (first, *others) = state.places[0], state.values
        corrector = self._weights(jnp.concatenate([jnp.reshape(here, 1), state.places[1:]]), begin, here)
        predictor = self._weights(state.places[1:], begin, here)
        weights = scale * x0_gain(self.process, t, begin, here) * corrector.at[1:].add(-predictor)
        return combine(weights, [x0, *others], first)
