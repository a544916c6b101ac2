"""A sampler and a grid for a budget of evaluations.

A multistep method on x0, told the data's width (`jaxdiff.sampling.widened`), on one of the grids below: with few
evaluations by a table of weights (`jaxdiff.sampling.tabulated`), else UniPC with its corrector, of order 3 and from
`FOURTH` evaluations on of order 4 (`jaxdiff.sampling.unipc`). Grids and weights were found by descent through the
sampler, by the error against fine solutions, on development problems of the kinds of
`benchmarks/samplers_vs_diffusers.py` (2-D mixtures, smoothed digits and CIFAR-10 images), all of them at once:
`benchmarks/samplers/fit.py`. What they give on other problems: docs/samplers_vs_diffusers.md.

They are in sigma/alpha, so they serve every process, and suit data scaled to [-1, 1]: about half of the points stand
above 1, where an image of a large set is decided; the others follow its detail down. After the last point comes t = 0:
the sampler steps there without an evaluation, so n points are n evaluations and n steps. With few evaluations a grid
begins below 80, where noise still hides the data well enough: start from `prior_sample` at ts[0].
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Process
from jaxdiff.sampling.base import Sampler
from jaxdiff.sampling.tabulated import Tabulated
from jaxdiff.sampling.unipc import UniPC
from jaxdiff.sampling.widened import Widened, WidenedDenoiser

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


def recommended_times(process: Process, n: int) -> Array:
    """The ``(n + 1,)`` times of a budget of n evaluations, the last 0: those of the table, or for another n what lies
    between the two nearest of them, place by place (i/n from the first to the end) in ln(rho^2 + 0.15^2).

    Raises:
      ValueError: fewer evaluations than in the table's first grid.

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
    heights = (1.0 - share) * _heights(below, n) + share * _heights(above, n)
    log_rho2 = heights + np.log1p(-np.exp(2.0 * np.log(WIDTH) - heights))
    times = process.time_of_log_snr(jnp.asarray(-log_rho2, jnp.result_type(float)))
    return jnp.concatenate([times, jnp.zeros(1, times.dtype)])


def _heights(k: int, n: int) -> NDArray[np.float64]:
    """ln(rho^2 + 0.15^2) of the k-point grid at n places."""
    knots = np.log(np.square(np.append(GRIDS[k], 0.0)) + WIDTH**2)
    return np.interp(np.arange(n) / n, np.arange(k + 1) / k, knots)


def recommended(
    process: Process, denoise: Denoiser, n: int, width: ArrayLike = WIDTH
) -> tuple[Sampler, WidenedDenoiser, Array]:
    """What to hand to `jaxdiff.sampling.integrate` for n evaluations.

    Args:
      process: the process, one whose sigma/alpha reaches 80.
      denoise: a denoiser on it.
      n: evaluations, at least 5.
      width: s, of `Widened`.

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
    wide = Widened(process, width)
    sampler: Sampler = UniPC(wide, order=3 if n < FOURTH else 4)
    if n in WEIGHTS:
        weights = np.zeros((n, n))
        for i, row in enumerate(WEIGHTS[n]):
            weights[i, : i + 1] = row
        sampler = Tabulated(wide, jnp.asarray(weights, jnp.result_type(float)))
    return sampler, WidenedDenoiser(denoise, process, width), recommended_times(process, n)
