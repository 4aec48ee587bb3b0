"Faults in labelled data and configs, and what fine-tuning promises whatever the data: kept to seconds by a tiny encoder."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bertlab.bpe import train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.evaluation import (
    LabeledTexts,
    evaluate_baselines,
    holdout,
    kfold,
    labelled,
    read_labeled,
    score_table,
)
from bertlab.finetuning import (
    FeatureCache,
    FinetuneConfig,
    classify,
    finetune,
    load_classifier,
    save_classifier,
)
from bertlab.text_cnn import HeadConfig
from bertlab.training import Interrupted, TrainConfig, fit

WORDS = {"disaster": "fire flood storm wreck quake", "ordinary": "song lunch music coffee game"}


def texts_of(label, n, seed):
    rng = np.random.default_rng(seed)
    pool = WORDS[label].split() + "the a near our big town today".split()
    return [
        " ".join(rng.choice(pool, size=rng.integers(1, 9))) + f" {WORDS[label].split()[i % 5]}"
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def data():
    rows = [
        {"text": text, "label": label} for i, label in enumerate(WORDS) for text in texts_of(label, 80, i)
    ]
    return labelled(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def tokenizer(data):
    return train_tokenizer(data.texts, 60)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    return Encoder(
        EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=2, max_len=24)
    )


QUICK = FinetuneConfig(
    HeadConfig(n_filters=8, dropout=0.1), train=TrainConfig("adam", lr=1e-2, epochs=6, batch_size=32)
)


def changed(config=QUICK, **changes):
    "A config with other settings, given flat."
    parts = {
        name: replace(
            getattr(config, name), **{k: v for k, v in changes.items() if hasattr(getattr(config, name), k)}
        )
        for name in ("head", "train")
    }
    flat = {k: v for k, v in changes.items() if not any(hasattr(part, k) for part in parts.values())}
    return replace(config, **parts, **flat)


def write_csv(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_learns_and_reports(data, tokenizer, encoder):
    train, valid = holdout(data, 0.3)
    run = finetune(encoder, tokenizer, data, train, valid, QUICK)
    assert (run.probabilities.argmax(1) == data.labels[valid]).mean() > 0.9
    assert len(run.history) == QUICK.train.epochs
    np.testing.assert_allclose(run.probabilities.sum(1), 1, atol=1e-9)
    table = score_table(evaluate_baselines(data, [(train, valid)]))
    assert float(table.loc["majority class", "accuracy"]) < 0.7


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"text": "fire", "label": None}, "label is missing"),
        ({"text": " ", "label": "ordinary"}, "text is empty"),
        ({"text": None, "label": "ordinary"}, "text is empty"),
    ],
)
def test_bad_row_is_named(tmp_path, row, problem):
    rows = [{"text": "big flood", "label": "disaster"}, {"text": "lunch", "label": "ordinary"}, row]
    with pytest.raises(BertlabError, match=problem) as error:
        read_labeled(write_csv(tmp_path / "mine.csv", rows))
    assert "mine.csv, row 4" in str(error.value)  # the header is row 1


def test_numbers_as_labels_survive_pandas(tmp_path):
    frame = pd.DataFrame({"text": ["a b", "c d"], "label": [1.0, 0.0]})
    assert labelled(frame).names == ("0", "1")


@pytest.mark.parametrize("rows", [[{"text": "fire", "label": "disaster"}] * 5, []])
def test_one_class_or_none(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["text", "label"])
    with pytest.raises(BertlabError, match="one label|no text"):
        labelled(frame)


def test_one_class_to_train_on(data, tokenizer, encoder):
    only = np.flatnonzero(data.labels == 0)
    with pytest.raises(BertlabError, match="the same label"):
        finetune(encoder, tokenizer, data, only, only[:2], QUICK)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_label_out_of_range(data, tokenizer, encoder, wrong):
    labels = data.labels.copy()
    labels[6] = wrong
    broken = LabeledTexts(data.texts, labels, data.groups, data.names)
    with pytest.raises(BertlabError, match="row 7: the label .* is not in 0..1"):
        finetune(encoder, tokenizer, broken, np.arange(100), np.arange(100, 160), QUICK)


def test_unlabelled_csv(tmp_path):
    with pytest.raises(BertlabError, match="has no column 'label' or 'target'"):
        read_labeled(
            write_csv(
                tmp_path / "test.csv", [{"id": 0, "keyword": "", "location": "", "text": "just happened"}]
            )
        )


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00text", b'text,label\n"never closed,1\n'])
def test_broken_csv(tmp_path, content):
    (tmp_path / "broken.csv").write_bytes(content)
    with pytest.raises(BertlabError, match="broken.csv"):
        read_labeled(tmp_path / "broken.csv")


def test_tweets_carry_keyword_and_names(tmp_path):
    rows = [
        {"id": i, "keyword": ["", "storm"][i % 2], "location": "", "text": f"something {w}", "target": i % 2}
        for i, w in enumerate("abcd")
    ]
    data = read_labeled(write_csv(tmp_path / "train.csv", rows))
    assert data.names == ("ordinary", "disaster") and data.texts[:2] == ["something a", "storm : something b"]


def test_kernel_longer_than_every_sentence(tokenizer, encoder):
    words = ["fire", "flood", "storm", "song", "lunch", "game"] * 4
    short = LabeledTexts(words, np.array([0, 0, 0, 1, 1, 1] * 4), np.arange(24), ("disaster", "ordinary"))
    run = finetune(
        encoder,
        tokenizer,
        short,
        np.arange(18),
        np.arange(18, 24),
        changed(kernel_sizes=(3, 40), epochs=2),
    )
    assert np.isfinite(run.probabilities).all()


def test_text_without_tokens_gets_an_answer(data, tokenizer, encoder):
    run = finetune(encoder, tokenizer, data, np.arange(160), np.arange(0), changed(epochs=1))
    assert run.probabilities.shape == (0, 2) and not any(k.startswith("valid") for k in run.history[-1])
    answers = classify(
        run.model, tokenizer, ["", "fire " * 500, "🙂"]
    )  # empty, far too long, unknown characters
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-9)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (dict(freeze="most"), "freeze"),
        (dict(freeze=0), "freeze"),
        (dict(freeze=True), "freeze"),
        (dict(freeze=3), "encoder has 2"),
        (dict(n_dropped_layers=-1), "n_dropped_layers"),
        (dict(n_dropped_layers=2), "at least one layer"),
        (dict(kernel_sizes=()), "kernel_sizes"),
        (dict(lr=0.0), "lr"),
        (dict(optimizer="sgd"), "optimizer"),
        (dict(batch_size=0), "batch_size"),
    ],
)
def test_config_that_cannot_work(data, tokenizer, encoder, wrong, problem):
    with pytest.raises(BertlabError, match=problem):
        finetune(encoder, tokenizer, data, np.arange(160), np.arange(0), changed(**wrong))


def test_too_many_folds(data):
    with pytest.raises(BertlabError, match="smallest class"):
        kfold(data, 1000)


@pytest.mark.parametrize("freeze", ["none", "all", 1])
def test_stopped_and_resumed_is_the_same(data, tokenizer, encoder, tmp_path, freeze, monkeypatch):
    train, valid = holdout(data, 0.3)
    config = changed(freeze=freeze, epochs=2, dropout=0.5)
    whole = finetune(encoder, tokenizer, data, train, valid, config)
    monkeypatch.setattr("bertlab.finetuning.fit", stopping_fit)
    with pytest.raises(Interrupted):
        finetune(encoder, tokenizer, data, train, valid, config, folder=tmp_path / "run")
    monkeypatch.undo()
    resumed = finetune(encoder, tokenizer, data, train, valid, config, folder=tmp_path / "run")
    np.testing.assert_array_equal(whole.probabilities, resumed.probabilities)


def stopping_fit(task, config, folder, desc):
    "Training that gets a signal in its sixth step."
    loss, count = task.loss, iter(range(100))

    def counted(batch, epoch):
        if next(count) == 5:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return loss(batch, epoch)

    task.loss = counted
    return fit(task, config, folder, desc=desc)


def test_frozen_part_runs_once(data, tokenizer, encoder, tmp_path, monkeypatch):
    calls = []
    encode = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, *args: calls.append(1) or encode(self, *args))
    folds = kfold(data, 3)

    def run_folds(encoder, config, cache, folds=folds, seeds=(0, 1)):
        for train, valid in folds:
            for seed in seeds:
                finetune(encoder, tokenizer, data, train, valid, changed(config, seed=seed), cache)

    cache = FeatureCache(tmp_path)
    config = changed(epochs=2)
    run_folds(encoder, config, cache)
    once = len(calls)
    assert once == 1  # all sentences fit one batch
    another = FeatureCache(tmp_path)  # as another process would have
    run_folds(encoder, changed(config, n_filters=4), another)
    assert len(calls) == once
    with torch.no_grad():
        other = Encoder(encoder.config)
    run_folds(other, config, FeatureCache(tmp_path), folds[:1], seeds=(0,))
    assert len(calls) == once + 1  # other weights, other features


def test_saved_classifier(data, tokenizer, encoder, tmp_path):
    model = finetune(
        encoder, tokenizer, data, np.arange(160), np.arange(0), changed(epochs=1, n_dropped_layers=1)
    ).model
    save_classifier(model, tokenizer, tmp_path / "model")
    loaded, its_tokenizer = load_classifier(tmp_path / "model")
    np.testing.assert_allclose(
        classify(loaded, its_tokenizer, data.texts), classify(model, tokenizer, data.texts), atol=1e-6
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["config"]["head"]["n_filters"] = 9
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BertlabError, match="shape"):
        load_classifier(tmp_path / "model")
    del config["config"]["labels"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BertlabError, match="not a classifier's config"):
        load_classifier(tmp_path / "model")
