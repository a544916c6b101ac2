"""Guidance by any differentiable loss on x0.

Bansal et al. 2023, "Universal Guidance for Diffusion Models", https://arxiv.org/abs/2302.07121, algorithm 1. With
x0(x) the denoiser's prediction at x and l a loss on it, the forward guidance is

    eps' = eps + s sigma grad_x l(x0(x)),                                                            (1)

the gradient going through the denoiser (their s(t) = s sqrt(1 - alpha_t), where their alpha_t is our alpha^2 and the
root our sigma). As score = -eps/sigma, it is

    score' = score - s grad_x l(x0(x)),                                                              (2)

so s = 1 is what the density p_t(x) exp(-l(x0(x))) has. In x0, by equation (8) of `jaxdiff.prediction`, it is a move by

    D = -s (sigma^2/alpha) grad_x l(x0(x)),                                                          (3)

which is taken as 0 where alpha = 0: there x0(x) does not depend on x. The backward guidance then descends on the loss
itself, m steps of a rate r that do not pass the denoiser,

    D <- D - r grad l(x0 + D),       eps' = eps - (alpha/sigma) D,                                   (4)

from the x0 that (3) gave, as in the authors' code (with plain gradient steps for its Adam). The paper's recurrence in
each step is a wrapper of the sampler, `jaxdiff.sampling.Recurrent`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guidance, Nulls
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import as_tree, field, record

Loss = Callable[[Array, Cond | None], Array]
"""``loss(x0, cond) -> (B,)``: one number a sample, of x0 ``(B, ...)`` as a network sees it, and of its condition."""
Rows = Callable[[Any], Any]
"""Takes the rows of some samples of an array ``(n, ...)``: see `jaxdiff.plan.rows_of`."""


@record
class Universal(Guidance):
    """Guidance by a loss on x0: forward, equation (1), then backward, equation (4).

    It guides what stands before it in the list, so it belongs behind cfg. Forward guidance costs a gradient through the
    denoiser, about two more evaluations; backward guidance none.

    Args:
      loss: ``(x0, cond) -> (B,)``: a function, which is static, or a `jaxdiff.record` whose arrays are data. A record
        with one entry a sample has a method ``rows(cut)``, as `SquaredError` has.
      scale: s, ``()`` or one a sample ``(B,)``; data. 1 adds -l to the log density; 0 is no forward guidance.
      backward_steps: m, 0 or more; static. 0 is no backward guidance.
      backward_rate: r, above 0; data. Steps above 2/(largest curvature of the loss) diverge.

    Raises:
      ValueError: a loss that is no function, a negative number of steps, a rate that is not positive.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> towards = Universal(SquaredError(jnp.ones((1, 2)), 0.1))
    >>> exact = GaussianDenoiser(VP(), 0.0, 1.0)
    >>> guided = towards(exact, exact, VP(), {})
    >>> bool((guided(jnp.zeros((1, 2)), 0.5).x0 > exact(jnp.zeros((1, 2)), 0.5).x0).all())
    True
    """

    loss: Any
    scale: ArrayLike = 1.0
    backward_steps: int = field(default=0, pytree_node=False)
    backward_rate: ArrayLike = 0.1

    def __post_init__(self) -> None:
        if not callable(self.loss) or isinstance(self.loss, type):
            raise ValueError(f"a loss is a function (x0, cond) -> one number a sample, got {self.loss!r}")
        steps = self.backward_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"backward_steps is to be a whole number, 0 (none) or more, got {steps!r}")
        refuse_unless(lambda rate: rate > 0, "backward_rate is to be positive", backward_rate=self.backward_rate)
        object.__setattr__(self, "loss", as_tree(self.loss))

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return ByLoss(denoise, process, self.loss, self.scale, self.backward_steps, self.backward_rate)

    def rows(self, cut: Rows) -> Universal:
        """The same for some of the samples."""
        return dataclasses.replace(self, loss=rows_of_function(self.loss, cut), scale=cut_each(self.scale, cut))


def cut_each(number: ArrayLike, cut: Rows) -> ArrayLike:
    """One number for all as it is; the rows of one a sample."""
    return cut(number) if jnp.ndim(number) else number


def rows_of_function(function: Any, cut: Rows) -> Any:
    """A function of samples for some of them: by its own method ``rows``; without one it is the same for all."""
    return function.rows(cut) if hasattr(function, "rows") else function


@record
class ByLoss:
    """The denoiser of equations (1) and (4).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      loss, scale, backward_steps, backward_rate: see `Universal`.
    """

    denoise: Denoiser
    process: Process
    loss: Any
    scale: ArrayLike = 1.0
    backward_steps: int = field(default=0, pytree_node=False)
    backward_rate: ArrayLike = 0.1

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""

        def through(x: Array) -> tuple[Array, tuple[Prediction, Memory]]:
            found, after = recall(self.denoise, x, t, cond, memory)
            return self._total(found.x0, cond), (found, after)

        (_, (found, after)), gradient = jax.value_and_grad(through, has_aux=True)(x)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        reach = expand(jnp.where(alpha > 0, jnp.square(sigma) / jnp.where(alpha > 0, alpha, 1.0), 0.0), x)
        by = -expand(jnp.asarray(self.scale, x.dtype), x) * reach * gradient  # (3)
        found = moved(self.process, t, found, by)
        if self.backward_steps == 0:
            return found, after

        def descend(_: ArrayLike, by: Array) -> Array:
            return by - self.backward_rate * jax.grad(self._total)(found.x0 + by, cond)  # (4)

        by = jax.lax.fori_loop(0, self.backward_steps, descend, jnp.zeros_like(x))
        return moved(self.process, t, found, by), after

    def _total(self, x0: Array, cond: Cond | None) -> Array:
        return each_sample(self.loss(x0, cond), x0, "a loss").sum()


def each_sample(value: Array, x0: Array, what: str) -> Array:
    """What a function of samples gave.

    Raises:
      ValueError: not one number a sample.
    """
    if jnp.shape(value) != x0.shape[:1]:
        raise ValueError(f"{what} gives one number a sample, {x0.shape[:1]}, got shape {jnp.shape(value)}")
    return value


@record
class SquaredError:
    """A loss: |x0 - target|^2/(2 std^2), so that scale 1 is a Gaussian likelihood's.

    Args:
      target: ``(B, ...)``, or ``(1, ...)`` for all samples; data.
      std: above 0; data.

    Raises:
      ValueError: a std that is not positive.
    """

    target: Array
    std: ArrayLike = 1.0

    def __post_init__(self) -> None:
        refuse_unless(lambda std: std > 0, "std is to be positive", std=self.std)

    def __call__(self, x0: Array, cond: Cond | None = None) -> Array:
        if self.target.shape[0] not in (1, len(x0)) or self.target.shape[1:] != x0.shape[1:]:
            raise ValueError(
                f"a target is {x0.shape}, or the same for all {(1, *x0.shape[1:])}, got {self.target.shape}"
            )
        return sum_features(jnp.square((x0 - self.target) / self.std)) / 2

    def rows(self, cut: Rows) -> SquaredError:
        """The same for some of the samples."""
        return self if self.target.shape[0] == 1 else dataclasses.replace(self, target=cut(self.target))


@record
class OnPixels:
    """A loss on x0 of a loss on pixels: what `on_pixels` gives.

    Args:
      codec: whose method ``pixels`` is differentiable; its weights are data.
      loss: ``(pixels, cond) -> (B,)``.
    """

    codec: Any
    loss: Any

    def __call__(self, x0: Array, cond: Cond | None = None) -> Array:
        value: Array = self.loss(self.codec.pixels(x0), cond)
        return value

    def rows(self, cut: Rows) -> OnPixels:
        """The same for some of the samples."""
        return dataclasses.replace(self, loss=rows_of_function(self.loss, cut))


def on_pixels(model: Any, loss: Any) -> Any:
    """A loss on a model's pixels as one on its x0.

    Of a model in latents the gradient passes the decoder. Of others x0 is the picture already, and the loss is as it
    was.

    Args:
      model: a `jaxdiff.Model`, or its codec.
      loss: ``(pixels, cond) -> (B,)`` of pixels ``(B, H, W, C)``, in [-1, 1] where they are a picture's.

    >>> from jaxdiff.codecs import Images
    >>> dark = on_pixels(Images((2, 2, 1)), lambda pixels, cond: pixels.mean(axis=(1, 2, 3)))
    >>> dark(jnp.zeros((3, 2, 2, 1)), None).shape
    (3,)
    """
    codec = getattr(model, "codec", model)
    return OnPixels(codec, as_tree(loss)) if hasattr(codec, "pixels") else as_tree(loss)
