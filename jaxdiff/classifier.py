"""Noisy classifiers: ln p(y | x_t) at every time, and what they are trained by.

Guidance by a classifier asks for the gradient of ln p(y | x_t) at noisy samples (Song et al. 2021, "Score-Based
Generative Modeling through SDEs", https://arxiv.org/abs/2011.13456, section 5; Dhariwal & Nichol 2021,
https://arxiv.org/abs/2105.05233, section 4). With logits f(x_t, t) of a network that is told x and t as a denoiser is,

    ln p(y | x_t) = f_y - ln sum_k exp f_k                                                           (1)
    L = E_{t, x_0, eps} [ -ln p(y | x_t) ],     x_t = alpha x_0 + sigma eps                          (2)

whose minimum over all f is the law of the label given x_t, at each t by itself: how times are drawn says where a
network of finite size is accurate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import per_sample
from jaxdiff.denoiser import Cond, Net
from jaxdiff.loss import Context, DenoisingLoss, Draws
from jaxdiff.parameterization import Parameterization
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.times import History, ScoreNorm, TrainingTime, Uniform

LABEL = "label"
"""The condition that is told apart."""
QUARTERS = 4
"""Equal parts of the time that the accuracy is logged for."""


@record
class NetworkClassifier:
    """The noisy classifier that a network's output stands for, equation (1).

    Args:
      net: the pure network, whose output is logits ``(B, classes)``; static.
      params: its parameters.
      process: the process it was trained on.
      parameterization: what the network sees of x and t.
      classes: how many; static.
      shape: of one x; another is refused. None: any. Static.
    """

    net: Net = field(pytree_node=False)
    params: Any
    process: Process
    parameterization: Parameterization
    classes: int = field(pytree_node=False)
    shape: tuple[int, ...] | None = field(default=None, pytree_node=False)

    def log_prob(self, x: Array, t: ArrayLike) -> Array:
        """Equation (1) for each class.

        Args:
          x: noisy samples ``(B, ...)``.
          t: ``()`` or ``(B,)``.

        Returns:
          ``(B, classes)``.

        Raises:
          ValueError: samples of another shape.
        """
        if self.shape is not None and x.shape[1:] != self.shape:
            raise ValueError(
                f"the classifier was trained on data of shape {self.shape}, got {x.shape[1:]}: take one of this data"
            )
        net_x, net_t = self.parameterization.condition(self.process, x, t)
        return jax.nn.log_softmax(self.net.apply(self.params, net_x, per_sample(net_t, x)), axis=1)


class Terms(NamedTuple):
    """What the objective says of each sample, ``(B,)`` each.

    Attributes:
      loss: equation (2)'s, divided by p(t) where times are drawn by importance.
      right: 1 where the label has the largest probability, else 0.
    """

    loss: Array
    right: Array


@record
class ClassificationLoss:
    """The cross-entropy of the label given x_t, equation (2).

    Args:
      process: the process.
      parameterization: what the network sees of x and t: that of the denoiser that is guided, or another.
      time: how times are drawn.

    Raises:
      ValueError: times by a norm of the score, which a classifier has not.
    """

    process: Process
    parameterization: Parameterization
    time: TrainingTime = Uniform()

    def __post_init__(self) -> None:
        if isinstance(self.time, ScoreNorm):
            raise ValueError(
                "ScoreNorm draws times by a model's score, and a classifier has none: use LossSecondMoment"
            )

    def init(self) -> History:
        """The history of importance sampling before the first step."""
        return self.time.init()

    def draw(self, key: Array, batch: Cond, history: History = (), context: Context = Context()) -> Draws:
        """Times and noise for a batch ``{"x": (B, ...), "label": (B,), ...}``, as a denoiser's."""
        return DenoisingLoss(self.process, self.parameterization, time=self.time).draw(key, batch, history, context)

    def terms(
        self, net: Net, params: Any, draws: Draws, context: Context = Context(), key: Array | None = None
    ) -> Terms:
        """Equation (2) for each sample; ``key`` turns the network's dropout on."""
        del context
        x, label = self.process.perturb(draws.x0, draws.eps, draws.t), draws.cond[LABEL].astype(jnp.int32)
        net_x, net_t = self.parameterization.condition(self.process, x, draws.t)
        logits = net.apply(params, net_x, per_sample(net_t, x), key=key)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), label[:, None], axis=1)[:, 0]
        right = (jnp.argmax(logits, axis=1) == label).astype(jnp.float32)
        return Terms(-log_prob * draws.weight, right)

    def update(self, history: History, draws: Draws, terms: Terms) -> History:
        """The history after a step."""
        return self.time.update(self.process, history, draws.t, draws.weight, terms)  # type: ignore[arg-type]

    def figures(self, draws: Draws, terms: Terms) -> dict[str, Array]:
        """What is logged of a step: the share of labels that are told right, and sums of it and counts for each quarter
        of t, from data to noise ``(2, 4)``."""
        quarter = jnp.clip(jnp.floor(draws.t * QUARTERS).astype(jnp.int32), 0, QUARTERS - 1)
        inside = (quarter[:, None] == jnp.arange(QUARTERS)[None]).astype(jnp.float32)
        by_noise = jnp.stack([(inside * terms.right[:, None]).sum(axis=0), inside.sum(axis=0)])
        return {"accuracy": terms.right.mean(), "accuracy_by_noise": by_noise}
