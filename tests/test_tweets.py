"The disaster tweets: augmentation leaks nothing, a stopped run goes on, one command does all."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bertlab.bpe import train_tokenizer
from bertlab.cli import main
from bertlab.core.files import BertlabError
from bertlab.core.saving import save_tokenizer
from bertlab.data.labeled import LabeledTexts, read_labeled
from bertlab.encoder import EncoderConfig
from bertlab.evaluation import kfold
from bertlab.finetuning import FinetuneConfig
from bertlab.mlm import MaskedLM, load_model, save_model
from bertlab.study import tweets as tweets_study
from bertlab.study import word_vectors
from bertlab.study.adaptation import continue_pretraining
from bertlab.study.augmentation import AUGMENTATIONS, augment
from bertlab.study.tweets import (
    Method,
    bert_method,
    conflicts,
    cross_validate,
    oracle_accuracy,
    tfidf_method,
)
from bertlab.text_cnn import HeadConfig
from bertlab.training import TrainConfig

WORDS = {1: "fire flood storm wreck quake", 0: "song lunch music coffee game"}
QUICK = FinetuneConfig(
    HeadConfig(n_filters=4, kernel_sizes=(1, 2)),
    freeze="none",
    train=TrainConfig("adamw", lr=1e-2, epochs=2, batch_size=16),
)


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    "A folder like Kaggle's, with 80 and 10 tweets."
    folder, rng = tmp_path_factory.mktemp("kaggle"), np.random.default_rng(0)

    def text(label):
        words = WORDS[label].split()
        return (
            " ".join(rng.choice([*words, *"the a near our big town today".split()], size=8))
            + f", #{words[0]}!"
        )

    rows = [{"id": i, "keyword": "", "location": "", "text": text(i % 2), "target": i % 2} for i in range(80)]
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    pd.DataFrame(rows[:10]).drop(columns="target").assign(id=range(100, 110)).to_csv(
        folder / "test.csv", index=False
    )
    return folder


@pytest.fixture(scope="module")
def data(kaggle):
    return read_labeled(kaggle)


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    tokenizer, folder = train_tokenizer(data.texts, 60), tmp_path_factory.mktemp("pretrained") / "model"
    torch.manual_seed(0)
    save_model(
        MaskedLM(
            EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1, max_len=32)
        ),
        tokenizer,
        folder,
    )
    return folder


@pytest.mark.parametrize("method", AUGMENTATIONS)
def test_no_copy_of_a_validation_text(data, method):
    for train, valid in kfold(data, 4):
        more, rows = augment(data, train, method, rate=0.3, copies=2)
        new = rows[len(train) :] - len(data)
        sources = np.tile(train, 2)[new]
        assert more.labels[rows[len(train) :]].tolist() == data.labels[sources].tolist()
        assert not set(more.groups[rows]) & set(data.groups[valid])
        assert [more.texts[i] for i in valid] == [data.texts[i] for i in valid]
        assert augment(data, train, method, rate=0.3, copies=2)[0].texts == more.texts
        assert augment(data, train, method, rate=0.3, copies=2, seed=1)[0].texts != more.texts


@pytest.mark.parametrize(
    "bad", [{"method": "rhyme"}, {"method": "mask", "rate": 0}, {"method": "mask", "copies": 0}]
)
def test_bad_augmentation(data, bad):
    with pytest.raises(BertlabError):
        augment(data, np.arange(10), **bad)


def test_a_stopped_run_goes_on(data, model, tmp_path):
    splits, whole = kfold(data, 3), bert_method("tiny", "", model, QUICK)
    calls = []

    def stopping(*args):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole.run(*args)

    with pytest.raises(KeyboardInterrupt):
        cross_validate(replace(whole, run=stopping), data, splits, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").glob("fold-*")) == ["fold-0.json", "fold-1.json"]
    np.testing.assert_array_equal(
        cross_validate(replace(whole, run=stopping), data, splits, tmp_path / "run")[0],
        cross_validate(whole, data, splits, tmp_path / "at once")[0],
    )
    assert len(calls) == 4  # two folds, the one that was stopped, and that one again


def test_folds_of_another_run_are_refused(data, model, tmp_path):
    splits = kfold(data, 3)
    words = tfidf_method()
    cross_validate(words, data, splits, tmp_path / "run")
    for method, folds in (
        (words, kfold(data, 3, seed=1)),
        (tfidf_method("majority class"), splits),
        (bert_method("b", "", model, QUICK), splits),
    ):
        with pytest.raises(BertlabError, match="another method, data or split"):
            cross_validate(method, data, folds, tmp_path / "run")
    path = tmp_path / "run" / "fold-0.json"
    whole = json.loads(path.read_text())
    edited = whole | {"probabilities": [[0.5, 0.5] for _ in whole["probabilities"]]}
    ragged = whole | {"probabilities": [[0.5, []], *whole["probabilities"][1:]]}
    timeless = whole | {"seconds": None}
    others = {"probabilities": [[1, 0]], "seconds": 0}, [], None, {"seconds": 1}
    for damaged in (edited, ragged, timeless, *others):
        path.write_text(json.dumps(damaged))
        with pytest.raises(BertlabError, match="does not fit its fold"):
            cross_validate(words, data, splits, tmp_path / "run")
    path.unlink()
    cross_validate(words, data, splits, tmp_path / "run")


def test_another_tokenizer_is_another_run(data, model, tmp_path):
    "Weights alone do not say what a model is."
    (tmp_path / "other").mkdir()
    for file in model.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    one = bert_method("b", "", model, QUICK).settings
    assert bert_method("b", "", tmp_path / "other", QUICK).settings == one
    save_tokenizer(train_tokenizer(data.texts, 59), tmp_path / "other" / "tokenizer.json")
    assert bert_method("b", "", tmp_path / "other", QUICK).settings != one


@pytest.mark.parametrize("change", ["texts", "tokenizer", "model"])
def test_continued_pretraining_is_known_by_all_that_it_reads(data, model, tmp_path, change):
    train = replace(tweets_study.TAPT_CONFIG, epochs=0.5, batch_size=16)
    texts, folder = data.texts, tmp_path / "model"
    mlm, tokenizer = load_model(model)
    save_model(mlm, tokenizer, folder)
    continue_pretraining(folder, texts, tmp_path / "run", train)
    if change == "texts":
        texts = [*texts[:-1], texts[-1] + "!"]
    if change == "tokenizer":  # of the same size: two tokens change places
        table = json.loads(tokenizer.to_str())
        vocab = table["model"]["vocab"]
        a, b = list(vocab)[-2:]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        save_model(mlm, type(tokenizer).from_str(json.dumps(table)), folder)
    if change == "model":
        with torch.no_grad():
            mlm.encoder.embedding.weight[0, 0] += 1
        save_model(mlm, tokenizer, folder)
    with pytest.raises(BertlabError, match="another texts" if change == "texts" else "another model"):
        continue_pretraining(folder, texts, tmp_path / "run", train)


def test_random_weights_are_the_same_each_time(data, model):
    method = bert_method("random", "", model, QUICK, random=True)
    [(train, valid), *_] = kfold(data, 3)
    first = method.run(data, train, valid)
    torch.manual_seed(99)
    np.testing.assert_array_equal(method.run(data, train, valid), first)


def test_the_oracle_is_an_upper_bound():
    data = LabeledTexts(
        list("aabbbc"), np.array([0, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 1, 2]), ("no", "yes")
    )
    assert oracle_accuracy(data) == 4 / 6
    assert conflicts(data) == {"repeated": {"groups": 2, "rows": 5}, "conflicting": {"groups": 2, "rows": 5}}
    method = Method(
        "oracle",
        "",
        {},
        lambda data, train, valid: np.eye(2)[[{0: 0, 1: 1, 2: 0}[g] for g in data.groups[valid]]],
    )
    rows = np.arange(6)
    assert tweets_study.fold_scores("oracle", data, [(rows, rows)], method.run(data, rows, rows))[0][
        "accuracy"
    ] == oracle_accuracy(data)


def test_adapting_learns_the_texts_and_sets_punctuation_apart(data, model, tmp_path):
    record = continue_pretraining(
        model,
        data.texts,
        tmp_path / "adapted",
        replace(tweets_study.TAPT_CONFIG, lr=1e-2, epochs=4, warmup_epochs=0, batch_size=16),
    )
    assert record["result"]["after"]["loss"] < record["result"]["before"]["loss"]
    _, tokenizer = load_model(tmp_path / "adapted" / "model")
    assert tokenizer.encode("storm, #fire!").ids == load_model(model)[1].encode("storm , # fire !").ids


def test_one_command(kaggle, model, tmp_path, capsys, monkeypatch):
    best = tweets_study.with_train(QUICK, precision="bf16")
    monkeypatch.setattr(tweets_study, "BEST_CONFIG", best)
    monkeypatch.setattr(tweets_study, "STUDY_CONFIG", replace(QUICK, freeze="all"))
    command = [
        "tweets",
        "--data",
        kaggle,
        "--model",
        model,
        "--out",
        tmp_path / "out",
        "--folds",
        2,
        "--epochs",
        1,
        "--other-models",
        model,
    ]
    assert main(list(map(str, command))) == 0
    assert (tmp_path / "out" / "submission.csv").read_text().splitlines()[0] == "id,target"
    records = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()}
    assert {
        "tweets_study_s_best.json",
        "tweets_adapted_whole.json",
        "tweets_tf_idf_words_characters_lr_and_adapted_whole.json",
    } <= set(records)
    submission = records.pop("tweets_submission.json")
    assert (
        sum(submission["result"].values())
        == len((tmp_path / "out" / "submission.csv").read_text().splitlines()) - 1
    )
    assert f"whole, read {model.parent.name}" in {record["name"] for record in records.values()}
    assert all(len(record["result"]["folds"]) == 2 for record in records.values())
    folds = [tmp_path / "out" / "folds" / f"adapted_whole{name}" / "fold-0.json" for name in ("", "_seed_1")]
    one, two = (json.loads(path.read_text())["probabilities"] for path in folds)
    assert one != two
    before = capsys.readouterr().out
    for path in (tmp_path / "out" / "records").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_at": "in May"}))
    monkeypatch.setattr(tweets_study, "finetune", None)  # everything is there
    assert main(list(map(str, command))) == 0
    assert capsys.readouterr().out == before
    known = [json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()]
    assert {record["finished_at"] for record in known} == {"in May"}  # results of then are not called new
    assert (
        main(
            [
                "predict",
                str(tmp_path / "out" / "model"),
                "--tweets",
                str(kaggle / "test.csv"),
                "--out",
                str(tmp_path / "again.csv"),
            ]
        )
        == 0
    )
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "out" / "submission.csv").read_text()


def test_a_folder_that_lacks_the_tweets(model, tmp_path, capsys):
    assert (
        main(["tweets", "--data", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    )
    assert "no such file" in capsys.readouterr().err


# ---------------------------------------------------------------- word vectors


VECTORS = {"vector_size": 8, "sg": 1, "window": 2, "negative": 2, "min_count": 1, "epochs": 1, "seed": 0}


@pytest.fixture(scope="module")
def vectors(data, tmp_path_factory):
    pytest.importorskip("gensim", reason="comes with bertlab[word2vec]")
    return word_vectors.train_word_vectors(data.texts, tmp_path_factory.mktemp("vectors"), VECTORS)


def test_vectors_are_trained_once_for_each_text_and_settings(data, vectors, tmp_path):
    again = word_vectors.train_word_vectors(iter(data.texts), tmp_path, VECTORS)
    np.testing.assert_array_equal(again.vectors, vectors.vectors)
    [first] = tmp_path.glob("*.bin")
    stamp = first.stat().st_mtime_ns
    word_vectors.train_word_vectors(data.texts, tmp_path, VECTORS)
    assert first.stat().st_mtime_ns == stamp
    word_vectors.train_word_vectors(data.texts, tmp_path, VECTORS | {"seed": 1})
    word_vectors.train_word_vectors(data.texts[1:], tmp_path, VECTORS)
    assert len(list(tmp_path.glob("*.bin"))) == 3


def test_a_word_has_its_vector_or_a_random_one(vectors):
    texts = ["Fire! zyzzyva", "", "FIRE zyzzyva"]
    store, table = word_vectors.embedding_table(texts, vectors)
    assert store.lengths.tolist() == [3, 1, 2]
    assert store.ids[[0, 2]].tolist() == store.ids[[4, 5]].tolist()
    np.testing.assert_array_equal(table[store.ids[0]].numpy(), vectors["fire"])
    fresh = word_vectors.embedding_table(texts, vectors, known=False)[1]
    assert (fresh != table).any(1).sum() == 2  # fire and the exclamation mark are known
    limit = 3**0.5 * vectors.vectors.std()
    assert fresh.abs().max() <= limit
    assert (word_vectors.embedding_table(texts, vectors, known=False, seed=1)[1] != fresh).any()


@pytest.mark.parametrize("trained", [False, True])
def test_static_vectors_stay_as_they_are(data, vectors, monkeypatch, trained):
    "And the others do not; either way a second run gives the same probabilities."
    built, train = [], TrainConfig("adamw", lr=1e-2, epochs=3, batch_size=16)

    class Spy(word_vectors.WordCNN):
        def __init__(self, table, *args):
            super().__init__(table.clone(), *args)
            built.append((table, self))

    monkeypatch.setattr(word_vectors, "WordCNN", Spy)
    method = word_vectors.word_cnn_method("cnn", "", vectors, True, trained, train)
    [(rows, valid), *_] = kfold(data, 3)
    first = method.run(data, rows, valid)
    torch.manual_seed(99)
    np.testing.assert_array_equal(method.run(data, rows, valid), first)
    assert (first.argmax(1) == data.labels[valid]).mean() > 0.9
    for table, model in built:
        assert torch.equal(model.embedding.weight, table) != trained


def test_settings_tell_vectors_apart(data, vectors):
    methods = word_vectors.word_cnn_methods(vectors)
    assert len({str(m.settings) for m in methods}) == len({m.name for m in methods}) == 3
    other = vectors.vectors.copy()
    vectors.vectors[0, 0] += 1
    try:
        assert word_vectors.word_cnn_methods(vectors)[1].settings != methods[1].settings
    finally:
        vectors.vectors[:] = other


def test_word_vectors_go_on_where_they_were(kaggle, tmp_path, monkeypatch):
    pytest.importorskip("gensim", reason="comes with bertlab[word2vec]")
    monkeypatch.setattr(word_vectors, "WORD2VEC", VECTORS)
    (tmp_path / "text.txt").write_text("the town is on fire\na song about the town\n", encoding="utf8")
    arguments = kaggle, tmp_path / "text.txt", tmp_path / "out", 2
    word_vectors.run_word_vectors(*arguments)
    names = sorted(path.name for path in (tmp_path / "out" / "records").iterdir())
    assert names == ["tweets_cnn_non_static.json", "tweets_cnn_random.json", "tweets_cnn_static.json"]
    record = json.loads((tmp_path / "out" / "records" / names[0]).read_text())
    assert record["kind"] == "crossvalidation" and len(record["result"]["folds"]) == 2
    monkeypatch.setattr(word_vectors, "fit", None)  # everything is there
    word_vectors.run_word_vectors(*arguments)
