"""The configuration of a noisy classifier: the process and what is told of it, as a diffusion model's, and no sampler.

Guidance by it is an option of a diffusion model's samples: ``classifier:2,run=runs/NAME``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from jaxdiff.classifier import LABEL
from jaxdiff.config.schema import RunConfig
from jaxdiff.launch.errors import ConfigError
from jaxdiff.parameterization import Parameterization
from jaxdiff.process import Process
from jaxdiff.spec import Spec, Specs
from jaxdiff.times import TrainingTime, Uniform


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierConfig(RunConfig):
    """Everything that decides a classifier's run, beside what every run has (`RunConfig`); its `network` gives logits,
    so many as its `classes`: a `jaxdiff.networks.Classifier`.

    Args:
      process: that of the model that it is to guide.
      parameterization: what the network sees of x and t; its target is not used.
      time: distribution of the training times (`jaxdiff.times`).
    """

    process: Process
    parameterization: Parameterization
    time: TrainingTime = Uniform()
    shown: int = 64
    """Records in a picture made during training: the probability of each one's label at 16 times."""

    @property
    def cond(self) -> Specs:
        """What training reads beside x: the label. The network is not told it."""
        return {LABEL: Spec((), "int32", 0, self.network.classes - 1)}


def check_classifier(config: ClassifierConfig) -> None:
    """Checks what belongs to a classifier alone.

    Raises:
      ConfigError: what is wrong first, in one line.
    """
    classes = getattr(config.network, "classes", None)
    if not isinstance(classes, int) or classes < 2:
        raise ConfigError(
            "network: a ClassifierConfig trains a network that gives logits and has their number, classes, such as "
            f"Classifier(UNet(...), 10), got {type(config.network).__name__}; for a diffusion model use Config"
        )
    if config.shown < 1:
        raise ConfigError(f"shown: {config.shown} is out of range, it must be at least 1")


def no_sampler(folder: str | os.PathLike[str]) -> str:
    """What a person is told who samples from a classifier's run."""
    return (
        f"{folder} is a classifier: there is nothing to sample from it alone. It guides a diffusion model, "
        f"--guide classifier:2,run={folder}; jaxdiff.load('{folder}').log_prob(x, t) is what it says"
    )
