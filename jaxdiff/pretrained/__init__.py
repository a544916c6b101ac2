"""Published weights, in and out: the layouts of diffusers and transformers, and those of papers' own repositories.

`load_pipeline` reads a whole pipeline as one model that samples, from a folder or the one file of a Stable Diffusion
(`write_single_file`); `load_network` one network of a folder, also of Flax; `load_original` the one file of a paper's
model, and `load_dit` that of DiT's and SiT's authors. Each has its function that writes. Networks are exact to float32
rounding; `Pretrained.sample` with ``strict=True`` takes the steps of diffusers' own scheduler. Files of torch are read
by way of `jaxdiff.pretrained.convert`.
"""

from jaxdiff.pretrained.adapters.embeddings import Embeddings, load_embeddings, write_embeddings
from jaxdiff.pretrained.adapters.inversion import trained_embeddings
from jaxdiff.pretrained.adapters.lora import Lora, load_lora, write_lora
from jaxdiff.pretrained.adapters.lora_trained import trained_lora
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.kinds import KINDS
from jaxdiff.pretrained.layouts.dit import dit_model, load_dit, write_dit
from jaxdiff.pretrained.layouts.families import FAMILIES, Loaded, load_network, write_network
from jaxdiff.pretrained.layouts.originals import ORIGINALS, load_original, write_original
from jaxdiff.pretrained.layouts.single_file import SingleFile, read_single_file, write_single_file
from jaxdiff.pretrained.model import LongPrompt, Pretrained
from jaxdiff.pretrained.origin import Origin
from jaxdiff.pretrained.pipeline import load_pipeline
from jaxdiff.pretrained.saving import save_pipeline
from jaxdiff.pretrained.schedulers.classes import SCHEDULERS

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
    "trained_embeddings",
    "trained_lora",
    "write_dit",
    "write_embeddings",
    "write_lora",
    "write_network",
    "write_original",
    "write_single_file",
]
