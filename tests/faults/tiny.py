"""The run of the fault tests: as small as a transformer on real digits gets, with a part of every kind that a restart
must bring back: dropout's and label dropout's randomness, an importance-sampling history, Adam's moments, a schedule,
an average of the weights, and mirrored images. Every step is logged.
"""

from jaxdiff import CosineVP, V
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import DiT
from jaxdiff.times import LossSecondMoment
from jaxdiff.train.ema import Ema

config = Config(
    name="tiny",
    data=DataConfig(name="digits", flip=True),
    process=CosineVP(),
    parameterization=V(),
    network=DiT(in_channels=1, patch=4, width=16, depth=1, heads=2, num_classes=10, dropout=0.1),
    loss=LossConfig(time=LossSecondMoment(bins=4, length=3), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=10, weight_decay=0.01),
    ema=Ema(0.9),
    train=TrainConfig(steps=48, batch_size=16, log_every=1, sample_every=0),
    checkpoint=CheckpointConfig(every=3, keep=2),
    sample=SampleConfig(steps=3, num=4),
)
