"""The problems of `benchmarks/samplers_vs_diffusers.py`: exact denoisers, start noise and reference solutions.

Three kinds, each in a version to decide on ("dev") and one to judge by ("test"), of other mixtures, images and noise:

- mixture: 6 Gaussians in the plane, means from N(0, I), standard deviations from 0.1 to 0.3, uneven weights;
- digits: the empirical distribution of 899 (dev) or 898 (test) of scikit-learn's 8x8 digits, smoothed by 0.15;
- cifar10: that of 5,000 CIFAR-10 training images, from the first (dev) or the 20,001st (test), smoothed by 0.15.

In y = x/alpha and rho = sigma/alpha the probability flow is the same for every process,

    dy/d rho = eps(y, rho),    y(80) = 80 z,                                                         (1)

and the reference is its solution at rho = 0 in float64 by DOP853 with a relative tolerance of 1e-9, in the variable
asinh(rho/0.1), which is smooth down to 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from jaxdiff import KarrasVE, MixtureDenoiser, Process
from jaxdiff.codecs import to_model_range
from jaxdiff.data import batches, open_cifar10, open_digits
from jaxdiff.exact import EmpiricalDenoiser

RHO_MAX, WIDTH = 80.0, 0.15
KINDS = ("mixture", "digits", "cifar10")
SAMPLES = {"mixture": 256, "digits": 64, "cifar10": 32}


def scaled_space() -> KarrasVE:
    """The process whose x is y and whose sigma is rho = 80 t."""
    return KarrasVE(sigma_min=0.0, sigma_max=RHO_MAX, rho=1.0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """An exact denoiser, and where it starts from.

    Args:
      name: of the table.
      build: the denoiser on a process, its numbers of a given dtype.
      noise: z ``(B, ...)``.
      reference: the solution of equation (1) at rho = 0.
    """

    name: str
    build: Callable[[Process, Any], Any]
    noise: NDArray[np.float64]
    reference: NDArray[np.float64]

    def error(self, x: NDArray[Any]) -> float:
        """Mean over samples of the RMS difference to the reference."""
        difference = np.asarray(x, np.float64).reshape(self.reference.shape) - self.reference
        return float(np.sqrt(np.square(difference).reshape(len(difference), -1).mean(axis=1)).mean())

    def denoise(self) -> Callable[[NDArray[np.float32], float], tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """``(y, rho) -> (x0, eps)`` in float32, y as rows: the same denoiser for samplers outside JAX."""
        exact, shape = self.build(scaled_space(), jnp.float32), self.noise.shape
        call = jax.jit(lambda exact, y, t: exact(y, t)[:2])

        def rows(y: NDArray[np.float32], rho: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            x0, eps = call(exact, y.reshape(shape), np.float32(rho / RHO_MAX))
            return np.asarray(x0).reshape(y.shape), np.asarray(eps).reshape(y.shape)

        return rows


def _solve(build: Callable[[Process, Any], Any], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    bend = 0.1
    with jax.enable_x64(True):
        exact = build(scaled_space(), jnp.float64)
        call = jax.jit(lambda exact, y, t: exact(y, t).eps)

        def slope(place: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
            eps = call(exact, y.reshape(noise.shape), bend * np.sinh(place) / RHO_MAX)
            return np.asarray(eps).ravel() * bend * np.cosh(place)

        begin = np.arcsinh(RHO_MAX / bend)
        solved = solve_ivp(slope, (begin, 0.0), RHO_MAX * noise.ravel(), method="DOP853", rtol=1e-9, atol=1e-10)
    if not solved.success:
        raise RuntimeError(f"the reference solver stopped: {solved.message}")
    return np.asarray(solved.y[:, -1]).reshape(noise.shape)


def images(source: Any, begin: int, end: int) -> NDArray[np.float64]:
    return np.asarray(to_model_range(next(batches(source, end))["x"][begin:]), np.float64)


def mixture(seed: int) -> Callable[[Process, Any], MixtureDenoiser]:
    """Six Gaussians drawn by the seed."""
    draw = np.random.default_rng(seed)
    means, stds = draw.standard_normal((6, 2)), np.exp(draw.uniform(np.log(0.1), np.log(0.3), 6))
    log_weights = np.log(draw.dirichlet(np.full(6, 5.0)))

    def build(process: Process, dtype: Any) -> MixtureDenoiser:
        parts: list[Array] = [jnp.asarray(part, dtype) for part in (means, stds, log_weights)]
        return MixtureDenoiser(process, *parts)

    return build


def empirical(images: NDArray[np.float64]) -> Callable[[Process, Any], EmpiricalDenoiser]:
    """The images smoothed by `WIDTH`."""
    return lambda process, dtype: EmpiricalDenoiser(process, jnp.asarray(images, dtype), WIDTH, chunk=5000)


def load(
    kind: str,
    test: bool,
    data: str | Path | None,
    cache: Path,
    variant: int = 0,
    screen: bool = False,
    samples: int | None = None,
    unseen: int = 4000,
) -> Problem:
    """A problem with its reference, which is kept in ``cache``.

    Args:
      kind: one of `KINDS`.
      test: the version to judge by.
      data: the folder of CIFAR-10.
      cache: folder for references.
      variant: another mixture, other noise.
      screen: the first 1,000 images only, 12 samples: to find out what is worth trying on all.
      samples: how many, None for `SAMPLES`.
      unseen: the seed of the version to judge by, one that no choice was made after.
    """
    seed = (unseen if test else 1000) + variant
    shape: tuple[int, ...]
    if kind == "mixture":
        build: Callable[[Process, Any], Any] = mixture(seed)
        shape = (2,)
    elif kind == "digits":
        halves = [images(open_digits(split=split), 0, 1797) for split in ("train", "test")]
        build, shape = empirical(np.concatenate(halves)[int(test) :: 2]), (8, 8, 1)
    else:
        begin, many = 20_000 * test, 1000 if screen else 5000
        build, shape = empirical(images(open_cifar10(data, split="train"), begin, begin + many)), (32, 32, 3)
    count = 12 if screen else samples or SAMPLES[kind]
    noise = np.random.default_rng([seed, KINDS.index(kind)]).standard_normal((count, *shape))
    key = f"{kind} {test} {variant} {noise.shape} DOP853 1e-9 0.1 {WIDTH} {seed}{' of 1000' * screen}"
    return referenced(kind if variant == 0 else f"{kind} {variant}", build, noise, cache, key)


def referenced(
    name: str, build: Callable[[Process, Any], Any], noise: NDArray[np.float64], cache: Path, key: str
) -> Problem:
    """A problem with its reference, from the cache where it holds one by that key."""
    file = cache / f"reference_{key.split()[0]}_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if file.exists():
        reference = np.load(file, allow_pickle=False)
    else:
        reference = _solve(build, noise)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, reference)
    return Problem(name, build, noise, reference)
