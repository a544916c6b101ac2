"""CIFAR-10 with the VP SDE: "DDPM cont. (VP)" of Song et al. 2021, "Score-Based Generative Modeling through SDEs".

Command:   jaxdiff train cifar10_vp_continuous --data.name tfds:cifar10
Cost:      1,300,000 steps of 128 images: days on one data-centre GPU
Expected:  FID 3.69 and 3.21 bits/dim by the probability flow (the paper's, table 2; not measured here)

Sampling ends where sigma/alpha = 0.002, at t = 4e-5; the paper's code ends it at t = 1e-3.
"""

from jaxdiff import VP, Eps, ScaledTime, Uniform
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import ddpm_cifar10
from jaxdiff.train.ema import Ema

config = Config(
    name="cifar10_vp_continuous",
    data=DataConfig(name="cifar10", flip=True),
    process=VP(beta_min=0.1, beta_max=20.0),
    parameterization=Eps(time=ScaledTime(999.0)),
    network=ddpm_cifar10(),
    loss=LossConfig(time=Uniform(t_min=1e-5)),
    optimizer=OptimizerConfig(lr=2e-4, warmup=5000, clip_norm=1.0),
    ema=Ema(0.9999),
    train=TrainConfig(steps=1_300_000, batch_size=128, log_every=100, sample_every=20_000),
    checkpoint=CheckpointConfig(every=10_000, keep=3),
    sample=SampleConfig(sampler="euler_maruyama", steps=1000, grid="uniform", clip=False),
)
