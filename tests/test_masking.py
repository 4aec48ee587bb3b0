"What one notebook cannot show of masking: any lengths, any config, any seed."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bertlab.bpe import MASK_ID, SPECIAL_TOKENS
from bertlab.core.files import BertlabError
from bertlab.masking import (
    KIND_SALT,
    STRATEGIES,
    TOKEN_SALT,
    MaskingConfig,
    hash32,
    mask_batch,
    select_masked,
)
from bertlab.packing import Layout, PackedBatch

FIRST = len(SPECIAL_TOKENS)
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
shares = st.tuples(st.integers(0, 100), st.integers(0, 100)).map(
    lambda p: (min(p) / 100, (max(p) - min(p)) / 100)
)
configs = st.builds(
    lambda percent, share, strategy, n_masks: MaskingConfig(percent / 100, *share, strategy, n_masks),
    st.integers(1, 100),
    shares,
    st.sampled_from(STRATEGIES),
    st.integers(1, 12),
)
seeds = st.integers(-(2**40), 2**40)
epochs = st.integers(0, 2000)
vocabularies = st.integers(FIRST + 1, 60_000)


def make(lengths, vocab_size, seed=0, first=0):
    "A batch of random tokens, numbered from `first`."
    layout = Layout.from_lengths(lengths)
    ids = torch.randint(FIRST, vocab_size, (layout.n_tokens,), generator=torch.Generator().manual_seed(seed))
    return PackedBatch(ids, layout, torch.arange(first, first + len(lengths)))


def naive(ids, index, vocab_size, config, seed, epoch):
    "One sentence in plain Python."
    key = hash32(hash32(seed) ^ config.mask_round(epoch))
    hashes = [hash32(hash32(index ^ key) ^ position) for position in range(len(ids))]
    count = max(1, math.floor(config.mlm_probability * len(ids) + 0.5))
    seen, answers = list(ids), {}
    for position in sorted(sorted(range(len(ids)), key=lambda i: hashes[i])[:count]):
        answers[position] = ids[position]
        fate = hash32(hashes[position] ^ KIND_SALT)
        if fate < int(config.mask_replace_prob * 2**32):
            seen[position] = MASK_ID
        elif fate < int((config.mask_replace_prob + config.random_replace_prob) * 2**32):
            seen[position] = FIRST + hash32(hashes[position] ^ TOKEN_SALT) * (vocab_size - FIRST) // 2**32
    return seen, answers


@given(lengths, vocabularies, configs, seeds, epochs, st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_equals_the_naive_version(lengths, vocab_size, config, seed, epoch, first):
    batch = make(lengths, vocab_size, first=first)
    before = batch.ids.clone()
    masked = mask_batch(batch, vocab_size, config, seed, epoch)
    inputs, rows, targets = [], [], []
    for i, ids in enumerate(batch.ids.split(lengths)):
        seen, answers = naive(ids.tolist(), first + i, vocab_size, config, seed, epoch)
        rows += [len(inputs) + position for position in answers]
        targets += answers.values()
        inputs += seen
    assert (masked.inputs.tolist(), masked.masked_indices.tolist(), masked.targets.tolist()) == (
        inputs,
        rows,
        targets,
    )
    assert torch.equal(batch.ids, before)
    replaced = masked.inputs[masked.inputs != batch.ids]
    assert not ((replaced < FIRST) & (replaced != MASK_ID)).any() and (replaced < vocab_size).all()


@given(lengths, configs, seeds, epochs, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_mask_of_a_sentence_does_not_depend_on_its_batch(lengths, config, seed, epoch, random):
    batch = make(lengths, 500)
    sentences = batch.ids.split(lengths)
    order = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    layout = Layout.from_lengths([lengths[i] for i in order])
    other = PackedBatch(torch.cat([sentences[i] for i in order]), layout, torch.tensor(order))
    here, there = mask_batch(batch, 500, config, seed, epoch), mask_batch(other, 500, config, seed, epoch)
    parts = here.inputs.split(lengths)
    assert torch.equal(there.inputs, torch.cat([parts[i] for i in order]))
    assert torch.equal(other.ids[there.masked_indices], there.targets)


@given(st.integers(0, 500), st.integers(1, 12))
def test_strategies_give_their_rounds(epoch, n_masks):
    assert MaskingConfig(strategy="static", n_masks=n_masks).mask_round(epoch) == 0
    assert MaskingConfig(strategy="repeated", n_masks=n_masks).mask_round(epoch) == epoch % n_masks
    assert MaskingConfig(strategy="dynamic", n_masks=n_masks).mask_round(epoch) == epoch


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_the_hash_is_the_same_for_tensors_and_integers(numbers):
    assert hash32(torch.tensor(numbers)).tolist() == [hash32(x) for x in numbers]


@pytest.mark.parametrize("seed", range(5))
def test_replacements_and_positions_have_their_probabilities(seed):
    batch, config = make([20] * 3000, 105, seed), MaskingConfig()
    masked = mask_batch(batch, 105, config, seed, 3)
    seen, m = masked.inputs[masked.masked_indices], len(masked.masked_indices)
    assert m == 3 * 3000

    def within(hits, p):
        return abs(int(hits) - m * p) <= 5 * math.sqrt(m * p * (1 - p))

    assert within((seen == MASK_ID).sum(), 0.8) and within((seen == masked.targets).sum(), 0.1 + 0.1 / 100)
    where = torch.bincount(masked.masked_indices % 20, minlength=20)
    assert ((where - 450).abs() <= 5 * math.sqrt(3000 * 0.15 * 0.85)).all()


def test_random_tokens_are_spread_over_the_vocabulary():
    batch, config = make([20] * 3000, 1005), MaskingConfig(mask_replace_prob=0.0, random_replace_prob=1.0)
    masked = mask_batch(batch, 1005, config, 0, 0)
    random = masked.inputs[masked.masked_indices]
    tenths = torch.bincount((random - FIRST) // 100, minlength=10)
    assert len(tenths) == 10
    assert ((tenths - 900).abs() <= 5 * math.sqrt(9000 * 0.1 * 0.9)).all()


def test_masks_of_neighbours_have_nothing_in_common_but_chance():
    batch = make([20] * 2000, 100)
    chosen = torch.zeros(40, 2000, 20, dtype=torch.bool)
    for epoch in range(40):
        chosen[epoch].view(-1)[mask_batch(batch, 100, MaskingConfig(), 0, epoch).masked_indices] = True
    for a, b in [
        (chosen[1:], chosen[:-1]),
        (chosen[:, 1:], chosen[:, :-1]),
        (chosen[:, 64:], chosen[:, :-64]),
    ]:
        together = (a & b).double().mean().item()
        assert abs(together - 0.15**2) <= 5 * math.sqrt(0.15**2 / a.numel())


@pytest.mark.parametrize(
    "lengths, probability, expected",
    [
        ([4, 3], 0.5, [1, 3, 4, 6]),
        ([4, 3], 0.01, [3, 6]),
        ([4, 3], 1.0, list(range(7))),
        ([0, 7, 0], 0.01, [3]),
    ],
)
def test_the_smallest_hashes_are_chosen(lengths, probability, expected):
    hashes = torch.tensor([70, 20, 90, 10, 50, 80, 30])
    assert select_masked(hashes, Layout.from_lengths(lengths), probability).tolist() == expected


class CountOperations(TorchDispatchMode):
    "Counts the tensor operations that run while it is on."

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_there_is_no_hidden_loop():
    counts = []
    for n in (2, 200):
        with CountOperations() as counter:
            mask_batch(make([9] * n, 100), 100, MaskingConfig(), 0, 0)
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_a_seed_changes_the_masks():
    batch = make([20] * 10, 100)
    one, other = (mask_batch(batch, 100, MaskingConfig(), seed, 0) for seed in (0, 1))
    assert not torch.equal(one.inputs, other.inputs)


def test_a_vocabulary_without_a_token_is_refused():
    with pytest.raises(BertlabError, match="no token to replace"):
        mask_batch(make([5], FIRST + 1), FIRST, MaskingConfig(), 0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cuda_gives_the_same_integers(strategy):
    batch, config = make(list(range(1, 200)), 7458), MaskingConfig(strategy=strategy)
    here, there = mask_batch(batch, 7458, config, 11, 13), mask_batch(batch.to("cuda"), 7458, config, 11, 13)
    for name in ("inputs", "masked_indices", "targets"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())


@pytest.mark.parametrize(
    "wrong",
    [
        {"mlm_probability": 0.0},
        {"mlm_probability": 1.1},
        {"mlm_probability": float("nan")},
        {"mask_replace_prob": -0.1},
        {"mask_replace_prob": float("nan")},
        {"mask_replace_prob": 0.9, "random_replace_prob": 0.2},
        {"strategy": "none"},
        {"n_masks": 0},
    ],
)
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(BertlabError):
        MaskingConfig(**wrong)
