"""The methods that both libraries have, on the same grids: jaxdiff's and its twin in diffusers.

All on the VP process and a grid uniform in log-SNR from sigma/alpha = 80 to 0.02, on which diffusers' singlestep
solvers, whose inner evaluations are grid points, put them where the papers do. Methods on x0 end by the last denoising;
those on eps, LMS and iPNDM by a last step to a small sigma/alpha, both in jaxdiff and in diffusers. So does UniPC: with
a last step to 0 diffusers' is first to lower its order towards the end, and is not the same method (without, it divides
by zero, and with B1 in any case).

Faults of the twins. Each is a function that mends it in the scheduler at hand; that the mended twin then agrees with
jaxdiff, and the bare one does not, shows that the fault is all there is between them.

- `half_the_second_difference`: diffusers' third-order DPM-Solver++ (multistep) puts the second divided difference where
  its weight is made for the second derivative, twice that. It is of order 2. On a model that is a square in lambda one
  of its steps is wrong in the first digits, jaxdiff's is exact (`third_order_fault`).
- `inner_stage`: diffusers' third-order singlestep DPM-Solver takes for its second inner point DPM-Solver-2's midpoint
  rule, with weight (e^H - 1)/2, where the paper (Lu et al. 2022a, algorithm 2) has (e^H - 1)/H - 1, exact for an eps
  linear in lambda.
- `single_precision`: its coefficients come from sigmas kept in float32. DEIS's, differences of near integrals over
  squares of small steps in log rho, and LMS's, over products of differences, are then wrong in their leading digits on
  fine grids; iPNDM's alpha = sqrt(1 - sigma^2) at its start by 2e-4.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.samplers.problems import RHO_MAX, Problem
from benchmarks.samplers.schedulers import Candidate, chain
from jaxdiff import DDIM, VP, DPMpp2M, Process, integrate, sample
from jaxdiff.denoiser import Denoiser
from jaxdiff.sampling.adams import DEIS, IPNDM, LMS
from jaxdiff.sampling.base import Sampler, pad_times
from jaxdiff.sampling.multistep import DPMpp3M, x0_weights
from jaxdiff.sampling.ode import DPM2, Heun
from jaxdiff.sampling.singlestep import DPMpp2S, DPMSolver
from jaxdiff.sampling.unipc import UniPC

RHO_MIN, SMALL, BOUND = 0.02, 0.002, 101


@dataclasses.dataclass(frozen=True)
class Twin:
    """A shared method.

    Args:
      name: of the table.
      sampler: jaxdiff's, of a process.
      scheduler, output, options, step: diffusers', as in `Candidate`.
      stages: evaluations a step; more than one makes the steps go over as many intervals of diffusers' grid where
        ``inner``, else makes them fewer.
      inner: diffusers' further evaluations are at points of its grid.
      end: "denoise", or "small" for a last step to `SMALL` in place of it.
      mend: what mends the twin's known fault.
    """

    name: str
    sampler: Callable[[Process], Sampler]
    scheduler: str
    output: str
    options: dict[str, Any]
    step: dict[str, Any] = dataclasses.field(default_factory=dict)
    stages: int = 1
    inner: bool = False
    end: str = "denoise"
    mend: Callable[[Any], None] | None = None

    def grids(self, budget: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """jaxdiff's times and diffusers' steps, in sigma/alpha; None where the budget does not suit the method."""
        if not self.inner:
            n = budget if self.stages == 1 else (budget + 1) // 2
            points = np.geomspace(RHO_MAX, RHO_MIN, n) if n > 1 else np.array([RHO_MAX])
            last = {"denoise": [], "small": [SMALL]}[self.end]
            return np.append(points, last), points
        whole = budget // self.stages * self.stages + (self.end == "denoise")
        if whole > budget or whole <= self.stages:
            whole -= self.stages
        if whole <= self.stages:
            return None
        points = np.geomspace(RHO_MAX, RHO_MIN, whole + (self.end == "small"))
        return points[:: self.stages], points if self.end == "denoise" else points[:-1]

    def candidate(self, rhos: NDArray[np.float64]) -> Candidate:
        whole = {"trained_betas": chain("wide"), "prediction_type": self.output, **self.options}
        end = {"denoise": 0.0, "small": RHO_MIN if self.inner else SMALL}[self.end]
        process = "EDM" if self.scheduler in ("HeunDiscrete", "KDPM2Discrete", "LMSDiscrete") else "VP"
        if self.scheduler == "IPNDM":
            whole = {}
        return Candidate(
            self.scheduler, process, self.output, whole, "the same grid", lambda n: len(rhos), self.step, rhos, end
        )

    def error(self, problem: Problem, budget: int) -> float:
        """Of jaxdiff's."""
        grids = self.grids(budget)
        assert grids is not None
        process = VP()
        ts = times(process, grids[0])
        exact = problem.build(process, jnp.float32)
        x = (process.sigma(ts[0]) * problem.noise).astype(jnp.float32)
        run = _sampled if self.end == "denoise" else _integrated
        x0 = run(self.sampler(process), exact, x, pad_times(ts, BOUND), len(ts) - 1)
        return problem.error(np.asarray(x0))


@jax.jit
def _sampled(sampler: Sampler, exact: Denoiser, x: jax.Array, ts: jax.Array, n: int) -> jax.Array:
    return sample(sampler, exact, None, x, ts, num_steps=n)


@jax.jit
def _integrated(sampler: Sampler, exact: Denoiser, x: jax.Array, ts: jax.Array, n: int) -> jax.Array:
    return integrate(sampler, exact, None, x, ts, num_steps=n)[0] / sampler.process.alpha(ts[n])


def times(process: Process, rhos: NDArray[np.float64]) -> jax.Array:
    """Times of a grid in sigma/alpha."""
    return process.time_of_log_snr(-2.0 * np.log(rhos))


def twins() -> Iterator[Twin]:
    """The shared methods."""
    last: dict[str, Any] = {"lower_order_final": False}
    yield Twin("DDIM", DDIM, "DDIM", "epsilon", {"clip_sample": False, "timestep_spacing": "linspace"})
    yield Twin("Heun in rho", functools.partial(Heun, variable="rho"), "HeunDiscrete", "sample", {}, stages=2)
    yield Twin("DPM2", DPM2, "KDPM2Discrete", "epsilon", {}, stages=2)
    options: dict[str, Any] = {"solver_order": 2, "solver_type": "midpoint"}
    yield Twin("DPMpp2M", DPMpp2M, "DPMSolverMultistep", "sample", options | last)
    yield Twin(
        "DPMpp3M", DPMpp3M, "DPMSolverMultistep", "sample", {"solver_order": 3} | last, mend=half_the_second_difference
    )
    single = options | {"lower_order_final": True}
    yield Twin("DPMpp2S", DPMpp2S, "DPMSolverSinglestep", "sample", single, stages=2, inner=True)
    noise = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "lower_order_final": False}
    for order in (2, 3):
        yield Twin(
            f"DPMSolver({order})", functools.partial(DPMSolver, order=order), "DPMSolverSinglestep", "epsilon",
            noise | {"solver_order": order}, stages=order, inner=True, end="small",
            mend=inner_stage if order == 3 else None,
        )  # fmt: skip
    small = last | {"final_sigmas_type": "sigma_min"}
    for order in (2, 3):
        for variant in ("B1", "B2"):
            options = {"solver_order": order, "solver_type": variant.replace("B", "bh")} | small
            yield Twin(
                f"UniPC({order}, {variant})",
                functools.partial(UniPC, order=order, variant=variant),
                "UniPCMultistep",
                "sample",
                options,
                end="small",
            )
    for order in (2, 3):
        yield Twin(
            f"DEIS({order}, log_rho)",
            functools.partial(DEIS, order=order, basis="log_rho"),
            "DEISMultistep",
            "epsilon",
            {"solver_order": order} | last,
            end="small",
            mend=single_precision,
        )
    for order in (2, 3, 4):
        yield Twin(
            f"LMS({order})",
            functools.partial(LMS, order=order),
            "LMSDiscrete",
            "sample",
            {},
            {"order": order},
            end="small",
            mend=single_precision,
        )
    yield Twin(
        "IPNDM(4)", functools.partial(IPNDM, order=4), "IPNDM", "v_prediction", {}, end="small", mend=single_precision
    )


def half_the_second_difference(scheduler: Any) -> None:
    """Gives the third-order multistep step the other half of its quadratic term."""
    bare = scheduler.multistep_dpm_solver_third_order_update

    def whole(outputs: list[torch.Tensor], *, sample: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        at = scheduler.step_index
        ahead, *past = (-math.log(float(sigma)) for sigma in scheduler.sigmas[[at + 1, at, at - 1, at - 2]])
        h, newer, older = ahead - past[0], past[0] - past[1], past[1] - past[2]
        first, second = (outputs[-1] - outputs[-2]) / newer, (outputs[-2] - outputs[-3]) / older
        divided = (first - second) / (newer + older)
        sigma = float(scheduler.sigmas[at + 1])
        alpha = 1.0 / math.sqrt(1.0 + sigma * sigma)
        # alpha_s e^{-lambda_s} int e^lambda (lambda - lambda_t)^2 / 2 dlambda, of the second derivative 2 f[,,]
        weight = alpha * (h * h / 2.0 - h - math.expm1(-h))
        return bare(outputs, sample=sample, noise=noise) + weight * divided

    scheduler.multistep_dpm_solver_third_order_update = whole


def inner_stage(scheduler: Any) -> None:
    """Gives the singlestep solver's inner point of order 2 the paper's weight, which is that of its "heun" form."""
    bare = scheduler.singlestep_dpm_solver_second_order_update

    def exact(*args: Any, **kwargs: Any) -> torch.Tensor:
        kind = scheduler.config.solver_type
        scheduler.register_to_config(solver_type="heun")
        try:
            return bare(*args, **kwargs)
        finally:
            scheduler.register_to_config(solver_type=kind)

    scheduler.singlestep_dpm_solver_second_order_update = exact


def single_precision(scheduler: Any) -> None:
    """Keeps the scheduler's sigmas in float64; to iPNDM, whose sigmas were rounded, it gives those of its ratios."""
    if isinstance(scheduler, diffusers.IPNDMScheduler):
        scheduler.betas = torch.tensor(scheduler.config.trained_betas, dtype=torch.float64)
        scheduler.alphas = torch.sqrt((1.0 - scheduler.betas) * (1.0 + scheduler.betas))
    else:
        scheduler.sigmas = scheduler.sigmas.double()


def third_order_fault() -> tuple[float, float]:
    """The third step's error, of jaxdiff's DPMpp3M and of diffusers' third order, for x0 = lambda^2 from lambda = 0, 1,
    2 to 3, relative to the weight of x0 over the step: 0 is exact."""
    rhos = np.exp(-np.arange(4.0))
    lambdas = np.arange(3.0)
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=3, prediction_type="sample", lower_order_final=False)
    scheduler.set_timesteps(3)
    scheduler.sigmas = torch.tensor(rhos, dtype=torch.float32)
    scheduler._step_index = 2
    x = scheduler.multistep_dpm_solver_third_order_update(
        [torch.tensor([value], dtype=torch.float32) for value in np.square(lambdas)], sample=torch.zeros(1)
    )
    alpha = 1.0 / np.sqrt(1.0 + rhos[3] ** 2)
    # alpha_s e^{-lambda_s} int_2^3 e^l l^2 dl, and the same of 1
    exact = alpha * np.exp(-3.0) * (np.exp(3.0) * (9 - 6 + 2) - np.exp(2.0) * (4 - 4 + 2))
    weight = alpha * (1.0 - np.exp(-1.0))
    here, there = jnp.asarray(2.0), jnp.asarray(3.0)
    weights = x0_weights(jnp.asarray([1.0, 0.0]), here, there)
    mine = weight * (4.0 + float(weights[0]) * (1.0 - 4.0) + float(weights[1]) * (0.0 - 4.0))
    return abs(mine - exact) / weight, abs(float(x[0]) - exact) / weight
