"""The contract of samplers, and the loops around it.

A sampler owns a step from time t to time s, not a loop. It receives the denoiser, so a step may evaluate it any number
of times; what it remembers between steps is its state:

    state = sampler.init(x)
    for t, s in zip(ts[:-1], ts[1:]):
        x, state = sampler.step(denoise, noise, state, x, t, s)
    x0 = denoise(x, ts[-1]).x0

denoise(x, t) is a `Prediction`, noise(t, s, salt) draws from N(0, I). `integrate` is that loop as one `jax.lax.scan`;
`sample` adds the last denoising (`Sampler.finish`). By hand the same steps give the same samples.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import flatten
from jaxdiff.compat import checkify
from jaxdiff.denoiser import Bound, Cond, Denoise, Denoiser, Memory
from jaxdiff.denoiser import begin as begin_memory
from jaxdiff.noise import Noise, NoiseSource, step_noise
from jaxdiff.prediction import BELOW_1, Prediction, refuse_zero_alpha
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.sampling import checks
from jaxdiff.sampling.keep import Keep, Kept, Recorder

T = TypeVar("T")
State = Any
"""What a sampler remembers between steps: a pytree of arrays of fixed shapes."""


@record
class Sampler(abc.ABC):
    """A way to step through the reverse process; abstract.

    Args:
      process: the process; its numbers, like every field of a sampler that is not marked static, are data of a jitted
        sampler.
    """

    process: Process
    own_steps: ClassVar[bool] = False  # the method chooses its steps itself, between a grid's first and last time
    exact_inverse: ClassVar[bool] = False  # rising times undo falling ones, given the state at the turn

    def init(self, x: Array) -> State:
        """The state before the first step from x ``(B, ...)``."""
        return ()

    @abc.abstractmethod
    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        """x at t to x at s; t and s are scalars."""

    def finish(self, denoise: Denoise, noise: Noise, state: State, prediction: Prediction, t: Array) -> Array:
        """The samples, of the last denoising at t; by default its x0."""
        return prediction.x0

    def check(self, ts: ArrayLike) -> None:
        """Raises ValueError if times that are known do not suit this method; by default all do."""
        del ts

    def noise_level(self) -> ArrayLike:
        """How much noise its steps draw, in units of its own; 0 is none, and only then may times rise."""
        return 0.0


def check_times(process: Process, ts: ArrayLike, *, falling: bool = True) -> None:
    """Refuses times that cannot be sampled at: outside [0, 1], not falling, or ending where sigma = 0.

    Traced times are taken on trust: check them before they enter a `jax.jit`.

    Raises:
      ValueError: naming the time.

    >>> from jaxdiff.schedule import Flow
    >>> check_times(Flow(), jnp.array([1.0, 0.5, 0.0]))
    Traceback (most recent call last):
    ...
    ValueError: the last time is 0.0, where sigma = 0 for Flow: end the grid above it (the last denoising gives x0)
    """
    if checks.traced(process, ts):
        return
    times = np.asarray(ts)
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"times are to be a vector of at least one, got shape {times.shape}")
    if not ((times >= 0) & (times <= 1)).all():
        raise ValueError(
            f"times are to be in [0, 1] (0 is data, 1 noise), got {times[~((times >= 0) & (times <= 1))][0]}"
        )
    if falling and times.size > 1 and not (np.diff(times) < 0).all():
        i = int(np.argmax(np.diff(times) >= 0))
        raise ValueError(f"times are to fall from noise to data, got {times[i]} followed by {times[i + 1]}")
    with jax.ensure_compile_time_eval():
        ends_clean = bool(process.sigma(times[-1]) == 0)
    if falling and ends_clean:
        raise ValueError(
            f"the last time is {times[-1]}, where sigma = 0 for {type(process).__name__}: end the grid above it "
            "(the last denoising gives x0)"
        )


def _bind(denoise: Denoiser, cond: Cond | None, x: Array, debug: bool = False) -> Bound:
    return Bound(denoise, cond, begin_memory(denoise, x, cond), _refuse_not_finite if debug else None)


def _refuse_not_finite(x: Array, t: ArrayLike, prediction: Prediction) -> None:
    """Checks a prediction by `jax.experimental.checkify`."""
    times = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
    finite_in = jnp.isfinite(flatten(x)).all(axis=1)
    for name in ("x0", "eps"):
        per_sample = jnp.isfinite(flatten(getattr(prediction, name))).all(axis=1)
        checkify.check(
            per_sample.all(),
            f"the denoiser's {name} is not finite at t = {{t}}, first in sample {{first}} of the batch "
            "(the x it was given was finite: {finite_in})",
            t=times[jnp.argmin(per_sample)],
            first=jnp.argmin(per_sample),
            finite_in=finite_in[jnp.argmin(per_sample)],
        )


def _run(call: Callable[[], T], debug: bool) -> T:
    """Calls; in debug also raises what the checks found. Inside a trace the caller's own `checkify` raises it."""
    if not debug:
        return call()
    error, result = checkify.checkify(call)()
    if checks.traced(error):
        checkify.check_error(error)
    elif error.get() is not None:
        raise FloatingPointError(str(error.get()).split(" (`check` failed)")[0])
    return result


_Carry = tuple[Array, State, Memory, Any]


def _scan(
    sampler: Sampler,
    denoise: Bound,
    noise: Noise,
    x: Array,
    ts: Array,
    state: State | None = None,
    num_steps: ArrayLike | None = None,
    record: Recorder | None = None,
) -> _Carry:
    kept = () if record is None else record.begin(denoise, x, ts[0])
    begin = (x, sampler.init(x) if state is None else state, denoise.memory, kept)

    def body(carry: _Carry, place: tuple[ArrayLike, Array, Array]) -> tuple[_Carry, None]:
        (x, state, memory, kept), (i, t, s) = carry, place
        before = given = denoise.holding(memory)
        if record is None:
            x, state = sampler.step(given, noise, state, x, t, s)
            return (x, state, given.memory, ()), None
        given, seen = record.watching(given, x, t)
        after, state = sampler.step(given, noise, state, x, t, s)
        kept = record.write(kept, i, x, lambda: record.prediction(i, before, x, t, seen))
        return (after, state, given.memory, kept), None

    if num_steps is None:
        return jax.lax.scan(body, begin, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))[0]
    return jax.lax.fori_loop(0, num_steps, lambda i, carry: body(carry, (i, ts[i], ts[i + 1]))[0], begin)


def promoted(x: Any, ts: ArrayLike) -> tuple[Any, Array]:
    """The samples, in the times' precision if theirs is less: the coefficients of a step have it. Integers (tokens)
    stay what they are."""
    grid = jnp.asarray(ts, jnp.result_type(float))

    def raised(part: Array) -> Array:
        part = jnp.asarray(part)
        if not jnp.issubdtype(part.dtype, jnp.floating):
            return part
        return part if jnp.finfo(part.dtype).bits >= jnp.finfo(grid.dtype).bits else part.astype(grid.dtype)

    return jax.tree.map(raised, x), grid


def _visited(ts: ArrayLike, num_steps: ArrayLike | None) -> ArrayLike:
    """The times that are known to be visited: without the padding."""
    if num_steps is None:
        return ts
    if np.ndim(num_steps) != 0 or not jnp.issubdtype(jnp.result_type(num_steps), jnp.integer):
        raise ValueError(f"num_steps is to be a whole number, got {num_steps}")
    if checks.traced(ts):
        return ts
    times = np.asarray(ts)
    if not checks.traced(num_steps):
        count = int(np.asarray(num_steps))
        if not 0 <= count < times.size:
            raise ValueError(f"num_steps is to be from 0 to {times.size - 1}, one less than the times, got {count}")
        return times[: count + 1]
    last = times.size - 1
    while last > 0 and times[last] == times[last - 1]:
        last -= 1
    return times[: last + 1]


def integrate(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Array | None,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    state: State | None = None,
    num_steps: ArrayLike | None = None,
    noise: NoiseSource = step_noise,
    debug: bool = False,
) -> tuple[Array, State]:
    """Steps x along ``ts``, in either direction, without a last denoising: for encoding (rising times, a deterministic
    sampler), for stopping at a time above 0, for going on from a ``state``, for what a sampler counts.

    Args:
      sampler: the method.
      denoise: the denoiser.
      keys: one key a sample, `sample_keys`; None for deterministic methods.
      x: the samples at ``ts[0]``, ``(B, ...)``.
      ts: ``(n,)`` times in [0, 1].
      cond: the condition, batch first.
      state: the sampler's state to go on from; None begins anew. What a denoiser remembers (its cache) begins anew.
      num_steps, noise, debug: as `sample`.

    Returns:
      The samples at ``ts[-1]`` (at ``ts[num_steps]``) and the sampler's last state.

    Raises:
      As `sample`, but the times may rise and may end at sigma = 0. ValueError: rising times with a sampler that draws
      noise; a denoiser made of x0 that is evaluated where sigma = 0.
    """
    x, grid = promoted(x, ts)
    visited = _visited(ts, num_steps)
    check_times(sampler.process, visited, falling=False)
    sampler.check(visited)
    checks.refuse_another_process(sampler.process, denoise)
    checks.refuse_noise_on_rising_times(sampler, visited)
    if np.size(visited) > 1:
        checks.refuse_undefined(sampler, denoise, x, visited, cond)

    def run() -> tuple[Array, State]:
        bound = _bind(denoise, cond, x, debug)
        return _scan(sampler, bound, noise(keys, x), x, grid, state, num_steps)[:2]

    return _run(run, debug)


@overload
def sample(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Array | None,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    num_steps: ArrayLike | None = None,
    noise: NoiseSource = step_noise,
    debug: bool = False,
    keep: None = None,
) -> Array: ...


@overload
def sample(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Array | None,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    num_steps: ArrayLike | None = None,
    noise: NoiseSource = step_noise,
    debug: bool = False,
    keep: Keep,
) -> tuple[Array, Kept]: ...


def sample(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Array | None,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    num_steps: ArrayLike | None = None,
    noise: NoiseSource = step_noise,
    debug: bool = False,
    keep: Keep | None = None,
) -> Array | tuple[Array, Kept]:
    """Samples: steps from ``ts[0]`` to ``ts[-1]``, then one denoising. Nothing but the running x is kept.

    Sampling stopped early is ``ts`` that end at a higher time; from `integrate` it is without the last denoising.

    Args:
      sampler: the method.
      denoise: the denoiser.
      keys: one key a sample, `sample_keys`; None for deterministic methods.
      x: noise to start from, ``sampler.process.prior_sample(keys, shape, ts[0])``, ``(B, ...)``.
      ts: ``(n,)`` falling times, `jaxdiff.grid`; sigma(ts[-1]) is positive.
      cond: the condition, batch first.
      num_steps: take only this many steps, from 0 to n - 1, and the last denoising at ``ts[num_steps]``. It may be
        traced: with ``ts`` padded to a bound (`pad_times`), one compilation serves every number of steps, and the
        padding costs nothing. The loop then has no reverse-mode derivative, and the number is taken on trust.
      noise: where a step's noise comes from: `step_noise`, or `jaxdiff.noise.brownian_noise` for one path of Brownian
        motion whatever the steps.
      debug: check each prediction, and raise FloatingPointError at the first that is not finite, with its time and
        sample and with x0 or eps, whichever it is. Slower. Inside a jit of your own the checks are
        `jax.experimental.checkify`'s: functionalise them there, ``jax.jit(checkify.checkify(f))``.
      keep: states or predictions at some steps to return too, `Keep`; static.

    Returns:
      ``(B, ...)``, the expected x0 at the last time; with ``keep`` a pair, the second what was kept (`Kept`).

    Raises:
      ValueError: times that do not fall, lie outside [0, 1] or end at sigma = 0; a prediction of eps from alpha = 0;
        a denoiser of another process; a number of steps that is not whole or not within the times; a single key.
      FloatingPointError: in debug, a prediction that is not finite.

    >>> from jaxdiff import DDIM, Flow, GaussianDenoiser, log_snr_times, sample_keys
    >>> process = Flow()
    >>> keys, ts = sample_keys(jax.random.key(0), 0, 4), log_snr_times(process, 32)
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sample(DDIM(process), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)
    """
    start(sampler, denoise, x, _visited(ts, num_steps), cond)
    x, grid = promoted(x, ts)

    record = None if keep is None else Recorder(keep, len(grid), from_end=num_steps is None)
    end = len(grid) - 1 if num_steps is None else num_steps

    def run() -> Array | tuple[Array, Kept]:
        bound = _bind(denoise, cond, x, debug)
        drawn = noise(keys, x)
        last, state, memory, kept = _scan(sampler, bound, drawn, x, grid, None, num_steps, record)
        prediction = (bound := bound.holding(memory))(last, grid[end])
        x0 = sampler.finish(bound, drawn, state, prediction, grid[end])
        return x0 if record is None else (x0, record.finish(record.write(kept, end, last, lambda: prediction)))

    return _run(run, debug)


def pad_times(ts: ArrayLike, bound: int) -> Array:
    """``ts`` filled up to ``bound`` times with its last, for `sample` with ``num_steps = len(ts) - 1``.

    >>> pad_times(jnp.array([1.0, 0.5, 0.25]), 5).tolist()
    [1.0, 0.5, 0.25, 0.25, 0.25]
    """
    ts = jnp.asarray(ts, jnp.result_type(float))
    if ts.shape[0] > bound:
        raise ValueError(f"{ts.shape[0]} times do not fit into {bound}")
    return jnp.concatenate([ts, jnp.full(bound - ts.shape[0], ts[-1])])


def start(sampler: Sampler, denoise: Denoiser, x: Any, ts: ArrayLike, cond: Cond | None = None) -> None:
    """All checks of `sample` that need no evaluation. Times, process and sampler that are traced cannot be checked: a
    caller who jits `sample` with times as an argument calls this first.

    Raises:
      ValueError: as `sample`.
    """
    check_times(sampler.process, ts)
    checks.refuse_particles_within(sampler)
    sampler.check(ts)
    checks.refuse_another_process(sampler.process, denoise)
    checks.refuse_undefined(sampler, denoise, x, ts, cond)


def refuse_infinite_velocity(process: Process, ts: ArrayLike, name: str) -> None:
    """For methods in t, where alpha' or sigma' is infinite at a time that is known."""
    if checks.traced(process, ts):
        return
    with jax.ensure_compile_time_eval():
        finite = all(bool(jnp.isfinite(part).all()) for part in process.derivatives(np.asarray(ts)))
    if not finite:
        raise ValueError(
            f"{type(process).__name__}'s velocity is infinite at a time of this grid, so {name} cannot step there: "
            "stay below t = 1 and above t = 0 (the grids of jaxdiff.grid take t_max and t_min), or use DDIM or DPMpp2M"
        )


def refuse_no_signal(process: Process, ts: ArrayLike, name: str) -> None:
    """For methods whose drift or diffusion is infinite where alpha = 0, at either end of known times."""
    last = ts if checks.traced(ts) else np.max(np.asarray(ts))
    refuse_zero_alpha(process, last, f"{name} has no finite step", f"{BELOW_1}. Or use DDIM or DPMpp2M")
