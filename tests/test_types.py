"""The check that the package's annotations are true: every doctest runs with beartype behind each function and method.

CI's stage `doctests` (.ci/run) makes it of the package; here it is made of modules whose annotations are known.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]

MODULE = '''
from __future__ import annotations
import jax
import jax.numpy as jnp
from jax import Array
from jaxdiff.record import record
from jaxtyping import Float

@record
class Line:
    """
    >>> line = Line(jnp.ones(3))
    >>> jax.tree.structure(line).unflatten([object()]).slope is not None
    True
    >>> jax.jit(jax.vmap(lambda x: line(x)))(jnp.ones((2, 3))).shape
    (2, 3)
    """
    slope: Array
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return (self.slope * x)CUT

def twice(x: KIND) -> KIND:
    """
    >>> twice(jnp.ones(2)).shape
    (2,)
    """
    return 2 * x
'''


def doctests(run_python: Run, package: str, *arguments: str | Path, path: Path | None = None) -> Done:
    checker = str(Path(__file__).parent)  # jaxtyping imports the first part of a checker's dotted name, no more
    env = {"PYTHONPATH": os.pathsep.join([checker, *([str(path)] if path else [])])}
    check = f"--jaxtyping-packages={package},typechecker.functions_only"
    return run_python(
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--doctest-modules",
        check,
        *arguments,
        env=env,
        check=False,
    )


def test_the_check_itself(tmp_path: Path, run_python: Run) -> None:
    """It passes a true module, rebuilt pytrees and tracers included, and names each untrue annotation."""
    package = tmp_path / "fakepackage"
    package.mkdir()
    modules = {
        "true": ("", "Array"),
        "axis": ("[:2]", "Array"),
        "rank": ("", 'Float[Array, "2 2"]'),
        "kind": ("", "int"),
    }
    for name, (cut, kind) in modules.items():
        (package / f"{name}.py").write_text(MODULE.replace("CUT", cut).replace("KIND", kind))
    (package / "__init__.py").write_text("")
    done = doctests(run_python, "fakepackage", package, "--rootdir", tmp_path, "-c", "pyproject.toml", path=tmp_path)
    failed = re.findall(r"^FAILED \S+::fakepackage\.([\w.]+)", done.stdout, re.MULTILINE)
    assert sorted(failed) == ["axis.Line", "kind.twice", "rank.twice"], done.stdout
    assert " 5 passed" in done.stdout
    assert "TypeCheckError" in done.stdout
