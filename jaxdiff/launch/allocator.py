"""tcmalloc, where it is installed: a command on a CPU starts itself again with it, once.

A step on a CPU asks for hundreds of megabytes of intermediate values and frees them. glibc gives blocks of that size
back to the operating system, and each page of the next ones is new; tcmalloc keeps them. An allocator has to be there
before a process makes its first block, by LD_PRELOAD. So a command replaces itself by the same command line
(`os.execve`): the process, its terminal and its open files stay. Nothing of this happens on import or in a notebook.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import sysconfig
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from jaxdiff.launch.start import declined, likely_backend

STARTED_AGAIN = "JAXDIFF_STARTED_AGAIN"
"""Set for a process that was started again, to what LD_PRELOAD had been: it is not started another time."""
NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
ALLOCATORS = re.compile(r"tcmalloc|jemalloc|mimalloc|hoard|snmalloc|rpmalloc|tbbmalloc")
QUIET = "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD"
"""Above so many bytes tcmalloc dumps a stack trace; its default is 1 GiB (gperftools, docs/tcmalloc.html)."""

_used: Path | None = None


def start_again(arguments: Sequence[str]) -> None:
    """Starts this process again with tcmalloc, where that pays and can be done (`wanted`); else returns.

    A command's first line: whatever has been imported before is imported once more.

    Args:
      arguments: of the command line.
    """
    global _used
    if STARTED_AGAIN in os.environ:
        with_it, before = os.environ.get("LD_PRELOAD", ""), os.environ.pop(STARTED_AGAIN)
        os.environ.pop("LD_PRELOAD", None)
        if before:  # processes that this one starts have what they would have had
            os.environ["LD_PRELOAD"] = before
        _used = next((Path(name) for name in with_it.split(":") if "tcmalloc" in name and _is_loaded(name)), None)
        return
    library = wanted(arguments, os.environ)
    if library is None or not _can_be_repeated():
        return
    before = os.environ.get("LD_PRELOAD", "")
    environ = {QUIET: str(2**62), **os.environ, STARTED_AGAIN: before}
    environ["LD_PRELOAD"] = f"{library}:{before}" if before else str(library)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # one that comes meanwhile waits for the new first line
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        print(f"WARNING: no start with tcmalloc, {sys.executable}: {error.strerror}", file=sys.stderr)


def used() -> Path | None:
    """The library with which this process was started again."""
    return _used


def wanted(arguments: Sequence[str], environ: MutableMapping[str, str]) -> Path | None:
    """The library to start again with: on a CPU under Linux, where it is installed.

    None with ``--no-xla-flags`` or ``--help``, with an allocator in LD_PRELOAD, and where the user has set glibc's
    (MALLOC_*, GLIBC_TUNABLES).

    Args:
      arguments: of the command line.
      environ: of the process.

    >>> wanted(["--no-xla-flags"], {}), wanted([], {"JAX_PLATFORMS": "cuda"})
    (None, None)
    """
    theirs = ALLOCATORS.search(environ.get("LD_PRELOAD", "")) or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ
    )
    idle = declined(arguments) or {"-h", "--help"} & set(arguments)
    if sys.platform != "linux" or idle or theirs or likely_backend(environ) != "cpu":
        return None
    return find()


def find(folders: Sequence[str | Path] | None = None) -> Path | None:
    """tcmalloc, of gperftools (Debian and Ubuntu: the package libtcmalloc-minimal4), or None where it is not installed.

    Args:
      folders: where to look; None: this environment's, then the system's.
    """
    if folders is None:
        own = Path(sys.prefix, "lib"), Path("/usr/lib", sysconfig.get_config_var("MULTIARCH") or "")
        folders = [*own, "/usr/local/lib", "/usr/lib64", "/usr/lib"]
    files = (Path(folder, name) for name in NAMES for folder in folders)
    return next((file for file in files if _kind(file) == _kind(Path("/proc/self/exe"))), None)


def _kind(file: Path) -> bytes | None:
    """Word size and machine of an ELF file: the linker leaves out what is of another, with a message."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        head = stream.read(20)
    return head[:5] + head[18:20]


def _can_be_repeated() -> bool:
    """Whether the same command line would do the same: a file is run that can be read again, by no debugger or
    profiler, and by the process that the user has started."""
    watched = sys.gettrace() or sys.getprofile() or {"pydevd", "debugpy", "coverage", "cProfile"} & sys.modules.keys()
    child = multiprocessing.parent_process() is not None
    return not watched and not child and not _is_traced() and Path(sys.argv[0]).is_file()


def _is_traced() -> bool:
    """Whether a debugger such as gdb is attached."""
    return re.search(r"^TracerPid:\s*[1-9]", Path("/proc/self/status").read_text(encoding="ascii"), re.M) is not None


def _is_loaded(library: str) -> bool:
    return os.path.realpath(library) in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
