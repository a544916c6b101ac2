"""A sampler and a grid for a budget of evaluations.

A multistep method on x0, told the data's width (`jaxdiff.sampling.smoothed`), on one of the grids below: with few
evaluations by a table of weights (`jaxdiff.sampling.tabulated`), else UniPC with its corrector, of order 3 and from
`FOURTH` evaluations on of order 4 (`jaxdiff.sampling.unipc`). Grids and weights were found by descent through the
sampler, by the error against fine solutions, on development problems of the kinds of
`benchmarks/samplers_vs_diffusers.py` (2-D mixtures, smoothed digits and CIFAR-10 images), all of them at once:
`benchmarks/samplers/fit.py`. What they give on other problems: docs/samplers_vs_diffusers.md.

They are in sigma/alpha, so they serve every process, and are made for data in [-1, 1]: about half of the points stand
above 1, where an image of a large set is decided; the others follow its detail down. After the last point comes t = 0:
the sampler steps there without an evaluation, so n points are n evaluations and n steps. With few evaluations a grid
begins below 80, where noise still hides the data well enough: start from `prior_sample` at ts[0].

Units. Points and width are multiplied by the data's scale c, which the process tells as in equation (7) of
`jaxdiff.process`, with the table's 80 for the 200 there:

    c = min(sigma(1)/alpha(1), 80 sigma(1))/80,                                                      (1)

1 for VP and flows, which end in unit noise, and for `KarrasVE`, sigma_max/80 for `VE`. Where a process ends at
sigma(0)/alpha(0) = r > 0, the heights ln(rho^2 + w^2) are drawn together to end at ln(r^2 + w^2), so that no two points
become one.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Process
from jaxdiff.sampling.base import Sampler
from jaxdiff.sampling.checks import traced
from jaxdiff.sampling.smoothed import Smoothed, SmoothedDenoiser
from jaxdiff.sampling.tabulated import Tabulated
from jaxdiff.sampling.unipc import UniPC

MOST = 80.0
"""The largest sigma/alpha of the grids, for data in [-1, 1]."""

WIDTH = 0.15
"""The width the grids were found with."""

FOURTH = 50
"""Evaluations from which the order is 4."""

GRIDS: dict[int, tuple[float, ...]] = {
    5: (31.2, 7.887, 4.02, 1.012, 0.3107),
    8: (47.36, 10.56, 5.664, 2.478, 1.244, 0.7029, 0.3688, 0.1543),
    10: (64.44, 21.26, 8.661, 5.597, 2.677, 1.46, 0.9408, 0.5475, 0.2866, 0.1462),
    15: (80, 36.09, 16.14, 11.54, 7.19, 4.913, 3.455, 1.923, 1.399, 0.9977, 0.6589, 0.4807, 0.3025, 0.1936, 0.08927),
    20: (
        77.4,
        37.92,
        24.54,
        17.15,
        10.58,
        7.81,
        5.211,
        3.87,
        2.627,
        1.782,
        1.471,
        1.203,
        0.9333,
        0.7384,
        0.585,
        0.4761,
        0.341,
        0.2462,
        0.1652,
        0.06777,
    ),
    50: (
        80,
        59.93,
        44.89,
        33.66,
        25.29,
        19.12,
        14.77,
        11.96,
        10.12,
        8.787,
        7.766,
        6.952,
        6.276,
        5.696,
        5.179,
        4.7,
        4.239,
        3.787,
        3.34,
        2.902,
        2.481,
        2.104,
        1.836,
        1.655,
        1.507,
        1.372,
        1.247,
        1.135,
        1.038,
        0.9519,
        0.8747,
        0.8028,
        0.7365,
        0.6782,
        0.6268,
        0.5771,
        0.5235,
        0.4686,
        0.4212,
        0.3793,
        0.3381,
        0.2988,
        0.2641,
        0.2321,
        0.2011,
        0.1708,
        0.1406,
        0.1095,
        0.07627,
        0.04681,
    ),
}
"""Evaluations to the grid's points, in sigma/alpha."""


WEIGHTS: dict[int, tuple[tuple[float, ...], ...]] = {
    5: (
        (1.0,),
        (-1.9094, 2.9094),
        (0.3073, -1.6385, 2.3312),
        (0.1813, 0.3631, -1.3161, 1.7717),
        (-0.0883, 0.0101, 0.3613, -0.7621, 1.479),
    ),
    8: (
        (1.0,),
        (-1.4558, 2.4558),
        (0.5085, -1.8709, 2.3624),
        (-0.0779, 1.2304, -2.2545, 2.102),
        (0.0414, -0.2935, 1.1331, -1.8427, 1.9617),
        (-0.0425, -0.0402, -0.1584, 0.8664, -1.896, 2.2707),
        (0.0017, -0.0023, -0.0076, -0.1761, 1.246, -2.1375, 2.0758),
        (-0.0064, 0.0042, 0.0021, 0.0175, -0.6773, 1.4944, -1.7663, 1.9318),
    ),
    10: (
        (1.0,),
        (-0.9271, 1.9271),
        (0.6759, -1.835, 2.1591),
        (0.0255, 0.5612, -2.2556, 2.6689),
        (-0.0184, -0.2073, 1.7541, -2.6924, 2.164),
        (0.0158, 0.0198, -0.5397, 1.4769, -1.821, 1.8482),
        (-0.0292, -0.03, -0.0296, -0.123, 0.7403, -1.915, 2.3865),
        (0.0054, 0.0028, -0.0005, -0.0017, -0.1702, 1.3804, -2.5628, 2.3466),
        (0.0247, 0.0208, 0.0127, -0.0032, -0.0234, -0.5108, 1.62, -2.0889, 1.9481),
        (-0.0223, -0.0182, -0.0085, 0.0171, -0.0131, 0.0085, -0.328, 0.9275, -1.6144, 2.0514),
    ),
}
"""Evaluations to the rows of `Tabulated`, up to the diagonal."""


def data_scale(process: Process) -> Array:
    """Equation (1): 1 for data in [-1, 1].

    >>> from jaxdiff.schedule import VE, Flow
    >>> print(f"{data_scale(Flow()):.2f} {data_scale(VE(0.01, 1600.0)):.2f}")
    1.00 20.00
    """
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    return sigma / jnp.maximum(alpha * MOST, 1.0)


def recommended_times(process: Process, n: int, scale: ArrayLike | None = None) -> Array:
    """The ``(n + 1,)`` times of a budget of n evaluations, the last 0: those of the table, or for another n what lies
    between the two nearest of them, place by place (i/n from the first to the end) in ln(rho^2 + 0.15^2).

    Args:
      process: the process.
      n: evaluations, at least 5.
      scale: c, positive: 1 for data in [-1, 1]; None: what the process tells, `data_scale`.

    Raises:
      ValueError: fewer evaluations than in the table's first grid; a scale beyond the process' own noise.

    >>> from jaxdiff.schedule import Flow
    >>> ts = recommended_times(Flow(), 5)
    >>> ts.shape, float(ts[-1])
    ((6,), 0.0)
    """
    least, most = min(GRIDS), max(GRIDS)
    if n < least:
        raise ValueError(f"the table begins at {least} evaluations, got {n}")
    below, above = max(k for k in GRIDS if k <= n), min((k for k in GRIDS if k >= n), default=most)
    share = 0.0 if below == above else (n - below) / (above - below)
    heights = jnp.asarray((1.0 - share) * _heights(below, n) + share * _heights(above, n), jnp.result_type(float))
    scale = data_scale(process) if scale is None else jnp.asarray(scale, heights.dtype)
    bottom = 2.0 * math.log(WIDTH)
    least2 = jnp.exp(-process.log_snr(0.0)) / jnp.square(scale)
    lifted = jnp.log1p(least2 / WIDTH**2)  # how far the process' own end lies above the table's
    heights = heights + lifted * (heights[0] - heights) / (heights[0] - bottom)
    log_rho2 = heights + jnp.log(-jnp.expm1(bottom - heights)) + 2.0 * jnp.log(scale)
    times = process.time_of_log_snr(-log_rho2)
    if not traced(times) and times[0] == times[1]:
        raise ValueError(
            f"{type(process).__name__} ends below the first points of this grid, whose scale is {scale}: leave it out, "
            "or take a process with more noise"
        )
    return jnp.concatenate([times, jnp.zeros(1, times.dtype)])


def _heights(k: int, n: int) -> NDArray[np.float64]:
    """ln(rho^2 + 0.15^2) of the k-point grid at n places."""
    knots = np.log(np.square(np.append(GRIDS[k], 0.0)) + WIDTH**2)
    return np.interp(np.arange(n) / n, np.arange(k + 1) / k, knots)


def recommended(
    process: Process, denoise: Denoiser, n: int, width: ArrayLike | None = None, scale: ArrayLike | None = None
) -> tuple[Sampler, SmoothedDenoiser, Array]:
    """What to hand to `jaxdiff.sampling.integrate` for n evaluations.

    Args:
      process: the process.
      denoise: a denoiser on it.
      n: evaluations, at least 5.
      width: s, of `Smoothed`; None: 0.15 times the scale.
      scale: c, positive: 1 for data in [-1, 1]; None: what the process tells, `data_scale`.

    Returns:
      The sampler, the denoiser it is to be given, and the times.

    >>> import jax
    >>> from jaxdiff import Flow, GaussianDenoiser, integrate
    >>> process = Flow()
    >>> sampler, wide, ts = recommended(process, GaussianDenoiser(process, 0.5, 0.3), 8)
    >>> x = process.prior_sample(jax.random.split(jax.random.key(0), 4), (2,), ts[0])
    >>> x0, _ = integrate(sampler, wide, None, x, ts)
    >>> x0.shape
    (4, 2)
    """
    scale = data_scale(process) if scale is None else scale
    wide = Smoothed(process, WIDTH * scale if width is None else width)
    sampler: Sampler = UniPC(wide, order=3 if n < FOURTH else 4)
    if n in WEIGHTS:
        weights = np.zeros((n, n))
        for i, row in enumerate(WEIGHTS[n]):
            weights[i, : i + 1] = row
        sampler = Tabulated(wide, jnp.asarray(weights, jnp.result_type(float)))
    return sampler, SmoothedDenoiser(denoise, wide), recommended_times(process, n, scale)
