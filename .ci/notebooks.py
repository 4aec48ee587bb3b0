"""Export the package, execute notebooks in place (all, or given paths), clean them, and write README.md."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from headers import CHAPTERS, stamp

ROOT = Path(__file__).resolve().parent.parent
NBS, BIN = ROOT / "nbs", Path(sys.executable).parent
FOLDERS = ("core", "data", ".", "exercises", "study", "bench", "commands", "reports")  # the index comes last
QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "BERTLAB_STATIC": "1"}  # outputs are committed


def call(*command):
    subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, check=True, env=os.environ | QUIET)


def forget_widgets(path):
    "Remove the state of widgets that no output shows, such as that of a bar that was closed."
    notebook = json.loads(path.read_text(encoding="utf8"))
    if notebook["metadata"].get("widgets") and "widget-view+json" not in json.dumps(notebook["cells"]):
        del notebook["metadata"]["widgets"]
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    call("nbdev_export")
    call("bertlab", "data", "default")  # or its progress bar would become part of a notebook
    everything = [path for folder in FOLDERS for path in sorted((NBS / folder).glob("*.ipynb"))]
    notebooks = [Path(name).resolve() for name in sys.argv[1:]] or everything
    notebooks.sort(key=lambda path: path.stem == "index")
    for path in notebooks:
        started, before = time.perf_counter(), os.times()
        execute = ("--to=notebook", "--execute", "--inplace", "--log-level=ERROR")
        call("jupyter", "nbconvert", *execute, str(path))
        seconds, after = time.perf_counter() - started, os.times()
        computed = after.children_user + after.children_system - before.children_user - before.children_system
        forget_widgets(path)
        if path in CHAPTERS:
            stamp(path, min(seconds, computed))  # a busy machine does not make a chapter slow
        print(f"{path.relative_to(ROOT)}  {seconds:.0f} s", flush=True)
    call("nbdev_clean")
    call("python", ".ci/readme.py")
