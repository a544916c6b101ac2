"""The loops around a step: traced numbers of steps, going on from a state, one Brownian path, checked predictions, and
the odd ends of grids."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.noise import brownian_noise
from jaxdiff.sampling.adaptive import Adaptive
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.ode import DPM2, RK4, RungeKutta
from jaxdiff.sampling.tableau import DORMAND_PRINCE
from tests.tables import PROCESSES, gaussian, mixture

DETERMINISTIC: dict[str, Callable[[jd.Process], jd.Sampler]] = {
    "DDIM": jd.DDIM,
    "Euler": jd.Euler,
    "Heun": jd.Heun,
    "Heun_rho": lambda process: jd.Heun(process, "rho"),
    "DPM2": DPM2,
    "RK4": RK4,
    "DormandPrince_log_rho": lambda process: RungeKutta(process, DORMAND_PRINCE, "log_rho"),
    "DPMpp2M": jd.DPMpp2M,
    "Adaptive": Adaptive,
}
VP = jd.VP()
KEYS = jd.sample_keys(jax.random.key(0), 0, 3)
X = VP.prior_sample(KEYS, (2,))


def grid(n: int) -> jax.Array:
    return jd.uniform_times(VP, n, t_min=1e-3)


@pytest.mark.parametrize("make", [jd.DDIM, jd.DPMpp2M, Adaptive, lambda p: jd.DDIM(p, 0.7)])
def test_a_padded_grid_is_the_grid(make: object) -> None:
    """Any number of steps up to the bound: one trace, and the samples of the grid without padding."""
    assert callable(make)
    sampler, exact, traces = make(VP), mixture(VP), []

    @jax.jit
    def padded(ts: jax.Array, n: jax.Array) -> jax.Array:
        traces.append(1)
        return jd.sample(sampler, exact, KEYS, X, ts, num_steps=n)

    plain = jax.jit(lambda ts: jd.sample(sampler, exact, KEYS, X, ts))
    for n in (0, 1, 2, 9):
        ts = grid(n + 1)
        np.testing.assert_allclose(padded(pad_times(ts, 10), n), plain(ts), rtol=1e-4, atol=1e-5)
    assert len(traces) == 1


def test_the_padding_costs_no_evaluation() -> None:
    calls: list[float] = []

    def counted(x: jax.Array, t: ArrayLike, cond: jd.denoiser.Cond | None = None) -> jd.Prediction:
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return gaussian(VP)(x, t)

    run = jax.jit(lambda ts, n: jd.sample(jd.DDIM(VP), counted, None, X, ts, num_steps=n))
    for n in (0, 3, 6):
        calls.clear()
        run(pad_times(grid(n + 1), 64), n)
        jax.effects_barrier()
        np.testing.assert_allclose(sorted(calls, reverse=True), grid(n + 1), rtol=1e-6)


def test_num_steps_is_checked() -> None:
    exact, ts = gaussian(VP), grid(4)
    for wrong, message in (
        (4, "from 0 to 3, one less than the times, got 4"),
        (-1, "got -1"),
        (2.0, "a whole number, got 2.0"),
        (True, "a whole number"),
        ([1], "a whole number"),
    ):
        for loop in (jd.sample, jd.integrate):
            with pytest.raises(ValueError, match=message):
                loop(jd.DDIM(VP), exact, None, X, ts, num_steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5 times do not fit into 4"):
        pad_times(grid(5), 4)
    # padding is not taken for times that do not fall; a fault before it is still found
    with pytest.raises(ValueError, match=r"fall from noise to data, got 0\.5 followed by 0\.75"):
        jax.jit(
            lambda n: jd.sample(jd.DDIM(VP), exact, None, X, np.array([0.5, 0.75, 0.1, 0.1], np.float32), num_steps=n)
        )(2)
    # times after those visited do not matter
    stopped = jd.sample(jd.DDIM(VP), exact, None, X, jnp.array([0.9, 0.5, 0.7]), num_steps=1)
    np.testing.assert_allclose(stopped, jd.sample(jd.DDIM(VP), exact, None, X, jnp.array([0.9, 0.5])), rtol=1e-6)


def test_reverse_mode_goes_through_the_plain_loop_only() -> None:
    exact, ts = gaussian(VP), grid(5)

    def total(x: jax.Array, n: jax.Array | None) -> jax.Array:
        return jd.sample(jd.DDIM(VP), exact, None, x, ts, num_steps=n).sum()

    assert np.isfinite(jax.grad(total)(X, None)).all()
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.jit(jax.grad(total))(X, 3)
    _, tangent = jax.jit(lambda n: jax.jvp(lambda x: total(x, n), (X,), (jnp.ones_like(X),)))(4)
    np.testing.assert_allclose(tangent, jax.grad(total)(X, None).sum(), rtol=1e-4)


@pytest.mark.parametrize("make", [jd.DPMpp2M, lambda p: jd.DDIM(p, 0.7), RK4])
def test_going_on_from_a_state_is_one_run(make: object) -> None:
    assert callable(make)
    sampler, exact, ts = make(VP), mixture(VP), grid(9)
    whole, _ = jd.integrate(sampler, exact, KEYS, X, ts)
    half, state = jd.integrate(sampler, exact, KEYS, X, ts, num_steps=4)
    rest, _ = jd.integrate(sampler, exact, KEYS, half, ts[4:], state=state)
    np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-6)
    if make is jd.DPMpp2M:  # without the state it begins anew, and is another method
        anew, _ = jd.integrate(sampler, exact, KEYS, half, ts[4:])
        assert np.abs(anew - whole).max() > 1e-4


def test_one_brownian_path_for_all_steps() -> None:
    """Strong convergence: with one path behind all step sizes, Euler-Maruyama's samples themselves converge; with fresh
    noise they do not."""
    with jax.enable_x64(True):
        process = jd.VP()
        keys = jd.sample_keys(jax.random.key(0), 0, 16)
        x, exact = jax.random.normal(jax.random.key(1), (16, 1)), jd.GaussianDenoiser(process, 0.5, 0.6)
        gaps: dict[str, list[float]] = {"tree": [], "fresh": []}
        for name, source in (("tree", brownian_noise), ("fresh", jd.noise.step_noise)):
            run = jax.jit(
                lambda ts, n, source=source: jd.integrate(
                    jd.EulerMaruyama(process), exact, keys, x, ts, num_steps=n, noise=source
                )[0]
            )
            ends = [run(pad_times(jnp.linspace(0.9, 0.1, n + 1), 257), n) for n in (16, 64, 256)]
            gaps[name] = [float(jnp.sqrt(jnp.square(end - ends[-1]).mean())) for end in ends[:-1]]
    assert gaps["tree"][1] < gaps["tree"][0] / 2 < 0.1
    assert gaps["fresh"][1] > 0.3


def broken(where: float, member: str = "x0") -> jd.Denoiser:
    """Not finite below a time, in the batch's second sample."""

    def denoise(x: jax.Array, t: ArrayLike, cond: jd.denoiser.Cond | None = None) -> jd.Prediction:
        given = gaussian(VP)(x, t)
        hit = (jnp.broadcast_to(t, x.shape[:1]) < where) & (jnp.arange(x.shape[0]) == 1)
        return given._replace(**{member: jnp.where(hit[:, None], jnp.nan, getattr(given, member))})

    return denoise


@pytest.mark.parametrize("member", ["x0", "eps"])
def test_debug_names_what_is_not_finite(member: str) -> None:
    ts = jnp.array([1.0, 0.75, 0.5, 0.25])
    message = rf"denoiser's {member} is not finite at t = 0.5, first in sample 1 of .*was finite: True"
    for loop in (jd.sample, jd.integrate):
        with pytest.raises(FloatingPointError, match=message):
            loop(jd.DDIM(VP), broken(0.6, member), None, X, ts, debug=True)
    with pytest.raises(FloatingPointError, match=message):
        jax.block_until_ready(jd.sample(jd.DDIM(VP), broken(0.6, member), None, X, ts, num_steps=2, debug=True))
    assert np.isnan(
        jd.sample(jd.DDIM(VP), broken(0.6, member), None, X, ts)
    ).any()  # without debug: as the maths has it


def test_debug_inside_loops_and_jits_of_the_users() -> None:
    ts = jnp.array([1.0, 0.75, 0.5, 0.25])
    with pytest.raises(FloatingPointError, match=r"not finite at t = 0.[1-5].*first in sample 1 of"):
        jd.sample(Adaptive(VP), broken(0.6), None, X, ts, debug=True)
    for run in (
        lambda x: jd.sample(jd.DDIM(VP), broken(0.6), None, x, ts, debug=True),
        lambda x: jd.sample(jd.DDIM(VP), broken(0.6), None, X, ts, debug=True) + 0 * x,  # nothing given is traced
    ):
        error, _ = jax.jit(checkify.checkify(run))(X)
        assert "x0 is not finite at t = 0.5, first in sample 1" in str(error.get())
    error, fine = jax.jit(checkify.checkify(lambda x: jd.sample(jd.DDIM(VP), broken(0.0), None, x, ts, debug=True)))(X)
    assert error.get() is None
    np.testing.assert_allclose(fine, jd.sample(jd.DDIM(VP), gaussian(VP), None, X, ts, debug=True), rtol=1e-5)
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(lambda x: jd.sample(jd.DDIM(VP), broken(0.6), None, x, ts, debug=True))(X)


def test_samples_of_less_precision_than_the_times_are_raised_to_it() -> None:
    half = jd.sample(jd.DDIM(VP), gaussian(VP), None, X.astype(jnp.bfloat16), grid(4))
    assert half.dtype == jnp.float32
    with jax.enable_x64(True):
        single = jnp.asarray(np.asarray(X), jnp.float32)
        for sampler in (jd.DDIM(VP), jd.DPMpp2M(VP), Adaptive(VP)):
            assert jd.sample(sampler, gaussian(VP), None, single, jnp.array([0.9, 0.1])).dtype == jnp.float64


def test_integrate_refuses_an_eps_network_without_signal() -> None:
    process = jd.Flow()
    refusing = lambda x, t, cond=None: jd.prediction.from_eps(process, x, t, x)  # noqa: E731
    with pytest.raises(ValueError, match="say nothing of x0"):
        jd.integrate(jd.DDIM(process), refusing, None, X, jnp.array([1.0, 0.5]))


RUNS: dict[str, object] = {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(DETERMINISTIC)),
    process_name=st.sampled_from(["VP", "DiscreteVP_linear"]),
    n=st.integers(1, 11),
    t_max=st.sampled_from([0.999, 0.97, 0.5]),
    t_min=st.sampled_from([1e-3, 0.0137, 0.49]),
    spacing=st.sampled_from([jd.uniform_times, jd.quadratic_times, jd.trailing_times, jd.log_snr_times]),
    steps=st.integers(0, 10),
)
def test_any_grid_samples_finitely(
    name: str, process_name: str, n: int, t_max: float, t_min: float, spacing: object, steps: int
) -> None:
    """Any number of times, divisors of the chain's length or not, any ends, any number of steps within: finite, and for
    the adaptive one near the exact flow."""
    assert callable(spacing)
    process = PROCESSES[process_name]()
    ts = spacing(process, n, t_max=t_max, t_min=t_min)
    ts = ts[: int(np.argmax(np.append(np.diff(ts) >= 0, True))) + 1]  # a chain's rounding may repeat a time
    exact = gaussian(process)
    if f"{name} {process_name}" not in RUNS:
        sampler = DETERMINISTIC[name](process)
        RUNS[f"{name} {process_name}"] = jax.jit(lambda x, ts, n: jd.sample(sampler, exact, None, x, ts, num_steps=n))
    run = RUNS[f"{name} {process_name}"]
    assert callable(run)
    steps = min(steps, len(ts) - 1)
    x = process.alpha(ts[0]) * jnp.array([[0.7, -0.4]]) + process.sigma(ts[0]) * X
    x0 = run(x, pad_times(ts, 11), steps)
    assert np.isfinite(x0).all()
    if steps == 0:
        np.testing.assert_allclose(x0, exact(x, ts[0]).x0, rtol=1e-4, atol=1e-5)
    if name == "Adaptive":
        truth = exact(exact.flow(x, ts[0], ts[steps]), ts[steps]).x0
        np.testing.assert_allclose(x0, truth, atol=2e-2, err_msg=process_name)
