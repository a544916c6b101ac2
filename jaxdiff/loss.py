"""The denoising loss and its weightings.

A network is trained to return its parameterization's target at a noisy sample,

    L = E_{t, x_0, eps} [ w(t) |d x0/d output|^2 mean((output - target)^2) ],                        (1)

mean over dimensions. w weighs the error in x0, so that a weighting means the same objective under every target:
|x0^ - x0| = |d x0/d output| |output - target| (`Parameterization.jacobian`). With SNR = alpha^2/sigma^2 = e^lambda:

    SNR            w = SNR, the error in eps                                      Ho et al. 2020
    min-SNR        w = min(SNR, gamma)                                            Hang et al. 2023
    P2             w = SNR/(k + SNR)^gamma                                        Choi et al. 2022
    likelihood     w = -1/2 dSNR/dt = 1/2 SNR g^2/sigma^2                         Song et al. 2021b; Kingma et al. 2021
    Karras         w = (sigma^2 + s^2)/(sigma s)^2 at alpha = 1                   Karras et al. 2022
    sigmoid        w = logistic(b - lambda) (-1/2 dSNR/dt)                        Kingma & Gao 2023
    simple         the factor of (1) as a whole is 1: the network's own target    Ho et al. 2020

Where alpha = 0, w may vanish and |d x0/d output| be infinite; the factor of (1) is then w_eps |d eps/d output|^2, with
w_eps = w sigma^2/alpha^2 the weight on the error in eps: the same product, of other factors. It is infinite where its
limit is, as that of the likelihood's weight on Eps.

With a learned variance the loss adds ``vlb_weight`` T times the variational bound's term of the step drawn, the mean
held constant (Nichol & Dhariwal 2021, equation 16: their lambda, 0.001).
"""

from __future__ import annotations

import abc
import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import mean_features, sum_features
from jaxdiff.denoiser import Cond, Net
from jaxdiff.parameterization import Parameterization
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.spec import drop, replaced
from jaxdiff.times import History, Terms, TrainingTime, Uniform
from jaxdiff.variational import vlb_term


@record
class Weight(abc.ABC):
    """A weighting w(t) of the error in x0, equation (1)."""

    @abc.abstractmethod
    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        """w(t), with the shape of t."""

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        """w_eps(t) = w(t)/SNR(t). Overridden where it has a limit at alpha = 0 or sigma = 0."""
        return self.on_x0(process, t) / _snr(process, t)

    def on_target(self, process: Process, parameterization: Parameterization, t: ArrayLike) -> Array:
        """The factor of the error in the network's own target."""
        factor = self.on_x0(process, t) * jnp.square(parameterization.jacobian(process, t))
        other = self.on_eps(process, t) * jnp.square(parameterization.eps_jacobian(process, t))
        return jnp.where(jnp.isnan(factor), other, factor)  # 0 times infinity is no number


def _snr(process: Process, t: ArrayLike) -> Array:
    return jnp.exp(process.log_snr(t))


def _half_rate(process: Process, t: ArrayLike) -> Array:
    """-1/2 d ln SNR/dt = g^2/(2 sigma^2)."""
    return 0.5 * process.diffusion_squared(t) / jnp.square(process.sigma(t))


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

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        return jnp.ones_like(_snr(process, t))


@record
class MinSNR(Weight):
    """min(SNR, gamma) (Hang et al. 2023, section 3.4; their gamma is 5)."""

    gamma: float = 5.0

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        return jnp.minimum(_snr(process, t), self.gamma)

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        return jnp.minimum(1.0, self.gamma / _snr(process, t))


@record
class P2(Weight):
    """SNR/(k + SNR)^gamma (Choi et al. 2022, equation 8, on the error in eps 1/(k + SNR)^gamma)."""

    k: float = 1.0
    gamma: float = 1.0

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        snr = _snr(process, t)
        share = jnp.power(
            1.0 + self.k / snr, -self.gamma
        )  # the same without infinity over infinity, where SNR is large
        return jnp.where(snr > 1.0, share * jnp.power(snr, 1.0 - self.gamma), snr * self.on_eps(process, t))

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        return jnp.power(self.k + _snr(process, t), -self.gamma)


@record
class Likelihood(Weight):
    """-1/2 dSNR/dt: the continuous variational bound (Kingma et al. 2021, equation 18), g^2 on the score (Song et al.
    2021b)."""

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        return 0.5 * process.snr_slope(t)

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        return _half_rate(process, t)


@record
class KarrasWeight(Weight):
    """1/c_out^2 of Karras et al. 2022 (table 1), for any process: 1 on the target of `Karras` of the same
    ``sigma_data``."""

    sigma_data: float = 0.5

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return (jnp.square(sigma) + jnp.square(alpha * self.sigma_data)) / jnp.square(sigma * self.sigma_data)

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return (jnp.square(sigma) + jnp.square(alpha * self.sigma_data)) / jnp.square(alpha * self.sigma_data)


@record
class Sigmoid(Weight):
    """logistic(bias - lambda) times the likelihood's weight (Kingma & Gao 2023, section 5; Hoogeboom et al. 2024)."""

    bias: float = 0.0

    def on_x0(self, process: Process, t: ArrayLike) -> Array:
        log_snr = process.log_snr(t)  # the two are the same: logistic(b - l) SNR = 1/(1/SNR + e^-b)
        noisy = 0.5 * jax.nn.sigmoid(self.bias - log_snr) * process.snr_slope(t)
        return jnp.where(log_snr < 0.0, noisy, _half_rate(process, t) / (jnp.exp(-log_snr) + jnp.exp(-self.bias)))

    def on_eps(self, process: Process, t: ArrayLike) -> Array:
        log_snr = process.log_snr(t)
        noisy = jax.nn.sigmoid(self.bias - log_snr) * _half_rate(process, t)
        clear = 0.5 * process.diffusion_squared(t) / jnp.square(process.alpha(t))
        return jnp.where(log_snr < 0.0, noisy, clear / (jnp.exp(-log_snr) + jnp.exp(-self.bias)))


@record
class Draws:
    """All that is random in a batch's loss but dropout; every leaf has the batch first, so a batch of draws splits.

    Attributes:
      x0: data ``(B, ...)``.
      eps: noise, like x0.
      t: times ``(B,)``.
      weight: 1/p(t) of importance sampling ``(B,)``.
      cond: the conditions as the data has them; {} when there are none.
      dropped: for conditions that are dropped at random, of which samples: ``(B,)`` bool.
    """

    x0: Array
    eps: Array
    t: Array
    weight: Array
    cond: dict[str, Any]
    dropped: dict[str, Array] = dataclasses.field(default_factory=dict)

    def conditions(self, net: Net) -> dict[str, Any]:
        """What the network is told: equation (1) of `jaxdiff.spec`, with the nulls that the network declares."""
        return drop(net.cond, self.cond, self.dropped) if self.dropped else self.cond


class Context(NamedTuple):
    """What an objective may look at beside its batch. Arguments of the jitted step, never constants of it.

    Attributes:
      step: optimizer steps done, int32 ().
      ema: the running averages of the parameters, by name.
      frozen: weights that are not trained, by name.
      nulls: arrays ``(1, ...)`` in the place of conditions that are dropped; of others the network's nulls.
    """

    step: ArrayLike = 0
    ema: Mapping[str, Any] = {}
    frozen: Mapping[str, Any] = {}
    nulls: Mapping[str, Any] = {}


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
      dropout: for each condition that is to be dropped at random, the probability in [0, 1]; independent of each other.
        It becomes the context's null, or the network's.
    """

    process: Process
    parameterization: Parameterization
    weight: Weight = Simple()
    time: TrainingTime = Uniform()
    dropout: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def init(self) -> History:
        """The history of importance sampling before the first step."""
        return self.time.init()

    def draw(self, key: Array, batch: Cond, history: History = (), context: Context = Context()) -> Draws:
        """Times, noise and what is dropped, for a batch ``{"x": (B, ...), "label": (B,), ...}``.

        Raises:
          ValueError: ``dropout`` names a condition that the batch lacks.
        """
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        x0, cond = batch["x"], {name: value for name, value in batch.items() if name != "x"}
        if missing := sorted(set(self.dropout) - set(cond)):
            raise ValueError(f"dropout of {missing}: the data's conditions are {sorted(cond)}")
        t, weight = self.time.sample(self.process, history, time_key, x0.shape[0])
        dropped = {  # a key by name: another condition beside it changes nothing
            name: jax.random.uniform(jax.random.fold_in(drop_key, zlib.crc32(name.encode())), x0.shape[:1]) < rate
            for name, rate in self.dropout.items()
        }
        eps, told = jax.random.normal(noise_key, x0.shape, x0.dtype), replaced(cond, dropped, context.nulls)
        return Draws(x0, eps, t, weight, *told)

    @abc.abstractmethod
    def terms(self, net: Net, params: Any, draws: Any, context: Context = Context(), key: Array | None = None) -> Terms:
        """What is minimised, for each sample; ``key`` turns the network's dropout on."""

    def update(self, history: History, draws: Any, terms: Terms) -> History:
        """The history after a step."""
        return self.time.update(self.process, history, draws.t, draws.weight, terms)


@record
class DenoisingLoss(Objective):
    """The denoising loss, equation (1). `denoising_loss` composes its `draw` and `terms`.

    Args:
      process, parameterization, weight, time, dropout: as `Objective`.
      vlb_weight: factor of the variational term for a `LearnedVariance` network, 0 otherwise; static.
      levels: of the data, for that term, equally spaced in [-1, 1]; None for real-valued data; static.
    """

    vlb_weight: float = field(default=0.0, pytree_node=False)
    levels: int | None = field(default=256, pytree_node=False)

    def __post_init__(self) -> None:
        if self.vlb_weight and self.process.steps is None:
            raise ValueError(
                f"vlb_weight = {self.vlb_weight} needs a chain with steps, DiscreteVP; "
                f"got {type(self.process).__name__}"
            )

    def terms(
        self, net: Net, params: Any, draws: Draws, context: Context = Context(), key: Array | None = None
    ) -> Terms:
        """Equation (1) for each sample; ``key`` turns the network's dropout on."""
        x0, eps, t = draws.x0, draws.eps, draws.t
        x = self.process.perturb(x0, eps, t)
        net_x, net_t = self.parameterization.condition(self.process, x, t)
        output = net.apply(params, net_x, net_t, draws.conditions(net), key=key).astype(x0.dtype)
        prediction = self.parameterization.read(self.process, x, t, output)
        target = self.parameterization.target(self.process, x0, eps, t)
        mse = mean_features(jnp.square(output[..., : x0.shape[-1]] - target))
        loss = self.weight.on_target(self.process, self.parameterization, t) * mse
        if self.vlb_weight and self.process.steps is not None:
            s = jnp.round(t * self.process.steps - 1.0) / self.process.steps
            held = prediction._replace(
                x0=jax.lax.stop_gradient(prediction.x0), eps=jax.lax.stop_gradient(prediction.eps)
            )
            term = vlb_term(self.process, x0, eps, held, s, t, self.levels)
            loss = loss + self.vlb_weight * self.process.steps * term
        score = jax.lax.stop_gradient(prediction.score(self.process, t))
        return Terms(loss * draws.weight, mse, sum_features(jnp.square(score)))


PRIOR = "prior"
"""The name, in `Context.frozen`, of the batch of all pictures of a class that `PriorPreserving` draws from."""


@record
class PriorDraws:
    """The draws of an objective for the batch, and for as many pictures of the class."""

    mine: Any
    prior: Any

    @property
    def t(self) -> Array:
        """Times ``(2 B,)``, the class' last."""
        return jnp.concatenate([self.mine.t, self.prior.t])


@record
class PriorPreserving:
    """Any objective L with DreamBooth's term (Ruiz et al. 2022, https://arxiv.org/abs/2208.12242, equation 2),

        L(pictures of one thing) + factor L(pictures of its class),

    the latter drawn anew for each step from ``context.frozen["prior"]``, as many as the batch has.

    Args:
      objective: L.
      factor: of the class' term, not negative; their lambda, 1.
    """

    objective: Any
    factor: float = 1.0

    def init(self) -> History:
        """The history before the first step."""
        history: History = self.objective.init()
        return history

    def draw(self, key: Array, batch: Cond, history: History = (), context: Context = Context()) -> PriorDraws:
        """The objective's draws for the batch, as without the term, and for the class."""
        rows_key, prior_key = jax.random.split(jax.random.fold_in(key, zlib.crc32(PRIOR.encode())))
        rows = jax.random.randint(rows_key, (len(batch["x"]),), 0, len(context.frozen[PRIOR]["x"]))
        prior = jax.tree.map(lambda leaf: leaf[rows], context.frozen[PRIOR])
        mine = self.objective.draw(key, batch, history, context)
        return PriorDraws(mine, self.objective.draw(prior_key, prior, history, context))

    def terms(
        self, net: Net, params: Any, draws: PriorDraws, context: Context = Context(), key: Array | None = None
    ) -> Terms:
        """The objective's for ``2 B`` samples, so weighted that their mean is the sum of both means."""
        both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), draws.mine, draws.prior)
        terms: Terms = self.objective.terms(net, params, both, context, key)
        ones = jnp.ones_like(draws.mine.t)
        return terms._replace(loss=terms.loss * jnp.concatenate([2.0 * ones, 2.0 * self.factor * ones]))

    def update(self, history: History, draws: PriorDraws, terms: Terms) -> History:
        """The history after a step, by the batch alone."""
        mine = jax.tree.map(lambda leaf: leaf[: len(draws.mine.t)], terms)
        new: History = self.objective.update(history, draws.mine, mine._replace(loss=mine.loss / 2.0))
        return new


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
    dropout: Mapping[str, float] | None = None,
) -> Array:
    """The denoising loss of each sample, equation (1): the whole of it for a training loop of one's own.

    Args:
      net: the network, `jaxdiff.networks.functional`.
      params: its parameters.
      key: a key of this step; draws times, noise, what is dropped, and the network's dropout.
      batch: ``{"x": (B, ...), "label": (B,) int32, ...}``; all but x are conditions.
      process, parameterization, weight, time, dropout: as `DenoisingLoss`.

    Returns:
      ``(B,)``; its mean is what is minimised.
    """
    draw_key, dropout_key = jax.random.split(key)
    loss = DenoisingLoss(process, parameterization, weight, time, dropout or {})
    return loss.terms(net, params, loss.draw(draw_key, batch, loss.init()), key=dropout_key).loss
