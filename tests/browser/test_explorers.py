"Every explorer answers to typing, sliding, picking and brushing in JupyterLab; a rendered page shows a figure."

import json

import nbformat
import pytest
from conftest import DRAWN_ALIKE, READY, ROOT

SETUP = """
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from bertlab.bpe import train_tokenizer
from bertlab.data.corpora import open_corpus
from bertlab.encoder import EncoderConfig
from bertlab.finetuning import Classifier
from bertlab.mlm import MaskedLM
from bertlab.playground import *
from bertlab.study.explorer import explore_finetuning, explore_trials
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import in_memory_store
from bertlab.translation import Transformer

torch.manual_seed(0)
texts = [text for text, _ in islice(open_corpus("default"), 500)] + ["언어 모델은 빈칸을 채운다"] * 3
tokenizer = train_tokenizer(texts, 200)
size = EncoderConfig(tokenizer.get_vocab_size(), d_model=32, heads=2, d_ff=64, layers=2, max_len=64)
models = {name: MaskedLM(size) for name in ("young", "old")}

classifier = Classifier(size, ("calm", "disaster"), HeadConfig(n_filters=4))
"""
CALLS = {  # explorer -> how it is called, and what is typed into its text field
    "merges": ("explore_merges(tokenizer)", "빈칸을 채운다 again"),
    "masks": ("explore_masks(tokenizer)", "모델은 빈칸을 채운다"),
    "packing": ("explore_packing(in_memory_store(texts, tokenizer))", None),
    "fill_mask": ("explore_fill_mask(models, tokenizer)", "언어 [MASK] 빈칸을 [MASK]"),
    "attention": ("explore_attention(models['old'], tokenizer)", "언어 모델은 the blank"),
    "schedules": ("explore_schedules()", None),
    "cnn": ("explore_cnn(classifier, tokenizer)", "빈칸을 채운다 in a fire"),
    "translation": ("explore_translation(Transformer(size), tokenizer)", "모델은 채운다"),
    "trials": ("explore_trials(folder='trials')", None),
    "finetuning": ("explore_finetuning(folder='trials')", None),
}
KEEP_ALL_CELLS = {"windowingMode": "none"}  # cells out of sight stay in the page
NOISE = ("Failed to load resource", "favicon")  # JupyterLab asks for optional files that are not there
DONE = """() => {
    const cells = jupyterapp.shell.currentWidget.content.widgets;
    return cells.every(c => c.model.executionCount !== null)
        || cells.some(c => c.model.sharedModel.getOutputs().some(o => o.output_type === 'error'));
}"""
OUTPUTS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(c => c.model.type === 'code').flatMap(c => c.model.sharedModel.getOutputs())"""


def trial_record(row_id: str, seed: int, score: float) -> dict:
    "The record of a trial that improves up to a score."
    columns = [
        f"{part}_{name}" for part in ("train", "valid") for name in ("loss", "accuracy", "bits_per_char")
    ]
    history = [{"epoch": e, "lr": 1e-3} | dict.fromkeys(columns, score * e / 4) for e in (1, 2, 3, 4)]
    result = {"accuracy": score, "bits_per_char": 1.0, "loss": 1.0}
    return {"row_id": row_id, "seed": seed, "result": result, "history": history}


def sweep_record() -> dict:
    "The record of a small grid."
    settings = [
        {"n_filters": n, "kernel_sizes": [3, 4], "freeze": "all", "dropout": 0.2, "lr": lr}
        for n in (100, 200)
        for lr in (1e-3, 1e-4, 5e-5)
    ]
    scores = {"status": "finished", "train_accuracy": 0.9}
    return {
        "runs": [{"settings": s, "valid_accuracy": 0.7 + i / 100} | scores for i, s in enumerate(settings)]
    }


@pytest.fixture(scope="module")
def page(browser, lab, workspace):
    "A notebook that calls every explorer, open in JupyterLab and run; its console errors in `page.faults`."
    records = workspace / "nbs" / "trials"
    records.mkdir()
    for row_id, seed, score in (("T6.1", 0, 0.7), ("T6.1", 1, 0.71), ("T6.2", 0, 0.8), ("T6.2", 1, 0.81)):
        path = records / f"trial_mini_{row_id}_seed{seed}.json"
        path.write_text(json.dumps(trial_record(row_id, seed, score)))
    (records / "sweep_mini_FT.1.json").write_text(json.dumps(sweep_record()))
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *(call for call, _ in CALLS.values()))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, workspace / "nbs" / "explorers.ipynb")
    settings = workspace / ".jupyter/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(KEEP_ALL_CELLS))
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.set_default_timeout(90_000)  # a busy machine needs a while
    page.faults = []
    page.on(
        "console",
        lambda m: page.faults.append(m.text) if m.type == "error" and not m.text.startswith(NOISE) else None,
    )
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(lab.format("nbs/explorers.ipynb"))
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context", timeout=60_000)
    page.evaluate(READY)
    page.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(DONE, timeout=240_000)
    outputs = page.evaluate(OUTPUTS)
    assert [o for o in outputs if o["output_type"] in ("error", "stream")] == []
    assert len(outputs) == len(CALLS)
    yield page
    page.close()


class Output:
    "The output of one explorer in the notebook."

    def __init__(self, page, name: str):
        self.page, self.cell = page, page.locator(".jp-CodeCell").nth(1 + list(CALLS).index(name))
        self.cell.scroll_into_view_if_needed()
        self.drawing = self.cell.locator(".widget-html-content, .jp-RenderedHTMLCommon").last

    def changes(self, act) -> str:
        "Do something to a control, wait until the drawing follows, and return its text."
        before, element = self.drawing.inner_html(), self.drawing.element_handle()
        act()
        self.page.wait_for_function("([e, before]) => e.innerHTML !== before", arg=[element, before])
        return self.drawing.inner_text()

    def slide(self, number: int, key: str = "ArrowRight") -> str:
        handle = self.cell.locator(".noUi-handle").nth(number)
        return self.changes(lambda: handle.press(key))


@pytest.mark.parametrize("name", [name for name, (_, typed) in CALLS.items() if typed])
def test_an_explorer_answers_to_typing(name, page, screenshots):
    output = Output(page, name)
    output.changes(lambda: output.cell.locator("input[type=text]").first.fill(CALLS[name][1]))
    output.cell.screenshot(path=screenshots / f"explorer_{name}.png")
    assert page.faults == []


@pytest.mark.parametrize(
    "name, slider, key",
    [
        ("merges", 0, "Home"),
        ("masks", 0, "End"),
        ("packing", 0, "ArrowRight"),
        ("fill_mask", 0, "Home"),
        ("attention", 0, "Home"),
        ("schedules", 1, "Home"),
        ("cnn", 0, "ArrowRight"),
        ("translation", 1, "Home"),
    ],
)
def test_an_explorer_answers_to_sliding(name, slider, key, page, screenshots):
    Output(page, name).slide(slider, key)
    assert page.faults == []


def test_a_mistake_becomes_a_sentence(page):
    output = Output(page, "fill_mask")
    said = output.changes(lambda: output.cell.locator("input[type=text]").fill("nothing is missing"))
    assert "no [MASK]" in said
    output.changes(lambda: output.cell.locator("input[type=text]").fill("a [MASK] again"))


def test_trials_follow_rows_and_measure(page, screenshots):
    output = Output(page, "trials")
    both = output.changes(
        lambda: output.cell.locator("select[multiple]").select_option(["T6.1 relu", "T6.2 swish"])
    )
    assert "swish beats relu" in both and "T6.1 relu: 0.705 ± 0.005 (2 seeds" in both
    loss = output.changes(lambda: output.cell.locator("select").nth(1).select_option("training loss"))
    assert "training loss" in loss
    output.changes(lambda: output.cell.locator("input[type=checkbox]").check())
    output.cell.screenshot(path=screenshots / "explorer_trials.png")
    assert page.faults == []


def brush(page, output, axis: int, start: float, stop: float) -> str:
    "Drag along an axis, from and to fractions of its height; the line below the picture."
    note = output.locator(".bertlab-parallel p")
    before, box = note.inner_text(), output.locator(".axis").nth(axis).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"]
    page.mouse.move(x, y + start * box["height"])
    page.mouse.down()
    page.mouse.move(x, y + stop * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_function("([e, before]) => e.innerText !== before", arg=[note.element_handle(), before])
    return note.inner_text()


def test_finetuning_follows_the_brush(page, screenshots):
    output = Output(page, "finetuning")
    assert "6 runs" in output.drawing.inner_text()
    assert brush(page, output.cell, 1, 0.02, 0.5).startswith("3 of 6 runs: mean 0.740")  # 200 filters, on top
    assert brush(page, output.cell, 5, 0.02, 0.34).startswith("1 of 6 runs")  # and the highest rate
    output.cell.screenshot(path=screenshots / "explorer_finetuning.png")
    assert brush(page, output.cell, 1, 0.5, 0.5).startswith("2 of 6 runs")  # a click takes the brush away
    assert page.faults == []


def test_hangul_is_drawn_as_hangul(page):
    output = Output(page, "masks")
    output.changes(lambda: output.cell.locator("input[type=text]").fill("언어 모델을 배운다"))
    page.evaluate("() => document.fonts.load('40px bertlab-hangul', '언어')")
    assert not page.evaluate(DRAWN_ALIKE, ["언", "어"])  # without a font, both are the same empty box


def test_a_rendered_page_shows_a_figure_that_can_be_brushed(browser, tmp_path):
    from bertlab.study.explorer import explore_finetuning

    path = tmp_path / "page.html"
    path.write_text(f"<meta charset=utf8>{explore_finetuning(folder=ROOT / 'nbs' / 'records').html()}")
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(path.as_uri())
    lines = page.locator("polyline").count()
    assert lines > 100
    assert f"of {lines} runs" in brush(page, page, 0, 0.5, 1.0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
