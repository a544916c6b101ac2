"""ControlNet: what it adds is equation (3) of its module, and nothing where there is no picture."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.guidance import ClassifierFree
from jaxdiff.networks import Controlled, ControlNet, DeepCache, Image, UNet, functional
from jaxdiff.networks.control import Residuals, skips_of
from jaxdiff.parameterization import V
from jaxdiff.schedule import Flow
from jaxdiff.spec import Spec

BASE = UNet(8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), num_classes=3)
OUTLINE = ControlNet(BASE, "outline", channels=1, widths=(4, 4), halving=False)
DEPTH = ControlNet(BASE, "depth", channels=3, widths=(4, 6, 4), order="bgr")
ONE, TWO = functional(Controlled(BASE, (OUTLINE,))), functional(Controlled(BASE, (OUTLINE, DEPTH)))
PLAIN = functional(BASE)
RNG = np.random.default_rng(0)
X, T = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32), jnp.array([0.3, 0.8])
LABEL = jnp.array([1, 2])
EDGES = jnp.asarray(RNG.uniform(size=(2, 8, 8, 1)), jnp.float32)
DISTANCES = jnp.asarray(RNG.uniform(size=(2, 32, 32, 3)), jnp.float32)


def disturbed(net: Any, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), fresh(net))


def fresh(net: Any) -> Any:
    return jax.jit(net.init)(jax.random.key(0))


P1, P2 = disturbed(ONE), disturbed(TWO)
APPLY_1, APPLY_2, APPLY = jax.jit(ONE.apply), jax.jit(TWO.apply), jax.jit(PLAIN.apply)


def test_a_start_is_the_base_and_a_copy_of_its_encoder() -> None:
    params = fresh(ONE)
    copy = params["controls"]["outline"]["encoder"]
    own = {name: params["base"][name] for name in copy}
    jax.tree.map(np.testing.assert_array_equal, copy, own)
    assert sorted(set(params["base"]) - set(copy)) == ["conv_out", "norm_out", "up"]
    params["base"]["conv_out"]["kernel"] += 1.0
    found = APPLY_1(params, X, T, {"label": LABEL, "control": EDGES})
    np.testing.assert_array_equal(found, APPLY(params["base"], X, T, {"label": LABEL}))
    assert np.abs(found).max() > 0.1


def test_without_a_picture_or_at_scale_0_it_is_the_base_bit_for_bit() -> None:
    plain = APPLY(P1["base"], X, T, {"label": LABEL})
    pictured = {"label": LABEL, "control": EDGES}
    for cond in ({"label": LABEL}, {**pictured, "control_scale": jnp.zeros(2)}, {**pictured, "control": 0 * EDGES - 1}):
        np.testing.assert_array_equal(APPLY_1(P1, X, T, cond), plain)
    full = APPLY_1(P1, X, T, pictured)
    assert np.abs(full - plain).max() > 0.1
    one = APPLY_1(P1, X, T, {**pictured, "control": EDGES.at[1].set(-1.0)})  # of one sample
    np.testing.assert_allclose(one[0], full[0], atol=1e-5)
    np.testing.assert_array_equal(one[1], plain[1])


def test_several_add_up_their_residuals_each_by_its_scale() -> None:
    scales = {"outline": jnp.array([0.5, 1.0]), "depth": jnp.array([1.0, 0.3])}
    cond = {"label": LABEL, "control": {"outline": EDGES, "depth": DISTANCES}, "control_scale": scales}

    @jax.jit
    def by_hand() -> Any:
        module = PLAIN.module(P2["base"])
        told = module.embed(X, T, {"label": LABEL})
        middle, skips = module.encode(module.enter(X, {}), told, None)
        for config, picture in ((OUTLINE, EDGES), (DEPTH, DISTANCES)):
            params = P2["controls"][config.name]
            found, last = Residuals(config).apply(params, X, T, {"label": LABEL, "control": picture})
            wide = scales[config.name][:, None, None, None]
            middle, skips = middle + wide * last, [s + wide * r for s, r in zip(skips, found, strict=True)]
        return module.decode(middle, skips, told, None)

    expected = by_hand()
    np.testing.assert_allclose(APPLY_2(P2, X, T, cond), expected, atol=2e-5 * float(np.abs(expected).max()))
    absent = {**cond, "control": {"outline": EDGES, "depth": jnp.full((2, 1, 1, 3), -1.0)}}
    mine = {"base": P2["base"], "controls": {"outline": P2["controls"]["outline"]}}
    one = APPLY_1(mine, X, T, {"label": LABEL, "control": EDGES, "control_scale": scales["outline"]})
    np.testing.assert_allclose(APPLY_2(P2, X, T, absent), one, atol=1e-5)


def test_where_and_how_much_the_residuals_count() -> None:
    """Equation (4): within its times alone, and with a decay of 1 the first one a tenth."""
    plain, full = APPLY(P1["base"], X, T, {"label": LABEL}), APPLY_1(P1, X, T, {"label": LABEL, "control": EDGES})
    timed = APPLY_1(P1, X, T, {"label": LABEL, "control": EDGES, "control_times": jnp.array([[0.5, 0.9]] * 2)})
    np.testing.assert_array_equal(timed[0], plain[0])  # at 0.3
    np.testing.assert_allclose(timed[1], full[1], atol=1e-5)  # at 0.8

    @jax.jit
    def by_hand() -> Any:
        module, params = PLAIN.module(P1["base"]), P1["controls"]["outline"]
        told = module.embed(X, T, {"label": LABEL})
        middle, skips = module.encode(module.enter(X, {}), told, None)
        found, last = Residuals(OUTLINE).apply(params, X, T, {"label": LABEL, "control": EDGES})
        factors = np.logspace(-1, 0, len(found) + 1)
        skips = [s + w * r for s, w, r in zip(skips, factors, found, strict=False)]
        return module.decode(middle + factors[-1] * last, skips, told, None)

    decayed = APPLY_1(P1, X, T, {"label": LABEL, "control": EDGES, "control_decay": jnp.ones(2)})
    np.testing.assert_allclose(decayed, by_hand(), atol=2e-5 * float(np.abs(decayed).max()))


def test_a_scale_is_data_and_guidance_leads_away_from_no_picture() -> None:
    traces = []

    @jax.jit
    def guided(scale: Any, cond: Any) -> Any:
        traces.append(1)
        denoise = NetworkDenoiser(ONE, P1, Flow(), V())
        null = {"label": jnp.full(2, 3), "control": jnp.full((2, 1, 1, 1), -1.0)}
        return ClassifierFree(denoise, weight=2.0, null=null)(X, T, {**cond, "control_scale": scale}).x0

    cond = {"label": LABEL, "control": EDGES}
    low, high = (guided(jnp.full(2, scale), cond) for scale in (0.1, 0.9))
    assert len(traces) == 1 and np.abs(low - high).max() > 1e-3
    with_cond = NetworkDenoiser(ONE, P1, Flow(), V())(X, T, {**cond, "control_scale": jnp.full(2, 0.9)}).x0
    without = NetworkDenoiser(PLAIN, P1["base"], Flow(), V())(X, T, {"label": jnp.full(2, 3)}).x0
    np.testing.assert_allclose(high, 2 * with_cond - without, atol=1e-4)


def test_dropout_and_half_precision() -> None:
    unet = dataclasses.replace(BASE, dropout=0.5)
    whole = Controlled(unet, (dataclasses.replace(OUTLINE, unet=unet),)).computing_in("bfloat16")
    assert whole.controls[0].unet.dtype == whole.base.dtype == "bfloat16" and (whole.heads, whole.image_size) == (1, 8)
    net = functional(whole)
    cond = {"label": LABEL, "control": EDGES}
    apply = jax.jit(net.apply)
    plain, dropped = apply(P1, X, T, cond), apply(P1, X, T, cond, key=jax.random.key(0))
    full = APPLY_1(P1, X, T, cond)
    assert plain.dtype == jnp.float32 and np.abs(plain - full).max() < 0.05 * np.abs(full).max()
    assert np.abs(plain - dropped).max() > 0.1


def test_a_map_of_classes_is_a_picture_with_a_channel_for_each() -> None:
    """The parameters are those of the other, so the outputs are."""
    three = dataclasses.replace(OUTLINE, channels=3)
    pictured, mapped = (
        functional(Controlled(BASE, (each,))) for each in (three, dataclasses.replace(three, classes=3))
    )
    params, ids = disturbed(pictured), jnp.asarray(RNG.integers(0, 3, (2, 8, 8)), jnp.int32)
    cond = {"label": LABEL, "control": jax.nn.one_hot(ids, 3)}
    found = jax.jit(mapped.apply)(params, X, T, {"label": LABEL, "control": ids.at[1].set(3)})
    np.testing.assert_allclose(found[0], jax.jit(pictured.apply)(params, X, T, cond)[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], APPLY(params["base"], X, T, {"label": LABEL})[1])
    assert mapped.cond["control"] == Spec((None, None), "int32", 0, 2, null=3)


def test_what_it_takes() -> None:
    assert ONE.cond["control"] == Spec((None, None, 1), "float32", 0.0, 1.0, null=-1.0)
    assert ONE.cond["control_scale"] == Spec((), "float32", null=1.0)
    assert ONE.settings == ("control_scale", "control_times", "control_decay")
    assert sorted(TWO.cond["control"]) == sorted(TWO.cond["control_scale"]) == ["depth", "outline"]
    sizes = [
        each.shape[-1]
        for each in jax.tree.leaves(
            jax.eval_shape(
                lambda: PLAIN.module(P1["base"]).encode(
                    jnp.zeros((1, 8, 8, 8)), PLAIN.module(P1["base"]).embed(X[:1], 0.5, {"label": LABEL[:1]}), None
                )[1]
            )
        )
    ]
    assert tuple(sizes) == skips_of(BASE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Controlled(BASE, ()), "controls are named []: there must be at least one"),
        (lambda: Controlled(BASE, (OUTLINE, OUTLINE)), "each with a name of its own"),
        (
            lambda: Controlled(dataclasses.replace(BASE, blocks=2), (OUTLINE,)),
            "outline: its skip connections are (8, 8, 8, 16), the U-Net's (8, 8, 8, 8, 16, 16)",
        ),
        (
            lambda: Controlled(dataclasses.replace(BASE, num_classes=None), (OUTLINE,)),
            "outline: it takes the condition 'label', which the U-Net takes otherwise",
        ),
        (
            lambda: Controlled(
                dataclasses.replace(BASE, conditions=(Image("control", (8, 8), 1),)),
                (OUTLINE,),
            ),
            "the U-Net has a condition named 'control'",
        ),
        (lambda: dataclasses.replace(OUTLINE, widths=()), "widths=() must be numbers of at least 1"),
        (lambda: dataclasses.replace(OUTLINE, size=(0, 8)), "size=(0, 8) must be (height, width)"),
        (lambda: dataclasses.replace(OUTLINE, order=cast(Any, "grb")), "order='grb' must be 'rgb' or 'bgr'"),
        (
            lambda: ONE.apply(P1, X, T, {"label": LABEL, "control": DISTANCES[..., :1]}),
            "cond['control'] is a picture of (32, 32), expected (8, 8), 1 times x",
        ),
        (
            lambda: DeepCache(2).begin(ONE, P1, X, T, {"label": LABEL}),
            "DeepCache is a cache of a U-Net, got a ControlledModule",
        ),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
