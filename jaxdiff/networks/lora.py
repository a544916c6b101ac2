"""LoRA: a network whose weights stay, with a product of two thin matrices added to some of them, which is trained.

Hu et al. 2021 (https://arxiv.org/abs/2106.09685), equation (3), with the scale of section 4.1. For a linear map y = x W
with W (in, out), as our kernels lie,

    W' = W + (alpha / r) D U,        D (in, r) "down",    U (r, out) "up"                                       (1)
    D ~ N(0, 1/r^2),                 U = 0                                                                      (2)

By (2) training starts at the network itself, bit for bit. A convolution's inputs are its window and channels together,
so that D is a convolution to r channels. Query, key and value, which are one array here, have a D and a U each; a gated
layer's two halves are one map. The blocks of a row have one D and one U each, stacked as their weights are.

    params = {"base": the network's, "lora": {path: {"down": D, "up": U}}}

`apply` makes W' anew and calls the network with it, so nothing inside of the network knows of LoRA, and it holds for
any. Of a layer that sees n tokens in all this takes r / n of the layer's own products, and memory for one W' (in the
gradient's pass for the derivative by W' too, which is then mapped to D and U): with few tokens of wide layers it is no
gain over training the layer itself but in the optimizer's and the averages' memory, and in what is stored.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.attention import QueryKeyValue
from jaxdiff.networks.functional import Functional, Params
from jaxdiff.networks.initial_noise import initial_noise
from jaxdiff.networks.layers import Conv3x3, Linear
from jaxdiff.networks.perturbed import Kind, Layers
from jaxdiff.networks.unet_transformer import GatedLinear
from jaxdiff.spec import Specs

BASE, ADDED = "base", "lora"
"""The names of both parts of the parameters."""
_ATTENTION = re.compile(r"attention/(qkv|query|key|value|out)/kernel$")


@dataclass(frozen=True)
class Form:
    """How a kernel's axes are a matrix: the last are ``(*inputs, parts?, *outputs)``, those before are blocks of a row.

    Args:
      own: how many axes one block has.
      outputs: how many of them are of the result.
      parts: whether the axis before those is of maps that stand side by side.
    """

    own: int
    outputs: int = 1
    parts: bool = False

    def shapes(self, kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of D and U.

        >>> Form(2).shapes((5, 8, 6), 2), Form(3, parts=True).shapes((8, 3, 6), 2)
        (((5, 8, 2), (5, 2, 6)), ((3, 8, 2), (3, 2, 6)))
        """
        lead, inputs, outputs = self.split(kernel)
        return (*lead, *inputs, rank), (*lead, rank, *outputs)

    def split(self, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Lengths of the blocks' axis and the parts', of the inputs', and of the outputs'."""
        before, own = kernel[: len(kernel) - self.own], kernel[len(kernel) - self.own :]
        inputs, outputs = own[: -self.outputs], own[-self.outputs :]
        return ((*before, inputs[-1]), inputs[:-1], outputs) if self.parts else (before, inputs, outputs)

    def product(self, down: Array, up: Array) -> Array:
        """D U as the kernel lies, float32."""
        rank = down.shape[-1]
        count = len(down.shape) - 1 - (self.own - self.outputs - self.parts)  # axes of blocks and parts
        lead, inputs, outputs = down.shape[:count], down.shape[count:-1], up.shape[count + 1 :]
        left = down.astype(jnp.float32).reshape(*lead, math.prod(inputs), rank)
        right = up.astype(jnp.float32).reshape(*lead, rank, math.prod(outputs))
        made = jnp.matmul(left, right).reshape(*lead, *inputs, *outputs)
        return jnp.moveaxis(made, count - 1, count - 1 + len(inputs)) if self.parts else made


_FORMS: dict[type, Form] = {
    Linear: Form(2),
    QueryKeyValue: Form(3, parts=True),
    GatedLinear: Form(3, outputs=2),
    Conv3x3: Form(4),
    nnx.Linear: Form(2),
}
_LINEAR = (Linear, QueryKeyValue, GatedLinear, nnx.Linear)


@dataclass(frozen=True)
class LoRA:
    """A network as two pure functions, with trained additions to some weights of a network that stays.

    Args:
      base: the network, from `jaxdiff.networks.functional`.
      rank: r, at least 1.
      alpha: of the scale alpha / r; None: r, so that the scale is 1.
      targets: which weights: ``"attention"`` (query, key, value and output of self- and cross-attention), ``"linear"``
        (all linear maps, no convolution), or patterns of paths as ``train.freeze`` has them, such as
        ``"up/*/conv1"``.

    Raises:
      ValueError: a rank or an alpha out of range; targets that no weight has, when parameters are made.

    >>> from jaxdiff.networks import UNet, functional
    >>> unet = functional(UNet(image_size=8, width=16, multipliers=(1, 2), attention_resolutions=(4,), in_channels=1))
    >>> net = LoRA(unet, rank=2)
    >>> params, x = net.init(jax.random.key(0)), jnp.ones((1, 8, 8, 1))
    >>> bool((net.apply(params, x, 0.5) == unet.apply(params["base"], x, 0.5)).all())
    True
    >>> params["lora"]["middle_in"]["attention"]["attention"]["qkv"]["kernel"]["down"].shape
    (3, 32, 2)
    """

    base: Any
    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ("attention",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if self.alpha is not None and not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha={self.alpha} must be above 0")
        if not self.targets:
            raise ValueError("targets are empty: name at least one, such as attention")

    @property
    def build(self) -> Any:
        """The recipe of the network."""
        return self.base.build

    @property
    def cond(self) -> Specs:
        """What it takes beside x and t, by name."""
        declared: Specs = self.base.cond
        return declared

    @property
    def settings(self) -> tuple[str, ...]:
        """Those conditions that are settings of a call."""
        declared: tuple[str, ...] = getattr(self.base, "settings", ())
        return declared

    @property
    def scale(self) -> float:
        """alpha / r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def init(self, key: Array) -> Params:
        """Fresh parameters of both: ``{"base": ..., "lora": ...}``."""
        first, second = jax.random.split(key)
        added: dict[str, Any] = {}
        for number, (path, form) in enumerate(self.forms().items()):
            down, up = form.shapes(_kernels(self.base)[path].shape, self.rank)
            noise = initial_noise(second, number, jnp.full(down, 1 / self.rank), "normal")
            added[path] = {"down": noise, "up": jnp.zeros(up)}
        return {BASE: self.base.init(first), ADDED: traverse_util.unflatten_dict(added, sep="/")}

    def apply(
        self,
        params: Mapping[str, Any],
        x: Array,
        t: ArrayLike,
        cond: Mapping[str, Any] | None = None,
        *,
        key: Array | None = None,
    ) -> Array:
        """Runs the network with the weights of equation (1). Arguments and result as of the network's own."""
        output: Array = self.base.apply(self.merged(params), x, t, cond, key=key)
        return output

    def module(self, params: Mapping[str, Any]) -> Any:
        """The module with the weights of equation (1)."""
        return self.base.module(self.merged(params))

    def perturbed(self, kind: Kind, layers: Layers | None = None, sigma: float = math.inf) -> LoRA:
        """The same around the perturbed network: see `Functional.perturbed`."""
        return replace(self, base=self.base.perturbed(kind, layers, sigma))

    def merged(self, params: Mapping[str, Any]) -> Params:
        """Parameters of the network itself, by equation (1)."""
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(params[BASE]), sep="/")
        added: dict[str, Any] = traverse_util.flatten_dict(dict(params[ADDED]), sep="/")
        for path, form in self.forms().items():
            change = self.scale * form.product(added[f"{path}/down"], added[f"{path}/up"])
            flat[path] = (flat[path].astype(jnp.float32) + change).astype(flat[path].dtype)
        return dict(traverse_util.unflatten_dict(flat, sep="/"))

    def forms(self) -> dict[str, Form]:
        """The targeted kernels by their paths.

        Raises:
          ValueError: a target that is no name and matches no weight.
        """
        return _forms(self.base, self.targets)


@functools.lru_cache(maxsize=64)
def _forms(base: Any, targets: tuple[str, ...]) -> dict[str, Form]:
    known = _known(base)
    found: set[str] = set()
    for target in targets:
        if target == "attention":
            matching = {path for path in known if _ATTENTION.search(path)}
        elif target == "linear":
            matching = {path for path, (_, linear) in known.items() if linear}
        else:
            matching = {p for p in known if fnmatch.fnmatchcase(p, target) or fnmatch.fnmatchcase(p, f"{target}/*")}
        if not matching:
            tops = ", ".join(sorted({path.split("/")[0] for path in known}))
            kind = "this network has no such weights" if target in ("attention", "linear") else "it matches no weight"
            raise ValueError(f"target {target!r}: {kind} of linear maps or convolutions; they lie under {tops}")
        found |= matching
    return {path: form for path, (form, _) in known.items() if path in found}


@functools.lru_cache(maxsize=64)
def _known(base: Any) -> dict[str, tuple[Form, bool]]:
    """The kernels that LoRA is made for, by path, and whether each is of a linear map. Of a network that is no Flax NNX
    module those with two axes."""
    kernels = _kernels(base)
    if not isinstance(base, Functional):
        flat = {path: leaf for path, leaf in kernels.items() if path.split("/")[-1] == "kernel"}
        return {path: (Form(2), True) for path, leaf in flat.items() if leaf.ndim == 2}
    found = {}
    for parts, node in nnx.iter_graph(nnx.eval_shape(lambda: base.build(nnx.Rngs(0)))):
        path = "/".join([*map(str, parts), "kernel"])
        if type(node) in _FORMS and path in kernels:
            found[path] = _FORMS[type(node)], type(node) in _LINEAR
    return {path: found[path] for path in kernels if path in found}


@functools.lru_cache(maxsize=64)
def _kernels(base: Any) -> dict[str, Any]:
    shapes = jax.eval_shape(base.init, jax.random.key(0))
    flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
    return flat
