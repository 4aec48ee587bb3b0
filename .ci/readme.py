"""Write README.md from nbs/index.ipynb; with --check, only say whether it is in step."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

ROOT = Path(__file__).resolve().parent.parent


def only_output(cell):
    "A code cell as the Markdown that it shows."
    shown = [o["data"]["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]
    return nbformat.v4.new_markdown_cell("\n\n".join("".join(text) for text in shown), id=cell.id)


class ForReadme(Preprocessor):
    "Drop hidden cells and directive lines; point links at where the files are from the top of the project."

    def preprocess(self, nb, resources):
        nb.metadata["language_info"] = {"name": "python"}
        nb.cells = [c for c in nb.cells if not re.search(r"^#\|\s*hide", c.source, re.M)]
        nb.cells = [
            only_output(c) if re.search(r"^#\|\s*echo: false", c.source, re.M) else c for c in nb.cells
        ]
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
            else:
                cell.source = cell.source.replace("](../", "](").replace('src="../', 'src="')
                cell.source = re.sub(
                    r"\]\((?!https?:|figures/|#|[A-Z])([\w/]+\.ipynb)\)", r"](nbs/\1)", cell.source
                )
        return nb, resources


def readme() -> str:
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    body, _ = MarkdownExporter(preprocessors=[ForReadme]).from_notebook_node(nb)
    return (
        "<!-- made from nbs/index.ipynb by .ci/readme.py; edit the notebook -->\n\n"
        + re.sub(r"\n{3,}", "\n\n", body).strip()
        + "\n"
    )


if __name__ == "__main__":
    path, text = ROOT / "README.md", readme()
    if "--check" not in sys.argv:
        path.write_text(text, encoding="utf8")
    elif path.read_text(encoding="utf8") != text:
        sys.exit("README.md is not what nbs/index.ipynb gives; run make notebooks")
