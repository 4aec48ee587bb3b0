"Faults in labelled data and configs, and what fine-tuning promises whatever the data; a tiny encoder."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from bertlab.bpe import train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.data.labeled import LabeledTexts, read_labeled, validate_labels
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.evaluation import evaluate_baselines, holdout, kfold, score_table
from bertlab.finetuning import (
    FeatureCache,
    FinetuneConfig,
    classify,
    finetune,
    load_classifier,
    save_classifier,
)
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import in_memory_store
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
    return validate_labels(pd.DataFrame(rows))


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
    assert validate_labels(frame).names == ("0", "1")


@pytest.mark.parametrize("rows", [[{"text": "fire", "label": "disaster"}] * 5, []])
def test_one_class_or_none(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["text", "label"])
    with pytest.raises(BertlabError, match="one label|no text"):
        validate_labels(frame)


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


def stopping_fit(task, config, folder, **options):
    "Training that gets a signal in its sixth step."
    loss, count = task.loss, iter(range(100))

    def counted(batch, epoch):
        if next(count) == 5:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return loss(batch, epoch)

    task.loss = counted
    return fit(task, config, folder, **options)


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


@pytest.mark.parametrize(
    "damage", ["a flipped bit", "half of the file", "other values", "not a file of tensors"]
)
def test_damaged_features_are_set_aside_and_encoded_again(data, tokenizer, encoder, tmp_path, damage):
    store = in_memory_store(data.texts, tokenizer, 24)
    expected = FeatureCache(tmp_path).get(encoder, store, 2).values
    [path] = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if damage == "half of the file":
        content = content[: len(content) // 2]
    if damage == "other values":
        save_file({"features": expected + 1}, path, {"sha256": "0" * 64})
    else:
        path.write_bytes(b"pickle" if damage == "not a file of tensors" else content)
    assert torch.equal(FeatureCache(tmp_path).get(encoder, store, 2).values, expected)
    assert [p.name for p in tmp_path.glob("*.damaged")] == [path.name + ".damaged"]
    assert torch.equal(FeatureCache(tmp_path).get(encoder, store, 2).values, expected)


def test_learned_positions_and_embedding_norm_are_frozen_with_the_embedding(data, tokenizer):
    config = EncoderConfig(
        tokenizer.get_vocab_size(), 16, 2, 32, 2, max_len=24, positions="learned", embedding_norm=True
    )
    encoder = Encoder(config)
    model = finetune(
        encoder, tokenizer, data, np.arange(160), np.arange(0), changed(freeze=1, epochs=1)
    ).model
    for name, value in encoder.state_dict().items():
        is_frozen = not name.startswith(("layers.1", "norm"))
        assert torch.equal(value, model.encoder.state_dict()[name]) == is_frozen, name
    cache, store = FeatureCache(), in_memory_store(data.texts, tokenizer, 24)
    before = cache.get(encoder, store, 0).values
    with torch.no_grad():
        encoder.positions += 1
    assert not torch.equal(cache.get(encoder, store, 0).values, before)


def test_eight_texts_per_class(tokenizer, encoder):
    rows = [{"text": t, "label": label} for i, label in enumerate(WORDS) for t in texts_of(label, 8, i)]
    few = validate_labels(pd.DataFrame(rows).drop_duplicates("text"))
    train, valid = holdout(few, 0.25)
    run = finetune(encoder, tokenizer, few, train, valid, QUICK)
    assert run.probabilities.shape == (4, 2) and len(train) == 12


def test_results_carry_the_names_of_the_classes(data, tokenizer, encoder):
    names = ("zebra", "ant")  # for ordinary and disaster: not in alphabetical order
    named = replace(data, names=names)
    run = finetune(encoder, tokenizer, named, *holdout(data, 0.3), QUICK)
    assert run.labels == run.model.labels == list(names)
    probabilities = classify(run.model, tokenizer, ["fire flood storm wreck", "song lunch music coffee"])
    assert [run.labels[i] for i in probabilities.argmax(1)] == ["ant", "zebra"]


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
