"""What guidance is: elements of a list, each a change from one denoiser to another.

A list of elements g_1, g_2, ... is applied in order to the plain denoiser d_0,

    d_k = g_k(d_{k-1}, d_0, process, nulls).                                                         (1)

An element receives the plain denoiser too: an interval needs both it and the guided one. Where the plain prediction is
part of how the guided one is computed, as in classifier-free guidance, it costs nothing more.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.spec import Specs, complete, droppable

Nulls = Mapping[str, Any]
"""What stands for "no condition", by name: a value that broadcasts to the condition's, or a dict of them."""


class Read(Protocol):
    """What loads the run that lies at a path, as `jaxdiff.load` does; None: the run that is guided, for another of its
    checkpoints. ``alike``: refuse one of another process, codec or condition than the guided one's."""

    def __call__(
        self, path: str | None, *, step: int | None = None, average: str | None = None, alike: bool = False
    ) -> Any: ...


@record
class Guidance(abc.ABC):
    """An element of a list of guidance; abstract. Its numbers are data of a jitted program.

    Attributes:
      apart: whether its pair (x0, eps) leaves x = alpha x0 + sigma eps.
      follows_apart: whether it may stand behind such an element: it moves neither x0 nor eps by the other.
      samplers: the classes of samplers that it is for; None: all.
    """

    apart: ClassVar[bool] = False
    follows_apart: ClassVar[bool] = False
    samplers: ClassVar[tuple[str, ...] | None] = None

    @abc.abstractmethod
    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        """Equation (1).

        Args:
          denoise: the denoiser so far.
          plain: the denoiser before any guidance.
          process: its process.
          nulls: what stands for "no condition".

        Raises:
          ValueError: an order of the list that means nothing.
        """

    @property
    def conditional(self) -> bool:
        """Whether it leads towards a condition of the samples, and means nothing without one."""
        return False

    def resolved(self, read: Read | None) -> Guidance:
        """The element with the run loaded that it names by a path; most name none.

        Args:
          read: loads it; None: nothing can be loaded here.

        Raises:
          ValueError: there is nothing to load it by, or what lies there is not what the element needs.
        """
        del read
        return self

    def check(self, n: int) -> None:
        """Checks the element's numbers against the number of samples.

        Raises:
          ValueError: as many numbers as there are not samples.
        """
        del n

    def rows(self, cut: Callable[[Any], Any]) -> Guidance:
        """The element for some of the samples.

        Args:
          cut: takes the rows of a leaf that has one a sample, told by its length, and leaves others as they are. An
            element with weights of a network, whose lengths say nothing, asks it of its own numbers alone.
        """
        made: Guidance = jax.tree.map(cut, self)
        return made


@record
class Function(Guidance):
    """A function of a denoiser as an element of guidance.

    Args:
      function: any ``Denoiser -> Denoiser``; static: another one compiles anew.
    """

    function: Callable[[Denoiser], Denoiser] = field(pytree_node=False)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        made = self.function(denoise)
        if not callable(made):
            name = getattr(self.function, "__name__", repr(self.function))
            raise ValueError(f"guidance by {name} is to give a denoiser, called as (x, t, cond), got {made!r}")
        return made


def apply(
    elements: Iterable[Guidance | Callable[[Denoiser], Denoiser]], denoise: Denoiser, process: Process, nulls: Nulls
) -> Denoiser:
    """A denoiser guided by a list of elements, equation (1).

    Args:
      elements: in order; beside `Guidance` any function from denoiser to denoiser. None at all: the denoiser itself.
      denoise: the plain denoiser.
      process: its process.
      nulls: see `nulls_of`.

    Raises:
      ValueError: an order that means nothing.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> from jaxdiff.guidance import CFG, Interval
    >>> guided = apply([CFG(2.0), Interval(0.2, 5.0)], GaussianDenoiser(VP(), 0.0, 1.0), VP(), {"label": 10})
    >>> type(guided).__name__, type(guided.guided).__name__
    ('Within', 'Contrasted')
    """
    guided, before = denoise, None
    for element in elements:
        if before is not None and isinstance(element, Guidance) and not element.follows_apart:
            raise ValueError(
                f"{type(before).__name__} keeps x0 and eps apart, and {type(element).__name__} behind it in the list "
                "moves them together: leave one of them out"
            )
        before = element if getattr(element, "apart", False) else before
        guided = element(guided, denoise, process, nulls) if isinstance(element, Guidance) else element(guided)
    return guided


def resolved(elements: Iterable[Guidance], read: Read | None) -> list[Guidance]:
    """The elements with what they name by a path loaded: `Guidance.resolved` of each."""
    return [element.resolved(read) for element in elements]


def finite_weights(weight: Any, n: int) -> None:
    """Checks the weights of a rule: finite numbers, ``()`` or one for each of n samples.

    Raises:
      ValueError: others. A function of the time checks itself.
    """
    if callable(weight):
        return
    for each in weight.values() if isinstance(weight, Mapping) else [weight]:
        if np.shape(each) not in ((), (n,)) or not jnp.isfinite(each).all():
            raise ValueError(f"guidance takes a finite weight, or one for each of {n} samples, got {each}")


def refuse_other_process(process: Process, other: Process, what: str) -> None:
    """Refuses a network that was trained on another process than the one that is sampled from.

    Args:
      process: that is sampled from.
      other: that the network was trained on.
      what: the network, for the message, such as "the classifier".

    Raises:
      ValueError: alpha or sigma differ at some time; nothing where one is traced.

    >>> from jaxdiff import VP, Flow
    >>> refuse_other_process(VP(), VP(), "the classifier")
    >>> refuse_other_process(VP(), Flow(), "the classifier")
    Traceback (most recent call last):
    ...
    ValueError: the classifier was trained on Flow(), and the model on VP(beta_min=0.1, beta_max=20.0): take one of ...
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((process, other))):
        return
    with jax.ensure_compile_time_eval():
        apart = float(_apart(process, other))
    if not apart < 1e-4:
        theirs, ours = (text if len(text := repr(each)) < 100 else type(each).__name__ for each in (other, process))
        raise ValueError(f"{what} was trained on {theirs}, and the model on {ours}: take one of the model's process")


@jax.jit
def _apart(process: Process, other: Process) -> Array:
    """The largest difference of ln alpha or ln sigma at 33 times, inside of the ends."""
    t = jnp.linspace(1 / 64, 63 / 64, 33)
    scales = [(process.alpha(t), other.alpha(t)), (process.sigma(t), other.sigma(t))]
    return jnp.stack([jnp.abs(jnp.log(a) - jnp.log(b)).max() for a, b in scales]).max()


def nulls_of(specs: Specs, cond: Cond | None, batch: int, negative: Cond | None = None) -> dict[str, Any]:
    """The nulls of the conditions that are given, for `apply`.

    Args:
      specs: what the network takes.
      cond: the conditions.
      batch: samples.
      negative: values in the nulls' place, the batch first, such as the tokens of a text that is to be avoided.

    Raises:
      ValueError: nothing to guide by: no condition, or none with a null; a negative of a condition that is not given.

    >>> from jaxdiff.spec import Spec
    >>> nulls_of({"label": Spec((), "int32", 0, 9, null=10)}, {"label": [3, 4]}, 2)["label"].tolist()
    [10, 10]
    """
    given, instead = cond or {}, negative or {}
    if unknown := sorted(set(instead) - set(given)):
        raise ValueError(f"negative has {unknown}, but the conditions given are {sorted(given)}: give the same names")
    guided = {name: specs[name] for name in given if name in specs and (name in instead or droppable(specs[name]))}
    if not guided:
        able = sorted(name for name, each in specs.items() if droppable(each))
        has = f"the network knows {able}" if able else "the network was trained without dropping any"
        raise ValueError(f"guidance needs a condition that can be left out: {has}, got {sorted(given)}")
    return complete(guided, instead, batch)


class Guided(abc.ABC):
    """A denoiser that is made of a plain one and can tell both predictions; abstract.

    Attributes:
      plain: the plain denoiser.
      in_branches: whether a rule that stands behind it may evaluate it in each of its branches.
    """

    plain: Denoiser
    in_branches: bool = False

    @abc.abstractmethod
    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        """The memory before the first of calls of `recall`, `both` and `alone`, in any order."""

    @abc.abstractmethod
    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        """The guided prediction."""

    @abc.abstractmethod
    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        """The guided prediction, the plain one, and the memory after them."""

    @abc.abstractmethod
    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """The plain prediction alone, at the plain denoiser's cost, and the memory after it."""


def guided_from(denoise: Denoiser, plain: Denoiser, name: str) -> Guided:
    """The denoiser so far as one that tells the plain prediction too.

    Raises:
      ValueError: it is the plain one itself: there is nothing that the element of this name could change.
    """
    if denoise is plain:
        raise ValueError(f"{name} changes guidance that stands before it in the list, and there is none: put cfg first")
    return denoise if isinstance(denoise, Guided) and denoise.plain is plain else Pair(denoise, plain)


@record
class Changed(Guided):
    """A guided denoiser whose prediction is changed in sight of the plain one; abstract.

    Args:
      guided: the guided denoiser.
      process: its process.
    """

    guided: Guided
    process: Process

    @abc.abstractmethod
    def changed(self, x: Array, t: ArrayLike, guided: Prediction, plain: Prediction) -> Prediction:
        """The guided prediction, changed."""

    @property
    def plain(self) -> Denoiser:  # type: ignore[override]
        """The denoiser without guidance."""
        return self.guided.plain

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.both(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return self.begin_apart(x, cond)

    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        return self.guided.begin_apart(x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        guided, _, memory = self.both(x, t, cond, memory)
        return guided, memory

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        guided, plain, memory = self.guided.both(x, t, cond, memory)
        return self.changed(x, t, guided, plain), plain, memory

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        return self.guided.alone(x, t, cond, memory)


@record
class Pair(Guided):
    """A guided denoiser that does not compute the plain prediction on its way.

    Args:
      denoise: the guided one.
      plain: the plain one.
    """

    denoise: Denoiser
    plain: Denoiser

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.denoise(x, t, cond)

    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        memories = begin(self.denoise, x, cond), begin(self.plain, x, cond)
        return memories if jax.tree.leaves(memories) else ()

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        guided, after = recall(self.denoise, x, t, cond, memory[0])
        return guided, (after, memory[1])

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        guided, after = recall(self.denoise, x, t, cond, memory[0] if memory else ())
        plain, memory = self.alone(x, t, cond, memory)
        return guided, plain, (after, memory[1]) if memory else ()

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        plain, after = recall(self.plain, x, t, cond, memory[1] if memory else ())
        return plain, (memory[0], after) if memory else ()
