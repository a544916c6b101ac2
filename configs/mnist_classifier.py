"""MNIST, 28x28: a classifier of noisy digits, which guides a model of the same process; as `digits_classifier`.

Command:   jaxdiff train mnist_classifier --data.path DIR      (DIR holds train.parquet and test.parquet)
           jaxdiff train mnist_classifier --data.name tfds:mnist
           jaxdiff sample runs/mnist --guide classifier:2,run=runs/mnist_classifier
Cost:      not measured yet
Expected:  not measured yet; `jaxdiff evaluate runs/mnist_classifier` gives its accuracy by noise level
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.config import CheckpointConfig, ClassifierConfig, DataConfig, OptimizerConfig, TrainConfig
from jaxdiff.networks import Classifier, UNet
from jaxdiff.train.ema import Ema

config = ClassifierConfig(
    name="mnist_classifier",
    data=DataConfig(name="mnist"),
    process=CosineVP(),
    parameterization=V(),
    network=Classifier(
        UNet(
            image_size=28,
            in_channels=1,
            width=16,
            multipliers=(1, 2, 4),
            blocks=1,
            attention_resolutions=(7,),
            head_width=16,
            scale_shift=True,
            residual_resampling=True,
        ),
        classes=10,
    ),
    time=Stratified(),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, weight_decay=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=1000, batch_size=64, log_every=50, sample_every=500),
    checkpoint=CheckpointConfig(every=500, keep=2),
)
