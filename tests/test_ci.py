"""What .ci/run leaves out of a stage is what it may leave out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_second_python_runs_a_file_of_every_folder() -> None:
    (listed,) = re.findall(r"^cover=\(\n(.*?)^\)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE | re.DOTALL)
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(listed.split())}"], capture_output=True, text=True)
    paths = [ROOT / word for word in words.stdout.split()]
    assert [path for path in paths if not path.is_file()] == []
    tests = {
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if not re.search(r"pytestmark = \[?pytest\.mark\.nightly", path.read_text())
    }
    assert {path.parent for path in paths} == {path.parent for path in tests}
