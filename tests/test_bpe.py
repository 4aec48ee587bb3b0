"BPE: what holds for every text, not only for those of the notebook."

import json
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bertlab import bpe
from bertlab.core.files import BertlabError
from bertlab.core.saving import save_tokenizer, tokenizer_fingerprint
from bertlab.data.text import normalize

TEXTS = [
    "The gradient is computed at masked positions only.",
    "텐서의 모양을 확인하세요.",
    "텐서를 저장하지 못했습니다",
    "a banana, a bandana, an anaconda 🙂",
    "naïve café — “quoted” words…",
    "aaaa aaa aa a",
]
# what Python and `tokenizers` surely agree on: both know every character of Unicode 3.2; a lone surrogate is no text
OLD = st.characters(exclude_categories=["Cs", "Cn"]).filter(
    lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn"
)
ODD = [" ", "\t", "\u00ad", "\u200b", "▁", "[MASK]", "Σ", "한", "e\u0301", "ﬁ", "½", "\u00a8"]
ANY_TEXT = st.one_of(st.text(OLD), st.lists(st.sampled_from(ODD)).map("".join))


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train_tokenizer(TEXTS, 60)


def naive(word_counts, merges):
    "The definition, counted anew for each merge."
    words = {word: tuple(word) for word in word_counts}
    ids = {c: i for i, c in enumerate(sorted({c for word in words for c in word}))}
    learned = {}
    while len(learned) < merges:
        pairs = Counter()
        for word, tokens in words.items():
            for pair in zip(tokens, tokens[1:]):
                pairs[pair] += word_counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
        ids.setdefault("".join(best), len(ids))
        learned[best] = True
        for word, tokens in words.items():
            out = []
            for token in tokens:
                if out and (out[-1], token) == best:
                    out[-1] += token
                else:
                    out.append(token)
            words[word] = tuple(out)
    return list(learned)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.text("abc한", min_size=1, max_size=12), st.integers(1, 5), max_size=10),
    st.integers(0, 40),
)
def test_the_fast_learner_follows_the_definition(word_counts, merges):
    assert bpe.learn_merges(word_counts, merges) == naive(word_counts, merges)


def test_the_library_learns_the_same_merges():
    sentences = [f"{text} {text[::-1]}" for text in TEXTS] * 3
    for merges in (0, 1, 20, 100):
        assert bpe.tokenizer_merges(bpe.train_tokenizer(sentences, merges)) == bpe.learn_merges(
            bpe.count_words(sentences), merges
        )


def test_merges_mean_merges(tokenizer):
    alphabet = {c for word in bpe.count_words(TEXTS) for c in word}
    merges = bpe.tokenizer_merges(tokenizer)
    assert len(merges) == 60
    assert tokenizer.get_vocab_size() == len(bpe.SPECIAL_TOKENS) + len(alphabet) + len(
        {a + b for a, b in merges}
    )
    assert [tokenizer.id_to_token(i) for i in range(5)] == bpe.SPECIAL_TOKENS
    assert bpe.train_tokenizer(TEXTS, 0).get_vocab_size() == len(bpe.SPECIAL_TOKENS) + len(
        alphabet
    )  # characters only


def test_a_one_shot_iterator_will_do(tokenizer):
    assert tokenizer_fingerprint(bpe.train_tokenizer(iter(TEXTS), 60)) == tokenizer_fingerprint(
        tokenizer
    )


@settings(deadline=None, max_examples=300)
@given(ANY_TEXT)
def test_the_normaliser_is_normalize(text):
    assert bpe.NORMALIZER.normalize_str(text) == normalize(text)


@settings(deadline=None, max_examples=300)
@given(ANY_TEXT)
def test_there_and_back(text):
    text = normalize(text)
    tokenizer = bpe.build_tokenizer(set(text) - {" "}, [("▁", c) for c in sorted(set(text) - {" "})])
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(ANY_TEXT, st.sampled_from(TEXTS)), max_size=8))
def test_the_word_encoder_is_the_tokenizer(tokenizer, texts):
    ids, lengths = bpe.WordEncoder(tokenizer, max_words=5).encode(texts)
    expected = [
        e.ids for e in tokenizer.encode_batch([normalize(text) for text in texts], add_special_tokens=False)
    ]
    assert lengths.tolist() == [len(e) for e in expected]
    assert ids.tolist() == sum(expected, [])


def test_an_interrupted_call_leaves_the_encoder_whole(tokenizer, monkeypatch):
    encoder = bpe.WordEncoder(tokenizer)
    with monkeypatch.context() as m:
        m.setattr(bpe, "_encode_words", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(["a new word"])
    ids, lengths = encoder.encode(["a banana"])
    assert ids.tolist() == tokenizer.encode("a banana").ids and lengths.tolist() == [len(ids)]


def test_unknown_characters_are_one_unknown_each(tokenizer):
    ids, lengths = bpe.WordEncoder(tokenizer).encode(["龍龍龍", "🐍"])
    assert (ids == bpe.UNK_ID).sum() == 4 and lengths.tolist() == [4, 2]


def test_text_cannot_smuggle_in_specials(tokenizer):
    ids, _ = bpe.WordEncoder(tokenizer).encode(["[MASK] [PAD] [CLS][SEP]"])
    assert not np.isin(ids, [bpe.PAD_ID, bpe.CLS_ID, bpe.SEP_ID, bpe.MASK_ID]).any()


def test_a_word_of_a_million_characters(tokenizer):
    ids, lengths = bpe.WordEncoder(tokenizer).encode(["ab" * 500_000])
    assert (
        lengths.tolist() == [len(ids)]
        and bpe.chars_per_token(tokenizer)[ids.astype(np.int64)].sum() == 1_000_000
    )


def test_token_chars_add_up_to_the_text(tokenizer):
    chars = bpe.chars_per_token(tokenizer)
    for text in map(normalize, TEXTS):
        assert chars[tokenizer.encode(text).ids].sum() == len(text.replace(" ", ""))


@pytest.mark.parametrize("sentences", [[], [""], [" ", "\u200b"]])
def test_nothing_to_learn_from(sentences):
    with pytest.raises(BertlabError, match="no words"):
        bpe.train_tokenizer(sentences, 10)


def test_saved_tokenizers_open_everywhere(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    hub = PreTrainedTokenizerFast(
        tokenizer_file=str(path), mask_token="[MASK]", unk_token="[UNK]", pad_token="[PAD]"
    )
    for text in TEXTS:
        assert (
            bpe.load_tokenizer(path).encode(text).ids == tokenizer.encode(text).ids == hub(text)["input_ids"]
        )
    assert (hub.mask_token_id, hub.pad_token_id) == (bpe.MASK_ID, bpe.PAD_ID)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda text: text[: len(text) // 2], "is not a tokenizer"),
        (lambda text: "", "is not a tokenizer"),
        (lambda text: json.dumps({"version": "1.0"}), "is not a tokenizer"),
        (lambda text: text.replace("[UNK]", "[UNKNOWN]"), "its first tokens"),
    ],
)
def test_a_damaged_tokenizer_is_named(tokenizer, tmp_path, damage, says):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    path.write_text(damage(path.read_text(encoding="utf8")), encoding="utf8")
    with pytest.raises(BertlabError, match=says) as caught:
        bpe.load_tokenizer(path)
    assert str(path) in str(caught.value)
