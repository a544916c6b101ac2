"""A network with some of its layers perturbed: by hand, by limits, and with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import EDM2, MLP, DiT, MMDiT, SongUNet, Tokens, UNet, UViT, functional
from jaxdiff.networks.attention import plain_attention
from jaxdiff.networks.control import Controlled, ControlNet
from jaxdiff.networks.layers import layer_norm
from jaxdiff.networks.lora import LoRA
from jaxdiff.networks.perturbed import Perturbation, Perturbed, attending, blur

Case = tuple[Any, dict[str, Any], int, int]
TEXT = Tokens("text", 8, length=5)
TOLD: dict[str, Any] = {
    "tokens": jax.random.normal(jax.random.key(5), (2, 5, 8)),
    "mask": jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool),
}
SMALL: dict[str, Any] = {"in_channels": 1, "width": 16, "multipliers": (1, 2), "attention_resolutions": (4,)}
UNET = UNet(8, blocks=1, num_classes=3, **SMALL)
CASES: dict[str, Case] = {  # configuration, conditions, layers, the middle
    "unet": (UNET, {"label": jnp.array([0, 2])}, 4, 1),
    "transformers": (
        UNet(8, blocks=1, transformer_layers=(0, 2), conditions=(TEXT,), heads=2, **SMALL),
        {"text": TOLD},
        4,
        1,
    ),
    "song": (SongUNet(8, blocks=1, **SMALL), {}, 3, 1),
    "edm2": (EDM2(8, blocks=1, head_width=16, **SMALL), {}, 4, 1),
    "dit": (DiT(in_channels=1, width=16, depth=3, heads=2), {}, 3, 1),
    "uvit": (UViT((8, 8), in_channels=1, width=16, depth=3, heads=2, conditions=(TEXT,)), {"text": TOLD}, 3, 1),
    "mmdit": (
        MMDiT(in_channels=1, width=16, depth=3, heads=2, dual=1, conditions=(TEXT,), qk_norm=True),
        {"text": TOLD},
        3,
        1,
    ),
    "flux": (
        MMDiT(in_channels=1, width=16, depth=1, single_blocks=2, heads=2, rope=(2, 2, 4), conditions=(TEXT,)),
        {"text": TOLD},
        3,
        1,
    ),
}
X = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))


def weights(net: Any) -> Any:
    """Parameters none of which are zero, so that every part of the network counts."""
    draw = np.random.default_rng(1).standard_normal
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw(leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, Any], int, int]:
    config, cond, layers, middle = CASES[request.param]
    net = functional(config)
    return net, weights(net), cond, layers, middle


def run(net: Any, params: Any, cond: dict[str, Any], x: jax.Array = X) -> jax.Array:
    return jax.jit(net.apply)(params, x, 0.5, cond)


def test_the_same_parameters_and_as_many_layers(case: Any) -> None:
    net, params, cond, layers, middle = case
    changed = net.perturbed("identity", (middle, layers - 1))
    assert jax.eval_shape(changed.init, jax.random.key(0)) == jax.eval_shape(net.init, jax.random.key(0))
    assert changed.cond == net.cond and changed == net.perturbed("identity", (middle, layers - 1)) != net
    assert jax.eval_shape(changed.apply, params, X, 0.5, cond).shape == X.shape
    with pytest.raises(ValueError, match=f"layer {layers} is none of this network's, which are 0 to {layers - 1}"):
        net.perturbed("identity", (layers,)).apply(params, X, 0.5, cond)


@pytest.mark.nightly
def test_no_layers_and_the_middle_one(case: Any) -> None:
    """No layers is the network bit for bit; the middle is the middle, and counts."""
    net, params, cond, _, middle = case
    plain = run(net, params, cond)
    assert np.isfinite(plain).all()
    np.testing.assert_array_equal(run(net.perturbed("identity", ()), params, cond), plain)
    by_name, by_number = (run(net.perturbed("identity", which), params, cond) for which in ("mid", (middle,)))
    np.testing.assert_array_equal(by_name, by_number)
    assert float(jnp.abs(by_name - plain).max()) > 1e-5


@pytest.mark.nightly
def test_a_blur_of_no_width_is_the_network(case: Any) -> None:
    net, params, cond, _, _ = case
    plain = run(net, params, cond)
    narrow = run(net.perturbed("blurred", "all", 1e-3), params, cond)
    np.testing.assert_allclose(narrow, plain, rtol=1e-4, atol=1e-5 * float(jnp.abs(plain).max()))
    wide, whole = (run(net.perturbed("blurred", "all", sigma), params, cond) for sigma in (1.0, np.inf))
    assert float(jnp.abs(wide - plain).max()) > 1e-5 and float(jnp.abs(whole - wide).max()) > 1e-5


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    "kind", ["identity", pytest.param("blurred", marks=NIGHTLY), pytest.param("left_out", marks=NIGHTLY)]
)
def test_some_blocks_of_a_row_by_a_scan_or_one_by_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DiT's blocks called by hand, of which the second is perturbed, against the scan of all with a flag."""
    config = DiT(in_channels=1, width=16, depth=3, heads=2)
    net = functional(config)
    params, changed = weights(net), net.perturbed(kind, (1,))
    for unroll in (True, False):
        monkeypatch.setattr("jaxdiff.networks.modulation.unrolled", lambda *_, unroll=unroll: unroll)
        found = jax.jit(lambda params, x: changed.apply(params, x, 0.5))(params, X)
        module = net.module(params)
        tokens, told = module.enter(X, jnp.full(2, 0.5), {})
        graph, stacked = nnx.split(module.blocks)
        for number in range(3):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, number=number: leaf[number], stacked))
            if number == 1:
                block.perturbed = Perturbation(kind)
            tokens = block(tokens, told, None, (4, 4))
        np.testing.assert_allclose(found, module.leave(tokens, told, X), rtol=1e-4, atol=1e-5)


def attended(kind: str) -> Callable[..., jax.Array]:
    """Equations (1) and (2) at an infinite sigma, of tokens (L, C) and one head, written out."""

    def one(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if kind == "identity":
            return v
        q = jnp.broadcast_to(q.mean(0, keepdims=True), q.shape)
        return jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5, axis=-1) @ v

    return one


@pytest.mark.parametrize("kind", ["identity", "blurred", "left_out"])
def test_a_transformer_of_one_block_written_out(kind: Any) -> None:
    """Peebles and Xie's equations on tokens one head and one sample at a time, with the perturbation put in."""
    config = DiT(in_channels=1, width=16, depth=1, heads=2)
    net = functional(config)
    params = weights(net)
    module = net.module(params)
    tokens, told = module.enter(X, jnp.full(2, 0.5), {})
    p = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    c = told.vector @ p["modulation"]["kernel"] + p["modulation"]["bias"][None]
    after = []
    for h, row in zip(tokens, c, strict=True):
        shift1, scale1, gate1, shift2, scale2, gate2 = (part[None] for part in jnp.split(row, 6))
        n = layer_norm(h, 1e-6) * (1 + scale1) + shift1
        qkv = p["attention"]["qkv"]
        q, k, v = (n @ qkv["kernel"][:, i] + qkv["bias"][i][None] for i in range(3))
        heads = [attended(kind)(*(each[:, 8 * i : 8 * i + 8] for each in (q, k, v))) for i in range(2)]
        mixed = jnp.concatenate(heads, axis=1) @ p["attention"]["out"]["kernel"] + p["attention"]["out"]["bias"][None]
        a = h + gate1 * mixed
        n = layer_norm(a, 1e-6) * (1 + scale2) + shift2
        hidden = jax.nn.gelu(n @ p["expand"]["kernel"] + p["expand"]["bias"][None], approximate=True)
        b = a + gate2 * (hidden @ p["contract"]["kernel"] + p["contract"]["bias"][None])
        after.append(h if kind == "left_out" else b)
    expected = module.leave(jnp.stack(after), told, X)
    np.testing.assert_allclose(run(net.perturbed(kind, "all"), params, {}), expected, rtol=1e-4, atol=1e-4)


def test_the_middle_of_a_unet_written_out() -> None:
    """The attention block of the middle gives x + W v + b for the identity, and x where it is left out."""
    net = functional(UNet(8, in_channels=1, width=8, multipliers=(1,), blocks=1, attention_resolutions=()))
    params, cond = weights(net), dict[str, Any]()
    for kind in ("identity", "left_out"):
        module = net.module(params)
        block = module.middle_in.attention

        def by_hand(x: jax.Array, told: Any, block: Any = block, kind: str = kind) -> jax.Array:
            if kind == "left_out":
                return x
            p = params["middle_in"]["attention"]["attention"]
            tokens = block.norm(x).reshape(2, 64, 8)
            value = tokens @ p["qkv"]["kernel"][:, 2] + p["qkv"]["bias"][2].reshape(1, 1, -1)
            return x + (value @ p["out"]["kernel"] + p["out"]["bias"].reshape(1, 1, -1)).reshape(x.shape)

        told = module.embed(X, jnp.full(2, 0.5), cond)
        first = module.enter(X, cond)
        h = module.down[0].stages[0](first, told, None)
        skips = [first, h]
        h = by_hand(module.middle_in.block(h, told, None), told)
        expected = module.decode(module.middle_out(h, told, None), skips, told, None)
        found = run(net.perturbed(kind, None), params, cond)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
def test_left_out_everywhere_is_a_network_of_no_blocks() -> None:
    """All residual parts left out: what enters leaves."""
    for config, cond in ((DiT(in_channels=1, width=16, depth=3, heads=2), {}), (CASES["uvit"][0], {"text": TOLD})):
        net = functional(config)
        params = weights(net)
        empty = jax.tree.map(jnp.zeros_like, params)
        kept = {
            name: each if name not in ("blocks", "first", "middle", "second") else empty[name]
            for name, each in params.items()
        }
        if "second" in params:  # what joins the long skip connections is no residual part
            kept["second"] = {**kept["second"], "join": params["second"]["join"]}
        found = run(net.perturbed("left_out", "all"), params, cond)
        np.testing.assert_allclose(found, run(net, kept, cond), rtol=1e-4, atol=1e-5)


def test_beside_other_tokens_an_image_sees_itself_and_them() -> None:
    """Equation (4) against all logits with those between tokens of the image taken out; others as ever; masks hold."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 2, 9, 4)) for key in keys)
    mask = jnp.array([[True] * 9, [True] * 6 + [False, True, False]])
    cut = jnp.where(jnp.eye(9, dtype=bool), 0.0, -jnp.inf)
    bias = jnp.zeros((9, 9)).at[:6, :6].set(cut[:6, :6])[None]
    attend = jax.jit(attending(Perturbation("identity"), (2, 3)))
    for given in (None, mask):
        expected = jax.jit(plain_attention)(q, k, v, given, bias=bias)
        found = attend(q, k, v, given)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        images = attend(q[:, :, :6], k, v, given)  # FLUX's and SD3's last block
        np.testing.assert_allclose(images, expected[:, :, :6], rtol=1e-5, atol=1e-6)
    broken = v.at[1, :, 6].set(jnp.nan)
    np.testing.assert_allclose(attend(q, k, broken, mask), expected, rtol=1e-5, atol=1e-6)


def test_a_blur_is_a_gaussian_reflected_at_its_edges() -> None:
    """Against the sum over a picture reflected by NumPy; a constant stays; a width far beyond the picture too."""
    picture = np.asarray(jax.random.normal(jax.random.key(3), (5, 7)), np.float64)
    sigma, reach = 1.3, 4
    n = np.arange(-reach, reach + 1)
    kernel = np.exp(-(n**2) / (2 * sigma**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    padded = np.pad(picture, reach, mode="reflect")
    expected = np.array([[(padded[i : i + 9, j : j + 9] * kernel).sum() for j in range(7)] for i in range(5)])
    found = blur(jnp.asarray(picture, jnp.float32).reshape(1, 1, 35, 1), (5, 7), sigma)
    np.testing.assert_allclose(found.reshape(5, 7), expected, rtol=1e-5, atol=1e-6)
    for grid, width in (((5, 7), 30.0), ((1, 35), 2.0)):
        np.testing.assert_allclose(blur(jnp.ones((1, 1, 35, 2)), grid, width), 1.0, rtol=1e-5)


def test_layers_where_none_are_named() -> None:
    """Blocks 7 to 9 of 24 are left out, as Stable Diffusion 3.5 has it; attention is changed in the middle."""
    for depth, wanted in ((24, {7, 8, 9}), (12, {3}), (3, {0})):
        module = nnx.eval_shape(
            lambda depth=depth: Perturbed(DiT(width=8, depth=depth, heads=2), Perturbation("left_out"))(nnx.Rngs(0))
        )
        assert {i for i, chosen in enumerate(module.blocks.perturbed.which) if chosen} == wanted


@pytest.mark.nightly
def test_around_other_networks() -> None:
    """A LoRA's and a ControlNet's base is what is perturbed."""
    net = functional(UNET)
    lora = LoRA(net, rank=2)
    params = weights(lora)
    cond = {"label": jnp.array([0, 2])}
    expected = run(net.perturbed("identity", "mid"), lora.merged(params), cond)
    np.testing.assert_allclose(run(lora.perturbed("identity", "mid"), params, cond), expected, rtol=1e-5, atol=1e-6)
    control = functional(Controlled(UNET, (ControlNet(UNET, channels=1, halving=False),)))
    whole = weights(control)
    expected = run(net.perturbed("identity", "mid"), whole["base"], cond)
    np.testing.assert_allclose(run(control.perturbed("identity", "mid"), whole, cond), expected, rtol=1e-5, atol=1e-6)
    assert control.perturbed("identity").settings == control.settings


def test_what_cannot_be_perturbed_says_so() -> None:
    with pytest.raises(ValueError, match="a MLP has no self-attention of an image: leave pag, seg, slg out"):
        functional(MLP(width=8)).perturbed("identity").init(jax.random.key(0))
    for wrong in (("hidden",), ("blurred", 0.0), ("blurred", float("nan"))):
        with pytest.raises(ValueError, match="must be"):
            Perturbation(*wrong)
