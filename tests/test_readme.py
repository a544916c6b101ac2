"""What the README and the documents say exists and runs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
Run = Callable[..., subprocess.CompletedProcess[str]]
README = (ROOT / "README.md").read_text()
CI = runpy.run_path(str(ROOT / ".ci" / "readme.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_newcomers_commands() -> None:
    """They stand as the project promises them, and each alone is enough on a new machine."""
    setup = "python3 -m venv .venv && .venv/bin/pip install -e"
    assert CI["command"](README, "train") == f"{setup} . && .venv/bin/python train.py"
    assert CI["command"](README, "test") == f"{setup} '.[test]' && .venv/bin/python -m pytest"
    assert CI["command"](README, "sample") == ".venv/bin/python sample.py runs/digits"


def test_commands_are_found_only_where_they_are() -> None:
    text = "```sh\n.venv/bin/python -m pytest  # all\n```\n```python\npython train.py\n```"
    assert CI["command"](text, "test") == ".venv/bin/python -m pytest"
    with pytest.raises(SystemExit, match=r"train\.py"):
        CI["command"](text, "train")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    absent = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    here = re.sub(r"https?://[^\s)]+", "", text)
    named = re.findall(r"(?:configs|docs|benchmarks|tests|jaxdiff|\.ci)/[\w./-]*\w", here)
    absent += [name for name in named if not (ROOT / name).exists()]
    assert absent == []


def test_every_configuration_is_listed() -> None:
    listed = set(re.findall(r"configs/\w+\.py", README))
    assert listed == {str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("[!_]*.py")}


def test_the_parts_table_names_public_things() -> None:
    import jaxdiff
    import jaxdiff.networks

    rows = README.split("| part |")[1].split("\n\n")[0].splitlines()[2:]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 30
    assert [n for n in names if not hasattr(jaxdiff, n) and not hasattr(jaxdiff.networks, n)] == []


def options_of(line: str) -> Iterator[tuple[str, str]]:
    """(program, option) of each --option on a line that runs train, sample or evaluate, as a file or as a command."""
    if match := re.search(r"\b(?:(train|sample|evaluate)\.py|jaxdiff (train|sample|evaluate))\b(.*)", line):
        for option in re.findall(r"--([\w.-]+)", match[3]):
            yield match[1] or match[2], option


def test_options_exist(run_python: Run) -> None:
    used = {
        pair
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        for pair in options_of(line)
    }
    assert {program for program, _ in used} == {"train", "sample", "evaluate"}
    for program in ("train", "sample", "evaluate"):
        text = run_python(f"{program}.py", "--help").stdout
        known = set(re.findall(r"--([\w.-]+)", text))
        assert {option.replace("_", "-") for name, option in used if name == program} <= {
            k.replace("_", "-") for k in known
        }


def run_block(code: str, name: str) -> None:
    """As a module of its own: dataclasses look their module up by name."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(code, name, "exec"), module.__dict__)
    finally:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory: pytest.TempPathFactory, run_python: Run) -> Path:
    """A folder in which runs/digits is a run: the default experiment, made small and stopped at once."""
    folder = tmp_path_factory.mktemp("readme")
    workdir = folder / "runs" / "digits"
    net = "--network.width 32 --network.multipliers 1 --network.blocks 1 --network.attention_resolutions 8"
    short = "--train.steps 2 --train.batch_size 16 --train.sample_every 0 --optimizer.warmup 1 --sample.steps 4"
    run_python("train.py", "--workdir", workdir, *net.split(), *short.split())
    return folder


def test_readme_runs(folder_with_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_with_run)
    code = blocks(ROOT / "README.md", "python")
    assert len(code) >= 2
    for number, block in enumerate(code):
        run_block(block, f"readme_{number}")


def test_how_to_runs_and_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/how_to.md, one after the other, in an empty folder."""
    logged: list[int] = []
    tracker = types.SimpleNamespace(init=lambda **_: None, log=lambda figures, step: logged.append(step))
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("how_to")
    monkeypatch.setitem(sys.modules, "how_to", module)
    code = blocks(ROOT / "docs" / "how_to.md", "python")
    assert len(code) == 15
    for number, block in enumerate(code):
        lines = [line for line in block.splitlines() if line.strip()]
        assert number == 0 or len(lines) <= 12, block
        exec(compile(block, f"how_to_{number}", "exec"), module.__dict__)
    assert logged and module.__dict__["kept"].x.shape == (3, 16, 2)


EXTENSIONS = blocks(ROOT / "docs" / "extending.md", "python")


@pytest.mark.parametrize("number", range(len(EXTENSIONS)))
def test_extensions_run_and_are_short(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxdiff.config import OBJECTIVES
    from jaxdiff.methods import SAMPLERS

    monkeypatch.chdir(tmp_path)  # one of them trains
    monkeypatch.setattr("jaxdiff.methods.SAMPLERS", dict(SAMPLERS))
    monkeypatch.setattr("jaxdiff.config.build.OBJECTIVES", dict(OBJECTIVES))
    code = EXTENSIONS[number]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 40 if "jaxdiff.fit(" in code else len(lines) < 20
    run_block(code, f"extension_{number}")
