"BPE: what holds for every text, not only for those of the notebook."

import json
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

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
# Python and `tokenizers` agree on every character of Unicode 3.2; a lone surrogate is no text
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
            for pair in pairwise(tokens):
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
    assert tokenizer_fingerprint(bpe.train_tokenizer(iter(TEXTS), 60)) == tokenizer_fingerprint(tokenizer)


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
    assert ids.tolist() == list(chain.from_iterable(expected))


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


def test_text_gives_no_special_tokens(tokenizer):
    ids, _ = bpe.WordEncoder(tokenizer).encode(["[MASK] [PAD] [CLS][SEP]"])
    assert not np.isin(ids, [bpe.PAD_ID, bpe.CLS_ID, bpe.SEP_ID, bpe.MASK_ID]).any()


@pytest.mark.parametrize("length", [250_000, 10_000_000])
def test_a_word_without_end_is_cut(tokenizer, length):
    word = "ab" * (length // 2)
    start = time.monotonic()
    ids, lengths = bpe.WordEncoder(tokenizer).encode([f"a {word} c", "a"])
    learned = bpe.train_tokenizer([*TEXTS, word], 200)
    bpe.learn_merges(bpe.count_words([*TEXTS, word]), 200)
    assert time.monotonic() - start < 20
    whole = tokenizer.encode(f"a {word[: bpe.MAX_WORD_CHARS]} c").ids
    assert ids[: lengths[0]].tolist() == whole and lengths.tolist() == [len(whole), 1]
    assert bpe.tokenizer_merges(learned)
    assert bpe.cut_long_words(f"a {word} c {word}") == (
        f"a {word[: bpe.MAX_WORD_CHARS]} c {word[: bpe.MAX_WORD_CHARS]}",
        2,
    )


@given(st.lists(st.text("ab", min_size=1, max_size=2000), max_size=4))
def test_only_long_words_are_cut(words):
    text = "  ".join(words)
    cut, n_cut = bpe.cut_long_words(text)
    assert cut.split() == [word[: bpe.MAX_WORD_CHARS] for word in words]
    assert n_cut == sum(len(word) > bpe.MAX_WORD_CHARS for word in words)
    assert n_cut or cut == text


INTERRUPTED = """
import random, string
from bertlab import bpe
letters = random.Random(0)
word = lambda: "".join(letters.choices(string.ascii_lowercase, k=900))
words = [" ".join(word() for _ in range(10)) for _ in range(3000)]
print("learning", flush=True)
bpe.train_tokenizer(words, 20_000)
print("learned", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_interrupts_learning():
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "learning\n"
        time.sleep(6)  # by now the library learns merges
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert "learned" not in out and "KeyboardInterrupt" in error


def test_what_the_corpus_raises_is_raised():
    def breaks():
        yield "a word"
        raise BertlabError("the disk is gone")

    class Corpus:
        n_read = 0

        def __iter__(self):
            self.n_read += 1
            return iter(TEXTS) if self.n_read == 1 else breaks()

    with pytest.raises(BertlabError, match="the disk is gone"):
        bpe.train_tokenizer(Corpus(), 10)


@pytest.mark.parametrize("merges", [10**9, bpe.MAX_MERGES + 1, -1])
def test_impossible_numbers_of_merges_are_refused(merges):
    with pytest.raises(BertlabError, match="merges is"):
        bpe.train_tokenizer(TEXTS, merges)


def test_characters_per_token_add_up_to_the_text(tokenizer):
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
    hub = pytest.importorskip("transformers").PreTrainedTokenizerFast(
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


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tokenizer: tokenizer.enable_padding(), "padding"),
        (lambda tokenizer: tokenizer.enable_truncation(8), "truncation"),
        (lambda tokenizer: setattr(tokenizer.model, "dropout", 0.1), "dropout"),
    ],
)
def test_settings_that_change_the_ids_are_refused(tokenizer, tmp_path, change, says):
    path, copy = tmp_path / "tokenizer.json", Tokenizer.from_str(tokenizer.to_str())
    change(copy)
    assert tokenizer_fingerprint(copy) != tokenizer_fingerprint(tokenizer)
    save_tokenizer(copy, path)
    with pytest.raises(BertlabError, match=f"{says} switched on"):
        bpe.load_tokenizer(path)


@pytest.mark.parametrize(
    "model",
    [models.WordPiece, models.WordLevel, lambda vocab, unk_token: models.Unigram([("[UNK]", 0.0)], 0)],
)
def test_other_kinds_of_tokenizers_are_named(tmp_path, model):
    vocab = {token: i for i, token in enumerate([*bpe.SPECIAL_TOKENS, "the"])}
    save_tokenizer(Tokenizer(model(vocab, unk_token="[UNK]")), tmp_path / "tokenizer.json")
    with pytest.raises(BertlabError, match=r"is a \w+ tokenizer, bertlab's are BPE") as caught:
        bpe.load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value)
