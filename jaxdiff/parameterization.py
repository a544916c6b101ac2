"""What a network sees and what it returns.

A parameterization turns (x, t) into a network's input and the network's output into a `Prediction`, and says which
target the output is trained on. With rho = sigma/alpha and s = sigma_data, the preconditioning of Karras et al. 2022
(table 1, there for alpha = 1) reads for any process

    D = c_skip x/alpha + c_out F(c_in x/alpha, c_noise)
    c_skip = s^2/(rho^2 + s^2),  c_out = rho s/sqrt(rho^2 + s^2),  c_in = 1/sqrt(rho^2 + s^2),  c_noise = ln(rho)/4  (1)

and multiplied out, so that it holds where alpha = 0 too, with n^2 = sigma^2 + s^2 alpha^2:

    D = (alpha s^2/n^2) x + (sigma s/n) F(x/n, c_noise),      F's target = (sigma x0 - alpha s^2 eps)/(s n)  (2)

What a network is told about time is a function of (process, t) of its own: `TimeIndex`, `ScaledTime`, `LogSigma`.

Each parameterization also knows |d x0/d output| (`jacobian`), by which a weight on the x0 error becomes one on its own
target, and |d eps/d output| = (alpha/sigma) |d x0/d output| (`eps_jacobian`), which is finite where the first is not.
"""

from __future__ import annotations

import abc
from typing import Protocol

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.prediction import Prediction, from_eps, from_score, from_v, from_velocity, from_x0
from jaxdiff.process import Process, as_time
from jaxdiff.record import field, record


class NetworkTime(Protocol):
    """What the network is told about time."""

    def __call__(self, process: Process, t: ArrayLike) -> Array: ...


@record
class ScaledTime:
    """scale * t. The default suits sinusoidal embeddings made for indices up to 1,000."""

    scale: float = 1000.0

    def __call__(self, process: Process, t: ArrayLike) -> Array:
        return self.scale * as_time(t)


@record
class TimeIndex:
    """scale (T t - 1): the index 0..T-1 of the papers' tables at t = k/T (Ho et al. 2020).

    The scale is 1000/T where chains of all lengths are told alike (Nichol & Dhariwal 2021, their published code).

    >>> from jaxdiff.schedule import VP
    >>> print(TimeIndex(1000)(VP(), 0.25))
    249.0
    """

    steps: float = 1000.0
    scale: float = 1.0

    def __call__(self, process: Process, t: ArrayLike) -> Array:
        return self.scale * (self.steps * as_time(t) - 1.0)


@record
class LogSigma:
    """scale * ln(sigma/alpha), c_noise of Karras et al. 2022; the logarithm is limited to +-12, where alpha or sigma is
    0."""

    scale: float = 0.25

    def __call__(self, process: Process, t: ArrayLike) -> Array:
        return self.scale * jnp.clip(-0.5 * process.log_snr(t), -12.0, 12.0)


@record
class Parameterization(abc.ABC):
    """Network input, target and reading of the output; see the module's docstring.

    Args:
      time: what the network is told about time.
      scale_input: divide the network's input by sqrt(alpha^2 + sigma^2), which is 1 for variance-preserving processes
        and keeps
        the input of others near unit variance.
    """

    time: NetworkTime = field(default=ScaledTime(), kw_only=True)
    scale_input: bool = field(default=False, pytree_node=False, kw_only=True)

    def condition(self, process: Process, x: Array, t: ArrayLike) -> tuple[Array, Array]:
        """The network's (x, t): the scaled sample and the network's time, ``()`` or ``(B,)`` like t."""
        if self.scale_input:
            x = x / expand(jnp.hypot(process.alpha(t), process.sigma(t)), x)
        return x, self.time(process, t)

    @abc.abstractmethod
    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        """What the network is to return at x_t = alpha x0 + sigma eps; shaped like x0."""

    @abc.abstractmethod
    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        """The prediction that a network's output stands for."""

    @abc.abstractmethod
    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        """|d x0 / d output| at fixed x; shape of t."""

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        """|d eps / d output| at fixed x; shape of t. Overridden where it has a limit at alpha = 0 or sigma = 0."""
        return process.alpha(t) / process.sigma(t) * self.jacobian(process, t)


@record
class Eps(Parameterization):
    """The noise (Ho et al. 2020). Refuses times where alpha = 0."""

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return eps

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return from_eps(process, x, t, output)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        return process.sigma(t) / process.alpha(t)

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        return jnp.ones_like(as_time(t))


@record
class X0(Parameterization):
    """The data point."""

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return x0

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return from_x0(process, x, t, output)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        return jnp.ones_like(as_time(t))


@record
class V(Parameterization):
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)."""

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return Prediction(x0, eps).v(process, t)

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return from_v(process, x, t, output)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return sigma / (jnp.square(alpha) + jnp.square(sigma))

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha / (jnp.square(alpha) + jnp.square(sigma))


@record
class Score(Parameterization):
    """The score -eps/sigma (Song et al. 2021). Refuses times where alpha = 0."""

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return Prediction(x0, eps).score(process, t)

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return from_score(process, x, t, output)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        return jnp.square(process.sigma(t)) / process.alpha(t)

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        return process.sigma(t)


@record
class Velocity(Parameterization):
    """The probability flow's dx/dt = alpha' x0 + sigma' eps (Lipman et al. 2023); eps - x0 for `Flow`."""

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return Prediction(x0, eps).velocity(process, t)

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        return from_velocity(process, x, t, output)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        alpha_dot, sigma_dot = process.derivatives(t)
        sigma = process.sigma(t)
        return sigma / (process.alpha(t) * sigma_dot - sigma * alpha_dot)

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        alpha_dot, sigma_dot = process.derivatives(t)
        alpha = process.alpha(t)
        return alpha / (alpha * sigma_dot - process.sigma(t) * alpha_dot)


@record
class Karras(Parameterization):
    """The preconditioning of Karras et al. 2022, equations (1) and (2), for any process.

    Args:
      sigma_data: standard deviation of the data, positive; 0.5 for images in [-1, 1].
    """

    sigma_data: float = 0.5
    time: NetworkTime = field(default=LogSigma(), kw_only=True)

    def _norm(self, process: Process, t: ArrayLike) -> tuple[Array, Array, Array]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha, sigma, jnp.hypot(sigma, self.sigma_data * alpha)

    def condition(self, process: Process, x: Array, t: ArrayLike) -> tuple[Array, Array]:
        return x / expand(self._norm(process, t)[2], x), self.time(process, t)

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        alpha, sigma, norm = self._norm(process, t)
        scale = self.sigma_data * norm
        return expand(sigma / scale, x0) * x0 - expand(alpha * self.sigma_data**2 / scale, x0) * eps

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        alpha, sigma, norm = self._norm(process, t)
        s = self.sigma_data
        x0 = expand(alpha * s**2 / jnp.square(norm), x) * x + expand(sigma * s / norm, x) * output
        # not from x - alpha x0, which cancels where sigma is small
        eps = expand(sigma / jnp.square(norm), x) * x - expand(alpha * s / norm, x) * output
        return Prediction(x0, eps)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        _, sigma, norm = self._norm(process, t)
        return sigma * self.sigma_data / norm

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        alpha, _, norm = self._norm(process, t)
        return alpha * self.sigma_data / norm


@record
class Consistency(Karras):
    """`Karras` with the boundary of a consistency model: at the noise level ``least`` the prediction is x itself.

    Song et al. 2023, "Consistency Models", https://arxiv.org/abs/2303.01469, appendix C. With rho = sigma/alpha,
    d = rho - least and s = sigma_data, equation (1) with

        c_skip = s^2/(d^2 + s^2),  c_out = d s/sqrt(rho^2 + s^2)                                          (3)

    Args:
      sigma_data: standard deviation of the data, positive.
      least: the lowest noise level, where it ends; the target is infinite there.
    """

    least: float = 0.002

    def _scales(self, process: Process, t: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """rho, 1 - c_skip, c_skip and c_out."""
        rho = process.sigma(t) / process.alpha(t)
        d, s = rho - self.least, self.sigma_data
        whole = jnp.square(d) + s**2
        return rho, jnp.square(d) / whole, s**2 / whole, d * s / jnp.hypot(rho, s)

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        rho, rest, skip, out = self._scales(process, t)
        return expand(rest / out, x0) * x0 - expand(skip * rho / out, x0) * eps

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        rho, rest, skip, out = self._scales(process, t)
        x = x / expand(process.alpha(t), x)
        x0 = expand(skip, x) * x + expand(out, x) * output
        return Prediction(x0, expand(rest / rho, x) * x - expand(out / rho, x) * output)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        return self._scales(process, t)[3]

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        rho, _, _, out = self._scales(process, t)
        return out / rho


@record
class Extended(Parameterization):
    """A network whose first channels are ``base``'s output and whose others say more; abstract.

    Args:
      base: what the first channels are, and what the network is told: time and scale of its input are given there.

    Raises:
      ValueError: a ``time`` or ``scale_input`` that contradicts the base's.
    """

    base: Parameterization = Eps()

    def __post_init__(self) -> None:
        kind, base = type(self).__name__, type(self.base).__name__
        for name, default in (("time", ScaledTime()), ("scale_input", False)):
            given, meant = getattr(self, name), getattr(self.base, name)
            if given not in (default, meant):
                raise ValueError(
                    f"{kind}: the network is told what the base says, {name} = {meant}, and {name} = {given} was "
                    f"given beside it: write {kind}(base={base}({name}=...))"
                )

    def condition(self, process: Process, x: Array, t: ArrayLike) -> tuple[Array, Array]:
        return self.base.condition(process, x, t)

    def target(self, process: Process, x0: Array, eps: Array, t: ArrayLike) -> Array:
        return self.base.target(process, x0, eps, t)

    def jacobian(self, process: Process, t: ArrayLike) -> Array:
        return self.base.jacobian(process, t)

    def eps_jacobian(self, process: Process, t: ArrayLike) -> Array:
        return self.base.eps_jacobian(process, t)


@record
class LearnedVariance(Extended):
    """A network of twice the channels: the first half is ``base``'s output, the second the variance's place between its
    bounds (Nichol & Dhariwal 2021, equation 15).

    Args:
      base: what the first half is, and what the network is told about time.

    Raises:
      ValueError: a ``time`` or ``scale_input`` that contradicts the base's.
    """

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        if output.shape[-1] != 2 * x.shape[-1]:
            raise ValueError(
                f"LearnedVariance needs a network of {2 * x.shape[-1]} output channels (out_channels) for samples of "
                f"{x.shape[-1]}, got {output.shape[-1]}"
            )
        first, second = jnp.split(output, 2, axis=-1)
        return self.base.read(process, x, t, first)._replace(variance=second)
