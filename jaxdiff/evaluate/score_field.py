"""Scores of points in the plane, learned beside true: pictures and measures of a run whose data are a mixture.

For a run on ``points:NAME`` the true score of p_t is a formula, and what training minimises can be had itself. With s*
the true score, means over x_t ~ p_t and over times t spread evenly:

    fisher            E[sigma^2 |s - s*|^2]/D                                                        (1)
    fisher_relative   E[sigma^2 |s - s*|^2] / E[sigma^2 |s*|^2]                                      (2)
    hessian_relative  E[sigma^4 |ds/dx - H*|^2] / E[sigma^4 |H*|^2],  H* the Hessian of log p_t      (3)
    fokker_planck     E[|tau sigma r|^2]/D of `jaxdiff.score_matching.FokkerPlanck`                  (4)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.codecs.points import FINER, PAPER, draw_dots, pixels_of, reduced, scatter
from jaxdiff.config import ConfigError
from jaxdiff.data import point_mixture
from jaxdiff.denoiser import Denoiser, NetworkDenoiser
from jaxdiff.exact import MixtureDenoiser
from jaxdiff.process import Process
from jaxdiff.runs.run import Run
from jaxdiff.score_matching import LearnedHessian, score_fokker_planck
from jaxdiff.score_matching.base import all_directions

INK = (30, 30, 30)


@functools.partial(jax.jit, static_argnames=("times", "points"))
def measure_score(
    denoise: Denoiser, exact: MixtureDenoiser, key: Array, *, times: int = 32, points: int = 512
) -> dict[str, Array]:
    """Equations (1) to (4).

    Args:
      denoise: the learned denoiser, of the same process as ``exact``.
      exact: the mixture.
      key: of the points.
      times: number of times, the middles of equal parts of [min_time, 1].
      points: drawn at each of them.
    """
    process = exact.process
    x, t = _noisy_points(exact, key, times, points)
    (s, jacobian), (s_true, hessian) = _derivatives(denoise, process, x, t), _derivatives(exact, process, x, t)
    sigma2, size = jnp.square(process.sigma(t)), _square_size
    fisher = (sigma2 * size(s - s_true)).mean()
    residual = score_fokker_planck(process, lambda x, t: denoise(x, t).score(process, t), x, t)
    unit = sigma2 * jnp.sqrt(sigma2) / process.diffusion_squared(t)
    return {
        "fisher": fisher / x.shape[1],
        "fisher_relative": fisher / (sigma2 * size(s_true)).mean(),
        "hessian_relative": (sigma2**2 * size(jacobian - hessian)).mean() / (sigma2**2 * size(hessian)).mean(),
        "fokker_planck": size(expand(unit, x) * residual).mean() / x.shape[1],
    }


@functools.partial(jax.jit, static_argnames=("times", "points"))
def measure_hessian(
    denoise: NetworkDenoiser, exact: MixtureDenoiser, key: Array, *, times: int = 32, points: int = 512
) -> Array:
    """Equation (3) for the Hessian among a network's outputs.

    Args:
      denoise: of a `LearnedHessian`.
      exact, key, times, points: as in `measure_score`.

    Raises:
      TypeError: the network does not return one.
    """
    process, head = exact.process, denoise.parameterization
    if not isinstance(head, LearnedHessian):
        raise TypeError(f"a network returns a Hessian by LearnedHessian, got {type(head).__name__}")
    x, t = _noisy_points(exact, key, times, points)
    output = denoise.net.apply(denoise.params, *head.condition(process, x, t)).astype(x.dtype)
    hessian, weight = _derivatives(exact, process, x, t)[1], process.sigma(t) ** 4
    error = _square_size(head.hessian(process, t, output) - hessian)
    return (weight * error).mean() / (weight * _square_size(hessian)).mean()


def _noisy_points(exact: MixtureDenoiser, key: Array, times: int, points: int) -> tuple[Array, Array]:
    """x_t ``(B, 2)`` and t ``(B,)``."""
    start = exact.process.min_time()
    t = start + (1.0 - start) * jnp.repeat((jnp.arange(times) + 0.5) / times, points)
    data_key, noise_key = jax.random.split(key)
    x0 = exact.sample_data(data_key, times * points)
    return exact.process.perturb(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), t), t


def _derivatives(denoise: Denoiser, process: Process, x: Array, t: Array) -> tuple[Array, Array]:
    """The score ``(B, D)`` and its Jacobian ``(B, D, D)``."""
    s, push = jax.linearize(lambda x: denoise(x, t).score(process, t), x)
    return s, jnp.moveaxis(jax.vmap(push)(all_directions(x)), 0, 2)


def _square_size(error: Array) -> Array:
    return sum_features(jnp.square(error))


@dataclasses.dataclass(frozen=True)
class ScoreField:
    """The picture and the measures of a run on points: for `Config.picture`.

    Args:
      levels: noise levels sigma/alpha to draw, a column each; those out of the process's range are its ends.
      size: side of a panel, pixels.
      arrows: a side of a panel.
      points: samples drawn in each panel.
    """

    levels: tuple[float, ...] = (0.05, 0.2, 0.6, 2.0)
    size: int = 220
    arrows: int = 15
    points: int = 400

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) <= 0 or min(self.size // 8, self.arrows, self.points) < 1:
            raise ValueError(
                f"levels are positive, size at least 8, arrows and points at least 1; got {self.levels}, {self.size}, "
                f"{self.arrows}, {self.points}"
            )

    def exact(self, run: Run) -> MixtureDenoiser:
        """The true denoiser of a run's data.

        Raises:
          ConfigError: the run's data are not points of a known mixture.
        """
        kind, _, name = run.config.data.name.partition(":")
        if kind != "points":
            raise ConfigError(f"picture: ScoreField is of data points:NAME, this run has {run.config.data.name!r}")
        mixture = point_mixture(name)
        return MixtureDenoiser(
            run.process,
            jnp.asarray(mixture.means, jnp.float32),
            mixture.std,
            jnp.log(jnp.asarray(mixture.weights, jnp.float32)),
        )

    def measure(self, run: Run) -> dict[str, float]:
        """Equations (1) to (4), and for an objective that learns the Hessian as outputs (`SecondOrder`) the relative
        error of these, as ``hessian_head_relative``."""
        exact, key = self.exact(run), jax.random.key(run.config.seed)
        measured = measure_score(run.denoise, exact, key)
        if run.config.loss.objective == "second_order":
            measured["hessian_head_relative"] = measure_hessian(run.denoise, exact, key)
        return {name: float(value) for name, value in measured.items()}

    def __call__(self, run: Run) -> NDArray[np.uint8]:
        """A column a noise level: the learned score, the true one, their difference; beside them samples and data.

        Colour is direction, and its strength sigma |s| (white is 0); an arrow is sigma s. Dots are draws of p_t. Where
        p_t is less than exp(-8) of its largest, where nothing can be learned, colours are faint.
        """
        exact = self.exact(run)
        columns = [self._column(run, exact, level, n) for n, level in enumerate(self.levels)]
        drawn = run.sample(run.config.seed, self.points, decode=False)
        data = exact.sample_data(jax.random.key(run.config.seed), self.points)
        panels = [scatter(points, self.size) for points in (drawn, np.asarray(data))]
        measured = self.measure(run)
        lines = [f"{run.config.loss.objective}, step {run.step}", *(f"{k} {v:.2g}" for k, v in measured.items())]
        last = [*map(_titled, panels, ("samples", "data")), _titled(_text(lines, self.size), "")]
        return np.concatenate([np.concatenate(column, axis=0) for column in (*columns, last)], axis=1)

    def _column(self, run: Run, exact: MixtureDenoiser, level: float, n: int) -> list[NDArray[np.uint8]]:
        process = run.process
        t = jnp.clip(process.time_of_log_snr(-2.0 * np.log(level)), process.min_time(), 1.0)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        half = 1.15 * alpha + 1.5 * sigma
        fine, coarse = (_mesh(half, side) for side in (self.size, self.arrows))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), n))
        x0 = exact.sample_data(keys[0], self.points)
        dots = np.asarray(process.perturb(x0, jax.random.normal(keys[1], x0.shape), t)) / half
        log_p = np.asarray(exact.log_density(fine, t))
        shade = np.clip(1.0 + (log_p - log_p.max() + 8.0) / 4.0, 0.25, 1.0)

        def fields(x: Array) -> tuple[NDArray[Any], ...]:
            learned, true = (np.asarray(sigma * _score(d, x, t)) for d in (run.denoise, exact))
            return learned, true, learned - true

        titles = (f"learned, sigma/alpha {sigma / alpha:.2g}", "true", "difference")
        return [
            _titled(_field(inside, shade, arrows, dots, self.size), title)
            for inside, arrows, title in zip(fields(fine), fields(coarse), titles, strict=True)
        ]


@jax.jit
def _score(denoise: Any, x: Array, t: Array) -> Array:
    return denoise(x, t).score(denoise.process, t)


# --- Drawing


def _mesh(half: float, side: int) -> Array:
    """Centres of side x side squares of [-half, half]^2, from the top row down: ``(side^2, 2)``."""
    place = half * ((np.arange(side) + 0.5) * 2 / side - 1)
    return jnp.asarray(np.stack(np.meshgrid(place, -place), axis=-1).reshape(-1, 2), jnp.float32)


def _field(
    inside: NDArray[Any], shade: NDArray[Any], arrows: NDArray[Any], dots: NDArray[Any], size: int
) -> NDArray[np.uint8]:
    hue = np.arctan2(inside[:, 1], inside[:, 0])
    strength = 0.75 * shade * (1.0 - np.exp(-0.8 * np.linalg.norm(inside, axis=1)))
    wheel = 0.5 + 0.5 * np.cos(hue[:, None] - 2 * np.pi * np.arange(3)[None] / 3)
    colours = 1.0 - strength[:, None] * (1.0 - wheel)
    pixels = np.rint(255 * colours).astype(np.uint8).reshape(size, size, 3)
    picture = Image.fromarray(pixels).resize((FINER * size, FINER * size), Image.Resampling.BICUBIC)
    draw_dots(picture, dots, (120, 120, 120), FINER * size / 300)
    side = round(len(arrows) ** 0.5)
    centres = np.asarray(_mesh(1.0, side))
    norms = np.linalg.norm(arrows, axis=1, keepdims=True)
    ends = centres + arrows / np.maximum(norms, 1e-6) * 1.9 / side * (1.0 - np.exp(-0.8 * norms))
    draw = ImageDraw.Draw(picture)
    for start, end in zip(pixels_of(centres, picture), pixels_of(ends, picture), strict=True):
        along = end - start
        if np.isfinite(along).all() and np.hypot(*along) > 2:
            across = np.array([-along[1], along[0]])
            draw.line([*start, *(start + 0.8 * along)], INK, FINER)
            head = [end, start + 0.6 * along + 0.22 * across, start + 0.6 * along - 0.22 * across]
            draw.polygon([tuple(corner) for corner in head], INK)
    return reduced(picture, size)


def _text(lines: list[str], size: int) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (size, size), PAPER)
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((4, 4 + 18 * row), line, INK, ImageFont.load_default(13))
    return np.asarray(picture)


def _titled(panel: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (panel.shape[1] + 6, panel.shape[0] + 22), PAPER)
    picture.paste(Image.fromarray(panel), (3, 19))
    ImageDraw.Draw(picture).text((5, 2), title, INK, ImageFont.load_default(13))
    return np.asarray(picture)
