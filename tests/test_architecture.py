"""The order of the modules, and a few rules of style that a program can see.

`LAYERS` is the tree of docs/design.md: a module imports only from lines above its own. A sub-package is one line;
inside it any import is fine that makes no circle.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = [
    {"record", "lazy", "compat"},
    {"broadcast", "spec"},
    {"noise", "similarity"},
    {"process"},
    {"schedule", "shifted"},
    {"discrete"},
    {"prediction"},
    {"parameterization"},
    {"denoiser"},
    {"exact"},
    {"guidance"},
    {"grid"},
    {"times", "variational"},
    {"loss"},
    {"score_matching"},
    {"sampling"},
    {"likelihood"},
    {"inverse"},
    {"networks"},
    {"autoencoding"},
    {"methods"},
    {"data"},
    {"codecs"},
    {"plan"},
    {"request"},
    {"model"},
    {"launch"},
    {"pretrained"},
    {"config"},
    {"train"},
    {"runs"},
    {"evaluate"},
    {"commands"},
    {"__main__"},
]
LINES_PER_FILE = 400
LONGER_WITH_REASON: dict[str, str] = {  # path -> why this file may pass LINES_PER_FILE
    "docs/notebooks/score_matching.py": "a notebook: half of it is text, and it is read from top to bottom",
    "docs/notebooks/sde_tour.py": "a notebook likewise",
}
TESTED_BESIDE = {  # modules without a test file of their own -> whose tests are theirs too
    "__main__": "commands",
    "request": "model",
    "broadcast": "noise",
    "denoiser": "guidance",
    "discrete": "process",
    "prediction": "parameterization",
    "schedule": "process",
    "shifted": "process",
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
FORBIDDEN_NNX = {"jit", "grad", "value_and_grad", "Optimizer", "sow", "BatchNorm", "BatchStat"}
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


# --- the checker


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(root: Path, package: str) -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, parsed."""
    files = sorted((root / package).rglob("*.py"))
    return {module_name(path, root): ast.parse(path.read_text(), str(path)) for path in files}


def imports_of(name: str, tree: ast.Module, modules: dict[str, ast.Module], is_package: bool) -> set[str]:
    """The modules of the package that this one imports, wherever in it the statement stands."""
    package = name.split(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == package}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".") if is_package else name.split(".")[:-1]
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base] if base else parents)
            if base.split(".")[0] == package:
                # `from package import module` names the module, `from package import thing` the package itself
                found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names}
    return found


def import_graph(root: Path, package: str = "jaxdiff") -> dict[str, set[str]]:
    modules = modules_of(root, package)
    packages = {module_name(path, root) for path in (root / package).rglob("__init__.py")}
    return {name: imports_of(name, tree, modules, name in packages) for name, tree in modules.items()}


def order_problems(graph: dict[str, set[str]], layers: list[set[str]]) -> list[str]:
    """Arrows that point down or sideways between the lines of the order, and modules that have no line."""
    line = {name: number for number, names in enumerate(layers) for name in names}
    problems = []
    for source, targets in sorted(graph.items()):
        if "." not in source:
            continue  # the package's own __init__ exports from everywhere
        here = source.split(".")[1]
        if here not in line:
            problems.append(f"{source} has no line in LAYERS")
            continue
        for target in sorted(targets):
            if "." not in target:
                problems.append(f"{source} imports the root package: name the module instead")
                continue
            there = target.split(".")[1]
            if there != here and line.get(there, len(layers)) >= line[here]:
                problems.append(f"{source} imports {target}, which does not stand above it")
    return problems


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, as the modules along it, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name, []):
            return found
    return []


def absolute_imports(tree: ast.Module) -> set[str]:
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}


def process_classes(*trees: ast.Module) -> set[str]:
    """Names of the classes that descend from the class Process."""
    names = {"Process"}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in classes:  # as often as the longest chain of bases can be
        names |= {c.name for c in classes if any(isinstance(b, ast.Name) and b.id in names for b in c.bases)}
    return names


def called_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def style_problems(tree: ast.Module, processes: set[str]) -> Iterator[str]:
    """What the design rules out, with its line number."""
    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx":
            found = f"nnx.{node.attr}" if node.attr in FORBIDDEN_NNX else ""
        elif isinstance(node, ast.ImportFrom) and node.module == "flax.nnx":
            found = ", ".join(f"nnx.{a.name}" for a in node.names if a.name in FORBIDDEN_NNX)
        elif isinstance(node, ast.Call) and called_name(node.func) in {"isinstance", "issubclass"}:
            tested = {called_name(n) for a in node.args[1:] for n in ast.walk(a) if isinstance(n, ast.expr)}
            found = f"isinstance of a process ({', '.join(sorted(tested & processes))})" if tested & processes else ""
        elif isinstance(node, ast.MatchClass) and called_name(node.cls) in processes:
            found = f"a match on a process ({called_name(node.cls)})"
        elif isinstance(node, ast.ExceptHandler) and all(
            isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            for s in node.body
        ):
            found = "a silent except"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found = "" if isinstance(node.value, ast.Constant) and node.value.value is False else "allow_pickle"
        if not found and isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found = ", ".join(n for n in names if n.split(".")[0] in FORBIDDEN_IMPORTS)
        if found:
            yield f"line {getattr(node, 'lineno', '?')}: {found}"


def python_files(root: Path) -> list[Path]:
    folders = ("jaxdiff", "configs", "tests", "benchmarks", "docs")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    return sorted([*files, *root.glob("*.py")])


# --- the repository


def test_imports_point_up() -> None:
    assert order_problems(import_graph(ROOT), LAYERS) == []


def test_imports_make_no_circle() -> None:
    assert circle(import_graph(ROOT)) == []


def test_design_shows_the_same_order() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    shown = re.findall(r"^ {2}(\S.*?)(?:  |$)", text.split("\njaxdiff/\n")[1].split("\n```")[0], re.MULTILINE)
    lines = [{name.removesuffix(".py").removesuffix("/") for name in line.split()} for line in shown]
    present = {p.stem for p in (ROOT / "jaxdiff").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert [names for names in lines if names] == [present & names for names in LAYERS if present & names]


def test_style() -> None:
    processes = process_classes(*modules_of(ROOT, "jaxdiff").values())
    assert {"VP", "DiscreteVP"} < processes
    problems = [
        f"{path.relative_to(ROOT)} {problem}"
        for path in python_files(ROOT)
        if "tests" not in path.relative_to(ROOT).parts
        for problem in style_problems(ast.parse(path.read_text()), processes)
    ]
    assert problems == []


def test_names_and_lengths() -> None:
    files = python_files(ROOT)
    assert [str(p) for p in files if p.stem in FORBIDDEN_NAMES or p.parent.name in FORBIDDEN_NAMES] == []
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    long = {name for name, length in lengths.items() if length > LINES_PER_FILE}
    assert long == set(LONGER_WITH_REASON)


def test_imports_are_declared() -> None:
    """What the package and the two programs import is among the dependencies, not only among theirs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[><=\[ ]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    trees = [*modules_of(ROOT, "jaxdiff").values(), *(ast.parse(p.read_text()) for p in ROOT.glob("*.py"))]
    names = {name.split(".")[0] for tree in trees for name in absolute_imports(tree)} - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    needed = {name: {d.lower().replace("_", "-") for d in distributions.get(name, [name])} for name in names}
    assert {name for name, of in needed.items() if not of & declared} - {"jaxdiff", "configs"} == set()


def fragile_imports(tree: ast.Module) -> set[str]:
    """Imports of what JAX calls experimental or an extension, and of modules whose names begin with an underscore."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    names = absolute_imports(tree) | {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    return {n for n in names if re.match(r"jax\.(experimental|extend)\b", n) or re.search(r"\._[a-z]", n)}


def test_fragile_apis_come_from_compat() -> None:
    modules = modules_of(ROOT, "jaxdiff")
    found = {name: fragile_imports(tree) for name, tree in modules.items() if name != "jaxdiff.compat"}
    assert {name: names for name, names in found.items() if names} == {}
    assert fragile_imports(modules["jaxdiff.compat"]) > {"jax.experimental.checkify", "jax.extend.core"}
    assert fragile_imports(ast.parse("import jax._src.core\nfrom jax.experimental import x")) == {
        *("jax._src.core", "jax.experimental", "jax.experimental.x")
    }


def test_tests_mirror_the_package() -> None:
    """Each module and each sub-package has a test file or a folder of them, named after it or in TESTED_BESIDE."""
    names = {p.stem for p in (ROOT / "jaxdiff").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    places = {p.stem.removeprefix("test_") for p in (ROOT / "tests").iterdir() if not p.name.startswith(("_", "."))}
    assert {n for n in names - {"__init__"} if TESTED_BESIDE.get(n, n) not in places} == set()
    assert [n for n in TESTED_BESIDE if n not in names or n in places] == []


# --- the checker itself


def fake_package(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"__init__": "", **files}.items():
        path = root / "jaxdiff" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FAKE_LAYERS = [{"low"}, {"middle"}, {"high"}]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"low": "from jaxdiff import high", "high": ""}, "jaxdiff.low imports jaxdiff.high"),
        ({"low": "def f():\n    import jaxdiff.high", "high": ""}, "jaxdiff.low imports jaxdiff.high"),
        ({"low": "from .high import thing", "high": "thing = 1"}, "jaxdiff.low imports jaxdiff.high"),
        ({"low": "from . import high", "high": ""}, "jaxdiff.low imports jaxdiff.high"),
        ({"middle/__init__": "", "middle/a": "from ..high import x", "high": "x = 1"}, "jaxdiff.middle.a imports"),
        ({"middle/__init__": "from .. import high", "high": ""}, "jaxdiff.middle imports jaxdiff.high"),
        ({"high": "import jaxdiff"}, "jaxdiff.high imports the root package"),
        ({"high": "from jaxdiff import thing"}, "jaxdiff.high imports the root package"),
        ({"new": ""}, "jaxdiff.new has no line"),
        ({"low": "from jaxdiff.new import x", "new": "x = 1"}, "jaxdiff.low imports jaxdiff.new"),
    ],
)
def test_checker_sees_a_wrong_arrow(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    problems = order_problems(import_graph(fake_package(tmp_path, files)), FAKE_LAYERS)
    assert any(p.startswith(problem) for p in problems), problems


def test_checker_passes_right_arrows(tmp_path: Path) -> None:
    files = {
        "__init__": "from jaxdiff.high import thing",
        "low": "import jax",
        "middle/__init__": "from jaxdiff.middle.b import x",
        "middle/a": "from jaxdiff import low",
        "middle/b": "from jaxdiff.middle import a\nx = 1",
        "high": "from jaxdiff.middle import x\nfrom . import low\nthing = 1",
    }
    graph = import_graph(fake_package(tmp_path, files))
    assert graph["jaxdiff.high"] == {"jaxdiff.middle", "jaxdiff.low"}
    assert order_problems(graph, FAKE_LAYERS) == []
    assert circle(graph) == []


def test_checker_sees_a_circle(tmp_path: Path) -> None:
    files = {
        "middle/__init__": "",
        "middle/a": "from jaxdiff.middle import b",
        "middle/b": "from jaxdiff.middle.c import x",
        "middle/c": "from .a import y\nx = 1",
    }
    assert circle(import_graph(fake_package(tmp_path, files))) == [
        *("jaxdiff.middle.a", "jaxdiff.middle.b", "jaxdiff.middle.c", "jaxdiff.middle.a")
    ]


@pytest.mark.parametrize(
    "code",
    [
        "nnx.jit(f)",
        "from flax.nnx import Optimizer",
        "import pickle",
        "from joblib import dump",
        "isinstance(p, VP)",
        "isinstance(p, (int, process.Flow))",
        "match p:\n    case VP():\n        f()",
        "try:\n    f()\nexcept ValueError:\n    pass",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_checker_sees_bad_style(code: str) -> None:
    processes = process_classes(ast.parse("class Process: ...\nclass Flow(Process): ...\nclass VP(Flow): ..."))
    assert processes == {"Process", "Flow", "VP"}
    assert len(list(style_problems(ast.parse(code), processes))) == 1


def test_checker_passes_good_style() -> None:
    code = "from flax import nnx\nnnx.split(m)\nisinstance(p, int)\nnp.load(f, allow_pickle=False)\nimport json"
    assert list(style_problems(ast.parse(code), {"Process", "VP"})) == []
