"""Published weights, in and out: the layouts of diffusers and transformers.

`load_pipeline` reads a whole pipeline as one model that samples, `load_network` one network of a folder, and
`write_network` writes it back. Networks are exact to float32 rounding; `Pretrained.sample` with ``strict=True`` takes
the steps of diffusers' own scheduler. Other layouts: one file of a whole Stable Diffusion (`load_pipeline`,
`write_single_file`), folders of Flax, archives of NumPy, DiT's and SiT's authors (`load_dit`), and files of torch by
way of `jaxdiff.pretrained.convert`.
"""

from jaxdiff.pretrained.dit_files import dit_model, load_dit, write_dit
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import FAMILIES, Loaded, load_network, write_network
from jaxdiff.pretrained.pipeline import KINDS, Pretrained, load_pipeline
from jaxdiff.pretrained.schedulers import SCHEDULERS
from jaxdiff.pretrained.single_file import SingleFile, read_single_file, write_single_file

__all__ = [
    "FAMILIES",
    "KINDS",
    "SCHEDULERS",
    "Loaded",
    "Pretrained",
    "PretrainedError",
    "SingleFile",
    "dit_model",
    "load_dit",
    "load_network",
    "load_pipeline",
    "read_single_file",
    "write_dit",
    "write_network",
    "write_single_file",
]
