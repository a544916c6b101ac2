"""Published weights, in and out: the layouts of diffusers and transformers, and those of papers' own repositories.

`load_pipeline` reads a whole pipeline as one model that samples, `load_network` one network of a folder, and
`write_network` writes it back; `load_original` reads the one file of a paper's model, and `write_original` writes it.
Networks are exact to float32 rounding; `Pretrained.sample` with ``strict=True`` takes the steps of diffusers' own
scheduler.
"""

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import FAMILIES, Loaded, load_network, write_network
from jaxdiff.pretrained.originals import ORIGINALS, load_original, write_original
from jaxdiff.pretrained.pipeline import KINDS, Pretrained, load_pipeline
from jaxdiff.pretrained.schedulers import SCHEDULERS

__all__ = [
    "FAMILIES",
    "KINDS",
    "ORIGINALS",
    "SCHEDULERS",
    "Loaded",
    "Pretrained",
    "PretrainedError",
    "load_network",
    "load_original",
    "load_pipeline",
    "write_network",
    "write_original",
]
