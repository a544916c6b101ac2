"""Multistep methods: orders from a seeded history, the papers' forms, exact cases, precision, ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff.prediction import from_eps, from_x0
from jaxdiff.sampling.adams import DEIS, IPNDM, LMS
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.multistep import DPMpp2M, DPMpp3M
from jaxdiff.sampling.unipc import UniPC
from tests.sampling.reference import reference_path, seeded_state
from tests.tables import PROCESSES, gaussian, mixture

SEEDS = 4
Make = Callable[[jd.Process], jd.Sampler]
METHODS: dict[str, tuple[Make, int, int]] = {  # method, order from a seeded history, least order from the usual start
    "DPMpp3M": (DPMpp3M, 3, 2),
    "UniP2_B1": (lambda process: UniPC(process, 2, "B1", corrector=False), 2, 2),
    "UniP4": (lambda process: UniPC(process, 4, corrector=False), 4, 2),
    "UniPC1": (lambda process: UniPC(process, 1), 2, 2),
    "UniPC2_B1": (lambda process: UniPC(process, 2, "B1"), 3, 3),
    "UniPC3": (UniPC, 4, 3),
    "UniPC4": (lambda process: UniPC(process, 4), 5, 3),
    "DEIS2_t": (lambda process: DEIS(process, 2), 2, 2),
    "DEIS3_log_rho": (lambda process: DEIS(process, 3, "log_rho"), 3, 2),
    "DEIS4_t": (lambda process: DEIS(process, 4), 4, 2),
    "LMS3": (lambda process: LMS(process, 3), 3, 2),
    "LMS4": (LMS, 4, 2),
    "IPNDM4": (IPNDM, 2, 2),
}
ON_X0: dict[str, Make] = {
    "DPMpp2M": DPMpp2M,
    "DPMpp3M": DPMpp3M,
    "UniPC3": UniPC,
    "UniPC4_B1": lambda process: UniPC(process, 4, "B1"),
    "UniP3": lambda process: UniPC(process, 3, corrector=False),
}
ON_EPS: dict[str, Make] = {
    "DEIS_t": DEIS,
    "DEIS_rho": lambda process: DEIS(process, 3, "rho"),
    "DEIS_log_rho": lambda process: DEIS(process, 4, "log_rho"),
    "LMS": LMS,
    "IPNDM": IPNDM,
}


def half_log_snr(process: jd.Process, t: ArrayLike) -> np.ndarray:
    return 0.5 * np.asarray(process.log_snr(t))


# --- orders


@functools.cache
def places(grid: str, n: int) -> np.ndarray:
    """lambda at n steps from sigma/alpha = 2 to 0.1, preceded by `SEEDS` more: uniform in it, graded, uniform in
    rho."""
    begin, end, u = -math.log(2.0), math.log(10.0), np.arange(-SEEDS, n + 1) / n
    if grid == "rho":
        return -np.log(2.0 + u * (0.1 - 2.0))
    return begin + (end - begin) * (u if grid == "lambda" else (u + 0.5 * u * u) / 1.5)


@jax.jit
def seed(samplers: dict, exact: jd.MixtureDenoiser, xs: jax.Array, ts: jax.Array) -> dict:
    return {name: seeded_state(sampler, lambda x, t: exact(x, t), xs, ts) for name, sampler in samplers.items()}


@jax.jit
def finish(samplers: dict, exact: jd.MixtureDenoiser, states: dict, x: jax.Array, ts: jax.Array, n: int) -> dict:
    return {
        name: jd.integrate(sampler, exact, None, x, ts, state=states[name], num_steps=n)[0]
        for name, sampler in samplers.items()
    }


path = jax.jit(reference_path, static_argnums=4)


def errors_of(process_name: str, samplers: dict, grid: str, counts: tuple[int, ...]) -> tuple[dict, dict]:
    """RMS errors at each number of steps, with a seeded history and with none."""
    process = PROCESSES[process_name]()
    exact = mixture(process)
    start, end = (process.time_of_log_snr(2.0 * places(grid, 8)[i]) for i in (SEEDS, -1))
    x0 = jnp.array([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]])
    x = process.perturb(x0, jax.random.normal(jax.random.key(0), (3, 2)), start)
    truth = path(process, exact, x, jnp.stack([start, end]), 10_000)[-1]
    seeded: dict = {name: [] for name in samplers}
    usual: dict = {name: [] for name in samplers}
    for n in counts:
        ts = process.time_of_log_snr(2.0 * jnp.asarray(places(grid, n)))
        before = path(process, exact, x, ts[SEEDS::-1], 200)[:0:-1]
        states = seed(samplers, exact, before, ts[: SEEDS + 1])
        fresh = {name: sampler.init(x) for name, sampler in samplers.items()}
        padded = pad_times(ts[SEEDS:], counts[-1] + 1)
        for found, begin in ((seeded, states), (usual, fresh)):
            for name, there in finish(samplers, exact, begin, x, padded, n).items():
                found[name].append(float(jnp.sqrt(jnp.square(there - truth).mean())))
    return seeded, usual


def finest_slope(errors: list[float]) -> float:
    """Of the last doubling whose errors stand above rounding."""
    clear = [error for error in errors if error > 3e-13]
    return math.log2(clear[-2] / clear[-1])


@pytest.mark.parametrize(
    ("process_name", "grid"), [("VP", "lambda"), ("VE", "lambda"), ("Flow", "lambda"), ("Flow", "graded")]
)
def test_orders_on_a_mixture(process_name: str, grid: str) -> None:
    """The order as stated where the history lies on the true path; what is left of it from the usual first steps."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        samplers = {name: make(process) for name, (make, _, _) in METHODS.items()}
        seeded, usual = errors_of(process_name, samplers, grid, (320, 640, 1280))
        for name, (_, order, at_least) in METHODS.items():
            assert finest_slope(seeded[name]) >= order - 0.15, (name, seeded[name])
            assert finest_slope(usual[name]) >= at_least - 0.3, (name, usual[name])
            assert usual[name][-1] < 1e-5, (name, usual[name])


def test_ipndm_has_its_order_on_grids_uniform_in_rho() -> None:
    with jax.enable_x64(True):
        samplers = {f"IPNDM{p}": IPNDM(jd.VP(), p) for p in (2, 3, 4)}
        seeded, _ = errors_of("VP", samplers, "rho", (1280, 2560))
        for p in (2, 3, 4):
            assert finest_slope(seeded[f"IPNDM{p}"]) >= p - 0.15, (p, seeded)


# --- the papers' forms, and limits


def textbook_unipc(
    exact: jd.GaussianDenoiser, x: np.ndarray, ts: np.ndarray, order: int, variant: str, corrector: bool
) -> np.ndarray:
    """Zhao et al. 2023, algorithms of UniP and UniC on x0 as printed: matrices, B(h) and the corrected x kept."""
    process = exact.process
    lam = half_log_snr(process, ts)
    alpha, sigma = np.asarray(process.alpha(ts)), np.asarray(process.sigma(ts))
    predictions: list[np.ndarray] = []

    def update(i: int, x: np.ndarray, nodes: list[tuple[float, np.ndarray]]) -> np.ndarray:
        """From time i - 1 to i with D_m at r_m."""
        h, d0 = lam[i] - lam[i - 1], predictions[i - 1]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * d0
        if not nodes:
            return x
        b = h if variant == "B1" else -math.expm1(-h)
        r = np.array([place for place, _ in nodes])
        integrals = [h * quad(lambda u, k=k: math.exp((u - 1.0) * h) * u**k, 0, 1)[0] for k in range(1, len(r) + 1)]
        a = np.linalg.solve(np.stack([r**k for k in range(len(r))]), np.array(integrals) / b) if len(r) > 1 else [0.5]
        return x + alpha[i] * b * sum(a_m / r_m * (d_m - d0) for a_m, r_m, (_, d_m) in zip(a, r, nodes, strict=True))

    kept = predicted = x
    for i, t in enumerate(ts):
        predictions.append(np.asarray(exact(jnp.asarray(predicted), t).x0))
        past = lambda i, p: [  # noqa: E731
            ((lam[j] - lam[i - 1]) / (lam[i] - lam[i - 1]), predictions[j]) for j in range(i - 2, max(i - p, 0) - 1, -1)
        ]
        if i > 0:
            kept = update(i, kept, [(1.0, predictions[i]), *past(i, order)]) if corrector else predicted
        if i < len(ts) - 1:
            predicted = update(i + 1, kept, past(i + 1, order))
    return predicted


def test_unipc_is_the_papers() -> None:
    """Against the matrices of the paper, on uneven grids, every order and variant; UniP-2 and -3 are DPM-Solver++."""
    with jax.enable_x64(True):
        process = jd.VP()
        exact, x = gaussian(process), jnp.array([[0.5, -1.0], [-1.2, 0.3]])
        ts = jnp.array([0.95, 0.8, 0.72, 0.5, 0.33, 0.28, 0.1, 0.03])
        kinds: list[Any] = [(p, b, True) for p in (1, 2) for b in ("B1", "B2")] + [(2, "B1", False), (2, "B2", False)]
        kinds += [(3, "B1", True), (3, "B2", False), (4, "B2", True), (4, "B1", False)]
        run = jax.jit(lambda samplers: [jd.integrate(sampler, exact, None, x, ts)[0] for sampler in samplers])
        found = run([*(UniPC(process, *kind) for kind in kinds), DPMpp2M(process), DPMpp3M(process)])
        for kind, there in zip(kinds, found, strict=False):
            printed = textbook_unipc(exact, np.asarray(x), np.asarray(ts), *kind)
            np.testing.assert_allclose(there, printed, rtol=1e-10, atol=1e-12, err_msg=str(kind))
        np.testing.assert_allclose(found[-2], found[kinds.index((2, "B2", False))], rtol=1e-12)
        np.testing.assert_allclose(found[-1], found[kinds.index((3, "B2", False))], rtol=1e-12)
        assert np.abs(found[kinds.index((2, "B1", True))] - found[kinds.index((2, "B2", True))]).max() > 1e-4


def test_order_one_is_ddim_and_lms_is_deis_in_rho() -> None:
    with jax.enable_x64(True):
        process = jd.Flow()
        exact, x = mixture(process), jnp.array([[0.5, -1.0], [-1.2, 0.3]])
        ts = jnp.array([0.95, 0.7, 0.66, 0.3, 0.05])
        ones = [UniPC(process, 1, corrector=False), DEIS(process, 1), LMS(process, 1), IPNDM(process, 1)]
        fours = [LMS(process, 4), DEIS(process, 4, "rho")]
        run = jax.jit(lambda samplers: [jd.integrate(sampler, exact, None, x, ts)[0] for sampler in samplers])
        ddim, *firsts, lms, deis = run([jd.DDIM(process), *ones, *fours])
        for sampler, there in zip(ones, firsts, strict=True):
            np.testing.assert_array_equal(there, ddim, err_msg=str(sampler))
        np.testing.assert_array_equal(lms, deis)
        assert np.abs(lms - ddim).max() > 1e-3


# --- exact cases


@pytest.mark.parametrize("process_name", ["VP", "KarrasVE"])
def test_methods_on_x0_are_exact_at_a_point(process_name: str) -> None:
    """Data at one point: x0 is constant, and steps of any length are exact, up and down."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact = jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), 0.0)
        ts = process.time_of_log_snr(jnp.array([-5.0, -4.9, 0.0, 3.0, 3.1, 6.0]))
        x = jnp.array([[0.5, -1.0]]) * process.sigma(ts[0])
        run = jax.jit(lambda samplers, x, ts: [jd.integrate(s, exact, None, x, ts)[0] for s in samplers])
        samplers = [make(process) for make in ON_X0.values()]
        truth = exact.flow(x, ts[0], ts[-1])
        for name, down, up in zip(ON_X0, run(samplers, x, ts), run(samplers, truth, ts[::-1]), strict=True):
            np.testing.assert_allclose(down, truth, rtol=1e-10, err_msg=name)
            np.testing.assert_allclose(up, x, rtol=1e-8, err_msg=name)


def test_polynomials_are_integrated_exactly() -> None:
    """eps a polynomial in a basis: DEIS of that many values makes no error on any grid; x0 one in lambda: UniP, 3M."""
    with jax.enable_x64(True):
        process, coefficients = jd.Flow(), np.array([0.3, -0.7, 0.4, 0.2])
        ts = process.time_of_log_snr(2.0 * jnp.array([-2.0, -1.9, -1.0, -0.6, -0.5, 0.7, 0.9, 1.0, 2.2]))
        even = process.time_of_log_snr(-2.0 * jnp.log(jnp.linspace(4.0, 0.4, 9)))
        x, start = jnp.full((1, 1), 0.4), SEEDS

        def basis_of(name: str, t: ArrayLike) -> jax.Array:
            lam = 0.5 * process.log_snr(t)
            return {"t": jnp.asarray(t), "rho": jnp.exp(-lam), "log_rho": lam}[name]

        def value(basis: str, degree: int, t: ArrayLike) -> jax.Array:
            return sum(coefficients[k] * basis_of(basis, t) ** k for k in range(degree + 1))

        cases: list[tuple[jd.Sampler, str, int, jax.Array, str]]
        cases = [(DEIS(process, p, b), b, p - 1, ts, "eps") for p in (2, 4) for b in ("t", "rho", "log_rho")]
        cases += [(LMS(process, 3), "rho", 2, ts, "eps"), (IPNDM(process, 4), "rho", 3, even, "eps")]
        cases += [(DPMpp3M(process), "log_rho", 2, ts, "x0")]
        cases += [(UniPC(process, p, "B1", corrector=p == 4), "log_rho", p - 1, ts, "x0") for p in (3, 4)]

        def denoiser(basis: str, degree: int, what: str) -> jd.Denoiser:
            read = from_eps if what == "eps" else from_x0
            return lambda x, t, cond=None: read(process, x, t, jnp.full_like(x, value(basis, degree, t)))

        @jax.jit
        def run() -> list[jax.Array]:
            found = []
            for sampler, basis, degree, grid, what in cases:
                denoise = denoiser(basis, degree, what)
                state = seeded_state(sampler, denoise, jnp.tile(x, (start, 1, 1)), grid[: start + 1])
                found.append(jd.integrate(sampler, denoise, None, x, grid[start:], state=state)[0])
            return found

        ends = np.array([start, -1])
        for (sampler, basis, degree, grid, what), there in zip(cases, run(), strict=True):
            sign = -1.0 if what == "eps" else 1.0  # (x/alpha)' = -e^-lambda eps, (x/sigma)' = e^lambda x0

            @jax.jit
            def integrand(lam: float) -> jax.Array:
                return sign * jnp.exp(sign * lam) * value(basis, degree, process.time_of_log_snr(2.0 * lam))  # noqa: B023

            integral = quad(integrand, *half_log_snr(process, grid[ends]), epsabs=1e-12, epsrel=1e-12)[0]
            begin, end = (process.alpha if what == "eps" else process.sigma)(grid[ends])
            np.testing.assert_allclose(there, end * (x / begin + integral), rtol=1e-9, err_msg=f"{sampler} {basis}")


# --- ends, precision, refusals


@pytest.mark.parametrize("process_name", ["Flow", "DiscreteVP_zero_snr"])
def test_a_start_without_signal_leaves_no_trace(process_name: str) -> None:
    """From alpha = 0 the first step is DDIM's, and what follows is as if begun after it; back up it ends finite."""
    process = PROCESSES[process_name]()
    exact, ts = mixture(process), jnp.array([1.0, 0.8, 0.55, 0.5, 0.2, 0.1])
    x = process.prior_sample(jd.sample_keys(jax.random.key(0), 0, 3), (2,))
    samplers = {name: make(process) for name, make in ON_X0.items()}

    @jax.jit
    def run(samplers: dict, x: jax.Array, ts: jax.Array, n: int) -> dict:
        return {name: jd.integrate(s, exact, None, x, ts, num_steps=n)[0] for name, s in samplers.items()}

    after = jd.integrate(jd.DDIM(process), exact, None, x, ts[:2])[0]
    whole, rest = run(samplers, x, ts, 5), run(samplers, after, pad_times(ts[1:], 6), 4)
    up = run(samplers, x, ts[::-1], 5)
    for name in samplers:
        np.testing.assert_allclose(whole[name], rest[name], rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.isfinite(up[name]).all(), name
    for make in ON_EPS.values():
        with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0"):
            jd.sample(make(process), exact, None, x, ts)


def test_both_ends_are_reached_when_encoding() -> None:
    """Rising from sigma = 0, and on x0 to alpha = 0, where lambda is infinite, every method follows the flow."""
    process = jd.Flow()
    exact, x = gaussian(process), jnp.array([[0.5, -0.5], [0.9, -0.3]])
    inside = jd.log_snr_times(process, 60, t_max=0.99, t_min=0.01)[::-1]
    run = jax.jit(lambda samplers, ts: [jd.integrate(sampler, exact, None, x, ts)[0] for sampler in samplers])
    for methods, last in ((ON_X0, 1.0), (ON_EPS, 0.995)):
        ts = jnp.concatenate([jnp.zeros(1), inside, jnp.array([last])])
        found = run([make(process) for make in methods.values()], ts)
        for name, there in zip(methods, found, strict=True):
            np.testing.assert_allclose(there, exact.flow(x, 0.0, last), atol=0.03, err_msg=name)


def test_float32_follows_float64() -> None:
    """A thousand steps in float32, where differences of lambda are a few digits, end where those in float64 do."""
    samplers = {**ON_EPS, "DPMpp3M": DPMpp3M, "UniPC4_B1": ON_X0["UniPC4_B1"]}
    ends = []
    for double in (False, True):
        with jax.enable_x64(double):
            process = jd.VP()
            exact, x = mixture(process), jnp.array([[0.5, -1.0], [-1.2, 0.3]])
            ts = jd.log_snr_times(process, 1001)
            run = jax.jit(lambda samplers, x, ts: [jd.sample(s, exact, None, x, ts) for s in samplers])  # noqa: B023
            ends.append(np.asarray(run([make(process) for make in samplers.values()], x, ts)))
    for name, single, double in zip(samplers, *ends, strict=True):
        np.testing.assert_allclose(single, double, atol=3e-4, err_msg=name)


def test_fields_are_checked() -> None:
    makes: list[Callable] = [UniPC, DEIS, LMS, IPNDM]
    for make in makes:
        for order in (0, 5, 2.0):
            with pytest.raises(ValueError, match="is to be 1 to 4, got"):
                make(jd.VP(), order)
    with pytest.raises(ValueError, match="got 'B3'"):
        UniPC(jd.VP(), 3, "B3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'sigma'"):
        DEIS(jd.VP(), 3, "sigma")  # type: ignore[arg-type]
