"""Any bytes for the readers, any JSON for records and configs, any word for the flags: one line, soon, or it works.

Each case has five seconds: a hang fails as a traceback does. `BertlabError` is the only exception that may leave a reader.
"""

import contextlib
import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bertlab import cli
from bertlab.bpe import load_tokenizer, train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.core.records import check_run_folder, open_run
from bertlab.core.reporting import read_records
from bertlab.data.corpora import open_corpus
from bertlab.data.labeled import read_labeled, read_tweets
from bertlab.encoder import EncoderConfig
from bertlab.finetuning import Classifier, load_classifier, save_classifier
from bertlab.mlm import MaskedLM, load_model, save_model
from bertlab.study.claims import trials_status
from bertlab.token_store import TokenStore
from bertlab.translation import load_translator

SECONDS = 5
SOON = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@contextlib.contextmanager
def time_limit(seconds=SECONDS):
    "Raise where a case takes longer; where there are no alarms, complain afterwards."

    def ring(*args):
        raise TimeoutError(f"more than {seconds} s")

    started = time.perf_counter()
    if hasattr(signal, "setitimer"):
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - started < 2 * seconds


def one_line(function, *args):
    "Call it; an error must be a `BertlabError` of one line."
    with time_limit():
        try:
            return function(*args)
        except BertlabError as e:
            assert str(e) and "\n" not in str(e).strip(), str(e)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "A tiny model and classifier."
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"the array number {i} is sorted" for i in range(20)], 10)
    shape = EncoderConfig(tokenizer.get_vocab_size(), d_model=8, heads=2, d_ff=8, layers=1, max_len=20)
    save_model(MaskedLM(shape), tokenizer, folder / "mlm")
    save_classifier(Classifier(shape, ["no", "yes"]), tokenizer, folder / "clf")
    return folder


# ---------------------------------------------------------------- readers

PIECES = st.sampled_from(
    [
        b"text,label\n",
        b"id,keyword,location,text,target\n",
        b"ko\ten\n",
        b'"',
        b",",
        b"\t",
        b"\n",
        b"\r\n",
        b"\0",
    ]
    + [
        b'{"text": "a b", "meta": {"pile_set_name": "X"}}\n',
        b'{"text": ',
        b"[]\n",
        b"null\n",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ]
    + [
        "한국어 문장.".encode(),
        b"a word",
        b"1.0",
        b"yes",
        b"\x1f\x8b",
        b"PK\x03\x04",
        b"(\xb5/\xfd",
        b" " * 50,
        b"x" * 999,
    ]
)
CONTENT = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join))
NAMES = st.sampled_from(
    "a.txt a.tsv a.csv a.jsonl a.xlsx a.txt.gz a.jsonl.zst a.csv.gz train.csv test.csv a.json".split()
)


def read_all(path):
    corpus = open_corpus(path)
    for _, _ in zip(corpus, range(1000)):
        pass
    return corpus.fingerprint


@SOON
@given(name=NAMES, content=CONTENT)
def test_any_bytes_for_the_readers(name, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    for reader in (read_all, read_labeled, read_tweets):
        one_line(reader, path)
    one_line(read_all, path.parent)


# ---------------------------------------------------------------- records, configs, manifests

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([-1, 0, 1, 2**31, 10**30]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
KEYS = st.sampled_from(
    "kind config result history identity format model_type extra tokenizer encoder labels head d_model layers row_id "
    "seed runs rows ids offsets dtype sha256 sentences tokens".split()
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value).encode("utf8", "surrogatepass"))


@SOON
@given(value=JSON)
@example(value={"kind": None, "dtype": {"kind": []}})
def test_any_json_for_runs_and_records(value, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for name in ("config.json", "record.json", "manifest.json"):
        dump(folder / name, value)
    for function in (check_run_folder, read_records, TokenStore.open, trials_status):
        one_line(function, folder)
    one_line(open_run, folder, {"a": 1})
    for name in ("trial_mini_T5.1.json", "sweep_mini_FT.1.json"):
        dump(folder / "records" / name, value)
    one_line(trials_status, folder / "records")


@SOON
@given(
    key=st.sampled_from(["model_type", "format", "tokenizer", "config", "extra", "more"]),
    value=JSON,
    data=st.data(),
)
def test_any_change_of_a_saved_model(key, value, data, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    kind, load = data.draw(
        st.sampled_from([("mlm", load_model), ("clf", load_classifier), ("mlm", load_translator)])
    )
    for path in (models / kind).iterdir():
        os.link(path, folder / path.name)
    saved = json.loads((folder / "config.json").read_text())
    inner = data.draw(st.sampled_from([None, *saved["config"]]))
    if key == "config" and inner:
        saved["config"][inner] = value
    else:
        saved[key] = value
    (folder / "config.json").unlink()
    dump(folder / "config.json", saved)
    one_line(load, folder)


@SOON
@given(value=JSON, keep=st.integers(0, 5))
def test_any_json_for_a_tokenizer(value, keep, models, tmp_path_factory):
    saved = json.loads((models / "mlm" / "tokenizer.json").read_text())
    for name in list(saved)[keep : keep + 1]:
        saved[name] = value
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    dump(path, saved if keep < 5 else value)
    one_line(load_tokenizer, path)


# ---------------------------------------------------------------- flags

FLAGS = st.sampled_from(
    "--lr --epochs --batch-size --seed --layers --d-model --d-ff --heads --merges --dropout --max-len "
    "--train-fraction --valid-fraction --mlm-probability --n-masks --strategy --schedule --optimizer "
    "--precision --gamma --warmup-epochs --restart-epochs --min-lr --max-grad-norm --eval-sentences "
    "--evals-per-epoch --lang --corpus --activation --norm --positions --embedding-norm "
    "--keep-checkpoints --help --wrong".split()
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "nan",
            "inf",
            "-1",
            "0",
            "1e308",
            "-inf",
            "1e-400",
            str(10**20),
            "2000000000",
            "",
            "-",
            "--",
            "~",
            "x",
        ]
    ),
    st.text(max_size=6),
    NUMBERS.map(str),
)


@SOON
@given(words=st.lists(st.tuples(FLAGS, VALUES), max_size=3), size=st.booleans())
def test_any_flag_of_a_plan(words, size, tmp_path_factory, monkeypatch):
    "A plan parses and checks all that a pre-training does, and starts nothing."
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    argv = ["plan", *("--tflops 100 --corpus-tokens 1000".split() if size else ["--corpus", "nowhere"])]
    argv += [word for pair in words for word in pair]
    out, err = io.StringIO(), io.StringIO()
    with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(argv)
    assert (status, err.getvalue().count("\n")) in ((0, 0), (2, 1)), (argv, err.getvalue())


@SOON
@given(
    command=st.sampled_from([*cli.COMMANDS, "translate train", "", "--completion", "nothing"]),
    words=st.lists(VALUES.filter(lambda word: word not in ("x", "~")), min_size=1, max_size=3),
)
def test_any_words_after_any_command(command, words, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    words = (
        ["--wrong", *words]
        if command in ("data", "study", "bench", "doctor", "trials", "sweep", "plan")
        else words
    )
    out, err = io.StringIO(), io.StringIO()
    with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*command.split(), *words])
    assert (status, err.getvalue().count("\n")) in ((0, 0), (2, 1)), (command, words, err.getvalue())
    assert not list(Path().iterdir())
