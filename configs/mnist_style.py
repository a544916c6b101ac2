"""MNIST by class and by style: a label and a vector of two numbers, the strokes' width and slant, at once.

The style is measured from the pictures (jaxdiff/codecs/strokes.py) and enters the network as a continuous condition
(Ding et al. 2021, "CcGAN", https://arxiv.org/abs/2011.07466); label and style are dropped independently of each other
(Ho & Salimans 2022), so that either may be left out: run.sample(0, 8, {"label": 3, "style": [3.0, 0.5]}), {"label": 3},
{"style": [3.0, 0.5]}.

Command:   python train.py configs/mnist_style.py --data.path DIR      (DIR holds train.parquet)
Cost:      about 5 minutes on two CPU cores
Expected:  width and slant measured on samples correlate with those asked for at 0.96 and 0.95: docs/results.md
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.codecs import Strokes
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import UNet, Vector
from jaxdiff.train.ema import Ema

config = Config(
    name="mnist_style",
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
        conditions=(Vector("style", 2, mean=(2.41, 0.11), std=(0.60, 0.28)),),  # of the 60,000 pictures
    ),
    codec=Strokes((28, 28, 1)),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1, "style": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=1000, batch_size=32, log_every=50, sample_every=500),
    checkpoint=CheckpointConfig(every=500, keep=2),
    sample=SampleConfig(sampler="ddim", steps=40, grid="uniform", guide=("cfg:2",), num=100),
)
