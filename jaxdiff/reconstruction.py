"""Reconstructions: samples of a model that go with a measurement.

    plan:      as a plain draw's (`jaxdiff.model`)
    problem:   the operator, y and its noise
    method:    of(problem, process, sampler) -> elements of guidance, and a sampler, which take their place in the plan

and the plan is drawn by the program that draws any other. Another measurement, mask, noise, weight or label of the same
shapes compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.inverse.method import Method
from jaxdiff.inverse.operators import Decoded, Operator
from jaxdiff.inverse.problem import MeasurementNoise, Problem, noise_of
from jaxdiff.methods import Guide
from jaxdiff.methods.inverse import parse_method, parse_operator
from jaxdiff.model import Model
from jaxdiff.noise import as_key
from jaxdiff.plan import Plan, draw, in_batches
from jaxdiff.process import Process
from jaxdiff.spec import Spec, finite, whole


def measured(model: Model, operator: Operator, y: ArrayLike, n: int | None = None) -> Array:
    """A measurement in a network's units, one a sample: ``(n, *operator.measured)``.

    Args:
      model: whose range of x0 bytes are read in.
      operator: what measured it.
      y: one measurement, or n of them. Floating-point numbers are in units of A(x0), x0 being what the network sees:
        images from -1 to 1. uint8 are a picture's bytes, 0 to 255 over that range, where A(x0) is a picture; of a mask,
        what they are where nothing is known does not matter.
      n: samples; None: as many as measurements.

    Raises:
      ValueError: y of another shape, bytes of what is no picture, or as many measurements as are not samples.
    """
    one, given = operator.measured, np.asarray(y)
    codec = getattr(model.codec, "images", model.codec) if isinstance(operator, Decoded) else model.codec
    name = type(operator).__name__
    if given.shape == one:
        given = given[None]
    if given.ndim != len(one) + 1 or given.shape[1:] != one:
        raise ValueError(f"y is what {name} measures of {operator.shape}, {one} or n of them, got {given.shape}")
    count = len(given) if n is None else whole("n", n)
    if len(given) not in (1, count):
        raise ValueError(f"y is one measurement for all of {count} samples, or one for each, got {len(given)}")
    if given.dtype == np.uint8:
        spec = codec.spec["x"]
        bounds = spec.clip if isinstance(spec, Spec) else None
        told = operator.of_pixels if isinstance(operator, Decoded) else operator
        if not told.pictured or bounds is None:
            raise ValueError(f"{name} does not measure a picture here, so y is in floating point, got uint8")
        given = bounds[0] + (bounds[1] - bounds[0]) * (given / np.float32(255))
    given = finite("y", given, given.shape, "what was measured")
    return jnp.asarray(np.broadcast_to(given, (count, *one)), jnp.float32)


def operator_of(model: Model, operator: str | Operator) -> Operator:
    """An operator on a model's data by its name and numbers.

    Args:
      model: of the data.
      operator: such as ``"blur:3"``, or an operator. Of a model in latents it is on the decoded pictures, and becomes a
        `jaxdiff.inverse.operators.Decoded`; an object on the latents themselves is taken as it is.

    Raises:
      ValueError: an unknown name or number, or an operator of another shape.
    """
    codec = model.codec
    on_latents = isinstance(operator, Operator) and tuple(operator.shape) == model.shape
    if on_latents or not hasattr(codec, "pixels"):
        return parse_operator(operator, model.shape)
    shape = jax.eval_shape(codec.pixels, jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)).shape[1:]
    return Decoded(model.shape, parse_operator(operator, shape), codec)


def reconstruction_plan(
    method: str | Method,
    operator: str | Operator,
    y: ArrayLike,
    model: Model,
    *,
    noise: MeasurementNoise | float = 0.0,
    n: int | None = None,
    cond: Mapping[str, Any] | None = None,
    sampler: Any = None,
    guide: Guide | Sequence[Guide] | None = None,
    **options: Any,
) -> Plan:
    """The plan that `reconstruct` draws. Arguments as there."""
    how = parse_method(method)
    what = operator_of(model, operator)
    given = measured(model, what, y, n)
    if how.own_steps and sampler is not None:
        raise ValueError(f"{type(how).__name__} is itself a sampler: leave sampler={sampler!r} out")
    chosen = how.usual if sampler is None else sampler
    plan = model.plan(len(given), cond, sampler=chosen, guide=guide, **options)
    problem = Problem(what, given, noise_of(noise))
    elements, around = how.of(problem, model.process, plan.sampler)
    return dataclasses.replace(plan, guide=(*plan.guide, *elements), sampler=around)


def reconstruct(
    method: str | Method,
    operator: str | Operator,
    y: ArrayLike,
    model: Model,
    *,
    noise: MeasurementNoise | float = 0.0,
    key: Array | int = 0,
    n: int | None = None,
    cond: Mapping[str, Any] | None = None,
    sampler: Any = None,
    steps: int | None = None,
    grid: str | Callable[[Process, int], Array] | None = None,
    ts: ArrayLike | None = None,
    guide: Guide | Sequence[Guide] | None = None,
    decode: bool = True,
    batch_size: int | None = None,
    start: int = 0,
) -> Any:
    """Samples x0 that go with a measurement y of A(x0).

    Args:
      method: a name with its numbers (``"pigdm"``, ``"dps:1"``; docs/editing.md) or a `jaxdiff.inverse.Method`.
      operator: a name with its numbers (``"blur:3"``, ``"mask:0.4"``) or a `jaxdiff.inverse.operators.Operator` on the
        model's data.
      y: what was measured, one for all samples or one for each: see `measured`.
      model: the prior.
      noise: of the measurement: the deviation of a Gaussian in units of y, or a law of `jaxdiff.inverse.problem`.
      key: a `jax.random.key`, or a seed.
      n: samples; None: as many as measurements.
      cond, guide, steps, grid, ts, decode, batch_size, start: as `Model.sample`.
      sampler: whose steps are taken; None: the one of the method's paper. Not for methods that are samplers.

    Returns:
      A record ``{"x": (n, ...), ...}`` as `Model.sample` gives it; without ``decode`` x0 ``(n, ...)``.

    Raises:
      ValueError: an argument out of range, a measurement of another size, or an operator that the method cannot take.

    >>> from jaxdiff import Flow, NetworkDenoiser, Velocity
    >>> from jaxdiff.codecs import Points
    >>> from jaxdiff.inverse.operators import Mask
    >>> from jaxdiff.networks import MLP, functional
    >>> net = functional(MLP(width=8, depth=1))
    >>> model = Model(NetworkDenoiser(net, net.init(jax.random.key(0)), Flow(), Velocity()), Points((2,)))
    >>> first = Mask((2,), jnp.array([1, 0]))
    >>> reconstruct("ddnm", first, jnp.array([0.5, 0.0]), model, n=3, steps=5, sampler="ddim")["x"][:, 0].tolist()
    [0.5, 0.5, 0.5]
    """
    options = {"cond": cond, "sampler": sampler, "steps": steps, "grid": grid, "ts": ts, "guide": guide}
    plan = reconstruction_plan(method, operator, y, model, noise=noise, n=n, **options)
    count = len(measured(model, operator_of(model, operator), y, n))
    model.check_start(plan, count)
    most = whole("batch_size", model.defaults.batch_size if batch_size is None else batch_size)
    drawn, _ = in_batches(
        plan,
        as_key(key),
        count,
        model.filled(min(count, max(1, most // plan.particles))),
        start=whole("start", start, 0),
        program=draw,
        decode=decode,
        keep=None,
        sharding=model.sharding,
    )
    return drawn
