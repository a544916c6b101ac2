"""Reading a run, a checkpoint or data never runs code from it."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sample
from jaxdiff.config import ConfigError, read_config
from jaxdiff.data import DataError, open_npz
from jaxdiff.runs.run import Run
from tests.commands.test_cli import one_line

ROOT = Path(__file__).resolve().parents[1]
RUNS_CODE = {"eval", "exec", "compile", "__import__", "system", "popen", "Popen", "import_module", "exec_module"}
ALLOWED = {  # file -> what may stand there, and why
    "jaxdiff/config/trust.py": {"exec_module", "import_module"},  # files and modules that the user names
    "jaxdiff/config/serialize.py": {"import_module"},  # of trusted modules only
    "jaxdiff/data/tokenizers.py": {"import_module"},  # of one package, which need not be there
    "jaxdiff/pretrained/origin.py": {"import_module"},  # of the Hub's package, which need not be there
    "jaxdiff/pretrained/convert.py": {"import_module"},  # of torch, which need not be there
    "jaxdiff/lazy.py": {"import_module"},  # of the package's own names
    "jaxdiff/commands/__init__.py": {"import_module"},  # of its own modules
    "jaxdiff/compat.py": {"import_module"},  # of dependencies, by the names that stand there
}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def test_the_package_neither_unpickles_nor_runs_what_it_reads() -> None:
    files = [*(ROOT / "jaxdiff").rglob("*.py"), *ROOT.glob("*.py")]
    assert len(files) > 50
    for path in files:
        text = path.read_text()
        for harmless in ("allow_pickle=False", "No pickle", "unpickled", "cannot be pickled", "a pickle of torch"):
            text = text.replace(harmless, "")
        assert "pickle" not in text, path
        name = path.relative_to(ROOT).as_posix()
        for call in calls(path):
            of_re = ast.unparse(call.func) in ("re.compile", "compiler.submit") or name_of(call) == "compile"
            run = {name_of(call)} & RUNS_CODE if not (of_re and isinstance(call.func, ast.Attribute)) else set()
            assert run <= ALLOWED.get(name, set()), f"{path}:{call.lineno} {run}"
            if ast.unparse(call.func) in ("np.load", "numpy.load", "np.lib.format.read_array"):
                assert "allow_pickle=False" in ast.unparse(call), f"{path}:{call.lineno}"


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Path:
    return tiny_run


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported, and leaves a file behind when it is."""
    touched = tmp_path / "was imported"
    (tmp_path / "jaxdiff_canary.py").write_text(
        f"import dataclasses, pathlib\npathlib.Path({str(touched)!r}).touch()\n"
        "@dataclasses.dataclass\nclass Thing:\n    x: int = 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return touched


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "jaxdiff_canary.Thing"])
@pytest.mark.parametrize("field", [(), ("ema",), ("network",), ("loss", "weight"), ("picture",)])
def test_a_configuration_names_only_the_packages_classes(
    path: str, field: tuple[str, ...], run: Path, canary: Path, tmp_path: Path, capsys: Any
) -> None:
    stored = json.loads((run / "config.json").read_text())
    poisoned = {"type": path, "args": f"touch '{canary}'", "x": 1}
    at: Any = stored
    for name in field[:-1]:
        at = at[name]
    stored = poisoned if not field else stored
    if field:
        at[field[-1]] = poisoned
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=f"type '{path}' is not from jaxdiff"):
        read_config(folder)
    assert path in one_line(sample.main, [str(folder)], capsys)
    assert not canary.exists() and "jaxdiff_canary" not in sys.modules


def test_a_checkpoints_notes_name_nothing_that_is_imported(run: Path, canary: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    file = folder / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    note = json.loads(file.read_text())
    note["item_handlers"] = dict.fromkeys(note["item_handlers"], "jaxdiff_canary.Thing")
    file.write_text(json.dumps(note))
    assert Run.load(folder).step == 2
    assert not canary.exists()


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    images = np.empty(3, object)
    images[:] = [Malice(touched)] * 3
    np.savez(tmp_path / "set.npz", images=images)
    with np.load(tmp_path / "set.npz", allow_pickle=True) as file:  # it would
        _ = file["images"]
    assert touched.exists()
    touched.unlink()
    with pytest.raises(DataError, match="array 'images' cannot be read"):
        open_npz(tmp_path / "set.npz")
    assert not touched.exists()
