"""MNIST, 28x28, by class: the digits' recipe on 60,000 images.

Command:   jaxdiff train mnist_unet --data.path DIR      (DIR holds train.parquet)
           jaxdiff train mnist_unet --data.name tfds:mnist
           on an accelerator, a larger one: --network.width 64 --train.batch_size 128 --train.steps 20000
Cost:      about 3 minutes on two CPU cores
Expected:  a classifier agrees with the label asked for on at least 85% of samples (benchmarks/quality_mnist.py)
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="mnist",
    data=DataConfig(name="mnist"),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=28,
        in_channels=1,
        width=16,
        multipliers=(1, 2, 4),
        blocks=1,
        attention_resolutions=(7,),
        num_classes=10,
    ),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=1000, batch_size=32, log_every=50, sample_every=500),
    checkpoint=CheckpointConfig(every=500, keep=2),
    sample=SampleConfig(sampler="ddim", steps=40, grid="uniform", guide=("cfg:2",), num=100),
)
