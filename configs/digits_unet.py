"""Handwritten digits, 8x8, by class: the default experiment.

A cosine process and v-prediction (Salimans & Ho 2022, "Progressive Distillation"), with label dropout for guidance
(Ho & Salimans 2022).

Command:   jaxdiff train
Data:      1,797 real digits of the UCI set, carried in the package; 80% of them are trained on
Cost:      at most 5 minutes on two CPU cores
Expected:  an SVC recognises at least 95% of samples as the class asked for (benchmarks/quality_digits.py)
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="digits",
    data=DataConfig(name="digits"),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=8,
        in_channels=1,
        width=32,
        multipliers=(1, 2),
        blocks=2,
        attention_resolutions=(4,),
        num_classes=10,
        dropout=0.1,
    ),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=100, final_fraction=0.05),
    ema=Ema(0.995),
    train=TrainConfig(steps=1500, batch_size=64, log_every=50, sample_every=500),
    checkpoint=CheckpointConfig(every=500, keep=2),
    sample=SampleConfig(sampler="ddim", steps=40, grid="uniform", num=100),
)
