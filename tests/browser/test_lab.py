"JupyterLab in a browser: the index shows its pictures, and notebooks run from top to bottom without a fault."

import json
import time

import pytest
from conftest import READY

RUN_ALL = ("04_masking", "06_encoder", "07_mlm", "10_text_cnn")
FAULTS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(c => c.model.type === 'code')
    .flatMap(c => c.model.sharedModel.getOutputs()
        .filter(o => o.output_type === 'error' || (o.output_type === 'stream' && o.name === 'stderr'))
        .map(o => o.ename || [].concat(o.text).join('')))"""
UNEXECUTED = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(c => c.model.type === 'code' && c.model.sharedModel.source.trim()
        && c.model.executionCount === null).length"""


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
