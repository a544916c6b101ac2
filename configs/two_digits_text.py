"""Two digits in a picture, by a caption: "a three left of a seven", "a zero above a four".

The words' encoder is a small transformer that is trained along with the denoiser, which attends to its tokens (Rombach
et al. 2022, section 3.3); captions are dropped for guidance (Ho & Salimans 2022). Twenty of the hundred pairs of digits
are in no training picture (jaxdiff/data/two_digits.py).

Command:   python train.py configs/two_digits_text.py
           python sample.py runs/two_digits_text --prompt "a three left of a seven" --num 20 --out x.npz
Data:      made of the real digits in the package
Cost:      at most 10 minutes on two CPU cores
Expected:  both digits right in 99.8% of prompts, and in 97.6% of those with a pair that was never trained on
           (benchmarks/quality_text.py, docs/results.md)
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.data.tokenizers import Words
from jaxdiff.networks import Text, UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="two_digits_text",
    data=DataConfig(name="two_digits"),
    tokenizer=Words(length=9, size=24),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=16,
        in_channels=1,
        width=32,
        multipliers=(1, 2, 2),
        blocks=1,
        attention_resolutions=(),
        transformer_layers=(0, 1, 1),
        heads=4,
        conditions=(Text("text", vocabulary=24, length=9, width=64, depth=2, heads=4),),
        dropout=0.1,
    ),
    loss=LossConfig(time=Stratified(), dropout={"text": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=100, final_fraction=0.05),
    ema=Ema(0.995),
    train=TrainConfig(steps=1600, batch_size=48, log_every=50, sample_every=800),
    checkpoint=CheckpointConfig(every=500, keep=2),
    sample=SampleConfig(sampler="ddim", steps=40, grid="uniform", guide=("cfg:2",), num=100),
)
