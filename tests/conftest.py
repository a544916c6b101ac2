"""What every test stands on: strict broadcasting, caches, simulated devices, one trained run, the real data if present.

Most of the suite's time goes into compiling thousands of small programs, each run a few times, so XLA is told to spend
little on them (`QUICK_COMPILATION`): half the time in all. Programs as users compile them are run by the doctests, the
notebooks, the README's commands and the wheel, all in CI.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICK_COMPILATION = (  # for jaxlib 0.10: a flag that XLA does not know ends the process, and 0.12 does not know all
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_configure(config: pytest.Config) -> None:
    # Environment variables, so that the processes which tests start inherit them; jax reads them when it is imported.
    assert config.cache is not None
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # simulated devices and tight tolerances are about the CPU
    os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    os.environ.setdefault("JAXDIFF_STARTED_AGAIN", os.environ.get("LD_PRELOAD", ""))  # no command starts a second time
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
    if sys.dont_write_bytecode:  # the many processes that tests start would each compile every module's source anew
        del os.environ["PYTHONDONTWRITEBYTECODE"]
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(config.cache.mkdir("python"))
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    if "jax" in sys.modules:
        raise pytest.UsageError("jax was imported before tests/conftest.py could configure it (a plugin, or -p?)")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_let_go() -> Iterator[None]:
    # Each compiled program holds some memory mappings, and Linux allows a process 65,530: beyond, jaxlib crashes.
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _what_is_set_is_put_back() -> Iterator[None]:
    # Configurations that tests load add names to the tables, and commands called in this process set jax's options.
    import jax

    from jaxdiff import methods
    from jaxdiff.config import SOURCES

    tables: list[dict[str, Any]] = [SOURCES, methods.SAMPLERS, methods.GRIDS, methods.GUIDANCE, methods.CACHES]
    names = "enable_compilation_cache", "compilation_cache_dir", "persistent_cache_min_compile_time_secs"
    were = [dict(table) for table in tables]
    set_to = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    yield
    for table, before in zip(tables, were, strict=True):
        table.clear()
        table.update(before)
    for name, value in set_to.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout (cifar10/, mnist/); its tests skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of two steps with a tiny U-Net, its pictures included, for all tests that only read it."""
    from tests.tiny_run import train_once

    own = tmp_path_factory.getbasetemp()  # of this worker, in a folder that all workers share
    return train_once(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="module")
def tiny_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that run for one file of tests, which may go on with it."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("runs") / trained.name))


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python("-c", code, devices=8)`: a new Python in the repository's root, with simulated CPU devices.

    Returns the completed process (`stdout`, `stderr` as text). A non-zero exit fails the test with both printed, unless
    `check=False`. `env` adds variables; `timeout` is in seconds.
    """

    def run(
        *arguments: str | Path,
        devices: int = 1,
        env: dict[str, str] | None = None,
        timeout: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        # NPROC: with more simulated devices than cores, queued collectives can deadlock in a thread pool of `cores`.
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "32"}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # another process compiles the same
        environment |= env or {}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            pytest.fail(f"exit {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}", pytrace=False)
        return done

    return run
