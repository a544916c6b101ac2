"""The denoising loss and its weightings.

A network is trained to return its parameterization's target at a noisy sample,

    L = E_{t, x_0, eps} [ w(t) |d x0/d output|^2 mean((output - target)^2) ],                        (1)

mean over dimensions. w weighs the error in x0, so that a weighting means the same objective under every target:
|x0^ - x0| = |d x0/d output| |output - target| (`Parameterization.jacobian`). With SNR = alpha^2/sigma^2, lambda = ln
SNR:

    SNR            w = SNR, the error in eps                                      Ho et al. 2020
    min-SNR        w = min(SNR, gamma)                                            Hang et al. 2023
    P2             w = SNR/(k + SNR)^gamma                                        Choi et al. 2022
    likelihood     w = -1/2 dSNR/dt = 1/2 SNR g^2/sigma^2                         Song et al. 2021b; Kingma et al. 2021
    Karras         w = (sigma^2 + s^2)/(sigma s)^2 at alpha = 1                   Karras et al. 2022
    sigmoid        w = logistic(b - lambda) (-1/2 dSNR/dt)                        Kingma & Gao 2023
    simple         the factor of (1) as a whole is 1: the network's own target    Ho et al. 2020

With a learned variance the loss adds ``vlb_weight`` T times the variational bound's term of the step drawn, the mean
held constant (Nichol & Dhariwal 2021, equation 16: their lambda, 0.001).
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import mean_features, sum_features
from jaxdiff.denoiser import Cond, Net
from jaxdiff.parameterization import Parameterization
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.times import History, Terms, TrainingTime, Uniform
from jaxdiff.variational import vlb_term


@record
class Weight(abc.ABC):
    """A weighting w(t) of the error in x0, equation (1)."""

    @abc.abstractmethod
    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        """w(t), with the shape of t."""

    def on_target(self, process: Process, parameterization: Parameterization, t: ArrayLike) -> Array:
        """The factor of the error in the network's own target."""
        return self.on_x0(process, t) * jnp.square(parameterization.jacobian(process, t))


def _snr(process: Process, t: ArrayLike) -> Array:
    return jnp.exp(process.log_snr(t))


def _half_snr_slope(process: Process, t: ArrayLike) -> Array:
    return 0.5 * _snr(process, t) * process.diffusion_squared(t) / jnp.square(process.sigma(t))


@record
class Simple(Weight):
    """1 on the network's own target. The only weighting whose meaning depends on the target."""

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        raise TypeError("Simple has no weight on x0 of its own: it is 1 on the network's target (on_target)")

    def on_target(self, process: Process, parameterization: Parameterization, t: ArrayLike) -> Array:
        return jnp.ones_like(parameterization.jacobian(process, t))


@record
class SNR(Weight):
    """SNR: the plain error in eps, under any target."""

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        return _snr(process, t)


@record
class MinSNR(Weight):
    """min(SNR, gamma) (Hang et al. 2023, section 3.4; their gamma is 5)."""

    gamma: float = 5.0

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        return jnp.minimum(_snr(process, t), self.gamma)


@record
class P2(Weight):
    """SNR/(k + SNR)^gamma (Choi et al. 2022, equation 8, on the error in eps 1/(k + SNR)^gamma)."""

    k: float = 1.0
    gamma: float = 1.0

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        snr = _snr(process, t)
        return snr / jnp.power(self.k + snr, self.gamma)


@record
class Likelihood(Weight):
    """-1/2 dSNR/dt: the continuous variational bound (Kingma et al. 2021, equation 18), g^2 on the score (Song et al.
    2021b)."""

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        return _half_snr_slope(process, t)


@record
class KarrasWeight(Weight):
    """1/c_out^2 of Karras et al. 2022 (table 1), for any process: 1 on the target of `Karras` of the same
    ``sigma_data``."""

    sigma_data: float = 0.5

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return (jnp.square(sigma) + jnp.square(alpha * self.sigma_data)) / jnp.square(sigma * self.sigma_data)


@record
class Sigmoid(Weight):
    """logistic(bias - lambda) times the likelihood's weight (Kingma & Gao 2023, section 5; Hoogeboom et al. 2024)."""

    bias: float = 0.0

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        return jax.nn.sigmoid(self.bias - process.log_snr(t)) * _half_snr_slope(process, t)


@record
class Draws:
    """All that is random in a batch's loss but dropout; every leaf has the batch first, so a batch of draws splits.

    Attributes:
      x0: data ``(B, ...)``.
      eps: noise, like x0.
      t: times ``(B,)``.
      weight: 1/p(t) of importance sampling ``(B,)``.
      cond: the condition, labels dropped to the null label at random; {} when unconditional.
    """

    x0: Array
    eps: Array
    t: Array
    weight: Array
    cond: dict[str, Array]


@record
class Objective(abc.ABC):
    """What training minimises, in pure pieces, `draw`, `terms` and `update`, so that a batch drawn once can be split
    for gradient accumulation and the history of importance sampling sees the whole of it; abstract. A subclass defines
    `terms`, of data made noisy by the process at drawn times.

    Args:
      process: the process.
      parameterization: what the network sees and returns.
      weight: the weighting.
      time: how times are drawn.
      label_dropout: probability in [0, 1] that ``cond["label"]`` becomes the null label.
      null_label: the null label's id; static.
    """

    process: Process
    parameterization: Parameterization
    weight: Weight = Simple()
    time: TrainingTime = Uniform()
    label_dropout: float = 0.0
    null_label: int | None = field(default=None, pytree_node=False)

    def init(self) -> History:
        """The history of importance sampling before the first step."""
        return self.time.init()

    def draw(self, key: Array, batch: Cond, history: History = ()) -> Draws:
        """Times, noise and dropped labels for a batch ``{"image": (B, ...) in [-1, 1], "label": (B,), ...}``."""
        time_key, noise_key, label_key = jax.random.split(key, 3)
        x0, cond = batch["image"], {name: value for name, value in batch.items() if name != "image"}
        t, weight = self.time.sample(self.process, history, time_key, x0.shape[0])
        if self.null_label is not None and "label" in cond:
            dropped = jax.random.uniform(label_key, x0.shape[:1]) < self.label_dropout
            cond["label"] = jnp.where(dropped, self.null_label, cond["label"])
        return Draws(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), t, weight, cond)

    @abc.abstractmethod
    def terms(self, net: Net, params: Any, draws: Any, key: Array | None = None) -> Terms:
        """What is minimised, for each sample; ``key`` turns the network's dropout on."""

    def update(self, history: History, draws: Any, terms: Terms) -> History:
        """The history after a step."""
        return self.time.update(self.process, history, draws.t, draws.weight, terms)


@record
class DenoisingLoss(Objective):
    """The denoising loss, equation (1). `denoising_loss` composes its `draw` and `terms`.

    Args:
      process, parameterization, weight, time, label_dropout, null_label: as `Objective`.
      vlb_weight: factor of the variational term for a `LearnedVariance` network, 0 otherwise; static.
    """

    vlb_weight: float = field(default=0.0, pytree_node=False)

    def __post_init__(self) -> None:
        if self.vlb_weight and self.process.steps is None:
            raise ValueError(
                f"vlb_weight = {self.vlb_weight} needs a chain with steps, DiscreteVP; "
                f"got {type(self.process).__name__}"
            )

    def terms(self, net: Net, params: Any, draws: Draws, key: Array | None = None) -> Terms:
        """Equation (1) for each sample; ``key`` turns the network's dropout on."""
        x0, eps, t = draws.x0, draws.eps, draws.t
        x = self.process.perturb(x0, eps, t)
        net_x, net_t = self.parameterization.condition(self.process, x, t)
        output = net.apply(params, net_x, net_t, draws.cond, key=key).astype(x0.dtype)
        prediction = self.parameterization.read(self.process, x, t, output)
        target = self.parameterization.target(self.process, x0, eps, t)
        mse = mean_features(jnp.square(output[..., : x0.shape[-1]] - target))
        loss = self.weight.on_target(self.process, self.parameterization, t) * mse
        if self.vlb_weight and self.process.steps is not None:
            s = jnp.round(t * self.process.steps - 1.0) / self.process.steps
            held = prediction._replace(
                x0=jax.lax.stop_gradient(prediction.x0), eps=jax.lax.stop_gradient(prediction.eps)
            )
            loss = loss + self.vlb_weight * self.process.steps * vlb_term(self.process, x0, eps, held, s, t)
        score = jax.lax.stop_gradient(prediction.score(self.process, t))
        return Terms(loss * draws.weight, mse, sum_features(jnp.square(score)))


def denoising_loss(
    net: Net,
    params: Any,
    key: Array,
    batch: Cond,
    *,
    process: Process,
    parameterization: Parameterization,
    weight: Weight = Simple(),
    time: TrainingTime = Uniform(),
    label_dropout: float = 0.0,
    null_label: int | None = None,
) -> Array:
    """The denoising loss of each sample, equation (1): the whole of it for a training loop of one's own.

    Args:
      net: the network, `jaxdiff.networks.functional`.
      params: its parameters.
      key: a key of this step; draws times, noise, dropped labels and dropout.
      batch: ``{"image": (B, H, W, C) in [-1, 1], "label": (B,) int32, ...}``; all but the image is the condition.
      process, parameterization, weight, time, label_dropout, null_label: as `DenoisingLoss`.

    Returns:
      ``(B,)``; its mean is what is minimised.
    """
    draw_key, dropout_key = jax.random.split(key)
    loss = DenoisingLoss(process, parameterization, weight, time, label_dropout, null_label)
    return loss.terms(net, params, loss.draw(draw_key, batch, loss.init()), dropout_key).loss
