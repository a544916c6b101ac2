"""MNIST from outlines: a ControlNet (Zhang et al. 2023, arXiv:2302.05543) beside a network that stays as it is.

The network is that of a finished run of configs/mnist_unet.py. Its weights are read from where they lie and are not
trained. The ControlNet, a copy of its encoder, is told the outlines of the picture, which the codec makes by Sobel's
operator (jaxdiff/codecs/outlines.py). At the start, and with the scale 0, samples are those of that run:
run.sample(0, 8, {"label": 3, "control": outlines, "control_scale": 0.7}).

Command:   python train.py configs/mnist_control.py --data.path DIR --init-from RUN      (DIR holds train.parquet)
Cost:      about 4 minutes on two CPU cores, after that run
Expected:  the outlines of samples correlate with those given: docs/conditions.md
"""

import dataclasses

from jaxdiff.codecs import Outlines
from jaxdiff.config import load_config_file
from jaxdiff.networks import Controlled, ControlNet

base = load_config_file("mnist_unet")
outlines = ControlNet(base.network, "outlines", channels=1, size=(28, 28), widths=(16, 16), halving=False)
config = dataclasses.replace(
    base,
    name="mnist_control",
    network=Controlled(base.network, (outlines,)),
    codec=Outlines((28, 28, 1)),
    train=dataclasses.replace(base.train, freeze=("base",)),
)
