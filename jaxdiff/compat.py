"""APIs of dependencies that may move with a release: experimental, for extensions, or private.

The package takes each of them from here, so that a release that moves one is answered in one place. They are imported
when they are first asked for. `tests/test_compat.py` says of each what is expected of it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import operator
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.experimental import checkify, mesh_utils, multihost_utils
    from jax.experimental.compilation_cache import compilation_cache
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu_flash_attention
    from jax.extend.core import get_opaque_trace_state
    from orbax.checkpoint.path.atomicity import AtomicRenameTemporaryPath
    from orbax.checkpoint.utils import TMP_DIR_SUFFIX

HOMES = {
    "AtomicRenameTemporaryPath": ("orbax.checkpoint.path", "atomicity.AtomicRenameTemporaryPath"),
    "TMP_DIR_SUFFIX": ("orbax.checkpoint.utils", "TMP_DIR_SUFFIX"),
    "checkify": ("jax.experimental.checkify", None),
    "compilation_cache": ("jax.experimental.compilation_cache.compilation_cache", None),
    "get_opaque_trace_state": ("jax.extend.core", "get_opaque_trace_state"),
    "mesh_utils": ("jax.experimental.mesh_utils", None),
    "multihost_utils": ("jax.experimental.multihost_utils", None),
    "tpu_flash_attention": ("jax.experimental.pallas.ops.tpu.flash_attention", None),
}
"""Name -> the module where it stands, and its name there; None: the module itself."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = HOMES[name]
    try:
        value: Any = importlib.import_module(module)
        value = value if attribute is None else operator.attrgetter(attribute)(value)
    except (ImportError, AttributeError) as error:
        package = "orbax-checkpoint" if module.startswith("orbax") else "jax"
        raise ImportError(
            f"{package} {importlib.metadata.version(package)} has no {'.'.join(filter(None, HOMES[name]))}, which "
            f"jaxdiff needs: {error}"
        ) from error
    setattr(sys.modules[__name__], name, value)  # asked for once
    return value


__all__ = [
    "HOMES",
    "TMP_DIR_SUFFIX",
    "AtomicRenameTemporaryPath",
    "checkify",
    "compilation_cache",
    "get_opaque_trace_state",
    "mesh_utils",
    "multihost_utils",
    "tpu_flash_attention",
]
