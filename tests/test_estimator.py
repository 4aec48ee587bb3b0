"BertlabClassifier among scikit-learn's tools, and under scikit-learn's own checks."

import copy
import pickle
import pickletools
import re
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

from bertlab.bpe import train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.encoder import EncoderConfig
from bertlab.estimator import BertlabClassifier
from bertlab.finetuning import FinetuneConfig, classify, load_classifier, save_classifier
from bertlab.mlm import MaskedLM, save_model

SUBJECTS = {
    "rain": ["it rains", "the rain falls", "a wet cloud"],
    "array": ["an array", "a matrix", "rows of numbers"],
}
TEXTS = [
    f"{phrase} {word}"
    for word in "here there now today always".split()
    for p in SUBJECTS.values()
    for phrase in p
]
LABELS = [name for _ in range(5) for name, phrases in SUBJECTS.items() for _ in phrases]
WORDS = [f"{'abcdefghij'[column]}{sign}{size}" for column in range(10) for sign in "mp" for size in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "The folder of a tiny model that knows the words of this file."
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*TEXTS, *WORDS] * 3, 2000)
    shape = EncoderConfig(tokenizer.get_vocab_size(), d_model=32, heads=2, d_ff=32, layers=1, max_len=64)
    folder = tmp_path_factory.mktemp("mlm") / "model"
    save_model(MaskedLM(shape), tokenizer, folder)
    return folder


def small(model, **settings) -> BertlabClassifier:
    settings = {"n_filters": 20, "kernel_sizes": (1, 2), "dropout": 0.0, "lr": 1e-2, "epochs": 8} | settings
    return BertlabClassifier(model, **{"batch_size": 10, "random_state": 0} | settings)


@pytest.fixture(scope="module")
def fitted(model):
    return small(model).fit(TEXTS, LABELS)


# ---------------------------------------------------------------- parameters


def test_the_defaults_are_those_of_finetuning(model):
    classifier = BertlabClassifier(model, random_state=0)
    config = classifier._config()
    assert replace(config, train=replace(config.train, seed=0)) == FinetuneConfig()


@pytest.mark.parametrize(
    "setting",
    [
        {"kernel_sizes": 3}, {"kernel_sizes": "34"}, {"kernel_sizes": (1.5,)}, {"lr": "x"}, {"lr": None},
        {"n_filters": 2.5}, {"dropout": "x"}, {"batch_size": True}, {"epochs": "2"}, {"n_dropped_layers": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_number_is_refused_by_its_name(setting):
    "Seen before: a TypeError from the inside, which named no parameter."
    (name, value), classifier = *setting.items(), small("no model is read")
    with pytest.raises(BertlabError, match=rf"^{name} is {re.escape(repr(value))}. Give"):
        classifier.set_params(**setting).fit(TEXTS, LABELS)


def test_numbers_of_numpy_are_numbers(model):
    "Seen before: a batch size from a grid of numpy was refused, and a pickle of a fitted one failed."
    grid = {"n_filters": 4, "batch_size": 10, "n_dropped_layers": 0, "freeze": 1}
    settings = {name: np.int64(n) for name, n in grid.items()}
    settings |= {"kernel_sizes": np.array([1, 2]), "dropout": np.float32(0), "epochs": np.int64(1)}
    fitted = small(model, **settings).fit(TEXTS, LABELS)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_a_fit_that_fails_changes_nothing(model):
    "Seen before: the old classifier answered with the new labels; and a new one claimed to be fitted."
    once = small(model, epochs=1).fit(TEXTS, LABELS)
    for classifier, found in ((once, list(once.predict(TEXTS))), (small(model), None)):
        with pytest.raises(BertlabError):
            classifier.set_params(n_dropped_layers=5).fit(TEXTS, [f"new {label}" for label in LABELS])
        if found:
            assert list(classifier.predict(TEXTS)) == found
        else:
            with pytest.raises(NotFittedError):
                classifier.predict(TEXTS)


def test_parameters_come_back_and_clone_forgets_the_training(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params() and not hasattr(copied, "classes_")
    assert copied.set_params(lr=0.5, freeze=1).lr == 0.5 and fitted.lr == 1e-2
    assert is_classifier(fitted) and "lr=0.01" in repr(fitted)
    tags = get_tags(fitted).input_tags
    assert tags.string and not tags.two_d_array and not hasattr(fitted, "n_features_in_")


def test_bad_settings_and_models_are_said_at_fit(model, tmp_path):
    for settings, problem in (
        ({"lr": -1.0}, "lr is -1.0"),
        ({"freeze": "some"}, "freeze"),
        ({"dropout": 2}, "dropout"),
    ):
        with pytest.raises(BertlabError, match=problem):
            small(model, **settings).fit(TEXTS, LABELS)
    with pytest.raises(BertlabError, match="no such folder"):
        small(tmp_path / "nothing").fit(TEXTS, LABELS)


def test_random_state(model, fitted):
    again = small(model).fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert np.array_equal(again, fitted.predict_proba(TEXTS))
    assert not np.array_equal(small(model, random_state=1).fit(TEXTS, LABELS).predict_proba(TEXTS), again)
    generators = [np.random.RandomState(3), np.random.RandomState(3), None, None]
    found = [small(model, random_state=g).fit(TEXTS, LABELS).predict_proba(TEXTS) for g in generators]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[2], found[3])


# ---------------------------------------------------------------- fit and predict


def test_it_learns_and_speaks_the_users_labels(model, fitted):
    assert fitted.score(TEXTS, LABELS) == 1.0 and fitted.classes_.tolist() == ["array", "rain"]
    assert fitted.predict(["rain", "a matrix"]).tolist() == ["rain", "array"]
    chances = fitted.predict_proba(TEXTS)
    assert chances.shape == (30, 2) and np.allclose(chances.sum(1), 1)
    assert [row["step"] for row in fitted.history_] == [3 * i for i in range(1, 9)]
    numbers = np.where(np.array(LABELS) == "rain", 7, -2)
    for y in (numbers, numbers.tolist(), numbers == 7, numbers.astype(float), np.array(LABELS, dtype=object)):
        classifier = small(model).fit(TEXTS, y)
        assert classifier.predict(TEXTS).tolist() == list(y)
        assert classifier.classes_.dtype == np.asarray(y).dtype
        order = [0, 1] if y[0] != "rain" else [1, 0]  # the classes are sorted
        assert chances.shape[1] == len(order)


def test_three_classes(model):
    labels = [f"{label}{i % 2}" if label == "rain" else label for i, label in enumerate(LABELS)]
    classifier = small(model).fit(TEXTS, labels)
    assert classifier.classes_.tolist() == ["array", "rain0", "rain1"]
    assert classifier.predict_proba(TEXTS).shape == (30, 3)


def test_containers_of_texts(model, fitted):
    wanted = fitted.predict_proba(TEXTS)
    for convert in (tuple, np.array, lambda t: np.array(t, dtype=object), pd.Series, pd.Index):
        texts = convert(TEXTS)
        assert np.array_equal(fitted.predict_proba(texts), wanted)
        assert np.array_equal(small(model).fit(texts, convert(LABELS)).predict_proba(TEXTS), wanted)
    shuffled = pd.Series(TEXTS, index=range(100, 70, -1))
    assert np.array_equal(fitted.predict_proba(shuffled), wanted)  # by position, as scikit-learn does
    categories = pd.Series(LABELS, dtype="category")
    assert np.array_equal(small(model).fit(TEXTS, categories).predict_proba(TEXTS), wanted)
    assert fitted.predict_proba(["", "\ud800", "글 ☃"]).shape == (
        3,
        2,
    )  # a lone surrogate is no text, but no crash


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
def test_what_is_missing_is_refused_with_its_row(model, fitted, gap):
    texts, labels = list(TEXTS), list(LABELS)
    texts[3] = labels[5] = gap
    for convert in (list, lambda t: np.array(t, dtype=object), pd.Series):
        with pytest.raises(ValueError, match="row 4: the text is missing"):
            small(model).fit(convert(texts), LABELS)
        with pytest.raises(ValueError, match="row 4: the text is missing"):
            fitted.predict(convert(texts))
        with pytest.raises(BertlabError, match="row 6: the label is missing"):
            small(model).fit(TEXTS, convert(labels))


def test_what_is_no_text_or_no_label(model, fitted):
    fit = small(model).fit
    faults = [
        (lambda: fit("one text", LABELS), "the texts are a str"),
        (lambda: fit(iter(TEXTS), LABELS), "the texts are a list_iterator"),
        (lambda: fit(set(TEXTS), LABELS[: len(set(TEXTS))]), "the texts are a set"),
        (lambda: fitted.predict({"text": TEXTS}), "the texts are a dict"),  # its key was classified
        (lambda: fit(pd.DataFrame({"text": TEXTS}), LABELS), r"a table of shape \(30, 1\)"),
        (lambda: fit([1, 2], [0, 1]), "row 1: the text is a int"),
        (lambda: fitted.predict([b"bytes"]), "row 1: the text is a bytes"),
        (lambda: fitted.predict([]), "there is no text"),
        (lambda: fit([], []), "there is no text"),
        (lambda: fit(TEXTS, ["one"] * 30), "all texts are of one class"),
        (lambda: fit(TEXTS, LABELS[:-1]), "inconsistent numbers of samples"),
        (lambda: fit(TEXTS, np.linspace(0, 1, 30)), "Unknown label type"),
        (lambda: fit(TEXTS, None), "requires y to be passed"),
        (lambda: fit(TEXTS, [["a", "b"]] * 30), "1d array"),
    ]
    for function, problem in faults:
        with pytest.raises(ValueError, match=problem):
            function()
    with pytest.raises(NotFittedError):
        small(model).predict(TEXTS)


def test_a_text_that_is_cut_gets_a_warning(model, fitted):
    "Seen before: the ends of long texts were left out without a word, where the command line told it."
    long = ["rain " * 65, "it rains", "rain " * 64]
    with pytest.warns(UserWarning, match="of 1 texts only the first 64 tokens"):
        small(model, epochs=1).fit([*long, "a matrix"], ["rain", "rain", "rain", "array"])
    with pytest.warns(UserWarning, match="of 1 texts only the first 64 tokens"):
        fitted.predict(long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(long[1:])


# ---------------------------------------------------------------- among scikit-learn's tools


def test_cross_validation_and_grid_search(model, tmp_path):
    scores = cross_val_score(small(model), TEXTS, LABELS, cv=3, error_score="raise")
    assert scores.mean() > 0.8
    assert cross_val_score(small(model), np.array(TEXTS), LABELS, cv=3, scoring="neg_log_loss").max() < 0
    chances = cross_val_predict(small(model), pd.Series(TEXTS), LABELS, cv=3, method="predict_proba")
    assert chances.shape == (30, 2)
    grid = {"n_filters": [1, 20], "lr": [1e-6, 1e-2]}
    plain = GridSearchCV(small(model), grid, cv=3, error_score="raise").fit(TEXTS, LABELS)
    assert plain.best_params_["lr"] == 1e-2 and plain.predict(["the rain"]) == ["rain"]
    cached = GridSearchCV(small(model, cache=tmp_path), grid, cv=3).fit(TEXTS, LABELS)
    assert (
        len(list(tmp_path.glob("*.safetensors"))) == 4
    )  # three folds and the refit, once for all candidates
    assert np.array_equal(cached.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])


def test_pipelines_and_ensembles(model, fitted):
    upper = [text.upper() for text in TEXTS]
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, small(model))
    pipeline.set_params(bertlabclassifier__epochs=8).fit(upper, LABELS)
    assert np.array_equal(pipeline.predict_proba(upper), fitted.predict_proba(TEXTS))
    counts = make_pipeline(CountVectorizer(), LogisticRegression())
    both = VotingClassifier([("counts", counts), ("bert", small(model))], voting="soft").fit(TEXTS, LABELS)
    single = [estimator.predict_proba(TEXTS) for estimator in both.estimators_]
    assert np.allclose(both.predict_proba(TEXTS), np.mean(single, axis=0))
    frame = pd.DataFrame({"id": range(30), "text": TEXTS})
    chosen = make_pipeline(FunctionTransformer(lambda frame: frame["text"]), small(model)).fit(frame, LABELS)
    assert chosen.score(frame, LABELS) == 1.0
    columns = ColumnTransformer(
        [("counts", CountVectorizer(), "text")]
    )  # as scikit-learn hands one column on: 1-D
    assert columns.fit_transform(frame).shape[0] == 30


def test_a_pickle_holds_plain_data_and_opens_equal(fitted, model, tmp_path):
    wanted = fitted.predict_proba(TEXTS)
    joblib.dump(fitted, tmp_path / "a.joblib", compress=3)
    for again in (
        joblib.load(tmp_path / "a.joblib"),
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
    ):
        assert np.array_equal(again.predict_proba(TEXTS), wanted) and not again.classifier_.training
        assert again.get_params() == fitted.get_params() and again.history_ == fitted.history_
    assert np.array_equal(fitted.predict_proba(TEXTS), wanted)  # dumping changes nothing
    used = {arg for op, arg, _ in pickletools.genops(pickle.dumps(fitted, protocol=2)) if op.name == "GLOBAL"}
    assert not any(name.startswith(("torch", "tokenizers", "safetensors")) for name in used), used
    unfitted = pickle.loads(pickle.dumps(small(model)))
    assert not hasattr(unfitted, "classes_") and unfitted.get_params() == small(model).get_params()


def test_a_pickle_with_damaged_weights_is_refused(fitted):
    state = fitted.__getstate__()
    config, weights, tokenizer = state["saved_model"]
    state["saved_model"] = (config.replace('"n_filters": 20', '"n_filters": 21'), weights, tokenizer)
    with pytest.raises(BertlabError, match="has shape"):
        BertlabClassifier.__new__(BertlabClassifier).__setstate__(state)


def test_a_fitted_model_becomes_a_folder_without_a_pickle(fitted, tmp_path):
    save_classifier(fitted.classifier_, fitted.tokenizer_, tmp_path / "saved")
    model, tokenizer = load_classifier(tmp_path / "saved")
    assert model.labels == ["array", "rain"]
    assert np.array_equal(classify(model, tokenizer, TEXTS), fitted.predict_proba(TEXTS))


# ---------------------------------------------------------------- scikit-learn's own checks


def as_texts(numbers: np.ndarray) -> list[str]:
    "A row of numbers as words: the column's letter, the sign, and the size to a fifth."
    sizes = np.minimum(np.abs(numbers) * 5, 19).round().astype(int)
    return [
        " ".join(
            f"{'abcdefghij'[j % 10]}{'m' if v < 0 else 'p'}{size}" for j, (v, size) in enumerate(zip(*pair))
        )
        for pair in zip(numbers, sizes)
    ]


class OfNumbers(BertlabClassifier):
    "Reads rows of numbers as texts: scikit-learn's checks can feed nothing else."

    def fit(self, X, y):
        return super().fit(as_texts(validate_data(self, X)), y)

    def predict_proba(self, X):
        if hasattr(self, "n_features_in_"):
            X = as_texts(validate_data(self, X, reset=False))
        return super().predict_proba(X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        return tags


CANNOT_APPLY = {}


def test_scikit_learn_skips_texts_without_complaint(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(small(model), on_fail="raise")
    assert {result["status"] for result in results} == {"passed"}


def test_estimator_checks(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            OfNumbers(**small(model).get_params()),
            expected_failed_checks=CANNOT_APPLY,
            on_fail=None,
            on_skip=None,
        )
    failed = {r["check_name"]: repr(r["exception"])[:300] for r in results if r["status"] == "failed"}
    assert not failed
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(CANNOT_APPLY)
    assert sum(r["status"] == "passed" for r in results) >= 45
