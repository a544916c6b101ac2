"""Guidance away from a worse answer: a second network, or the same one perturbed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.broadcast import expand
from jaxdiff.codecs import Points
from jaxdiff.denoiser import begin, recall
from jaxdiff.guidance import PAG, SEG, SLG, Autoguidance, Away, apply
from jaxdiff.methods import parse_guidance
from jaxdiff.model import Defaults, Model
from jaxdiff.networks import MLP, DiT, functional
from jaxdiff.networks.caching import TaylorSeer

PROCESS = jd.Flow()
X = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
COND = {"label": jnp.array([0, 1, 2])}
NULLS = {"label": 3}
NET = functional(DiT(in_channels=1, patch=2, width=8, depth=1, heads=2, num_classes=3))


def weights(net: Any, seed: int = 0) -> Any:
    """Parameters none of which are zero."""
    draw = np.random.default_rng(seed).standard_normal
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw(leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def denoise() -> jd.NetworkDenoiser:
    return jd.NetworkDenoiser(NET, weights(NET), PROCESS, jd.V())


@pytest.fixture(scope="module")
def worse() -> jd.NetworkDenoiser:
    """Of another configuration and another parameterization."""
    small = functional(DiT(in_channels=1, patch=4, width=4, depth=1, heads=1, num_classes=3))
    return jd.NetworkDenoiser(small, weights(small, 1), PROCESS, jd.X0())


def guided(denoise: Any, *elements: Any) -> Any:
    return apply(elements, denoise, PROCESS, NULLS)


@jax.jit
def each(denoisers: Any, t: Any, conds: Any = None) -> Any:
    """Predictions of several denoisers, by one program."""
    conds = [COND] * len(denoisers) if conds is None else conds
    return [denoise(X, t, cond) for denoise, cond in zip(denoisers, conds, strict=True)]


def test_by_hand_alone_behind_cfg_and_within_an_interval(denoise: Any, worse: Any) -> None:
    """G + (w - 1)(P - Q) on x0 and on eps, with a weight a sample; x = alpha x0 + sigma eps still holds."""
    t, w = jnp.array([0.2, 0.5, 0.9]), jnp.array([0.0, 1.0, 3.0])
    cases: Any = (
        ([Autoguidance(w, worse)], 1.0, [True] * 3),
        ([jd.CFG(2.0), Autoguidance(w, worse)], 2.0, [True] * 3),
        ([jd.CFG(2.0), Autoguidance(w, worse), jd.Interval(0.5, 2.0)], 2.0, [False, True, False]),
    )
    lists = [guided(denoise, *elements) for elements, _, _ in cases]
    conds = [COND, COND, {"label": jnp.full(3, 3)}, *[COND] * 3]
    plain, bad, null, *results = each([denoise, worse, denoise, *lists], t, conds)
    rho = PROCESS.sigma(t) / PROCESS.alpha(t)
    for found, (_, start, inside) in zip(results, cases, strict=True):
        for name in ("x0", "eps"):
            p, q, n = (getattr(part, name) for part in (plain, bad, null))
            expected = n + start * (p - n) + expand(w - 1, p) * (p - q)
            expected = jnp.where(expand(jnp.array(inside), p), expected, p)
            np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(PROCESS.perturb(found.x0, found.eps, t), X, rtol=1e-4, atol=1e-4)
    assert rho[0] < 0.5 < rho[1] < 2.0 < rho[2]


def test_a_weight_of_nothing_is_what_stands_before(denoise: Any, worse: Any) -> None:
    """Bit for bit: weight 1, and scale 0."""
    nothing: Any = ((), (Autoguidance(1.0, worse),), (PAG(0.0),), (SEG(0.0),), (SLG(0.0),))
    for before in ((), (jd.CFG(2.0),)):
        expected, *results = each([guided(denoise, *before, *elements) for elements in nothing], 0.4)
        for found in results:
            np.testing.assert_array_equal(found.x0, expected.x0)
            np.testing.assert_array_equal(found.eps, expected.eps)


def test_a_perturbed_network_shares_the_parameters(denoise: Any) -> None:
    """By hand with `Functional.perturbed`, each kind and its layers."""
    kinds: Any = (("identity", "mid"), ("blurred", "all", 0.7), ("left_out", (0,)))
    aways: list[Any] = [guided(denoise, one) for one in (PAG(2.0), SEG(2.0, 0.7, "all"), SLG(2.0, "0"))]
    assert {type(away) for away in aways} == {Away}
    assert all(away.worse.params is denoise.params for away in aways)
    others = [dataclasses.replace(denoise, net=NET.perturbed(*kind)) for kind in kinds]
    plain, *results = each([denoise, *others, *aways], 0.4)
    for other, found in zip(results[:3], results[3:], strict=True):
        np.testing.assert_allclose(found.x0, plain.x0 + 2 * (plain.x0 - other.x0), rtol=1e-4, atol=1e-5)
        assert float(jnp.abs(found.x0 - plain.x0).max()) > 1e-3


def test_autoguidance_of_gaussians_is_a_gaussian() -> None:
    """The guided score w s_1 + (1 - w) s_0 of N(0, v_1) and N(0, v_0), v_i = alpha^2 d_i^2 + sigma^2: a worse denoiser
    of wider data makes the samples narrower than the data."""
    good, bad = jd.GaussianDenoiser(PROCESS, 0.0, 0.5), jd.GaussianDenoiser(PROCESS, 0.0, 1.0)
    x, w = jax.random.normal(jax.random.key(1), (64, 2)), 2.0
    guide = apply([Autoguidance(w, bad)], good, PROCESS, {})
    for t in (0.2, 0.7):
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        v_1, v_0 = (alpha**2 * d**2 + sigma**2 for d in (0.5, 1.0))
        np.testing.assert_allclose(guide(x, t).score(PROCESS, t), -(w / v_1 + (1 - w) / v_0) * x, rtol=1e-3, atol=1e-4)
    ts = jd.log_snr_times(PROCESS, 12)
    drawn = jax.jit(lambda guide: jd.sample(jd.DPMpp2M(PROCESS), guide, None, x, ts))
    assert float(drawn(guide).std()) < 0.9 * float(drawn(good).std())


def test_weights_of_both_kinds_are_data(denoise: Any, worse: Any) -> None:
    """Another scale, weight or second network of the same shapes is traced once; another perturbation anew."""
    traced = chex.assert_max_traces(lambda d: d(X, 0.3, COND).x0, n=2)
    run = jax.jit(traced)
    other = dataclasses.replace(worse, params=jax.tree.map(lambda leaf: 2 * leaf, worse.params))
    results = [run(guided(denoise, Autoguidance(w, d), PAG(s))) for w, s, d in ((2.0, 1.0, worse), (3.0, 0.5, other))]
    assert float(jnp.abs(results[0] - results[1]).max()) > 1e-3
    run(guided(denoise, Autoguidance(2.0, worse), SEG(1.0)))


def test_memories_of_both_are_forwarded(denoise: Any, worse: Any) -> None:
    """A cache in the second network counts its own evaluations; with one in the first the perturbed network has none,
    and is evaluated whole. With every second evaluation reused, the second network has half."""
    cached = dataclasses.replace(worse, cache=TaylorSeer(2))

    @functools.partial(jax.jit, static_argnums=1)
    def several(denoise: Any, n: int) -> Any:
        def one(memory: Any, _: None) -> Any:
            prediction, memory = recall(denoise, X, 0.4, COND, memory)
            return memory, prediction.x0

        return jax.lax.scan(one, begin(denoise, X, COND), None, n)

    both = guided(denoise, jd.CFG(2.0), Autoguidance(2.0, cached))
    memory, x0 = several(both, 2)
    assert int(memory[1].evaluations) == 2 and int(memory[1].full) == 1
    np.testing.assert_allclose(x0[0], each([both], 0.4)[0].x0, rtol=1e-5, atol=1e-5)
    saving: Any = guided(dataclasses.replace(denoise, cache=TaylorSeer(2)), PAG(1.0))
    assert saving.worse.cache is None and saving.plain.cache is not None
    memory, _ = several(guided(denoise, Autoguidance(2.0, cached), jd.Reuse(2)), 4)
    assert int(memory.branches[1].evaluations) == 2 and int(memory.computed) == 2


def model(denoise: Any, classes: int | None) -> Model:
    net = functional(DiT(in_channels=1, patch=2, width=8, depth=2, heads=2, num_classes=classes))
    made = dataclasses.replace(denoise, net=net, params=weights(net))
    return Model(made, Points((4, 4, 1)), Defaults(steps=3, guide=("pag:1",)))


def test_a_model_without_conditions_is_guided(denoise: Any, worse: Any) -> None:
    """By default, by name, by an object; a batch at a time, though the second network's arrays are as long as it is."""
    made = model(denoise, None)
    options: dict[str, Any] = {"decode": False}
    plain, usual, named = (made.sample(0, 4, guide=guide, **options) for guide in ((), None, "pag:1"))
    np.testing.assert_array_equal(usual, named)
    assert np.abs(plain - usual).max() > 1e-4
    long = functional(DiT(in_channels=1, patch=2, width=4, depth=4, heads=1))  # blocks (4, ...), as there are samples
    second = jd.NetworkDenoiser(long, weights(long, 2), PROCESS, jd.V())
    each: Any = [Autoguidance(np.array([1.0, 2.0, 3.0, 4.0], np.float32), second)]
    whole = made.sample(0, 4, guide=each, **options)
    np.testing.assert_allclose(made.sample(0, 4, guide=each, batch_size=3, **options), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole[:1], plain[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="guidance leads towards a condition"):
        made.sample(0, 4, guide=["cfg:2", "pag:1"])


def test_words_and_what_they_may_not_say(denoise: Any) -> None:
    assert parse_guidance(["pag:2", "pag:2,layers=mid", "seg:3,sigma=inf", "slg:2.5,layers=7+8+9"]) == (
        PAG(2.0),
        PAG(2.0, "mid"),
        SEG(3.0, np.inf),
        SLG(2.5, "7+8+9"),
    )
    named = parse_guidance("autoguidance:2,run=runs/small,step=500,average=short")[0]
    assert named == Autoguidance(2.0, run="runs/small", step=500, average="short")
    for text, message in (
        ("pag:2,layers=middle", "pag:2,layers=middle: layers are mid, all, or numbers from 0 such as 7[+]8[+]9"),
        ("pag:inf", "pag:inf: scale is to be a finite number, or one a sample, got inf"),
        ("seg:2,sigma=-1", "sigma is to be above 0, in tokens of the image, or inf for the mean query, got -1"),
        ("slg", "slg needs scale"),
        ("autoguidance:2", "needs a worse network: run=runs/small, or step=500 or average=short of the same run"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_guidance(text)
    made = model(denoise, 3)
    for guide, message in (
        ("pag:2,layers=5", "layer 5 is none of this network's, which are 0 to 1"),
        ("autoguidance:2,step=5", "this model cannot load a second network"),
        (["pag:1", "cfg:2"], "cfg is to stand once in a list of guidance, before interval and every"),
        ([PAG(np.ones(5, np.float32))], "guidance takes a finite weight, or one for each of 3 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            made.sample(0, 3, COND, guide=guide)
    exact = jd.GaussianDenoiser(PROCESS, 0.0, 1.0)
    with pytest.raises(ValueError, match="pag perturbs the self-attention of a network"):
        apply([PAG(2.0)], exact, PROCESS, {})
    flat = functional(MLP(width=8))
    mlp = jd.NetworkDenoiser(flat, weights(flat), PROCESS, jd.V())
    with pytest.raises(ValueError, match="a MLP has no self-attention of an image"):
        apply([PAG(2.0)], mlp, PROCESS, {})(jnp.ones((1, 2)), 0.5)
    with pytest.raises(ValueError, match="takes a denoiser or the name of one"):
        Autoguidance(2.0, exact, step=3)
