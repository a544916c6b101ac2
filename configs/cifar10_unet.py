"""CIFAR-10 as in Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (appendix B): 35.7 million parameters.

Command:   jaxdiff train cifar10_unet --data.name tfds:cifar10
           jaxdiff train cifar10_unet --data.path DIR    (DIR holds train.parquet)
Cost:      800,000 steps of 128 images; in the paper 10.6 hours on 8 TPU v3 cores
Expected:  FID 3.17, Inception Score 9.46 (the paper's, table 1; not measured here)

The averaging has a warm-up that the paper's has not; after 100,000 steps they are the same.
"""

from jaxdiff import DiscreteVP, Eps, TimeIndex, linear_betas
from jaxdiff.config import CheckpointConfig, Config, DataConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import ddpm_cifar10
from jaxdiff.train.ema import Ema

config = Config(
    name="cifar10",
    data=DataConfig(name="cifar10", flip=True),
    process=DiscreteVP(linear_betas(1000)),
    parameterization=Eps(time=TimeIndex(1000)),
    network=ddpm_cifar10(),
    optimizer=OptimizerConfig(lr=2e-4, warmup=5000, clip_norm=1.0),
    ema=Ema(0.9999),
    train=TrainConfig(steps=800_000, batch_size=128, log_every=100, sample_every=20_000),
    checkpoint=CheckpointConfig(every=10_000, keep=3),
    sample=SampleConfig(sampler="ddpm:fixed_large", steps=1000, grid="uniform"),
)
