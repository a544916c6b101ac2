"""The optimal denoiser of a data set: a softmax over its members.

For data drawn from d_1, ..., d_N with equal chances and smoothed by N(0, s^2 I) (s = 0: the bare set), with
n^2 = alpha^2 s^2 + sigma^2, x_t is a mixture of N Gaussians (Karras et al. 2022, appendix B.3, for s = 0):

    r_k(x)   = softmax_k l_k,    l_k = -|x - alpha d_k|^2/(2 n^2)                                    (1)
    m(x)     = sum_k r_k d_k                                                                         (2)
    E[x_0|x] = m + (alpha s^2/n^2) (x - alpha m),     E[eps|x] = (sigma/n^2) (x - alpha m)           (3)
    ln p_t(x) = ln sum_k exp(l_k) - ln N - (D/2) ln(2 pi n^2).                                       (4)

Memory. The sums run over chunks of the data with a running maximum (an online softmax), so that no array is larger
than a chunk of the data or (B, chunk); |x - alpha d_k|^2 less |x|^2 is -2 alpha x.d_k + alpha^2 |d_k|^2, a matrix
product.

Rounding. That form is inexact by about u |x||d|, u the unit roundoff, and (1) divides it by n^2: in float32 by 2e-3
for CIFAR-10 at n = 0.15, and without limit as n -> 0. So for the `NEAREST` members closest to each x the distances are
taken anew from differences, relative to the closest, c (the remaining members keep theirs, relative to it too):

    l_k - l_c = (alpha/(2 n^2)) (d_k - d_c).(2 x - alpha (d_k + d_c)),                               (5)

whose error is that which rounding x itself makes. Members beyond these hardly count where n is small, and where n is
large the product is accurate.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import flatten
from jaxdiff.denoiser import Cond
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record

NEAREST = 8
"""How many members' distances are taken from differences, equation (5)."""


@record
class EmpiricalDenoiser:
    """Equations (1)-(4): the empirical distribution of a data set, bare or smoothed.

    Args:
      process: the process.
      data: the members ``(N, ...)``, images in [-1, 1] as a rule; any floating-point dtype, computed with in x's.
      std: s, the smoothing's standard deviation, not negative. At 0 sampling ends in members of the set.
      labels: None, or a class a member ``(N,)``. ``cond["label"]`` ``(B,)`` then restricts sample i to the members of
        its class; a label that no member has, such as guidance's null label, stands for the whole set.
      chunk: how many members are held at a time; static. Memory beyond the data is a few times ``(chunk, D)`` and
        ``(B, chunk)`` numbers.

    Jit it as an argument of the jitted function, not closed over: the data are then no constant of the program.

    >>> import numpy as np
    >>> from jaxdiff.data import open_digits
    >>> from jaxdiff.schedule import Flow
    >>> source = open_digits()
    >>> digits = jnp.asarray(source.take(np.arange(100))["x"]) / 127.5 - 1.0
    >>> exact = EmpiricalDenoiser(Flow(), digits)
    >>> x = Flow().perturb(digits[:2], jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), 0.1)
    >>> bool(jnp.allclose(exact(x, 0.1).x0, digits[:2], atol=1e-5))
    True
    """

    process: Process
    data: Array
    std: ArrayLike = 0.0
    labels: Array | None = None
    chunk: int = field(default=2048, pytree_node=False)

    def __post_init__(self) -> None:
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise ValueError(f"chunk is to be a positive number of members, got {self.chunk!r}")
        if len(self.data) < 1 or not jnp.issubdtype(self.data.dtype, jnp.floating):
            raise ValueError(
                f"data are to be at least one member (N, ...) in floating point, got shape {self.data.shape} of "
                f"{self.data.dtype}: bring 8-bit images to [-1, 1] by x / 127.5 - 1"
            )
        if self.labels is not None and self.labels.shape != self.data.shape[:1]:
            raise ValueError(f"one label a member is needed: {self.data.shape[0]}, got shape {self.labels.shape}")

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        flat, alpha, sigma, total = self._parts(x, t)
        mean, _ = self._moments(flat, alpha, total, cond)
        centred = (flat - alpha * mean) / total
        x0 = mean + alpha * jnp.square(jnp.asarray(self.std, x.dtype)) * centred
        return Prediction(x0.reshape(x.shape), (sigma * centred).reshape(x.shape))

    def log_density(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Array:
        """Equation (4), ln p_t(x): ``(B, ...) -> (B,)``; with a label, of its class."""
        flat, alpha, _, total = self._parts(x, t)
        _, log_sum = self._moments(flat, alpha, total, cond)
        asked, count = self._asked(cond), jnp.asarray(self.data.shape[0])
        if asked is not None:
            count = jnp.where(asked[1] == 0, count, asked[1])[:, 0]
        return log_sum - jnp.log(count.astype(x.dtype)) - 0.5 * flat.shape[1] * jnp.log(2 * math.pi * total[:, 0])

    def weights(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Array:
        """Equation (1): each member's share of the prediction, ``(B, N)``, sums 1. The one method whose memory grows
        with B N."""
        flat, alpha, _, total = self._parts(x, t)
        asked = self._asked(cond)
        logits, begin = jax.lax.map(
            lambda start: self._logits(flat, alpha, total, asked, start)[::2], self._starts()
        )  # (chunks, B, C) and (chunks,)
        spread = jnp.full((flat.shape[0], self.data.shape[0]), -jnp.inf, x.dtype)
        index = begin[:, None] + jnp.arange(logits.shape[2], dtype=jnp.int32)[None]
        spread = spread.at[:, index.reshape(-1)].max(flatten(logits.swapaxes(0, 1)))
        coarse, nearest = jax.lax.top_k(spread, min(NEAREST, self.data.shape[0]))
        fine, _ = self._refined(flat, alpha, total, coarse, nearest)
        rows = jnp.arange(flat.shape[0])[:, None]
        return jax.nn.softmax((spread - coarse[:, :1]).at[rows, nearest].set(fine), axis=1)

    def sample_data(self, key: Array, n: int) -> Array:
        """``(n, ...)`` data points: members drawn with replacement, and smoothed."""
        which, noise = jax.random.split(key)
        chosen = self.data[jax.random.randint(which, (n,), 0, self.data.shape[0])]
        return chosen + jnp.asarray(self.std, chosen.dtype) * jax.random.normal(noise, chosen.shape, chosen.dtype)

    def _parts(self, x: Array, t: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """x ``(B, D)``; alpha, sigma and n^2 ``(B, 1)``."""
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"samples of shape {x.shape[1:]} do not fit data of shape {self.data.shape[1:]}")
        flat = flatten(x)
        alpha, sigma = (
            jnp.broadcast_to(part, x.shape[:1])[:, None].astype(x.dtype)
            for part in (self.process.alpha(t), self.process.sigma(t))
        )
        return flat, alpha, sigma, jnp.square(alpha * jnp.asarray(self.std, x.dtype)) + jnp.square(sigma)

    def _members(self) -> Array:
        return flatten(self.data)

    def _at(self, indices: Array, x: Array) -> Array:
        return self._members()[indices].astype(x.dtype)

    def _starts(self) -> Array:
        return jnp.arange(0, self.data.shape[0], min(self.chunk, self.data.shape[0]), dtype=jnp.int32)

    def _asked(self, cond: Cond | None) -> tuple[Array, Array] | None:
        """The label of each sample, and how many members have it, ``(B, 1)``; None where all members count."""
        if self.labels is None or cond is None or "label" not in cond:
            return None
        label = cond["label"][:, None]
        return label, (self.labels[None] == label).sum(axis=1, keepdims=True)

    def _logits(
        self, x: Array, alpha: Array, total: Array, asked: tuple[Array, Array] | None, start: Array
    ) -> tuple[Array, Array, Array]:
        """l_k + |x|^2/(2 n^2) of a chunk ``(B, C)``, by the matrix product; its members ``(C, D)``; the index of the
        first. A chunk at the end reaches back, and the members that it repeats do not count."""
        size = min(self.chunk, self.data.shape[0])
        begin = jnp.minimum(start, self.data.shape[0] - size)
        members = jax.lax.dynamic_slice_in_dim(self._members(), begin, size).astype(x.dtype)
        logits = (
            alpha * _product(x, members.T) - 0.5 * jnp.square(alpha) * jnp.square(members).sum(axis=1)[None]
        ) / total
        counts = (begin + jnp.arange(size, dtype=jnp.int32) >= start)[None]
        if asked is not None and self.labels is not None:
            label, having = asked
            counts &= (having == 0) | (jax.lax.dynamic_slice_in_dim(self.labels, begin, size)[None] == label)
        return jnp.where(counts, logits, -jnp.inf), members, begin

    def _refined(self, x: Array, alpha: Array, total: Array, coarse: Array, nearest: Array) -> tuple[Array, Array]:
        """Equation (5) for the nearest members ``(B, M)``, the closest first: the logits less the first's, and the
        members ``(B, M, D)``. Those that do not count (-inf) remain so."""
        members = self._at(nearest, x)
        first = members[:, :1]
        sums = (2.0 * x)[:, None] - alpha[:, :, None] * (members + first)
        fine = 0.5 * alpha / total * ((members - first) * sums).sum(axis=2)
        return jnp.where(jnp.isneginf(coarse), -jnp.inf, fine), members

    def _moments(self, x: Array, alpha: Array, total: Array, cond: Cond | None) -> tuple[Array, Array]:
        """m(x) ``(B, D)``, equation (2), and ln sum_k exp(l_k) ``(B,)``."""
        m, batch, asked = min(NEAREST, self.data.shape[0]), x.shape[0], self._asked(cond)
        lowest = jnp.finfo(x.dtype).min
        rows = jnp.arange(batch)[:, None]

        def add(carry: tuple[Array, ...], start: Array) -> tuple[tuple[Array, ...], None]:
            # `best` are the greatest logits so far and `nearest` whose they are; `mass` and `weighted` sum
            # exp(l - best_1) over all others. Members change sides by index, never by subtraction: a compiler that
            # computes a logit twice may round it in two ways.
            mass, weighted, best, nearest = carry
            logits, members, begin = self._logits(x, alpha, total, asked, start)
            values, place = jax.lax.top_k(logits, min(m, logits.shape[1]))
            ranked, order = jax.lax.top_k(jnp.concatenate([best, values], axis=1), m + values.shape[1])
            indices = jnp.take_along_axis(jnp.concatenate([nearest, begin + place], axis=1), order, axis=1)
            top, before = jnp.maximum(ranked[:, :1], lowest), jnp.maximum(best[:, :1], lowest)
            kept = jnp.exp(before - top)
            others = jnp.exp(logits.at[rows, place].set(-jnp.inf) - top)
            beaten = jnp.exp(ranked[:, m:] - top)
            mass = kept * mass + others.sum(axis=1, keepdims=True) + beaten.sum(axis=1, keepdims=True)
            weighted = kept * weighted + _product(others, members) + _sum_over(beaten, self._at(indices[:, m:], x))
            return (mass, weighted, ranked[:, :m], indices[:, :m]), None

        begin = (
            jnp.zeros((batch, 1), x.dtype),
            jnp.zeros_like(x),
            jnp.full((batch, m), -jnp.inf, x.dtype),
            jnp.zeros((batch, m), jnp.int32),
        )
        (mass, weighted, coarse, nearest), _ = jax.lax.scan(jax.checkpoint(add), begin, self._starts())
        fine, members = self._refined(x, alpha, total, coarse, nearest)
        scale = jax.lax.stop_gradient(fine.max(axis=1, keepdims=True))
        shares = jnp.exp(fine - scale)
        mass = jnp.exp(-scale) * mass + shares.sum(axis=1, keepdims=True)
        weighted = jnp.exp(-scale) * weighted + _sum_over(shares, members)
        closest = -0.5 * jnp.square(x - alpha * members[:, 0]).sum(axis=1, keepdims=True) / total
        return weighted / mass, (closest + scale + jnp.log(mass))[:, 0]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _sum_over(weights: Array, members: Array) -> Array:
    """``(B, M)`` and ``(B, M, D)`` to ``(B, D)``."""
    return _product(weights[:, None], members)[:, 0]
