"""Build the site from the notebooks: copy them to _docs/src for readers, add API pages, run Sphinx.

A warning is an error: a dead link between notebooks, a missing picture or a heading that skips a level fails.
"""

import base64
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from fastcore.docments import docments
from nbformat import NotebookNode

from bertlab.core.explorer import hangul_font_face

ROOT = Path(__file__).resolve().parent.parent
NBS, SRC, SITE = ROOT / "nbs", ROOT / "_docs" / "src", ROOT / "_docs" / "html"
SECTIONS = {  # caption in the navigation -> folder of notebooks
    "Course": ".",
    "Solutions of the exercises": "exercises",
    "Reports": "reports",
    "Study": "study",
    "Bench": "bench",
    "Data": "data",
    "Core": "core",
    "Commands": "commands",
}
WIDGET = "application/vnd.jupyter.widget-view+json"  # live only in a notebook
LONG_CELL = 40  # lines; a longer cell is folded


def notebooks(folder: str) -> list[Path]:
    "The notebooks of a folder in reading order; the index is the site's front page and not among them."
    return sorted(p for p in (NBS / folder).glob("*.ipynb") if p.stem != "index" and p.name[0] not in "._")


def tidy_code(cell: NotebookNode) -> list[str]:
    "Strip directive lines, and say by tags what is hidden or folded."
    directives = set(re.findall(r"^#\|\s*(\w+)", cell.source, re.M))
    shows_output_only = re.search(r"^#\|\s*echo:\s*false", cell.source, re.M)
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
    lines = [line for line in cell.source.splitlines() if line.strip()]
    imports_only = lines and all(re.match(r"(from|import) |[ )]", line) for line in lines)
    if directives & {"hide", "default_exp"} or not lines:
        return ["remove-cell"]
    if shows_output_only:
        return ["remove-input"]
    if imports_only or len(lines) > LONG_CELL:
        return ["hide-input"]
    return []


def fold(cell: NotebookNode):
    "Fold a part of a solution away; headings with what is asked, and the way on, stay open."
    if cell.cell_type == "code":
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-cell"]
    elif not cell.source.startswith(("# ", "Next:")):
        parts = cell.source.split("\n\n")
        n_open = 2 if parts[0].startswith("#") else 0  # the heading, and what is asked
        if folded := "\n\n".join(parts[n_open:]):
            folded = f"<details><summary>Explanation</summary>\n\n{folded}\n\n</details>"
        cell.source = "\n\n".join(filter(None, [*parts[:n_open], folded]))


def tidy(
    notebook: NotebookNode,
    solutions: bool = False,  # fold everything that a reader may want to find out without help
) -> NotebookNode:
    "A notebook for the site: no directives, imports and long cells folded, pictures where the site has them."
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook.cells:
        if solutions:
            fold(cell)
        if cell.cell_type == "code":
            cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), *tidy_code(cell)})
            cell.outputs = [tidy_output(o) for o in cell.outputs if WIDGET not in o.get("data", {})]
        else:
            cell.source = re.sub(r"((?:\.\./)+)figures/", drop_one_level, cell.source)
    return notebook


def tidy_output(output: NotebookNode) -> NotebookNode:
    "Links in Markdown that a cell printed, which Sphinx does not resolve, point at pages."
    if "text/markdown" in output.get("data", {}):
        shown = "".join(output["data"]["text/markdown"])
        output["data"]["text/markdown"] = re.sub(r"\]\((?!\w+:)([^)\s]+)\.ipynb", r"](\1.html", shown)
    return output


def drop_one_level(match: re.Match) -> str:
    "`../figures/` from nbs/ is `figures/` on the site, whose top is nbs/."
    return match.group(1)[3:] + "figures/"


def toctree(caption: str, pages: list[str]) -> str:
    "One group of the navigation."
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])


def write_hangul_font():
    "A font with the Hangul of all pages, for machines that have none."
    pages = [p for p in SRC.rglob("*") if p.suffix in (".ipynb", ".md")]
    face = hangul_font_face("".join(p.read_text(encoding="utf8") for p in pages))  # with the font inside
    if inside := re.search(r"data:font/ttf;base64,([^)]+)", face):
        (SRC / "_static" / "hangul.ttf").write_bytes(base64.b64decode(inside[1]))
        face = face.replace(inside[0], "hangul.ttf")
    (SRC / "_static" / "hangul.css").write_text(re.sub("</?style>", "", face), encoding="utf8")


def type_name(annotation) -> str:
    "An annotation as code, without the modules that its names come from."
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(annotation)).replace("|", "\\|")


def docment_table(obj) -> str:
    "The parameters and the result of a callable as a table."
    rows = ["| | type | default | |", "| --- | --- | --- | --- |"]
    empty = inspect.Parameter.empty
    for name, facts in docments(obj, full=True, returns=True).items():
        if name == "self" or (name == "return" and facts.anno is empty and not facts.docment):
            continue
        kind = "" if facts.anno is empty else f"`{type_name(facts.anno)}`"
        default = "" if facts.get("default", empty) is empty else f"`{facts.default!r}`".replace("|", "\\|")
        text = re.sub(r"([\[\]|<>_*])", r"\\\1", " ".join((facts.docment or "").split()))
        rows.append(f"| {'**returns**' if name == 'return' else f'`{name}`'} | {kind} | {default} | {text} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def describe(qualified: str, obj, directive: str) -> str:
    "One public name as a MyST directive that can be searched and linked."
    try:
        signature = "(" + ", ".join(n for n in inspect.signature(obj).parameters if n != "self") + ")"
        table = docment_table(obj)
    except (TypeError, ValueError):
        signature, table = "", ""
    doc = inspect.getdoc(obj) or ""
    return f"````{{py:{directive}}} {qualified}{signature}\n\n{doc}\n\n{table}\n````\n"


def api_page(module_name: str) -> str:
    "The public names of a module, in the order in which the notebook defines them."
    module = importlib.import_module(module_name)
    parts = [f"# {module_name}", "", (module.__doc__ or "").strip(), ""]
    for name in module.__all__:
        obj = getattr(module, name)
        if inspect.isclass(obj):
            parts.append(describe(f"{module_name}.{name}", obj, "class"))
            for method, function in vars(obj).items():
                if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                    parts.append(describe(f"{module_name}.{name}.{method}", function, "method"))
        elif callable(obj):
            parts.append(describe(f"{module_name}.{name}", obj, "function"))
    return "\n".join(parts)


def write_sources():
    "Everything that Sphinx reads."
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.copytree(ROOT / "figures", SRC / "figures")
    shutil.copytree(ROOT / "docs" / "_static", SRC / "_static")
    navigation = []
    for caption, folder in SECTIONS.items():
        pages = []
        for path in notebooks(folder):
            target = SRC / path.relative_to(NBS)
            target.parent.mkdir(parents=True, exist_ok=True)
            notebook = nbformat.read(path, as_version=4)
            nbformat.write(tidy(notebook, solutions=folder == "exercises"), target)
            pages.append(str(path.relative_to(NBS).with_suffix("").as_posix()))
        if pages:
            navigation.append(toctree(caption, pages))
    pages = []
    for path in sorted((ROOT / "bertlab").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name.startswith("_"):
            continue
        target = SRC / "api" / f"{name}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(api_page(name), encoding="utf8")
        pages.append(f"api/{name}")
    navigation.append(toctree("API", pages))
    index = tidy(nbformat.read(NBS / "index.ipynb", as_version=4))
    index.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(navigation)))
    nbformat.write(index, SRC / "index.ipynb")
    write_hangul_font()


if __name__ == "__main__":
    write_sources()
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", str(ROOT / "docs")]
    status = subprocess.run([*command, str(SRC), str(SITE)]).returncode
    print(f"{SITE / 'index.html'}" if status == 0 else "the site has faults")
    sys.exit(status)
