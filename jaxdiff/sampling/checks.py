"""What a sampler, a denoiser and the times cannot do together, said before anything runs.

Numbers that are traced cannot be checked and are taken on trust.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process, refuse_unless


def traced(*values: Any) -> bool:
    """Whether any number among them is not known yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def refuse_another_process(process: Process, denoise: Denoiser) -> None:
    """Refuses a denoiser that says of itself, or of the denoiser it wraps, that it is another process'.

    Raises:
      ValueError: another kind of process, or the same with other numbers that are known.
    """
    inner: Any = denoise
    while getattr(inner, "process", None) is None:
        if (inner := getattr(inner, "denoise", None)) is None:
            return
    ours, theirs = (jax.tree.leaves(of) for of in (process, inner.process))
    kinds: list[Any] = [jax.tree.structure(of) for of in (process, inner.process)]
    alike = kinds[0] == kinds[1] and all(np.shape(a) == np.shape(b) for a, b in zip(ours, theirs, strict=True))
    if alike and not traced(ours, theirs):
        with jax.ensure_compile_time_eval():
            alike = all(np.allclose(np.asarray(a), np.asarray(b), rtol=1e-5) for a, b in zip(ours, theirs, strict=True))
    if not alike:
        raise ValueError(
            f"the sampler is on {_brief(process)} and the denoiser on {_brief(inner.process)}: make both of one "
            "process (for a denoiser of a run, its denoise.process)"
        )


def _brief(process: Process) -> str:
    text = repr(process)
    return text if len(text) < 80 else type(process).__name__


def refuse_noise_on_rising_times(sampler: Any, ts: ArrayLike) -> None:
    level = sampler.noise_level()
    if traced(ts, level):
        return
    rise = np.diff(np.asarray(ts)) > 0
    if rise.any() and np.any(np.asarray(level) != 0):
        i = int(np.argmax(rise))
        raise ValueError(
            f"{type(sampler).__name__} draws noise, and its steps are those of falling times, got {np.asarray(ts)[i]} "
            f"followed by {np.asarray(ts)[i + 1]}: encode with a deterministic method (DDIM, Heun, DPMpp2M), or make "
            "data noisy by process.perturb"
        )


def refuse_particles_within(sampler: Any) -> None:
    """Particles have their weights from the sampler that is asked at the end: it may have others in it, and no other
    around it.

    Raises:
      ValueError: a sampler of particles within another.
    """
    for inner in getattr(sampler, "__dict__", {}).values():
        if hasattr(inner, "step"):
            if hasattr(inner, "particles"):
                mine, other = type(inner).__name__, type(sampler).__name__
                raise ValueError(f"{mine} weighs its particles at the end: put {mine} around {other}, not within it")
            refuse_particles_within(inner)


def refuse_undefined(sampler: Any, denoise: Denoiser, x: Any, ts: ArrayLike, cond: Cond | None) -> None:
    """A denoiser made of eps refuses alpha = 0, one made of x0 sigma = 0, when it is traced with a time that is known:
    so the first and the last step are, where there is such an end."""
    process = sampler.process
    if traced(process, ts):
        return
    times = np.asarray(ts)
    with jax.ensure_compile_time_eval():
        least = np.asarray(jnp.minimum(process.alpha(times[[0, -1]]), process.sigma(times[[0, -1]])))
    if least[0] == 0:
        jax.eval_shape(lambda x: denoise(x, float(times[0]), cond), x)
    if least[1] == 0 and times.size > 1:

        def given(x: Any, t: ArrayLike) -> Prediction:
            return denoise(x, float(times[-1]) if t is last else 0.5, cond)

        last = jnp.asarray(times[-1], jnp.result_type(float))
        jax.eval_shape(
            lambda x: sampler.step(given, lambda t, s, salt=0: x, sampler.init(x), x, jnp.asarray(times[-2]), last)[0],
            x,
        )


def check_tau(tau: ArrayLike) -> None:
    """Refuses a known level of noise below 0."""
    refuse_unless(lambda tau: tau >= 0, "tau, the noise's level, is to be 0 (the flow) or more", tau=tau)
