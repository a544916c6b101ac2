"""The boundary between Flax modules and pure functions.

A network is a Flax NNX module, used as a container of parameters and nothing else. `functional` turns the recipe of a
module into two pure functions, ``init`` and ``apply``; above them stand only `jax.jit`, `jax.grad`, `jax.lax.scan`,
optax and Orbax.

What a module must be, to stand here:

- its recipe ``build(rngs)`` is hashable, and equal recipes build equal modules: a frozen dataclass (`UNet`, `DiT`), or
  a plain function;
- it is called as ``module(x, t, cond, key)``, where cond has each condition that the recipe's ``cond`` declares, a
  mapping from names to `jaxdiff.spec.Spec`; a recipe without one is unconditional, or checks its conditions itself;
- all its state is `flax.nnx.Param`: fixed tables that must be stored too (mask them from the optimizer); no running
  statistics and no captured random keys, which would be a second, hidden argument. So a dropout layer is made as
  ``nnx.Dropout(rate)`` and called as ``dropout(x, deterministic=key is None, rngs=key)``.

A Flax Linen module is a network too: `jaxdiff.networks.linen`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.linen import LinenFunctional
from jaxdiff.networks.perturbed import Kind, Layers, Perturbation, Perturbed
from jaxdiff.spec import Specs, complete

Params = dict[str, Any]
"""Parameters: a nested dict with string keys and arrays as leaves."""


@dataclass(frozen=True)
class Functional:
    """A network as two pure functions of its parameters. Made by `functional`; equal when ``build`` is equal.

    It holds no arrays, so it is a static argument of `jax.jit`: calls with two equal ones share a trace.
    """

    build: Callable[[nnx.Rngs], Any]

    @property
    def cond(self) -> Specs:
        """What it takes beside x and t, by name."""
        declared: Specs = getattr(self.build, "cond", {})
        return declared

    @property
    def settings(self) -> tuple[str, ...]:
        """Those conditions that are settings of a call: in no data, and nothing that guidance leads away from."""
        declared: tuple[str, ...] = getattr(self.build, "settings", ())
        return declared

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32. Under `jax.jit`, `jax.vmap` and `jax.eval_shape` as outside them.

        Args:
          key: a `jax.random.key`.

        Returns:
          A nested dict of arrays; the members of a list stand under "0", "1", ...

        Raises:
          ValueError: the module holds state that is not a parameter.
        """
        return _string_keys(_split(self.build(nnx.Rngs(key)))[1])

    def apply(
        self,
        params: Mapping[str, Any],
        x: Array,
        t: ArrayLike,
        cond: Mapping[str, Any] | None = None,
        *,
        key: Array | None = None,
    ) -> Array:
        """Runs the network.

        Args:
          params: as `init` made them.
          x: ``(B, H, W, C)`` images or latents.
          t: ``()`` or ``(B,)``, the time as this network was told to expect it (which is the parameterization's
            business).
          cond: what the samples are conditioned on, e.g. ``{"label": (B,) int32}``; the null of each one left out.
          key: turns dropout on, with this key.

        Returns:
          ``(B, H, W, out_channels)`` float32.

        Raises:
          ValueError: at trace time, where shapes or keys do not fit the network.
        """
        given = complete(self.cond, cond, x.shape[0]) if hasattr(self.build, "cond") else cond
        output: Array = self.module(params)(x, t, given, key)
        return output.astype(jnp.float32)

    def perturbed(self, kind: Kind, layers: Layers | None = None, sigma: float = math.inf) -> Functional:
        """The network with some layers perturbed, of the same parameters: see `jaxdiff.networks.perturbed.Perturbed`.

        Args:
          kind: what is done to them.
          layers: which.
          sigma: of the blur.
        """
        return Functional(Perturbed(self.build, Perturbation(kind, sigma), layers))

    def module(self, params: Mapping[str, Any]) -> Any:
        """The module with these parameters, for what needs a part of the network (`jaxdiff.networks.caching`).

        Raises:
          ValueError: parameters of another network.
        """
        graphdef, shapes = _skeleton(self.build)
        return nnx.merge(graphdef, _original_keys(shapes, params, ()))


@dataclass(frozen=True)
class Networks:
    """Several networks that are trained together: their parameters are one dict, by name.

    An objective takes them apart, ``net["student"].apply(params["student"], ...)``; `optax.multi_transform` gives each
    an optimizer of its own.

    Args:
      nets: names and networks, from `functional`, or others with `init` and `cond`.

    >>> from jaxdiff.networks import MLP
    >>> nets = Networks((("student", functional(MLP(width=8))), ("critic", functional(MLP(width=8)))))
    >>> import jax
    >>> sorted(nets.init(jax.random.key(0)))
    ['critic', 'student']
    """

    nets: tuple[tuple[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        return dict(self.nets)[name]

    @property
    def cond(self) -> Specs:
        """What any of them takes beside x and t."""
        return {name: spec for _, net in self.nets for name, spec in net.cond.items()}

    def init(self, key: Array) -> Params:
        """Fresh parameters of each."""
        return {
            name: net.init(key)
            for key, (name, net) in zip(jax.random.split(key, len(self.nets)), self.nets, strict=True)
        }


def functional(build: Callable[[nnx.Rngs], Any] | linen.Module, shape: tuple[int, ...] | None = None) -> Any:
    """The pure functions of the module that ``build`` makes.

    Args:
      build: ``(rngs) -> flax.nnx.Module``, hashable: a configuration such as `UNet` or `DiT`, or a function of your
        own. Or a Flax Linen module (`jaxdiff.networks.linen`).
      shape: of one sample; a Linen module needs it.

    Raises:
      TypeError: ``build`` is an NNX module already, or cannot be hashed; a Linen module without a shape.

    >>> from jaxdiff.networks import UNet
    >>> import jax
    >>> net = functional(UNet(image_size=8, width=16, multipliers=(1, 2), attention_resolutions=(), in_channels=1))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> jax.jit(net.apply)(params, jnp.zeros((2, 8, 8, 1)), 0.5).shape
    (2, 8, 8, 1)

    Any module with the same call is a network:

    >>> class Scale(nnx.Module):
    ...     def __init__(self):
    ...         self.gain = nnx.Param(jnp.ones(()))
    ...     def __call__(self, x, t, cond, key):
    ...         return self.gain * x
    >>> def build(rngs):
    ...     return Scale()
    >>> functional(build) == functional(build), functional(build).init(jax.random.key(0))
    (True, {'gain': Array(1., dtype=float32)})
    """
    if isinstance(build, nnx.Module):
        raise TypeError(
            f"expected a recipe `(rngs) -> module`, got a built {type(build).__name__}: pass what builds it"
        )
    if not callable(build):
        raise TypeError(f"expected a recipe `(rngs) -> module`, got {build!r}")
    try:
        hash(build)
    except TypeError as error:
        raise TypeError(
            f"{error}, in {build!r}: make the recipe a function or a frozen dataclass, with tuples for lists"
        ) from error
    if isinstance(build, linen.Module):
        if shape is None:
            raise TypeError(f"{type(build).__name__} is a Linen module: pass the shape of one sample too")
        return LinenFunctional(build, shape)
    return Functional(build)


@functools.lru_cache(maxsize=64)
def _skeleton(build: Callable[[nnx.Rngs], Any]) -> tuple[Any, dict]:
    """The module without its arrays: its graph, and shapes in place of the parameters (list members under integers)."""
    return _split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def _split(module: Any) -> tuple[Any, dict]:
    """A module as its graph and the nested dict of its parameters, after a check that it holds nothing else."""
    graphdef, *states = nnx.split(module, nnx.Param, ...)
    params, rest = states
    others = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
    if others:
        raise ValueError(
            f"{type(module).__name__} holds state that is not a parameter: {', '.join(others[:8])}; "
            "take random keys at call time (make nnx.Dropout(rate) without rngs and call it as "
            "dropout(x, deterministic=key is None, rngs=key)), store tables as nnx.Param, use no running statistics"
        )
    return graphdef, nnx.to_pure_dict(params)


def _string_keys(tree: Any) -> Any:
    return {str(name): _string_keys(branch) for name, branch in tree.items()} if isinstance(tree, dict) else tree


def _original_keys(shapes: Any, params: Any, path: tuple[str, ...]) -> Any:
    """``params`` with the keys of ``shapes``, after a check that both hold the same names and shapes."""
    where = "/".join(path) or "the top"
    if isinstance(shapes, dict):
        if not isinstance(params, Mapping):
            raise ValueError(f"expected a dict of parameters at {where}, got {type(params).__name__}")
        if wrong := {str(name) for name in shapes} ^ set(params):
            raise ValueError(f"parameters of another network: {sorted(wrong)} at {where} stand on one side only")
        return {name: _original_keys(branch, params[str(name)], (*path, str(name))) for name, branch in shapes.items()}
    if jnp.shape(params) != shapes.shape:
        raise ValueError(
            f"parameters of another network: {where} has shape {jnp.shape(params)}, expected {shapes.shape}"
        )
    return params
