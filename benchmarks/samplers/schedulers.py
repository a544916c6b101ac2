"""diffusers' deterministic schedulers, each with its options, driven through an exact denoiser in the scaled space.

With y = x/alpha and rho = sigma/alpha every process has the same probability flow, so a denoiser of y and rho serves
all. What a scheduler steps in is its `Space`: how its sample is made of y, which sigma it holds at a step, and which of
the denoiser's views it asks for. The denoiser is called with the sigma that the scheduler itself goes by, not with the
rounded timestep it shows to a network. A scheduler starts from y = 80 z: on a chain of betas whose last sigma/alpha is
80, or, for flow, with a number of training steps T and a shift s such that s (T - 1) = 80.

Evaluations are counted call by call. A scheduler that cannot use exactly the budget gets the largest number below.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

RHO_MAX = 80.0
Array = NDArray[np.float32]
Denoise = Callable[[Array, float], tuple[Array, Array]]
"""``denoise(y, rho) -> (x0, eps)``."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A scheduler with its options.

    Args:
      scheduler: its class in diffusers, without "Scheduler".
      process: whose sample it steps: "VP", "EDM" (variance exploding) or "Flow".
      output: the network output it is told to expect.
      options: its configuration.
      grid: what its steps are, for the table.
      steps: the number of its steps for a budget of evaluations.
      step: arguments of its `step`.
      rhos: the grid to put in place of its own, None for its own.
      end: the sigma/alpha of its last step on such a grid, in place of 0; a fraction of the least where it has no step
        to 0.
      sigmas: what to pass to its `set_timesteps(sigmas=...)` for a number of steps, where it takes that.
    """

    scheduler: str
    process: str
    output: str
    options: Mapping[str, Any]
    grid: str
    steps: Callable[[int], int] = lambda n: n
    step: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rhos: NDArray[np.float64] | None = None
    end: float = 0.0
    sigmas: Callable[[int], NDArray[np.float64]] | None = None

    @property
    def start(self) -> float:
        """Where it begins, in sigma/alpha."""
        return RHO_MAX if self.rhos is None else float(self.rhos[0])

    @property
    def name(self) -> str:
        shown = {k: v for k, v in self.options.items() if k not in _NOT_SHOWN and not k.startswith("use_")}
        shown |= dict(self.step)
        inside = ", ".join(f"{key}={value}" for key, value in shown.items())
        return f"{self.scheduler}({inside}) on {self.grid}"


_NOT_SHOWN = (
    *("trained_betas", "num_train_timesteps", "prediction_type", "timestep_spacing", "flow_shift", "shift"),
    *("clip_sample", "sigma_schedule", "set_alpha_to_one", "sigma_min", "sigma_max"),
)


def betas(rhos: NDArray[np.float64]) -> list[float]:
    """A chain's betas from its sigma/alpha, rising."""
    kept = 1.0 / (1.0 + np.square(rhos))  # alpha^2
    return list(1.0 - kept / np.concatenate([[1.0], kept[:-1]]))


@functools.cache
def chain(kind: str) -> list[float]:
    """1,000 betas: "VP", the linear-beta process cut where sigma/alpha = 80; "wide", uniform in log-SNR from 0.002."""
    if kind == "wide":
        return betas(np.geomspace(0.002, RHO_MAX, 1000))
    integral = math.log1p(RHO_MAX**2)  # -ln alpha^2 at the end
    t = (-0.1 + math.sqrt(0.01 + 2 * 19.9 * integral)) / 19.9
    times = t * np.arange(1, 1001) / 1000
    return betas(np.sqrt(np.expm1(times * (0.1 + 0.5 * times * 19.9))))


def sampled(
    candidate: Candidate, denoise: Denoise, z: Array, budget: int, mend: Callable[[Any], None] = lambda scheduler: None
) -> tuple[Array | None, int]:
    """The samples in the scaled space and the evaluations spent; None where the budget is too small for it. ``mend``
    is called with the scheduler, its steps set.

    Raises:
      ValueError: it did not start from its `Candidate.start`.
    """
    steps = candidate.steps(budget)
    if steps < 2:
        return None, 0
    scheduler = _made(candidate, steps)
    mend(scheduler)
    start = torch.from_numpy(np.float32(candidate.start) * z)
    return _DRIVERS[_space(candidate)](candidate, scheduler, denoise, start)


def _space(candidate: Candidate) -> str:
    if candidate.scheduler in ("DDIM", "PNDM"):
        return "chain"
    if candidate.scheduler == "IPNDM":
        return "angle"
    if candidate.scheduler.startswith("EDM"):
        return "edm"
    return "sigma" if candidate.scheduler in _VE else "scaled"


_VE = ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete")
_INTERLEAVED = ("HeunDiscrete", "KDPM2Discrete", "FlowMatchHeunDiscrete")


def _made(candidate: Candidate, steps: int) -> Any:
    """The scheduler with its steps set."""
    options, rhos = dict(candidate.options), candidate.rhos
    if rhos is not None and len(rhos) != steps:
        places = np.linspace(0, 1, steps)
        rhos = np.exp(np.interp(places, np.linspace(0, 1, len(rhos)), np.log(rhos)))
    if rhos is not None and candidate.scheduler in ("DDIM", "PNDM"):
        options |= {"trained_betas": betas(rhos[::-1]), "num_train_timesteps": steps}
    if candidate.scheduler == "IPNDM" and rhos is not None:
        whole = np.append(rhos, candidate.end)
        options["trained_betas"] = list(whole / np.sqrt(1.0 + np.square(whole)))
    scheduler = getattr(diffusers, candidate.scheduler + "Scheduler")(**options)
    if candidate.sigmas is not None:
        scheduler.set_timesteps(sigmas=candidate.sigmas(steps))
    elif rhos is not None and candidate.scheduler == "FlowMatchEulerDiscrete":
        scheduler.set_timesteps(sigmas=list(_flow(rhos)))
    else:
        scheduler.set_timesteps(steps)
    if rhos is not None and hasattr(scheduler, "sigmas") and candidate.scheduler != "FlowMatchEulerDiscrete":
        _replace_grid(candidate, scheduler, rhos)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def _flow(rhos: NDArray[np.float64]) -> NDArray[np.float64]:
    return rhos / (1.0 + rhos)


def _replace_grid(candidate: Candidate, scheduler: Any, rhos: NDArray[np.float64]) -> None:
    """Puts our sigmas where `set_timesteps` put the scheduler's, laid out as it lays them out, ending at 0 where it
    can and at its least sigma where it cannot."""
    end = candidate.end
    if end == 0.0 and scheduler.sigmas[-1] > 0:  # the noise-prediction forms have no step to 0
        end = min(0.002, 0.1 * rhos[-1])
    values = np.append(rhos, end)
    sigmas = torch.tensor(_flow(values) if candidate.process == "Flow" else values, dtype=torch.float32)
    if candidate.scheduler == "KDPM2Discrete":
        middle = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
        scheduler.sigmas_interpol = torch.cat([middle[:1], middle[1:].repeat_interleave(2), middle[-1:]])
        scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), sigmas[-1:]])
    elif candidate.scheduler in _INTERLEAVED:
        scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    else:
        scheduler.sigmas = sigmas


def _check_start(candidate: Candidate, rho: float) -> None:
    if abs(rho / candidate.start - 1) > 1e-3:
        raise ValueError(f"{candidate.name} starts at sigma/alpha = {rho}, not at {candidate.start}")


def _view(output: str, x0: Array, eps: Array, alpha: float, sigma: float) -> torch.Tensor:
    views = {
        "sample": lambda: x0,
        "epsilon": lambda: eps,
        "v_prediction": lambda: np.float32(alpha) * eps - np.float32(sigma) * x0,
        "flow_prediction": lambda: eps - x0,
    }
    return torch.from_numpy(np.ascontiguousarray(views[output]()))


def _scaled(candidate: Candidate, scheduler: Any, denoise: Denoise, y: torch.Tensor) -> tuple[Array, int]:
    """Samples x = alpha y: alpha^2 + sigma^2 = 1, or alpha + sigma = 1."""
    flow = candidate.process == "Flow"

    def parts(sigma: float) -> tuple[float, float]:
        alpha = 1.0 - sigma if flow else 1.0 / math.sqrt(1.0 + sigma * sigma)
        return alpha, sigma if flow else sigma * alpha

    alpha, sigma = parts(float(scheduler.sigmas[0]))
    _check_start(candidate, sigma / alpha)
    x = y * alpha
    for i, t in enumerate(scheduler.timesteps):
        # FlowMatchHeun's second evaluation of a step is at the sigma it steps to; `sigmas` repeats it.
        alpha, sigma = parts(float(scheduler.sigmas[i]))
        x0, eps = denoise((x / alpha).numpy(), sigma / alpha)
        x = scheduler.step(_view(candidate.output, x0, eps, alpha, sigma), t, x, **candidate.step).prev_sample
    last, _ = parts(float(scheduler.sigmas[-1]))
    return (x / last).numpy(), len(scheduler.timesteps)


def _sigma(candidate: Candidate, scheduler: Any, denoise: Denoise, y: torch.Tensor) -> tuple[Array, int]:
    """Samples y themselves, which `scale_model_input` turns into those of a variance-preserving network."""
    _check_start(candidate, float(scheduler.sigmas[0]))
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(y, t)
        at = scheduler.step_index
        second = candidate.scheduler == "KDPM2Discrete" and not scheduler.state_in_first_order
        sigma = float((scheduler.sigmas_interpol if second else scheduler.sigmas)[at])
        x0, eps = denoise((scaled * math.sqrt(1.0 + sigma * sigma)).numpy(), sigma)
        y = scheduler.step(_view(candidate.output, x0, eps, 1.0, sigma), t, y, **candidate.step).prev_sample
    return y.numpy(), len(scheduler.timesteps)


def _edm(candidate: Candidate, scheduler: Any, denoise: Denoise, y: torch.Tensor) -> tuple[Array, int]:
    """Samples y, network outputs F in x0 = c_skip y + c_out F (Karras et al. 2022)."""
    _check_start(candidate, float(scheduler.sigmas[0]))
    data = scheduler.config.sigma_data
    for t in scheduler.timesteps:
        scheduler.scale_model_input(y, t)
        sigma = float(scheduler.sigmas[scheduler.step_index])
        total = sigma * sigma + data * data
        x0, _ = denoise(y.numpy(), sigma)
        output = (torch.from_numpy(x0) - data * data / total * y) / (sigma * data / math.sqrt(total))
        y = scheduler.step(output, t, y, **candidate.step).prev_sample
    return y.numpy(), len(scheduler.timesteps)


def _chain(candidate: Candidate, scheduler: Any, denoise: Denoise, y: torch.Tensor) -> tuple[Array, int]:
    """Samples x = alpha y with alpha^2 read from the chain at the timestep."""
    kept = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    x = y * math.sqrt(kept[0])
    _check_start(candidate, math.sqrt((1 - kept[0]) / kept[0]))
    for t, square in zip(scheduler.timesteps, kept, strict=True):
        alpha, sigma = math.sqrt(square), math.sqrt(1.0 - square)
        x0, eps = denoise((x / alpha).numpy(), sigma / alpha)
        x = scheduler.step(_view(candidate.output, x0, eps, alpha, sigma), int(t), x).prev_sample
    return x.numpy(), len(kept)  # alpha = 1 at the end


def _angle(candidate: Candidate, scheduler: Any, denoise: Denoise, y: torch.Tensor) -> tuple[Array, int]:
    """IPNDM: x = alpha y, sigma in `betas`."""
    x = y * float(scheduler.alphas[0])
    _check_start(candidate, float(scheduler.betas[0] / scheduler.alphas[0]))
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = float(scheduler.alphas[i]), float(scheduler.betas[i])
        x0, eps = denoise((x / alpha).numpy(), sigma / alpha)
        x = scheduler.step(_view("v_prediction", x0, eps, alpha, sigma), t, x).prev_sample
    return (x / float(scheduler.alphas[-1])).numpy(), len(scheduler.timesteps)


_DRIVERS = {"scaled": _scaled, "sigma": _sigma, "edm": _edm, "chain": _chain, "angle": _angle}


def quiet() -> None:
    """Silences diffusers' notes on options it will one day remove or a step count does not suit."""
    warnings.filterwarnings("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    diffusers.utils.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
