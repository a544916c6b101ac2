"""Multistep methods whose weights are a table: non-stationary solvers.

Every exponential multistep method on x0, with a corrector or without, replaces x0 over the step from t_i to t_{i+1} by
some average of the predictions so far (a predictor-corrector's correction being another such average),

    x_{i+1} = (sigma_{i+1}/sigma_i) x_i + (alpha_{i+1} - alpha_i sigma_{i+1}/sigma_i) sum_{j <= i} B_ij x0_j,        (1)
    sum_j B_ij = 1,

whose weights follow from the grid by polynomials. With few steps no polynomial is near, and better weights are found by
descent on B and on the grid together, against fine solutions of some problems (Shaul et al. 2024, "Bespoke
Non-Stationary Solvers", equation 7; "S4S", Frankel et al. 2025). The row sums keep (1) exact for a constant x0 and so
consistent; B = I is DDIM. A table belongs to the grid it was made with.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler


class Predictions(NamedTuple):
    """The predictions of x0 so far, ``(n, B, ...)``, zeros where none is yet, and how many there are."""

    x0: Array
    made: Array


@record
class Tabulated(Sampler):
    """A step by weights from a table, equation (1).

    One evaluation a step; the order is the table's. It keeps n predictions.

    Args:
      process: the process.
      weights: B, ``(n, n)``, its row i for the i-th step; rows sum to 1, and what stands right of the diagonal is not
        used. Data.

    >>> import jax
    >>> from jaxdiff import DDIM, Flow, GaussianDenoiser, integrate
    >>> process, ts = Flow(), jnp.array([0.9, 0.5, 0.2])
    >>> x, exact = jax.random.normal(jax.random.key(0), (2, 3)), GaussianDenoiser(Flow(), 0.5, 0.1)
    >>> ddim, _ = integrate(DDIM(process), exact, None, x, ts)
    >>> same, _ = integrate(Tabulated(process, jnp.eye(2)), exact, None, x, ts)
    >>> bool(jnp.allclose(same, ddim, atol=1e-6))
    True
    """

    weights: ArrayLike

    def check(self, ts: ArrayLike) -> None:
        """Raises ValueError if there are more steps than rows; times that are traced may be padded."""
        if isinstance(ts, jax.core.Tracer):
            return
        rows, steps = np.shape(self.weights)[0], np.shape(ts)[0] - 1
        if steps > rows:
            raise ValueError(f"a table of {rows} rows is for {rows} steps on its own grid, got {steps} steps")

    def init(self, x: Array) -> Predictions:
        rows = jnp.shape(self.weights)[0]
        return Predictions(jnp.zeros((rows, *x.shape), x.dtype), jnp.zeros((), jnp.int32))

    def step(
        self, denoise: Denoise, noise: Noise, state: Predictions, x: Array, t: Array, s: Array
    ) -> tuple[Array, Predictions]:
        process = self.process
        x0 = state.x0.at[state.made].set(denoise(x, t).x0)
        row = jnp.asarray(self.weights)[state.made].astype(x.dtype)
        mean = jnp.tensordot(row, x0, axes=1)
        kept = process.sigma(s) / process.sigma(t)
        gain = process.alpha(s) - process.alpha(t) * kept
        return kept * x + gain * mean, Predictions(x0, state.made + 1)
