"""ImageNet 64x64 by class: ADM of Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis".

Cosine betas and a learned variance, trained by the hybrid loss of Nichol & Dhariwal 2021.

Command:   jaxdiff train imagenet64_adm --data.name tfds:imagenet_resized/64x64 --mesh.fsdp 8
Cost:      540,000 steps of 2,048 images: weeks on 8 data-centre GPUs
Expected:  FID 2.07 with 250 steps (the paper's, table 5; not measured here)
"""

from jaxdiff import DiscreteVP, Eps, LearnedVariance, TimeIndex, cosine_betas
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import adm
from jaxdiff.train.ema import Ema

config = Config(
    name="imagenet64_adm",
    data=DataConfig(name="tfds:imagenet_resized/64x64", flip=True, workers=8),
    process=DiscreteVP(cosine_betas(1000)),
    parameterization=LearnedVariance(base=Eps(time=TimeIndex(1000)), time=TimeIndex(1000)),
    network=adm(64, dtype="bfloat16"),
    loss=LossConfig(vlb_weight=0.001),
    optimizer=OptimizerConfig(lr=3e-4, clip_norm=None),
    ema=Ema(0.9999),
    train=TrainConfig(steps=540_000, batch_size=2048, log_every=100, sample_every=10_000),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    sample=SampleConfig(sampler="ddpm:learned", steps=250, grid="uniform"),
)
