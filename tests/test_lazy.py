"""What `import jaxdiff` and its packages do not load, and that everything is there when asked for."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from jaxdiff.lazy import lazily

HEAVY = (
    *("tensorflow_datasets", "tensorflow", "grain", "orbax", "pyarrow", "tyro", "tensorboardX", "matplotlib"),
    *("sklearn", "scipy.stats", "pandas", "beartype"),
)
REPORT = """
import json, sys
def loaded(statement):
    exec(statement)
    return sorted(sys.modules)
statements = json.loads(sys.argv[1])
print(json.dumps([loaded(statement) for statement in statements]))
"""


def test_what_an_import_does_not_load(run_python: Any) -> None:
    """One process, from the lightest import to the heaviest; JAX is not started by any of them."""
    statements = [
        "import jaxdiff",
        "import jaxdiff.networks, jaxdiff.data, jaxdiff.config",
        "from jaxdiff.train import make_optimizer, compile_step",
        "from jaxdiff import Run",
        "import train, sample, evaluate; from jax._src import xla_bridge; assert not xla_bridge._backends",
    ]
    done = run_python("-c", REPORT, json.dumps(statements))
    first, parts, training, run, programs = (set(names) for names in json.loads(done.stdout))
    assert "jax" in first
    assert {name for name in (*HEAVY, "PIL", "flax", "optax") if name in first} == set()
    assert {name for name in HEAVY if name in parts | training} == set()
    assert {name for name in HEAVY if name in run} == {"orbax"}
    assert {"tensorflow_datasets", "tensorflow", "pyarrow", "grain", "matplotlib", "sklearn"} & programs == set()
    assert "tyro" in programs


@pytest.mark.parametrize("package", ["jaxdiff", "jaxdiff.data", "jaxdiff.config", "jaxdiff.train", "jaxdiff.networks"])
def test_every_public_name_is_found(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import jaxdiff.data

    monkeypatch.delitem(vars(jaxdiff.data), "open_digits", raising=False)
    calls: list[str] = []
    find = lazily("jaxdiff.data", {"open_digits": "arrays"})

    def counting(name: str) -> Any:
        calls.append(name)
        return find(name)

    monkeypatch.setattr(jaxdiff.data, "__getattr__", counting)
    assert jaxdiff.data.open_digits is jaxdiff.data.open_digits
    assert calls == ["open_digits"]
