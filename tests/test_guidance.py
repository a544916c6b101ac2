"""Guidance as functions of denoisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance import Guided, apply
from jaxdiff.prediction import from_x0, mix
from jaxdiff.record import record

PROCESS = jd.VP()


def by_label(x: jax.Array, t: object, cond: Cond | None = None) -> jd.Prediction:
    """A denoiser whose eps is the label, its variance output too."""
    assert cond is not None
    eps = jnp.broadcast_to(cond["label"].reshape(-1, 1).astype(x.dtype), x.shape)
    alpha, sigma = PROCESS.alpha(0.5), PROCESS.sigma(0.5)
    return jd.Prediction((x - sigma * eps) / alpha, eps, eps)


def test_classifier_free_extrapolates() -> None:
    x, cond = jnp.ones((3, 2)), {"label": jnp.array([0, 1, 2])}
    for weight in (0.0, 1.0, 4.0, jnp.array([0.0, 1.0, 3.0])):
        got = jd.ClassifierFree(by_label, weight, {"label": 10})(x, jnp.asarray(0.5), cond)
        expected = 10 + jnp.broadcast_to(weight, (3,)) * (cond["label"] - 10.0)
        np.testing.assert_allclose(got.eps[:, 0], expected, rtol=1e-6)
        np.testing.assert_allclose(PROCESS.perturb(got.x0, got.eps, 0.5), x, rtol=1e-5)
        assert got.variance is not None
        np.testing.assert_array_equal(got.variance[:, 0], cond["label"])  # the conditional branch's
    plain = jd.ClassifierFree(by_label, 1.0, {"label": 10})(x, jnp.full(3, 0.5), cond)
    np.testing.assert_array_equal(plain.eps, by_label(x, 0.5, cond).eps)


def test_guidance_weight_is_data() -> None:

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(denoise: jd.Contrasted, x: jax.Array) -> jax.Array:
        return denoise(x, 0.5, {"label": jnp.arange(2)}).eps

    static = jax.tree_util.Partial(by_label)
    for weight in (1.0, 2.5, 7.0):
        run(jd.ClassifierFree(static, weight, {"label": 10}), jnp.zeros((2, 2)))


def test_guidance_without_a_condition_is_refused() -> None:
    guided = jd.ClassifierFree(by_label, 2.0, {"label": 10})
    for cond in (None, {"text": jnp.zeros((2, 4))}):
        with pytest.raises(ValueError, match=r"guidance needs cond with \['label'\]"):
            guided(jnp.zeros((2, 2)), 0.5, cond)


def test_clipped_limits_x0_and_keeps_x() -> None:
    exact = jd.GaussianDenoiser(PROCESS, 0.0, 5.0)
    x = jnp.linspace(-6, 6, 10).reshape(5, 2)
    got = jd.Clipped(exact, PROCESS)(x, 0.3)
    assert float(jnp.abs(got.x0).max()) == 1.0
    np.testing.assert_allclose(PROCESS.perturb(got.x0, got.eps, 0.3), x, rtol=1e-5)
    inside = jnp.abs(exact(x, 0.3).x0) < 1
    np.testing.assert_allclose(jnp.where(inside, got.eps - exact(x, 0.3).eps, 0.0), 0.0, atol=1e-5)


@record
class Labelled:
    """A denoiser of Gaussian data about a fifth of the label (0 for label 10), of deviation 1/2; notes its rows."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        assert cond is not None
        jax.debug.callback(ROWS.append, x.shape[0])
        label = cond["label"].reshape(-1, 1)
        mean = jnp.where(label == 10, 0.0, 0.2 * label)
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return from_x0(self.process, x, t, mean + gain * (x - alpha * mean))


ROWS: list[int] = []
COND = {"label": jnp.array([1, 2, 3])}
TIMES = jd.log_snr_times(PROCESS, 9)
START = jax.random.normal(jax.random.key(0), (3, 2))


@jax.jit
def drawn(denoise: Any, x: jax.Array) -> jax.Array:
    return jd.sample(jd.DDIM(PROCESS), denoise, None, x, TIMES, COND)


def rows(denoise: object) -> tuple[jax.Array, list[int]]:
    """Samples, and the rows of each call."""
    ROWS.clear()
    samples = jax.block_until_ready(drawn(denoise, START))
    jax.effects_barrier()
    return samples, list(ROWS)


NULLS = {"label": 10}


def guided_by(*elements: Callable[..., Denoiser], denoise: Denoiser | None = None) -> Any:
    return apply(elements, Labelled(PROCESS) if denoise is None else denoise, PROCESS, NULLS)


def test_branches_together_or_one_after_the_other() -> None:
    together, once = rows(guided_by(jd.CFG(3.0)))
    apart, twice = rows(guided_by(jd.CFG(3.0, sequential=True)))
    np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-6)
    assert once == [6] * 9 and twice == [3] * 18


def test_no_guidance_and_weights_one_and_zero() -> None:
    """Weight 1 is the plain model bit for bit, 0 the unconditional one."""
    plain = guided_by()
    assert plain == Labelled(PROCESS)
    t = TIMES[4]
    for sequential in (False, True):
        one, zero = (guided_by(jd.CFG(weight, sequential))(START, t, COND) for weight in (1.0, 0.0))
        np.testing.assert_array_equal(one.x0, plain(START, t, COND).x0)
        np.testing.assert_array_equal(one.eps, plain(START, t, COND).eps)
        np.testing.assert_allclose(zero.x0, plain(START, t, {"label": jnp.full(3, 10)}).x0, rtol=1e-5, atol=1e-6)


@record
class TwoGaussians:
    """The exact denoiser of Gaussian data given a condition c, of mean c and deviation 1/2; 1/4 about 0 for c = 9."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        assert cond is not None
        inner, outer = jd.GaussianDenoiser(self.process, 0.0, 0.25), jd.GaussianDenoiser(self.process, 0.5, 0.5)
        return jax.tree.map(lambda a, b: jnp.where(expand(cond["c"] == 9.0, x), a, b), inner(x, t), outer(x, t))


@pytest.mark.parametrize("process", [jd.VP(), jd.Flow(), jd.VE()], ids=lambda p: type(p).__name__)
def test_guidance_of_gaussians_is_a_gaussian(process: jd.Process) -> None:
    """The guided score w s_1 + (1 - w) s_0 of two normal laws N(alpha m_i, v_i), v_i = alpha^2 d_i^2 + sigma^2."""
    x, cond = jax.random.normal(jax.random.key(1), (5, 2)), {"c": jnp.zeros(5)}
    for weight in (0.0, 0.5, 1.0, 3.0, jnp.linspace(0.0, 4.0, 5)):
        guided = apply([jd.CFG(weight)], TwoGaussians(process), process, {"c": 9.0})
        for t in (0.1, 0.6):
            alpha, sigma = process.alpha(t), process.sigma(t)
            (v_1, v_0), m_1 = (alpha**2 * d**2 + sigma**2 for d in (0.5, 0.25)), 0.5
            w = expand(weight, x)
            score = -w * (x - alpha * m_1) / v_1 - (1 - w) * x / v_0
            found = guided(x, t, cond)
            np.testing.assert_allclose(found.score(process, t), score, rtol=2e-4, atol=1e-4)
            np.testing.assert_allclose(process.perturb(found.x0, found.eps, t), x, rtol=1e-3, atol=1e-3)


def test_mix_of_several_takes_its_weights() -> None:
    """Equation (7) of `jaxdiff.prediction` by hand; a weight a sample; equal predictions stay bit for bit."""
    parts = [
        jd.Prediction(
            *jax.random.normal(jax.random.key(i), (3, 4, 2)),
        )
        for i in range(3)
    ]
    each: Any = (jnp.array([2.0, 1.0, 0.5, 0.0]), -0.5, jnp.array([-0.5, 0.5, 1.0, 1.5]))
    found = mix(parts[0], *zip(each[1:], parts[1:], strict=True))
    for name in ("x0", "eps"):
        by_hand = sum(expand(w, parts[0].x0) * getattr(part, name) for w, part in zip(each, parts, strict=True))
        np.testing.assert_allclose(getattr(found, name), by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.variance, parts[0].variance)
    same = mix(parts[0], (0.3, parts[0]), (0.4, parts[0]))
    np.testing.assert_array_equal(same.x0, parts[0].x0)


def test_interval_leaves_the_null_branch_out() -> None:
    """By hand; outside the null branch is not evaluated."""
    plain, guided = Labelled(PROCESS), guided_by(jd.CFG(3.0))
    rho = PROCESS.sigma(TIMES) / PROCESS.alpha(TIMES)
    low, high = float(rho[6]) * 1.001, float(rho[2]) * 1.001
    within = guided_by(jd.CFG(3.0), jd.Interval(low, high))
    found, calls = rows(within)
    assert calls == [3, 3, 6, 6, 6, 6, 3, 3, 3]
    x = START
    for i, t in enumerate(TIMES):
        given = (guided if 2 <= i < 6 else plain)(x, t, COND)
        if i + 1 < len(TIMES):
            x = PROCESS.alpha(TIMES[i + 1]) * given.x0 + PROCESS.sigma(TIMES[i + 1]) * given.eps
    np.testing.assert_allclose(found, given.x0, rtol=1e-4, atol=1e-5)
    everywhere, _ = rows(guided_by(jd.CFG(3.0), jd.Interval()))
    np.testing.assert_allclose(everywhere, rows(guided)[0], rtol=1e-6)

    times = jnp.array([TIMES[0], TIMES[3], TIMES[8]])  # one a sample
    mixed = within(START, times, COND)
    np.testing.assert_allclose(mixed.x0[1], guided(START, times, COND).x0[1], rtol=1e-5)
    np.testing.assert_allclose(mixed.x0[::2], plain(START, times, COND).x0[::2], rtol=1e-5)
    narrower = guided_by(jd.CFG(3.0), jd.Interval(0.0, high), jd.Interval(low, 1e9))  # what both allow
    np.testing.assert_allclose(rows(narrower)[0], found, rtol=1e-6)
    assert rows(narrower)[1] == calls


def test_the_null_branch_is_reused() -> None:
    """Every k-th evaluation computes it; k = 1 is plain guidance; the error grows with k; the pair stays one of x."""
    for sequential in (False, True):
        cfg = jd.CFG(3.0, sequential)
        full, errors = rows(guided_by(cfg))[0], []
        both, one = ([3, 3], [3]) if sequential else ([6], [3])
        for every in (1, 2, 4):
            samples, calls = rows(guided_by(cfg, jd.Reuse(every)))
            assert calls == [row for i in range(9) for row in (one if i % every else both)]
            errors.append(float(jnp.abs(samples - full).max()))
        assert errors[0] < 1e-6 and 0.1 < errors[1] < errors[2], errors
    rho = PROCESS.sigma(TIMES) / PROCESS.alpha(TIMES)
    interval = jd.Interval(float(rho[6]) * 1.001, float(rho[2]) * 1.001)
    counted = [rows(guided_by(jd.CFG(3.0), *two)) for two in ((jd.Reuse(3), interval), (interval, jd.Reuse(3)))]
    for samples, calls in counted:
        assert calls == [3, 3, 6, 3, 3, 6, 3, 3, 3]  # counted from within, in either order of the list
        np.testing.assert_array_equal(samples, counted[0][0])
    sparse = guided_by(cfg, jd.Reuse(2))
    memory = sparse.begin(START, COND)
    for t in TIMES[:2]:
        given, memory = sparse.recall(START, t, COND, memory)
    np.testing.assert_allclose(PROCESS.perturb(given.x0, given.eps, TIMES[1]), START, rtol=1e-4, atol=1e-5)
    kept = sparse(START, TIMES[0], COND).x0 - Labelled(PROCESS)(START, TIMES[0], COND).x0
    np.testing.assert_allclose(given.x0, Labelled(PROCESS)(START, TIMES[1], COND).x0 + kept, rtol=1e-4, atol=1e-5)
    assert int(memory.computed) == 1


@record
class Remembering:
    """A denoiser that adds a part of what it said before, and counts."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        return Labelled(self.process)(x, t, cond)

    def begin(self, x: jax.Array, cond: Cond | None = None) -> Memory:
        return jnp.zeros_like(x)

    def recall(self, x: jax.Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[jd.Prediction, Memory]:
        x0 = self(x, t, cond).x0 + 0.5 * memory
        return from_x0(self.process, x, t, x0), x0


def test_memories_under_guidance() -> None:
    """A denoiser's memory is carried for each branch, together or apart, and only where that branch is evaluated."""
    inner, times = Remembering(PROCESS), TIMES[2:6]

    def by_hand(with_null: list[bool]) -> list[jax.Array]:
        memories, found = [jnp.zeros_like(START)] * 2, []
        for t, both in zip(times, with_null, strict=True):
            given, memories[0] = inner.recall(START, t, COND, memories[0])
            if both:
                without, memories[1] = inner.recall(START, t, {"label": jnp.full(3, 10)}, memories[1])
                kept = 2.0 * (given.x0 - without.x0)
            found.append(given.x0 + kept if both or len(set(with_null)) > 1 else given.x0)
        return found

    def recalled(denoise: Denoiser) -> list[jax.Array]:
        memory, found = begin(denoise, START, COND), []
        for t in times:
            given, memory = recall(denoise, START, t, COND, memory)
            found.append(given.x0)
        return found

    for sequential in (False, True):
        cfg = jd.CFG(3.0, sequential)
        for elements, with_null in (
            ((cfg,), [True] * 4),
            ((cfg, jd.Interval()), [True] * 4),
            ((cfg, jd.Interval(0.0, 1e-9)), [False] * 4),
            ((cfg, jd.Reuse(2)), [True, False] * 2),
            ((cfg, jd.Reuse(2), jd.Interval()), [True, False] * 2),
            ((cfg, lambda denoise: jd.Clipped(denoise, PROCESS, -99, 99)), [True] * 4),
        ):
            found = recalled(guided_by(*elements, denoise=inner))
            np.testing.assert_allclose(found, by_hand(with_null), rtol=2e-4, atol=1e-5)


def test_any_function_is_an_element() -> None:
    """One of the user's own, limited and reused by what follows it; its plain denoiser is a separate evaluation."""

    def doubled(denoise: Denoiser) -> Denoiser:
        def evaluated(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
            return from_x0(PROCESS, x, t, 2.0 * denoise(x, t, cond).x0)

        return evaluated

    plain, t = Labelled(PROCESS), TIMES[3]
    expected = 2.0 * plain(START, t, COND).x0
    np.testing.assert_allclose(guided_by(doubled)(START, t, COND).x0, expected, rtol=1e-6)
    np.testing.assert_allclose(guided_by(doubled, jd.Interval())(START, t, COND).x0, expected, rtol=1e-6)
    outside = guided_by(jd.CFG(2.0), doubled, jd.Interval(0.0, 1e-9))
    np.testing.assert_allclose(outside(START, t, COND).x0, plain(START, t, COND).x0, rtol=1e-6)
    before = guided_by(doubled, jd.CFG(3.0))(START, t, COND).x0  # guides the doubled one
    np.testing.assert_allclose(before, 2.0 * guided_by(jd.CFG(3.0))(START, t, COND).x0, rtol=1e-5, atol=1e-6)

    def calls(*elements: Any) -> list[int]:
        denoise = guided_by(*elements)
        ROWS.clear()
        jax.block_until_ready(jax.jit(lambda x: jd.sample(jd.DDIM(PROCESS), denoise, None, x, TIMES, COND))(START))
        jax.effects_barrier()
        return list(ROWS)

    assert calls(doubled) == [3] * 9 == calls(doubled, jd.Interval())
    assert calls(doubled, jd.Reuse(3)) == [3, 3, 3, 3] * 3


def test_numbers_of_guidance_are_data() -> None:
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(elements: tuple[jd.Guidance, ...], nulls: dict[str, jax.Array]) -> jax.Array:
        return jd.sample(jd.DDIM(PROCESS), apply(elements, Labelled(PROCESS), PROCESS, nulls), None, START, TIMES, COND)

    found = [
        run((jd.CFG(weight), jd.Reuse(every), jd.Interval(low, high)), {"label": jnp.full(3, null)})
        for weight, every, low, high, null in ((1.0, 1, 0.0, 9.0, 10), (2.0, 2, 0.1, 5.0, 10), (3.0, 3, 0.2, 4.0, 0))
    ]
    assert not np.allclose(found[1], found[2])


def test_lists_that_mean_nothing_are_refused() -> None:
    for every in (0, 1.5, jnp.array([1, 2])):
        with pytest.raises(ValueError, match="every is to be a whole number, 1 or more"):
            jd.Reuse(every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0 <= low < high, got 2\.0 and 1\.0"):
        jd.Interval(2.0, 1.0)
    cfg, reuse, interval = jd.CFG(2.0), jd.Reuse(2), jd.Interval(0.1, 1.0)
    for elements, message in (
        ((reuse, cfg), "every changes guidance that stands before it in the list, and there is none: put cfg first"),
        ((interval, cfg), "interval changes guidance that stands before it"),
        ((cfg, cfg), "cfg is to stand once in a list of guidance, before interval and every, and in the place of cfg"),
        ((cfg, interval, cfg), "cfg is to stand once"),
        ((cfg, reuse, reuse), "every is to stand once"),
        ((cfg, reuse, interval, reuse), "every is to stand once"),
    ):
        with pytest.raises(ValueError, match=message):
            guided_by(*elements)


def test_plain_predictions_cost_nothing_more() -> None:
    """`Guided.both` of classifier-free guidance is one call of both branches."""
    guided = guided_by(jd.CFG(3.0), jd.Reuse(2), jd.Interval())
    assert isinstance(guided, Guided) and guided.plain == Labelled(PROCESS)
    ROWS.clear()
    _, plain, _ = guided.both(START, TIMES[3], COND, ())
    jax.block_until_ready(plain.x0)
    jax.effects_barrier()
    assert ROWS == [6]
    np.testing.assert_allclose(plain.x0, Labelled(PROCESS)(START, TIMES[3], COND).x0, rtol=1e-6)
