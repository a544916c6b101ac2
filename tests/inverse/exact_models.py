"""Models whose prior is known in closed form, and what Gaussian conditioning says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxdiff as jd
from jaxdiff.codecs import Images, Points
from jaxdiff.data import open_digits
from jaxdiff.guidance import apply
from jaxdiff.inverse import Gaussian, Problem
from jaxdiff.inverse.operators import Operator, Separable
from jaxdiff.methods import parse_sampler
from jaxdiff.methods.inverse import parse_method
from jaxdiff.model import Model
from jaxdiff.parameterization import ScaledTime
from jaxdiff.spec import Specs

PROCESSES = {"vp": jd.VP(), "flow": jd.Flow(), "ve": jd.VE()}
MEAN, VARIANCE = 0.3, 0.49
ROWS = np.array([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.2, 0.0]])


@dataclass(frozen=True)
class ExactNet:
    """A network whose parameters are an exact denoiser, and whose output is its x0."""

    @property
    def cond(self) -> Specs:
        return {}

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        x0: jax.Array = params(x, t).x0
        return x0


def model_of(exact: Any, shape: tuple[int, ...]) -> Model:
    """A model of an exact denoiser on data of a shape."""
    codec: Any = Images(shape) if len(shape) == 3 else Points(shape)
    denoise = jd.NetworkDenoiser(ExactNet(), exact, exact.process, jd.X0(time=ScaledTime(1.0)))
    return Model(denoise, codec)


def digits(n: int = 60) -> jax.Array:
    """Some digits, 8x8, on [-1, 1]."""
    return jnp.asarray(open_digits().take(np.arange(n))["x"]) / 127.5 - 1.0


def separable(rows: NDArray[Any] = ROWS) -> Separable:
    """x -> rows x on data (4, 1, 1), with its singular values."""
    return Separable.of((rows.shape[1], 1, 1), rows, np.ones((1, 1)))


def problem_of(operator: Operator, y: Any, std: float, n: int) -> Problem:
    """The same measurement for n samples."""
    one = jnp.asarray(y, jnp.float32).reshape(1, *operator.measured)
    return Problem(operator, jnp.repeat(one, n, axis=0), Gaussian(std))


def posterior(rows: NDArray[Any], y: Any, std: float, mean: Any, covariance: NDArray[Any]) -> Any:
    """Mean and covariance of x0 given y = rows x0 + std n, for x0 ~ N(mean, covariance)."""
    gain = covariance @ rows.T @ np.linalg.inv(rows @ covariance @ rows.T + std**2 * np.eye(len(rows)))
    return mean + gain @ (y - rows @ mean), covariance - gain @ rows @ covariance


def drawn(method: Any, problem: Problem, exact: Any, ts: Any, *, sampler: Any = None, key: int = 0) -> Any:
    """Samples of a method, one for each measurement of the problem."""
    how, process = parse_method(method), exact.process
    elements, around = how.of(problem, process, parse_sampler(sampler or how.usual, process))
    guided = apply(elements, exact, process, {})
    keys = jd.sample_keys(jax.random.key(key), 0, len(problem.y))
    x = process.prior_sample(keys, problem.operator.shape, ts[0])
    run = jax.jit(lambda sampler, denoise, keys, x, ts: jd.sample(sampler, denoise, keys, x, ts))
    return np.asarray(run(around, guided, keys, x, ts), np.float64)


def step_of(method: Any, problem: Problem, exact: Any, x: Any, t: float, s: float, *, sampler: Any = "ddim") -> Any:
    """One step of a method's sampler from x at t to s, with its elements applied."""
    how, process = parse_method(method), exact.process
    elements, around = how.of(problem, process, parse_sampler(sampler, process))
    guided = apply(elements, exact, process, {})
    noise = jd.step_noise(jd.sample_keys(jax.random.key(1), 0, len(x)), x)
    return around.step(guided, noise, around.init(x), x, jnp.asarray(t), jnp.asarray(s))[0]
