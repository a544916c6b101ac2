"""How far weighted draws are from a posterior that is known.

With E, C and the eigenpairs (l_r, u_r) of C those of the posterior, and E^, C^, q^ the draws' mean, covariance and
quantiles,

    mean          |E^ - E|/sqrt(tr C)                                                                (1)
    covariance    |C^ - C|_F/|C|_F                                                                   (2)
    spread        (u_r'C^ u_r/l_r)^(1/2), its mean over the directions                               (3)
    coverage      P(q^_r(5%) < u_r.x < q^_r(95%) | y), its mean over the directions                  (4)

(4) is of the posterior itself, so that it has no error but that of the quantiles: 90% is right, less is
overconfident. The directions are the first of C, at most 32, whose deviation is above 2% of the first one's. Standard
errors are the jackknife's over blocks of the draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdiff.exact import MixturePosterior

MOST = 32
SMALLEST = 0.02
NAMES = ("mean", "covariance", "spread", "coverage")


class Truth(NamedTuple):
    """What of a posterior is compared.

    Attributes:
      posterior: the posterior.
      mean: ``(D,)``.
      covariance: ``(D, D)``.
      directions: u_r ``(R, D)``.
      values: l_r ``(R,)``.
    """

    posterior: MixturePosterior
    mean: NDArray[Any]
    covariance: NDArray[Any]
    directions: NDArray[Any]
    values: NDArray[Any]


def truth_of(posterior: MixturePosterior) -> Truth:
    """Mean, covariance and principal directions of a posterior."""
    covariance = posterior.covariance
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1][:MOST], vectors.T[::-1][:MOST]
    kept = values > SMALLEST**2 * values[0]
    mean = np.asarray(posterior.mean, np.float64).reshape(-1)
    return Truth(posterior, mean, covariance, vectors[kept], values[kept])


def errors(truth: Truth, x: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Equations (1) to (4) of draws ``(n, D)`` with weights ``(n,)``."""
    w = weights / weights.sum()
    mean = w @ x
    centred = x - mean
    covariance = (centred * w[:, None]).T @ centred / max(1 - np.square(w).sum(), 1e-6)
    along = x @ truth.directions.T
    spread = np.sqrt(np.einsum("rd,de,re->r", truth.directions, covariance, truth.directions) / truth.values)
    low, high = (quantiles(along, w, share) for share in (0.05, 0.95))
    return np.array(
        [
            np.linalg.norm(mean - truth.mean) / np.sqrt(np.trace(truth.covariance)),
            np.linalg.norm(covariance - truth.covariance) / np.linalg.norm(truth.covariance),
            spread.mean(),
            truth.posterior.mass(truth.directions, low, high).mean(),
        ]
    )


def quantiles(x: NDArray[Any], w: NDArray[Any], share: float) -> NDArray[np.float64]:
    """The weighted quantile of each column of ``(n, R)``.

    >>> quantiles(np.arange(101.0)[:, None], np.full(101, 1 / 101), 0.95).tolist()
    [95.0]
    """
    order = np.argsort(x, axis=0)
    mass = np.take_along_axis(np.broadcast_to(w[:, None], x.shape), order, 0).cumsum(axis=0)
    place = (mass - 0.5 * w[order] < share).sum(axis=0).clip(0, len(x) - 1)
    found: NDArray[np.float64] = np.take_along_axis(np.take_along_axis(x, order, 0), place[None], 0)[0]
    return found


def with_doubt(
    truth: Truth, x: NDArray[Any], weights: NDArray[Any], blocks: int = 8
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The errors, and their standard errors by the jackknife over blocks of the draws."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    w = np.asarray(weights, np.float64)
    whole = errors(truth, flat, w)
    left = []
    for part in np.array_split(np.arange(len(flat)), blocks):
        rest = np.delete(np.arange(len(flat)), part)
        left.append(errors(truth, flat[rest], w[rest]))
    spread = np.stack(left) - np.mean(left, axis=0)
    return whole, np.sqrt((blocks - 1) / blocks * np.square(spread).sum(axis=0))
