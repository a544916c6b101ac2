"""Time travel: steps that are taken again, from noise put on anew.

A step from t to s is divided into j, and these are taken r times; between two rounds x is noised from s up to t,

    x_t ~ q(x_t | x_s) = N((alpha_t/alpha_s) x_s, v),      v as in (5) of `jaxdiff.process`.         (1)

So what a step has made of the part that was not measured is seen by the next round together with the measurement.
Lugmayr et al. 2022 (RePaint), https://arxiv.org/abs/2201.09865, algorithm 1 and appendix B, and Wang et al. 2022
(DDNM), https://arxiv.org/abs/2212.00490, section 3.4, where r is "resampling" or "travel times" and j the "jump" or
"travel length". Theirs are j steps of the grid; here a step of the grid is divided into j, equally in t, so that the
times that are visited are those of a finer grid, and each costs j r evaluations instead of one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State

UP = 0x75702020  # "up  ": the salt of equation (1)
APART = 0x01000193
"""What tells the draws of one round from those of the next."""


@record
class Travelling(Sampler):
    """A sampler's steps, each divided and taken again.

    Args:
      sampler: the sampler; a multistep one begins anew with each round.
      rounds: r, 1 or more; static. 1 takes each step once.
      jumps: j, 1 or more; static.

    >>> from jaxdiff import DDPM, VP
    >>> Travelling(DDPM(VP()), rounds=3, jumps=2).process
    VP(beta_min=0.1, beta_max=20.0)
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.sampler.process)
    sampler: Sampler
    rounds: int = field(pytree_node=False)
    jumps: int = field(pytree_node=False)

    def check(self, ts: ArrayLike) -> None:
        self.sampler.check(ts)

    def noise_level(self) -> ArrayLike:
        return 1.0

    def init(self, x: Array) -> State:
        return self.sampler.init(x)

    def rows(self, cut: Rows) -> Any:
        """The sampler of some of the samples: `jaxdiff.plan.rows_of`."""
        inner: Any = self.sampler
        return Travelling(inner.rows(cut) if hasattr(inner, "rows") else inner, self.rounds, self.jumps)

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        def down(x: Array, state: State, turn: Array) -> tuple[Array, State]:
            def mine(a: ArrayLike, b: ArrayLike, salt: ArrayLike = 0) -> Array:
                return noise(a, b, jnp.asarray(salt, jnp.uint32) + jnp.uint32(APART) * turn.astype(jnp.uint32))

            def once(i: ArrayLike, carry: tuple[Array, State]) -> tuple[Array, State]:
                u, v = t + (s - t) * (i / self.jumps), t + (s - t) * ((i + 1) / self.jumps)
                return self.sampler.step(denoise, mine, carry[1], carry[0], u, v)

            if self.jumps == 1:
                return self.sampler.step(denoise, mine, state, x, t, s)
            return jax.lax.fori_loop(0, self.jumps, once, (x, state))

        x, state = down(x, state, jnp.zeros((), jnp.int32))
        if self.rounds == 1:
            return x, state
        scale, variance = self.process.transition(s, t)

        def again(turn: Array, carry: tuple[Array, State]) -> tuple[Array, State]:
            noised = scale * carry[0] + jnp.sqrt(variance) * noise(t, s, UP + turn)
            return down(noised, self.sampler.init(noised), turn)

        return jax.lax.fori_loop(1, self.rounds, again, (x, state))


def travelling(sampler: Sampler, rounds: int, jumps: int) -> Sampler:
    """`Travelling`; a step that is taken once and whole is the sampler's own."""
    return sampler if rounds == jumps == 1 else Travelling(sampler, rounds, jumps)


def check_travel(rounds: int, jumps: int, name: str) -> None:
    """Raises ValueError if the numbers of `Travelling` are not whole ones from 1 on."""
    for what, number in (("rounds", rounds), ("jumps", jumps)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{what} of {name} are to be a whole number, 1 or more, got {number!r}")
