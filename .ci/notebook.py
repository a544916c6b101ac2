"""Execute a jupytext notebook as Jupyter would, in its own folder: `python .ci/notebook.py docs/notebooks/NAME.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

path = Path(sys.argv[1])
NotebookClient(
    jupytext.read(path), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
).execute()
