"""EDICT: its step as the paper's box has it, and rising times that undo falling ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.networks import MLP, functional
from jaxdiff.sampling import EDICT
from tests.tables import PROCESSES, mixture

there_and_back = jax.jit(
    lambda sampler, exact, x, ts: jd.integrate(
        sampler, exact, None, (up := jd.integrate(sampler, exact, None, x, ts[::-1]))[0], ts, state=up[1]
    )
)


def papers_steps(process: Any, exact: Any, x: Any, y: Any, ts: Any, p: float) -> tuple[Any, Any]:
    """Equations 14 of the paper, with its a_t and b_t; the sequences take turns at being the first."""
    for i in range(len(ts) - 1):
        t, s = ts[i], ts[i + 1]
        a = process.alpha(s) / process.alpha(t)
        b = process.sigma(s) - a * process.sigma(t)
        between = a * x + b * exact(y, t).eps
        other = a * y + b * exact(between, t).eps
        x = p * between + (1 - p) * other
        y = p * other + (1 - p) * x
        x, y = y, x
    return x, y


def test_steps_are_the_papers() -> None:
    with jax.enable_x64(True):
        process = jd.VP()
        exact, ts = mixture(process), jd.log_snr_times(process, 7)
        x, y = jax.random.normal(jax.random.key(0), (2, 5, 2))
        found, other = jd.integrate(EDICT(process, 0.9), exact, None, x, ts, state=y)
        expected, second = papers_steps(process, exact, x, y, ts, 0.9)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        np.testing.assert_allclose(other, second, atol=1e-12)


@pytest.mark.parametrize(("name", "steps"), [("VP", 20), ("KarrasVE", 50), ("Flow", 50), ("DiscreteVP_cosine", 20)])
def test_rising_times_undo_falling_ones(name: str, steps: int) -> None:
    """To rounding: 1e-4 in float32, where DDIM is off by the steps' error, and in proportion in float64."""
    process = PROCESSES[name]()
    exact = mixture(process)
    ts = jd.log_snr_times(process, steps)
    x = process.alpha(ts[-1]) * exact.sample_data(jax.random.key(0), 16)
    back, other = there_and_back(EDICT(process), exact, x, ts)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(other, x, atol=1e-4)  # both begin equal, and end so
    ddim, _ = there_and_back(jd.DDIM(process), exact, x, ts)
    assert np.abs(ddim - x).max() > 0.01
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        ts, x = jnp.asarray(ts, jnp.float64), jnp.asarray(x, jnp.float64)
        np.testing.assert_allclose(there_and_back(EDICT(process), mixture(process), x, ts)[0], x, atol=1e-11)


@pytest.mark.parametrize("steps", [20, 50])
def test_a_network_with_guidance_is_undone_too(steps: int) -> None:
    """Whatever the denoiser is: random weights, a condition, classifier-free guidance."""
    process, net = jd.Flow(), functional(MLP(width=16, depth=2, num_classes=3))
    params = jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), net.init(jax.random.key(0))
    )
    denoise = jd.NetworkDenoiser(net, params, process, jd.Velocity())
    guided = jd.ClassifierFree(denoise, 3.0, {"label": jnp.full(8, 3)})
    ts, cond = jd.log_snr_times(process, steps, t_max=0.9), {"label": jnp.arange(8) % 3}
    x = jax.random.normal(jax.random.key(1), (8, 2))
    up, other = jd.integrate(EDICT(process), guided, None, x, ts[::-1], cond)
    back, _ = jd.integrate(EDICT(process), guided, None, up, ts, cond, state=other)
    np.testing.assert_allclose(back, x, atol=1e-4)
    elsewhere, _ = jd.integrate(EDICT(process), guided, None, up, ts, {"label": 2 - cond["label"]}, state=other)
    assert np.abs(elsewhere - x).max() > 0.05


def test_its_own_p_stays_stable_where_a_fixed_one_does_not() -> None:
    """Equation (7): at 400 steps p = 0.93 enlarges the difference by 4e12 on rising times, its own does not."""
    process = jd.VP()
    exact, ts = mixture(process), jd.log_snr_times(process, 400)
    x = process.alpha(ts[-1]) * exact.sample_data(jax.random.key(0), 16)
    for p, bound in ((None, 1e-4), (0.93, jnp.inf)):
        up, _ = jd.integrate(EDICT(process, p), exact, None, x, ts[::-1])
        back, _ = there_and_back(EDICT(process, p), exact, x, ts)
        error, size = (float(jnp.abs(each).max()) for each in (back - x, up))
        assert (error < bound and size < 6) if p is None else (error > 1 and size > 1e3)


def test_what_it_refuses() -> None:
    for p in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match="p is to be above 0 and at most 1, got p = "):
            EDICT(jd.VP(), p)
    x, exact = jnp.ones((1, 2)), mixture(jd.Flow())
    with pytest.raises(ValueError, match="EDICT has no finite step"):
        jd.integrate(EDICT(jd.Flow()), exact, None, x, jnp.array([1.0, 0.5]))
