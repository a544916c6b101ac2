"""Two digits by a caption in a cascade, first stage: 16x16 (Saharia et al. 2022, "Imagen", arXiv:2205.11487, in small).

It is the recipe of `two_digits_text`, whose words' encoder is trained along.

Command:   jaxdiff train two_digits_cascade_16
           jaxdiff train two_digits_cascade_32
           echo '{"stages": ["two_digits_cascade_16", {"run": "two_digits_cascade_32", "level": 0.1}]}' > runs/two.json
           jaxdiff sample runs/two.json --prompt "a three left of a seven" "a zero above a four"
Data:      made of the real digits in the package
Cost:      at most 10 minutes on two CPU cores
Expected:  of this stage what two_digits_text shows: both digits right in 99.8% of prompts (docs/results.md). Not
           measured under this name
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.data.tokenizers import Words
from jaxdiff.networks import Text, UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="two_digits_cascade_16",
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
