"""Emoji, 32x32 in colour, by their names: "grinning face with smiling eyes".

The vocabulary is the words of the 1,715 training captions. A word of none of them is unknown, and more than half of
the test captions have one. The words' encoder is trained along with the denoiser, which is told its last state and
attends to its tokens (Chen et al. 2023, PixArt-alpha, section 2.3). Captions are dropped for guidance (Ho & Salimans
2022). Under the most noise the caption alone tells the picture, and 1,715 pictures take long to learn. So times lie
towards noise: logit-normal with a positive mean (Esser et al. 2024, section 3.1).

Command:   jaxdiff train emoji_text --data.path DIR      (DIR holds train.parquet and test.parquet: columns image, text)
           jaxdiff sample runs/emoji_text --prompt "red heart" --num 4
Cost:      half an hour on two CPU cores
Expected:  of 200 training captions, 99.5% of the samples are nearest to their own picture
           (benchmarks/quality_text.py, docs/results.md)
"""

from jaxdiff import CosineVP, LogitNormal, V
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.data.tokenizers import Words
from jaxdiff.networks import DiT, Text
from jaxdiff.train.ema import Ema

config = Config(
    name="emoji_text",
    data=DataConfig(name="parquet", image_size=32, resize=True),
    tokenizer=Words(length=16, size=1680),
    process=CosineVP(),
    parameterization=V(),
    network=DiT(
        in_channels=3,
        patch=4,
        width=128,
        depth=5,
        heads=4,
        conditions=(Text("text", vocabulary=1680, length=16, width=128, depth=1, heads=4),),
    ),
    loss=LossConfig(time=LogitNormal(1.2, 1.2), dropout={"text": 0.1}),
    optimizer=OptimizerConfig(lr=1e-3, b2=0.99, schedule="cosine", warmup=100, final_fraction=0.02),
    ema=Ema(0.999),
    train=TrainConfig(steps=18_500, batch_size=16, log_every=100, sample_every=4625),
    checkpoint=CheckpointConfig(every=2000, keep=2),
    sample=SampleConfig(sampler="ddim", steps=40, grid="uniform", guide=("cfg:2",), num=96),
)
