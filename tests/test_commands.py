"""Commands in this process: what is not ours stays, mistakes cost a line, one command takes what another wrote."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from bertlab import cli
from bertlab.bpe import train_tokenizer
from bertlab.commands.course import format_predictions
from bertlab.core.files import folder_lock
from bertlab.encoder import EncoderConfig
from bertlab.finetuning import Classifier, load_classifier, save_classifier
from bertlab.mlm import MaskedLM, load_model, save_model
from bertlab.token_store import in_memory_store

ENV = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
BERTLAB = str(Path(sys.executable).parent / "bertlab")
TEXTS = [
    f"the {t} number {i} is {s}" for i in range(16) for t in ("array", "index") for s in ("sorted", "empty")
]
TINY = "--merges 20 --d-model 16 --heads 2 --d-ff 32 --layers 1 --eval-sentences 20 --batch-size 8".split()
RUN_CONFIG = {"format": 1, "config": {"a": 1}, "identity": {}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    "The working folder: models, a run, data, and somebody else's files."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 20)
    shape = EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1, max_len=40)
    save_model(MaskedLM(shape), tokenizer, tmp_path / "mlm")
    save_model(MaskedLM(shape), tokenizer, tmp_path / "M" / "model")
    save_classifier(Classifier(shape, ["0", "1"]), tokenizer, tmp_path / "clf")
    rows = [f"word{chr(97 + i)} {'fire' if i % 2 else 'song'},{i % 2}" for i in range(26)]
    tweets = [f"{i},,,word{chr(97 + i)} fire,{i % 2}" for i in range(26)]
    files = {
        "M/config.json": json.dumps(RUN_CONFIG),
        "M/checkpoints/step-00000001/state.json": "{}",
        "M/record.json": json.dumps({"kind": "pretraining", "result": {}, "history": []}),
        "results/precious.txt": "years of work",
        "foreign/config.json": '{"of": "something else"}',
        "test.csv": "id,keyword,location,text\n1,,,a fire\n",
        "d.csv": "\n".join(["text,label", *rows]),
        "text.txt": "\n".join(TEXTS),
        "t/train.csv": "\n".join(["id,keyword,location,text,target", *tweets]),
        "t/test.csv": "id,keyword,location,text\n1,,,a fire\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf8")
    os.link(tmp_path / "d.csv", tmp_path / "hard.csv")
    (tmp_path / "soft.csv").symlink_to("d.csv")
    return tmp_path


def fails(capsys, *words):
    "The line of a command that fails."
    assert cli.main([str(word) for word in words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Traceback" not in told, told
    return told


def snapshot(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock" and ".cache" not in p.parts
    }


# ---------------------------------------------------------------- what is not ours is never destroyed


@pytest.mark.parametrize(
    "words",
    [
        "predict clf --tweets test.csv --out results",
        "predict clf --file d.csv --out results",
        "predict clf --file d.csv --out d.csv",
        "predict clf --file d.csv --out hard.csv",
        "predict clf --file d.csv --out soft.csv",
        "predict clf --tweets test.csv --out test.csv",
        "predict clf --file d.csv --out clf/config.json",
        "predict clf --file d.csv --out clf/predictions.csv",
        "predict M --file d.csv --out M/record.json",
        "predict M --file d.csv --out M/model/predictions.csv",
        "export mlm --to mlm/exported",
        "study --out mlm",
        "study --out d.csv",
        "bench --out d.csv",
        "trials run T5 --folder d.csv",
        "sweep FT.1 --model mlm --data d.csv --folder d.csv/records",
        "pretrain --corpus text.txt --out=",
        "finetune --model M/model --data d.csv --out M/model",
        "finetune --model M --data d.csv --out M",
        "finetune --model mlm --data d.csv --out clf",
        "finetune --model mlm --data d.csv --out foreign",
        "finetune --model mlm --data t --out t",
        "pretrain --corpus text.txt --out M",
        "pretrain --corpus text.txt --out M/model",
        "pretrain --corpus text.txt --out M/model/more",
        "pretrain --corpus text.txt --out M/checkpoints",
        "pretrain --corpus text.txt --out clf",
        "pretrain --corpus text.txt --out foreign",
        "pretrain --corpus text.txt --out text.txt",
        "pretrain --corpus text.txt --out /",
        "translate train --out M",
        "translate train --out clf",
        "translate train --out foreign",
        "tweets --data t --model mlm --out mlm",
        "tweets --data t --model mlm --out foreign",
        "tweets --data t --model mlm --out t",
        "tweets --data t --model mlm --out new --epochs nan",
    ],
)
def test_what_is_not_ours_is_never_destroyed(home, words, capsys):
    before = snapshot(home)
    fails(capsys, *words.split())
    assert snapshot(home) == before


def test_a_submission_is_written_by_the_name_of_the_class(home, capsys):
    model, tokenizer = load_classifier(home / "clf")
    status = {}
    for names in (["disaster", "ordinary"], ["ordinary", "disaster"], ["cat", "dog"]):
        model.config["labels"] = names
        save_classifier(model, tokenizer, home / names[0])
        words = ["predict", names[0], "--tweets", "test.csv", "--out", f"{names[0]}.csv"]
        status[names[0]] = cli.main(words)
    assert status == {"disaster": 0, "ordinary": 0, "cat": 2}
    targets = [(home / f"{name}.csv").read_text().splitlines()[1] for name in ("disaster", "ordinary")]
    assert sorted(targets) == ["1,0", "1,1"]  # the same probabilities, the classes the other way round


# ---------------------------------------------------------------- predictions in every form


def test_predictions_from_files_and_standard_input(home, capsys, monkeypatch):
    texts = ["the array is sorted", "an index"]
    (home / "table.csv").write_text("id,text\n" + "\n".join(f"{i},{t}" for i, t in enumerate(texts)))
    (home / "table.tsv").write_text("text\n" + "\n".join(texts))
    (home / "lines.txt").write_text("\n".join(texts) + "\n\n")
    found = []
    for source in (["--file", "table.csv"], ["--file", "table.tsv"], ["--file", "lines.txt"], texts):
        assert cli.main(["predict", "clf", *source, "--format", "json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    assert cli.main(["predict", "clf", "-", "--format", "csv"]) == 0
    piped = capsys.readouterr().out
    rows = [
        {name: float(x) if name.startswith("p(") else x for name, x in row.items()}
        for row in csv.DictReader(io.StringIO(piped))
    ]
    for answer in (*found, rows):
        assert [row["text"] for row in answer] == texts and answer == found[0]
        assert all(abs(row["p(0)"] + row["p(1)"] - 1) < 1e-5 for row in answer)
    for name in ("out.csv", "out.json"):
        assert cli.main(["predict", "clf", *texts, "--out", name]) == 0
    assert json.loads((home / "out.json").read_text()) == found[0]
    assert (home / "out.csv").read_text() == piped


@pytest.mark.parametrize(
    "content, says",
    [(b"", "there is no text"), (b"\xff\n", "not UTF-8"), (b"\n \n", "there is no text")],
)
def test_standard_input_that_holds_nothing(home, capsys, monkeypatch, content, says):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert says in fails(capsys, "predict", "clf", "-")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--file", "nowhere.csv"], "no such file"),
        (["--file", "t/train.csv", "text"], "or two things"),
        (["--file", "cells.csv"], "no column 'text'"),
        (["text", "--out", "x.txt"], "ending in .csv or .json"),
        (["--tweets", "test.csv", "--out", "x.json"], "ending in .csv"),
        (["text", "--format", "xml"], "invalid choice 'xml'"),
    ],
)
def test_predictions_that_cannot_be(home, capsys, words, says):
    (home / "cells.csv").write_text("a,b\n1,2\n")
    assert says in fails(capsys, "predict", "clf", *words)


def test_scores_of_each_class_and_the_positive_one(home, capsys):
    words = "finetune --model mlm --data d.csv --epochs 1 --n-filters 4 --valid 0.25".split()
    assert cli.main([*words, "--out", "a", "--positive", "0"]) == 0
    told = capsys.readouterr().out
    assert "the positive class is '0' (as asked for)" in told and re.search(r"class +\| +precision", told)
    assert re.search(r"\d+ texts, \d+ tokens, 1 epoch: about .* on this machine", told)
    assert "no text has the label 'maybe'" in fails(capsys, *words, "--out", "b", "--positive", "maybe")
    assert not (home / "b").exists()


# ---------------------------------------------------------------- the command as a person uses it


def test_help_imports_nothing_heavy():
    code = "import sys; from bertlab.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    heavy = {"torch", "numpy", "pandas", "scipy", "sklearn", "tokenizers", "tyro", "tqdm"}
    assert "bertlab COMMAND" in done.stdout and not heavy & set(done.stderr.split())


def test_the_overview_has_every_command_in_whole_sentences():
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in cli.overview() and command.__doc__.rstrip().endswith(".")
    assert {"tweets", "sweep", "plan"} <= set(cli.COMMANDS)


def test_flags_are_grouped_by_config(capsys):
    assert cli.main(["pretrain", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"{group} options" in told for group in ("data", "encoder", "masking", "train"))
    assert cli.main(["predict", "--help"]) == 0
    assert "a single - reads" in capsys.readouterr().out  # each flag has its comment
    assert "--vocab-size" not in told and "--mlm-probability" in told and "passes over the training" in told


@pytest.mark.parametrize(
    "words, says",
    [
        (["pretrian"], "Did you mean pretrain"),
        (["xyz"], "Choose from study, data"),
        (["pretrain", "--out", "x", "--epohcs", "3"], "option --epohcs. Perhaps you meant --epochs"),
        (["pretrain"], "missing: --out PATH"),
        (["finetune"], "missing: --model PATH, --data STR, --out PATH"),
        (["pretrain", "--out"], "--out needs a value"),
        (
            "finetune --model a --data b --out c --kernel-sizes 3;4".split(),
            "'3;4' is not a list of whole numbers such as 3,4,5",
        ),
        (["pretrain", "--out", "x", "--layers", "2.5"], "--layers: '2.5' is not a whole number"),
        (["sweep", "FT.1", "--workers", "two"], "bertlab: --workers: 'two' is not a whole number"),
        (["bench", "--out", ""], "bertlab: --out: the path is empty"),
        (["trials", "lst"], "Choose list or run"),
        (["trials", "list", "T99"], "no row 'T99'"),
        (["translate", "M"], "nothing to translate"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion(words, says, capsys):
    assert says in fails(capsys, *words)


def test_what_one_command_writes_the_next_one_takes(home, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    assert cli.main(["fill-mask", "~/M", "the [MASK] is sorted"]) == 0
    assert cli.main(["fill-mask", "M", "the [MASK] is sorted", "--top-k", "2"]) == 0
    for words, takes in (
        (["predict", "M", "text"], "`bertlab fill-mask` takes it"),
        (["fill-mask", "clf", "a [MASK]"], "`bertlab predict` takes it"),
        (["translate", "clf", "text"], "`bertlab predict` takes it"),
        (["finetune", "--model", "clf", "--data", "d.csv", "--out", "x"], "`bertlab predict` takes it"),
    ):
        assert takes in fails(capsys, *words)
    shutil.rmtree(home / "M" / "model")
    assert "is a run without a model" in fails(capsys, "fill-mask", "M", "a [MASK]")


def test_trials_of_one_name(capsys):
    assert cli.main(["trials", "list", "T5"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows and all(row.startswith("| T5.") for row in rows)


def test_a_plan_speaks_of_minutes_and_millions(capsys):
    assert cli.main("plan --corpus-tokens 3000000 --tflops 100 --precision bf16".split()) == 0
    told = capsys.readouterr().out
    assert "3.0 million" in told and "million parameters" in told and "minutes" in told


def test_pretraining_says_how_long_it_takes_and_what_was_cut(home, capsys):
    lines = (f"the {w} number {i} is {'very ' * 9} long" for i in range(20) for w in ("array", "list"))
    (home / "long.txt").write_text("\n".join(lines))
    assert cli.main(["pretrain", "--corpus", "long.txt", "--out", "run", "--max-len", "4", *TINY]) == 0
    told = capsys.readouterr().out
    assert re.search(r"tokens in 1 epoch: about .* on this machine", told)
    assert "left out: " in told and "beyond 4 tokens" in told


def test_module_and_completion():
    done = subprocess.run([sys.executable, "-m", "bertlab", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "bertlab COMMAND" in done.stdout
    script = cli.completion_script("bash")
    check = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert "complete" in script and "pretrain" in script and check.returncode == 0, check.stderr
    assert cli.main(["--completion", "csh"]) == 2


def test_doctor_says_what_computes(capsys):
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^device +\w+ \(", told, re.M) and "Apple GPU (MPS)" in told and "GiB free" in told


# ---------------------------------------------------------------- one line, never a traceback, a hang or an abort


@pytest.mark.parametrize(
    "words, says",
    [
        (["--seed", str(10**20)], "seed is 100000000000000000000"),
        (["--epochs", "1e308"], "epochs is 1e+308"),
        (["--merges", str(10**9)], "merges is 1000000000"),
        (["--d-ff", "2000000000"], "GiB"),
        (["--d-model", "2000000"], "no machine holds that"),
        (["--corpus", "fifo"], "fifo"),
        (["--corpus", "none"], "no such file or folder"),
        (["--out", "/"], "is not a folder that a run can live in"),
        (["--out", "fifo"], "fifo"),
        (["--out", "pipes"], "not a regular file"),
        (["--out", "x" * 300], "too long"),
    ],
)
def test_an_impossible_pretraining_is_one_line(home, capsys, words, says):
    os.mkfifo(home / "fifo")
    (home / "pipes").mkdir()
    os.mkfifo(home / "pipes" / "config.json")
    assert says in fails(capsys, "pretrain", "--corpus", "text.txt", "--out", "run", *TINY, *words)


@pytest.mark.parametrize(
    "words", ["--d-ff 2000000000", "--d-model 100000 --heads 1", "--layers 1000 --d-ff 90000"]
)
def test_an_impossible_translator_is_one_line(home, capsys, words):
    assert "GiB" in fails(capsys, "translate", "train", "--out", "run", *words.split())
    assert not (home / "run").exists()


def test_a_full_memory_is_one_line(capsys, monkeypatch):
    def breaks(argv):
        torch.empty(2**47)

    monkeypatch.setitem(cli.COMMANDS, "data", breaks)
    assert "the memory is full" in fails(capsys, "data")


@pytest.mark.parametrize("name", ["a" * 244, "가" * 81])
def test_the_longest_names_work(home, name):
    shutil.copy(home / "text.txt", home / f"{name}.txt"[-244:])
    words = ["pretrain", "--corpus", f"{name}.txt"[-244:], "--out", name, *TINY]
    assert cli.main(words) == 0 and cli.main(["fill-mask", name, "the [MASK] is sorted"]) == 0


def test_the_folder_where_one_stands(home, monkeypatch):
    (home / "empty").mkdir()
    monkeypatch.chdir(home / "empty")
    assert cli.main(["pretrain", "--corpus", "../text.txt", "--out", ".", *TINY]) == 0
    assert cli.main(["fill-mask", ".", "the [MASK] is sorted"]) == 0


@pytest.mark.parametrize("content", ["{}", "[]", "null", "3", '"a"', "[[]]", "{", ""])
def test_records_and_configs_of_any_json(home, capsys, content):
    (home / "odd").mkdir()
    for name in ("config.json", "record.json"):
        (home / "odd" / name).write_text(content)
    fails(capsys, "pretrain", "--corpus", "text.txt", "--out", "odd", *TINY)
    fails(capsys, "fill-mask", "odd", "a [MASK]")
    shutil.copy(home / "M" / "config.json", home / "odd" / "config.json")
    fails(capsys, "pretrain", "--corpus", "text.txt", "--out", "odd", *TINY)
    (home / "records").mkdir()
    for name in ("trial_mini_T5.1.json", "bench_cpu.json", "sweep_mini_FT.1.json"):
        (home / "records" / name).write_text(content)
    fails(capsys, "trials", "list", "--folder", "records")


def test_a_pipe_and_a_foreign_tokenizer(home, capsys):
    os.mkfifo(home / "fifo")
    (home / "pipes").mkdir()
    os.mkfifo(home / "pipes" / "config.json")
    assert "is not a file" in fails(capsys, "fill-mask", "pipes", "a [MASK]")
    assert "pipe" in fails(capsys, "predict", "clf", "--file", "fifo")
    wordpiece = {
        "version": "1.0",
        "model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
    wordpiece["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    (home / "mlm" / "tokenizer.json").write_text(json.dumps(wordpiece))
    assert "tokenizer" in fails(capsys, "fill-mask", "mlm", "a [MASK]")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_one_line(home, capsys):
    pytest.importorskip("transformers")
    assert cli.main(["export", "mlm", "--to", os.fsdecode(b"caf\xe9")]) == 2
    told = capsys.readouterr().err  # after the bars of transformers
    assert told.splitlines()[-1].endswith("the name is not valid UTF-8. Choose or give it another name.")
    assert "Traceback" not in told and not any(home.glob("*caf*"))


def test_the_same_weights_with_another_config_are_another_model(home, capsys):
    words = "finetune --model mlm --data d.csv --out f --epochs 1 --n-filters 2".split()
    assert cli.main(words) == 0
    config = json.loads((home / "mlm" / "config.json").read_text())
    config["config"]["activation"] = "relu"
    (home / "mlm" / "config.json").write_text(json.dumps(config))
    assert "holds a run on another model" in fails(capsys, *words)


def test_half_a_character_is_text(home, capsys):
    assert cli.main(["fill-mask", "mlm", "\udcff [MASK] \ud800"]) == 0
    assert cli.main(["predict", "clf", "\udcff"]) == 0


@pytest.mark.parametrize("tflops", ["nan", "inf", "0", "1e-320", "1e308"])
def test_a_rate_is_that_of_a_machine(tflops, home, capsys):
    assert "tflops is" in fails(capsys, "plan", "--corpus-tokens", "1000", "--tflops", tflops)


@pytest.mark.parametrize("gpus", ["nan", "inf", "-1", "many"])
def test_gpus_are_a_number(gpus, capsys):
    fails(capsys, "sweep", "FT.1", "--gpus", gpus)


def test_a_reader_who_has_had_enough_is_no_error(tmp_path):
    for words in ("--help", "pretrain --help", "trials"):
        command = f"{BERTLAB} {words} 2>{tmp_path / 'err'} | true; exit ${{PIPESTATUS[0]}}"
        assert subprocess.run(["bash", "-c", command], env=ENV).returncode == 0
        assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize("words", [["data", "aihub"], ["data", "ko.txt"], ["data", "없다.txt"], ["finetune"]])
def test_a_terminal_that_knows_few_signs(words, home):
    (home / "ko.txt").write_text("\n".join(f"파일 {i} 열기" for i in range(9)), encoding="utf8")
    env = ENV | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([BERTLAB, *words], capture_output=True, env=env, cwd=home)
    assert done.returncode in (0, 2) and b"Traceback" not in done.stderr and done.stderr.count(b"\n") < 2


NOBODY = """
import contextlib, io, os, sys, bertlab.cli
with contextlib.redirect_stdout(io.StringIO()):
    bertlab.cli.main(sys.argv[1:])  # imports what an unprivileged user might not be allowed to read
for name in ("HOME", "BERTLAB_CACHE"):
    os.environ.pop(name, None)
os.setuid(54321)
sys.exit(bertlab.cli.main(sys.argv[1:]))
"""


def as_nobody(*words, cwd):
    "A command by a user without a home, an entry in the list of users, or the right to write anywhere here."
    if not hasattr(os, "setuid") or os.getuid():
        pytest.skip("only root can become another user")
    return subprocess.run(
        [sys.executable, "-c", NOBODY, *words], env=ENV, capture_output=True, text=True, cwd=cwd
    )


def test_no_home_and_no_cache_is_one_line(home):
    done = as_nobody("data", "default", cwd="/tmp")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "BERTLAB_CACHE" in done.stderr


def test_a_finished_run_can_be_read_where_nothing_can_be_written(home):
    assert cli.main(["pretrain", "--corpus", "text.txt", "--out", "run", *TINY]) == 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(home / "run", Path(folder) / "run")
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        done = as_nobody("fill-mask", "run", "the [MASK] is sorted", cwd=folder)
    assert done.returncode == 0 and done.stdout.startswith("[MASK] 1: "), done.stderr


# ---------------------------------------------------------------- every text has its answer


def answers(capsys, *words):
    "The texts of a prediction, and what else was said."
    assert cli.main(["predict", "clf", *map(str, words), "--format", "csv"]) == 0
    said = capsys.readouterr()
    return [row["text"] for row in csv.DictReader(io.StringIO(said.out))], said.err


def test_every_row_of_a_table_has_its_answer(home, capsys):
    "Seen before: rows without a text were left out without a word, so that answers and rows were shifted."
    (home / "gap.csv").write_text("id,text\n1,a fire\n2,\n3,b\n")
    assert answers(capsys, "--file", "gap.csv")[0] == ["a fire", "", "b"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_pipe_and_a_file_have_the_same_lines(home, capsys, monkeypatch, end):
    "Seen before: a pipe was cut at form feeds and the like, a file was not; one with old line ends was one text."
    content = end.join([b"a\x0cb c", "d\u2028e\x1cf".encode(), b"", b"g\x85".decode("latin1").encode()])
    (home / "lines.txt").write_bytes(content + end)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content + end)))
    texts = answers(capsys, "-")[0]
    assert texts == answers(capsys, "--file", "lines.txt")[0] == ["a\x0cb c", "d\u2028e\x1cf", "g\x85"]


def test_raw_tweets_are_said_to_be_raw(home, capsys):
    "Seen before: a classifier of cleaned tweets read links, @names and no keyword, without a word."
    (home / "raw.csv").write_text("id,keyword,location,text\n1,fire,,a fire http://t.co/x @me\n2,,,a  song\n")
    assert "Kaggle" not in answers(capsys, "--file", "raw.csv")[1]  # its classes are 0 and 1
    model, tokenizer = load_classifier(home / "clf")
    save_classifier(Classifier(model.encoder.config, ["ordinary", "disaster"]), tokenizer, home / "tweets")
    shutil.rmtree(home / "clf")
    (home / "tweets").rename(home / "clf")
    assert "1 texts hold links" in answers(capsys, "--file", "raw.csv")[1]
    assert not answers(capsys, "a fire url user")[1]


def test_a_text_that_is_cut_is_told(home, capsys):
    assert "of 1 texts only the first 40 tokens are read" in answers(capsys, "x " * 100, "short")[1]


def test_a_word_that_is_cut_is_told_even_if_its_tokens_are_few():
    "Seen before: of a word of 5,000 letters 4,000 were not read, and nothing said so."
    tokenizer = train_tokenizer(["x" * 1024] * 9, 10)
    store = in_memory_store(["x" * 5000, "x" * 1000, "short x"], tokenizer, 256)
    assert store.manifest["truncated"] == 1 and store.lengths.max() < 256


def test_a_translation_of_a_text_that_is_cut_is_told(home, capsys, monkeypatch):
    "Seen before: `translate` said nothing, `predict` did."
    model = SimpleNamespace(config=SimpleNamespace(max_len=40), to=lambda device: None)
    tokenizer = load_classifier(home / "clf")[1]
    monkeypatch.setattr("bertlab.translation.load_translator", lambda folder: (model, tokenizer))
    monkeypatch.setattr("bertlab.translation.translate", lambda model, tokenizer, texts, beams: texts)
    assert cli.main(["translate", "clf", "x " * 100, "short"]) == 0
    assert "of 1 texts only the first 40 tokens are read" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a\rb", "a\r\nb", "a\nb", ' "a", b ', "a\u2028b", "a\x0cb", "\t"])
def test_predictions_come_back_from_csv_and_json(text):
    "Seen before: csv wrote a carriage return without quotes, and read two rows for it."
    rows = [{"text": text, "label": "x", "p(x)": 1.0}, {"text": "", "label": "x", "p(x)": 0.5}]
    written = format_predictions(rows, "csv")
    assert [row["text"] for row in csv.DictReader(io.StringIO(written, newline=""))] == [text, ""]
    frame = pd.read_csv(io.StringIO(written, newline=""), keep_default_na=False)
    assert frame.to_dict("records") == rows == json.loads(format_predictions(rows, "json"))
    assert "\r\n" not in written.replace(text, "")


@pytest.mark.parametrize(
    "content",
    ["id,text\n1,a\n2,b\n", '"text"\t"label"\na\tx\n', "text,label\n\na,b, c\n", "id;text\n1;a\n2;b\n"],
)
def test_a_table_is_not_read_as_lines(home, capsys, monkeypatch, content):
    "Seen before: `cat table.csv | bertlab predict RUN -` classified the header, and ids with the texts."
    (home / "table.txt").write_text(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    for words in (["--file", "table.txt"], ["-"]):
        assert "is a table, not a text per line" in fails(capsys, "predict", "clf", *words)


def test_lines_of_json_are_not_read_as_texts(home, capsys, monkeypatch):
    "Seen before: braces, the key and the text were classified together."
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": 1, "text": "a"}\n{"text": "b"}\n'))
    )
    assert "standard input, row 1: is JSON, not a text per line" in fails(capsys, "predict", "clf", "-")


def test_lines_with_commas_are_lines(home, capsys):
    lines = ["some text, text", "a, b", "text,label", "c", '{"error": 5}', "{text}", "1;2"]
    (home / "lines.txt").write_text("\n".join(lines))
    assert answers(capsys, "--file", "lines.txt")[0] == lines


def test_a_submission_needs_ids(home, capsys):
    "Seen before: KeyError."
    (home / "no_ids.csv").write_text("keyword,text\nk,a fire\n")
    words = ["predict", "clf", "--tweets", "no_ids.csv", "--out", "s.csv"]
    assert "no_ids.csv, row 1: has no column 'id'" in fails(capsys, *words)


def test_what_a_corpus_leaves_out_is_told_after_pretraining(home, capsys):
    "Seen before: half of the documents were damaged, and only `bertlab data` said so."
    (home / "pile").mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS] + ['{"text": 5}'] * 9
    (home / "pile" / "a.jsonl").write_text("\n".join(lines))
    (home / "pile" / "b.md").write_text("not of it")
    assert cli.main(["pretrain", "--corpus", "pile", "--out", "run", *TINY, "--epochs", "1"]) == 0
    told = capsys.readouterr().out
    assert "left out: 9 x not a document of the Pile" in told and "these are not read: b.md" in told


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("p.jsonl", b'{"text": "a"}\n', "neither a table nor lines"),
        ("p.JSON", b"[]", "neither a table nor lines"),
        ("p.xlsx", b"PK\x03\x04", "neither a table nor lines"),
        ("p.csv.bz2", b"BZh91AY&SY", "compressed by bzip2"),
        ("p.txt", b"\x1f\x8b\x08\0", "compressed by gzip, not text. Let its name end in .gz"),
        ("p.csv", b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        ("q.csv", b"id,tweet\n1,a\n", "there is no column 'text' (there is 'id', 'tweet')"),
        ("s.csv", b"id;text\n1;a, b\n", "separated by semicolons"),
        ("u.csv", b'text,label\n"a,x\nb",y\nc,x\n', "row 2: one row or several?"),
        ("t.csv", b"id\ttext\n1\ta\n", "separated by tabs. Separate the columns by commas, or let the name"),
    ],
)
def test_other_formats_are_not_taken_for_texts(home, capsys, name, content, says):
    (home / name).write_bytes(content)
    assert says in fails(capsys, "predict", "clf", "--file", name)


def test_standard_streams_may_be_closed_or_full():
    "Seen before: a traceback, since Python has no sys.stdout then."
    run = f"{sys.executable} -m bertlab"
    words = ["--help >&-", "nothing 2>&-", "--help >&- 2>&- <&-"] + ["--help >/dev/full"] * Path(
        "/dev/full"
    ).exists()
    script = "; ".join(f"{run} {word}; echo $? >&9" for word in words)
    said = subprocess.run(["bash", "-c", f"exec 9>&1; {script}"], capture_output=True, text=True, env=ENV)
    assert said.stdout.split()[-len(words) :] == ["0", "2", "0", "2"][: len(words)]
    assert "Traceback" not in said.stderr and "Exception ignored" not in said.stderr
    assert said.stderr.count("\n") <= 1


# ---------------------------------------------------------------- records edited by hand


def test_records_edited_by_hand(home, capsys):
    "Seen before: the edited scores came back as the run's, and other shapes ended in a traceback."
    words = ["pretrain", "--corpus", "text.txt", "--out", "r", *TINY]
    assert cli.main(words) == 0
    record = json.loads((home / "r/record.json").read_text())
    for change in ({"unigram": None}, {"result": []}, {"result": {"loss": 0.001}}, {"notes": 5}):
        (home / "r/record.json").write_text(json.dumps(record | change))
        assert "was edited after the run had written it" in fails(capsys, *words)
        unsealed = {k: v for k, v in (record | change).items() if k != "seal"}
        (home / "r/record.json").write_text(json.dumps(unsealed))
        if change != {"result": {"loss": 0.001}}:
            capsys.readouterr()
            assert "is not the record of such a run" in fails(capsys, *words)
    (home / "r/record.json").write_text(json.dumps(record))
    assert cli.main(words) == 0


@pytest.mark.parametrize("change", ["names", "groups"])
def test_a_finetuning_is_known_by_its_labels_and_groups(home, capsys, change):
    "Seen before: with other names of the classes, or another split, the old scores came back as new."
    words = "finetune --model mlm --data d.csv --out f --epochs 1 --n-filters 2 --batch-size 8".split()
    assert cli.main(words) == 0
    capsys.readouterr()
    header, *rows = (home / "d.csv").read_text().split("\n")
    if change == "names":
        rows = [row[:-1] + {"0": "bad", "1": "good"}[row[-1]] for row in rows]
    else:
        header, rows = header + ",group", [f"{row},{i % 9}" for i, row in enumerate(rows)]
    (home / "d.csv").write_text("\n".join([header, *rows]))
    assert "holds a run on another data" in fails(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        "data",
        "pretrain --out new --corpus",
        "finetune --model mlm --out new --data",
        "predict clf --file",
        "translate train --out new --corpus",
        "sweep FT.1 --model mlm --workers 1 --folder new --data",
        "plan --corpus",
    ],
)
def test_a_home_folder_that_nobody_has_is_one_line(home, capsys, words):
    told = fails(capsys, *words.split(), "~nobody-has-this-name/x")
    assert "no such file" in told and "~nobody-has-this-name/x" in told


def test_records_of_a_home_folder_that_nobody_has(home, capsys, monkeypatch):
    monkeypatch.setenv("BERTLAB_RECORDS", "~nobody-has-this-name/x")
    assert cli.main(["trials", "list", "T1"]) == 0


@pytest.mark.parametrize(
    "words",
    ["pretrain --out", "finetune --model mlm --out new --data", "export mlm --to", "bench --out", "data"],
)
def test_a_nul_character_is_one_line(home, capsys, words):
    assert "NUL character" in fails(capsys, *words.split(), "a\0b")


@pytest.mark.parametrize("words", ["bench --out", "trials run T1.1 --folder", "sweep P.4 --folder"])
def test_a_name_too_long_to_write_to_is_told_before_the_work(home, capsys, words):
    assert "too long" in fails(capsys, *words.split(), "x" * 300)


def test_a_section_that_the_bench_does_not_have_is_told_before_the_work(home, capsys, monkeypatch):
    monkeypatch.setattr("bertlab.bench.pipeline.prepare_data", None)
    told = fails(capsys, "bench", "--out", "new", "--only", "launch", "no-such-section")
    assert "no section is called" in told and "no-such-section" in told and "Choose from" in told


@pytest.mark.parametrize(
    "words, folder",
    [("bench --out new", "new"), ("campaign --corpus text.txt --out new --scale mini", "new")],
)
def test_two_at_once_the_second_is_refused(home, capsys, words, folder):
    "Seen before: two benches measured each other, and two calls of a campaign spent its budget twice."
    with folder_lock(home / folder):
        assert "another process is working in this folder" in fails(capsys, *words.split())


def test_a_batch_beyond_all_measure_is_one_line(home, capsys):
    for command in ("pretrain --corpus text.txt --out new", "plan --corpus text.txt"):
        told = fails(capsys, *command.split(), "--batch-size", 2**31)
        assert "batch_size" in told and "Choose at most" in told


@pytest.mark.parametrize(
    "out", ["M/record.json", "M/config.json", "foreign/config.json", "mlm/tokenizer.json"]
)
def test_predictions_replace_no_file_of_any_run_or_model(home, capsys, out):
    before = snapshot(home)
    assert "belongs to a model or a run" in fails(capsys, "predict", "clf", "a text", "--out", out)
    assert snapshot(home) == before


def test_data_says_what_a_model_will_not_read(home, capsys):
    "Seen before: `left out: nothing`, of a text of which three quarters would be cut."
    lines = ["a short line", "word " * 1000, "x" * 5000, "y" * 2000 + " and " + "z" * 2000]
    (home / "long.txt").write_text("\n".join(lines))
    assert cli.main(["data", "long.txt"]) == 0
    told = capsys.readouterr().out
    assert "sentences of more than 256 words: 1;" in told
    assert "words of more than 1,000 characters, which will be cut: 3" in told
    assert cli.main(["data", "text.txt"]) == 0
    assert "note" not in capsys.readouterr().out


def test_a_model_that_computes_no_numbers_gives_no_answer(home, capsys):
    "Seen before: the first class, with the probability NaN, which is not JSON either."
    for name, load, save in (("clf", load_classifier, save_classifier), ("mlm", load_model, save_model)):
        model, tokenizer = load(home / name)
        for weight in model.parameters():
            weight.data *= 1e30
        save(model, tokenizer, home / name)
    assert "computes NaN" in fails(capsys, "predict", "clf", "a fire", "--format", "json")
    assert "computes NaN" in fails(capsys, "fill-mask", "mlm", "a [MASK]")
