"""Export the package, execute every notebook in place from first to last, clean them, and write README.md."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
QUIET = {
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}  # outputs are committed: no progress bars, no noise of other packages


def call(*command):
    subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, check=True, env=os.environ | QUIET)


if __name__ == "__main__":
    call("nbdev_export")
    notebooks = (
        sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
        + sorted((ROOT / "nbs").glob("reports/*.ipynb"))
        + [ROOT / "nbs" / "index.ipynb"]
    )
    for path in notebooks:
        started = time.perf_counter()
        call(
            "jupyter", "nbconvert", "--to=notebook", "--execute", "--inplace", "--log-level=ERROR", str(path)
        )
        print(f"{path.relative_to(ROOT)}  {time.perf_counter() - started:.0f} s", flush=True)
    call("nbdev_clean")
    call("python", ".ci/readme.py")
