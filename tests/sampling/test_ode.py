"""Runge-Kutta methods: their tableaux, orders in every variable, twins among other methods, and encoding."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.sampling.ode import DPM2, RK4, RungeKutta
from jaxdiff.sampling.tableau import DORMAND_PRINCE, MIDPOINT, TABLEAUX, Tableau, _trees
from tests.tables import NO_SIGNAL_AT_END, PROCESSES, gaussian, mixture

VARIABLES = ("t", "rho", "log_rho", "angle")
START = jnp.array([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]])


@functools.partial(jax.jit, static_argnames="make")
def run(sampler: jd.Sampler, make: object, x: jax.Array, ts: jax.Array) -> jax.Array:
    assert callable(make)
    return jd.integrate(sampler, make(sampler.process), None, x, ts)[0]


def ratio_times(process: jd.Process, n: int, high: float = 2.0, low: float = 0.1) -> jax.Array:
    """n steps, uniform in log-SNR."""
    t_max, t_min = (process.time_of_log_snr(-2 * jnp.log(ratio)) for ratio in (high, low))
    return jd.log_snr_times(process, n + 1, t_max=t_max, t_min=t_min)


def noisy(process: jd.Process, t: jax.Array) -> jax.Array:
    return process.perturb(START, jax.random.normal(jax.random.key(0), START.shape), t)


@functools.cache
def reference(process_name: str) -> np.ndarray:
    process = PROCESSES[process_name]()
    ts = ratio_times(process, 2000)
    return np.asarray(run(RungeKutta(process, DORMAND_PRINCE, "rho"), mixture, noisy(process, ts[0]), ts))


def error(sampler: jd.Sampler, process_name: str, n: int) -> float:
    ts = ratio_times(sampler.process, n)
    x = noisy(sampler.process, ts[0])
    return float(jnp.sqrt(jnp.square(run(sampler, mixture, x, ts) - reference(process_name)).mean()))


@pytest.mark.parametrize("name", sorted(TABLEAUX))
def test_order_of_every_tableau(name: str) -> None:
    """On the mixture's flow, the error of a method of order p falls by 2^p with each doubling."""
    tableau = TABLEAUX[name]
    counts = (40, 80, 160) if tableau.order > 3 else (80, 160, 320)
    with jax.enable_x64(True):
        errors = [error(RungeKutta(jd.VP(), tableau), "VP", n) for n in counts]
        assert np.mean(-np.diff(np.log2(errors))) > tableau.order - 0.15, errors


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("process_name", ["SubVP", "VE", "Flow"])
def test_order_in_every_variable(process_name: str, variable: str) -> None:
    """All variables are the same curve: RK4 reaches the one reference in each, with order 4."""
    with jax.enable_x64(True):
        sampler = RK4(PROCESSES[process_name](), variable)  # type: ignore[arg-type]
        errors = [error(sampler, process_name, n) for n in (80, 160, 320)]
        assert np.mean(-np.diff(np.log2(errors))) > 3.85, errors
        assert errors[-1] < 1e-6


def test_order_on_a_chain() -> None:
    """Its pace jumps at its times, which costs a method in t its order; the other variables do not see it."""
    with jax.enable_x64(True):
        process = PROCESSES["DiscreteVP_linear"]()
        for variable in ("rho", "log_rho", "angle"):
            errors = [error(RK4(process, variable), "DiscreteVP_linear", n) for n in (80, 160)]
            assert np.log2(errors[0] / errors[1]) > 3.85, (variable, errors)
        in_t = [error(RK4(process, "t"), "DiscreteVP_linear", n) for n in (80, 160)]
        assert in_t[1] > 100 * errors[1]


def test_order_of_dpm2() -> None:
    with jax.enable_x64(True):
        for process_name in ("VP", "KarrasVE"):
            errors = [error(DPM2(PROCESSES[process_name]()), process_name, n) for n in (80, 160, 320)]
            assert np.mean(-np.diff(np.log2(errors))) > 1.85, errors


def test_twins() -> None:
    """Euler in rho is DDIM; DPM2 is DPM-Solver-2 as its authors write it; RungeKutta of Heun's tableau is Heun."""
    with jax.enable_x64(True):
        process = jd.VP()
        exact, ts = gaussian(process), ratio_times(process, 4, 20.0, 0.05)
        x = noisy(process, ts[0])
        np.testing.assert_allclose(
            run(RungeKutta(process, TABLEAUX["euler"], "rho"), gaussian, x, ts),
            run(jd.DDIM(process), gaussian, x, ts),
            rtol=1e-10,
        )
        np.testing.assert_allclose(
            run(RungeKutta(process, TABLEAUX["heun2"], "t"), gaussian, x, ts),
            run(jd.Heun(process, "t"), gaussian, x, ts),
        )
        t, s = ts[0], ts[1]
        first = exact(x, t).velocity(process, t)
        second = exact(x + (s - t) * first, s).velocity(process, s)
        np.testing.assert_allclose(
            run(jd.Heun(process, "t"), gaussian, x, ts[:2]), x + (s - t) * (first + second) / 2, rtol=1e-10
        )
        # Lu et al. 2022, algorithm 1
        half_log_snr = lambda t: 0.5 * process.log_snr(t)  # noqa: E731
        middle = process.time_of_log_snr(half_log_snr(t) + half_log_snr(s))
        h = half_log_snr(s) - half_log_snr(t)
        u = process.alpha(middle) / process.alpha(t) * x
        u = u - process.sigma(middle) * jnp.expm1(h / 2) * exact(x, t).eps
        solved = process.alpha(s) / process.alpha(t) * x - process.sigma(s) * jnp.expm1(h) * exact(u, middle).eps
        np.testing.assert_allclose(run(DPM2(process), gaussian, x, ts[:2]), solved, rtol=1e-9)


def test_data_of_unit_width_stand_still_in_the_angle() -> None:
    """For N(0, 1) the right-hand side of (4) is 0, so one step of any length, from pure noise, is exact."""
    for process_name in sorted(PROCESSES):
        process = PROCESSES[process_name]()
        exact = jd.GaussianDenoiser(process, 0.0, 1.0)
        x = process.prior_std(1.0) * START
        reached, _ = jd.integrate(RK4(process), exact, None, x, jnp.array([1.0, 0.3]))
        np.testing.assert_allclose(reached, exact.flow(x, 1.0, 0.3), rtol=2e-4, atol=1e-5, err_msg=process_name)


@pytest.mark.parametrize("process_name", sorted(PROCESSES))
def test_from_pure_noise_in_the_angle(process_name: str) -> None:
    """Where alpha(1) = 0, and alpha' is infinite for some, RK4 starts at t = 1 all the same, and is right."""
    process = PROCESSES[process_name]()
    exact = gaussian(process)
    x = process.prior_std(1.0) * START
    ts = jnp.concatenate([jnp.ones(1), ratio_times(process, 40, 20.0, 0.1)])
    reached = run(RK4(process), gaussian, x, ts)
    # to float32's rounding of a step down from infinite rho
    np.testing.assert_allclose(reached, exact.flow(x, ts[0], ts[-1]), atol=5e-3 * float(process.alpha(ts[-1])))


@pytest.mark.parametrize(("name", "order"), [("DDIM", 1), ("Heun", 2), ("DPM2", 2), ("RK4", 4)])
@pytest.mark.parametrize("process_name", ["VP", "VE", "Flow", "DiscreteVP_zero_snr"])
def test_encoding_round_trip(process_name: str, name: str, order: int) -> None:
    """Data to noise and back: the way back undoes the way up to the method's order, and both are small."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        made: dict[str, Callable[[jd.Process], jd.Sampler]] = {
            "DDIM": jd.DDIM,
            "Heun": lambda p: jd.Heun(p, "angle"),
            "DPM2": DPM2,
            "RK4": RK4,
        }
        sampler, gaps = made[name](process), []
        for n in (32, 64, 128):
            down = ratio_times(process, n, 10.0, 0.05)
            x = process.alpha(down[-1]) * START
            code = run(sampler, mixture, x, down[::-1])
            gaps.append(float(jnp.abs(run(sampler, mixture, code, down) - x).max()))
        # orders 2 and 4 undo themselves with one order more: the leading errors of the two ways cancel
        assert np.log2(gaps[0] / gaps[-1]) / 2 > order - 0.3, gaps
        assert gaps[-1] < {1: 0.1, 2: 1e-2, 4: 1e-4}[order]


def test_refusals() -> None:
    process = jd.Flow()
    rising, exact = jnp.array([0.1, 1.0]), gaussian(process)
    for sampler in (RK4(process, "rho"), DPM2(process), RungeKutta(process, MIDPOINT, "log_rho")):
        with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0.*no finite step"):
            jd.integrate(sampler, exact, None, START, rising)  # the end counts as well as the beginning
    with pytest.raises(ValueError, match=r"sigma\(0.0\) = 0 for Flow: RK4 in log_rho"):
        jd.integrate(RK4(process, "log_rho"), exact, None, START, jnp.array([0.0, 0.5]))
    assert "SigmoidVP" in NO_SIGNAL_AT_END
    with pytest.raises(ValueError, match="velocity is infinite"):
        RK4(jd.SigmoidVP(), "t").check(jnp.array([1.0, 0.5]))
    for make in (lambda: RK4(process, "sigma"), lambda: RungeKutta(process, MIDPOINT, "x")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match='"t", "rho", "log_rho" or "angle", got'):
            make()


def test_tableaux_are_checked() -> None:
    # the numbers of rooted trees with 1 to 7 nodes are known (sequence A000081)
    assert [len(set(_trees(n))) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]
    assert [TABLEAUX[name].stages for name in ("rk4", "bogacki_shampine", "dormand_prince")] == [4, 3, 6]
    assert DORMAND_PRINCE.first_same_as_last and not MIDPOINT.first_same_as_last
    euler = {"a": (), "b": (1.0,), "c": (0.0,), "order": 1}
    for change, message in (
        ({"b": (0.5,)}, "b is of order 0, not 1"),
        ({"order": 2}, "b is of order 1, not 2"),
        ({"order": 0}, "not 0"),
        ({"c": (0.5,)}, "row 1 of a sums to 0, its c is 0.5"),
        ({"a": ((0.5,),)}, r"lengths \[\], one less.*got \[1\]"),
        ({"b": (0.5, 0.5)}, "1 weights, one a stage, got 2"),
        ({"embedded": (1.0,), "embedded_order": 1}, "lower order than b's 1, got 1"),
        ({"embedded": (1.0,)}, "not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Tableau(**{**euler, **change})  # type: ignore[arg-type]
    for order, name in ((5, "rk4"), (6, "dormand_prince")):
        good = TABLEAUX[name]
        with pytest.raises(ValueError, match=f"b is of order {order - 1}, not {order}"):
            Tableau(good.a, good.b, good.c, order)
