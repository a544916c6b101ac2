"""Execute the notebooks, as Jupyter would, each in its own folder: `python docs/execute.py [SCRIPT...]`.

From `docs/notebooks/NAME.py` it writes `NAME.ipynb` with its outputs, and `NAME.png`, its first figure: the site shows
both. One that is newer than its script is left as it is; all others run side by side.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def stale(script: Path) -> bool:
    executed = script.with_suffix(".ipynb")
    return not executed.exists() or executed.stat().st_mtime <= script.stat().st_mtime


def execute(script: Path) -> None:
    import jupytext
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = jupytext.read(script)
    with tempfile.TemporaryDirectory() as sockets:  # no ports: kernels that start at the same time take the same ones
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        resources = {"metadata": {"path": str(script.parent)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources, config=config).execute()
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    figure = next(data["image/png"] for data in outputs if "image/png" in data)
    script.with_suffix(".png").write_bytes(base64.b64decode(figure))  # the gallery's picture
    partial = script.with_suffix(".part")
    partial.write_text(jupytext.writes(notebook, fmt="ipynb"))
    os.replace(partial, script.with_suffix(".ipynb"))


def main(scripts: list[Path]) -> int:
    """Executes the stale ones of ``scripts``, each in a process; returns how many failed."""
    scripts = [script for script in scripts if stale(script)]
    if len(scripts) == 1:
        execute(scripts[0])
        return 0
    jobs = []
    for script in scripts:  # side by side: each compiles and computes on little more than one core
        print("+", script, flush=True)
        jobs.append(subprocess.Popen([sys.executable, __file__, str(script)]))
    return sum(job.wait() != 0 for job in jobs)


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    sys.exit(main(named or sorted(Path(__file__).parent.glob("notebooks/*.py"))))
