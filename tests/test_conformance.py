"""Every condition with every objective with every network: each pair of them once, by a cover."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxdiff import VE, Eps
from jaxdiff.config import LossConfig
from jaxdiff.config.build import OBJECTIVES
from jaxdiff.loss import SNR
from jaxdiff.networks import (
    EDM2,
    MLP,
    DiT,
    Image,
    Level,
    Map,
    MMDiT,
    SongUNet,
    Text,
    Tokens,
    UNet,
    UViT,
    Vector,
    functional,
)
from jaxdiff.score_matching import LearnedHessian
from jaxdiff.spec import Condition, Spec, null_of
from jaxdiff.times import Uniform
from tests.covers import cover, pairs

STYLE, LOW, LABELS = Vector("style", 2), Image("low", (4, 4), 1, null=True), 3
LABEL = Spec((), "int32", 0, LABELS - 1, null=LABELS)
PARTS, NOISED = Map("parts", (4, 4), 3), Level("low_level", null=True)
READ, WORDS = Tokens("read", 4, 3, pooled=3), Text("words", 4, 3, width=8, depth=1, heads=1)
OWN = (STYLE, LOW, PARTS, NOISED, READ, WORDS)
CONDITIONS: dict[str, dict[str, Condition]] = {
    "none": {},
    "label": {"label": LABEL},
    "vector": {"style": STYLE.spec},
    "image": {each.name: each.spec for each in (LOW, PARTS, NOISED)},
    "label and vector": {"label": LABEL, "style": STYLE.spec},
    "text": {each.name: each.spec for each in (READ, WORDS)},
    "everything": {"label": LABEL, **{each.name: each.spec for each in OWN}},
}
PROCESS = VE(sigma_min=0.1, sigma_max=3.0)


def told(cond: Any, size: int) -> Any:
    """Conditions of any kind as ``(B, size)``, by features that no weight is needed for."""
    total: Any = 0.0
    waves = jnp.arange(1.0, size + 1)[None]
    for name, value in sorted(cond.items()):
        if name == "read":
            value = (value["tokens"] * value["mask"][..., None]).sum(axis=1) + value["pooled"].sum(axis=1)[:, None]
        flat = jnp.reshape(jnp.asarray(value, jnp.float32), (len(jax.tree.leaves(value)[0]), -1)).clip(-9, 9)
        total = total + jnp.sin(flat.mean(axis=1, keepdims=True) * waves)
    return total


class OwnModule(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs) -> None:
        self.into, self.out = nnx.Linear(size, 8, rngs=rngs), nnx.Linear(8, 3 * size, rngs=rngs)

    def __call__(self, x: Any, t: Any, cond: Any, key: Any) -> Any:
        return self.out(jnp.tanh(self.into(x) + told(cond, 8) + jnp.reshape(t, (-1, 1)) / 1000))


@dataclasses.dataclass(frozen=True)
class Own:
    names: tuple[str, ...]

    @property
    def cond(self) -> Any:
        return {name: {"label": LABEL, **{each.name: each.spec for each in OWN}}[name] for name in self.names}

    def __call__(self, rngs: nnx.Rngs) -> OwnModule:
        return OwnModule(2, rngs)


class OwnLinen(linen.Module):
    names: tuple[str, ...]

    @property
    def cond(self) -> Any:
        return Own(self.names).cond

    @linen.compact
    def __call__(self, x: Any, t: Any, cond: Any, train: bool) -> Any:
        return linen.Dense(6)(jnp.tanh(linen.Dense(8)(x) + told(cond, 8) + t[:, None] / 1000))


def network(name: str, condition: str) -> Any:
    specs = CONDITIONS[condition]
    own = tuple(each for each in OWN if each.name in specs)
    options: dict[str, Any] = {"num_classes": LABELS if "label" in specs else None, "conditions": own}
    small: dict[str, Any] = {"width": 8, "frequencies": 8}
    if name == "unet":
        unet = UNet(
            8,
            in_channels=1,
            out_channels=3,
            width=8,
            multipliers=(1,),
            blocks=1,
            groups=4,
            attention_resolutions=(),
            **options,
        )
        return functional(dataclasses.replace(unet, transformer_layers=(1,) if "words" in specs else ()))
    if name in ("song", "edm2"):
        levels: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_resolutions": ()}
        levels |= {"in_channels": 1, "num_classes": options["num_classes"]}
        if name == "edm2":
            return functional(EDM2(8, head_width=8, level_features=8, **levels))
        return functional(SongUNet(8, out_channels=3, dropout=0.0, **levels))
    patches: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "patch": 4, "heads": 1}
    if name == "dit":
        return functional(DiT(depth=1, **patches, **small, **options))
    if name == "mmdit":
        return functional(MMDiT(depth=1, single_blocks=1, dual=1, qk_norm=True, **patches, **small, **options))
    if name == "uvit":
        return functional(UViT((8, 8), width=8, depth=3, **patches, **options))
    if name == "mlp":
        return functional(MLP(out_channels=6, depth=1, **small, **options))
    return functional(Own(tuple(specs))) if name == "nnx" else functional(OwnLinen(tuple(specs)), shape=(2,))


def fits(row: tuple[str, str, str]) -> bool:
    name, condition, objective = row
    if name in ("song", "edm2"):
        return condition in ("none", "label") and (name == "song" or objective not in HESSIANS)
    if name == "mmdit":  # has its second stream for a text, and takes the rest beside it
        return condition in ("text", "everything")
    return condition not in {"mlp": ("image", "text", "everything")}.get(name, ())


# What compiles soonest first: a cover takes the first of equals.
NETWORKS = ("nnx", "linen", "mlp", "dit", "uvit", "mmdit", "unet", "edm2", "song")
HESSIANS = ("second_order", "high_order")  # of a network that returns more channels than it takes, which EDM2's do not
EVERY_DAY = ("denoising", "likelihood")  # of the networks of papers' own repositories
CELLS = cover(filter(fits, itertools.product(NETWORKS, CONDITIONS, OBJECTIVES)), pairs)


def values(condition: Condition, rng: np.random.Generator) -> Any:
    def draw(spec: Spec) -> Any:
        shape = (4, *(3 if size is None else size for size in spec.shape))
        return jnp.asarray(
            rng.integers(1, 3, shape) if spec.dtype == "int32" else rng.uniform(0.3, 1, shape), spec.dtype
        )

    return draw(condition) if isinstance(condition, Spec) else {name: draw(spec) for name, spec in condition.items()}


def absent(condition: Condition, value: Any) -> Any:
    return jax.tree.map(lambda null, like: jnp.broadcast_to(null, like.shape), null_of(condition, 4), value)


def marked(cell: tuple[str, str, str]) -> Any:
    nightly = cell[0] in ("song", "edm2") and cell[2] not in EVERY_DAY
    return pytest.param(cell, marks=pytest.mark.nightly if nightly else ())


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS], ids=lambda cell: "-".join(cell).replace(" ", "_"))
def test_cell(cell: tuple[str, str, str]) -> None:
    """Finite loss and gradient, a dropped condition is its null, and one trace over all numbers and conditions."""
    name, condition, objective = cell
    net, specs, rng, traces = network(name, condition), CONDITIONS[condition], np.random.default_rng(0), []
    assert dict(net.cond) == specs
    x = rng.normal(size=(4, 2) if name in ("nnx", "linen", "mlp") else (4, 8, 8, 1)).astype(np.float32)
    cond = {each: values(spec, rng) for each, spec in specs.items()}
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(net.init, jax.random.key(0)),
    )

    @jax.jit
    def step(params: Any, rate: Any, batch: Any, sigma_max: Any) -> Any:
        traces.append(1)
        process = VE(sigma_min=0.1, sigma_max=sigma_max)
        parts = {
            "process": process,
            "parameterization": Eps() if name == "edm2" else LearnedHessian(Eps(), rank=1),
            "weight": SNR(),
            "time": Uniform(0.3, 0.9),
            "dropout": dict.fromkeys(specs, rate),
        }
        loss = OBJECTIVES[objective](parts, LossConfig())
        draws = loss.draw(jax.random.key(1), batch, loss.init())

        def total(params: Any) -> Any:
            return loss.terms(net, params, draws).loss.mean()

        return jax.value_and_grad(total)(params)

    told_all, gradient = step(params, 0.0, {"x": x, **cond}, 3.0)
    assert np.isfinite(told_all) and all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert any(bool(leaf.any()) for leaf in jax.tree.leaves(gradient))
    dropped, _ = step(params, 1.0, {"x": x, **cond}, 3.0)
    nulls = {each: absent(spec, cond[each]) for each, spec in specs.items()}
    np.testing.assert_allclose(dropped, step(params, 0.0, {"x": x, **nulls}, 3.0)[0], rtol=1e-5)
    assert (not specs) or abs(float(told_all - dropped)) > 1e-6 * abs(float(told_all))
    assert step(params, 0.0, {"x": 2 * x, **cond}, 4.0)[0] != told_all
    assert len(traces) == 1


def test_the_cover_meets_every_pair() -> None:
    rows = [row for row in itertools.product(NETWORKS, CONDITIONS, OBJECTIVES) if fits(row)]
    assert {pair for row in CELLS for pair in pairs(row)} == {pair for row in rows for pair in pairs(row)}
    assert len(CELLS) <= 82
