"""The site: `python -m sphinx -W --keep-going docs site`. Notebooks that have changed are executed first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version as installed
from importlib.resources import files
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "jaxdiff"
author = "The jaxdiff authors"
copyright = author
version = release = installed("jaxdiff")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "api",
]
exclude_patterns = ["launch", "**/.ipynb_checkpoints"]
default_role = "name"

# Markdown, and notebooks that docs/execute.py has executed.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
aliases = ["Array", "ArrayLike", "Cond", "History", "Memory", "NoiseSource", "Params", "PyTree"]
autodoc_type_aliases = {name: name for name in aliases}
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
viewcode_line_numbers = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "jaxdiff"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}

# MathJax is served with the site: its combined script and its fonts, from the package that has them.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"chtml": {"displayAlign": "left", "displayIndent": "1em"}, "options": {"enableMenu": False}}


def execute_notebooks(app: Sphinx, config: object) -> None:
    subprocess.run([sys.executable, str(HERE / "execute.py")], check=True)


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        there, here = files("mathjax") / "static/mathjax/es5", Path(app.outdir) / "_static/mathjax"
        shutil.copytree(str(there / "output/chtml/fonts"), here / "output/chtml/fonts", dirs_exist_ok=True)
        shutil.copy(str(there / "tex-chtml.js"), here)


def setup(app: Sphinx) -> None:
    app.connect("config-inited", execute_notebooks)
    app.connect("build-finished", copy_mathjax)
