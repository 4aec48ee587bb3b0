"""Write the header of every chapter, its numbers and times and links, and the cell that prepares Colab.

The reading time counts 220 words of prose and 30 lines of code per minute, without imports and directives.
The run time is what `.ci/notebooks.py` measured. A chapter builds on those whose modules its exported cells
import.
"""

import ast
import re
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
WORDS_PER_MINUTE, LINES_PER_MINUTE = 220, 30
CHAPTERS = sorted(NBS.glob("[0-9][0-9]_*.ipynb"))
ini = ConfigParser(delimiters=["="])
ini.read(ROOT / "settings.ini", encoding="utf8")
CFG = ini["DEFAULT"]
COLAB_CELL = f'''#| hide
# In Colab only: bertlab from its repository, beside the torch that is installed. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess
    from importlib.metadata import version
    from pathlib import Path

    clone, constraints = Path("/content/{CFG["repo"]}"), Path("/content/constraints.txt")
    if not clone.is_dir():
        url = "{CFG["git_url"]}"
        subprocess.run(["git", "clone", "--quiet", "--depth=1", url, clone], check=True)
        constraints.write_text("torch==" + version("torch"))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints]
        subprocess.run([*pip, f"{{clone}}[course,interop,translate]"], check=True)
    os.chdir(clone / "nbs")'''


def is_header(cell: NotebookNode) -> bool:
    return cell.cell_type == "markdown" and bool(re.match(r"Chapter \d+ of \d+ · ", cell.source))


def is_colab_cell(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and "google.colab" in cell.source


def body(notebook: NotebookNode) -> list[NotebookNode]:
    "The cells without header and Colab cell."
    return [cell for cell in notebook.cells if not is_header(cell) and not is_colab_cell(cell)]


def count_words(cells: Sequence[NotebookNode]) -> int:
    return sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")


def count_code_lines(cells: Sequence[NotebookNode]) -> int:
    "Lines of code, without blank lines, directives and imports."
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    code = re.sub(r"^(from [\w.]+ )?import (\([^)]*\)|.*)$", "", code, flags=re.M)
    return len(re.findall(r"^(?!\s*#\|)\s*\S", code, re.M))


def reading_minutes(notebook: NotebookNode) -> float:
    cells = body(notebook)
    return count_words(cells) / WORDS_PER_MINUTE + count_code_lines(cells) / LINES_PER_MINUTE


def imported_modules(cell: NotebookNode) -> set[str]:
    "The modules right below `bertlab` that a cell imports."
    found = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == CFG["lib_name"]:
            below = node.module.split(".")[1:]
            found.update(below[:1] or [alias.name for alias in node.names])
    return found


def builds_on(notebook: NotebookNode) -> list[Path]:
    "The chapters whose modules the exported cells import, in their order."
    exported = [cell for cell in body(notebook) if re.match(r"#\|\s*export", cell.source)]
    modules = set().union(*map(imported_modules, exported))
    return [path for path in CHAPTERS if path.stem[3:] in modules]


def stated_seconds(notebook: NotebookNode) -> int | None:
    "The run time in the header, if it has one."
    found = [re.search(r"· (\d+) s to run", cell.source) for cell in notebook.cells if is_header(cell)]
    return int(found[0].group(1)) if found and found[0] else None


def header(path: Path, notebook: NotebookNode, seconds: int | None) -> str:
    "The header line of a chapter, in Markdown."
    minutes = max(5, 5 * round(reading_minutes(notebook) / 5))
    before = ", ".join(f"[{p.stem[:2]}]({p.name})" for p in builds_on(notebook))
    repository = CFG["git_url"].replace("https://github.com", "github")
    colab = f"https://colab.research.google.com/{repository}/blob/{CFG['branch']}/nbs/{path.name}"
    parts = [
        f"Chapter {[p.name for p in CHAPTERS].index(path.name) + 1} of {len(CHAPTERS)}",
        f"{minutes} minutes to read",
        *([f"{seconds} s to run"] if seconds is not None else []),
        *([f"builds on {before}"] if before else []),
        f"[Open in Colab]({colab})",
    ]
    return " · ".join(parts)


def stamp(path: Path, measured: float | None = None) -> bool:
    "Bring the header and the Colab cell of a chapter in step; whether something changed."
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    seconds = stated_seconds(notebook)
    if measured is not None and (seconds is None or abs(measured - seconds) > max(3, seconds / 4)):
        seconds = max(1, round(measured))  # a small difference is noise
    title, *others = body(notebook)
    line = nbformat.v4.new_markdown_cell(header(path, notebook, seconds), id="chapter-header")
    setup = nbformat.v4.new_code_cell(
        COLAB_CELL, id="colab-setup", metadata={"jupyter": {"source_hidden": True}}
    )
    notebook.cells = [title, line, setup, *others]
    changed = nbformat.writes(notebook) != before
    if changed:
        nbformat.write(notebook, path)
    return changed


if __name__ == "__main__":
    for path in CHAPTERS:
        if stamp(path):
            print(f"{path.name}: header written")
