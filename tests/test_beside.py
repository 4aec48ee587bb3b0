"bertlab beside other tools: TensorBoard, `datasets` and arrow tables, each against the real library."

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from helpers import assert_error

from bertlab.core.records import history_events
from bertlab.data.corpora import open_corpus, read_column
from bertlab.data.labeled import read_labeled
from bertlab.encoder import EncoderConfig
from bertlab.finetuning import FinetuneConfig
from bertlab.pretraining import PretrainConfig, pretrain
from bertlab.study.quickstart import run_finetuning
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import DataConfig
from bertlab.training import TrainConfig

LINES = [
    f"sentence {i} is about {'rain' if i % 2 else 'an array'} and the number {i * i}." for i in range(300)
]
TEXTS = ["It rains.\nIt pours.", None, "A long line. " * 40 + "The end.", "비가 온다.", "", "x" * 5000]
SKIPPED = {"no text in this row": 1, "nothing lost: a long line, split into sentences": 1}


# ---------------------------------------------------------------- TensorBoard


def small_config(folder, **train) -> PretrainConfig:
    (folder / "lines.txt").write_text("\n".join(LINES), encoding="utf8")
    return PretrainConfig(
        DataConfig(str(folder / "lines.txt"), merges=100),
        EncoderConfig(d_model=16, heads=2, d_ff=32, layers=1, max_len=32),
        train=TrainConfig(batch_size=32, evals_per_epoch=2, **train),
    )


def read_events(folder):
    "What TensorBoard reads: tag -> [(step, value)]."
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected_events(history):
    names = {name for row in history for name in row} - {"step"}
    return {n: [(row["step"], pytest.approx(row[n], rel=1e-6)) for row in history] for n in names}


def test_tensorboard_shows_the_record_and_decides_nothing(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    config = small_config(tmp_path, epochs=2)
    watched = pretrain(config, tmp_path / "watched", tensorboard=True)
    plain = pretrain(config, tmp_path / "plain")
    events = read_events(tmp_path / "watched" / "tensorboard")
    assert len(watched["history"]) == 4 and events == expected_events(watched["history"])
    assert not (tmp_path / "plain" / "tensorboard").exists()
    assert watched["result"] == plain["result"] and watched["config"] == plain["config"]
    configs = [(tmp_path / run / "config.json").read_bytes() for run in ("watched", "plain")]
    assert configs[0] == configs[1]
    assert pretrain(config, tmp_path / "plain", tensorboard=True) == plain  # the same run, and done


def test_tensorboard_has_no_step_twice_after_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from bertlab import training

    config, run = small_config(tmp_path, epochs=3), tmp_path / "run"
    board, save, saved = run / "tensorboard", training._save, []

    def die_before_the_third_checkpoint(run):
        saved.append(run.state.step)
        if len(saved) == 3:
            raise RuntimeError("the power failed")
        save(run)

    monkeypatch.setattr(training, "_save", die_before_the_third_checkpoint)
    with pytest.raises(RuntimeError):
        pretrain(config, run, tensorboard=True)
    monkeypatch.undo()
    before = read_events(board)
    assert [
        step for step, _ in before["valid_loss"]
    ] == saved  # the third row is there, its checkpoint is not
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    viewer = EventAccumulator(str(board)).Reload()  # a TensorBoard that is open meanwhile
    record = pretrain(config, run, tensorboard=True)
    assert read_events(board) == expected_events(record["history"])
    steps = [event.step for event in viewer.Reload().Scalars("valid_loss")]
    assert steps == [row["step"] for row in record["history"]]


def test_a_run_that_began_unwatched_is_shown_whole(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    pretrain(small_config(tmp_path, epochs=1), tmp_path / "run")
    record = pretrain(small_config(tmp_path, epochs=2), tmp_path / "run", tensorboard=True)
    assert read_events(tmp_path / "run" / "tensorboard") == expected_events(record["history"])


def test_tensorboard_for_finetuning(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    pretrain(small_config(tmp_path, epochs=1), tmp_path / "mlm")
    words = [f"{'rain' if i % 2 else 'array'} {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    data = read_labeled(pd.DataFrame({"text": words, "label": [word.split()[0] for word in words]}))
    config = FinetuneConfig(HeadConfig(n_filters=4), train=TrainConfig(epochs=2))
    record = run_finetuning(config, tmp_path / "mlm", data, tmp_path / "run", tensorboard=True)
    assert read_events(tmp_path / "run" / "tensorboard") == expected_events(record["history"])


def test_without_a_folder_no_event_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with history_events(None, []) as add:
        add({"step": 1, "seconds": 1.0, "loss": 2.0})
    assert not list(tmp_path.iterdir())


RUN = """
import sys
sys.modules.update(dict.fromkeys({missing}))
from bertlab.cli import main
sys.argv = ["bertlab", "pretrain", "--corpus", "{corpus}", "--merges", "50", "--d-model", "16", "--heads", "2",
            "--d-ff", "32", "--layers", "1", "--out", "{out}", *{more}]
try:
    sys.exit(main())
finally:
    print("imported:", [name for name in sys.modules if name.partition(".")[0] == "tensorboard" and sys.modules[name]])
"""


def run_alone(tmp_path, missing=(), more=()):
    (tmp_path / "lines.txt").write_text("\n".join(LINES), encoding="utf8")
    code = RUN.format(
        missing=list(missing), more=list(more), corpus=tmp_path / "lines.txt", out=tmp_path / "run"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_tensorboard_is_imported_by_its_flag_only(tmp_path):
    done = run_alone(tmp_path)
    assert done.returncode == 0 and "imported: []" in done.stdout, done.stderr
    assert not (tmp_path / "run" / "tensorboard").exists()
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    (tmp_path / "two").mkdir()
    done = run_alone(tmp_path / "two", more=["--tensorboard"])
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "two" / "run" / "record.json").read_text())
    assert read_events(tmp_path / "two" / "run" / "tensorboard") == expected_events(record["history"])


def test_without_tensorboard_one_line_names_the_extra(tmp_path):
    done = run_alone(tmp_path, missing=["tensorboard", "torch.utils.tensorboard"], more=["--tensorboard"])
    assert done.returncode and "pip install 'bertlab[tensorboard]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


# ---------------------------------------------------------------- tables


def write_tables(folder, table):
    "One table in each of the formats that are read."
    pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
    from pyarrow import feather, parquet

    folder.mkdir(exist_ok=True)
    parquet.write_table(table, folder / "a.parquet", row_group_size=2, compression="zstd")
    with pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=2)
    feather.write_feather(table, folder / "feather.arrow", compression="lz4")
    return [folder / name for name in ("a.parquet", "a.arrow", "feather.arrow")]


@pytest.fixture
def as_text(tmp_path):
    "The sentences of TEXTS, when they are written into a text file."
    (tmp_path / "texts.txt").write_text("\n".join(t for t in TEXTS if t is not None), encoding="utf8")
    return list(open_corpus(tmp_path / "texts.txt"))


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_column_is_read_as_a_text_file_is(tmp_path, as_text, kind):
    pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
    kinds = {"string": pa.string(), "large_string": pa.large_string()}
    array = pa.array(TEXTS, kinds.get(kind, pa.string()))
    array = array.dictionary_encode() if kind == "dictionary" else array
    table = pa.table({"id": pa.array(range(6)), "text": array, "본문": array})
    for path in write_tables(tmp_path / "tables", table):
        assert list(open_corpus(path)) == as_text and list(open_corpus(f"{path}:본문")) == as_text
        corpus = open_corpus(str(path))
        assert sum(1 for _ in corpus) == len(as_text) and corpus.skipped == SKIPPED
        assert open_corpus(f"{path}:본문").fingerprint != corpus.fingerprint
        assert open_corpus(f"{path}:text").fingerprint == corpus.fingerprint
        assert corpus.describe()["options"] == {"format": "table", "column": "text"}


def test_a_folder_of_tables_and_what_datasets_saves(tmp_path, as_text):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(6))})
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    dataset.to_parquet(tmp_path / "one.parquet")
    assert list(open_corpus(tmp_path / "saved")) == list(open_corpus(tmp_path / "one.parquet")) == as_text
    assert list(open_corpus(f"{tmp_path / 'saved'}:text")) == as_text


def test_a_path_with_a_colon_is_a_path(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows allows no colon in a name")
    (tmp_path / "a:b.txt").write_text("A colon.")
    assert list(open_corpus(f"{tmp_path}/a:b.txt")) == [("a colon.", "text")]
    (tmp_path / "plain.txt").write_text("No table.")
    assert_error(lambda: open_corpus(f"{tmp_path}/plain.txt:text"), "plain.txt:text", "no such file")


def test_faulty_tables(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
    table = pa.table({"id": [1, 2], "body": [["a"], ["b"]], "text": ["one", "two"]})
    for path in write_tables(tmp_path, table):
        assert_error(
            lambda path=path: list(open_corpus(f"{path}:nothing")), path, "'nothing'", "'id', 'body'"
        )
        assert_error(
            lambda path=path: list(open_corpus(f"{path}:id")), path, "int64, not text", "a column of text"
        )
        assert_error(lambda path=path: list(open_corpus(f"{path}:body")), path, "not text")
        whole = path.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], b"text,label\na,b\n", bytes(500)):
            path.write_bytes(broken)
            assert_error(lambda path=path: list(open_corpus(path)), path)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    for path in write_tables(tmp_path, twice):
        assert_error(
            lambda path=path: list(open_corpus(path)), path, "has no column 'text' (it has 'text', 'text')"
        )
    for path in write_tables(tmp_path, pa.table({"text": pa.array([None, None], pa.string())})):
        assert_error(
            lambda path=path: list(open_corpus(path)), path, "holds no sentence", "2 x no text in this row"
        )


def test_an_arrow_file_with_wild_offsets_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
    path, table = tmp_path / "a.arrow", pa.table({"text": ["x" * 12345]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    ends = [np.array([0, end], dtype="<i4").tobytes() for end in (12345, 2**30)]
    content = path.read_bytes()
    head, _, tail = content.rpartition(ends[0])  # the first is in the metadata
    path.write_bytes(head + ends[1] + tail)
    assert_error(lambda: list(open_corpus(path)), path, "is not a table that can be read", "offset")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_is_never_in_memory_as_a_whole(tmp_path, name):
    pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
    from pyarrow import parquet

    schema, rows = pa.schema([("text", pa.string()), ("other", pa.string())]), 1000
    path, pool = tmp_path / name, pa.default_memory_pool()
    batches = (
        pa.record_batch([[f"{i} {'a b ' * 250}"] * rows, ["o" * 1000] * rows], schema) for i in range(64)
    )
    if name.endswith("parquet"):
        with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as out:
            for batch in batches:
                out.write_batch(batch)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as out:
            for batch in batches:
                out.write_batch(batch)
    del batch, batches
    before, most, n = pool.bytes_allocated(), 0, 0
    for text in read_column(path):
        n += text is not None
        if n % 500 == 0:
            most = max(most, pool.bytes_allocated() - before)
    assert n == 64 * rows and path.stat().st_size > 100 * 2**20 and most < 10 * 2**20


def test_pretraining_on_a_table_equals_that_on_the_text(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
    config = small_config(tmp_path, epochs=1)
    path = write_tables(tmp_path / "tables", pa.table({"body": LINES}))[0]
    table = PretrainConfig(
        DataConfig(f"{path}:body", merges=100), config.encoder, config.masking, config.train
    )
    records = [pretrain(c, tmp_path / name) for c, name in ((config, "text"), (table, "table"))]
    assert records[0]["result"] == records[1]["result"]
    assert records[1]["corpus"]["options"] == {"format": "table", "column": "body"}
    moved = path.rename(tmp_path / "a.parquet")  # a run is known by what its corpus holds, wherever that lies
    again = PretrainConfig(
        DataConfig(f"{moved}:body", merges=100), config.encoder, config.masking, config.train
    )
    assert pretrain(again, tmp_path / "table") == records[1]


# ---------------------------------------------------------------- texts in memory


def test_texts_in_python_are_one_corpus_wherever_they_lie(as_text):
    sources = [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS),
        pd.DataFrame({"text": TEXTS}),
    ]
    for found in map(open_corpus, sources):
        assert list(found) == as_text and found.skipped == SKIPPED
    fingerprints = {open_corpus(source).fingerprint for source in sources}
    assert len(fingerprints) == 1
    assert open_corpus(TEXTS[::-1]).fingerprint not in fingerprints
    assert open_corpus([*TEXTS[:-1], "x" * 4999 + "y"]).fingerprint not in fingerprints
    assert open_corpus(["ab", "c"]).fingerprint != open_corpus(["a", "bc"]).fingerprint
    assert open_corpus([None, "a"]).fingerprint != open_corpus(["", "a"]).fingerprint
    assert [text for text, _ in open_corpus(TEXTS, limit=2)] == ["it rains.", "it pours."]


def test_datasets_and_their_columns(as_text):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    dataset = datasets.Dataset.from_dict({"n": list(range(6)), "text": TEXTS})
    stream = dataset.to_iterable_dataset(num_shards=2)
    generated = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    sources = [dataset, dataset["text"], dataset.with_format("numpy"), stream, stream["text"], generated]
    for source in sources:
        corpus = open_corpus(source)
        assert list(corpus) == list(corpus) == as_text
        assert corpus.fingerprint == open_corpus(TEXTS).fingerprint
    assert_error(lambda: open_corpus(datasets.DatasetDict(train=dataset)), "Choose a split: dataset['train']")
    assert_error(lambda: open_corpus(dataset.remove_columns("text")), "has no column 'text' (it has 'n')")
    assert_error(lambda: list(open_corpus(dataset["n"])), "row 1", "int, not text")


def test_what_is_no_corpus():
    assert_error(lambda: open_corpus(text for text in TEXTS), "a generator, which can be read only once")
    assert_error(lambda: open_corpus(set(TEXTS)), "is a set, whose order is another in every process")
    assert_error(lambda: open_corpus(3), "is a int, not texts")
    assert_error(lambda: list(open_corpus(["a", 5])), "row 2", "int, not text")
    assert_error(lambda: open_corpus(TEXTS, lang="ko"), "lang is an option of a parallel corpus")
    assert_error(lambda: list(open_corpus([None])), "holds no sentence")


# ---------------------------------------------------------------- the hub, played by this machine


class Hub(BaseHTTPRequestHandler):
    "Answers as huggingface.co does, for one data set of one parquet file."

    repo, sha, content, asked = "someone/rain", "0123456789abcdef" * 2 + "01234567", b"", []

    def reply(self, body=b"", kind="application/json", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        file = {"type": "file", "path": "data/train-0.parquet", "size": len(self.content), "oid": "1" * 40}
        folder = {"type": "directory", "path": "data", "size": 0, "oid": "2" * 40}
        if path.endswith("/data/train-0.parquet"):
            span = self.headers.get("Range")
            start, end = span[6:].split("-") if span else ("0", "")
            part = self.content[int(start) : int(end) + 1 if end else None]
            total = f"bytes {start}-{int(start) + len(part) - 1}/{len(self.content)}"
            more = {"Content_Range": total} if span else {}
            etag = {"ETag": '"1"', "X_Repo_Commit": self.sha, "Accept_Ranges": "bytes"}
            return self.reply(part, "application/octet-stream", 206 if span else 200, **etag, **more)
        if f"/api/datasets/{self.repo}/tree/" in path:
            listed = [file] if path.endswith("/data") else [folder, *[file] * ("recursive=True" in self.path)]
            return self.reply(json.dumps(listed).encode())
        if path.startswith(f"/api/datasets/{self.repo}/paths-info/"):
            return self.reply(json.dumps([folder]).encode())
        if path.startswith(f"/api/datasets/{self.repo}"):
            siblings = [{"rfilename": file["path"]}]
            sha = path.partition("/revision/")[2] or self.sha
            return self.reply(json.dumps({"id": self.repo, "sha": sha, "siblings": siblings}).encode())
        self.reply(b'{"error": "Not found"}', status=404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}").get("paths", [])
        self.asked.append(f"POST {self.path} {asked}")
        known = {"data": "directory", "data/train-0.parquet": "file"}
        found = [
            {"type": known[p], "path": p, "size": len(self.content), "oid": "1" * 40}
            for p in asked
            if p in known
        ]
        self.reply(json.dumps(found).encode())

    def log_message(self, *args):
        pass


READ = """
import json, os, sys
from bertlab.core.files import BertlabError
from bertlab.data.corpora import open_corpus
try:
    corpus = open_corpus(sys.argv[1], limit=int(sys.argv[2]) or None)
    print(json.dumps([corpus.name, corpus.fingerprint, corpus.options, corpus.notes, [t for t, _ in corpus]]))
except BertlabError as e:
    print(json.dumps(str(e)))
sys.stdout.flush()
os._exit(0)  # threads of `datasets` abort an interpreter that leaves in the middle of a stream
"""


def test_a_column_is_streamed_from_the_hub(tmp_path):
    pytest.importorskip("datasets", reason="needs the extra hub")
    table = pd.DataFrame({"id": range(300), "body": LINES})
    table.to_parquet(tmp_path / "train-0.parquet")
    Hub.content, Hub.asked = (tmp_path / "train-0.parquet").read_bytes(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def read(name, limit=0, port=server.server_port):
        env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hf")}
        env |= {"BERTLAB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        env = {k: v for k, v in env.items() if "proxy" not in k.lower() and k != "HF_HUB_OFFLINE"}
        command = [sys.executable, "-c", READ, name, str(limit)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    try:
        found = read("hub:someone/rain:body")
        assert isinstance(found, list), found
        name, fingerprint, options, notes, texts = found
        assert (name, texts) == ("rain", [line.lower() for line in LINES]), Hub.asked
        assert options == {"format": "hub", "repo": "someone/rain", "column": "body", "revision": Hub.sha}
        assert Hub.sha[:7] in notes[0] and "delete" in notes[0]
        assert read("hub:someone/rain:body", 2)[4] == texts[:2]
        assert "has no column 'text' (it has 'id', 'body')" in read("hub:someone/rain")
        before, Hub.sha = Hub.sha, "f" * 40  # a newer commit: what was first named is read ever after
        assert read("hub:someone/rain:body")[1:3] == [fingerprint, options]
        assert any(before in path for path in Hub.asked) and not any("f" * 40 in path for path in Hub.asked)
        message = read("hub:someone/nothing:body")
        assert (
            "someone/nothing: cannot be read from the hub" in message
            and "hf auth login" in message
            and "\n" not in message
        )
    finally:
        server.shutdown()
        server.server_close()
    message = read("hub:someone/rain:body")  # nobody answers any more
    assert "cannot be read from the hub" in message and "internet connection" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["hub:", "hub:a/b/c/d:", "hub::text", "hub:/a:text"])
def test_names_that_are_none_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path))
    if name != "hub:a/b/c/d:":
        assert_error(lambda: open_corpus(name), name, "Write hub:OWNER/NAME:COLUMN")


def test_a_missing_library_is_one_line(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    code = "import sys; sys.modules.update(pyarrow=None, datasets=None, huggingface_hub=None)\n"
    code += "from bertlab.core.files import BertlabError\nfrom bertlab.data.corpora import open_corpus\n"
    code += "for name in ('a.parquet', 'hub:a/b'):\n try: list(open_corpus(name))\n except BertlabError as e: print(e)"
    env = os.environ | {"BERTLAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("Run: pip install 'bertlab[hub]'" in line for line in lines), done.stderr
    assert "pyarrow is not installed" in lines[0] and "huggingface_hub is not installed" in lines[1]


# ---------------------------------------------------------------- labelled texts


def test_labelled_frames_follow_the_rules_of_a_csv(tmp_path):
    frame = pd.DataFrame({"text": ["a b", "c d", "e f", "g h"], "label": [1, 0, 1, 0]}, index=list("wxyz"))
    frame.to_csv(tmp_path / "a.csv", index=False)
    written = read_labeled(tmp_path / "a.csv")
    for found in (read_labeled(frame), read_labeled(frame.astype({"label": float}))):
        assert (found.texts, found.names, found.notes) == (written.texts, written.names, written.notes)
        assert (
            found.labels.tolist() == written.labels.tolist()
            and found.groups.tolist() == written.groups.tolist()
        )
    assert read_labeled(frame, positive="0").names == ("1", "0")
    for column, gap, problem in (("text", None, "text is empty"), ("label", np.nan, "label is missing")):
        broken = frame.astype(object)
        broken.iloc[2, broken.columns.get_loc(column)] = gap
        assert_error(lambda broken=broken: read_labeled(broken), "row 3", problem)
    assert_error(lambda: read_labeled(frame.rename(columns={"text": "body"})), "has no column 'text'")
    doubled = pd.concat([frame, frame[["text"]]], axis=1)
    assert_error(lambda: read_labeled(doubled), "two columns are called 'text'")
    assert read_labeled(frame.assign(text=[1, 2, 3, 4])).texts == ["1", "2", "3", "4"]


def test_labelled_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    rows = {"id": [7, 8, 9, 10], "text": ["a b", "c d", "e f", "g h"], "label": ["no", "yes", "no", "yes"]}
    dataset = datasets.Dataset.from_dict(rows)
    wanted = read_labeled(pd.DataFrame(rows))
    named = dataset.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    generated = datasets.IterableDataset.from_generator(
        lambda: ({"text": t, "label": y} for t, y in zip(*list(rows.values())[1:]))
    )
    for table in (dataset, named, dataset.to_iterable_dataset(), named.to_iterable_dataset(), generated):
        found = read_labeled(table)
        assert (found.texts, found.names, found.notes) == (wanted.texts, wanted.names, wanted.notes)
        assert found.labels.tolist() == wanted.labels.tolist() == [0, 1, 0, 1]
    three = datasets.ClassLabel(names=["no", "yes", "perhaps"])
    features = datasets.Features({"text": datasets.Value("string"), "label": three})
    for missing in (-1, None):
        unlabelled = {"text": rows["text"], "label": [0, 1, missing, 1]}
        table = datasets.Dataset.from_dict(unlabelled, features=features)
        assert_error(lambda table=table: read_labeled(table), "row 3", "the label is missing (1 such rows)")
    assert_error(lambda: read_labeled(datasets.DatasetDict(train=dataset)), "one split of a data set")
    assert_error(lambda: read_labeled(dataset.remove_columns("label")), "has no column 'label' or 'target'")
    assert_error(lambda: read_labeled([("a", "b")]), "a list is no table")


def test_the_fingerprints_of_built_in_options_have_not_changed(tmp_path):
    (tmp_path / "a.txt").write_text("One line.\n", encoding="utf8")
    corpus = open_corpus(tmp_path / "a.txt")
    assert corpus.options == {"format": "text"} and corpus.fingerprint == "7d660f1ebdeceb1a"
    assert open_corpus("messages").options == {"format": "messages", "lang": "both"}
