"""MNIST from outlines: a ControlNet (Zhang et al. 2023, arXiv:2302.05543) beside a network that stays as it is.

The network is that of a finished run of configs/mnist_unet.py, whose weights are read from where they lie and are not
trained. The ControlNet, a copy of its encoder, is told the outlines of the picture, which the codec makes by Sobel's
operator (jaxdiff/codecs/outlines.py). At the start, and at --cond control_scale=0, samples are those of that run, bit
for bit. run.sample(0, 8, {"label": 3, "control": outlines, "control_scale": 0.7}).

Command:   python train.py configs/mnist_control.py --data.path DIR --init-from RUN      (DIR holds train.parquet)
Cost:      about 3 minutes on two CPU cores, after that run
Expected:  the outlines of samples correlate with those asked for: docs/conditions.md
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.codecs import Outlines
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import Controlled, ControlNet, UNet
from jaxdiff.train.ema import Ema

unet = UNet(
    image_size=28,
    in_channels=1,
    width=16,
    multipliers=(1, 2, 4),
    blocks=1,
    attention_resolutions=(7,),
    num_classes=10,
)
config = Config(
    name="mnist_control",
    data=DataConfig(name="mnist"),
    process=CosineVP(),
    parameterization=V(),
    network=Controlled(
        unet, (ControlNet(unet, "outlines", channels=1, size=(28, 28), widths=(16, 16), halving=False),)
    ),
    codec=Outlines((28, 28, 1)),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=1000, batch_size=32, log_every=50, sample_every=500, freeze=("base",)),
    checkpoint=CheckpointConfig(every=500, keep=2),
    sample=SampleConfig(sampler="ddim", steps=40, grid="uniform", guide=("cfg:2",), num=100),
)
