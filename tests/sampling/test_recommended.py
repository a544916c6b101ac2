"""Smoothed processes, tabulated multistep methods and the recommendation made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.typing import ArrayLike

from jaxdiff import (
    DDIM,
    VE,
    VP,
    CosineVP,
    DPMpp2M,
    Flow,
    GaussianDenoiser,
    KarrasVE,
    MixtureDenoiser,
    Process,
    Shifted,
    SubVP,
    integrate,
    log_snr_times,
)
from jaxdiff.denoiser import Cond
from jaxdiff.prediction import Prediction
from jaxdiff.sampling.base import Sampler, check_times
from jaxdiff.sampling.recommended import GRIDS, WEIGHTS, data_scale, recommended, recommended_times
from jaxdiff.sampling.smoothed import Smoothed, SmoothedDenoiser
from jaxdiff.sampling.tabulated import Tabulated
from jaxdiff.sampling.unipc import UniPC

PROCESSES = (VP(), SubVP(), Flow())
WIDTH = 0.15


def smoothed(process: Process, std: float, width: float) -> tuple[GaussianDenoiser, Smoothed, SmoothedDenoiser]:
    exact = GaussianDenoiser(process, 0.5, std)
    wide = Smoothed(process, width)
    return exact, wide, SmoothedDenoiser(exact, wide)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_one_step_is_exact_where_the_width_is_the_datas(process: Process) -> None:
    exact, wide, denoise = smoothed(process, WIDTH, WIDTH)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    ts = jnp.array([0.9, 0.0])
    x0, _ = integrate(DDIM(wide), denoise, None, x, ts)
    np.testing.assert_allclose(x0, exact.flow(x, ts[0], ts[1]), atol=2e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_smoothed_predictions_are_those_of_the_blurred_points(process: Process) -> None:
    _, wide, denoise = smoothed(process, 0.5, 0.3)
    points = GaussianDenoiser(wide, 0.5, 0.4)  # 0.4^2 + 0.3^2 = 0.5^2
    x, t = jax.random.normal(jax.random.key(0), (4, 3)), 0.3
    for got, expected in zip(denoise(x, t)[:2], points(x, t)[:2], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(wide.log_snr(t), Process.log_snr(wide, t), rtol=1e-5)


def test_no_width_is_the_plain_method() -> None:
    process = VP()
    exact, wide, denoise = smoothed(process, 0.3, 0.0)
    x, ts = jax.random.normal(jax.random.key(0), (4, 3)), log_snr_times(process, 6)
    plain, _ = integrate(UniPC(process), exact, None, x, ts)
    got, _ = integrate(UniPC(wide), denoise, None, x, ts)
    np.testing.assert_allclose(got, plain, atol=1e-5)


@pytest.mark.parametrize(("make", "order"), [(DDIM, 1), (DPMpp2M, 2)])
def test_any_width_keeps_the_order(make: type[Sampler], order: int) -> None:
    with jax.enable_x64(True):
        process = Flow()
        exact, wide, denoise = smoothed(process, 0.6, 0.2)
        x, errors = jnp.linspace(-1.0, 1.0, 4)[:, None], []
        for n in (40, 80):
            ts = jnp.linspace(0.6, 0.0, n + 1)
            x0, _ = integrate(make(wide), denoise, None, x, ts)
            errors.append(float(jnp.abs(x0 - exact.flow(x, ts[0], ts[-1])).max()))
        assert np.log2(errors[0] / errors[1]) > order - 0.15


def test_a_table_of_its_own_weights_is_dpmpp2m() -> None:
    process, ts = VP(), jnp.array([0.9, 0.7, 0.4, 0.2, 0.1])
    h = np.diff(0.5 * np.asarray(process.log_snr(ts)))
    weights = np.eye(4)
    for i in range(1, 4):
        weights[i, i], weights[i, i - 1] = 1 + 0.5 * h[i] / h[i - 1], -0.5 * h[i] / h[i - 1]
    exact = MixtureDenoiser(process, jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 0.2)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    expected, _ = integrate(DPMpp2M(process), exact, None, x, ts)
    got, _ = integrate(Tabulated(process, jnp.asarray(weights)), exact, None, x, ts)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_table_refuses_more_steps_than_rows() -> None:
    with pytest.raises(ValueError, match="2 rows"):
        exact = GaussianDenoiser(VP(), 0.0, 1.0)
        integrate(Tabulated(VP(), jnp.eye(2)), exact, None, jnp.ones((1, 1)), jnp.array([0.9, 0.5, 0.3, 0.1]))


def test_tables() -> None:
    for n, rhos in GRIDS.items():
        assert len(rhos) == n
        assert rhos[0] <= 80
        assert (np.diff(rhos) < 0).all()
    for n, rows in WEIGHTS.items():
        assert [len(row) for row in rows] == list(range(1, n + 1))
        np.testing.assert_allclose([sum(row) for row in rows], 1.0, atol=1e-4)


@pytest.mark.parametrize("n", [5, 6, 12, 30, 200])
def test_times_of_any_budget(n: int) -> None:
    ts = np.asarray(recommended_times(VP(), n))
    assert ts.shape == (n + 1,)
    assert ts[-1] == 0
    assert (np.diff(ts) < 0).all()


def test_times_refuse_fewer_than_the_table_has() -> None:
    with pytest.raises(ValueError, match="begins at 5"):
        recommended_times(VP(), 4)


@pytest.mark.parametrize("n", [5, 12])
def test_recommended_beats_the_plain_method_at_as_many_evaluations(n: int) -> None:
    process = Flow()
    calls: list[int] = []
    means = jnp.array([[-0.9, 0.4], [0.7, 0.8], [0.1, -1.0]])
    exact = MixtureDenoiser(process, means, 0.15)

    def counted(x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    noise = jax.random.normal(jax.random.key(1), (256, 2))
    fine = log_snr_times(process, 300, t_max=recommended_times(process, 20)[0])

    def start(t: Array) -> Array:
        return process.sigma(t) * noise

    reference, _ = integrate(UniPC(process), exact, None, start(fine[0]), fine)
    coarse = log_snr_times(process, n, t_max=fine[0], t_min=process.time_of_log_snr(-2 * np.log(0.05)))
    last, _ = integrate(UniPC(process), exact, None, start(coarse[0]), coarse)
    plain = exact(last, coarse[-1]).x0
    sampler, wide, ts = recommended(process, counted, n)
    got, _ = integrate(sampler, wide, None, start(ts[0]), ts)
    jax.effects_barrier()
    assert len(calls) == n
    errors = [float(jnp.sqrt(jnp.square(x0 - reference).mean(axis=1)).mean()) for x0 in (got, plain)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize(
    "process", [VE(), VE(0.01, 1500.0), VE(0.5, 3.0), KarrasVE(), Flow(), CosineVP(), Shifted(Flow(), 3.0)], ids=repr
)
@pytest.mark.parametrize("n", [5, 15, 50])
def test_times_of_any_process(process: Process, n: int) -> None:
    """They fall, whatever the process' ends, and begin at the table's share of its own end."""
    ts = recommended_times(process, n)
    check_times(Smoothed(process, 0.1), ts)
    scale = float(data_scale(process))
    rho = float(process.sigma(ts[0]) / process.alpha(ts[0]))
    assert rho == pytest.approx(scale * GRIDS[n][0], rel=2e-3)


def test_recommended_is_the_same_in_other_units() -> None:
    """Data, noise and prior 20 times as large: the samples are 20 times as large, and so is the width."""
    results = []
    for scale in (1.0, 20.0):
        process = VE(0.01 * scale, 80.0 * scale)
        exact = MixtureDenoiser(process, scale * jnp.array([[-0.9, 0.4], [0.7, 0.8]]), 0.15 * scale)
        sampler, wide, ts = recommended(process, exact, 10)
        x = process.sigma(ts[0]) * jax.random.normal(jax.random.key(1), (64, 2))
        results.append(integrate(sampler, wide, None, x, ts)[0] / scale)
    np.testing.assert_allclose(results[1], results[0], atol=2e-3)
    with pytest.raises(ValueError, match=r"VE ends below the first points of this grid, whose scale is 30\.0"):
        recommended(VE(), GaussianDenoiser(VE(), 0.0, 1.0), 50, scale=30.0)
