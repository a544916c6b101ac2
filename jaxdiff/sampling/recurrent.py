"""Recurrence: each step of any sampler taken several times, with the noise put back between.

After a step from t to s, x goes back to t by the process itself and the step is taken again,

    x_t = r x_s + sqrt(v) z,       r, v of q(x_t | x_s), equation (5) of `jaxdiff.process`.          (1)

It gives a change of the denoiser (guidance, a known part) time to act at each noise level. It is the per-step
self-recurrence of Bansal et al. 2023, "Universal Guidance for Diffusion Models", https://arxiv.org/abs/2302.07121,
algorithm 1, whose k is ``repeats`` + 1; and with a replaced known part the resampling of Lugmayr et al. 2022,
"RePaint", https://arxiv.org/abs/2201.09865, algorithm 1, whose U is ``repeats`` + 1. There, and in DDNM (Wang et al.
2022, https://arxiv.org/abs/2212.00490, section 3.4), j steps of the grid are taken before x goes back; here a step of
the grid is divided into j, equally in t, which visits the times of a finer grid.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.guidance.universal import Rows, rows_of_function
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State

RECURRENT = 0x72656375  # "recu"


@record
class Recurrent(Sampler):
    """Any sampler, each of its steps taken ``repeats`` more times from (1).

    What the inner sampler remembers of earlier steps is the same each time; the last time's goes on. It takes
    (``repeats`` + 1) ``jumps`` times the inner sampler's evaluations; falling times. With an exact denoiser and exact
    steps the law of the samples does not change.

    Args:
      sampler: the inner sampler; its process is this one's.
      repeats: how often a step is taken again, 0 or more; static. 0 is the inner sampler.
      jumps: j, into how many a step is divided, 1 or more; static.

    Raises:
      ValueError: a negative number of repeats, or no jump.

    >>> from jaxdiff import DDIM, VP, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> process, keys = VP(), sample_keys(jax.random.key(0), 0, 4)
    >>> x, ts = process.prior_sample(keys, (2,)), log_snr_times(process, 10)
    >>> sample(Recurrent(DDIM(process), 2), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.sampler.process)
    sampler: Sampler
    repeats: int = field(default=1, pytree_node=False)
    jumps: int = field(default=1, pytree_node=False)

    def __post_init__(self) -> None:
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 0:
            raise ValueError(f"repeats is to be a whole number, 0 (none) or more, got {self.repeats!r}")
        if isinstance(self.jumps, bool) or not isinstance(self.jumps, int) or self.jumps < 1:
            raise ValueError(f"jumps are to be a whole number, 1 or more, got {self.jumps!r}")

    def rows(self, cut: Rows) -> Recurrent:
        """The same for some of the samples."""
        return Recurrent(rows_of_function(self.sampler, cut), self.repeats, self.jumps)

    def noise_level(self) -> ArrayLike:
        return 1.0 if self.repeats else self.sampler.noise_level()

    def check(self, ts: ArrayLike) -> None:
        self.sampler.check(ts)

    def init(self, x: Array) -> State:
        return self.sampler.init(x)

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        def down(x: Array, noise: Noise) -> tuple[Array, State]:
            if self.jumps == 1:
                return self.sampler.step(denoise, noise, state, x, t, s)

            def jump(i: ArrayLike, carry: tuple[Array, State]) -> tuple[Array, State]:
                u, v = t + (s - t) * (i / self.jumps), t + (s - t) * ((i + 1) / self.jumps)
                return self.sampler.step(denoise, noise, carry[1], carry[0], u, v)

            return jax.lax.fori_loop(0, self.jumps, jump, (x, state))

        first = down(x, noise)
        if self.repeats == 0:
            return first
        scale, variance = self.process.transition(s, t)

        def again(k: Array, carry: tuple[Array, State]) -> tuple[Array, State]:
            salt = jnp.uint32(RECURRENT) * jnp.asarray(k + 1, jnp.uint32)  # wraps around
            apart: Noise = lambda t, s, inner=0: noise(t, s, salt + jnp.asarray(inner, jnp.uint32))  # noqa: E731
            raised = scale * carry[0] + jnp.sqrt(variance) * noise(s, t, salt)
            return down(raised, apart)

        return jax.lax.fori_loop(0, self.repeats, again, first)
