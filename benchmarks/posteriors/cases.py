"""Inverse problems whose posterior is known: priors, operators, and the draws of each method.

- A mixture of six Gaussians in d = 8, 16 or 64 numbers, seen as a small picture.
- The smoothed empirical distribution of the digits (8x8) and of 2,000 CIFAR-10 images (32x32 in colour).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff import VP, EmpiricalDenoiser, MixtureDenoiser, log_snr_times, sample, sample_keys
from jaxdiff.data import open_cifar10, open_digits
from jaxdiff.exact import MixturePosterior
from jaxdiff.guidance import apply
from jaxdiff.inverse import Gaussian, Known, Problem, measure
from jaxdiff.inverse.operators import Mask, Operator
from jaxdiff.methods import parse_sampler
from jaxdiff.methods.inverse import parse_method, parse_operator
from jaxdiff.sampling import ParticleSampler, particle_keys, sample_particles

PROCESS = VP()
EXACT, REPLACEMENT = "exact sampler", "replacement"
METHODS = (
    REPLACEMENT, "ddnm", "ddnm_plus", "ddrm", "pigdm", "dps", "mcg", "reconstruction_guidance", "repaint", "ilvr",
    "diffpir", "daps", "tds",
)  # fmt: skip
SHAPES = {8: (2, 4, 1), 16: (4, 4, 1), 64: (8, 8, 1)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A prior and a way to measure it.

    Args:
      name: of the prior.
      prior: the exact denoiser of its data.
      shape: of one x0.
      operator: the operator's name with its numbers.
      std: the noise's deviation.
    """

    name: str
    prior: Any
    shape: tuple[int, ...]
    operator: str
    std: float

    @property
    def title(self) -> str:
        return f"{self.name}, {self.operator}, noise {self.std:g}"

    def measured(self, key: Array) -> tuple[Operator, Array, MixturePosterior]:
        """The operator, one measurement ``(1, ...)`` of a draw of the prior, and its posterior."""
        operator = parse_operator(self.operator, self.shape)
        x0 = self.prior.sample_data(key, 1)
        y = measure(operator, x0, self.std, sample_keys(key, 0, 1))
        matrix = matrix_of(operator)
        return operator, y, MixturePosterior.of(self.prior, matrix, np.asarray(y).reshape(-1), self.std)


def matrix_of(operator: Operator, rows: int = 512) -> NDArray[np.float64]:
    """A ``(M, D)`` of a linear operator, from what it makes of unit vectors, so many at a time."""
    size = int(np.prod(operator.shape))
    parts = []
    for first in range(0, size, rows):
        units = jnp.eye(min(rows, size - first), size, first).reshape(-1, *operator.shape)
        parts.append(np.asarray(operator(units), np.float64).reshape(len(units), -1))
    return np.concatenate(parts).T


def mixture(size: int, seed: int = 0) -> MixtureDenoiser:
    """Six Gaussians of unequal weights and widths, their means apart by a few of these."""
    draw = np.random.default_rng(seed)
    means = 0.8 * draw.standard_normal((6, *SHAPES[size]))
    stds, log_weights = draw.uniform(0.2, 0.4, 6), np.log(draw.uniform(0.5, 1.5, 6))
    return MixtureDenoiser(PROCESS, *(jnp.asarray(part, jnp.float32) for part in (means, stds, log_weights)))


def digits(std: float = 0.15) -> EmpiricalDenoiser:
    source = open_digits()
    data = jnp.asarray(source.take(np.arange(len(source)))["x"], jnp.float32) / 127.5 - 1
    return EmpiricalDenoiser(PROCESS, data, std)


def cifar10(folder: Path, count: int = 2000, std: float = 0.15) -> EmpiricalDenoiser:
    """The first images of a folder with CIFAR-10's train.parquet."""
    data = open_cifar10(folder).take(np.arange(count))["x"]
    return EmpiricalDenoiser(PROCESS, jnp.asarray(data, jnp.float32) / 127.5 - 1, std, chunk=500)


def cases(quick: bool, images: Path | None = None) -> list[Case]:
    """All of them, or a few."""
    if quick:
        small = mixture(8)
        return [
            Case("mixture, d = 8", small, SHAPES[8], what, std)
            for what in ("mask:0.5", "sensing:0.5")
            for std in (0.05, 0.5)
        ]
    found = []
    for size in SHAPES:
        prior = mixture(size)
        for what in ("mask:0.5", "box:2", "blur:1", "sensing:0.25"):
            found += [Case(f"mixture, d = {size}", prior, SHAPES[size], what, std) for std in (0.02, 0.1, 0.5)]
    seen = digits()
    for what in ("mask:0.7", "box:4", "blur:2", "sensing:0.1"):
        found += [Case("digits", seen, (8, 8, 1), what, std) for std in (0.1, 0.5)]
    if images is not None:
        pictures = cifar10(images)
        found += [
            Case("CIFAR-10", pictures, (32, 32, 3), what, 0.5) for what in ("mask:0.98", "box:16", "sensing:0.005")
        ]
    return found


# --- draws


def draws(
    method: str, case: Case, operator: Operator, y: Array, n: int, steps: int, seed: int, particles: int
) -> tuple[Array, Array]:
    """Draws of p(x0 | y) by a method, and their weights: ``(n, ...)`` and ``(n,)``.

    Raises:
      ValueError: a problem that the method cannot take.
    """
    name = f"tds:{particles}" if method == "tds" else method
    groups = n // particles if method == "tds" else n
    elements, sampler = _of(name, case, operator, jnp.repeat(y, n, axis=0))
    ts, keys = log_snr_times(PROCESS, steps), sample_keys(jax.random.key(seed), 0, groups)
    if isinstance(sampler, ParticleSampler):
        keys = particle_keys(keys, particles)
        return _weighted(sampler, elements, case.prior, keys, ts, case.shape)
    return _plain(sampler, elements, case.prior, keys, ts, case.shape), jnp.full(n, 1 / n)


def evaluations(method: str, case: Case, operator: Operator, y: Array, steps: int) -> tuple[int, int]:
    """The denoiser's evaluations for one draw (of TDS, for one particle), and how many of them are differentiated:
    counted as they are made."""
    rows = 2 if method == "tds" else 1
    elements, sampler = _of(f"tds:{rows}" if method == "tds" else method, case, operator, jnp.repeat(y, rows, axis=0))
    counts = {"calls": 0, "derived": 0}

    def tick(name: str) -> None:
        counts[name] += 1

    @jax.custom_vjp
    def marked(x: Array) -> Array:
        return x

    def forward(x: Array) -> tuple[Array, None]:
        jax.debug.callback(functools.partial(tick, "derived"))
        return x, None

    marked.defvjp(forward, lambda _, gradient: (gradient,))

    def counted(x: Array, t: Any, cond: Any = None) -> Any:
        jax.debug.callback(functools.partial(tick, "calls"))
        return case.prior(marked(x), t, cond)

    keys, ts = sample_keys(jax.random.key(0), 0, 1), log_snr_times(PROCESS, steps)
    keys = particle_keys(keys, rows) if rows > 1 else keys
    x = PROCESS.prior_sample(keys, case.shape, ts[0])
    jax.block_until_ready(jax.jit(lambda x: sample(sampler, apply(elements, counted, PROCESS, {}), keys, x, ts))(x))
    jax.effects_barrier()
    return counts["calls"], counts["derived"]


def _of(name: str, case: Case, operator: Operator, y: Array) -> tuple[Sequence[Any], Any]:
    """Elements and sampler of a method, of which replacement is one for masks."""
    if name == REPLACEMENT:
        if not isinstance(operator, Mask):
            raise ValueError("replacement is of masks")
        return (Known(y, 1 - operator.known),), parse_sampler("ddpm", PROCESS)
    method = parse_method(name)
    return method.of(Problem(operator, y, Gaussian(case.std)), PROCESS, parse_sampler(method.usual, PROCESS))


@jax.jit
def _denoised(sampler: Any, elements: Any, prior: Any, keys: Array, ts: Array, x: Array) -> Array:
    return sample(sampler, apply(elements, prior, PROCESS, {}), keys, x, ts)


def _plain(sampler: Any, elements: Any, prior: Any, keys: Array, ts: Array, shape: tuple[int, ...]) -> Array:
    return _denoised(sampler, tuple(elements), prior, keys, ts, PROCESS.prior_sample(keys, shape, ts[0]))


@jax.jit
def _particles(sampler: Any, elements: Any, prior: Any, keys: Array, ts: Array, x: Array) -> Any:
    return sample_particles(sampler, apply(elements, prior, PROCESS, {}), keys, x, ts)[1]


def _weighted(
    sampler: Any, elements: Any, prior: Any, keys: Array, ts: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    found = _particles(sampler, tuple(elements), prior, keys, ts, PROCESS.prior_sample(keys, shape, ts[0]))
    weights = found.weights / len(found.weights)
    return found.x0.reshape(-1, *shape), weights.reshape(-1)
