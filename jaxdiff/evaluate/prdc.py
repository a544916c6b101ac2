"""Precision and recall of samples, by nearest neighbours in the features of a classifier.

Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
https://arxiv.org/abs/1904.06991. Let r_k(a, A) be the distance of a, one of the points A, to its k-th nearest neighbour
among the others of A, and B(A) the union of the balls about all a of that radius. With X the features of data and Y of
samples,

    precision = mean over y in Y of 1[y in B(X)],     recall = mean over x in X of 1[x in B(Y)].       (1)

Precision is how many samples look like data, recall how much of the data samples can look like. Naeem et al. 2020,
"Reliable Fidelity and Diversity Metrics for Generative Models", https://arxiv.org/abs/2002.09797, count the balls
instead, which an outlier of the data weighs less in, and always measure by the data's:

    density  = 1/k mean over y of the number of x with |y - x| <= r_k(x, X),                          (2)
    coverage = mean over x of 1[some y with |y - x| <= r_k(x, X)].                                    (3)

All depend on how many points there are: compare sets of equal sizes alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]
_ROWS = 1000
"""Of a matrix of distances at a time."""


class PRDC(NamedTuple):
    """Equations (1) to (3).

    Attributes:
      precision, recall: from 0 to 1.
      density: from 0 on; 1 is what is expected where samples are as the data.
      coverage: from 0 to 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(data: ArrayLike, samples: ArrayLike, k: int = 3) -> PRDC:
    """Precision, recall, density and coverage.

    Args:
      data: features of data ``(N, D)``, N above k.
      samples: features of samples ``(M, D)``, M above k.
      k: which neighbour's distance is a ball's radius, 1 or more; the papers have 3 and 5.

    Raises:
      ValueError: sets of other shapes, with fewer points, or with numbers that are not finite.

    >>> line = np.arange(8.0)[:, None]
    >>> prdc(line, line + 0.5, k=1)
    PRDC(precision=1.0, recall=1.0, density=1.875, coverage=1.0)
    >>> prdc(line, line[:4], k=1)
    PRDC(precision=1.0, recall=0.625, density=2.75, coverage=0.625)
    """
    x, y = np.asarray(data, np.float64), np.asarray(samples, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features are (N, D) of data and (M, D) of samples, got {x.shape} and {y.shape}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k is a whole number, at least 1 and below the {min(len(x), len(y))} points, got {k!r}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features are to be finite numbers")
    radius_x, radius_y = radii(x, k), radii(y, k)
    within_x = np.zeros(len(y))  # of how many balls about data each sample is in
    recalled, covered = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = distances(x[rows], y)
        inside = apart <= radius_x[rows, None]
        within_x += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (apart <= radius_y[None]).any(axis=1)
    means = (within_x > 0).mean(), recalled.mean(), within_x.mean() / k, covered.mean()
    return PRDC(*map(float, means))


def radii(points: Points, k: int) -> Points:
    """r_k of each point: its distance to the k-th nearest of the others.

    >>> radii(np.array([[0.0], [1.0], [3.0]]), 1).tolist()
    [1.0, 1.0, 2.0]
    """
    parts = []
    for start in range(0, len(points), _ROWS):
        apart = distances(points[start : start + _ROWS], points)
        apart[np.arange(len(apart)), start + np.arange(len(apart))] = 0.0  # of a point to itself
        parts.append(np.partition(apart, k, axis=1)[:, k])  # behind its own
    return np.concatenate(parts)


def distances(a: Points, b: Points) -> Points:
    """Euclidean distances ``(N, M)`` between points.

    By ``|a|^2 + |b|^2 - 2 a b`` about the mean of b, in float64: equal points may be 1e-8 of their spread apart.

    >>> distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [[5.0, 1.0]]
    """
    centre = b.mean(axis=0, keepdims=True)
    a, b = a - centre, b - centre
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None] - 2 * (a @ b.T)
    distance: Points = np.sqrt(np.maximum(squares, 0.0))
    return distance
