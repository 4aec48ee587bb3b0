"JupyterLab in a browser: the index shows its pictures, and notebooks run from top to bottom without a fault."

import json
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
RUN_ALL = ("04_masking", "06_encoder", "07_mlm", "10_text_cnn")
READY = """async () => {
    const w = jupyterapp.shell.currentWidget;
    await w.context.ready; await w.sessionContext.ready; await w.sessionContext.session.kernel.info;
    return w.title.label;
}"""
FAULTS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(c => c.model.type === 'code')
    .flatMap(c => c.model.sharedModel.getOutputs()
        .filter(o => o.output_type === 'error' || (o.output_type === 'stream' && o.name === 'stderr'))
        .map(o => o.ename || [].concat(o.text).join('')))"""
UNEXECUTED = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(c => c.model.type === 'code' && c.model.sharedModel.source.trim()
        && c.model.executionCount === null).length"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    "A copy of what a reader sees, so that running a notebook leaves the checkout clean."
    folder = tmp_path_factory.mktemp("lab")
    for name in ("nbs", "figures"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="module")
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
        for _ in range(120):
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


def test_the_index_shows_its_pictures(lab, page, screenshots):
    page.goto(lab.format("nbs/index.ipynb"))
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000)
    page.wait_for_selector(".jp-RenderedMarkdown img", timeout=30_000)
    page.wait_for_timeout(1500)
    sizes = page.evaluate("() => [...document.querySelectorAll('.jp-Notebook img')].map(i => i.naturalWidth)")
    page.screenshot(path=screenshots / "lab_index.png")
    assert sizes and all(sizes)


@pytest.mark.parametrize("name", RUN_ALL)
def test_run_all_leaves_no_error_and_no_warning(name, lab, page, screenshots):
    page.goto(lab.format(f"nbs/{name}.ipynb"))
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context", timeout=60_000)
    page.evaluate(READY)  # without it half of the runs hang
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        status = page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status")
        if status == "idle" and (page.evaluate(UNEXECUTED) == 0 or page.evaluate(FAULTS)):
            break
        time.sleep(1)
    page.screenshot(path=screenshots / f"lab_{name}.png")
    assert page.evaluate(FAULTS) == []
    assert page.evaluate(UNEXECUTED) == 0, json.dumps(page.evaluate(FAULTS))
