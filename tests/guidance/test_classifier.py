"""Guidance by a classifier of noisy samples, against closed forms: a mixture's components are its classes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import jaxdiff as jd
from jaxdiff.denoiser import begin, recall
from jaxdiff.guidance import ClassifierGuidance, Guidance, apply, resolved
from jaxdiff.methods import parse_guidance
from jaxdiff.record import field, record

MEANS, STDS = jnp.array([[-1.0, 0.5], [0.8, 0.0], [0.0, -1.2]]), jnp.array([0.3, 0.5, 0.2])
LOG_WEIGHTS = jnp.log(jnp.array([0.5, 0.3, 0.2]))
PROCESSES: dict[str, jd.Process] = {
    "vp": jd.VP(),
    "flow": jd.Flow(),
    "ve": jd.VE(),
    "chain": jd.DiscreteVP(jd.cosine_betas(50)),
}
X, LABEL = jax.random.normal(jax.random.key(0), (6, 2)), jnp.array([0, 1, 2, 2, 1, 0])


def data(process: jd.Process) -> jd.MixtureDenoiser:
    """A mixture of three Gaussians: denoiser and exact classifier."""
    return jd.MixtureDenoiser(process, MEANS, STDS, LOG_WEIGHTS)


def component(process: jd.Process, k: int) -> jd.GaussianDenoiser:
    return jd.GaussianDenoiser(process, MEANS[k], STDS[k])


def guided(*elements: Guidance, denoise: Any, nulls: Any = None) -> Any:
    return apply(elements, denoise, denoise.process, nulls or {})


@pytest.mark.parametrize("name", PROCESSES)
def test_the_guided_score_is_that_of_the_closed_form(name: str) -> None:
    """grad ln p(k | x_t) is the component's score less the mixture's, so that the guided score is (1 - s) of this and s
    of that; at s = 1 the component's own denoiser."""
    process = PROCESSES[name]

    @jax.jit
    def compared(x: jax.Array, t: jax.Array, scale: jax.Array) -> Any:
        exact = data(process)
        x = x * jnp.hypot(process.alpha(t), process.sigma(t))
        found = guided(ClassifierGuidance(scale, label=LABEL, classifier=exact), denoise=exact)(x, t)
        each = [component(process, k)(x, t) for k in range(3)]
        alone = jax.tree.map(lambda *parts: jnp.stack(parts)[LABEL, jnp.arange(6)], *each)
        scores = (part.score(process, t) for part in (found, exact(x, t), alone))
        return x, process.perturb(found.x0, found.eps, t), found.x0, alone.x0, *scores

    for t in (0.1, 0.5, 0.9):
        for scale in (jnp.ones(6), jnp.array([0.0, 3.0, -1.0, 2.0, 0.5, 8.0])):
            x, again, x0, wanted, found, plain, alone = compared(X, t, scale)
            share = scale[:, None]
            size = float(jnp.abs(alone).max())
            np.testing.assert_allclose(found, (1 - share) * plain + share * alone, rtol=2e-3, atol=5e-4 * size)
            np.testing.assert_allclose(again, x, rtol=1e-3, atol=2e-3 * float(x.std()))
            if float(scale[0]) == 1.0:
                np.testing.assert_allclose(x0, wanted, rtol=2e-3, atol=2e-3)


def test_what_guidance_draws_is_not_the_tilted_law() -> None:
    """In one dimension the flow keeps the order of samples: a sample's distribution function is that of its noise.
    At s = 0 and 1 it is the tilted density's; at s = 4 it is not, by far more than the solver's error."""
    process = jd.VP()
    exact = jd.MixtureDenoiser(process, jnp.array([[-1.0], [1.0]]), jnp.array([0.8, 0.6]))
    share = (jnp.arange(401) + 0.5) / 401
    noise = norm.ppf(share)[:, None]
    ts = jd.log_snr_times(process, 60)

    @jax.jit
    def drawn(element: ClassifierGuidance) -> jax.Array:
        denoise = apply([element], exact, process, {})
        return jd.sample(jd.Heun(process), denoise, None, process.sigma(ts[0]) * noise, ts)[:, 0]

    x = jnp.linspace(-8.0, 8.0, 8001)
    t = jnp.asarray(1e-6)
    log_density, log_prob = exact.log_density(x[:, None], t), exact.log_prob(x[:, None], t)[:, 1]
    apart = {}
    for scale in (0.0, 1.0, 4.0):
        log_tilted = log_density + scale * log_prob
        tilted = jnp.cumsum(jnp.exp(log_tilted - logsumexp(log_tilted)))  # its distribution function
        samples = drawn(ClassifierGuidance(scale, label=1, classifier=exact))
        apart[scale] = float(jnp.abs(jnp.interp(samples, x, tilted) - share).max())
    assert max(apart[0.0], apart[1.0]) < 0.01 and apart[4.0] > 0.05, apart


@record
class Labelled:
    """The mixture with a label of its own, the third "no class": with a label its component."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jd.Prediction:
        every = [component(self.process, k)(x, t) for k in range(2)] + [data(self.process)(x, t)]
        label = cond["label"][:, None]
        return jax.tree.map(lambda *p: jnp.where(label == 0, p[0], jnp.where(label == 1, p[1], p[2])), *every)


def test_with_other_guidance() -> None:
    """Behind cfg it adds s g to what cfg gives; intervals and reuse take it as they take cfg. A label that is no class
    changes nothing."""
    process, t, cond = jd.VP(), 0.4, {"label": jnp.array([0, 1, 2, 0, 1, 1])}
    plain, nulls, exact = Labelled(process), {"label": 2}, data(process)
    element = ClassifierGuidance(1.5, classifier=exact)
    two = dataclasses.replace(element, classifier=jd.MixtureDenoiser(process, MEANS[:2], STDS[:2], LOG_WEIGHTS[:2]))
    each = dataclasses.replace(element, scale=jnp.linspace(0.5, 2.0, 6), label=cond["label"])
    lists: dict[str, tuple[Guidance, ...]] = {
        "plain": (),
        "alone": (element,),
        "cfg": (jd.CFG(2.0),),
        "behind": (jd.CFG(2.0), element),
        "two": (two,),
        "two before": (two, jd.CFG(2.0)),
        "each before": (each, jd.CFG(2.0)),
        "each behind": (jd.CFG(2.0), each),
        "alone within": (element, jd.Interval()),
        "two before within": (two, jd.CFG(2.0), jd.Interval()),
        "behind outside": (jd.CFG(2.0), element, jd.Interval(0.0, 1e-9)),
        "two before outside": (two, jd.CFG(2.0), jd.Interval(0.0, 1e-9)),
    }

    @jax.jit
    def evaluated(cond: Any) -> dict[str, jd.Prediction]:
        return {name: guided(*row, denoise=plain, nulls=nulls)(X, t, cond) for name, row in lists.items()}

    found = evaluated(cond)
    g = jnp.stack([component(process, k)(X, t).score(process, t) for k in range(3)])[cond["label"], jnp.arange(6)]
    g = g - exact(X, t).score(process, t)
    sigma, alpha, before, cfg = process.sigma(t), process.alpha(t), found["plain"], found["cfg"]
    np.testing.assert_allclose(found["alone"].eps, before.eps - 1.5 * sigma * g, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["alone"].x0, before.x0 + 1.5 * sigma**2 / alpha * g, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["behind"].eps, cfg.eps - 1.5 * sigma * g, rtol=1e-3, atol=1e-3)
    # Before cfg: by the samples' label the branch of "no class" does not move, by one of its own both do.
    doubled = cfg.eps + 2.0 * (found["two"].eps - before.eps)
    np.testing.assert_allclose(found["two before"].eps, doubled, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["each before"].eps, found["each behind"].eps, rtol=1e-3, atol=1e-3)
    for name, prediction in found.items():
        base, _, where = name.rpartition(" ")
        if where == "within":
            np.testing.assert_allclose(prediction.x0, found[base].x0, rtol=1e-5, atol=1e-5)
        if where == "outside":
            np.testing.assert_array_equal(prediction.x0, before.x0)
    no_class = evaluated({"label": jnp.array([3, 10, -1, 3, 3, 3])})
    np.testing.assert_array_equal(no_class["alone"].x0, no_class["plain"].x0)

    @jax.jit
    def reused() -> Any:
        kept = guided(jd.CFG(2.0), element, jd.Reuse(2), denoise=plain, nulls=nulls)
        first, memory = recall(kept, X, t, cond, begin(kept, X, cond))
        again, memory = recall(kept, X, t, cond, memory)
        return first.x0, again.x0, memory.computed

    first, again, computed = reused()
    np.testing.assert_allclose(first, found["behind"].x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(again, found["behind"].x0, rtol=1e-5, atol=1e-5)
    assert int(computed) == 1


@record
class Remembering:
    """A denoiser that adds half of what it said before, computed by the host: it has no derivative."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jd.Prediction:
        x0 = jax.pure_callback(lambda x: 0.1 * np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return jd.prediction.from_x0(self.process, x, t, x0)

    def begin(self, x: jax.Array, cond: Any = None) -> jax.Array:
        return jnp.zeros_like(x)

    def recall(self, x: jax.Array, t: Any, cond: Any, memory: jax.Array) -> tuple[jd.Prediction, jax.Array]:
        x0 = self(x, t, cond).x0 + 0.5 * memory
        return jd.prediction.from_x0(self.process, x, t, x0), x0


def test_memory_is_forwarded_and_the_denoiser_not_differentiated() -> None:
    inner = Remembering(jd.VP())
    exact = data(inner.process)
    denoise = guided(ClassifierGuidance(2.0, label=1, classifier=exact), denoise=inner)
    memory = begin(denoise, X)
    remembered = jnp.zeros_like(X)
    for t in (0.6, 0.5, 0.4):
        found, memory = recall(denoise, X, t, None, memory)
        remembered = 0.1 * X + 0.5 * remembered
        moved = denoise(X, t).x0 - inner(X, t).x0
        np.testing.assert_allclose(found.x0, remembered + moved, rtol=1e-4, atol=1e-5)
        assert float(jnp.abs(moved).max()) > 0.05


def test_scale_0_and_times_without_signal_leave_the_plain_model_bit_for_bit() -> None:
    process = jd.CosineVP()
    exact = data(process)
    zero = guided(ClassifierGuidance(0.0, label=LABEL, classifier=exact), denoise=exact)
    five = guided(ClassifierGuidance(5.0, label=LABEL, classifier=exact), denoise=exact)
    for denoise, t in ((zero, 0.3), (zero, 1.0), (five, 1.0)):
        for name in ("x0", "eps"):
            np.testing.assert_array_equal(getattr(denoise(X, t), name), getattr(exact(X, t), name))
    assert float(jnp.abs(five(X, 0.9).x0 - exact(X, 0.9).x0).max()) > 0.1


@dataclasses.dataclass(frozen=True)
class Net:
    """The exact mixture as a network of a parameterization that is told 1000 t."""

    parameterization: str
    cond: Any = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.parameterization)

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        process, t = jd.VP(), t / 1000.0
        exact = data(process)(x, t)
        target = getattr(jd, self.parameterization)().target(process, exact.x0, exact.eps, t)
        return jnp.asarray(target)


def test_the_same_under_every_parameterization() -> None:
    process, exact = jd.VP(), data(jd.VP())
    wanted = guided(ClassifierGuidance(2.0, label=LABEL, classifier=exact), denoise=exact)(X, 0.5)
    for name in ("Eps", "X0", "V", "Score", "Velocity"):
        denoise = jd.NetworkDenoiser(Net(name), {}, process, getattr(jd, name)())
        found = guided(ClassifierGuidance(2.0, label=LABEL, classifier=exact), denoise=denoise)(X, 0.5)
        np.testing.assert_allclose(found.x0, wanted.x0, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.eps, wanted.eps, rtol=1e-3, atol=1e-3)


def test_numbers_and_weights_are_data() -> None:
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(element: ClassifierGuidance) -> jax.Array:
        return jnp.asarray(guided(element, denoise=data(jd.VP()))(X, 0.5).x0)

    found = [
        run(ClassifierGuidance(scale, label=label, classifier=jd.MixtureDenoiser(jd.VP(), MEANS + shift, STDS)))
        for scale, label, shift in ((1.0, 0, 0.0), (2.0, 0, 0.0), (2.0, 1, 0.0), (2.0, 1, 0.3))
    ]
    assert all(float(jnp.abs(a - b).max()) > 0.01 for a, b in itertools.pairwise(found))


def test_rows_of_samples_are_no_rows_of_weights() -> None:
    """Three samples, and a classifier of three classes: its means are not cut."""
    element = ClassifierGuidance(jnp.arange(3.0), label=jnp.arange(3), classifier=data(jd.VP()))
    made = element.rows(lambda leaf: leaf[1:2] if np.ndim(leaf) and len(leaf) == 3 else leaf)
    assert isinstance(made, ClassifierGuidance) and made.classifier is element.classifier
    assert np.asarray(made.scale).tolist() == [1.0] and np.asarray(made.label).tolist() == [1]


@record
class Named:
    """What a run is, as far as guidance asks."""

    classifier: Any = field(default=None)


def test_by_name() -> None:
    exact = data(jd.VP())
    (element,) = parse_guidance(["classifier:2,run=runs/digits_classifier,label=3"])
    assert element == ClassifierGuidance(2.0, run="runs/digits_classifier", label=3) and element.label.__class__ is int
    read: list[str] = []

    def load(path: str | None, **which: Any) -> Named:
        read.append(str(path))
        return Named(exact)

    (made,) = resolved([element], load)
    assert isinstance(made, ClassifierGuidance)
    assert read == ["runs/digits_classifier"] and made.classifier is exact and made.scale == 2.0 and made.label == 3
    assert resolved([made, jd.CFG(2.0)], None)[0] is made
    with pytest.raises(ValueError, match="this model cannot load run=runs/digits_classifier: give the object"):
        resolved([element], None)
    with pytest.raises(ValueError, match="run=runs/digits_classifier is no classifier"):
        resolved([element], lambda path, **which: Named())
    with pytest.raises(ValueError, match="is not loaded yet"):
        guided(element, denoise=exact)


def test_refusals() -> None:
    exact = data(jd.VP())
    with pytest.raises(ValueError, match="the scale of classifier guidance is to be finite, got scale = nan"):
        ClassifierGuidance(float("nan"), classifier=exact)
    with pytest.raises(ValueError, match="by one classifier, got neither run nor classifier: name its run"):
        ClassifierGuidance(2.0)
    with pytest.raises(ValueError, match="by one classifier, got both a run and classifier"):
        ClassifierGuidance(2.0, run="x", classifier=exact)
    with pytest.raises(ValueError, match=r"the classifier was trained on Flow\(\), and the model on VP"):
        guided(ClassifierGuidance(2.0, label=0, classifier=data(jd.Flow())), denoise=exact)
    with pytest.raises(ValueError, match=r"the classifier was trained on VP\(beta_min=0.1, beta_max=10.0\), and the"):
        guided(ClassifierGuidance(2.0, label=0, classifier=data(jd.VP(beta_max=10.0))), denoise=exact)
    with pytest.raises(ValueError, match="the classifier has 3 classes, got label = 3"):
        guided(ClassifierGuidance(2.0, label=3, classifier=exact), denoise=exact)
    with pytest.raises(ValueError, match="classifier guidance needs a class: give label=3"):
        guided(ClassifierGuidance(2.0, classifier=exact), denoise=exact)(X, 0.5)
