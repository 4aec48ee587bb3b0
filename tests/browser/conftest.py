"""Tests in a real browser (Playwright drives the system's Chromium); they skip with a message without one."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "bertlab-browser-test"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
READY = """async () => {
    const w = jupyterapp.shell.currentWidget;
    await w.context.ready; await w.sessionContext.ready; await w.sessionContext.session.kernel.info;
    return w.title.label;
}"""
DRAWN_ALIKE = """([one, other]) => {
    const pixels = character => {
        const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
        context.font = '40px bertlab-hangul';
        context.fillText(character, 10, 50);
        return context.getImageData(0, 0, 80, 80).data.join();
    };
    return pixels(one) === pixels(other);
}"""


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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    "A copy of what a reader sees, so that running a notebook leaves the checkout clean."
    folder = tmp_path_factory.mktemp("lab")
    for name in ("nbs", "figures"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="session")
def lab(workspace, browser):
    pytest.importorskip("jupyterlab", reason="needs jupyterlab")
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("jupyter")), "lab", "--no-browser", "--allow-root",
        "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={workspace}",
        "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    env = os.environ | {"JUPYTER_CONFIG_DIR": str(workspace / ".jupyter"), "PYTHONPATH": str(ROOT)}
    with open(workspace / "server.log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=workspace)
    try:
        for _ in range(360):  # a busy machine needs a while
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((workspace / "server.log").read_text())
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={TOKEN}&reset"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    yield page
    page.close()
