"""The README's commands, so that what CI runs and what a newcomer reads cannot drift.

`python .ci/readme.py train` (or `sample`, `test`) prints the first line of the README's ```sh blocks whose last command
runs train.py (sample.py, pytest).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MARKS = {"train": "python train.py", "sample": "python sample.py", "test": "python -m pytest"}


def shell_lines(text: str) -> list[str]:
    """The commands of every ```sh block, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def command(text: str, name: str) -> str:
    mark = MARKS[name]
    for line in shell_lines(text):
        if line.split("&&")[-1].strip().removeprefix(".venv/bin/").startswith(mark):
            return line
    raise SystemExit(f"README.md: no ```sh line whose last command begins with '.venv/bin/{mark}'")


if __name__ == "__main__":
    print(command((Path(__file__).parents[1] / "README.md").read_text(), sys.argv[1]))
