"""The rules that stand in the place of classifier-free guidance: their limits, closed forms, and what they refuse."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, begin, recall
from jaxdiff.guidance import apply
from jaxdiff.guidance.frequency import pyramid
from jaxdiff.guidance.tangential import damped
from jaxdiff.prediction import from_eps, from_v, from_x0, mix
from jaxdiff.record import field, record

PROCESSES = {"vp": jd.VP(), "flow": jd.Flow(), "ve": jd.VE()}
RULES: dict[str, Any] = {
    "cfg": jd.CFG,
    "apg": jd.APG,
    "cfgzero": jd.CFGZeroStar,
    "tcfg": jd.TCFG,
    "fdg": lambda weight: jd.FDG(weight, weight),
    "rising": lambda weight: jd.CFG(jd.guidance.Rising(weight, "cosine")),
}
"""Those whose weight 1 is the plain model."""


@record
class Pictures:
    """An exact denoiser of Gaussian pictures whose mean is a pattern of the label, none for label 3; in the words of a
    parameterization."""

    process: jd.Process
    words: str = field(default="x0", pytree_node=False)

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        assert cond is not None
        label = cond["label"]
        pattern = jax.random.normal(jax.random.key(5), (4, *x.shape[1:])).at[3].set(0.0)[label]
        width = expand(jnp.where(label == 3, 1.5, 0.5), x)
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        gain = width**2 * alpha / (width**2 * alpha**2 + sigma**2)
        found = from_x0(self.process, x, t, pattern + gain * (x - alpha * pattern))
        if self.words == "eps":
            return from_eps(self.process, x, t, found.eps)
        return from_v(self.process, x, t, found.v(self.process, t)) if self.words == "v" else found


COND, NULLS = {"label": jnp.array([0, 1, 2])}, {"label": 3}
X = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))


def guided(process: jd.Process, *elements: Any, words: str = "x0") -> Any:
    return apply(elements, Pictures(process, words), process, NULLS)


def branches(process: jd.Process, x: jax.Array, t: float) -> tuple[jd.Prediction, jd.Prediction]:
    plain = Pictures(process)
    return plain(x, t, COND), plain(x, t, {"label": jnp.full(3, 3)})


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", RULES)
def test_weight_1_is_the_plain_model_bit_for_bit(name: str, process: jd.Process) -> None:
    plain = Pictures(process)(X, 0.6, COND)
    found = guided(process, RULES[name](1.0))(X, 0.6, COND)
    for each in ("x0", "eps"):
        np.testing.assert_array_equal(getattr(found, each), getattr(plain, each))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", [*RULES, "rescale", "dynamic"])
def test_the_pair_stays_one_of_x_under_every_parameterization(name: str, process: jd.Process) -> None:
    limits: dict[str, list[Any]] = {"rescale": [jd.Rescale(0.5)], "dynamic": [jd.Dynamic(0.9, 0.5)]}
    after = limits.get(name, [])
    elements = [RULES.get(name, jd.CFG)(4.0), *after]
    usual = guided(process, *elements)(X, 0.4, COND)
    np.testing.assert_allclose(process.perturb(usual.x0, usual.eps, 0.4), X, rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(usual.x0 - Pictures(process)(X, 0.4, COND).x0).max()) > 0.1
    for words in ("eps", "v"):
        same = guided(process, *elements, words=words)(X, 0.4, COND)
        np.testing.assert_allclose(same.x0, usual.x0, rtol=2e-3, atol=2e-3)


def test_rules_become_classifier_free_guidance() -> None:
    """APG without momentum, length and projection; FDG of equal weights; the mean over t of rising weights."""
    process = jd.Flow()
    cfg = guided(process, jd.CFG(3.0))(X, 0.5, COND)
    for rule in (jd.APG(3.0, eta=1.0, momentum=0.0), jd.FDG(3.0, 3.0, levels=2), jd.FDG(3.0, 3.0)):
        np.testing.assert_allclose(guided(process, rule)(X, 0.5, COND).x0, cfg.x0, rtol=1e-4, atol=1e-5)
    ts = (jnp.arange(1000) + 0.5) / 1000
    for shape in ("linear", "cosine"):
        weights = jd.guidance.Rising(3.0, shape)(process, ts)
        np.testing.assert_allclose(weights.mean(), 3.0, rtol=1e-5)
        assert (jnp.diff(weights) < 0).all() and abs(float(weights[-1]) - 1.0) < 0.01
    levels = jd.guidance.ByNoise((0.1, 1.0, 10.0), (1.0, 4.0, 2.0))
    times = process.time_of_log_snr(-2.0 * jnp.log(jnp.array([0.01, 0.1, 10**-0.5, 1.0, 10**0.5, 10.0, 50.0])))
    np.testing.assert_allclose(levels(process, times), [1, 1, 2.5, 4, 3, 2, 2], atol=2e-3)


def test_apg_by_hand() -> None:
    """Two evaluations by the paper's algorithm in numpy: momentum, then the length, then the projection."""
    process, rule = jd.VP(), jd.APG(5.0, eta=0.25, norm=3.0, momentum=-0.6)
    denoise = guided(process, rule)
    memory, average = begin(denoise, X, COND), np.zeros(X.shape)
    for t in (0.7, 0.5):
        found, memory = recall(denoise, X, t, COND, memory)
        given, without = (np.asarray(part.x0, np.float64) for part in branches(process, X, t))
        average = (given - without) - 0.6 * average
        expected = []
        for d, e in zip(average, given, strict=True):
            d = d * min(1.0, 3.0 / np.linalg.norm(d))
            along = (d * e).sum() / (e * e).sum() * e
            expected.append(e + 4.0 * (d - along + 0.25 * along))
        np.testing.assert_allclose(found.x0, expected, rtol=1e-4, atol=1e-5)
    at_once = guided(process, jd.APG(5.0, eta=0.25, norm=3.0, momentum=0.0))(X, 0.7, COND)
    np.testing.assert_allclose(denoise(X, 0.7, COND).x0, at_once.x0, rtol=1e-5)  # without a loop: no momentum
    change = at_once.x0 - branches(process, X, 0.7)[0].x0
    assert (jnp.linalg.norm(change.reshape(3, -1), axis=1) <= 4.0 * 3.0 + 1e-3).all()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_cfgpp_is_the_papers_step_and_a_weight_of_cfg(process: jd.Process) -> None:
    """Algorithm 2 by hand, and equation (2) of the module: lambda rho_t/(rho_t - rho_s)."""
    t, s = jnp.array(0.6), jnp.array(0.45)
    plus = guided(process, jd.CFGPlusPlus(0.7))
    found, _ = jd.DDIM(process).step(lambda x, t: plus(x, t, COND), None, (), X, t, s)  # type: ignore[arg-type]
    given, without = branches(process, X, 0.6)
    mixed = without.eps + 0.7 * (given.eps - without.eps)
    x0 = (X - process.sigma(t) * mixed) / process.alpha(t)
    np.testing.assert_allclose(found, process.alpha(s) * x0 + process.sigma(s) * without.eps, rtol=1e-3, atol=1e-3)
    rho_t, rho_s = (process.sigma(at) / process.alpha(at) for at in (t, s))
    weight = guided(process, jd.CFG(0.7 * rho_t / (rho_t - rho_s)))
    same, _ = jd.DDIM(process).step(lambda x, t: weight(x, t, COND), None, (), X, t, s)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, same, rtol=2e-3, atol=2e-3)


def test_cfg_zero_star_by_hand() -> None:
    process = jd.Flow()
    u, v = (np.asarray(part.velocity(process, 0.4), np.float64) for part in branches(process, X, 0.4))
    scale = (u * v).sum((1, 2, 3), keepdims=True) / (v * v).sum((1, 2, 3), keepdims=True)
    expected = 3.0 * u - 2.0 * scale * v
    found = guided(process, jd.CFGZeroStar(3.0, zero=0.5))(X, 0.4, COND)
    np.testing.assert_allclose(found.velocity(process, 0.4), expected, rtol=1e-3, atol=1e-4)
    for t in (0.6, 1.0):
        still = guided(process, jd.CFGZeroStar(3.0, zero=0.5))(X, t, COND)
        np.testing.assert_array_equal(still.velocity(process, t), np.zeros(X.shape))


@pytest.mark.parametrize("shape", [(3, 7), (3, 8, 8, 1)])
def test_tangential_damping_is_the_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    a, b = jax.random.normal(jax.random.key(1), (2, *shape))
    rows = np.stack([np.asarray(a).reshape(3, -1), np.asarray(b).reshape(3, -1)], axis=1)
    first = np.linalg.svd(rows, full_matrices=False)[2][:, 0]  # (3, D)
    expected = (first * rows[:, 1]).sum(1, keepdims=True) * first
    np.testing.assert_allclose(np.asarray(damped(a, b)).reshape(3, -1), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(damped(b, a), damped(b, a), rtol=0)
    np.testing.assert_allclose(damped(a, 2.0 * a), 2.0 * a, rtol=1e-5)  # nothing across the common direction


def test_tangential_damping_at_pure_noise_is_its_limit() -> None:
    rule, x = jd.TCFG(4.0), X
    process = jd.Flow()
    end = guided(process, rule)(x, 1.0, COND)
    assert jnp.isfinite(end.x0).all()
    near = guided(process, rule)(x, 1.0 - 1e-2, COND)
    nearer = guided(process, rule)(x, 1.0 - 5e-3, COND)
    extrapolated = 2.0 * nearer.x0 - near.x0
    np.testing.assert_allclose(end.x0, extrapolated, rtol=0.02, atol=0.02)


def test_bands_of_a_pyramid() -> None:
    """They add up; a constant is all in the last; the checkerboard, the highest frequency, all in the first."""
    x = jax.random.normal(jax.random.key(2), (2, 16, 12, 3))
    for levels in (1, 2, 3):
        np.testing.assert_allclose(sum(pyramid(x, levels)), x, rtol=1e-4, atol=1e-5)
    flat = jnp.ones((1, 8, 8, 1))
    first, last = pyramid(flat, 1)
    np.testing.assert_allclose(first, 0.0, atol=1e-6)
    np.testing.assert_allclose(last, flat, rtol=1e-6)
    board = jnp.where(jnp.indices((16, 16)).sum(0) % 2, 1.0, -1.0).reshape(1, 16, 16, 1)
    first, last = (part[:, 4:-4, 4:-4] for part in pyramid(board, 1))
    np.testing.assert_allclose(last, 0.0, atol=1e-4)
    low = guided(jd.VP(), jd.FDG(1.0, 6.0))(X, 0.5, COND).x0
    by_hand = branches(jd.VP(), X, 0.5)
    high = pyramid(by_hand[0].x0 - by_hand[1].x0, 1)[0]
    np.testing.assert_allclose(low, by_hand[0].x0 + 5.0 * high, rtol=1e-4, atol=1e-4)


def test_rescale_and_thresholds_by_hand() -> None:
    process = jd.VP()
    plain, cfg = branches(process, X, 0.5)[0].x0, guided(process, jd.CFG(6.0))(X, 0.5, COND).x0
    for phi in (0.0, 0.7, 1.0, jnp.array([0.0, 0.5, 1.0])):
        found = guided(process, jd.CFG(6.0), jd.Rescale(phi))(X, 0.5, COND).x0
        ratio = np.std(plain, axis=(1, 2, 3)) / np.std(cfg, axis=(1, 2, 3))
        factor = (phi * ratio + 1 - phi).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(found, factor * cfg, rtol=1e-4, atol=1e-5)
    for quantile, limit in ((0.9, 1.0), (1.0, 0.5), (0.5, 100.0)):
        found = guided(process, jd.CFG(6.0), jd.Dynamic(quantile, limit))(X, 0.5, COND).x0
        s = np.maximum(np.quantile(np.abs(cfg), quantile, axis=(1, 2, 3)), limit).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(found, np.clip(cfg, -s, s) * limit / s, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(guided(process, jd.CFG(6.0), jd.Static(0.5))(X, 0.5, COND).x0, np.clip(cfg, -0.5, 0.5))


def test_numbers_of_rules_are_data() -> None:
    process = jd.VP()
    for make in (
        lambda w: (jd.APG(w, w, w, w / 9),),
        lambda w: (jd.CFGZeroStar(w, w / 9),),
        lambda w: (jd.FDG(w, 2 * w), jd.Rescale(w / 9), jd.Dynamic(w / 9, w)),
        lambda w: (jd.CFG(jd.guidance.ByNoise((0.1 * w, 9.0 * w), (w, 1.0))), jd.Interval(0.1, 5.0 * w)),
        lambda w: (jd.CFG({"label": w}), jd.And({"label": jnp.full(3, 1)}, -w)),
        lambda w: (jd.CFGPlusPlus(w), jd.Interval(0.0, 9.0 * w)),
    ):
        chex.clear_trace_counter()
        run = jax.jit(chex.assert_max_traces(lambda elements: guided(process, *elements)(X, 0.5, COND).x0, n=1))
        found = [run(make(jnp.float32(w))) for w in (1.0, 2.0, 3.0)]
        assert not np.allclose(found[1], found[2])


def test_lists_that_mean_nothing_are_refused() -> None:
    process = jd.VP()
    for elements, message in (
        ((jd.CFG(2.0), jd.APG(2.0)), "apg is to stand once in a list of guidance.*in the place of cfg"),
        ((jd.Rescale(0.5),), "rescale changes guidance that stands before it"),
        ((jd.CFGPlusPlus(0.5), jd.Rescale(0.5)), "CFGPlusPlus keeps x0 and eps apart, and Rescale behind it"),
        ((jd.CFGPlusPlus(0.5), jd.Reuse(2)), "CFGPlusPlus keeps x0 and eps apart, and Reuse behind it"),
        ((jd.APG(2.0), jd.And({"label": jnp.full(3, 1)})), "and joins a condition to cfg: put cfg right before it"),
    ):
        with pytest.raises(ValueError, match=message):
            guided(process, *elements)
    with pytest.raises(ValueError, match="fdg of 4 levels is for images of at least 16 pixels a side"):
        guided(process, jd.FDG(1.0, 2.0, levels=4))(X, 0.5, COND)
    with pytest.raises(ValueError, match=r"cfg has a weight for \['style'\]; the conditions that can be guided"):
        guided(process, jd.CFG({"style": 2.0}))(X, 0.5, COND)
    with pytest.raises(ValueError, match=r"and joins \['style'\], and the conditions of this call"):
        guided(process, jd.CFG(2.0), jd.And({"style": jnp.zeros(3)}))(X, 0.5, COND)
    with pytest.raises(ValueError, match="rising levels sigma/alpha above 0"):
        jd.guidance.ByNoise((1.0, 0.1), (1.0, 2.0))
    for number in (0.0, 1.5):
        with pytest.raises(ValueError, match="a dynamic threshold has a quantile above 0 and at most 1"):
            jd.Dynamic(number)


def test_several_conditions_have_weights_of_their_own() -> None:
    """InstructPix2Pix's equation 3 by hand; equal weights are one weight; 1 is plain bit for bit; and, not."""

    def two(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        assert cond is not None
        shift = jnp.where(cond["a"] == 9, 0.0, jnp.where(cond["b"] == 9, 1.0, 3.0) * cond["a"]) + cond["b"]
        return from_x0(process, x, t, expand(shift, x) + 0.5 * x)

    process, x = jd.VP(), jax.random.normal(jax.random.key(3), (2, 4))
    cond, nulls = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([4.0, 5.0])}, {"a": 9.0, "b": 9.0}

    def x0(*elements: Any) -> np.ndarray:
        return np.asarray(apply(elements, two, process, nulls)(x, 0.5, cond).x0)

    def at(a: Any, b: Any) -> np.ndarray:
        full = {"a": jnp.broadcast_to(jnp.asarray(a), 2), "b": jnp.broadcast_to(jnp.asarray(b), 2)}
        return np.asarray(two(x, 0.5, full).x0)

    none, only_a, only_b, both = at(9.0, 9.0), at(cond["a"], 9.0), at(9.0, cond["b"]), at(cond["a"], cond["b"])
    np.testing.assert_allclose(
        x0(jd.CFG({"a": 2.0, "b": 1.5})), none + 2.0 * (only_a - none) + 1.5 * (both - only_a), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        x0(jd.CFG({"b": 2.0, "a": 1.5})), none + 2.0 * (only_b - none) + 1.5 * (both - only_b), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(x0(jd.CFG({"a": 2.0})), only_b + 2.0 * (both - only_b), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x0(jd.CFG({"a": 3.0, "b": 3.0})), x0(jd.CFG(3.0)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(x0(jd.CFG({"a": 1.0, "b": 1.0})), both)
    other = {"a": jnp.full(2, 7.0)}
    joined = at(7.0, 9.0)
    for weights in (2.0, {"b": 2.0, "a": 2.0}):
        found = x0(jd.CFG(weights), jd.And(other, 1.5), jd.And({"b": jnp.full(2, 6.0)}, -0.5))
        by_hand = none + 2.0 * (both - none) + 1.5 * (joined - none) - 0.5 * (at(9.0, 6.0) - none)
        np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(x0(jd.CFG(1.0), jd.And(other, 0.0)), both)


def test_interval_reuse_and_memory_go_with_every_rule() -> None:
    """Inside an interval as without it, outside plain; together and one after the other alike; through a sampler."""
    process, ts = jd.VP(), jd.log_snr_times(jd.VP(), 3)
    for name, make in RULES.items():
        element = make(3.0)
        inside = guided(process, element, jd.Interval(0.0, 1e9))(X, 0.5, COND).x0
        np.testing.assert_allclose(inside, guided(process, element)(X, 0.5, COND).x0, rtol=1e-5, atol=1e-6)
        outside = guided(process, element, jd.Rescale(0.3), jd.Interval(0.0, 1e-9))(X, 0.5, COND).x0
        np.testing.assert_allclose(outside, branches(process, X, 0.5)[0].x0, rtol=1e-6)
        if name not in ("apg", "rising"):  # with a memory of its own, and with a time
            continue
        run = jax.jit(lambda d: jd.sample(jd.DDIM(process), d, None, X, ts, COND))
        whole = run(guided(process, element))
        for other in ([jd.Interval()], [jd.Reuse(1)], [jd.Rescale(0.0)]):
            np.testing.assert_allclose(run(guided(process, element, *other)), whole, rtol=2e-4, atol=2e-4, err_msg=name)
    apart = run(guided(process, jd.APG(3.0, sequential=True)))
    np.testing.assert_allclose(apart, run(guided(process, jd.APG(3.0))), rtol=1e-4, atol=1e-5)
    assert mix(branches(process, X, 0.5)[0], (0.0, branches(process, X, 0.5)[1])).x0.shape == X.shape
