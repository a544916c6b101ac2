"""LoRA around networks: equation (1) by hand, its gradients, its start, and what it is put on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx, traverse_util

from jaxdiff.networks import MLP, DiT, MMDiT, TaylorSeer, Tokens, UNet, functional
from jaxdiff.networks.lora import LoRA

TEXT = (Tokens("text", 6),)
UNET = UNet(
    image_size=4,
    width=8,
    multipliers=(1,),
    blocks=1,
    attention_resolutions=(),
    transformer_layers=(1,),
    heads=2,
    groups=2,
    in_channels=1,
    conditions=TEXT,
)
NETWORKS: dict[str, Any] = {
    "U-Net": UNET,
    "DiT": DiT(in_channels=1, patch=2, width=8, depth=2, heads=2, conditions=TEXT),
    "MMDiT": MMDiT(in_channels=1, patch=2, width=8, depth=1, heads=2, single_blocks=1, conditions=TEXT),
    "MLP": MLP(in_channels=1, width=8, depth=2),
}
COND = {"text": {"tokens": np.ones((2, 3, 6), "f"), "mask": np.ones((2, 3), "f")}}
X: Any = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype("f")
T: Any = np.array([0.1, 0.9], "f")


def made(name: str, targets: tuple[str, ...], alpha: float | None = 3.0, seed: int = 0) -> tuple[Any, Any]:
    """A net whose U is not 0, and its parameters."""
    net = LoRA(functional(NETWORKS[name]), 2, alpha, targets)
    params = jax.jit(net.init)(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f") / 4, params)
    return net, moved


def flat(tree: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(tree, sep="/"))


@pytest.mark.parametrize("name", ["U-Net", "DiT", "MMDiT"])
def test_it_starts_at_the_network_bit_for_bit(name: str) -> None:
    net = LoRA(functional(NETWORKS[name]), 2)
    params = jax.jit(net.init)(jax.random.key(0))
    params["base"] = made(name, ("attention",))[1]["base"]  # no last layer of zeros
    ours, theirs = jax.jit(net.apply)(params, X, T, COND), jax.jit(net.base.apply)(params["base"], X, T, COND)
    assert np.array_equal(ours, theirs)
    assert float(jnp.abs(theirs).max()) > 0.01
    assert net.cond == net.base.cond


@pytest.mark.parametrize("name", NETWORKS)
def test_each_weight_has_the_product_of_its_two(name: str) -> None:
    net, params = made(name, ("linear", "*conv*") if name == "U-Net" else ("linear",))
    base, added, merged = flat(params["base"]), flat(params["lora"]), flat(net.merged(params))
    kernels = {path for path in base if path.endswith("kernel")}
    assert {path.rpartition("/")[0] for path in added} == kernels
    for path in set(base) - kernels:
        assert merged[path] is base[path]
    for path in kernels:
        down, up, stacked = added[f"{path}/down"], added[f"{path}/up"], name in ("DiT", "MMDiT")
        row = stacked and path.split("/")[0] in ("blocks", "double", "single", "last", "dual")
        b = "b" if row else ""
        if "qkv" in path:
            kind = f"{b}pir,{b}pro->{b}ipo"
        elif base[path].ndim - row == 3:
            kind = "ir,rho->iho"  # a gated layer
        else:
            kind = "xyir,ro->xyio" if base[path].ndim - row == 4 else f"{b}ir,{b}ro->{b}io"
        wanted = base[path] + 1.5 * np.einsum(kind, down.astype(float), up.astype(float))
        np.testing.assert_allclose(merged[path], wanted, rtol=1e-5, atol=1e-5)


def test_gradients_are_the_chain_rules() -> None:
    net, params = made("DiT", ("attention",))

    def scalar(params: Any) -> Any:
        return jnp.sin(net.apply(params, X, T, COND)).sum()

    grads = flat(jax.jit(jax.grad(scalar))(params)["lora"])
    whole = flat(jax.jit(jax.grad(lambda base: jnp.sin(net.base.apply(base, X, T, COND)).sum()))(net.merged(params)))
    added = flat(params["lora"])
    rounding = 1e-6 * max(np.abs(each).max() for each in grads.values())  # of a gradient that is 0 but for it
    for path in net.forms():
        w = np.moveaxis(whole[path], -2, -3) if "qkv" in path else whole[path]
        down = 1.5 * np.einsum("...io,...ro->...ir", w, added[f"{path}/up"])
        up = 1.5 * np.einsum("...ir,...io->...ro", added[f"{path}/down"], w)
        for name, expected in (("down", down), ("up", up)):
            atol = max(rounding, 1e-3 * np.abs(expected).max())
            np.testing.assert_allclose(grads[f"{path}/{name}"], expected, rtol=1e-3, atol=atol)


def test_down_is_normal_of_deviation_one_over_the_rank() -> None:
    net = LoRA(functional(DiT(in_channels=1, width=64, depth=4, heads=2)), 4)
    down = jax.jit(net.init)(jax.random.key(0))["lora"]["blocks"]["attention"]["qkv"]["kernel"]["down"]
    assert down.shape == (4, 3, 64, 4)
    assert float(down.std()) * 4 == pytest.approx(1, abs=0.05)


def test_targets_by_name_and_by_path() -> None:
    def chosen(*targets: str) -> set[str]:
        return set(LoRA(functional(UNET), 2, targets=targets).forms())

    layer = "down/0/stages/0/attention/layers/0"
    names = (
        "attention/qkv",
        "attention/out",
        *(f"cross_attention/{each}" for each in ("query", "key", "value", "out")),
    )
    mine = {f"{layer}/{name}/kernel" for name in names}
    assert {path for path in chosen("attention") if path.startswith("down/0")} == mine
    assert chosen("attention") < chosen("linear")
    assert not any("conv" in path for path in chosen("linear"))
    assert chosen("middle_in") == {path for path in chosen("linear", "*conv1") if path.startswith("middle_in")} | {
        "middle_in/block/conv2/kernel"
    }
    assert chosen("up/*/conv1", "conv_in") == {path for path in chosen("*conv1") if path.startswith("up")} | {
        "conv_in/kernel"
    }
    with pytest.raises(ValueError, match=r"target 'sideways': it matches no weight .* lie under conv_in, "):
        chosen("attention", "sideways")
    with pytest.raises(ValueError, match="target 'attention': this network has no such weights"):
        LoRA(functional(MLP(width=8)), 2).forms()


def test_any_network_can_have_it() -> None:
    class Own(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.map = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x: Any, t: Any, cond: Any, key: Any) -> Any:
            return self.map(x)

    class Dense(linen.Module):
        @linen.compact
        def __call__(self, x: Any, t: Any, cond: Any, train: bool) -> Any:
            return linen.Dense(3)(x)

    for base in (functional(Own), functional(Dense(), shape=(3,))):
        net = LoRA(base, 2, targets=("linear",))
        params = net.init(jax.random.key(0))
        (path,) = net.forms()
        down, x = jnp.ones((3, 2)), jnp.ones((1, 3))
        params["lora"][path.split("/")[0]]["kernel"] = {"down": down, "up": jnp.ones((2, 3))}
        found = net.apply(params, x, 0.5)
        np.testing.assert_allclose(found - base.apply(params["base"], x, 0.5), 6.0, rtol=1e-5)


def test_caches_and_numbers_out_of_range() -> None:
    net, params = made("DiT", ("attention",))
    cache = TaylorSeer(every=1)
    memory = cache.begin(net, params, X, T, COND)
    found = jax.jit(lambda p, memory: cache.apply(net, p, X, T, COND, memory)[0])(params, memory)
    np.testing.assert_allclose(found, jax.jit(net.apply)(params, X, T, COND), rtol=1e-4, atol=1e-5)
    for options, said in (
        ({"rank": 0}, "rank=0"),
        ({"rank": 1, "alpha": 0.0}, "alpha=0"),
        ({"rank": 1, "targets": ()}, "empty"),
    ):
        with pytest.raises(ValueError, match=said):
            LoRA(functional(UNET), **options)
