"""Bad input, bad disks, bad luck. Each row of a table is one case: what is wrong, and what the user is told.

Every message is one line that names the place and the hint; a traceback fails the test. What one module refuses
by itself is tested beside it (test_corpora, test_bpe, ...); here are the command line, runs and their
checkpoints, hostile files, the disk, the memory, and two processes at once.
"""

import errno
import gzip
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Bomb
from safetensors.torch import load_file, save_file
from torch import nn

from bertlab import cli, token_store
from bertlab.bpe import train_tokenizer
from bertlab.core import files
from bertlab.core.files import (
    BertlabError,
    atomic_path,
    read_json,
    remove_leftovers,
    write_checksums,
    write_json,
)
from bertlab.core.plotting import save_figure
from bertlab.core.records import list_checkpoints
from bertlab.core.reporting import read_records
from bertlab.core.saving import save_tokenizer
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.evaluation import write_submission
from bertlab.finetuning import Classifier, FeatureCache, save_classifier
from bertlab.mlm import MaskedLM, save_model
from bertlab.packing import Layout
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import DataConfig, in_memory_store, prepare_data
from bertlab.training import (
    DivergedError,
    Interrupted,
    Task,
    TrainConfig,
    fit,
    make_optimizers,
    save_checkpoint,
)

try:
    import resource
except ImportError:  # Windows
    resource = None

TEXTS = [
    f"the {t} number {i} is {s}"
    for i in range(16)
    for t in ("array", "figure", "index")
    for s in ("sorted", "drawn", "empty")
]
TINY = [
    "--merges",
    "20",
    "--d-model",
    "16",
    "--heads",
    "2",
    "--d-ff",
    "32",
    "--layers",
    "1",
    "--eval-sentences",
    "20",
    "--batch-size",
    "8",
]


@pytest.fixture(scope="module")
def fault_files(tmp_path_factory):
    "A folder with one file or folder for each fault, and some that are good."
    here = tmp_path_factory.mktemp("world")
    os.environ["BERTLAB_CACHE"], before = str(here / "cache"), os.environ.get("BERTLAB_CACHE")
    for name, content in text_files().items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 20)
    shape = EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1, max_len=40)
    save_model(MaskedLM(shape), tokenizer, here / "model")
    save_classifier(Classifier(shape, ["no", "yes"], HeadConfig(n_filters=4)), tokenizer, here / "classifier")
    for name, change in MODELS.items():
        kind = "classifier" if name.startswith("c-") else "model"
        shutil.copytree(here / kind, here / name)
        change(here / name)
    for name, change in RUNS.items():
        (here / name).mkdir()
        change(here / name)
    yield here
    os.environ.pop("BERTLAB_CACHE")
    os.environ |= {"BERTLAB_CACHE": before} if before else {}


def text_files():
    "File name -> bytes."
    good, tweets = "\n".join(TEXTS), "id,keyword,location,text,target\n"
    labels = "text,label\n" + "\n".join(
        f"word{chr(97 + i)} {'fire' if i % 2 else 'song'},{'yes' if i % 2 else 'no'}" for i in range(26)
    )
    return {
        "good.txt": good.encode(),
        "good.csv": labels.encode(),
        "empty.txt": b"",
        "cp949.txt": "좋다\n싫다".encode("cp949"),
        "nul.txt": b"one\ntw\0o\n",
        "utf16.txt": good.encode("utf-16"),
        "long.txt": b"one\n" + b"x" * 50_000_000,
        "marks.txt": b"---\n***\n",
        "emoji.txt": "🙂🙂\n🐍\n".encode(),
        "one.txt": b"only one sentence\n",
        "cut.txt.gz": gzip.compress(np.random.default_rng(0).bytes(9000).hex().encode())[:4000],
        "false.txt.zst": b"no zstd at all",
        "fr.tsv": b"ko\tfr\nx\ty\n",
        "header.tsv": b"ko\ten\n",
        "broken.xlsx": b"PK\x03\x04 broken",
        "none.jsonl": b"null\n[]\n{}\n",
        "mixed/a.txt": b"a b\n",
        "mixed/b.tsv": b"ko\ten\nx\ty\n",
        "odd/a.docx": b"x",
        "file": b"not a folder",
        "columns.csv": b"sentence,class\na,b\n",
        "oneclass.csv": b"text,label\na b,yes\nc d,yes\n",
        "gap.csv": b"text,label\na b,yes\n,no\n",
        "few.csv": b"text,label\na b,yes\nc d,no\n",
        "quote.csv": b'text,label\n"a b,yes\n',
        "latin.csv": b"text,label\ncaf\xe9,yes\n",
        "empty.csv": b"",
        "t/train.csv": (tweets + "1,,,fire,yes\n").encode(),
        "test.csv": b"id,keyword\n1,fire\n",
        "headeronly.csv": tweets.encode(),
        "numbers.csv": ("text,label\n" + "\n".join(f"{i},{i % 2}" for i in range(30))).encode(),
    }


def edit(**changes):
    "A change of the config inside config.json; `encoder` is changed key by key."

    def change(folder):
        saved = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            saved["config"][key] = {**saved["config"]["encoder"], **value} if key == "encoder" else value
        (folder / "config.json").write_text(json.dumps(saved))

    return change


def weights_as(write):
    return lambda folder: write(folder / "model.safetensors")


MODELS = {  # folder -> how it differs from a good one; those that begin with c- are classifiers
    "cut": weights_as(lambda path: path.write_bytes(path.read_bytes()[:-9])),
    "gone": weights_as(lambda path: path.unlink()),
    "pickle": weights_as(lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "mark")))),
    "torch": weights_as(lambda path: torch.save(Bomb(path.parent / "mark"), path)),
    "wide": edit(d_model=32),
    "positions": edit(max_len=10**12),
    "towers": edit(layers=10**9),
    "endless": edit(d_ff=10**30),
    "negative": edit(layers=-1),
    "words": edit(dropout="much"),
    "deep": lambda f: (f / "config.json").write_text("[" * 10**5),
    "digits": lambda f: (f / "config.json").write_text('{"config": ' + "9" * 5000 + "}"),
    "folder": lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
    "outside": lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().replace('"model_type"', '"weights": "../model", "model_type"')
    ),
    "speech": lambda f: save_tokenizer(train_tokenizer(TEXTS, 9), f / "tokenizer.json"),
    "c-kernel_sizes": edit(kernel_sizes=[10**30]),
    "c-none": edit(kernel_sizes=None),
    "c-n_filters": edit(n_filters="many"),
    "c-one": edit(labels=["no"]),
    "c-labels": edit(labels=["a", "b", "c"]),
    "c-positions": edit(encoder={"max_len": 10**12}),
    "c-heads": edit(encoder={"heads": 3}),
}
RUNS = {  # folder -> what stands in it
    "r-config": lambda f: ((f / "config.json").write_text("[]"), (f / "record.json").write_text("{}")),
    "r-cut": lambda f: ((f / "config.json").write_text('{"lr": '), (f / "record.json").write_text("{}")),
    "r-other": lambda f: (
        write_json(f / "config.json", {"format": 1, "config": {"lr": 1}, "identity": {}}),
        write_json(f / "record.json", {}),
    ),
    "records": lambda f: (f / "a.json").write_text("[1]"),
    "records2": lambda f: (f / "a.json").write_text('{"kind": "x"}'),
}


def bertlab(fault_files, capsys, *words):
    "Exit status and the line of a command that fails; `@name` stands for a file of that folder."
    try:
        status = cli.main([str(fault_files / w[1:]) if w.startswith("@") else w for w in words])
    except SystemExit as e:  # argparse
        status = e.code
    return status, capsys.readouterr().err


PRETRAIN = ["pretrain", "--out", "@run", *TINY]
FINETUNE = ["finetune", "--model", "@model", "--out", "@tuned", "--n-filters", "4", "--epochs", "1"]
COMMANDS = [  # the words after bertlab; what the one line must say
    # corpora
    (["data", "@nowhere.txt"], ["nowhere.txt", "no such file or folder", "Check the path"]),
    (["data", "@empty.txt"], ["empty.txt, row 1", "the file is empty", "Choose a file with text"]),
    (["data", "@cp949.txt"], ["cp949.txt, row 1", "is not UTF-8", "CP949"]),
    (["data", "@nul.txt"], ["nul.txt, row 2", "NUL byte", "plain text"]),
    (["data", "@utf16.txt"], ["utf16.txt, row 1", "NUL byte", "UTF-16"]),
    (["data", "@long.txt"], ["long.txt, row 2", "longer than 32 MB", "one sentence"]),
    (["data", "@marks.txt"], ["marks.txt", "holds no sentence", "Choose another file"]),
    (["data", "@emoji.txt"], ["emoji.txt", "holds no sentence"]),
    (["data", "@cut.txt.gz"], ["cut.txt.gz", "damaged or cut short", "again"]),
    (["data", "@false.txt.zst"], ["false.txt.zst", "damaged or cut short"]),
    (["data", "@fr.tsv"], ["fr.tsv, row 1", "번역문 or en", "'fr'"]),
    (["data", "@header.tsv"], ["header.tsv", "holds no sentence"]),
    (["data", "@broken.xlsx"], ["broken.xlsx", "Download it again"]),
    (["data", "@none.jsonl"], ["none.jsonl", "no line is JSON with a text", "one JSON object per line"]),
    (["data", "@mixed"], ["mixed", "pairs and text files", "a folder of one kind"]),
    (["data", "@odd"], ["odd", "holds no files that bertlab knows"]),
    (["data", "@headeronly.csv"], ["headeronly.csv", "holds no sentence"]),
    # pre-training
    ([*PRETRAIN, "--corpus", "@nowhere.txt"], ["nowhere.txt", "no such file"]),
    ([*PRETRAIN, "--corpus", "@one.txt"], ["no"]),
    (
        [*PRETRAIN, "--corpus", "@good.txt", "--lang", "ko"],
        ["lang is an option of a parallel corpus", "Choose pairs"],
    ),
    (
        [*PRETRAIN, "--corpus", "@good.txt", "--heads", "3"],
        ["d_model 16 cannot be divided among 3 heads", "Choose a multiple"],
    ),
    ([*PRETRAIN, "--corpus", "@good.txt", "--layers", "0"], ["layers is 0", "whole number from 1"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--layers", "1000000"], ["no machine holds that", "Stay below"]),
    (
        [*PRETRAIN, "--corpus", "@good.txt", "--max-len", "1000000000000"],
        ["max_len is 1000000000000", "below 2**31"],
    ),
    ([*PRETRAIN, "--corpus", "@good.txt", "--dropout", "1.5"], ["dropout is 1.5"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--merges", "-1"], ["merges is -1", "from 0 to"]),
    (
        [*PRETRAIN, "--corpus", "@good.txt", "--valid-fraction", "1.5"],
        ["valid_fraction is 1.5", "between 0 and 1"],
    ),
    ([*PRETRAIN, "--corpus", "@good.txt", "--valid-fraction", "nan"], ["valid_fraction is nan"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--eval-sentences", "0"], ["eval_sentences is 0"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--train-fraction", "0"], ["train_fraction is 0", "above 0"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--lr", "nan"], ["lr is nan"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--lr", "inf"], ["lr is inf", "finite"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--epochs", "inf"], ["epochs is inf", "finite"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--weight-decay", "nan"], ["weight_decay is nan"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--batch-size", "0"], ["batch_size is 0", "above 0"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--seed", "-1"], ["seed is -1", "not negative"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--decay-fraction", "2"], ["decay_fraction is 2", "from 0 to 1"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--optimizer", "sgd"], ["optimizer is 'sgd'", "adamw"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--strategy", "none"], ["strategy", "dynamic"]),
    (
        [*PRETRAIN, "--corpus", "@good.txt", "--lr", "fast"],
        ["--lr: 'fast' is not a number", "pretrain --help"],
    ),
    (["pretrain", "--corpus", "@good.txt"], ["missing: --out PATH", "pretrain --help"]),
    ([*PRETRAIN, "--corpus", "@good.txt", "--learning-rat", "1"], ["unrecognized option --learning-rat"]),
    (
        ["pretrain", "--out", "@file/run", *TINY],
        ["file: is a file, where a folder is needed", "Choose another path"],
    ),
    # runs
    (
        ["pretrain", "--out", "@r-config", *TINY],
        ["config.json", "is not the config of a run", "another folder"],
    ),
    (["pretrain", "--out", "@r-cut", *TINY], ["config.json", "is not JSON", "make it again"]),
    (["pretrain", "--out", "@r-other", *TINY], ["holds a run with other settings", "Choose another folder"]),
    # labelled texts
    ([*FINETUNE, "--data", "@nowhere.csv"], ["nowhere.csv", "no such file"]),
    ([*FINETUNE, "--data", "@empty.csv"], ["empty.csv", "the file is empty"]),
    ([*FINETUNE, "--data", "@columns.csv"], ["columns.csv", "no column 'text'", "'sentence', 'class'"]),
    ([*FINETUNE, "--data", "@oneclass.csv"], ["oneclass.csv", "all texts have one label", "another class"]),
    ([*FINETUNE, "--data", "@gap.csv"], ["gap.csv, row 3", "the text is empty", "Correct or remove"]),
    ([*FINETUNE, "--data", "@few.csv"], ["cannot be split", "Label more"]),
    ([*FINETUNE, "--data", "@quote.csv"], ["quote.csv"]),
    ([*FINETUNE, "--data", "@latin.csv"], ["latin.csv", "UTF-8"]),
    ([*FINETUNE, "--data", "@good.csv", "--valid", "1"], ["valid is 1.0", "between 0 and 1"]),
    ([*FINETUNE, "--data", "@good.csv", "--freeze", "some"], ["freeze is 'some'", "Choose none, all"]),
    ([*FINETUNE, "--data", "@good.csv", "--freeze", "5"], ["the encoder has 1", "smaller number"]),
    (
        [*FINETUNE, "--data", "@good.csv", "--n-dropped-layers", "1"],
        ["n_dropped_layers is 1", "at least one layer"],
    ),
    (
        [*FINETUNE, "--data", "@good.csv", "--kernel_sizes", "3,x"],
        ["--kernel-sizes: '3,x' is not a list of whole numbers such as 3,4,5"],
    ),
    (
        [*FINETUNE, "--data", "@good.csv", "--kernel_sizes", "0"],
        ["kernel_sizes is [0]", "at least one width"],
    ),
    ([*FINETUNE, "--data", "@good.csv", "--n-filters", "0"], ["n_filters is 0", "1 or more"]),
    (
        [*FINETUNE, "--data", "@good.csv", "--model", "@classifier"],
        ["config.json", "of type 'classifier', not 'mlm'"],
    ),
    # saved models
    (["fill-mask", "@nowhere", "a [MASK]"], ["nowhere", "no such folder", "Give the folder"]),
    (["fill-mask", "@file", "a [MASK]"], ["file", "no such folder"]),
    (["fill-mask", "@cut", "a [MASK]"], ["model.safetensors", "not a whole safetensors file"]),
    (["fill-mask", "@gone", "a [MASK]"], ["model.safetensors", "no such file"]),
    (["fill-mask", "@pickle", "a [MASK]"], ["is a pickle", "run any code"]),
    (["fill-mask", "@torch", "a [MASK]"], ["is a pickle", "run any code"]),
    (["fill-mask", "@wide", "a [MASK]"], ["model.safetensors", "the config asks for"]),
    (["fill-mask", "@positions", "a [MASK]"], ["config.json", "max_len is 1000000000000"]),
    (["fill-mask", "@towers", "a [MASK]"], ["config.json", "no machine holds that"]),
    (["fill-mask", "@endless", "a [MASK]"], ["config.json", "d_ff is 1000000"]),
    (["fill-mask", "@negative", "a [MASK]"], ["config.json", "layers is -1"]),
    (["fill-mask", "@words", "a [MASK]"], ["config.json", "not an encoder's config"]),
    (["fill-mask", "@deep", "a [MASK]"], ["config.json", "is not JSON"]),
    (["fill-mask", "@digits", "a [MASK]"], ["config.json", "is not JSON"]),
    (["fill-mask", "@folder", "a [MASK]"], ["config.json", "is not a file"]),
    (["fill-mask", "@outside", "a [MASK]"], ["config.json", "does not know ('weights')"]),
    (["fill-mask", "@speech", "a [MASK]"], ["tokenizer.json", "not the tokenizer that was saved"]),
    (["fill-mask", "@model", "no hole"], ["no [MASK]"]),
    (["fill-mask", "@model", "[MASK]" + " word" * 99], ["the model takes 40"]),
    (["fill-mask", "@model", "a [MASK]", "--top-k", "0"], ["top_k is 0", "1 prediction or more"]),
    (["predict", "@model", "text"], ["of type 'mlm', not 'classifier'"]),
    (["predict", "@classifier"], ["nothing to classify", "Give texts"]),
    (["predict", "@classifier", "text", "--tweets", "@test.csv"], ["or two things"]),
    (["predict", "@classifier", "--tweets", "@test.csv"], ["test.csv", "'text' is missing"]),
    (["predict", "@c-kernel_sizes", "text"], ["config.json", "describes no model"]),
    (["predict", "@c-none", "text"], ["config.json", "describes no model"]),
    (["predict", "@c-n_filters", "text"], ["config.json", "describes no model"]),
    (["predict", "@c-one", "text"], ["config.json", "at least 2 classes"]),
    (["predict", "@c-labels", "text"], ["model.safetensors", "the config asks for"]),
    (["predict", "@c-positions", "text"], ["config.json", "max_len is 1000000000000"]),
    (["predict", "@c-heads", "text"], ["config.json", "3 heads"]),
    # the command itself
    (["pretain"], ["no command 'pretain'", "Did you mean pretrain"]),
    (["doctor", "now"], ["unrecognized arguments: now"]),
]


@pytest.mark.parametrize(
    "words, parts",
    COMMANDS,
    ids=[" ".join(w.lstrip("@") for w in words if w not in TINY)[:70] for words, _ in COMMANDS],
)
def test_command(fault_files, capsys, words, parts):
    status, stderr = bertlab(fault_files, capsys, *words)
    line = stderr.strip().splitlines()[-1]
    assert status == 2 and all(part in line for part in parts), stderr
    assert "Traceback" not in stderr and (stderr.count("\n") == 1 or stderr.startswith("usage:"))
    assert not list(fault_files.glob("*/mark")) and not list(fault_files.glob("**/*.part"))


def test_there_are_many_cases():
    assert len(COMMANDS) >= 60


def test_texts_of_numbers_are_texts(fault_files, capsys):
    words = [w if w != "@tuned" else "@numbered" for w in FINETUNE]
    assert bertlab(fault_files, capsys, *words, "--data", "@numbers.csv") == (0, "")
    scores = read_json(fault_files / "numbered" / "record.json")["result"]["scores"]
    assert [row["model"] for row in scores][-1] == "BERT + CNN"  # the baselines find no word, and go on


@pytest.mark.parametrize("folder", ["records", "records2"])
def test_records_that_are_none(fault_files, folder):
    with pytest.raises(BertlabError, match="a.json: is not a run record. Remove it"):
        read_records(fault_files / folder)


@pytest.mark.parametrize(
    "problem, says",
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "secret.txt"),
            "secret.txt: Permission denied. Check",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "the memory is full. Choose a smaller"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(monkeypatch, capsys, problem, says):
    def breaks(argv):
        raise problem

    monkeypatch.setitem(cli.COMMANDS, "data", breaks)
    assert cli.main(["data"]) == 2
    stderr = capsys.readouterr().err
    assert says in stderr and stderr.count("\n") == 1


# ---------------------------------------------------------------- checkpoints


class Line(Task):
    "A line through noisy points: the smallest thing that trains, with dropout."

    def __init__(self, width=3):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.steps_per_epoch, self.width = 5, width

    def batches(self, epoch, start=0):
        for i in range(start, self.steps_per_epoch):
            yield torch.randn(4, self.width, generator=torch.Generator().manual_seed(1000 * epoch + i))

    def loss(self, batch, epoch):
        loss = (self.model(batch).squeeze(1) - batch.sum(1)).square().mean()
        return loss, {"loss": loss.detach(), "n": torch.tensor(1)}

    def metrics(self, sums):
        return {"loss": sums["loss"] / sums["n"]}

    def evaluate(self):
        return self.metrics({"loss": self.loss(torch.ones(2, self.width), 0)[0].item(), "n": 1})


CONFIG = TrainConfig(optimizer="muon", lr=1e-2, epochs=4, batch_size=4)
HALF = 2 * Line().steps_per_epoch


def steps(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture
def stopped(tmp_path):
    "A run that was stopped after two of four epochs: two checkpoints."

    class Stops(Line):
        def loss(self, batch, epoch):
            if epoch == 2:
                raise Interrupted
            return super().loss(batch, epoch)

    with pytest.raises(Interrupted):
        fit(Stops(), CONFIG, tmp_path / "run")
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000005", "step-00000010"]
    return tmp_path / "run"


@pytest.fixture(scope="module")
def reference_runs():
    task = Line()
    return fit(task, CONFIG), task.model.state_dict()


def memories(newest, change):
    saved = torch.load(newest / "optimizer.pt", weights_only=True)
    torch.save(change(saved), newest / "optimizer.pt")


def other_shape(saved):
    state = next(iter(saved[-1]["state"].values()))
    state["exp_avg"] = torch.zeros(77)
    return saved


DAMAGE = {
    "no weights": lambda c: (c / "model.safetensors").unlink(),
    "no optimiser": lambda c: (c / "optimizer.pt").unlink(),
    "empty weights": lambda c: (c / "model.safetensors").write_bytes(b""),
    "empty optimiser": lambda c: (c / "optimizer.pt").write_bytes(b""),
    "empty state": lambda c: (c / "state.json").write_bytes(b""),
    "state cut": lambda c: (c / "state.json").write_text('{"step": 1'),
    "weights cut": lambda c: (c / "model.safetensors").write_bytes(
        (c / "model.safetensors").read_bytes()[:-3]
    ),
    "optimiser cut": lambda c: (c / "optimizer.pt").write_bytes((c / "optimizer.pt").read_bytes()[:-300]),
    "state is a list": lambda c: (c / "state.json").write_text("[]"),
    "state of nothing": lambda c: (c / "state.json").write_text("{}"),
    "weights are a pickle": lambda c: (c / "model.safetensors").write_bytes(
        pickle.dumps(Bomb(c.parent / "mark"))
    ),
    "optimiser is a pickle": lambda c: (c / "optimizer.pt").write_bytes(
        pickle.dumps(Bomb(c.parent / "mark"))
    ),
    "optimiser is a bomb": lambda c: torch.save([Bomb(c.parent / "mark")], c / "optimizer.pt"),
    "optimiser of another kind": lambda c: memories(c, lambda saved: {"lr": 1}),
    "one optimiser too few": lambda c: memories(c, lambda saved: saved[:1]),
    "second optimiser of another shape": lambda c: memories(c, other_shape),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(stopped, reference_runs, damage):
    damage(list_checkpoints(stopped)[-1])
    task = Line()
    with pytest.warns(UserWarning, match="step-00000010 is damaged and is passed over"):
        history = fit(task, CONFIG, stopped)
    assert steps(history) == steps(reference_runs[0])
    assert all(torch.equal(value, reference_runs[1][name]) for name, value in task.model.state_dict().items())
    assert not (stopped / "checkpoints" / "mark").exists()
    assert (stopped / "checkpoints" / "step-00000010.damaged").is_dir()


def test_all_checkpoints_damaged_begins_anew(stopped, reference_runs):
    for path in list_checkpoints(stopped):
        (path / "state.json").write_text("{")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert steps(fit(Line(), CONFIG, stopped)) == steps(reference_runs[0])
    assert len(heard) == 2


def test_with_one_kept_a_damaged_newest_does_not_push_out_the_good(tmp_path):
    config = TrainConfig(lr=1e-2, epochs=4, batch_size=4, keep_checkpoints=1)
    fit(Line(), config, tmp_path)
    newest = list_checkpoints(tmp_path)[-1]
    (newest / "state.json").write_text("{")
    with pytest.warns(UserWarning):
        fit(Line(), config, tmp_path)
    assert newest in list_checkpoints(tmp_path) and read_json(newest / "state.json")["step"] == 20


@pytest.mark.parametrize(
    "task, config, named",
    [
        (Line(width=4), CONFIG, "model_shapes: "),
        (Line(), replace(CONFIG, lr=3.0), r"lr: 3.0, was 0.01\)"),
        (Line(), replace(CONFIG, schedule="wsd"), "schedule: wsd, was constant; epochs: 4, was unset"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(stopped, task, config, named):
    before = sorted(p.name for p in (stopped / "checkpoints").iterdir())
    with pytest.raises(BertlabError, match=rf"made with another config \({named}.*. Choose another folder"):
        fit(task, config, stopped)
    assert sorted(p.name for p in (stopped / "checkpoints").iterdir()) == before


def test_weights_of_another_shape_are_refused(stopped):
    path = list_checkpoints(stopped)[-1] / "model.safetensors"
    save_file({name: torch.zeros(2) for name in load_file(path)}, path)
    write_checksums(path.parent)
    with pytest.raises(BertlabError, match="step-00000010: belongs to a model of another shape"):
        fit(Line(), CONFIG, stopped)


# ---------------------------------------------------------------- numbers and memory


class Spoiled(Line):
    "Training that meets bad luck at step 7."

    def __init__(self, factor=1.0, batch=None, error=None):
        super().__init__()
        self.factor, self.batch, self.error, self.calls = factor, batch, error, 0

    def batches(self, epoch, start=0):
        return (Sized(x) if self.error else x for x in super().batches(epoch, start))

    def loss(self, batch, epoch):
        loss, sums = super().loss(batch.x if isinstance(batch, Sized) else batch, epoch)
        self.calls += self.model.training
        if self.calls == 8 and self.error:
            raise self.error
        return (loss * self.factor if self.calls == 8 else loss), sums

    def evaluate(self):
        return {}


class Sized:
    "A batch that knows its tokens, more of them each time."

    made = 0

    def __init__(self, x):
        Sized.made += 1
        self.x, self.layout = x, Layout.from_lengths([100 * Sized.made])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, factor):
    task = Spoiled(factor)
    with pytest.raises(
        DivergedError,
        match="not finite at step 7, at learning rate 0.01; the last good checkpoint is step-00000005",
    ) as caught:
        fit(task, CONFIG, tmp_path)
    assert caught.value.history[-1]["diverged"] and caught.value.history[-1]["step"] == 7
    assert read_json(tmp_path / "diverged.json")["history"] == caught.value.history
    assert all(p.isfinite().all() for p in task.model.parameters())


def test_a_bad_evaluation_is_no_good_checkpoint(tmp_path):
    class Bad(Line):
        def evaluate(self):
            return {"loss": float("nan")}

    with pytest.raises(DivergedError, match="step 5.*no checkpoint yet"):
        fit(Bad(), CONFIG, tmp_path)
    assert not list_checkpoints(tmp_path)


def test_a_run_that_diverges_ends_in_one_line(fault_files, capsys):
    status, stderr = bertlab(
        fault_files, capsys, "pretrain", "--out", "@wild", *TINY, "--corpus", "@good.txt", "--lr", "1e30"
    )
    assert status == 2 and "is not finite at step" in stderr and "Lower the learning rate" in stderr
    assert (
        read_json(fault_files / "wild" / "diverged.json")["history"][-1]["diverged"]
        and not (fault_files / "wild" / "record.json").exists()
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes."
        ),
    ],
)
def test_lack_of_memory_names_the_batch_and_what_would_fit(error):
    Sized.made = 0
    says = (
        "step 7 needs more memory than there is: a batch of 4 sentences, 800 tokens; "
        "one of 700 tokens fitted. Choose batch_size 3 or less"
    )
    with pytest.raises(BertlabError, match=says):
        fit(Spoiled(error=error), CONFIG)


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(Spoiled(error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")), CONFIG)


# ---------------------------------------------------------------- the disk


def in_small_disk(n_bytes, function, *args):
    "Call a function in a child process in which no file may become larger: what a full disk looks like."
    if resource is None:
        pytest.skip("this system has no limits on the size of files")
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        answer = "no error"
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
            function(*args)
        except BaseException as e:
            answer = f"{type(e).__name__}: {e}"
        finally:
            os.write(writer, answer.encode()[:4000])
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf8") as answer:
        stderr = answer.read()
    os.waitpid(child, 0)
    return stderr


@pytest.fixture
def read_only(monkeypatch):
    "Renaming is refused, as on a file system that was mounted read-only meanwhile."

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.os, "replace", refuse)
    monkeypatch.setattr(files.os, "rename", refuse)


def write_checkpoint(folder):
    task = Line(width=200)
    save_checkpoint(folder, task.model, make_optimizers(task.model, "adam", 1e-3), {"step": 1})


def write_optimizer(folder):
    task = Line()
    optimizer = make_optimizers(nn.Linear(200, 9), "adam", 1e-3)
    next(iter(optimizer)).state[torch.zeros(1)] = {"exp_avg": torch.zeros(9000)}
    optimizer[0].param_groups[0]["params"].append(next(iter(optimizer[0].state)))
    save_checkpoint(folder, task.model, optimizer, {"step": 1})


def draw(folder):
    import matplotlib.pyplot as plt

    os.environ["BERTLAB_FIGURES"], before = str(folder), os.environ.get("BERTLAB_FIGURES")
    try:
        fig = plt.figure(figsize=(4, 4))
        fig.add_subplot().imshow(np.random.default_rng(0).random((300, 300)))
        save_figure(fig, "noise")
    finally:
        plt.close("all")
        os.environ.pop("BERTLAB_FIGURES")
        os.environ |= {"BERTLAB_FIGURES": before} if before else {}


def features(folder):
    tokenizer = train_tokenizer(TEXTS, 20)
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1))
    return FeatureCache(folder).get(encoder, in_memory_store(TEXTS, tokenizer), 1)


def model(folder):
    tokenizer = train_tokenizer(TEXTS, 20)
    save_model(
        MaskedLM(EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1)),
        tokenizer,
        folder / "model",
    )


WRITERS = {
    "checkpoint": write_checkpoint,
    "optimiser": write_optimizer,
    "figure": draw,
    "features": features,
    "model": model,
    "record": lambda folder: write_json(folder / "record.json", {"history": list(range(2000))}),
    "tokenizer": lambda folder: save_tokenizer(train_tokenizer(TEXTS, 60), folder / "tokenizer.json"),
    "submission": lambda folder: write_submission(
        folder / "submission.csv", range(2000), np.zeros((2000, 2))
    ),
}


def contents(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock"
    }


REFUSED = "cannot be written.*Free some disk space or choose another folder"


def prepared_for(write, folder):
    "What lies in a folder before the disk refuses."
    torch.manual_seed(0)
    if write is not features:  # features are written once only
        write(folder)
        assert contents(folder)
    return contents(folder)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path, write):
    before = prepared_for(write, tmp_path)
    stderr = in_small_disk(3000, write, tmp_path)
    assert re.match(f"BertlabError: .*{REFUSED}", stderr) and "\n" not in stderr, stderr
    assert contents(tmp_path) == before and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_read_only_disk_leaves_what_was_there(tmp_path, request, write):
    before = prepared_for(write, tmp_path)
    request.getfixturevalue("read_only")
    with pytest.raises(BertlabError, match=REFUSED) as caught:
        write(tmp_path)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before and not list(tmp_path.rglob("*.part"))


def train_until_full(folder):
    "Training whose disk is full in the third epoch."
    task = Line()

    def loss(batch, epoch):
        if epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return Line.loss(task, batch, epoch)

    task.loss = loss
    fit(task, CONFIG, folder)


def test_a_full_disk_stops_a_run_that_then_goes_on(tmp_path, reference_runs):
    assert "step-00000015: cannot be written" in in_small_disk(10**9, train_until_full, tmp_path)
    checkpoints = [p.name for p in list_checkpoints(tmp_path)]
    assert checkpoints and sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == checkpoints
    assert steps(fit(Line(), CONFIG, tmp_path)) == steps(reference_runs[0])


def test_features_that_were_damaged_are_set_aside_and_encoded_again(tmp_path):
    expected = features(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-5])
    again = features(tmp_path)
    assert torch.equal(again.values, expected.values)
    assert path.with_name(path.name + ".damaged").is_file()


def test_neighbours_that_come_and_go_stop_no_write(tmp_path):
    (tmp_path / ".other.json.1.part").symlink_to(
        tmp_path / "gone"
    )  # listed, and not to be opened: as another process's file that has just been renamed
    write_json(tmp_path / "mine.json", [1])
    assert read_json(tmp_path / "mine.json") == [1]


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(ValueError, match="a bug"), atomic_path(tmp_path / "x"):
        raise ValueError("a bug")


# ---------------------------------------------------------------- two at once

SHARE = """
import os, sys, time, torch
from bertlab import finetuning, token_store
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.token_store import DataConfig, in_memory_store, prepare_data
fault_files, go = sys.argv[1:]
encodes, encode = [], finetuning.encode_features
finetuning.encode_features = lambda *args: (time.sleep(0.3), encodes.append(1), encode(*args))[2]
learns, learn = [], token_store.train_tokenizer
token_store.train_tokenizer = lambda *args: (time.sleep(0.3), learns.append(1), learn(*args))[2]
open(f"{go}/{os.getpid()}", "w").close()
while len(os.listdir(go)) < 2: time.sleep(0.01)
ready = prepare_data(DataConfig(fault_files + "/good.txt", merges=30), 256)
torch.manual_seed(0)
encoder = Encoder(EncoderConfig(ready.tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1))
store = in_memory_store(["the array is sorted"], ready.tokenizer)
found = finetuning.FeatureCache(fault_files + "/features").get(encoder, store, 1)
print(len(learns), len(encodes), ready.train.manifest["sha256"]["ids.bin"], found.values.sum().item())
"""


def test_two_processes_share_the_caches(fault_files, tmp_path):
    (tmp_path / "go").mkdir()
    words = [sys.executable, "-c", SHARE, str(fault_files), str(tmp_path / "go")]
    env = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "BERTLAB_CACHE": str(tmp_path / "cache")}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    learned, encoded, sums, values = zip(*(p.communicate(timeout=120)[0].split() for p in both))
    assert sorted(learned) == sorted(encoded) == ["0", "1"]  # done once, by whoever came first
    assert len(set(sums)) == len(set(values)) == 1


def test_counts_survive_a_kill_just_before_they_are_written(fault_files, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path))
    config, write = DataConfig(str(fault_files / "good.txt"), merges=30), token_store.write_json

    def killed(path, obj):
        if path.name == "prepared.json":
            raise KeyboardInterrupt
        write(path, obj)

    with monkeypatch.context() as m:
        m.setattr(token_store, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_data(config, 40)
    assert prepare_data(config, 40).corpus["sentences"] == {"text": len(TEXTS)}


def test_nothing_in_the_package_unpickles():
    "torch.load reads weights only; joblib reads what a sweep's own process has put into its private folder."
    root = Path(files.__file__).parent.parent
    source = {p.relative_to(root).as_posix(): p.read_text(encoding="utf8") for p in root.rglob("*.py")}
    allowed = {
        "core/processes.py": "joblib.load",
        "export.py": "trust_remote_code=True",  # in the model card that it writes
    }
    assert len(source) > 40
    for name, text in source.items():
        for word in (
            "import pickle",
            "joblib.load",
            "read_pickle",
            "allow_pickle=True",
            "weights_only=False",
            "trust_remote_code=True",
            "eval(compile",
        ):
            assert word not in text or allowed.get(name) == word, f"{name}: {word}"
    calls = [line for text in source.values() for line in text.splitlines() if "torch.load(" in line]
    assert calls and all("weights_only=True" in line for line in calls)


# ---------------------------------------------------------------- who else writes in a folder


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    "In a container every bertlab is process 1, so that its number says nothing."
    part, old = (tmp_path / f".model.{os.getpid()}.{suffix}" for suffix in ("part", "old"))
    for folder in (part, old, tmp_path / "model"):
        folder.mkdir()
        (folder / "a.json").write_text("{}")
    with atomic_path(tmp_path / "model", replaces=lambda folder: True) as tmp:
        tmp.mkdir()
        write_json(tmp / "a.json", [1])
    assert read_json(tmp_path / "model" / "a.json") == [1]
    assert read_json(part / "a.json") == {}  # perhaps somebody in another container is writing it


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "a.json", [1])
    replace = os.replace

    def full(source, target):
        if str(source).endswith(".part") and Path(source).is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BertlabError, match="No space left"):
        with atomic_path(tmp_path / "model", replaces=lambda folder: True) as tmp:
            tmp.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert read_json(tmp_path / "model" / "a.json") == [1]


def test_hidden_files_of_others_are_no_leftovers(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "model") as tmp:
        kept = tmp.with_name(tmp.name)
        raise KeyboardInterrupt
    kept.mkdir()  # as a kill leaves it
    (tmp_path / ".film.part").write_text("a download of the browser's")
    (tmp_path / ".backup.7.part").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".backup.7.part", ".film.part"]
