"""Published weights, in and out: the layouts of diffusers and transformers.

`load_network` reads one network of a published folder, `write_network` writes it back; both are exact.
"""

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import FAMILIES, Loaded, load_network, write_network

__all__ = ["FAMILIES", "Loaded", "PretrainedError", "load_network", "write_network"]
