"""RePaint: the measured part from the measurement, and steps that are taken again.

Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models",
https://arxiv.org/abs/2201.09865, algorithm 1. After each step from t to s of DDPM the known part is drawn anew at the
noise of s (their equation 8; for any linear operator (1) of `jaxdiff.inverse.around`),

    x_s <- x_s + A+ (alpha_s y + sigma_s A z - A x_s).                                               (1)

The two parts then do not fit each other. So j such steps from t to s are taken r times, and x is noised from s up to t
between,

    x_t ~ q(x_t | x_s) = N((alpha_t/alpha_s) x_s, v),      v as in (5) of `jaxdiff.process`.         (2)

Theirs are j steps of the grid; here a step of the grid is divided into j, equally in t, so that the times that are
visited are those of a grid j times as fine and a step costs j r evaluations. r = 1 is the replacement of Song et al.
2021; time travel in DDNM is the same. (1) of `jaxdiff.inverse.ddnm` on each prediction changes nothing that (1) here
does not overwrite where steps are linear in the prediction, and makes the last denoising consistent.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.around import PROJECT, Around, projected, refuse_own_steps
from jaxdiff.inverse.ddnm import Consistent
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State

UP = 0x75702020  # "up  ": the salt of equation (2)
APART = 0x01000193
"""What tells the draws of one round from those of the next."""


@record
class RePaint(Method):
    """The measured part from the measurement after each step, and steps that are taken again, equations (1) and (2).

    Linear operators. ``jumps * rounds`` evaluations a step of the grid. A measurement with noise is taken as if it had
    none.

    Args:
      rounds: r, how often a step is taken, 1 or more; static. The paper's 10.
      jumps: j, how many shorter ones it is divided into, 1 or more; static. The paper's 10, of 250 in all.

    Raises:
      ValueError: a number below 1; (made) a sampler that chooses its steps itself.
    """

    rounds: int = field(default=10, pytree_node=False)
    jumps: int = field(default=1, pytree_node=False)
    needs: ClassVar[Needs] = "linear"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        for name, number in (("rounds", self.rounds), ("jumps", self.jumps)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} of repaint are to be a whole number, 1 or more, got {number!r}")

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        refuse_own_steps(sampler, "repaint")
        return (Consistent(problem),), RePaintSteps(sampler, problem, self.rounds, self.jumps)


@record
class RePaintSteps(Around):
    """Equations (1) and (2).

    Args:
      sampler: whose steps are taken.
      problem: what was measured.
      rounds, jumps: see `RePaint`.
    """

    rounds: int = field(pytree_node=False)
    jumps: int = field(pytree_node=False)

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        def down(x: Array, state: State, turn: Array) -> tuple[Array, State]:
            def mine(a: ArrayLike, b: ArrayLike, salt: ArrayLike = 0) -> Array:
                return noise(a, b, jnp.asarray(salt, jnp.uint32) + jnp.uint32(APART) * turn.astype(jnp.uint32))

            def once(x: Array, state: State, i: ArrayLike) -> tuple[Array, State]:
                u, v = t + (s - t) * (i / self.jumps), t + (s - t) * ((i + 1) / self.jumps)
                x, state = self.sampler.step(denoise, mine, state, x, u, v)
                return projected(self.problem, self.process, x, v, mine(u, v, PROJECT)), state

            if self.jumps == 1:
                return once(x, state, 0)
            return jax.lax.fori_loop(0, self.jumps, lambda i, carry: once(carry[0], carry[1], i), (x, state))

        x, state = down(x, state, jnp.zeros((), jnp.int32))
        if self.rounds == 1:
            return x, state
        scale, variance = self.process.transition(s, t)

        def again(turn: Array, carry: tuple[Array, State]) -> tuple[Array, State]:
            noised = scale * carry[0] + jnp.sqrt(variance) * noise(t, s, UP + turn)
            return down(noised, self.sampler.init(noised), turn)  # a multistep method begins anew

        return jax.lax.fori_loop(1, self.rounds, again, (x, state))
