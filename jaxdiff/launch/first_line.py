"""What a command says first."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from jaxdiff.launch.allocator import used
from jaxdiff.launch.start import FLAGS


def first_line(kept: Path | None) -> str:
    """What a program says first: JAX and its devices, the folder of compiled programs, the flags set, tcmalloc.

    Args:
      kept: from `keep_compiled`.
    """
    devices = f"{jax.device_count()} {jax.default_backend()} device{'s' if jax.device_count() > 1 else ''}"
    cache = "not kept" if kept is None else f"kept in {kept} (--no-cache: not)"
    ours = {row.flag for row in FLAGS}
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag in ours]
    if library := used():
        flags.append(f"and {library}" if flags else str(library))
    said = f"XLA runs with {' '.join(flags)} (--no-xla-flags: without)" if flags else "no XLA flags set"
    return f"JAX {jax.__version__} on {devices}; compiled programs are {cache}; {said}"
