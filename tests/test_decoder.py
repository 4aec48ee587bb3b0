"Decoder and translator beyond their notebooks: any shape, any layout, interrupted runs, failures."

import itertools
import json
import math
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bertlab.bpe import CLS_ID, SEP_ID, train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.data.parallel import Pairs, SplitPairs, write_training_text
from bertlab.data.text import near_duplicate_key
from bertlab.decoder import (
    SUPPRESSED_IDS,
    CausalLM,
    CausalLMTask,
    Decoder,
    Transformer,
    beam_search,
    cross_attention_maps,
    generate,
    greedy,
    shift_right,
    top_k_sampler,
)
from bertlab.encoder import EncoderConfig, count_parameters
from bertlab.mlm import MaskedLM, save_model
from bertlab.packing import Layout
from bertlab.token_store import in_memory_store
from bertlab.training import Interrupted, TrainConfig
from bertlab.translation import (
    PairsConfig,
    PairStore,
    TranslationConfig,
    TranslationTask,
    attention_map,
    build_translator,
    load_translator,
    prepare_pairs,
    save_translator,
    train_translator,
    translate,
)

VOCAB = 23
shapes = st.builds(
    lambda heads, width, layers, norm, activation, positions: EncoderConfig(
        VOCAB, heads * width, heads, 3 * width, layers, activation, norm, max_len=40, positions=positions
    ),
    st.integers(1, 3),
    st.sampled_from([2, 4, 6]),
    st.integers(1, 3),
    st.sampled_from(["pre", "post"]),
    st.sampled_from(["relu", "gelu", "swish", "geglu"]),
    st.sampled_from(["sinusoidal", "learned", "rotary"]),
)
pairs_of_lengths = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6)


def some_ids(lengths, seed):
    "Random ordinary tokens and their layout."
    layout = Layout.from_lengths(lengths)
    return torch.randint(5, VOCAB, (layout.n_tokens,), generator=torch.Generator().manual_seed(seed)), layout


def shaken(model):
    "The model with no weight, bias or norm left at its initial value."
    dice = torch.Generator().manual_seed(5)
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=dice))
    return model.eval()


@given(shapes, pairs_of_lengths)
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_one_sentence_at_a_time_gives_the_same(config, lengths):
    model = shaken(Transformer(config))
    source, source_layout = some_ids([a for a, _ in lengths], 1)
    taught = shift_right(*some_ids([b for _, b in lengths], 2))
    together = model(source, source_layout, taught.inputs, taught.layout).split([b + 1 for _, b in lengths])
    parts = zip(
        source.split([a for a, _ in lengths]), taught.inputs.split([b + 1 for _, b in lengths]), together
    )
    for x, y, out in parts:
        alone = model(x, Layout.from_lengths([len(x)]), y, Layout.from_lengths([len(y)]))
        torch.testing.assert_close(alone, out, atol=1e-4, rtol=1e-4)


@given(shapes, pairs_of_lengths, st.booleans())
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_steps_equal_full_decoding_whatever_leaves(config, lengths, with_memory):
    longest = max(b for _, b in lengths)
    ids, layout = some_ids([longest] * len(lengths), 2)
    taught = shift_right(ids, layout)
    model = shaken((Transformer if with_memory else CausalLM)(config))
    source = some_ids([a for a, _ in lengths], 1) if with_memory else ()
    full = model(*source, taught.inputs, taught.layout).view(len(lengths), longest + 1, -1)
    cache = model.init_cache(*source) if with_memory else model.init_cache(len(lengths))
    rows = torch.arange(len(lengths))
    for i in range(longest + 1):
        logits = model.step(taught.inputs.view(len(lengths), -1)[rows, i], cache)
        torch.testing.assert_close(logits, full[rows, i], atol=1e-4, rtol=1e-4)
        if len(rows) > 1 and i % 2:  # one leaves
            on = torch.arange(len(rows)) != i % len(rows)
            cache.reorder(on.nonzero().squeeze(1), on.nonzero().squeeze(1))
            rows = rows[on]


@given(pairs_of_lengths, st.integers(0, 11))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_the_future_changes_nothing(lengths, cut):
    config = EncoderConfig(VOCAB, 16, 2, 32, 2)
    decoder = shaken(Decoder(config))
    memory_layout, layout = (Layout.from_lengths([p[i] for p in lengths]) for i in (0, 1))
    dice = torch.Generator().manual_seed(0)
    x, memory = (torch.randn(part.n_tokens, 16, generator=dice) for part in (layout, memory_layout))
    changed = torch.where((layout.position_ids > cut)[:, None], torch.randn(x.shape, generator=dice), x)
    past = layout.position_ids <= cut
    before, after = (decoder(y, layout, memory, memory_layout)[past] for y in (x, changed))
    assert torch.equal(before, after)


@given(shapes, pairs_of_lengths, st.integers(1, 4), st.sampled_from([0.0, 0.6, 1.0]))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_beam_search_scores_what_it_writes(config, lengths, beams, alpha):
    model = shaken(Transformer(config))
    source, layout = some_ids([a for a, _ in lengths], 1)
    max_new_tokens = torch.tensor([b for _, b in lengths])
    found, scores = beam_search(model, model.init_cache(source, layout, beams), max_new_tokens, beams, alpha)
    assert all(
        len(ids) <= limit and all(i >= 5 for i in ids) for ids, limit in zip(found, max_new_tokens.tolist())
    )
    taught = shift_right(
        torch.tensor([i for ids in found for i in ids], dtype=torch.long),
        Layout.from_lengths([len(ids) for ids in found]),
    )
    logp = (
        model(source, layout, taught.inputs, taught.layout)
        .log_softmax(-1)
        .gather(1, taught.targets[:, None])
        .squeeze(1)
    )
    for part, score in zip(logp.split(taught.layout.lengths.tolist()), scores.tolist()):
        assert math.isclose(part.sum().item() / ((5 + len(part)) / 6) ** alpha, score, abs_tol=1e-3)


def torchs_decoder(ours):
    "torch's decoder with the weights of ours; the names differ a little."
    c = ours.config
    activation = F.silu if c.activation == "swish" else c.activation
    how = dict(dropout=0.0, activation=activation, batch_first=True, norm_first=c.norm == "pre")
    layer = torch.nn.TransformerDecoderLayer(c.d_model, c.heads, c.d_ff, **how)
    theirs = torch.nn.TransformerDecoder(
        layer, c.layers, torch.nn.LayerNorm(c.d_model) if c.norm == "pre" else None
    )
    renamed = {"multihead_attn": "cross_attn", "linear": "ff.linear", "norm2": "norm_cross", "norm3": "norm2"}
    weights = {}
    for name in theirs.state_dict():
        old, new = next(((a, b) for a, b in renamed.items() if a in name), ("", ""))
        weights[name] = ours.state_dict()[name.replace(old, new)]
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_outputs_and_gradients_are_those_of_torch(norm, activation):
    torch.manual_seed(0)
    layout, memory_layout = Layout.from_lengths([3, 7, 4, 1]), Layout.from_lengths([5, 2, 9, 4])
    x, memory = (torch.randn(part.n_tokens, 32, requires_grad=True) for part in (layout, memory_layout))
    decoder = shaken(Decoder(EncoderConfig(50, 32, 4, 64, 3, activation=activation, norm=norm)))
    (i, real), (j, real_memory) = layout.pad_index, memory_layout.pad_index
    ahead = torch.ones(layout.max_seqlen, layout.max_seqlen, dtype=torch.bool).triu(1)
    masks = dict(tgt_mask=ahead, tgt_key_padding_mask=~real, memory_key_padding_mask=~real_memory)
    theirs = torchs_decoder(decoder)(x[i], memory[j], **masks)[real]
    ours = decoder(x, layout, memory, memory_layout)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), [x, memory]) for out in (ours, theirs))):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_row_may_leave_and_another_fork():
    model = shaken(Transformer(EncoderConfig(VOCAB, 32, 4, 64, 3)))
    source, source_layout = some_ids([4, 9, 7], 1)
    taught = shift_right(*some_ids([11, 11, 11], 2))
    inputs = taught.inputs.view(3, 12)
    full = model(source, source_layout, taught.inputs, taught.layout).view(3, 12, -1)
    cache = model.init_cache(source, source_layout)
    model.step(inputs[:, 0], cache)
    cache.reorder(torch.tensor([0, 2]), torch.tensor([0, 2]))
    torch.testing.assert_close(model.step(inputs[[0, 2], 1], cache), full[[0, 2], 1], atol=1e-4, rtol=1e-4)
    lm = shaken(CausalLM(EncoderConfig(VOCAB, 32, 4, 64, 3)))
    full = lm(taught.inputs, taught.layout).view(3, 12, -1)
    cache = lm.init_cache(3)
    lm.step(inputs[:, 0], cache)
    cache.reorder(torch.tensor([2, 2, 0]))
    torch.testing.assert_close(lm.step(inputs[[2, 2, 0], 1], cache), full[[2, 2, 0], 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
@torch.no_grad()
def test_enough_beams_find_the_best_of_all_sentences(length_penalty):
    model = shaken(Transformer(EncoderConfig(8, 16, 2, 32, 2)))  # five special tokens and three ordinary ones
    source, source_layout = torch.tensor([5, 7, 6, 6, 7, 5]), Layout.from_lengths([2, 4])
    sentences = [ids for n in range(4) for ids in itertools.product((5, 6, 7), repeat=n)]
    cache = model.init_cache(source, source_layout, 40)
    found, scores = beam_search(model, cache, torch.tensor([3, 3]), 40, length_penalty)
    for part, ids, score in zip(source.split([2, 4]), found, scores.tolist()):
        best = {}
        for sentence in sentences:
            layout = Layout.from_lengths([len(sentence)])
            taught = shift_right(torch.tensor(sentence, dtype=torch.long), layout)
            logits = model(part, Layout.from_lengths([len(part)]), taught.inputs, taught.layout)
            logp = logits.log_softmax(-1).gather(1, taught.targets[:, None]).sum().item()
            best[sentence] = logp / ((5 + len(sentence) + 1) / 6) ** length_penalty
        assert tuple(ids) == max(best, key=best.get)
        assert math.isclose(score, max(best.values()), abs_tol=1e-4)


def test_a_seed_decides_what_is_sampled():
    model = shaken(Transformer(EncoderConfig(VOCAB, 16, 2, 32, 2)))
    source, layout = some_ids([3, 8, 5], 1)
    limits = torch.tensor([6, 3, 9])
    drawn = [
        generate(model, model.init_cache(source, layout), limits, top_k_sampler(seed=s)) for s in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert not {*SUPPRESSED_IDS} & {token for rows in drawn for row in rows for token in row}


@torch.no_grad()
def test_greedy_does_not_depend_on_its_company():
    model = shaken(Transformer(EncoderConfig(VOCAB, 16, 2, 32, 2)))
    source, layout = some_ids([3, 8, 1, 5], 1)
    max_new_tokens = torch.tensor([9, 4, 0, 12])
    together = generate(model, model.init_cache(source, layout), max_new_tokens, greedy)
    assert together[2] == []  # no room
    for part, limit, ids in zip(source.split([3, 8, 1, 5]), max_new_tokens, together):
        assert (
            generate(model, model.init_cache(part, Layout.from_lengths([len(part)])), limit[None], greedy)[0]
            == ids
        )


def test_sampling_follows_the_distribution():
    logp = torch.tensor([0.6, 0.3, 0.1]).log().repeat(20_000, 1)
    shares = torch.bincount(top_k_sampler(seed=1)(logp)).double() / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]).double(), atol=0.02, rtol=0)
    assert set(top_k_sampler(top_k=2, seed=1)(logp).tolist()) == {0, 1}
    assert set(top_k_sampler(temperature=0.01, seed=1)(logp).tolist()) == {0}


def test_a_mean_loss_of_shifted_targets_is_torchs():
    model = shaken(CausalLM(EncoderConfig(VOCAB, 16, 2, 32, 1)))
    ids, layout = some_ids([4, 1, 6], 3)
    store = in_memory_store(["a"], train_tokenizer(["a b"], 0))
    loss, sums = CausalLMTask(model, store, store, torch.ones(VOCAB, dtype=torch.long)).loss(
        type("B", (), {"to": lambda self, *_, **__: self, "ids": ids, "layout": layout})(), 0
    )
    by_hand = []
    for part in ids.split([4, 1, 6]):
        inputs, targets = torch.cat([torch.tensor([CLS_ID]), part]), torch.cat([part, torch.tensor([SEP_ID])])
        by_hand.append(
            F.cross_entropy(model(inputs, Layout.from_lengths([len(inputs)])), targets, reduction="none")
        )
    torch.testing.assert_close(loss, torch.cat(by_hand).mean())
    assert sums["masked"] == 4 + 1 + 6 + 3


def test_too_long_a_sentence_is_told():
    model = Transformer(EncoderConfig(VOCAB, 16, 2, 32, 1, max_len=8))
    source, layout = some_ids([9], 0)
    with pytest.raises(BertlabError, match="9 tokens"):
        model.init_cache(source, layout)


def test_autocast_writes_the_same_length_of_cache():
    model = shaken(Transformer(EncoderConfig(VOCAB, 16, 2, 32, 2)))
    source, layout = some_ids([4, 6], 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.init_cache(source, layout)
        for _ in range(3):
            logits = model.step(torch.tensor([7, 8]), cache)
    assert torch.isfinite(logits).all() and cache.self_kv[0][0].shape[1] == 3


def test_cross_attention_leaves_no_hook_behind():
    model = shaken(Transformer(EncoderConfig(VOCAB, 16, 2, 32, 2)))
    source, layout = some_ids([4, 6], 0)
    taught = shift_right(*some_ids([3, 2], 1))
    maps = cross_attention_maps(model, source, layout, taught.inputs, taught.layout)
    assert [[tuple(m.shape) for m in layer] for layer in maps] == [[(2, 4, 4), (2, 3, 6)]] * 2
    assert not any(module._forward_pre_hooks for module in model.modules())


@given(
    st.lists(
        st.tuples(st.text("ab1. ", min_size=1, max_size=6), st.text("xy2! ", min_size=1, max_size=6)),
        max_size=60,
    )
)
@settings(max_examples=40, deadline=None)
def test_no_twin_of_a_held_out_pair_is_in_training(pairs):
    split = SplitPairs(pairs, held_out_fraction=0.4)
    train, held_out = list(split.train()), split.held_out()

    def bare(text):
        return near_duplicate_key(text) or text

    for side in (0, 1):
        known = {bare(pair[side]) for pair in train}
        assert not known & {bare(pair[side]) for part in held_out.values() for pair in part}
    keys = [[bare(target) for _, target in held_out[part]] for part in ("valid", "test")]
    assert not set(keys[0]) & set(keys[1]) and len(keys[0]) == len(set(keys[0]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A parallel corpus of our own, and a config for it."
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    numbers = "영 일 이 삼 사 오 육 칠 팔 구".split()
    letters, rows = "abcdefghij", []
    for i in range(400):
        ones, tens, n = i % 10, i // 10 % 10, i % 7
        korean = f"{numbers[ones]} {numbers[tens]} 개{'가' * n}"
        rows.append(f"{korean}\t{letters[ones]} {letters[tens]} things{'s' * n}\tmade up")
    path.write_text("ko\ten\tsource\n" + "\n".join(rows) + "\n", encoding="utf8")
    train = TrainConfig(lr=2e-3, epochs=1, batch_size=16, checkpoint_minutes=1e9)
    return TranslationConfig(
        pairs=PairsConfig(str(path), held_out_fraction=0.2, merges=50),
        encoder=EncoderConfig(d_model=16, heads=2, d_ff=32, layers=1, dropout=0.1, max_len=32),
        train=train,
        test_pairs=8,
        num_beams=2,
    )


def prepare(config):
    return prepare_pairs(config.pairs, config.encoder.max_len)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_a_run_that_is_stopped_ends_as_if_it_was_not(tiny, tmp_path, monkeypatch):
    whole = train_translator(tiny, tmp_path / "whole")
    steps, loss = [], TranslationTask.loss

    def stop_at_the_fifth(self, batch, epoch):
        steps.append(epoch)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGTERM)
        return loss(self, batch, epoch)

    monkeypatch.setattr(TranslationTask, "loss", stop_at_the_fifth)
    with pytest.raises(Interrupted):
        train_translator(tiny, tmp_path / "stopped")
    again = train_translator(tiny, tmp_path / "stopped")
    assert again["result"] == whole["result"] and again["examples"] == whole["examples"]
    a, b = (load_translator(tmp_path / name / "model")[0].state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (
        json.loads((tmp_path / "whole" / "record.json").read_text(encoding="utf8"))["config"]["pairs"][
            "corpus"
        ]
        == "pairs.tsv"
    )


def test_a_saved_translator_is_the_same_and_a_foreign_one_is_refused(tiny, tmp_path):
    ready = prepare(tiny)
    model = build_translator(tiny, ready.tokenizer)
    save_translator(model, ready.tokenizer, tmp_path / "model")
    loaded, tokenizer = load_translator(tmp_path / "model")
    sources = [source for source, _ in ready.test[:5]]
    assert translate(loaded, tokenizer, sources) == translate(model, ready.tokenizer, sources)
    save_model(
        MaskedLM(replace(tiny.encoder, vocab_size=tokenizer.get_vocab_size())), tokenizer, tmp_path / "mlm"
    )
    with pytest.raises(BertlabError, match="type 'mlm'"):
        load_translator(tmp_path / "mlm")


def test_the_encoder_starts_from_a_pretrained_one(tiny, tmp_path):
    ready = prepare(tiny)
    mlm = shaken(MaskedLM(replace(tiny.encoder, vocab_size=ready.tokenizer.get_vocab_size())))
    save_model(mlm, ready.tokenizer, tmp_path / "mlm")
    config = replace(tiny, pretrained=str(tmp_path / "mlm"))
    model = build_translator(config, prepare(config).tokenizer)
    for name, weight in mlm.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], weight)
    with pytest.raises(BertlabError, match="another shape"):
        build_translator(replace(config, encoder=replace(config.encoder, layers=2)), ready.tokenizer)
    assert count_parameters(model) == count_parameters(build_translator(tiny, ready.tokenizer))


def test_odd_sentences_are_translated_to_something(tiny):
    ready = prepare(tiny)
    model = build_translator(tiny, ready.tokenizer)
    odd = ["", " ", "👍🏽", "오" * 500, "a\tb\nc"]
    assert all(isinstance(text, str) for text in translate(model, ready.tokenizer, odd, num_beams=2))
    assert translate(model, ready.tokenizer, []) == []


def test_training_text_holds_training_text_only(tiny, tmp_path):
    split = SplitPairs(
        Pairs(tiny.pairs.corpus, tiny.pairs.source, tiny.pairs.fraction), tiny.pairs.held_out_fraction
    )
    write_training_text(split, tmp_path / "text.txt")
    lines = set((tmp_path / "text.txt").read_text(encoding="utf8").splitlines())
    ready = prepare(tiny)
    assert len(lines) > 100 and not lines & {text for pair in ready.test for text in pair}


def test_odd_store_lengths_drop_whole_pairs():
    tokenizer = train_tokenizer(["a b c d"], 0)
    store = PairStore(
        in_memory_store(["a", "b", "a b c d", "c", "d", "a b c d a b", "b", "a"], tokenizer, max_len=8),
        max_len=8,
    )
    assert store.pairs.tolist() == [0, 3]
    assert store.batch([0, 1]).target.layout.lengths.tolist() == [len(tokenizer.encode("b").ids) + 1] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu(tiny):
    ready = prepare(tiny)
    model = shaken(build_translator(tiny, ready.tokenizer))
    batch = ready.train.batch(range(16))
    with torch.no_grad():
        on_cpu, words = (
            TranslationTask(model, ready, tiny).loss(batch, 0)[0],
            translate(model, ready.tokenizer, ready.test[0][:1]),
        )
        model.cuda()
        on_gpu = TranslationTask(model, ready, tiny).loss(batch, 0)[0]
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=1e-3)
    assert translate(model, ready.tokenizer, ready.test[0][:1]) == words


# --- what may fail comes after the model is saved, or before the training begins


def test_a_trained_model_is_there_when_scoring_fails(tiny, tmp_path, monkeypatch):
    from bertlab import translation

    def fail(*args, **kwargs):
        raise BertlabError("scoring failed")

    with monkeypatch.context() as patched:
        patched.setattr(translation, "translation_scores", fail)
        with pytest.raises(BertlabError, match="scoring failed"):
            train_translator(tiny, tmp_path / "run")
    weights = load_translator(tmp_path / "run")[0].state_dict()
    monkeypatch.setattr(TranslationTask, "loss", fail)  # nothing is trained again
    assert train_translator(tiny, tmp_path / "run")["result"]
    again = load_translator(tmp_path / "run" / "model")[0].state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_missing_library_is_said_before_the_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(BertlabError, match="sacrebleu is not installed"):
        train_translator(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["num_beams", "test_pairs", "eval_pairs"])
@pytest.mark.parametrize("value", [0, -1, 10**20])
def test_numbers_that_cannot_be_are_refused_before_anything_is_done(name, value):
    with pytest.raises(BertlabError, match=f"{name} is {value}"):
        TranslationConfig(**{name: value})


def test_searches_without_beams_are_refused(tiny):
    ready = prepare(tiny)
    model = build_translator(tiny, ready.tokenizer)
    for beams in (0, 2**31):
        with pytest.raises(BertlabError, match=f"num_beams is {beams}"):
            translate(model, ready.tokenizer, ["영 일"], num_beams=beams)
    for wrong in ({"top_k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(BertlabError, match=next(iter(wrong))):
            top_k_sampler(**wrong)


def test_what_is_longer_than_the_model_is_cut_in_attention_maps(tiny):
    "Seen before: with a short max_len, a training that had ended failed on an example, each time it was typed."
    ready = prepare(tiny)
    model = build_translator(tiny, ready.tokenizer)
    source, target, weights = attention_map(model, ready.tokenizer, "영 일 " * 200, "one two " * 200)
    assert len(source) == model.config.max_len - 1 and len(target) == model.config.max_len
    assert weights.shape[-2:] == (len(target), len(source))


def test_a_run_on_edited_pairs_is_another_run(tiny, tmp_path):
    path = tmp_path / "pairs.tsv"
    text = open(tiny.pairs.corpus, encoding="utf8").read()
    path.write_text(text, encoding="utf8")
    config = replace(tiny, pairs=replace(tiny.pairs, corpus=str(path)))
    train_translator(config, tmp_path / "run")
    path.write_text(text.replace("영 영 개", "영 영 게"), encoding="utf8")
    with pytest.raises(BertlabError, match="another corpus"):
        train_translator(config, tmp_path / "run")


@pytest.mark.parametrize("num_beams", [1, 3])
def test_decoding_is_the_same_on_a_padded_plan(tiny, monkeypatch, num_beams):
    "On a GPU in fp32 attention runs on padded blocks; the position in the text is not that in the block."
    from bertlab import attention

    ready = prepare(tiny)
    model = shaken(build_translator(tiny, ready.tokenizer))
    sources = [source for source, _ in ready.test[:6]]
    expected = translate(model, ready.tokenizer, sources, num_beams)
    monkeypatch.setattr(attention, "bucketed_plan", attention.padded_plan)
    assert translate(model, ready.tokenizer, sources, num_beams) == expected
    lm = CausalLM(EncoderConfig(VOCAB, 16, 2, 32, 2)).eval()
    max_new_tokens = torch.tensor([7, 3, 5])
    assert len(generate(lm, lm.init_cache(3), max_new_tokens, greedy)) == 3
