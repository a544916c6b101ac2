"""Published weights, in and out: the layouts of diffusers and transformers, and those of papers' own repositories.

`load_pipeline` reads a whole pipeline as one model that samples, `load_network` one network of a folder, and
`write_network` writes it back; `load_original` reads the one file of a paper's model, and `write_original` writes it.
Networks are exact to float32 rounding; `Pretrained.sample` with ``strict=True`` takes the steps of diffusers' own
scheduler.
`write_network` writes it back. Networks are exact to float32 rounding; `Pretrained.sample` with ``strict=True`` takes
the steps of diffusers' own scheduler. Other layouts: one file of a whole Stable Diffusion (`load_pipeline`,
`write_single_file`), folders of Flax, archives of NumPy, DiT's and SiT's authors (`load_dit`), and files of torch by
way of `jaxdiff.pretrained.convert`.
"""

from jaxdiff.pretrained.dit_files import dit_model, load_dit, write_dit
from jaxdiff.pretrained.embeddings import Embeddings, load_embeddings, write_embeddings
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import FAMILIES, Loaded, load_network, write_network
from jaxdiff.pretrained.kinds import KINDS
from jaxdiff.pretrained.lora import Lora, load_lora, write_lora
from jaxdiff.pretrained.lora_trained import trained_lora
from jaxdiff.pretrained.model import LongPrompt, Pretrained
from jaxdiff.pretrained.origin import Origin
from jaxdiff.pretrained.originals import ORIGINALS, load_original, write_original
from jaxdiff.pretrained.pipeline import load_pipeline
from jaxdiff.pretrained.saving import save_pipeline
from jaxdiff.pretrained.schedulers import SCHEDULERS
from jaxdiff.pretrained.single_file import SingleFile, read_single_file, write_single_file

__all__ = [
    "FAMILIES",
    "KINDS",
    "ORIGINALS",
    "SCHEDULERS",
    "Embeddings",
    "Loaded",
    "LongPrompt",
    "Lora",
    "Origin",
    "Pretrained",
    "PretrainedError",
    "SingleFile",
    "dit_model",
    "load_dit",
    "load_embeddings",
    "load_lora",
    "load_network",
    "load_original",
    "load_pipeline",
    "read_single_file",
    "save_pipeline",
    "trained_lora",
    "write_dit",
    "write_embeddings",
    "write_lora",
    "write_network",
    "write_original",
    "write_single_file",
]
