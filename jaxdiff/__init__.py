"""jaxdiff: diffusion models in JAX. Processes, networks, training and samplers that compose.

A reader's way in: `jaxdiff.process`, `jaxdiff.sampling.base`, `jaxdiff.sampling.ode`, then the repository's `train.py`.
"""

from typing import TYPE_CHECKING, Any

from jaxdiff.denoiser import Denoiser, NetworkDenoiser
from jaxdiff.discrete import (
    DiscreteVP,
    cosine_betas,
    linear_betas,
    rescale_zero_terminal_snr,
    scaled_linear_betas,
    sigmoid_betas,
)
from jaxdiff.exact import GaussianDenoiser, MixtureDenoiser
from jaxdiff.grid import karras_times, log_snr_times, quadratic_times, trailing_times, uniform_times
from jaxdiff.guidance import ClassifierFree, Clipped
from jaxdiff.loss import (
    P2,
    SNR,
    DenoisingLoss,
    KarrasWeight,
    Likelihood,
    MinSNR,
    Sigmoid,
    Simple,
    Weight,
    denoising_loss,
)
from jaxdiff.noise import sample_keys, white_noise
from jaxdiff.parameterization import (
    X0,
    Eps,
    Karras,
    LearnedVariance,
    LogSigma,
    Parameterization,
    ScaledTime,
    Score,
    TimeIndex,
    V,
    Velocity,
)
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling import (
    DDIM,
    DDPM,
    DPMpp2M,
    Euler,
    EulerMaruyama,
    Heun,
    Sampler,
    check_times,
    integrate,
    sample,
    sample_path,
)
from jaxdiff.schedule import VE, VP, CosineVP, Flow, KarrasVE, SigmoidVP, SubVP
from jaxdiff.times import (
    LogitNormal,
    LogNormalSigma,
    LossSecondMoment,
    ScoreNorm,
    Stratified,
    TrainingTime,
    Uniform,
    UniformLogSNR,
)

if TYPE_CHECKING:
    from jaxdiff.run import Run

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Checkpoints and data pipelines take seconds to import; a notebook that only samples pays when it asks for a run.
    if name == "Run":
        from jaxdiff.run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DDIM",
    "DDPM",
    "P2",
    "SNR",
    "VE",
    "VP",
    "X0",
    "ClassifierFree",
    "Clipped",
    "CosineVP",
    "DPMpp2M",
    "Denoiser",
    "DenoisingLoss",
    "DiscreteVP",
    "Eps",
    "Euler",
    "EulerMaruyama",
    "Flow",
    "GaussianDenoiser",
    "Heun",
    "Karras",
    "KarrasVE",
    "KarrasWeight",
    "LearnedVariance",
    "Likelihood",
    "LogNormalSigma",
    "LogSigma",
    "LogitNormal",
    "LossSecondMoment",
    "MinSNR",
    "MixtureDenoiser",
    "NetworkDenoiser",
    "Parameterization",
    "Prediction",
    "Process",
    "Run",
    "Sampler",
    "ScaledTime",
    "Score",
    "ScoreNorm",
    "Sigmoid",
    "SigmoidVP",
    "Simple",
    "Stratified",
    "SubVP",
    "TimeIndex",
    "TrainingTime",
    "Uniform",
    "UniformLogSNR",
    "V",
    "Velocity",
    "Weight",
    "check_times",
    "cosine_betas",
    "denoising_loss",
    "field",
    "integrate",
    "karras_times",
    "linear_betas",
    "log_snr_times",
    "quadratic_times",
    "record",
    "rescale_zero_terminal_snr",
    "sample",
    "sample_keys",
    "sample_path",
    "scaled_linear_betas",
    "sigmoid_betas",
    "trailing_times",
    "uniform_times",
    "white_noise",
]
