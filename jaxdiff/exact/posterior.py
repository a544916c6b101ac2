"""The exact posterior of a linear measurement, where the prior is a mixture of Gaussians.

With the prior sum_k pi_k N(m_k, V_k), V_k diagonal, and y = A x + std n, n of N(0, I), the posterior is a mixture too,

    S_k = A V_k A' + std^2 I,         G_k = V_k A' S_k^-1                                            (1)
    p(x | y) = sum_k w_k N(m_k + G_k (y - A m_k), C_k),        C_k = V_k - G_k A V_k                 (2)
    w_k proportional to pi_k N(y; A m_k, S_k)                                                        (3)
    E[x | y] = sum_k w_k mu_k,        Cov[x | y] = sum_k w_k (C_k + mu_k mu_k') - E E'               (4)

mu_k being the means of (2). The law of u.x is a mixture of Gaussians on the line, so that the mass of any interval is
known. Without noise S_k^-1 is the pseudo-inverse: what A does not see is left as it was.

A smoothed data set (`EmpiricalDenoiser`) is such a mixture with one V. All is computed on the host in float64, where
rounding of (y - A m_k)/std cannot move the weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.exact.empirical import EmpiricalDenoiser
from jaxdiff.exact.mixture import MixtureDenoiser
from jaxdiff.record import record

RANK = 1e-10
"""Eigenvalues of S_k below this share of the largest one are directions that were not measured."""


@record
class MixturePosterior:
    """Equations (2) to (4).

    Made by `of`.

    Args:
      log_weights: ln w_k ``(K,)``, whose exponentials add up to 1.
      means: mu_k ``(K, ...)``, each shaped like one sample, of D numbers.
      factors: L_k with C_k = L_k L_k', ``(K, D, D)``, or ``(1, D, D)`` where all components have one.

    >>> from jaxdiff.schedule import VP
    >>> prior = MixtureDenoiser(VP(), jnp.array([[-1.0], [1.0]]), 1.0)
    >>> found = MixturePosterior.of(prior, jnp.eye(1), jnp.array([1.0]), 1.0)
    >>> print(found.means.ravel(), found.covariance.round(3))
    [0. 1.] [[0.697]]
    """

    log_weights: Array
    means: Array
    factors: Array

    @classmethod
    def of(cls, prior: MixtureDenoiser | EmpiricalDenoiser, matrix: Any, y: Any, std: float) -> MixturePosterior:
        """The posterior of one measurement.

        Args:
          prior: whose data are the prior; its process does not matter.
          matrix: A ``(M, D)``.
          y: ``(M,)``.
          std: the noise's deviation, 0 or more.

        Raises:
          ValueError: a matrix or a measurement of another size, or a deviation below 0.
        """
        if isinstance(prior, EmpiricalDenoiser):
            centres, spread, log_prior = prior.data, np.asarray(prior.std), None
        else:
            centres, spread, log_prior = prior.means, np.asarray(prior.stds), prior.log_weights
        count, shape = len(centres), np.shape(centres)[1:]
        m = np.asarray(centres, np.float64).reshape(count, -1)
        a, seen = np.asarray(matrix, np.float64), np.asarray(y, np.float64).reshape(-1)
        if a.ndim != 2 or a.shape[1] != m.shape[1] or seen.shape != a.shape[:1]:
            raise ValueError(
                f"a measurement of {m.shape[1]} numbers is a matrix (M, {m.shape[1]}) and a y (M,), got {a.shape} and "
                f"{np.shape(y)}"
            )
        if not std >= 0:
            raise ValueError(f"the noise's deviation is 0 or more, got {std}")
        variances = np.square(spread.astype(np.float64))
        rows = 1 if variances.ndim == 0 else count  # covariances that differ
        variances = variances.reshape(rows, -1) if variances.ndim < 2 else variances.reshape(count, -1)
        variances = np.broadcast_to(variances, (rows, m.shape[1]))
        residuals = seen - m @ a.T  # (K, M)
        log_weights = np.zeros(count) if log_prior is None else np.asarray(log_prior, np.float64).copy()
        means, factors = np.empty_like(m), []
        for row, variance in enumerate(variances):
            which = slice(None) if rows == 1 else slice(row, row + 1)
            gain, factor, log_likelihood = _updated(a, variance, std, residuals[which])
            means[which] = m[which] + residuals[which] @ gain.T
            log_weights[which] += log_likelihood
            factors.append(factor)
        log_weights -= np.logaddexp.reduce(log_weights)
        kind = jnp.result_type(float)
        return cls(*(jnp.asarray(p, kind) for p in (log_weights, means.reshape(count, *shape), np.stack(factors))))

    @property
    def mean(self) -> Array:
        """E[x | y], shaped like one sample."""
        return jnp.tensordot(jnp.exp(self.log_weights), self.means, 1, precision=jax.lax.Precision.HIGHEST)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Cov[x | y] ``(D, D)``."""
        w, centred = self._weights(), self._flat() - np.asarray(self.mean, np.float64).reshape(1, -1)
        wide = np.asarray(self.factors, np.float64)
        shares = w if len(wide) == len(w) else np.ones(1)
        within: NDArray[np.float64] = sum(share * (each @ each.T) for share, each in zip(shares, wide, strict=True))
        return within + (centred * w[:, None]).T @ centred

    def sample(self, key: Array, n: int) -> Array:
        """``(n, ...)`` draws of p(x | y)."""
        which, noise = jax.random.split(key)
        k = jax.random.categorical(which, self.log_weights, shape=(n,))
        z = jax.random.normal(noise, (n, self.factors.shape[1]), self.factors.dtype)
        if self.factors.shape[0] == 1:
            moved = jnp.matmul(z, self.factors[0].T, precision=jax.lax.Precision.HIGHEST)
        else:  # component by component: a factor a draw would not fit
            each = jnp.einsum("kij,nj->kni", self.factors, z, precision=jax.lax.Precision.HIGHEST)
            moved = each[k, jnp.arange(n)]
        return self.means[k] + moved.reshape(n, *self.means.shape[1:])

    def marginals(self, directions: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The components' means and deviations along directions.

        Args:
          directions: ``(R, D)``.

        Returns:
          ``(K, R)`` and ``(K, R)`` or ``(1, R)``.
        """
        u = np.asarray(directions, np.float64)
        wide = np.einsum("rd,kdj->krj", u, np.asarray(self.factors, np.float64))
        return self._flat() @ u.T, np.sqrt(np.square(wide).sum(axis=2))

    def mass(self, directions: Any, low: Any, high: Any) -> NDArray[np.float64]:
        """The probability that u.x lies between ``low`` and ``high``: coverage of an interval.

        Args:
          directions: u ``(R, D)``.
          low, high: ``(R,)``.

        Returns:
          ``(R,)``, from 0 to 1.
        """
        centres, spreads = self.marginals(directions)
        spreads = np.maximum(spreads, 1e-12)
        ends = [
            np.asarray(jax.scipy.special.ndtr((np.asarray(end, np.float64)[None] - centres) / spreads))
            for end in (low, high)
        ]
        found: NDArray[np.float64] = (self._weights()[:, None] * (ends[1] - ends[0])).sum(axis=0)
        return found

    def _weights(self) -> NDArray[np.float64]:
        w: NDArray[np.float64] = np.exp(np.asarray(self.log_weights, np.float64))
        return w / w.sum()

    def _flat(self) -> NDArray[np.float64]:
        return np.asarray(self.means, np.float64).reshape(len(self.means), -1)


def _updated(a: NDArray[Any], variance: NDArray[Any], std: float, residuals: NDArray[Any]) -> tuple[Any, Any, Any]:
    """G, L with L L' = C, and ln N(y; A m_k, S) of each residual, equations (1) to (3)."""
    wide = a * variance  # A V
    s = wide @ a.T + std**2 * np.eye(len(a))
    values, vectors = np.linalg.eigh(s)
    kept = values > RANK * max(values[-1], 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    gain = (wide.T @ vectors / values) @ vectors.T
    covariance = np.diag(variance) - gain @ wide
    own, axes = np.linalg.eigh(0.5 * (covariance + covariance.T))
    along = residuals @ vectors
    log_likelihood = -0.5 * (np.square(along) / values + np.log(2 * np.pi * values)).sum(axis=1)
    return gain, axes * np.sqrt(np.maximum(own, 0.0)), log_likelihood
