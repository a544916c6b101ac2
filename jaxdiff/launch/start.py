"""What a program sets up before JAX starts: XLA's flags, and where compiled programs are kept.

XLA reads the environment variable XLA_FLAGS once, when JAX makes its first device or array; importing JAX does not
count. A flag that it does not know ends the process. So `FLAGS` says of each flag which releases of jaxlib are known to
take it, and nothing else is ever set. The programs set flags (`train.py`, `sample.py`, `evaluate.py`, from a command
line), and who calls `set_up`; importing jaxdiff sets nothing. What the user has put in XLA_FLAGS stays and wins.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Flag(NamedTuple):
    """A flag for XLA, and where it is set."""

    backend: str
    """cpu, cuda, rocm or tpu."""
    flag: str
    since: tuple[int, ...]
    """First release of jaxlib that is known to take it."""
    before: tuple[int, ...]
    """First release after those."""
    why: str


FLAGS = (
    Flag(
        "cpu",
        "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
        (0, 10, 2),
        (0, 13),
        "YNNPACK runs single convolutions with small kernels on one core; without it U-Nets are 1.2 to 1.3 times as "
        "fast on two. Everything else stays with YNNPACK",
    ),
    Flag(
        "cuda",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        (0, 10, 2),
        (0, 13),
        "communication between devices runs beside computation, as JAX's GPU performance tips advise "
        "(https://docs.jax.dev/en/latest/gpu_performance_tips.html)",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Options that all programs have."""

    cache: bool = True
    """Keep compiled programs and decoded images on disk, so that the next start is faster."""
    xla_flags: bool = True
    """Set the flags of XLA that pay on this backend; on a CPU, start again with tcmalloc where it is installed."""


def flags_for(backend: str, jaxlib: str) -> list[str]:
    """The flags for a backend under a release of jaxlib; none for a release that is not known to take them.

    >>> flags_for("cuda", "0.10.2"), flags_for("cuda", "0.99"), flags_for("tpu", "0.10.2")
    (['--xla_gpu_enable_latency_hiding_scheduler=true'], [], [])
    """
    digits = re.match(r"\d+(\.\d+)*", jaxlib)
    release = tuple(map(int, digits[0].split("."))) if digits else ()
    return [row.flag for row in FLAGS if row.backend == backend and row.since <= release < row.before]


def likely_backend(environ: MutableMapping[str, str]) -> str:
    """The backend that JAX will choose, told without starting it: by JAX_PLATFORMS, else by the plugins installed.

    >>> likely_backend({"JAX_PLATFORMS": "cuda,cpu"})
    'cuda'
    """
    if asked := environ.get("JAX_PLATFORMS"):
        first = asked.split(",")[0]
        return {"gpu": "cuda"}.get(first, first)
    plugins = {"libtpu": "tpu", "jax_cuda13_plugin": "cuda", "jax_cuda12_plugin": "cuda", "jax_rocm7_plugin": "rocm"}
    return next((backend for name, backend in plugins.items() if importlib.util.find_spec(name)), "cpu")


def set_up(arguments: Sequence[str] = (), environ: MutableMapping[str, str] | None = None) -> None:
    """Adds to XLA_FLAGS what pays on this backend, unless the command line has ``--no-xla-flags``.

    A command's first line, and a notebook's before it uses JAX. A configuration file too may use JAX, so a command line
    is not parsed yet.

    Args:
      arguments: of the command line.
      environ: where to set them; None: the environment of this process.

    >>> environ = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--mine"}
    >>> set_up(["--no-xla-flags"], environ)
    >>> environ["XLA_FLAGS"]
    '--mine'
    """
    if declined(arguments):
        return
    environ = os.environ if environ is None else environ
    given = environ.get("XLA_FLAGS", "").split()
    named = {flag.split("=")[0] for flag in given}
    more = flags_for(likely_backend(environ), importlib.metadata.version("jaxlib"))
    if more := [flag for flag in more if flag.split("=")[0] not in named]:
        environ["XLA_FLAGS"] = " ".join([*given, *more])


def declined(arguments: Sequence[str]) -> bool:
    """Whether the command line has ``--no-xla-flags``."""
    return "--no-xla-flags" in {argument.replace("_", "-") for argument in arguments}


def keep_compiled(cache: bool = True) -> Path | None:
    """Keeps what jax compiles in the user's cache folder, so that a second run starts faster.

    JAX_COMPILATION_CACHE_DIR, where it is set, says which folder instead.

    Args:
      cache: False keeps nothing, and reads nothing kept.

    Returns:
      The folder; None where nothing is kept.
    """
    import jax

    if not cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
        folder = str(Path(base or Path.home() / ".cache") / "jaxdiff" / "jax")
        jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return Path(folder)
