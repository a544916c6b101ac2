"""Handwritten digits, 8x8: a classifier of noisy digits, which guides a model of the same process.

Classifier guidance (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4): half of the
U-Net of `digits_unet`, with ADM's blocks and attention pooling.

Command:   jaxdiff train digits_classifier
           jaxdiff sample runs/digits --guide classifier:2,run=runs/digits_classifier
Data:      1,797 real digits of the UCI set, carried in the package; 80% of them are trained on
Cost:      not measured yet on a machine of its own
Expected:  66.4 +- 0.7% of the test split right over all times; by quarters of t 98.0, 89.3, 56.9 and 21.4%
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.config import CheckpointConfig, ClassifierConfig, DataConfig, OptimizerConfig, TrainConfig
from jaxdiff.networks import Classifier, UNet
from jaxdiff.train.ema import Ema

config = ClassifierConfig(
    name="digits_classifier",
    data=DataConfig(name="digits"),
    process=CosineVP(),
    parameterization=V(),
    network=Classifier(
        UNet(
            image_size=8,
            in_channels=1,
            width=32,
            multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            head_width=16,
            scale_shift=True,
            residual_resampling=True,
            dropout=0.2,
        ),
        classes=10,
    ),
    time=Stratified(),
    optimizer=OptimizerConfig(lr=1e-3, schedule="cosine", warmup=100, weight_decay=0.05),
    ema=Ema(0.995),
    train=TrainConfig(steps=1000, batch_size=64, log_every=50, sample_every=500),
    checkpoint=CheckpointConfig(every=500, keep=2),
)
