"""Everything that must hold: exports in step, format, import contract, notebooks, tests, site."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SOURCES = ("nbs", "tests", "docs", ".ci", "setup.py")


def call(*command, **env) -> tuple[int, str]:
    "Run a command, show what it prints, and return its exit status and output."
    print("$", *command, flush=True)
    lines = []
    with subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def succeeds(*command) -> bool:
    return call(*command)[0] == 0


def snapshot(*patterns) -> dict[Path, str]:
    "The hash of every file that the patterns match."
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for g in patterns for p in ROOT.glob(g)}


def unchanged_by(command: str, *patterns) -> bool:
    "Whether a command that brings files in step finds them in step already."
    before = snapshot(*patterns)
    status, _ = call(command)
    after = snapshot(*patterns)
    changed = sorted(
        str(p.relative_to(ROOT)) for p in before.keys() | after.keys() if before.get(p) != after.get(p)
    )
    if changed:
        print(f"{command} changed {', '.join(changed)}: commit what it made")
    return status == 0 and not changed


def run_notebooks(env) -> tuple[int, int]:
    "How many notebooks run without error, and how many do not."
    notebooks = (p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    total = sum(not any(part[0] in "._" for part in path.parts) for path in notebooks)
    status, output = call("nbdev_test", "--n_workers", "2", "--timing", **env)
    failures = output.partition("nbdev Tests Failed")[2]
    failed = len(set(re.findall(r"^\s*([\w/.-]+\.ipynb)\s*$", failures, re.M))) or int(status != 0)
    return total - failed, failed


def run_pytest(env) -> tuple[int, int]:
    "How many tests pass, and how many do not."
    status, output = call("pytest", "-q", "-n", "2", "--dist", "loadfile", "--durations=8", "tests", **env)
    last = output.splitlines()[-1] if output else ""

    def count(word: str) -> int:
        return sum(int(n) for n in re.findall(rf"(\d+) {word}", last))

    failed = count("failed") + count("errors?")
    return count("passed"), failed or int(status != 0)


if __name__ == "__main__":
    started = time.perf_counter()
    steps = {
        "the package is what the notebooks export": unchanged_by("nbdev_export", "bertlab/**/*.py"),
        "the notebooks are clean": unchanged_by("nbdev_clean", "nbs/**/*.ipynb"),
        "README.md is what index.ipynb gives": succeeds("python", ".ci/readme.py", "--check"),
        "ruff format": succeeds("ruff", "format", "--check", "--quiet", *SOURCES),
        "ruff check": succeeds("ruff", "check", "--quiet", *SOURCES),
        "imports point one way": succeeds("lint-imports"),
        "the site builds without a warning": succeeds("python", "docs/build.py"),
        "the default corpus is prepared": succeeds("bertlab", "data", "default"),
    }
    with tempfile.TemporaryDirectory() as figures:
        quiet = {
            "BERTLAB_FIGURES": figures,
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        notebooks, tests = run_notebooks(quiet), run_pytest(quiet)
    print()
    for name, good in steps.items():
        print("ok     " if good else "FAILED ", name)
    print(
        f"{'ok     ' if not notebooks[1] else 'FAILED '} notebooks: {notebooks[0]} ran, {notebooks[1]} failed"
    )
    print(f"{'ok     ' if not tests[1] else 'FAILED '} tests: {tests[0]} passed, {tests[1]} failed")
    print(f"in {time.perf_counter() - started:.0f} s")
    passed = sum(steps.values()) + notebooks[0] + tests[0]
    failed = len(steps) - sum(steps.values()) + notebooks[1] + tests[1]
    print(f"{passed} passed, {failed} failed")
    sys.exit(bool(failed))
