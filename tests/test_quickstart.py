"""The main job: word order as a task, the control without pre-training, all stages done once and reported."""

import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bertlab.core.files import BertlabError
from bertlab.data import docstrings as corpus
from bertlab.data.docstrings import word_order_data
from bertlab.data.labeled import read_labeled, validate_labels
from bertlab.data.text import near_duplicate_key
from bertlab.encoder import EncoderConfig
from bertlab.evaluation import holdout
from bertlab.study import quickstart

WORDS = "array index value shape order axis table frame figure tensor module method color label scale level".split()
RNG = random.Random(0)
DRAWN = [RNG.choices(WORDS, k=4) for _ in range(400)]
SENTENCES = [
    (f"The {a} of {b}, with a {c} and {d}{i % 7}, is given.", "lib", "Summary", f"{a}.py")
    for i, (a, b, c, d) in enumerate(DRAWN)
]


def letters(text):
    return sorted(near_duplicate_key(text).split())


def word_order(monkeypatch, sentences, **kwargs):
    monkeypatch.setattr(corpus, "docstrings", lambda: iter(sentences))
    return word_order_data(**kwargs)


# ---------------------------------------------------------------- the task


def test_two_neighbours_are_swapped_and_nothing_else(monkeypatch):
    frame = word_order(monkeypatch, SENTENCES)
    originals = {tuple(letters(text)): text.split() for text, *_ in SENTENCES}
    assert len(frame) > 100
    assert frame.label.tolist() == [("original", "swapped")[i % 2] for i in range(len(frame))]
    for text, label in zip(frame.text, frame.label):
        words, original = text.split(), originals[tuple(letters(text))]
        changed = [i for i, (a, b) in enumerate(zip(words, original)) if a != b]
        if label == "original":
            assert not changed
            continue
        i, j = changed
        assert j == i + 1 and i > 0 and (words[i], words[j]) == (original[j], original[i])
        assert words[i].isalpha() and words[j].isalpha()


def test_the_order_of_the_corpus_does_not_matter(monkeypatch):
    frame = word_order(monkeypatch, SENTENCES)
    shuffled = random.Random(1).sample(SENTENCES, len(SENTENCES))
    pd.testing.assert_frame_equal(word_order(monkeypatch, shuffled), frame)
    pd.testing.assert_frame_equal(word_order(monkeypatch, shuffled, size=20), frame.head(20))


@pytest.mark.parametrize(
    "sentence",
    [
        "One two (three four) five, six.",  # no two neighbours of letters alone after the first word
        "one the the the the the",
        "Only five words are here.",
    ],
)
def test_sentences_without_a_place_are_left_out(monkeypatch, sentence):
    frame = word_order(monkeypatch, [*SENTENCES, (sentence, "lib", "Summary", "x.py")])
    assert "x.py" not in set(frame.group)


@pytest.mark.parametrize(
    "copy",
    [
        "the rows of the one matrix are sorted",
        "The rows of the matrix one are sorted 2.",  # what a swap would have made
        "Are, sorted: the rows of the one matrix!",
    ],
)
def test_no_sentence_whose_words_occur_twice(monkeypatch, copy):
    sentence = "The rows of the one matrix are sorted."
    alone = word_order(monkeypatch, [*SENTENCES, (sentence, "lib", "Summary", "x.py")])
    assert "x.py" in set(alone.group)
    twice = [*SENTENCES, (sentence, "lib", "Summary", "x.py"), (copy, "other", "Notes", "y.py")]
    assert not {"x.py", "y.py"} & set(word_order(monkeypatch, twice).group)


def test_no_file_and_no_sentence_on_both_sides(monkeypatch):
    data = validate_labels(word_order(monkeypatch, SENTENCES))
    assert data.positive == "swapped"
    train, valid = holdout(data, 0.2)
    assert len(train) and len(valid) and not set(data.groups[train]) & set(data.groups[valid])
    bags = [{tuple(letters(data.texts[i])) for i in rows} for rows in (train, valid)]
    assert not bags[0] & bags[1]


# ---------------------------------------------------------------- all of it, tiny


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "The main job on files of the test's own, in this process."
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BERTLAB_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(quickstart.joblib, "cpu_count", lambda: 1)
    (tmp_path / "text.txt").write_text("\n".join(text for text, *_ in SENTENCES), encoding="utf8")
    rows = [f'"{text} {i}",{file.removesuffix(".py") < "m"}' for i, (text, *_, file) in enumerate(SENTENCES)]
    (tmp_path / "labels.csv").write_text("\n".join(["text,label", *rows[:120]]), encoding="utf8")
    pretraining = replace(
        quickstart.PRETRAINING,
        data=replace(quickstart.PRETRAINING.data, corpus=str(tmp_path / "text.txt"), merges=40),
        encoder=EncoderConfig(d_model=16, heads=2, d_ff=32, layers=1, max_len=64),
        train=replace(quickstart.PRETRAINING.train, evals_per_epoch=2, batch_size=32),
        eval_sentences=20,
    )
    config = replace(quickstart.FINETUNING, train=replace(quickstart.FINETUNING.train, epochs=2))
    monkeypatch.setattr(quickstart, "PRETRAINING", pretraining)
    monkeypatch.setattr(
        quickstart, "TASKS", dict.fromkeys(("library", "word_order"), (str(tmp_path / "labels.csv"), config))
    )
    return tmp_path / "study"


def test_the_main_job_is_done_once(tiny, capsys, monkeypatch):
    records = quickstart.run_quickstart(tiny)
    printed = capsys.readouterr().out
    names = {"pretraining", "fill_mask", "library", "library_random", "word_order", "word_order_random"}
    assert set(records) == names
    assert {p.name for p in (tiny / "records").iterdir()} == {f"study_{name}.json" for name in names}
    stored = {name: json.loads((tiny / "records" / f"study_{name}.json").read_text()) for name in names}
    assert stored["word_order"]["result"] == records["word_order"]["result"]
    assert list(stored["fill_mask"]["result"]) == list(quickstart.FILL_MASK_PROMPTS)
    assert all(question in printed for question in quickstart.QUESTIONS.values())
    assert {p.name for p in (tiny.parent / "figures").iterdir()} == {
        "study_pretraining.png",
        "study_tasks.png",
        "study_confusion.png",
    }
    monkeypatch.setattr(quickstart, "finetune", None)  # everything is there
    again = quickstart.run_quickstart(tiny)
    assert {n: r["result"] for n, r in again.items()} == {n: r["result"] for n, r in records.items()}
    assert "pre-training (done before, reused)" in capsys.readouterr().out


def test_a_table_has_the_control_before_the_classifier(tiny):
    quickstart.pretrain(quickstart.PRETRAINING, tiny / "pretrained")
    records = quickstart.finetune_tasks(tiny)
    for task in quickstart.TASKS:
        models = [row["model"] for row in quickstart.task_scores(records, task)]
        assert models[-2:] == ["BERT + CNN, not pre-trained", "BERT + CNN"] and len(models) == 5


def test_an_error_of_a_fine_tuning_is_the_users_own(tiny):
    quickstart.pretrain(quickstart.PRETRAINING, tiny / "pretrained")
    (tiny / "word_order").mkdir(parents=True)
    (tiny / "word_order" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        BertlabError, match=r"word_order: holds a model or a run already .*Choose a new folder\.$"
    ):
        quickstart.finetune_tasks(tiny)


def test_the_control_knows_only_the_shape(tiny):
    "Other weights of the same shape leave the control as it is; the pre-trained classifier changes."
    quickstart.pretrain(quickstart.PRETRAINING, tiny / "pretrained")
    other = replace(quickstart.PRETRAINING, train=replace(quickstart.PRETRAINING.train, seed=1))
    quickstart.pretrain(other, tiny / "other")
    source, config = quickstart.TASKS["library"]
    data = read_labeled(source)

    def losses(model, random):
        out = tiny / f"{model}-{random}"
        record = quickstart.run_finetuning(config, tiny / model / "model", data, out, random=random)
        return [row["train_loss"] for row in record["history"]]

    np.testing.assert_array_equal(losses("pretrained", True), losses("other", True))
    assert losses("pretrained", False) != losses("other", False)
