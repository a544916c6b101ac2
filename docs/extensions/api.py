"""The pages of the API, from the package's public names: a table of them, then each part with its mathematics.

A page names modules or packages, in its order:

    .. api::
       jaxdiff.sampling.base
       jaxdiff.sampling

and shows each of their modules that has a public name (one in the ``__all__`` of a package); of a module that is named
in full and has none, its mathematics. A module is on the page that names it, or else on that of its nearest package. A
public name that is on no page is a warning, which fails the build. Docstrings are read as the project writes them:
indented blocks are equations, code or tables (`equations`).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import equations
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)
PACKAGE = "jaxdiff"


# --- names


def packages() -> list[ModuleType]:
    root = importlib.import_module(PACKAGE)
    names = [info.name for info in pkgutil.walk_packages(root.__path__, PACKAGE + ".") if info.ispkg]
    return [root, *map(importlib.import_module, names)]


def defines(module: str, name: str) -> bool:
    """Whether a module's source assigns or defines a name, rather than importing it."""
    source = importlib.util.find_spec(module)
    tree = ast.parse(Path(source.origin).read_text())  # type: ignore[union-attr, arg-type]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        if any(getattr(target, "id", getattr(target, "name", None)) == name for target in targets):
            return True
    return False


def home(package: ModuleType, name: str) -> str:
    """The module that a public name comes from."""
    value = getattr(package, name)
    module = getattr(value, "__module__", None)
    if isinstance(module, str) and module.startswith(PACKAGE) and getattr(value, "__name__", None) == name:
        return module
    inside = [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return next((module for module in inside if defines(module, name)), package.__name__)


@functools.cache
def public_names() -> dict[str, list[str]]:
    """Module -> the paths by which its public names are imported, the shortest for each."""
    found: dict[tuple[str, str], str] = {}
    for package in packages():  # the root comes first, and has the shortest paths
        for name in getattr(package, "__all__", []):
            found.setdefault((home(package, name), name), f"{package.__name__}.{name}")
    modules: dict[str, list[str]] = {}
    for (module, _), path in found.items():
        modules.setdefault(module, []).append(path)
    return modules


def find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def by_place(path: str) -> int:
    """Where a name stands in its source, so that a page has a module's own order."""
    try:
        return inspect.getsourcelines(find(path))[1]
    except (TypeError, OSError):
        return 0


# --- docstrings as reStructuredText

SPAN = re.compile(r"(``.+?``|`[^`]+`|https?://\S+|\*\*\w[^*]*\*\*)")


def prose(text: str) -> str:
    """Text with what reStructuredText would take for markup written so that it is not."""
    parts = SPAN.split(text)
    for i in range(0, len(parts), 2):
        part = re.sub(r"(?<!^)(?<!\n)\*|\*(?! )", r"\\*", parts[i])
        part = part.replace("|", r"\|")
        parts[i] = re.sub(r"(?<=\w)_(?=\W|$)", r"\_", part)
    return "".join(parts)


def block(lines: list[str]) -> list[str]:
    """An indented block: an equation, Python, or text to be left as it is."""
    code = textwrap.dedent("\n".join(lines))
    if rows := equations.latex(lines):
        inside = " \\\\\n".join(rows).split("\n")
        rows = [r"\begin{align*}", *inside, r"\end{align*}"]
        return [".. math::", "   :no-wrap:", "", *(f"   {row}" for row in rows)]
    language = "text"
    if not re.search(r"\(\d+\)$", code, re.MULTILINE) and re.search(r"\w\.\w+\(", code):
        try:
            ast.parse(code)
            language = "python"
        except SyntaxError:
            language = "text"
    return [f".. code-block:: {language}", "", *textwrap.indent(code, "   ").split("\n")]


SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Note|References|Example|Examples):$")


def docstring(lines: list[str]) -> list[str]:
    """A docstring of the project as reStructuredText (its Args and Returns as Google's, for napoleon)."""
    made: list[str] = []
    for paragraph in re.split(r"\n\s*\n", textwrap.dedent("\n".join(lines)).strip("\n")):
        body = paragraph.split("\n")
        if body[0].startswith(">>>") or SECTION.match(body[0]):
            made += [*body] if body[0].startswith(">>>") else [body[0], *map(prose, body[1:])]
        elif all(line.startswith(" ") for line in body if line) and made and not in_section(made):
            made += block(body)
        else:
            made += prose(paragraph).split("\n")
        made.append("")
    return made


def in_section(made: list[str]) -> bool:
    """Whether the last unindented line opens a section such as Args."""
    last = next((line for line in reversed(made) if line and not line.startswith(" ")), "")
    return bool(SECTION.match(last))


def summary(value: Any) -> str:
    """The first sentence of a docstring."""
    if isinstance(value, dict):
        return f"A table of {', '.join(f'``{name}``' for name in value)}."
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"``{value}``" if not hasattr(type(value), "__dataclass_fields__") else f"A `{type(value).__name__}`."
    text = inspect.getdoc(value) or ""
    first = " ".join(text.split("\n\n")[0].split())
    sentence = re.match(r"(.+?[.:])(?: [A-Z]|$)", first)
    said = re.sub(
        r"^Equations? [()\d,\- andto]+: (.)", lambda m: m[1].upper(), sentence.group(1) if sentence else first
    )
    return prose(said.rstrip(":,"))


# --- pages


class Api(Directive):
    """`.. api::` with modules or packages, one a line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        public, lines, table = public_names(), [], []
        page = Path(self.state.document.settings.env.doc2path(self.state.document.settings.env.docname))
        for module in modules_of(page, public):
            if importlib.util.find_spec(module) is None:
                log.warning("%s: there is no module %s", page.name, module)
                continue
            paths = sorted(public.get(module, []), key=by_place)
            lines += section(module, paths)
            table += [[f"`{path.rpartition('.')[2]} <{path}>`", summary(find(path))] for path in paths]
        rows = [".. list-table::", "   :class: names", "   :widths: auto", ""]
        for name, text in table:
            rows += [f"   * - :py:obj:{name}", f"     - {text}"]
        self.state_machine.insert_input([*rows, "", *lines], self.state_machine.input_lines.source(0))
        return []


def prefixes(page: Path) -> list[str]:
    """The modules and packages that a page names."""
    text = page.read_text()
    return text[text.index(".. api::") :].split()[2:] if ".. api::" in text else []


def modules_of(page: Path, public: dict[str, list[str]]) -> Iterator[str]:
    """The modules of a page: of those that all pages name, the longest that fits says where a module is."""
    everywhere = [prefix for other in page.parent.glob("*.rst") for prefix in prefixes(other)]

    def place(module: str) -> str:
        return max((p for p in everywhere if f"{module}.".startswith(f"{p}.")), key=len, default="")

    for prefix in prefixes(page):
        below = [module for module in public if place(module) == prefix]
        if (
            prefix not in below
            and "\n\n" in (inspect.getdoc(importlib.import_module(prefix)) or "")
            and prefix != PACKAGE
        ):
            yield prefix  # a package's mathematics, or that of a module without a public name
        yield from below


def section(module: str, paths: list[str]) -> list[str]:
    """A module: its heading and mathematics, then its names."""
    text = docstring((inspect.getdoc(importlib.import_module(module)) or module).split("\n"))
    first = text.index("")
    heading, rest = " ".join(text[:first]), text[first:]
    title, stop, more = heading.partition(": ") if len(heading) > 90 else (heading, "", "")
    title = title.rstrip(".:")
    if len(title) > 90:
        title, more, stop = module.rpartition(".")[2], heading, "x"
    name = [f".. py:module:: {module}"]
    if module in {path for paths in public_names().values() for path in paths}:
        name.append("   :no-index:")  # jaxdiff.record is a function, too
    lines = ["", *name, "", title, "-" * (2 * len(title)), "", f"``{module}``", ""]
    lines += [more[:1].upper() + more[1:] if stop else "", *rest, ""]
    for path in paths:
        value, parent = find(path), path.rpartition(".")[0]
        lines += ["", f".. py:currentmodule:: {parent}", ""]
        if inspect.isclass(value):
            lines += [f".. autoclass:: {path}", "   :members:", "   :show-inheritance:"]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {path}"]
        else:
            lines += [f".. py:data:: {path.rpartition('.')[2]}", "", f"   {summary(value)}"]
    return [*lines, ""]


# --- Sphinx


def process_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = docstring(lines)


def skip_member(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """A NamedTuple's fields stand in its docstring."""
    return True if (inspect.getdoc(value) or "").startswith("Alias for field number") else None


def name_role(name: str, raw: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()) -> Any:
    """`VP` in a docstring: a link where it is a public name or a module, else code."""
    env = inliner.document.settings.env
    target = env.jaxdiff_names.get(re.sub(r"\(.*", "", text.removeprefix(PACKAGE + ".")), text)
    code = nodes.literal("", text, classes=["xref", "py"])
    if not target.startswith(PACKAGE):
        return [code], []
    return [reference(env.docname, target, code)], []


def reference(page: str, path: str, content: nodes.Element) -> nodes.Element:
    options = {"refdomain": "py", "reftype": "obj", "reftarget": path, "refdoc": page, "refwarn": False}
    return addnodes.pending_xref("", content, **options)


def short_names() -> dict[str, str]:
    """`VP`, `jaxdiff.process.Process` -> the path under which a page has it."""
    names = {}
    for module, paths in public_names().items():
        for path in paths:
            name = path.rpartition(".")[2]
            names[name] = names[f"{module}.{name}"] = path
    return names


def resolve(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """`VP` in a docstring, and a class under its module's name, lead to its page."""
    if node.get("refdomain") != "py" or not hasattr(env, "jaxdiff_names"):
        return None
    path = env.jaxdiff_names.get(re.sub(r"\(.*", "", node["reftarget"]))
    domain = env.get_domain("py")
    if path is None or path == node["reftarget"]:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", path, node, content)


def link_code(app: Sphinx, tree: nodes.document) -> None:
    """``VP`` in a page of text leads to its page, too."""
    names = app.env.jaxdiff_names  # type: ignore[attr-defined]
    for node in list(tree.findall(nodes.literal)):
        text = node.astext()
        plain = re.fullmatch(r"[a-z]+|.", text)  # `sample` may be an option, `V` a matrix
        path = None if plain else names.get(text if text.count(".") > 1 else text.removeprefix(PACKAGE + "."))
        inside = any(isinstance(at, addnodes.pending_xref | nodes.reference | nodes.title) for at in ancestors(node))
        if path and not inside:
            node.replace_self(reference(app.env.docname, path, node.deepcopy()))


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def begin(app: Sphinx) -> None:
    app.env.jaxdiff_names = short_names()  # type: ignore[attr-defined]


def check(app: Sphinx, env: Any) -> None:
    """Every public name is on a page."""
    documented = set(env.get_domain("py").objects)
    missing = sorted({path for paths in public_names().values() for path in paths} - documented)
    if missing:
        log.warning("on no page of docs/api: %s", ", ".join(missing))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("api", Api)
    app.connect("builder-inited", begin)
    app.add_role("name", name_role)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # before napoleon
    app.connect("doctree-read", link_code)
    app.connect("missing-reference", resolve)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": False}
