"The header of every chapter is in step with the chapter, and its Colab cell touches nothing elsewhere."

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs JupyterLab")

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("headers", ROOT / ".ci" / "headers.py")
headers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(headers)
REMEDY = "run .ci/headers.py"


@pytest.mark.parametrize("path", headers.CHAPTERS, ids=lambda path: path.stem)
def test_header_is_in_step_with_its_chapter(path):
    notebook = nbformat.read(path, as_version=4)
    title, line, setup = notebook.cells[:3]
    assert title.source.startswith("# "), path.name
    assert headers.is_header(line) and setup.source == headers.COLAB_CELL, REMEDY
    assert line.source.startswith(f"Chapter {path.stem[:2].lstrip('0')} of {len(headers.CHAPTERS)} · ")
    stated = int(re.search(r"(\d+) minutes to read", line.source)[1])
    assert abs(stated - headers.reading_minutes(notebook)) <= 5, REMEDY
    linked = re.findall(r"\[\d\d\]\((\w+\.ipynb)\)", line.source)
    assert linked == [p.name for p in headers.builds_on(notebook)], REMEDY
    assert line.source.endswith(f"/nbs/{path.name})")


def test_what_a_chapter_builds_on_comes_from_exported_imports_of_the_course():
    cells = [
        "#| export\nfrom bertlab.core.files import read_json\nfrom bertlab.masking import (\n    mask_batch,\n)",
        "#| export\nfrom bertlab import attention, encoder",
        "from bertlab.decoder import generate",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    assert [p.stem for p in headers.builds_on(notebook)] == ["04_masking", "05_attention", "06_encoder"]


def test_reading_time_counts_prose_and_code_but_no_imports_and_directives():
    prose = nbformat.v4.new_markdown_cell("word " * 2 * headers.WORDS_PER_MINUTE)
    code = (
        "#| export\nimport a\nfrom b import (\n    c,\n    d,\n)\n\n"
        + "x = 1\n" * 3 * headers.LINES_PER_MINUTE
    )
    notebook = nbformat.v4.new_notebook(cells=[prose, nbformat.v4.new_code_cell(code)])
    assert headers.reading_minutes(notebook) == 5


def test_stamping_again_changes_nothing_and_a_run_time_stays_until_it_differs(tmp_path):
    path = Path(shutil.copy(ROOT / "nbs" / "17_export.ipynb", tmp_path))
    headers.stamp(path, measured=20.4)
    assert not headers.stamp(path)
    assert not headers.stamp(path, measured=22.0)
    assert headers.stamp(path, measured=31.0)
    assert headers.stated_seconds(nbformat.read(path, as_version=4)) == 31


def test_colab_cell_does_nothing_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a command was run"))
    before = os.getcwd()
    exec(headers.COLAB_CELL, {})
    assert os.getcwd() == before and capsys.readouterr() == ("", "")


def test_colab_cell_installs_from_the_repository_and_keeps_torch(monkeypatch, tmp_path):
    commands = []

    def run(command, check):
        commands.append([str(part) for part in command])
        if command[0] == "git":
            (Path(command[-1]) / "nbs").mkdir(parents=True)

    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    cell = headers.COLAB_CELL.replace("/content", str(tmp_path))
    exec(cell, {})
    exec(cell, {})  # run again, it finds everything done
    assert Path.cwd() == tmp_path / "bertlab" / "nbs"
    (git, *_, url, _), (*pip, what) = commands
    assert (git, url) == ("git", headers.CFG["git_url"])
    assert pip[1:4] == ["-m", "pip", "install"] and what == f"{tmp_path}/bertlab[course,interop,translate]"
    assert (tmp_path / "constraints.txt").read_text() == f"torch=={version('torch')}"
    assert pip[pip.index("--constraint") + 1] == str(tmp_path / "constraints.txt")


LATER = {  # sections that the index leaves for later; of attention all from the first to the last, but one
    "01_bpe": ["## Encoding a corpus"],
    "05_attention": [
        "## What a batch costs",
        "## Group by group",
        "## On the GPU",
        "## One function for all",
    ],
    "06_encoder": ["## A BERT from elsewhere"],
}


def test_two_hours_of_reading_are_enough_to_train_a_bert_that_fills_blanks():
    minutes = 0
    for name in ("01_bpe", "04_masking", "05_attention", "06_encoder", "07_mlm", "09_pretraining"):
        sections, later = {"": []}, ["## Exercises", *LATER.get(name, [])]
        for cell in headers.body(nbformat.read(headers.NBS / f"{name}.ipynb", as_version=4)):
            if cell.cell_type == "markdown" and cell.source.startswith("## "):
                sections[cell.source.splitlines()[0]] = []
            list(sections.values())[-1].append(cell)
        assert set(later) < set(sections), name
        read = [cell for title, cells in sections.items() if title not in later for cell in cells]
        minutes += headers.count_words(read) / headers.WORDS_PER_MINUTE
        minutes += headers.count_code_lines(read) / headers.LINES_PER_MINUTE
    index = nbformat.read(headers.NBS / "index.ipynb", as_version=4)
    paths = " ".join(" ".join(cell.source.split()) for cell in index.cells)
    assert all(
        title.removeprefix("## ") in paths for title in ("## Encoding a corpus", "## What a batch costs")
    )
    assert round(minutes / 60, 1) <= 2, f"{minutes:.0f} minutes"
