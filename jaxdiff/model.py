"""A model: everything that samples, in one value, whatever the data, the network and the conditions.

    plan:    conditions, guidance, sampler and times, made of what a person says and of the model's defaults
    init:    x at the first time,      x ~ p(x_{ts[0]}) of the prior, or given
    steps:   the sampler's, from ts[0] to ts[-1], then one denoising: x0
    finish:  the record that x0 stands for, by the codec

`Model.sample` takes these four for a batch at a time, as one jitted function of the plan (`jaxdiff.plan`). What serves
a model in other ways (slots of a server, exported programs) takes the same plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.codecs.base import Codec
from jaxdiff.data.text import TEXT
from jaxdiff.denoiser import NetCache, NetworkDenoiser
from jaxdiff.guidance import Contrast, nulls_of
from jaxdiff.inverse import Inverted
from jaxdiff.inversion import inverted
from jaxdiff.methods import Guide, parse_cache, parse_sampler
from jaxdiff.methods.steer import parse_steered
from jaxdiff.networks.placement import parts_of
from jaxdiff.noise import as_key, sample_keys
from jaxdiff.plan import Plan, check_keep, draw, from_image, in_batches, part_of, rows_of
from jaxdiff.process import Process
from jaxdiff.request import elements_of, refuse_sampler, walked_times
from jaxdiff.sampling import Keep
from jaxdiff.sampling.base import start as check_start
from jaxdiff.spec import Spec, Specs, check, complete, droppable, finite, shapes, whole


@dataclasses.dataclass(frozen=True)
class Defaults:
    """How a model samples where nothing else is said. Methods are names with their numbers, or objects.

    Args:
      sampler: such as ``"unipc:order=3"``, or a sampler of `jaxdiff.sampling`.
      steps: times on the grid.
      grid: such as ``"karras"``, or a function ``(process, steps) -> times``.
      guide: guidance, in order.
      clip: limit predictions to the data's range, where it has one.
      batch_size: most samples at once.
      negative: what guidance leads away from, of the conditions that are given; of others, and where it is left out,
        their absence.
    """

    sampler: Any = "ddim"
    steps: int = 50
    grid: str | Callable[[Process, int], Array] = "uniform"
    guide: Sequence[Guide] = ()
    clip: bool = True
    batch_size: int = 128
    negative: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that samples.

    Args:
      denoise: the network's denoiser: process, parameterization, network, parameters.
      codec: between records and x0.
      defaults: how it samples where nothing else is said.
      cond: what it is conditioned on, by name; None: what its network takes. A condition that was never dropped in
        training has no null here, though the network may have one.
      encoders: for a condition, a function from what a person gives (a word, a picture) to its arrays. One that has a
        method ``stored(value, n)`` says what a record of samples holds of it: text stays text.
      support: see `Plan`.
      draw_cond: ``(keys) -> cond``: conditions where none are given, such as sizes; None: the nulls.
      sharding: of a batch, over several devices; None: one device.

    >>> from jaxdiff import Flow, Velocity
    >>> from jaxdiff.codecs import Points
    >>> from jaxdiff.networks import MLP, functional
    >>> net = functional(MLP(width=8, depth=1))
    >>> model = Model(NetworkDenoiser(net, net.init(jax.random.key(0)), Flow(), Velocity()), Points((2,)))
    >>> model.sample(0, 3, sampler="dpmpp_2m", steps=5)["x"].shape
    (3, 2)
    """

    denoise: NetworkDenoiser
    codec: Codec
    defaults: Defaults = Defaults()
    cond: Specs | None = None
    encoders: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    support: Callable[[Array, Any], Array] | None = None
    draw_cond: Callable[[Array], Mapping[str, Any]] | None = None
    sharding: NamedSharding | None = None
    _checked: set[Any] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def process(self) -> Process:
        """The process it was trained on."""
        return self.denoise.process

    @property
    def conditions(self) -> Specs:
        """What it is conditioned on."""
        return self.denoise.net.cond if self.cond is None else self.cond

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0."""
        spec = self.codec.spec["x"]
        assert isinstance(spec, Spec)
        return tuple(1 if size is None else size for size in spec.shape)

    def plan(
        self,
        n: int,
        cond: Mapping[str, Any] | None = None,
        *,
        negative: Mapping[str, Any] | str | None = None,
        sampler: Any = None,
        steps: int | None = None,
        grid: str | Callable[[Process, int], Array] | None = None,
        ts: ArrayLike | None = None,
        guide: Guide | Sequence[Guide] | None = None,
        steer: str | None = None,
        cache: str | NetCache | None = None,
        x: ArrayLike | Inverted | None = None,
    ) -> Plan:
        """What `sample` is about to do for n samples. Arguments as there.

        Raises:
          ValueError: a condition, a method or times that do not fit this model or each other.
        """
        defaults, state = self.defaults, None
        if isinstance(x, Inverted):
            if [name for name in (sampler, steps, grid, ts) if name is not None]:
                raise ValueError(
                    "an Inverted x goes back by its own sampler and times: leave others out, or give x=x.x"
                )
            sampler, ts, state, x = x.sampler, x.ts, x.state, x.x
        given = self.given(whole("n", n), cond)
        usual = defaults.guide if cond else ()
        elements = elements_of(usual if guide is None else guide, n, lambda values: self.given(n, values, fill=False))
        guided = any(isinstance(element, Contrast) for element in elements)
        if guided and not cond:
            raise ValueError("guidance leads towards a condition: pass cond={...}, or guide=() for none")
        chosen = defaults.sampler if sampler is None else sampler
        method = parse_sampler(chosen, self.process)
        refuse_sampler(elements, method)
        method = method if steer is None else parse_steered(steer, method, self.codec)
        count = defaults.steps if steps is None else steps
        asked = steps is not None or grid is not None
        walked = walked_times(method, count, defaults.grid if grid is None else grid, ts, chosen=asked)
        plain = self.denoise
        if cache is not None:
            plain = dataclasses.replace(plain, cache=parse_cache(cache))  # type: ignore[arg-type]
            elements = [e.in_turn() if isinstance(e, Contrast) else e for e in elements]
        negative = {TEXT: negative} if isinstance(negative, str) else negative
        if negative is None and guided:
            negative = {name: value for name, value in defaults.negative.items() if name in (cond or {})} or None
        instead = None if negative is None else self.given(n, negative, fill=False)
        if instead and not guided:
            raise ValueError("negative is what guidance leads away from, and there is no guidance: give guide='cfg:2'")
        settings = getattr(self.denoise.net, "settings", ())  # which are the same on both sides
        told = {name: value for name, value in given.items() if name in (cond or {}) and name not in settings}
        nulls = nulls_of(self.conditions, told, n, instead) if guided else {}
        bounds = self.codec.spec["x"].clip if defaults.clip and isinstance(self.codec.spec["x"], Spec) else None
        begin = None if x is None else finite("x", x, (n, *self.shape), "samples at the first time")
        return Plan(
            plain,
            method,
            walked,
            given,
            tuple(elements),
            nulls,
            self.codec,
            None if begin is None else jnp.asarray(begin, jnp.float32),
            shape=self.shape,
            bounds=bounds,
            support=self.support,
            state=state,
            last_denoising=state is None,
        )

    def sample(
        self,
        key: Array | int,
        n: int,
        cond: Mapping[str, Any] | None = None,
        *,
        negative: Mapping[str, Any] | str | None = None,
        sampler: Any = None,
        steps: int | None = None,
        grid: str | Callable[[Process, int], Array] | None = None,
        ts: ArrayLike | None = None,
        guide: Guide | Sequence[Guide] | None = None,
        steer: str | None = None,
        cache: str | NetCache | None = None,
        x: ArrayLike | Inverted | None = None,
        image: ArrayLike | None = None,
        strength: float | None = None,
        mask: ArrayLike | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        keep: Keep | Literal["particles"] | None = None,
        decode: bool = True,
        batch_size: int | None = None,
        start: int = 0,
        program: Callable[..., Any] = draw,
    ) -> Any:
        """Draws samples. What is left out is as the defaults say.

        Sample i is decided by ``key``, ``start + i`` and its condition alone: its noise is the same bit for bit at any
        batch size and device count.

        Args:
          key: a `jax.random.key`, or a seed.
          n: how many, at least 1.
          cond: conditions by name, one value for all or one a sample; one that is left out is absent.
          negative: conditions that guidance leads away from, in the place of their absence; a text alone is ``"text"``.
          sampler: a name with its numbers (``"unipc:order=3"``: docs/samplers.md) or a sampler of `jaxdiff.sampling`.
          steps: number of times on the grid.
          grid: the grid's name, or a function ``(process, steps) -> times``.
          ts: the times themselves, falling, in the place of a grid.
          guide: guidance: a weight, a name with its numbers (``"cfg:2"``), an object, a function ``Denoiser ->
            Denoiser``, or a list of them that is applied in order. (): none.
          steer: a reward that samples are steered by, ``"brightness:40,particles=8"`` (`jaxdiff.methods.steer`); for
            any other, ``sampler=Steered(...)``.
          cache: features to reuse between evaluations, ``"deepcache:3"`` or an object of `jaxdiff.networks`.
          x: samples at the first time to start from, ``(n, ...)`` at that time's scale, or what an exact sampler's
            `invert` gave; None: noise.
          image: what samples begin as, with noise on it (`jaxdiff.inverse.sdedit`): ``(H, W, C)`` as stored, or one a
            sample.
          strength: how much noise, from 0 (the image as it is) to 1 (a fresh sample); None: 0.8, with a mask 1.
          mask: ``(H, W)`` of that image, or one a sample: 1 where samples are drawn anew, 0 where the image is kept
            (`jaxdiff.inverse.replacement`).
          denoising_end: stop after this share of the way from noise to data (`jaxdiff.plan.part_of`), above 0 and below
            1: what comes is x there, for another model to go on from. None: the whole way.
          denoising_start: go on from such an x after this share, with the same times; a multistep method begins anew.
          keep: states or predictions at some steps to give beside the samples: `jaxdiff.sampling.Keep`; of a sampler of
            particles, such as `Steered`, ``"particles"``: all of them, weighted (`jaxdiff.sampling.Particles`).
          decode: give records as they are stored, else x0 as the network sees it.
          batch_size: most samples at once (of a sampler of particles: most particles), or the next number that the
            devices divide; the last batch is filled up, so that it does not compile again.
          start: index of the first sample: ``sample(key, 8, start=8)`` goes on where ``sample(key, 8)`` ended.
          program: what draws a batch: `draw`, or another program of the same arguments.

        Returns:
          A record, ``{"x": (n, ...), ...}`` as `codec` decodes it, in NumPy; without ``decode`` x0 ``(n, ...)``
          float32, with ``denoising_end`` x. With ``keep`` a pair of it and what was kept.

        Raises:
          ValueError: an argument that is out of range, or that this model cannot follow.
        """
        n, start, key = whole("n", n), whole("start", start, 0), as_key(key)
        most = whole("batch_size", self.defaults.batch_size if batch_size is None else batch_size)
        if cond is None and self.draw_cond is not None:
            cond = self.draw_cond(sample_keys(key, start, n))
        options = {"negative": negative, "sampler": sampler, "steps": steps, "grid": grid, "ts": ts, "guide": guide}
        plan = self.plan(n, cond, **options, steer=steer, cache=cache, x=x)
        plan = from_image(plan, sample_keys(key, start, n), image, strength, mask)
        plan = part_of(plan, denoising_start, denoising_end, pictured=image is not None)
        check_keep(plan, keep)
        self._check_start(plan, n)
        size = self.filled(min(n, max(1, most // plan.particles)))
        decode = decode and plan.ends
        options = {"program": program, "decode": decode, "keep": keep, "sharding": self.sharding}
        given, kept = in_batches(plan, key, n, size, start=start, **options)
        for name, encoder in self.encoders.items() if decode else ():
            if hasattr(encoder, "stored") and (kind := encoder.stored((cond or {}).get(name), n)) is not None:
                given[name] = kind
        if keep == "particles":
            kept = jax.tree.map(lambda leaf: leaf[0], kept)
        return given if keep is None else (given, kept)

    def invert(
        self,
        record: Mapping[str, Any],
        cond: Mapping[str, Any] | None = None,
        *,
        sampler: Any = None,
        steps: int | None = None,
        grid: str | Callable[[Process, int], Array] | None = None,
        ts: ArrayLike | None = None,
        guide: Guide | Sequence[Guide] | None = (),
    ) -> NDArray[np.float32] | Inverted:
        """The x at the first time from which a deterministic sampler comes to a record: `sample(..., x=x)` undone.

        The probability flow is followed from data to noise. x begins as alpha x0 at the last time, where `sample` would
        take the last denoising, so that the way there and back differs by the steps' error and by sigma there. With
        ``"edict"`` and ``"belm"`` it differs by rounding alone: `jaxdiff.inverse.Inverted`.

        Args:
          record: as stored, the batch first, such as ``{"x": (B, H, W, C) uint8}``.
          cond, sampler, steps, grid, ts: as `sample`.
          guide: guidance; none by default.

        Returns:
          x ``(B, ...)`` at the first time, at that time's scale; of an exact sampler an `Inverted`.

        Raises:
          ValueError: a sampler that draws noise, or arguments that do not fit.
        """
        if not isinstance(record, Mapping) or "x" not in record:
            raise ValueError(f"a record is a dict with 'x', as sample gives it, got {type(record).__name__}")
        one = jax.eval_shape(self.codec.decode, jax.ShapeDtypeStruct((1, *self.shape), jnp.float32))["x"]
        known = {**record, "x": finite("x", record["x"], (None, *one.shape[1:]), "records, the batch first")}
        known |= {name: encoder(known[name]) for name, encoder in self.encoders.items() if name in known}
        encoded = self.codec.encode(jax.tree.map(jnp.asarray, known))
        x0 = encoded["x"]
        made = {name: value for name, value in encoded.items() if name in self.conditions}
        made |= _by_name(cond)
        plan = self.plan(len(x0), made, sampler=sampler, steps=steps, grid=grid, ts=ts, guide=guide)
        self._check_start(plan, len(x0))
        return inverted(plan, x0, self.filled(len(x0)), sharding=self.sharding)

    def given(self, n: int, cond: Mapping[str, Any] | None, *, fill: bool = True) -> dict[str, Any]:
        """Conditions as the network takes them, ``(n, ...)``: encoded, checked, and the null of each one left out.

        Args:
          n: samples.
          cond: as `sample`.
          fill: with the nulls of those left out.

        Raises:
          ValueError: a condition that is unknown, out of range, of another shape, or that cannot be left out.
        """
        specs, values = self.conditions, _by_name(cond)
        for name, encoder in self.encoders.items():
            if name in values:
                values[name] = encoder(values[name])
        checked = check(specs, values, n)
        if not fill:
            return checked
        missing = sorted(name for name, spec in specs.items() if name not in checked and not droppable(spec))
        if missing:
            raise ValueError(
                f"this model needs {' and '.join(missing)}: pass cond={{{missing[0]!r}: ...}}; it was trained without "
                "dropping it (loss.dropout), so it knows nothing without it"
            )
        return complete(specs, checked, n) if specs else {}

    def filled(self, n: int) -> int:
        """The size of a batch that holds n samples: the next number that the devices divide."""
        parts = 1 if self.sharding is None else parts_of(self.sharding)
        return -(-n // parts) * parts

    def check(self) -> None:
        """Traces sampling by the defaults without running it; the weights may be mere shapes.

        Raises:
          ValueError: sampler, times, parameterization, codec and network do not fit each other.
        """
        cond = {name: jax.tree.map(_example, each) for name, each in shapes(self.conditions, 2).items()}
        needed = not all(droppable(each) for each in self.conditions.values())
        plan = self.plan(2, cond if needed else {})  # all: guidance leads away from one that can be left out

        def traced(params: Any) -> Any:
            mine = dataclasses.replace(plan, plain=dataclasses.replace(plan.plain, params=params))
            x: Any = jax.ShapeDtypeStruct((2, *self.shape), jnp.float32)
            check_start(mine.sampler, mine.denoise, x, np.asarray(plan.ts), mine.cond or None)
            return draw(mine, sample_keys(jax.random.key(0), 0, 2))

        jax.eval_shape(traced, self.denoise.params)

    def _check_start(self, plan: Plan, n: int) -> None:
        """All checks of a start that need the times' numbers. They may trace the network, so once for the same ones."""
        known = (jax.tree.structure((plan.sampler, plan.guide, plan.cond)), np.asarray(plan.ts).tobytes())
        if known not in self._checked:
            x: Any = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
            one = rows_of(plan, slice(0, 1), 1, n)
            check_start(one.sampler, one.denoise, x, np.asarray(plan.ts), one.cond or None)
            self._checked.add(known)


def _by_name(cond: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(cond, Mapping | None):
        raise ValueError(f"conditions are a dict by name, such as {{'label': 3}}, got {type(cond).__name__}")
    return dict(cond or {})


def _example(leaf: jax.ShapeDtypeStruct) -> NDArray[Any]:
    return np.zeros(leaf.shape, leaf.dtype)
