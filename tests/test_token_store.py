"The token store: what it holds, and what must survive a kill, a full disk and damage."

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertlab import token_store
from bertlab.bpe import UNK_ID, cut_long_words, train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.core.saving import save_tokenizer
from bertlab.data.corpora import open_corpus
from bertlab.pretraining import summarize_cuts
from bertlab.token_store import (
    DataConfig,
    TokenStore,
    build_store,
    in_memory_store,
    prepare_data,
)

SENTENCES = [
    f"sentence number {i} has {'many ' * (i % 9)}words and 한국어 {i * 37 % 101}" for i in range(4000)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES[:500], 50)


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(token_store, "CHUNK_CHARS", 2**11)
    monkeypatch.setattr(token_store, "CHECKPOINT_EVERY_CHUNKS", 2)


def rows(store):
    return [store.ids[a:b].tolist() for a, b in zip(store.offsets, store.offsets[1:])]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.sampled_from(["", " ", "many words", "한국어", "龍", *SENTENCES[:5]]), min_size=1, max_size=12
    ),
    st.integers(1, 12),
)
def test_a_store_holds_what_the_tokenizer_says(tokenizer, tmp_path_factory, texts, max_len):
    expected = [tokenizer.encode(text).ids[:max_len] for text in texts]
    kept = [ids for ids in expected if ids]
    folder = tmp_path_factory.mktemp("store")
    if kept:
        store = build_store(iter(texts), tokenizer, folder, max_len)
        assert rows(store) == kept
        assert (store.manifest["empty"], store.manifest["tokens"]) == (
            len(texts) - len(kept),
            sum(map(len, kept)),
        )
    else:
        with pytest.raises(BertlabError, match="no sentence"):
            build_store(iter(texts), tokenizer, folder, max_len)
    assert rows(in_memory_store(texts, tokenizer, max_len)) == [ids or [UNK_ID] for ids in expected]


def test_a_sentence_of_a_million_tokens(tokenizer, tmp_path):
    store = build_store(["short", "many " * 1_000_000, "end"], tokenizer, tmp_path / "store")
    assert np.diff(store.offsets).max() == 256 and store.manifest["truncated"] == 1 and len(store) == 3


def test_only_unknown_characters(tokenizer, tmp_path):
    store = build_store(["龍龜", "鳳"], tokenizer, tmp_path / "store")
    assert store.manifest["unknown"] == 3 and len(store) == 2


def test_wide_ids_beyond_two_bytes(tokenizer):
    assert token_store.ids_dtype(65_536).itemsize == 2 and token_store.ids_dtype(65_537).itemsize == 4
    assert token_store.ids_dtype(70_000).type(69_999) == 69_999


BUILD = """
import sys, time
from bertlab import token_store
from bertlab.bpe import load_tokenizer
token_store.CHUNK_CHARS, token_store.CHECKPOINT_EVERY_CHUNKS = 2**11, 2
sentences = [
    f"sentence number {i} has {'many ' * (i % 9)}words and 한국어 {i * 37 % 101}" for i in range(4000)
]

def slow():
    for i, sentence in enumerate(sentences):
        if i % 50 == 0:
            print(i, flush=True)
            time.sleep(float(sys.argv[3]))
        yield sentence

token_store.build_store(slow(), load_tokenizer(sys.argv[1]), sys.argv[2], meta={"corpus": "test"})
"""


def test_killed_and_resumed(tokenizer, tmp_path):
    "kill -9 at some point, twice; then the store is the same to the last byte."
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    args = [sys.executable, "-c", BUILD, str(tmp_path / "tokenizer.json"), str(tmp_path / "store")]
    env = os.environ | {"TQDM_DISABLE": "1"}
    for kill_at in (900, 2800):
        with subprocess.Popen([*args, "0.01"], stdout=subprocess.PIPE, text=True, env=env) as process:
            for line in process.stdout:
                if int(line) >= kill_at:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert (tmp_path / "store" / "progress.json").is_file()
        with pytest.raises(BertlabError, match="not finished"):
            TokenStore.open(tmp_path / "store")
    assert (
        token_store.read_json(tmp_path / "store" / "progress.json")["read"] > 2000
    )  # the work of the killed ones was kept
    subprocess.run([*args, "0"], check=True, capture_output=True, env=env)
    resumed = TokenStore.open(tmp_path / "store", tokenizer)
    whole = build_store(SENTENCES, tokenizer, tmp_path / "whole")
    assert resumed.manifest["sha256"] == whole.manifest["sha256"]
    assert not (tmp_path / "store" / "progress.json").exists()


def test_another_corpus_or_setting_starts_anew(tokenizer, tmp_path, small_steps):
    def breaks():
        yield from SENTENCES[:2000]
        raise RuntimeError("the reader stopped")

    for meta, max_len in [({"corpus": "b"}, 256), ({"corpus": "a"}, 10), (None, 256)]:
        with pytest.raises(RuntimeError, match="the reader stopped"):
            build_store(breaks(), tokenizer, tmp_path / "store", meta={"corpus": "a"})
        store = build_store(SENTENCES[:7], tokenizer, tmp_path / "store", max_len, meta)
        assert rows(store) == [tokenizer.encode(s).ids[:max_len] for s in SENTENCES[:7]]


def test_an_open_store_survives_its_successor(tokenizer, tmp_path):
    old = build_store(SENTENCES[:50], tokenizer, tmp_path / "store", meta={"corpus": 1})
    before = rows(old)
    new = build_store(SENTENCES[50:53], tokenizer, tmp_path / "store", meta={"corpus": 2})
    assert rows(old) == before and len(new) == 3


FULL_DISK = """
import resource, sys
from bertlab.bpe import load_tokenizer
from bertlab.core.files import BertlabError
from bertlab import token_store
token_store.CHUNK_CHARS, token_store.CHECKPOINT_EVERY_CHUNKS = 2**11, 2
sentences = [
    f"sentence number {i} has {'many ' * (i % 9)}words and 한국어 {i * 37 % 101}" for i in range(4000)
]
tokenizer = load_tokenizer(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    token_store.build_store(sentences, tokenizer, sys.argv[2], meta={"corpus": "test"})
except BertlabError as e:
    print("told:", e)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("kept:", token_store.read_json(sys.argv[2] + "/progress.json")["read"])
token_store.build_store(sentences, tokenizer, sys.argv[2], meta={"corpus": "test"})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_is_told_and_later_gone_on_from(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    args = [sys.executable, "-c", FULL_DISK, str(tmp_path / "tokenizer.json"), str(tmp_path / "store")]
    out = subprocess.run(
        args, check=True, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"}
    ).stdout
    assert "told:" in out and "cannot be written" in out and int(out.split("kept:")[1]) > 0
    whole = build_store(SENTENCES, tokenizer, tmp_path / "whole")
    assert TokenStore.open(tmp_path / "store").manifest["sha256"] == whole.manifest["sha256"]


def test_a_folder_that_cannot_be_written(tokenizer, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BertlabError, match="cannot be written"):
        build_store(SENTENCES[:3], tokenizer, tmp_path / "file" / "store")


@pytest.mark.parametrize("name", token_store.STORE_FILES)
@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda data: data[:-1], "bytes"),
        (lambda data: data + b"\0", "bytes"),
        (lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], "checksum"),
        (None, "bytes"),
    ],
)
def test_damage_is_found(tokenizer, tmp_path, name, damage, says):
    build_store(SENTENCES[:50], tokenizer, tmp_path / "store")
    path = tmp_path / "store" / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(BertlabError, match=says) as caught:
        TokenStore.open(tmp_path / "store")
    assert str(path) in str(caught.value) and "made again" in str(caught.value)


@pytest.mark.parametrize(
    "manifest",
    ["{}", "[]", '{"dtype": "<u2"}', '{"dtype": "nonsense", "tokens": 1, "sentences": 1}', '{"dtype"'],
)
def test_a_damaged_manifest_is_named(tokenizer, tmp_path, manifest):
    build_store(SENTENCES[:5], tokenizer, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").write_text(manifest)
    with pytest.raises(BertlabError, match=r"manifest\.json"):
        TokenStore.open(tmp_path / "store")


def test_a_store_of_another_tokenizer_is_refused(tokenizer, tmp_path):
    build_store(SENTENCES[:50], tokenizer, tmp_path / "store", meta={"corpus": 1})
    other = train_tokenizer(SENTENCES[:500], 51)
    with pytest.raises(BertlabError, match="another tokenizer"):
        TokenStore.open(tmp_path / "store", tokenizer=other)
    assert not build_store(SENTENCES[:50], other, tmp_path / "store", meta={"corpus": 1}).reused


class Corpus:
    name, fingerprint = "test", "0123"

    def __iter__(self):
        return ((sentence, "en") for sentence in [*SENTENCES, *SENTENCES[:1000]])


def test_copies_stay_on_one_side(tokenizer, tmp_path, small_steps):
    stores = token_store.prepare_stores(Corpus(), tokenizer, tmp_path)
    train, valid = ({tuple(ids) for ids in rows(stores[name])} for name in ("train", "valid"))
    assert not train & valid and len(stores["train"]) + len(stores["valid"]) == 5000
    assert 0.07 < len(stores["valid"]) / 5000 < 0.13
    assert all(store.reused for store in token_store.prepare_stores(Corpus(), tokenizer, tmp_path).values())
    assert not token_store.prepare_stores(Corpus(), tokenizer, tmp_path, seed=1)["train"].reused


def test_what_is_cut_is_counted(tokenizer, tmp_path, monkeypatch):
    "Paragraphs, empty lines and endless words: every token that is left out is in the counts of the corpus."
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    texts = [" ".join(SENTENCES[i : i + 9]).replace(".", "") for i in range(0, 900, 9)]
    texts += [f"a blob {'ab' * 125_000} {i}" for i in range(20)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts), encoding="utf8")
    data = prepare_data(DataConfig(str(path), merges=50, valid_fraction=0.2), max_len=16)
    read = [text for text, _ in open_corpus(str(path))]
    lengths = np.array([len(data.tokenizer.encode(cut_long_words(text)[0]).ids) for text in read])
    total = {
        name: data.corpus["train"][name] + data.corpus["valid"][name] for name in token_store.COUNT_NAMES
    }
    assert total["sentences"] == len(read)
    assert total["truncated"] == (lengths > 16).sum()
    assert total["truncated_tokens"] == np.maximum(lengths - 16, 0).sum()
    assert total["tokens"] + total["truncated_tokens"] == lengths.sum()
    assert total["cut_words"] == 20
    said = summarize_cuts(data.corpus)
    assert f"{total['truncated_tokens']:,} tokens" in said and "20 words beyond 1,000 characters" in said
    again = prepare_data(DataConfig(str(path), merges=50, valid_fraction=0.2), max_len=16)
    assert again.reused and again.corpus == data.corpus


def test_counts_survive_an_interruption(tokenizer, tmp_path, small_steps):
    texts = [s if i % 100 else f"{s} {'x' * 2000}" for i, s in enumerate(SENTENCES)]

    def breaks():
        yield from texts[:2500]
        raise RuntimeError("the reader stopped")

    with pytest.raises(RuntimeError):
        build_store(breaks(), tokenizer, tmp_path / "store", 16, meta={"corpus": "a"})
    resumed = build_store(texts, tokenizer, tmp_path / "store", 16, meta={"corpus": "a"})
    whole = build_store(texts, tokenizer, tmp_path / "whole", 16, meta={"corpus": "a"})
    assert resumed.manifest == whole.manifest and whole.manifest["cut_words"] == 40


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    "A text file that was prepared once: its config and the folder in the cache."
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:300]), encoding="utf8")
    config = DataConfig(str(tmp_path / "text.txt"), merges=50)
    prepare_data(config, max_len=32)
    (folder,) = (path.parent for path in (tmp_path / "cache" / "prepared").glob("*/prepared.json"))
    return config, folder


@pytest.mark.parametrize("finished", [True, False])
def test_a_swapped_tokenizer_of_prepared_data_is_refused(prepared, finished):
    config, folder = prepared
    save_tokenizer(train_tokenizer(SENTENCES[:500], 51), folder / "tokenizer.json")
    if not finished:
        (folder / "prepared.json").unlink()
    with pytest.raises(BertlabError, match="not the tokenizer that was learned") as caught:
        prepare_data(config, max_len=32)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("name", token_store.STORE_FILES)
def test_damaged_prepared_data_is_refused(prepared, split, name):
    config, folder = prepared
    path = folder / "stores" / split / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BertlabError, match="checksum"):
        prepare_data(config, max_len=32)


def test_prepared_data_are_what_decides_them(prepared, tmp_path):
    "Another text, vocabulary, split or length is prepared anew, whatever the file's name."
    config, _ = prepared
    assert prepare_data(config, max_len=32).reused
    for other in (replace(config, merges=51), replace(config, valid_fraction=0.2)):
        assert not prepare_data(other, max_len=32).reused
    assert not prepare_data(config, max_len=31).reused
    text = "\n".join([*SENTENCES[:299], SENTENCES[299].replace("words", "wards")])
    (tmp_path / "text.txt").write_text(text, encoding="utf8")
    assert not prepare_data(config, max_len=32).reused


@pytest.mark.parametrize(
    "wrong", [{"merges": 10**9}, {"merges": -1}, {"valid_fraction": 0.0}, {"valid_fraction": float("nan")}]
)
def test_impossible_data_configs_are_refused(wrong):
    with pytest.raises(BertlabError) as caught:
        DataConfig(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("description", ["null", "[]", "{}", '{"name": "x", "fingerprint": "y"}'])
def test_a_description_of_prepared_data_that_is_none_is_one_line(prepared, description):
    config, folder = prepared
    (folder / "prepared.json").write_text(description)
    with pytest.raises(BertlabError, match="prepared.json: is not the description of a corpus. Delete"):
        prepare_data(config, 32)


@pytest.mark.parametrize(
    "progress",
    [
        "null",
        "{",
        "{}",
        {},
        {"counts": None},
        {"counts": []},
        {"counts": [{"tokens": 1}]},
        {"counts": [None]},
    ],
)
def test_progress_that_is_none_begins_anew(tokenizer, tmp_path, progress):
    store = build_store(["a cat", "the dog"], tokenizer, tmp_path, meta={"name": "pets"})
    kept = {name: store.manifest[name] for name in ("format", "tokenizer", "vocab_size", "max_len", "meta")}
    text = progress if isinstance(progress, str) else json.dumps({"settings": kept, "read": 1} | progress)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / token_store.PROGRESS_FILE).write_text(text)
    again = build_store(["a cat", "the dog"], tokenizer, tmp_path, meta={"name": "pets"})
    assert again.manifest == store.manifest and rows(again) == rows(store)
