"""Running averages of the parameters, and how their decay warms up.

With theta_n the parameters after step n, and d_n the decay:

    (1)  ema_n = d_n ema_{n-1} + (1 - d_n) theta_n
    (2)  d_n = min(decay, (1 + n) / (10 + n))            TensorFlow's ExponentialMovingAverage; Song et al. 2021
    (3)  d_n = 2 ** (-B / min(H, r N)),  N = (n - 1) B   Karras et al. 2022, EDM's training loop

where H is a half-life in images, r its ramp-up ratio, B the batch size.

A rule is any hashable object with `decay(step, batch_size)`, where `step` = n - 1 counts the steps done before this
one. The average is kept in float32 whatever the parameters are: at d = 0.9999 an update is below bfloat16's resolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class EmaRule(Protocol):
    """Anything that knows its decay at a step."""

    def decay(self, step: jax.Array, batch_size: int) -> jax.Array: ...


Rules = EmaRule | Mapping[str, EmaRule]
"""One rule, whose average is named "ema", or several by name; the first one's average is what is sampled from."""


def rules_by_name(rules: Rules) -> dict[str, EmaRule]:
    """The rules of several averages by their names.

    Raises:
        ValueError: none at all, a name that is no folder's, or what is no rule.

    >>> list(rules_by_name(Ema(0.999)))
    ['ema']
    """
    named = dict(rules) if isinstance(rules, Mapping) else {"ema": rules}
    if not named:
        raise ValueError("there is no average of the weights to sample from: give a rule, such as Ema(0.999)")
    for name, rule in named.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"{name!r} cannot name an average and its folder, for instance 'long'")
        if isinstance(rule, type) or not callable(getattr(rule, "decay", None)):
            raise ValueError(f"expected a rule, such as Ema(0.999), or rules by name, got {rule!r}")
    return named


@dataclasses.dataclass(frozen=True)
class Ema:
    """Constant decay a step, reached through (2).

    Args:
        rate: the decay, in [0, 1); 0 makes the average the parameters themselves, up to rounding.
        warmup: apply (2), without which a short run's average still holds the initial parameters.

    Example:
        >>> round(float(Ema(0.9999).decay(0, 64)), 4), round(float(Ema(0.9999).decay(10**6, 64)), 4)
        (0.1818, 0.9999)
    """

    rate: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"Ema.rate is {self.rate}; it must be in [0, 1), for instance 0.9999")

    def decay(self, step: jax.Array | int, batch_size: int) -> jax.Array:
        """Decay () float32 of the update that ends step `step` + 1."""
        n = jnp.asarray(step, jnp.float32) + 1
        return jnp.minimum(self.rate, (1 + n) / (10 + n)) if self.warmup else jnp.full((), self.rate, jnp.float32)


@dataclasses.dataclass(frozen=True)
class HalfLifeEma:
    """Decay by a half-life counted in images, (3): the average means the same at any batch size.

    Args:
        images: half-life H in images, above 0 (EDM: 500,000 for CIFAR-10, 50 million for ImageNet-64).
        ramp_up: r, the half-life as a share of the images seen so far at most; None: no ramp-up.

    Example:
        >>> rule = HalfLifeEma(images=1000, ramp_up=None)
        >>> round(float(rule.decay(0, 500) ** 2), 4)   # halved by two steps of 500 images
        0.5
        >>> float(HalfLifeEma().decay(0, 500))         # no image seen yet: nothing worth keeping
        0.0
    """

    images: float = 500_000.0
    ramp_up: float | None = 0.05

    def __post_init__(self) -> None:
        if self.images <= 0 or (self.ramp_up is not None and self.ramp_up <= 0):
            raise ValueError(f"{self}: images and ramp_up must be above 0 (ramp_up may be None)")

    def decay(self, step: jax.Array | int, batch_size: int) -> jax.Array:
        """Decay () float32 of the update that ends step `step` + 1."""
        half_life = jnp.full((), self.images, jnp.float32)
        if self.ramp_up is not None:
            half_life = jnp.minimum(half_life, self.ramp_up * batch_size * jnp.asarray(step, jnp.float32))
        return jnp.exp2(-batch_size / jnp.maximum(half_life, 1e-8))


def update_ema(ema: Any, params: Any, decay: jax.Array | float) -> Any:
    """One step of (1), leaf by leaf, in float32.

    Args:
        ema: tree of float32 arrays.
        params: the same tree, any float dtype.
        decay: () in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> update_ema({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, 0.75)["w"].tolist()
        [0.25, 0.25]
    """
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p.astype(e.dtype) - e), ema, params)
