"""The `bertlab` command as a user types it: real processes, real exit codes."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import toy_lines

ENV = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
BERTLAB = str(Path(sys.executable).parent / "bertlab")
SMALL_CONFIG = [
    "--merges",
    "60",
    "--d-model",
    "16",
    "--heads",
    "2",
    "--d-ff",
    "32",
    "--layers",
    "1",
    "--eval-sentences",
    "50",
    "--batch-size",
    "8",
]


def bertlab(*words, cwd=None):
    command = [BERTLAB, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=cwd, timeout=120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    path.write_text("\n".join(toy_lines()), encoding="utf8")
    return path


@pytest.fixture(scope="module")
def run(corpus):
    out = corpus.parent / "run"
    done = bertlab("pretrain", "--corpus", corpus, "--out", out, "--epochs", 1, *SMALL_CONFIG)
    assert done.returncode == 0, done.stderr
    return out


def test_help_answers_without_torch():
    code = "import sys; from bertlab.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "bertlab COMMAND" in done.stdout


def test_importing_bertlab_brings_no_notebook_and_no_ray():
    code = """import sys, pkgutil, importlib, bertlab
for m in pkgutil.iter_modules(bertlab.__path__):
    if m.name[0] != '_' and m.name not in ('interop', 'export'): importlib.import_module('bertlab.' + m.name)
heavy = {'ray', 'nbdev', 'IPython', 'fastcore', 'jupyterlab', 'matplotlib', 'transformers'}
print(sorted(heavy & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def test_pretrain_writes_a_model_and_a_record(run):
    record = json.loads((run / "record.json").read_text(encoding="utf8"))
    assert record["kind"] == "pretraining" and record["result"]["loss"] > 0
    assert {p.name for p in (run / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_pretrain_again_reads_the_record(run, corpus):
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    done = bertlab("pretrain", "--corpus", corpus, "--out", run, "--epochs", 1, *SMALL_CONFIG)
    assert done.returncode == 0 and (run / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_another_config_in_the_same_folder_is_refused(run, corpus):
    done = bertlab("pretrain", "--corpus", corpus, "--out", run, "--lr", 0.5, *SMALL_CONFIG)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "other settings (train.lr: 0.5, was 0.001)" in done.stderr


def test_fill_mask(run):
    done = bertlab("fill-mask", run / "model", "the array [MASK] 3 is sorted", "--top-k", 3)
    assert done.returncode == 0 and done.stdout.startswith("[MASK] 1: ")


def test_finetune_and_predict(run, tmp_path):
    names = [a + b for a in ("ka", "lo", "mi", "ne", "tu") for b in ("ra", "so", "vi", "xe", "za", "bo")]
    kinds = (("array", "sorted", "numpy"), ("figure", "drawn", "matplotlib"))
    rows = [f"the {t} {name} is {s},{label}" for name in names for t, s, label in kinds]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]), encoding="utf8")
    done = bertlab(
        "finetune",
        "--model",
        run / "model",
        "--data",
        tmp_path / "data.csv",
        "--out",
        tmp_path / "run",
        "--epochs",
        3,
        "--n-filters",
        8,
        "--kernel-sizes",
        "2,3",
        "--freeze",
        "1",
        "--lr",
        "0.01",
    )
    assert done.returncode == 0, done.stderr
    assert "majority class" in done.stdout and "BERT + CNN" in done.stdout
    assert "the positive class is" in done.stdout and "on this machine" in done.stdout
    assert "| numpy " in done.stdout  # the scores of each class
    done = bertlab("predict", tmp_path / "run", "the array number 3 is sorted")
    assert done.returncode == 0 and done.stdout.splitlines()[2].split()[1] in ("numpy", "matplotlib")
    assert "p(numpy)" in done.stdout and "p(matplotlib)" in done.stdout


def test_translate_trains_and_translates(tmp_path):
    pairs = [
        (f"{ko} {number} 개", f"{number} {en}s")
        for number in range(10, 60)
        for ko, en in (("파일", "file"), ("폴더", "folder"), ("셀", "cell"))
    ]
    names = "가나다라마바사아자차카타파하"
    pairs += [
        (f"{a}{b} 열기", f"open {chr(97 + i)}{chr(97 + j)}")
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    lines = ["ko\ten", *map("\t".join, pairs), "하나만", "같음\t같음"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf8")
    words = [
        "translate",
        "train",
        "--corpus",
        tmp_path / "pairs.tsv",
        "--held-out-fraction",
        0.2,
        "--out",
        tmp_path / "run",
        "--epochs",
        2,
        "--num-beams",
        2,
        "--merges",
        60,
        "--d-model",
        16,
        "--heads",
        2,
        "--d-ff",
        32,
        "--layers",
        1,
        "--max-len",
        32,
    ]
    done = bertlab(*words)
    assert done.returncode == 0, done.stderr
    assert "copy the source" in done.stdout and "beam search, 2 beams" in done.stdout
    assert "left out: 1 x too few columns; 1 x the same on both sides" in done.stdout
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf8"))
    assert record["kind"] == "translation" and len(record["history"]) == 2
    assert bertlab(*words).stdout == done.stdout  # the record is read, not made again
    done = bertlab("translate", tmp_path / "run", "파일 3 개", "폴더 4 개", "--num-beams", 1)
    assert done.returncode == 0 and done.stdout.count("\n") == 2, done.stderr


def test_doctor_names_the_versions():
    done = bertlab("doctor")
    assert (
        done.returncode == 0
        and "torch" in done.stdout
        and "free disk" in done.stdout
        and "GiB free" in done.stdout
    )
    assert "corpus messages" in done.stdout and "corpus aihub" in done.stdout


@pytest.mark.parametrize(
    "words, says",
    [
        (["nonsense"], "no command 'nonsense'"),
        (["data", "nowhere.txt"], "nowhere.txt"),
        (
            ["pretrain", "--out", "x", "--d-model", "30", "--heads", "4", "--corpus", "CORPUS"],
            "cannot be divided among 4 heads",
        ),
        (["pretrain", "--out", "x", "--schedule", "linear"], "Choose one of constant"),
        (["pretrain", "--out", "x", "--precision", "fp8"], "Choose one of fp32"),
        (["pretrain", "--out", "x", "--mlm-probability", "2"], "mlm_probability"),
        (["fill-mask", "nowhere", "a [MASK]"], "no such folder"),
        (["finetune", "--model", "nowhere", "--data", "nothing.csv", "--out", "x"], "nothing.csv"),
        (["predict", "nowhere"], "nothing to classify"),
        (["translate", "nowhere", "문장"], "no such folder"),
        (["translate", "nowhere", "문장", "--num-beams", "0"], "num_beams is 0"),
        (["translate", "train", "--out", "x", "--source", "fr"], "Choose ko or en"),
        (["translate", "train", "--out", "x", "--label-smoothing", "2"], "label_smoothing is 2"),
    ],
)
def test_mistakes_cost_one_line(words, says, corpus, tmp_path):
    done = bertlab(*[corpus if w == "CORPUS" else w for w in words], cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def history(folder):
    rows = json.loads((folder / "record.json").read_text(encoding="utf8"))["history"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_killed_and_resumed_is_as_never_disturbed(corpus, tmp_path):
    "With the command itself; test_resume.py kills many more, and tests SIGTERM and SIGINT."
    words = [
        "pretrain",
        "--corpus",
        corpus,
        "--epochs",
        "4",
        "--evals-per-epoch",
        "4",
        "--dropout",
        "0.1",
        *SMALL_CONFIG,
    ]
    assert bertlab(*words, "--out", tmp_path / "whole").returncode == 0
    process = subprocess.Popen(
        [BERTLAB, *map(str, words), "--out", str(tmp_path / "pieces")],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list((tmp_path / "pieces").glob("checkpoints/step-*")):
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    assert bertlab(*words, "--out", tmp_path / "pieces").returncode == 0
    assert history(tmp_path / "pieces") == history(tmp_path / "whole")
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "pieces")]
    assert weights[0] == weights[1]


def test_two_runs_in_one_folder_the_second_is_refused(corpus, tmp_path):
    words = [
        BERTLAB,
        "pretrain",
        "--corpus",
        str(corpus),
        "--epochs",
        "500",
        "--out",
        str(tmp_path / "run"),
        *SMALL_CONFIG,
    ]
    first = subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while first.poll() is None and not list((tmp_path / "run").glob("checkpoints/step-*")):
            time.sleep(0.02)
        second = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and "another process is working in this folder" in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.skipif(os.name != "posix", reason="these signals are POSIX's")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_stopped_before_the_training_it_ends_in_one_line(tmp_path, monkeypatch, name):
    cli = importlib.import_module("bertlab.cli")
    monkeypatch.setattr(cli, "run_command", lambda argv: os.kill(os.getpid(), getattr(signal, name)))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert cli.main([]) == 130
    assert told.getvalue() == "\nbertlab: stopped.\n"


@pytest.mark.skipif(os.name != "posix", reason="SIGHUP is POSIX's")
def test_what_ignores_a_closed_terminal_goes_on(monkeypatch):
    cli = importlib.import_module("bertlab.cli")
    monkeypatch.setattr(cli, "run_command", lambda argv: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert cli.main([]) == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_preparation_that_is_killed_leaves_no_process(tmp_path):
    env = os.environ | {"BERTLAB_CACHE": str(tmp_path / "cache"), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "bertlab", "data", "default"]
    process = psutil.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    patience = time.monotonic() + 120
    while not any("loky" in " ".join(child.cmdline()) for child in process.children()):
        assert process.is_running() and time.monotonic() < patience, "it did not begin to read"
        time.sleep(0.1)
    time.sleep(1.5)  # the watchdog looks twice a second
    children = process.children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
