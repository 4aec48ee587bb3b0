"Every chapter ends with three exercises whose checkers exist; on the site their solutions are folded."

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs JupyterLab")

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [
    p for p in sorted((ROOT / "nbs").glob("*.ipynb")) if (ROOT / "nbs" / "exercises" / p.name).is_file()
]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_ends_with_three_exercises(path):
    cells = nbformat.read(path, as_version=4).cells
    headings = [cell.source.splitlines()[0] for cell in cells if cell.source.startswith("## ")]
    assert headings[-1] == "## Exercises" and headings[-2].startswith("## What the study found")
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
    assert f"exercises/{path.name}" in cells[start].source
    assert cells[-1].source.startswith("Next:")
    parts, number = cells[start + 1 : -1], int(path.stem[:2])
    assert [cell.cell_type for cell in parts] == ["markdown", "code"] * 3
    for letter, task, answer in zip("abc", parts[::2], parts[1::2]):
        assert re.match(rf"\*\*{number}{letter}\. .+\*\* \(\d+ minutes\)\. ", task.source)
        assert "\n*Hint:* " in task.source
        if check := re.search(r"from (bertlab\.exercises\.\w+) import ", answer.source):
            checker = f"check_{number:02}{letter}"
            assert re.search(rf"^# {checker}\(", answer.source, re.M)
            assert callable(getattr(importlib.import_module(check[1]), checker))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_solutions_are_folded_on_the_site(path):
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    notebook = nbformat.read(ROOT / "nbs" / "exercises" / path.name, as_version=4)
    for cell in build.tidy(notebook, solutions=True).cells:
        if cell.cell_type == "code":
            assert {"hide-cell", "remove-cell"} & set(cell.metadata.tags)
        elif not cell.source.startswith(("# ", "Next:")):
            open_part = cell.source.partition("<details>")[0]  # a heading and what is asked, no more
            assert not open_part or (open_part.startswith("## ") and open_part.count("\n\n") <= 2)
