"""Tests in a real browser (Playwright drives the system's Chromium); they skip with a message without one."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def chromium() -> str | None:
    "The browser's path: `$BERTLAB_CHROMIUM`, or what the system has."
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("BERTLAB_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set BERTLAB_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    "Where each page's picture is kept, to be looked at: `$BERTLAB_SCREENSHOTS`, or _screenshots/."
    folder = Path(os.environ.get("BERTLAB_SCREENSHOTS") or ROOT / "_screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
