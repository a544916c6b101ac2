"""What a network is told beside the image: the time, the class, and where a token stands. All in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxdiff.networks.layers import Init, Linear, fan_average, normal, zeros

TimeOrder = Literal["sin_cos", "cos_sin"]
standard_normal = normal(1.0)


def timestep_embedding(
    t: Float[Array, " batch"], width: int, *, order: TimeOrder = "cos_sin", shift: float = 0.0, period: float = 10_000.0
) -> Float[Array, "batch width"]:
    """Sines and cosines of the time at geometric frequencies (Vaswani et al. 2017, section 3.5).

    ``omega_i = period^(-i / (width/2 - shift))`` for ``i = 0 .. width/2 - 1``; the embedding is ``sin(omega t)`` and
    ``cos(omega t)``, each half of the width.

    Args:
      t: ``(B,)``, in any unit; the published networks take 0 .. 999.
      width: even, at least 4.
      order: which half comes first. DDPM has sines first and shift 1; ADM, DiT and Stable Diffusion cosines first and
        shift 0.
      shift: 1 makes the last frequency exactly ``1 / period``.
      period: the longest wavelength over 2 pi.

    Returns:
      ``(B, width)`` float32.

    >>> timestep_embedding(jnp.zeros(1), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = width // 2
    # Powers are float32, as in published networks: those of float64 change a sine by 2e-4 at t = 3500.
    powers = np.float32(-math.log(period)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    omega = np.exp(powers.astype(np.float64))
    angle = t.astype(jnp.float32)[:, None] * jnp.asarray(omega, jnp.float32)[None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([sin, cos] if order == "sin_cos" else [cos, sin], axis=1)


def guidance_embedding(weight: Float[Array, " batch"], width: int, *, absent: float) -> Float[Array, "batch width"]:
    """The weight of guidance w that a distilled network is told, as a time of ``1000 (w - 1)``, sines first and shift 1
    (Luo et al. 2023, "Latent Consistency Models", https://arxiv.org/abs/2310.04378, and its published code).

    Args:
      weight: ``(B,)``.
      width: even, at least 4.
      absent: the weight of samples that are not told: zeros.

    >>> guidance_embedding(jnp.array([1.0, -1.0]), 4, absent=-1.0).tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    waves = timestep_embedding(1000 * (weight - 1), width, order="sin_cos", shift=1.0)
    return jnp.where((weight == absent)[:, None], 0.0, waves)


def times_of(t: ArrayLike, batch: int) -> Float[Array, " batch"]:
    """A time for each sample: ``()`` or ``(batch,)`` -> ``(batch,)`` float32.

    Raises:
      ValueError: another shape.

    >>> times_of(0.5, 2).tolist()
    [0.5, 0.5]
    """
    t = jnp.asarray(t, jnp.float32)
    if t.shape not in ((), (batch,)):
        raise ValueError(f"a time is a scalar or one a sample, ({batch},); got shape {t.shape}")
    return jnp.broadcast_to(t, (batch,))


class TimeEmbedding(nnx.Module):
    """`timestep_embedding`, then a two-layer perceptron with SiLU between.

    Args:
      frequencies: width of the sinusoidal embedding, even.
      width: of both layers.
      order: as in `timestep_embedding`.
      shift: as in `timestep_embedding`.
      told: numbers of something else that is told with the time, mapped onto its sinusoidal embedding; 0: nothing.
      init: of both kernels.
    """

    def __init__(
        self,
        frequencies: int,
        width: int,
        *,
        order: TimeOrder = "cos_sin",
        shift: float = 0.0,
        told: int = 0,
        init: Init = fan_average,
    ):
        self.frequencies, self.order, self.shift = frequencies, order, shift
        self.hidden = Linear(frequencies, width, init=init)
        self.out = Linear(width, width, init=init)
        self.told = Linear(told, frequencies, bias=False, init=zeros) if told else None

    def __call__(self, t: ArrayLike, batch: int, told: Array | None = None) -> Array:
        """``()`` or ``(batch,)`` -> ``(batch, width)``; told: ``(batch, told)``.

        Raises:
          ValueError: another shape.

        >>> TimeEmbedding(8, 16)(0.5, 2).shape
        (2, 16)
        """
        embedding = timestep_embedding(times_of(t, batch), self.frequencies, order=self.order, shift=self.shift)
        if self.told is not None and told is not None:
            embedding = embedding + self.told(told)
        return self.out(jax.nn.silu(self.hidden(embedding)))


class LabelEmbedding(nnx.Module):
    """A learned vector a class, and one for "no class", whose id is ``num_classes``.

    Args:
      num_classes: labels are 0 .. num_classes - 1.
      width: of the vectors.
      null: whether the table has the last row, for "no class". Classifier-free guidance needs it; the published ADM
        lack it.
      init: of the table.
    """

    def __init__(self, num_classes: int, width: int, *, null: bool = True, init: Init = standard_normal):
        self.num_classes, self.null = num_classes, null
        self.embedding = init((num_classes + null, width))

    def __call__(self, label: Array) -> Array:
        """The rows of labels: ``(B,)`` integers -> ``(B, width)``.

        A label outside the table, a negative one too, gives NaN, so that it cannot pass unseen.

        >>> LabelEmbedding(10, 4)(jnp.array([3, 10])).shape
        (2, 4)
        """
        known = jnp.where(label < 0, len(self.embedding[...]), label)  # not from the table's end
        return jnp.take(self.embedding[...], known, axis=0, mode="fill", fill_value=jnp.nan)


def position_embedding(rows: int | np.ndarray, columns: int | np.ndarray, width: int) -> np.ndarray:
    """Fixed sines and cosines of where a token stands (MAE's and DiT's 2-D table).

    With ``omega_i = 10000^(-i / (width/4))``, the token at row r and column c has
    ``[sin(omega c), cos(omega c), sin(omega r), cos(omega r)]``.

    Args:
      rows: of tokens: how many, for r = 0, 1, ...; or where they stand.
      columns: of tokens, likewise.
      width: divisible by 4.

    Returns:
      ``(rows * columns, width)`` float32, row after row.

    >>> position_embedding(2, 3, 8).shape
    (6, 8)
    """
    omega = 10_000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))
    places = (np.arange(each) if isinstance(each, int) else each for each in (rows, columns))
    row, column = (each.reshape(-1, 1) for each in np.meshgrid(*places, indexing="ij"))  # (rows * columns, 1) each
    angles = (column * omega[None], row * omega[None])
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)


def rotary_angles(positions: np.ndarray, widths: Sequence[int], period: float = 10_000.0) -> np.ndarray:
    """The angles of rotary positions along several axes (Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864,
    equation (15); several axes side by side as in FLUX.1).

    Axis a of width d_a has d_a/2 angles, ``positions_a period^(-2 i / d_a)`` for ``i = 0 .. d_a/2 - 1``.

    Args:
      positions: ``(L, axes)``.
      widths: of the axes, even; together the width of a head.
      period: the longest wavelength over 2 pi.

    Returns:
      ``(L, sum(widths) / 2)`` float64.

    >>> rotary_angles(np.array([[0, 2]]), (2, 4)).tolist()
    [[0.0, 2.0, 0.02]]
    """
    rates = [period ** (-np.arange(0, width, 2, dtype=np.float64) / width) for width in widths]
    return np.concatenate([positions[:, a, None] * rate[None] for a, rate in enumerate(rates)], axis=1)


def rotated(x: Float[Array, "... tokens depth"], angles: np.ndarray) -> Float[Array, "... tokens depth"]:
    """Queries or keys turned by their positions: each pair ``(x_2i, x_2i+1)`` by its angle, as a complex number. So the
    product of a query and a key depends on the difference of their positions alone.

    Args:
      x: ``(..., L, depth)``.
      angles: ``(L, depth / 2)``, from `rotary_angles`.

    Returns:
      ``(..., L, depth)`` in ``x``'s dtype, computed in float32.

    >>> rotated(jnp.array([[1.0, 0.0]]), np.array([[np.pi / 2]])).round(3).tolist()
    [[0.0, 1.0]]
    """
    shape = (1,) * (x.ndim - 2) + angles.shape
    cos, sin = (jnp.asarray(wave(angles), jnp.float32).reshape(shape) for wave in (np.cos, np.sin))
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
