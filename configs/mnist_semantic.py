"""MNIST from semantic maps: a ControlNet (Zhang et al. 2023, arXiv:2302.05543) beside a network that stays as it is.

The network is that of a finished run of configs/mnist_unet.py, whose weights are not trained. The ControlNet, a copy of
its encoder, is told a map of 11 classes, the background and ten digits, in blocks of 4x4 pixels
(jaxdiff/data/mnist_maps.py): which digit, and roughly where its ink is. Half of the samples lose their label, so that
the map is read in its place (section 3.3 there); a tenth lose the map, so that guidance may lead towards it:
run.sample(0, 8, {"control": ids}), with ids (28, 28) from 0 to 10.

Command:   python train.py configs/mnist_semantic.py --data.path DIR --init-from RUN      (DIR holds train.parquet)
           python sample.py runs/mnist_semantic --control map.png
Cost:      18 minutes on two CPU cores under a load of 14 programs, after that run
Expected:  a classifier takes 86 of 100 samples for the digit of their map, and 92% of their ink is where the map has it
           (benchmarks/quality_conditions.py, docs/results.md)
"""

import dataclasses

from jaxdiff.codecs import Images, SemanticMap
from jaxdiff.config import load_config_file
from jaxdiff.networks import Controlled, ControlNet

base = load_config_file("mnist_unet")
semantic = ControlNet(base.network, "semantic", classes=11, size=(28, 28), widths=(16, 16), halving=False)
config = dataclasses.replace(
    base,
    name="mnist_semantic",
    data=dataclasses.replace(base.data, name="mnist_maps"),
    network=Controlled(base.network, (semantic,)),
    codec=SemanticMap(Images((28, 28, 1)), classes=11),
    loss=dataclasses.replace(base.loss, dropout={"label": 0.5, "control": 0.1}),
    train=dataclasses.replace(base.train, steps=500, freeze=("base",)),
)
