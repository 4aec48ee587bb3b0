"The masked language model beyond its notebook: any batch, and every way a saved model can be wrong."

import copy
import json
import math
import os
import pickle
import time

import pytest
import torch
import torch.nn.functional as F
from helpers import Bomb
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from bertlab.bpe import MASK_ID, WordEncoder, chars_per_token, split_punctuation, train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.core.saving import MODEL_FILES, load_model_folder, save_model_folder
from bertlab.encoder import EncoderConfig
from bertlab.masking import MaskingConfig, mask_batch
from bertlab.mlm import (
    MaskedLM,
    encode_masked,
    evaluate_mlm,
    fill_mask,
    load_model,
    mlm_loss,
    mlm_metrics,
    mlm_summary,
    save_model,
    unigram_baseline,
)
from bertlab.packing import Layout, PackedBatch

TEXTS = [
    "return a copy of the array with the axes swapped",
    "return the sum of the elements along the given axis",
    "the number of rows that the table can hold",
    "raise an error when the file does not exist",
    "행렬의 모든 원소를 더한다",
    "파일이 없으면 오류를 낸다",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 60)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return MaskedLM(
        EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=2, max_len=40)
    )


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def batch_of(lengths, vocab_size, epoch=0, seed=0):
    "A masked batch of random tokens."
    layout = Layout.from_lengths(lengths)
    ids = torch.randint(5, vocab_size, (layout.n_tokens,), generator=torch.Generator().manual_seed(seed))
    return mask_batch(
        PackedBatch(ids, layout, torch.arange(len(lengths))), vocab_size, MaskingConfig(), seed, epoch
    )


def assert_load_fails(folder, says):
    "Loading must end in one line that says this and names a place in the folder."
    with pytest.raises(BertlabError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert says in message and str(folder) in message and "\n" not in message


def edit(folder, change):
    "Change config.json."
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# --- the model and its loss


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_loss_and_gradients_equal_full_logits_with_ignore_index(lengths, seed):
    torch.manual_seed(seed)
    model = MaskedLM(EncoderConfig(50, d_model=16, heads=2, d_ff=32, layers=2, max_len=40))
    masked = batch_of(lengths, 50, seed=seed)
    labels = torch.full_like(masked.inputs, -100).index_copy_(0, masked.masked_indices, masked.targets)
    everywhere = model.encoder(masked.inputs, masked.layout) @ model.encoder.embedding.weight.T
    expected, loss = (
        F.cross_entropy(everywhere, labels, ignore_index=-100),
        mlm_loss(model(masked), masked.targets),
    )
    torch.testing.assert_close(loss, expected)
    for a, b in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite(scale, dtype):
    logits = (
        (torch.randn(20, 100, generator=torch.Generator().manual_seed(0)) * scale).to(dtype).requires_grad_()
    )
    targets = torch.arange(20)
    loss = mlm_loss(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
    exact = F.cross_entropy(logits.detach().double(), targets)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_table_is_the_only_output(model):
    shapes = [p.shape for p in model.parameters()]
    assert shapes.count(model.encoder.embedding.weight.shape) == 1
    assert not any(len(shape) == 1 and shape[0] == model.config.vocab_size for shape in shapes)  # no bias


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_metrics_add_up_however_the_rows_are_split(parts):
    rows, g = sum(parts), torch.Generator().manual_seed(0)
    logits, targets, chars = (
        torch.randn(rows, 30, generator=g),
        torch.randint(5, 30, (rows,), generator=g),
        torch.arange(30),
    )
    whole = mlm_summary(mlm_metrics(logits, targets, chars))
    pieces = [mlm_metrics(a, b, chars) for a, b in zip(logits.split(parts), targets.split(parts))]
    added = mlm_summary({key: sum(piece[key] for piece in pieces) for key in pieces[0]})
    assert added == pytest.approx(whole, rel=1e-5)
    nats = F.cross_entropy(logits.double(), targets, reduction="sum").item()
    assert whole["bits_per_char"] == pytest.approx(nats / math.log(2) / chars[targets].sum().item(), rel=1e-5)


def test_evaluation_has_no_dropout_and_leaves_the_mode(tokenizer):
    torch.manual_seed(0)
    model = MaskedLM(
        EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1, dropout=0.5)
    ).train()
    batches = [batch_of([9, 4, 17], tokenizer.get_vocab_size(), epoch) for epoch in range(3)]
    first, again = (evaluate_mlm(model, iter(batches), chars_per_token(tokenizer)) for _ in range(2))
    assert first == again and model.training and all(p.grad is None for p in model.parameters())


def test_unigram_baseline_by_hand():
    counts, chars = torch.tensor([0, 0, 6, 1]), torch.tensor([0, 0, 2, 3])
    score = unigram_baseline(counts, torch.tensor([2, 2, 3]), chars)
    nats = -2 * math.log(7 / 11) - math.log(2 / 11)
    assert score == pytest.approx(
        {"loss": nats / 3, "accuracy": 2 / 3, "bits_per_char": nats / math.log(2) / 7}
    )


# --- fill in the blank


def test_overfits_real_sentences_and_fills_their_blanks(tokenizer):
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(tokenizer.get_vocab_size(), d_model=32, heads=2, d_ff=64, layers=2))
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    layout = Layout.from_lengths([len(ids) for ids in encoded])
    batch = PackedBatch(torch.tensor([i for ids in encoded for i in ids]), layout, torch.arange(len(encoded)))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(400):
        masked = mask_batch(batch, model.config.vocab_size, MaskingConfig(), 0, epoch)
        loss = mlm_loss(model(masked), masked.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    exam = [mask_batch(batch, model.config.vocab_size, MaskingConfig(), 9, epoch) for epoch in range(5)]
    assert evaluate_mlm(model, exam, chars_per_token(tokenizer))["accuracy"] > 0.8
    guesses = fill_mask(model, tokenizer, "Return the sum [MASK] the elements along [mask] given axis")
    assert [guess[0][0] for guess in guesses] == ["▁of", "▁the"]


def masked_tokens(tokenizer, text):
    return [tokenizer.id_to_token(i) for i in encode_masked(tokenizer, text, 40)[0].tolist()]


def test_each_mask_is_one_token(tokenizer):
    ids, rows = encode_masked(tokenizer, "[MASK] the file [MASK]not[MASK]", 40)
    assert ids[rows].tolist() == [MASK_ID] * 3 and rows[0] == 0 and rows[-1] == len(ids) - 1
    words = tokenizer.encode("the file").tokens
    inside = [token.value for token in tokenizer.model.tokenize("not")]  # no word begins between the masks
    assert masked_tokens(tokenizer, "[MASK] the file [MASK]not[MASK]") == [
        "[MASK]", *words, "[MASK]", *inside, "[MASK]"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["the [MASK] " + "ab" * 5_000_000, "a" * 250_000 + "[MASK]"])
def test_a_word_without_end_is_refused_at_once(tokenizer, text):
    start = time.monotonic()
    with pytest.raises(BertlabError, match="a word of more than 1,000 characters"):
        encode_masked(tokenizer, text, 40)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text", [*TEXTS, "close the file.", "(the file), the axis!", "파일은 행렬의 원소를, 더한다."]
)
def test_tokens_around_a_mask_are_those_of_training(tokenizer, text):
    tokens = tokenizer.encode(text).tokens
    for i, token in enumerate(tokens):
        hole = " [MASK]" if token.startswith("▁") else "[MASK]"
        typed = "".join(hole if i == j else t.replace("▁", " ") for j, t in enumerate(tokens))
        if "▁" in (token, tokens[i - 1]) or "[UNK]" in tokens:
            continue  # a mask that begins a word stands for more than its mark
        assert masked_tokens(tokenizer, typed) == [*tokens[:i], "[MASK]", *tokens[i + 1 :]]


def test_what_is_glued_behind_a_mask_begins_no_word(tokenizer):
    for text in ("the [MASK].", "the [MASK],", "[MASK]은 파일", "[MASK]의", "the [MASK]'s axis"):
        tokens = masked_tokens(tokenizer, text)
        assert not tokens[tokens.index("[MASK]") + 1].startswith("▁")
    assert masked_tokens(tokenizer, " [MASK] ") == ["[MASK]"] == masked_tokens(tokenizer, "[mask]")
    assert masked_tokens(tokenizer, "[MASK][MASK] [MASK]") == ["[MASK]"] * 3


def test_a_punctuation_splitting_tokenizer_keeps_its_words(tokenizer):
    split = split_punctuation(tokenizer)
    for text in ("the file , the axis", "the file, the axis"):
        tokens = split.encode(text).tokens
        found = masked_tokens(split, text.replace("file", "[MASK]"))
        behind = tokens[len(split.encode("the file").tokens) :]
        assert found[found.index("[MASK]") + 1 :] == behind


@pytest.mark.parametrize("special", ["[SEP]", "[PAD]", "[CLS]", "[UNK]", "[sep]"])
def test_special_tokens_in_a_text_are_text(tokenizer, special):
    ids, rows = encode_masked(tokenizer, f"the {special} file [MASK]", 40)
    assert len(rows) == 1
    from_training, _ = WordEncoder(tokenizer).encode([f"the {special} file"])
    assert ids[:-1].tolist() == from_training.tolist()
    if special != "[UNK]":
        assert tokenizer.token_to_id(special.upper()) not in ids.tolist()


def test_more_guesses_than_tokens_are_all_tokens(model, tokenizer):
    (guesses,) = fill_mask(model, tokenizer, "[MASK]", top_k=10**9)
    assert len(guesses) == tokenizer.get_vocab_size() and sum(p for _, p in guesses) == pytest.approx(
        1, abs=1e-4
    )


@pytest.mark.parametrize(
    "text, says", [("no hole", "no [MASK]"), ("", "no [MASK]"), ("[MASK] " * 41, "takes 40")]
)
def test_texts_that_cannot_be_filled(model, tokenizer, text, says):
    with pytest.raises(BertlabError) as caught:
        fill_mask(model, tokenizer, text)
    assert says in str(caught.value)


# --- saved models


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_round_trip(tokenizer, tmp_path, norm):
    shape = {
        "d_model": 16,
        "heads": 4,
        "d_ff": 8,
        "layers": 3,
        "activation": "gelu",
        "norm": norm,
        "dropout": 0.1,
    }
    model = MaskedLM(EncoderConfig(tokenizer.get_vocab_size(), **shape))
    save_model(model, tokenizer, tmp_path / "m", extra={"말뭉치": "pairs"})
    loaded, its_tokenizer = load_model(tmp_path / "m")
    masked = batch_of([7, 12], tokenizer.get_vocab_size())
    assert (
        loaded.config == model.config and its_tokenizer.to_str() == tokenizer.to_str() and not loaded.training
    )
    assert torch.equal(loaded(masked), model.eval()(masked))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["extra"] == {"말뭉치": "pairs"}
    assert set(load_file(tmp_path / "m" / "model.safetensors")) == set(model.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["m"]  # nothing is left beside it


def test_saving_again_replaces_the_model(model, tokenizer, saved):
    other = MaskedLM(EncoderConfig(tokenizer.get_vocab_size(), d_model=8, heads=1, d_ff=8, layers=1))
    save_model(other, tokenizer, saved)
    assert load_model(saved)[0].config == other.config and sorted(os.listdir(saved)) == sorted(MODEL_FILES)


def test_an_interrupted_save_leaves_the_old_model(model, tokenizer, saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()
    monkeypatch.setattr(
        "bertlab.core.saving.save_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        save_model(MaskedLM(model.config), tokenizer, saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    load_model(saved)


def test_a_folder_with_other_files_is_left_alone(model, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BertlabError, match="holds other files"):
        save_model(model, tokenizer, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_another_model_type_is_refused(model, tokenizer, tmp_path):
    save_model_folder(tmp_path / "c", "classifier", {"classes": 2}, model, tokenizer)
    assert_load_fails(
        tmp_path / "c", "is a model of type 'classifier', not 'mlm'. `bertlab predict` takes it"
    )
    configs = []

    def build(config, tokenizer):
        configs.append(config)
        return MaskedLM(model.config)

    loaded, _ = load_model_folder(tmp_path / "c", "classifier", build)
    assert configs[0] == {"classes": 2} and not loaded.training
    with pytest.raises(BertlabError, match="holds a model of another type"):
        save_model(model, tokenizer, tmp_path / "c")


def test_a_model_is_found_in_the_folder_of_its_run(model, tokenizer, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"lr": 1}')  # the run's own
    assert_load_fails(tmp_path / "run", "not the config of a bertlab model")
    save_model(model, tokenizer, tmp_path / "run" / "model")
    assert load_model(tmp_path / "run")[0].config == model.config


def test_a_model_of_an_older_bertlab_is_named(saved):
    edit(saved, lambda config: config.update(kind=config.pop("model_type"), format=1))
    assert_load_fails(saved, "was saved by an older bertlab (format 1, this one reads 2)")


def test_files_of_another_program_are_not_replaced(model, tokenizer, tmp_path):
    for name, content in zip(MODEL_FILES, ('{"model_type": "bert"}', "weights", "{}")):
        (tmp_path / name).write_text(content)
    with pytest.raises(BertlabError, match="no model of bertlab"):
        save_model(model, tokenizer, tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'
    (tmp_path / "config.json").unlink()
    with pytest.raises(BertlabError, match="no model of bertlab"):
        save_model(model, tokenizer, tmp_path)
    with pytest.raises(BertlabError, match="is a file"):
        save_model(model, tokenizer, tmp_path / "tokenizer.json")
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers(saved, value):
    weights = load_file(saved / "model.safetensors")
    weights["encoder.norm.bias"][3] = value
    save_file(weights, saved / "model.safetensors")
    assert_load_fails(saved, "weight 'encoder.norm.bias' holds NaN or infinite numbers")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_weights_of_another_dtype(saved, dtype):
    weights = load_file(saved / "model.safetensors")
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, saved / "model.safetensors")
    assert_load_fails(saved, f"is {str(dtype).split('.')[1]}, the model needs float32")


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_pipe_is_not_waited_for(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert_load_fails(saved, name)


@pytest.mark.parametrize("setting", ["padding", "truncation", "dropout"])
def test_a_tokenizer_with_a_setting_switched_on(saved, setting):
    tokenizer = Tokenizer.from_file(str(saved / "tokenizer.json"))
    if setting == "padding":
        tokenizer.enable_padding(length=12)
    elif setting == "truncation":
        tokenizer.enable_truncation(3)
    else:
        tokenizer.model.dropout = 0.5
    tokenizer.save(str(saved / "tokenizer.json"))
    assert_load_fails(saved, "is not the tokenizer that was saved")


@pytest.mark.parametrize("name", MODEL_FILES)
def test_missing_file(saved, name):
    (saved / name).unlink()
    assert_load_fails(saved, "no such")


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("damage", [b"", b"\x00", b"{", b"\xff\xfe nothing", b"[]", b"null"])
def test_damaged_file(saved, name, damage):
    (saved / name).write_bytes(damage)
    assert_load_fails(saved, name)


@pytest.mark.parametrize("keep", [4, 8, 100, 0.5, 0.99])
def test_truncated_weights(saved, keep):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(
        weights[: keep if isinstance(keep, int) else int(len(weights) * keep)]
    )
    assert_load_fails(saved, "not a whole safetensors file")


def test_no_folder(tmp_path):
    assert_load_fails(tmp_path / "nowhere", "no such folder")
    (tmp_path / "file").write_text("x")
    assert_load_fails(tmp_path / "file", "no such folder")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize(
    "dump", [lambda x, path: path.write_bytes(pickle.dumps(x)), torch.save], ids=["pickle", "torch"]
)
def test_pickles_are_refused_unread(saved, tmp_path, name, dump):
    (saved / "model.safetensors").unlink()
    dump(Bomb(tmp_path / "mark"), saved / name)
    assert_load_fails(saved, "pickle")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 32},
        {"d_ff": 64},
        {"layers": 1},
        {"layers": 3},
        {"d_model": 10**6, "heads": 1},
        {"norm": "post"},
    ],
)
def test_weights_of_another_shape(saved, change):
    edit(saved, lambda config: config["config"].update(change))
    assert_load_fails(saved, "the config asks for")


def test_config_of_another_vocabulary(saved):
    edit(saved, lambda config: config["config"].update(vocab_size=99))
    assert_load_fails(saved, "tokens, the model 99")


def test_weights_that_miss_or_add_a_tensor(saved):
    weights = {k: v.clone() for k, v in load_file(saved / "model.safetensors").items()}  # not mapped
    for other in (dict(list(weights.items())[1:]), weights | {"decoder.bias": torch.zeros(3)}):
        save_file(other, saved / "model.safetensors")
        assert_load_fails(saved, "none")


def test_tokenizer_of_another_vocabulary(saved):
    train_tokenizer(TEXTS, 20).save(str(saved / "tokenizer.json"))
    assert_load_fails(saved, "is not the tokenizer that was saved")


def test_tokenizer_of_the_same_size_but_another_vocabulary(tokenizer, saved):
    text = tokenizer.to_str()
    assert text.count("요") == 0
    (saved / "tokenizer.json").write_text(text.replace("행", "요"))
    assert_load_fails(saved, "is not the tokenizer that was saved")


def test_a_tokenizer_of_another_size_is_not_saved(model, tmp_path):
    with pytest.raises(BertlabError, match="the tokenizer has"):
        save_model(model, train_tokenizer(TEXTS, 20), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "../other/model.safetensors"},
        {"vocabulary": "/etc/passwd"},
        {"auto_map": {"AutoModel": "code.Model"}},
    ],
)
def test_config_that_leaves_the_folder_or_has_unknown_keys(saved, change):
    edit(saved, lambda config: config.update(change))
    assert_load_fails(saved, f"does not know ('{next(iter(change))}')")


@pytest.mark.parametrize(
    "change",
    [
        {"experts": 8},
        {"d_model": "wide"},
        {"d_model": 1.5},
        {"d_model": -4},
        {"heads": 3},
        {"activation": "../relu"},
        {"dropout": "some"},
        {"layers": None},
        {"layers": True, "d_model": []},
    ],
)
def test_impossible_encoder_config(saved, change):
    edit(saved, lambda config: config["config"].update(change))
    assert_load_fails(saved, "config.json")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"format": 3}, "format"),
        ({"format": "1"}, "format"),
        ({"model_type": None}, "type"),
        ({"model_type": ["mlm"]}, "type"),
        ({"config": []}, "not the config"),
        ({"config": {}}, "config.json"),
        ({"tokenizer": None}, "is not the tokenizer"),
    ],
)
def test_config_of_another_time(saved, change, says):
    edit(saved, lambda config: config.update(change))
    assert_load_fails(saved, says)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(model, tokenizer):
    masked, chars = batch_of([9, 30, 2], tokenizer.get_vocab_size()), chars_per_token(tokenizer)
    here = evaluate_mlm(model, [masked], chars)
    model = copy.deepcopy(model).to("cuda")
    assert evaluate_mlm(model, [masked], chars) == pytest.approx(here, rel=1e-3) and fill_mask(
        model, tokenizer, "the [MASK]"
    )
