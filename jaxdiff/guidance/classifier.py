"""Classifier guidance (Song et al. 2021, https://arxiv.org/abs/2011.13456, section 5; Dhariwal & Nichol 2021,
https://arxiv.org/abs/2105.05233, section 4).

By Bayes' rule p(x_t | y) is p(x_t) p(y | x_t) up to a factor without x_t, so a classifier of noisy samples makes an
unconditional score conditional, and a scale s exaggerates it:

    score_s(x_t) = score(x_t) + s g,     g = grad_x ln p(y | x_t)                                    (1)

With score = -eps/sigma and x = alpha x0 + sigma eps, in our pair

    eps_s = eps - s sigma g,     x0_s = x0 + s (sigma^2/alpha) g                                     (2)

(their algorithm 2, for any process). s = 1 with the exact classifier is the exact conditional denoiser at each t. For
other s it is the score of p_t(x_t) p(y | x_t)^s at each t, up to a constant. These laws are not those that the noise
makes of one law of x_0 as t grows, since noise does not keep powers, so that the law of samples at s > 1 is not the
tilted law p(x_0) p(y | x_0)^s.

Where alpha = 0 there is no signal, so that the exact g is 0: there guidance changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guidance, Guided, Nulls, Read, refuse_other_process
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import field, record

LABEL = "label"


class Classifier(Protocol):
    """A classifier of noisy samples, such as `jaxdiff.classifier.NetworkClassifier`.

    Attributes:
      process: that makes them.
      classes: how many.
    """

    @property
    def process(self) -> Process: ...

    @property
    def classes(self) -> int: ...

    def log_prob(self, x: Array, t: ArrayLike) -> Array:
        """ln p(y | x_t): ``(B, ...), () or (B,) -> (B, classes)``."""
        ...


@record
class ClassifierGuidance(Guidance):
    """Guidance by a classifier of noisy samples towards a class, of a model with or without labels of its own.

    Args:
      scale: s of equation (1), ``()`` or one a sample ``(B,)``; data. 0 is the plain model, below 0 leads away.
      run: folder of the classifier's run, which the model loads; static. None: it is given.
      label: the class, ``()`` or one a sample ``(B,)``; data. None: the condition "label" of the samples; where that is
        none of the classifier's classes, as "no class" is, nothing changes.
      classifier: the classifier. Its weights are data.

    Behind ``cfg`` in a list it moves what cfg gives. Before cfg it moves each of its branches, one after the other: by
    a ``label`` both alike, which is the same as behind it; by the condition "label" the conditional branch alone, and
    cfg exaggerates that too.

    Raises:
      ValueError: a scale that is not finite; neither a run nor a classifier, or both; (in a list) a classifier of
        another process, or a label that is none of its classes; (when called) no label, or data of another shape.

    >>> from jaxdiff import MixtureDenoiser, VP
    >>> import jax.numpy as jnp
    >>> data = MixtureDenoiser(VP(), jnp.array([[-1.0], [1.0]]), 0.1)  # its own exact classifier
    >>> guided = ClassifierGuidance(1.0, label=1, classifier=data)(data, data, VP(), {})
    >>> x = jnp.zeros((1, 1))
    >>> round(float(guided(x, 0.5).x0[0, 0]), 2), round(float(data(x, 0.5).x0[0, 0]), 2)
    (1.0, 0.0)
    """

    scale: ArrayLike
    run: str | None = field(default=None, pytree_node=False)
    label: int | Array | NDArray[Any] | None = None
    classifier: Any = None

    def __post_init__(self) -> None:
        refuse_unless(np.isfinite, "the scale of classifier guidance is to be finite", scale=self.scale)
        if (self.run is None) == (self.classifier is None):
            raise ValueError(
                f"classifier guidance is by one classifier, got {'both a' if self.run else 'neither'} run "
                f"{'and' if self.run else 'nor'} classifier: name its run, classifier:2,run=runs/digits_classifier"
            )

    @property
    def conditional(self) -> bool:
        return self.label is None

    def resolved(self, read: Read | None) -> ClassifierGuidance:
        """With the classifier of the run that it names."""
        if self.run is None:
            return self
        if read is None:
            raise ValueError(
                f"this model cannot load run={self.run}: give the object, ClassifierGuidance(2.0, "
                f"classifier=jaxdiff.load({self.run!r}).classifier)"
            )
        found = getattr(read(self.run), "classifier", None)
        if found is None:
            raise ValueError(f"run={self.run} is no classifier: configs/digits_classifier.py shows how one is trained")
        return dataclasses.replace(self, run=None, classifier=found)

    def check(self, n: int) -> None:
        for name, value in (("scale", self.scale), ("label", self.label)):
            if value is not None and np.shape(value) not in ((), (n,)):
                raise ValueError(f"classifier guidance takes one {name}, or one for each of {n} samples, got {value}")

    def rows(self, cut: Any) -> ClassifierGuidance:
        return dataclasses.replace(self, scale=cut(self.scale), label=None if self.label is None else cut(self.label))

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        if self.classifier is None:
            raise ValueError(f"run={self.run} is not loaded yet: jaxdiff.guidance.resolved does it")
        refuse_other_process(process, self.classifier.process, "the classifier")
        count = self.classifier.classes
        if self.label is not None:
            refuse_unless(
                lambda label: (label >= 0) & (label < count), f"the classifier has {count} classes", label=self.label
            )
        return ClassifierGuided(denoise, process, self.classifier, self.scale, self.label)


@record
class ClassifierGuided(Guided):
    """Equation (2).

    Args:
      denoise: the denoiser so far.
      process: its process.
      classifier: of the same process.
      scale, label: see `ClassifierGuidance`; data.
    """

    denoise: Denoiser
    process: Process
    classifier: Classifier
    scale: ArrayLike
    label: int | Array | NDArray[Any] | None = None

    @property
    def in_branches(self) -> bool:  # type: ignore[override]
        """Of a plain denoiser: a rule behind it guides the guided conditional branch."""
        return not isinstance(self.denoise, Guided)

    @property
    def plain(self) -> Denoiser:  # type: ignore[override]
        """The denoiser without any guidance."""
        return self.denoise.plain if isinstance(self.denoise, Guided) else self.denoise

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self._moved(x, t, cond, self.denoise(x, t, cond))

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        return self.denoise.begin_apart(x, cond) if isinstance(self.denoise, Guided) else begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        given, memory = recall(self.denoise, x, t, cond, memory)
        return self._moved(x, t, cond, given), memory

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        if isinstance(self.denoise, Guided):
            given, plain, memory = self.denoise.both(x, t, cond, memory)
        else:
            given, memory = recall(self.denoise, x, t, cond, memory)
            plain = given
        return self._moved(x, t, cond, given), plain, memory

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        if isinstance(self.denoise, Guided):
            return self.denoise.alone(x, t, cond, memory)
        return recall(self.denoise, x, t, cond, memory)

    def _moved(self, x: Array, t: ArrayLike, cond: Cond | None, given: Prediction) -> Prediction:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        signal = alpha > 0
        factor = jnp.where(signal, sigma * sigma / jnp.where(signal, alpha, 1.0), 0.0)
        step = expand(jnp.asarray(self.scale, x.dtype), x) * expand(factor, x)
        return moved(self.process, t, given, step * self._gradient(x, t, cond))

    def _gradient(self, x: Array, t: ArrayLike, cond: Cond | None) -> Array:
        """g of equation (1); 0 where the label is none of the classes."""
        label = self.label if self.label is not None else (cond or {}).get(LABEL)
        if label is None:
            given = sorted(cond) if cond else "no condition"
            raise ValueError(
                f"classifier guidance needs a class: give label=3, or the condition {LABEL!r}, got {given}"
            )
        label = jnp.broadcast_to(jnp.asarray(label, jnp.int32), x.shape[:1])
        known = (label >= 0) & (label < self.classifier.classes)
        chosen = jnp.where(known, label, 0)[:, None]

        def total(x: Array) -> Array:
            return jnp.take_along_axis(self.classifier.log_prob(x, t), chosen, axis=1).sum()

        gradient = jax.grad(total)(x)
        return jnp.where(expand(known, x), gradient, 0.0)
